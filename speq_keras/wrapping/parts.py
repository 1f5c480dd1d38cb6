"""Expresses operations and layers of Keras by others that have integer kernels.

Each function takes the operation and the arguments of its call, with a `keras.KerasTensor` for each
tensor, and returns the call's results. It raises `CannotExpand` if the operation cannot be taken
apart.
"""

import functools
import inspect
import math

import keras
import numpy as np
from keras import layers, ops

from speq_keras.operations import operation_classes
from speq_keras.ops import einsum_axes
from speq_keras.wrapping import image_parts
from speq_keras.wrapping.image_parts import CannotExpand, reshaped


@functools.cache
def part_functions():
    """Returns {class of operations or layers: function that takes it apart}."""
    functions = dict(zip(operation_classes(_OPERATIONS), _OPERATIONS.values(), strict=True))
    functions.pop(None, None)  # operations that this version of Keras lacks
    return {
        **functions,
        layers.TimeDistributed: _time_distributed,
        layers.CenterCrop: image_parts.center_crop,
    }


# ---- products --------------------------------------------------------------------------------


def _attention(operation, query, key, value, bias=None, mask=None, scale=None):
    """Eq. 1 of "Attention Is All You Need" in products that can be quantized.

    Args:
        operation: Of `ops.dot_product_attention`.
        query: (batch, targets, heads, size).
        key: (batch, sources, heads, size).
        value: (batch, sources, heads, size).
        bias: Added to the scores, (batch, heads, targets, sources).
        mask: True where a source may be attended to.
        scale: Of the scores, if not 1/√size.
    """
    if operation.attn_logits_soft_cap is not None:
        raise CannotExpand("only attention without a soft cap is known")
    query = layers.Rescaling(query.shape[-1] ** -0.5 if scale is None else scale)(query)
    scores = product("bthd,bshd->bhts", query, key)
    if bias is not None:
        scores = ops.add(scores, bias)
    if operation.is_causal:
        causal = np.tril(np.ones(scores.shape[-2:], bool))
        mask = causal if mask is None else ops.logical_and(mask, causal)
    if mask is None:
        weights = layers.Softmax()(scores)
    elif isinstance(mask, keras.KerasTensor):
        weights = layers.Softmax()(scores, mask=mask)
    else:
        weights = layers.Softmax()(scores + np.where(mask, 0.0, -1e9).astype("float32"))
    return product("bhts,bshd->bthd", weights, value)


def _einsum(operation, *operands):
    if len(operands) != 2:
        raise CannotExpand("it is not a product of two tensors")
    return product(operation.subscripts, *operands)


def product(equation, x, y):
    """Returns `ops.einsum(equation, x, y)` as `ops.matmul` between transpositions and reshapes.

    Raises:
        CannotExpand: If it is not a product of matrices.
    """
    x_axes, y_axes, axes = einsum_axes(equation)
    shared = [a for a in axes if a in x_axes and a in y_axes]
    summed = [a for a in x_axes if a in y_axes and a not in axes]
    rows = [a for a in x_axes if a not in y_axes]
    columns = [a for a in y_axes if a not in x_axes]
    if set(axes) != {*shared, *rows, *columns} or "." in equation:
        raise CannotExpand("it is not a product of two matrices")
    sizes = {**dict(zip(y_axes, y.shape, strict=True)), **dict(zip(x_axes, x.shape, strict=True))}
    if shared and axes[0] != shared[0]:
        raise CannotExpand("the batch is not the first axis of its result")
    x = _matrix(_transposed(x, x_axes, [*shared, *rows, *summed]), sizes, shared, rows, summed)
    y = _matrix(
        _transposed(y, y_axes, [*shared, *summed, *columns]), sizes, shared, summed, columns
    )
    made = [*shared, *rows, *columns]
    result = reshaped(ops.matmul(x, y), [sizes[axis] for axis in made])
    return _transposed(result, made, axes)


def _matrix(x, sizes, shared, *groups):
    """Merges each group of axes into one; without shared axes, the first group keeps the batch."""
    first, last = ([sizes[axis] for axis in group] for group in groups)
    if None in first:  # the batch is among the rows: they stay separate
        return reshaped(x, [*first, math.prod(last)])
    return reshaped(x, [*(sizes[axis] for axis in shared), math.prod(first), math.prod(last)])


def _transposed(x, axes, wanted):
    order = [list(axes).index(axis) for axis in wanted]
    return x if order == sorted(order) else ops.transpose(x, order)


def _dot(operation, x, y):
    if len(y.shape) != 2:
        raise CannotExpand("it is not a product of two matrices")
    return ops.matmul(x, y)


def _tensordot(operation, x, y):
    axes = operation.axes
    axes = axes if isinstance(axes, list | tuple) else (range(-axes, 0), range(axes))
    (last, first) = ([axes] if isinstance(axes, int) else list(axes) for axes in axes)
    if len(y.shape) != 2 or first != [0] or last not in ([-1], [len(x.shape) - 1]):
        raise CannotExpand("it is not a product of two matrices")
    return ops.matmul(x, y)


def _separable_conv(operation, x, depthwise, pointwise):
    layout = operation.data_format
    y = ops.depthwise_conv(
        x, depthwise, operation.strides, operation.padding, layout, operation.dilation_rate
    )
    return ops.conv(y, pointwise, 1, "valid", layout)


# ---- activations and normalizations ----------------------------------------------------------


def _glu(operation, x):
    first, second = ops.split(x, 2, axis=operation.axis)
    return first * ops.sigmoid(second)


def _layer_norm(operation, x, gamma=None, beta=None):
    if operation.rms_scaling:
        raise CannotExpand("`rms_scaling` is deprecated in Keras")
    epsilon = _epsilon(operation)
    y = layers.LayerNormalization(operation.axis, epsilon, center=False, scale=False)(x)
    return _scaled(y, gamma, beta)


def _rms_norm(operation, x, scale=None):
    if scale is None:
        raise CannotExpand("it cannot be expressed by other operations")
    return _scaled(ops.rms_normalization(x, axis=operation.axis, epsilon=operation.epsilon), scale)


def _epsilon(operation):
    return keras.config.epsilon() if operation.epsilon is None else operation.epsilon


def _scaled(y, gamma=None, beta=None):
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def _moments(operation, x):
    axes, keeps = operation.axes, operation.keepdims
    return ops.mean(x, axes, keepdims=keeps), ops.var(x, axes, keepdims=keeps)


def _average(operation, x, weights=None):
    if weights is not None:
        raise CannotExpand("it has weights")
    return ops.mean(x, operation.axis)


def _log_add_exp(operation, x, y):
    return ops.maximum(x, y) + ops.softplus(-ops.abs(x - y))


def _filled(x, value, dtype):
    dtype = x.dtype if dtype is None else dtype
    if dtype == "bool":
        return ops.equal(x, x) if value else ops.not_equal(x, x)
    return ops.cast(x, dtype) * 0 + value


def _one_hot(operation, x):
    if operation.sparse or operation.axis not in (-1, len(x.shape)):
        raise CannotExpand("it is sparse, or its axis is not the last one")
    numbers = np.arange(operation.num_classes, dtype="int32")
    return ops.cast(ops.equal(ops.expand_dims(x, -1), numbers), operation.dtype)


# ---- layers ----------------------------------------------------------------------------------


def _time_distributed(layer, inputs, training=None, mask=None):
    """Each step of each sequence as a separate example."""
    if None in inputs.shape[1:]:
        raise CannotExpand("its sequences must have one length")
    if mask is not None and "mask" in inspect.signature(layer.layer.call).parameters:
        raise CannotExpand("its layer asks for a mask")
    steps = inputs.shape[1]
    x = ops.reshape(inputs, (-1, *inputs.shape[2:]))
    options = {} if training is None else {"training": training}
    y = layer.layer(x, **options)
    return ops.reshape(y, (-1, steps, *y.shape[1:]))


_OPERATIONS = {
    lambda x: ops.dot_product_attention(x, x, x): _attention,
    lambda x: ops.einsum("abcd,abed->abce", x, x): _einsum,
    lambda x: ops.dot(x, x[0, 0]): _dot,
    lambda x: ops.tensordot(x, x[0, 0], axes=1): _tensordot,
    lambda x: ops.separable_conv(x, x, x): _separable_conv,
    lambda x: ops.glu(x): _glu,
    lambda x: ops.layer_normalization(x): _layer_norm,
    lambda x: ops.rms_normalization(x): _rms_norm,
    lambda x: ops.moments(x, 1): _moments,
    lambda x: ops.average(x, 1): _average,
    lambda x: ops.logaddexp(x, x): _log_add_exp,
    lambda x: ops.one_hot(ops.cast(x[:, 0, 0], "int32"), 3): _one_hot,
    lambda x: ops.image.extract_patches(x, 2): image_parts.extract_patches,
    lambda x: ops.space_to_depth(x, 2): image_parts.space_to_depth,
    lambda x: ops.image.rgb_to_grayscale(x[..., :3]): image_parts.gray,
    lambda x: ops.image.crop_images(
        x, top_cropping=0, left_cropping=0, bottom_cropping=1, right_cropping=1
    ): image_parts.crop_images,
    lambda x: ops.image.pad_images(
        x, top_padding=0, left_padding=0, bottom_padding=1, right_padding=1
    ): image_parts.pad_images,
    lambda x: ops.slice(x, (0, 0, 0, 0), (1, 1, 1, 1)): image_parts.slice_constant,
    lambda x: ops.adaptive_average_pool(x, (2, 2)): image_parts.adaptive(
        ops.average_pool, image_parts.average_in
    ),
    lambda x: ops.adaptive_max_pool(x, (2, 2)): image_parts.adaptive(
        ops.max_pool, image_parts.largest_in
    ),
    lambda x: ops.amax(x, 1): lambda o, x: ops.max(x, o.axis, keepdims=o.keepdims),
    lambda x: ops.amin(x, 1): lambda o, x: ops.min(x, o.axis, keepdims=o.keepdims),
    lambda x: ops.ptp(x, 1): lambda o, x: (
        ops.max(x, o.axis, keepdims=o.keepdims) - ops.min(x, o.axis, keepdims=o.keepdims)
    ),
    lambda x: ops.fmin(x, x): lambda o, x, y: ops.minimum(x, y),
    lambda x: ops.fmax(x, x): lambda o, x, y: ops.maximum(x, y),
    lambda x: ops.zeros_like(x): lambda o, x, dtype=None: _filled(x, 0, dtype or o.dtype),
    lambda x: ops.ones_like(x): lambda o, x, dtype=None: _filled(x, 1, dtype or o.dtype),
}
