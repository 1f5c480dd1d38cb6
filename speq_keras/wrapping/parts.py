"""Operations and layers of Keras in terms of others, of which there are kernels.

Each function takes the operation and the arguments of its call, with a `keras.KerasTensor` where a
tensor goes, and returns what the call makes. It raises `CannotExpand` where the operation has to
stay what it is.
"""

import functools
import math

import keras
import numpy as np
from keras import layers, ops

from speq_keras.operations import operation_classes
from speq_keras.ops import einsum_axes

# ITU-R 601-2, as `ops.image.rgb_to_grayscale` has it.
_LUMA = (0.2989, 0.587, 0.114)


class CannotExpand(Exception):
    """Says, as a phrase, why a layer or operation has to stay one node."""


@functools.cache
def part_functions():
    """Returns {class of operations or layers: function that takes one apart}."""
    return {
        **dict(zip(operation_classes(_OPERATIONS), _OPERATIONS.values(), strict=True)),
        layers.TimeDistributed: _time_distributed,
        layers.CenterCrop: _center_crop,
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
        mask: True where a source may be looked at.
        scale: Of the scores, if it is not 1/√size.
    """
    if operation.attn_logits_soft_cap is not None:
        raise CannotExpand("of attention, only that without a soft cap is known")
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
        raise CannotExpand("it is no product of two tensors")
    return product(operation.subscripts, *operands)


def product(equation, x, y):
    """Returns `ops.einsum(equation, x, y)` as `ops.matmul` between transpositions and reshapes.

    Raises:
        CannotExpand: If it is no product of matrices.
    """
    x_axes, y_axes, axes = einsum_axes(equation)
    shared = [a for a in axes if a in x_axes and a in y_axes]
    summed = [a for a in x_axes if a in y_axes and a not in axes]
    rows = [a for a in x_axes if a not in y_axes]
    columns = [a for a in y_axes if a not in x_axes]
    if set(axes) != {*shared, *rows, *columns} or "." in equation:
        raise CannotExpand("it is no product of two matrices")
    sizes = {**dict(zip(y_axes, y.shape, strict=True)), **dict(zip(x_axes, x.shape, strict=True))}
    if shared and axes[0] != shared[0]:
        raise CannotExpand("the batch is not the first axis of what it makes")
    x = _matrix(_transposed(x, x_axes, [*shared, *rows, *summed]), sizes, shared, rows, summed)
    y = _matrix(
        _transposed(y, y_axes, [*shared, *summed, *columns]), sizes, shared, summed, columns
    )
    made = [*shared, *rows, *columns]
    result = _reshaped(ops.matmul(x, y), [sizes[axis] for axis in made])
    return _transposed(result, made, axes)


def _matrix(x, sizes, shared, *groups):
    """Merges each group of axes to one; without shared axes, the first group keeps the batch."""
    first, last = ([sizes[axis] for axis in group] for group in groups)
    if None in first:  # the batch is among the rows: they stay apart
        return _reshaped(x, [*first, math.prod(last)])
    return _reshaped(x, [*(sizes[axis] for axis in shared), math.prod(first), math.prod(last)])


def _reshaped(x, shape):
    if tuple(x.shape) == tuple(shape):
        return x
    return ops.reshape(x, [-1 if size is None else size for size in shape])


def _transposed(x, axes, wanted):
    order = [list(axes).index(axis) for axis in wanted]
    return x if order == sorted(order) else ops.transpose(x, order)


def _dot(operation, x, y):
    if len(y.shape) != 2:
        raise CannotExpand("it is no product of two matrices")
    return ops.matmul(x, y)


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
        raise CannotExpand("it is what it is")
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


def _one_hot(operation, x):
    if operation.sparse or operation.axis not in (-1, len(x.shape)):
        raise CannotExpand("it is sparse, or its axis is not the last one")
    numbers = np.arange(operation.num_classes, dtype="int32")
    return ops.cast(ops.equal(ops.expand_dims(x, -1), numbers), operation.dtype)


# ---- pieces of images ------------------------------------------------------------------------


def _extract_patches(operation, images):
    """Patches as slices: one for every place in a patch, one behind the other."""
    if operation.is_3d or operation.data_format != "channels_last" or len(images.shape) != 4:
        raise CannotExpand("only patches of images with channels last are known")
    size, strides, dilation = (
        (n, n) if isinstance(n, int) else tuple(n)
        for n in (operation.size, operation.strides or operation.size, operation.dilation_rate)
    )
    if operation.padding == "same":
        pads = [
            _same_padding(*numbers)
            for numbers in zip(images.shape[1:3], size, strides, dilation, strict=True)
        ]
        images = ops.pad(images, ((0, 0), *pads, (0, 0)))
    _, height, width, _ = images.shape
    counts = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, s, d in zip((height, width), size, strides, dilation, strict=True)
    ]
    if size == strides and dilation == (1, 1):
        return _tiles(images, counts, size)
    slices = []
    for y in range(0, size[0] * dilation[0], dilation[0]):
        for x in range(0, size[1] * dilation[1], dilation[1]):
            rows, columns = (
                slice(first, first + (count - 1) * stride + 1, stride)
                for first, count, stride in zip((y, x), counts, strides, strict=True)
            )
            slices.append(images[:, rows, columns])
    return ops.concatenate(slices, -1)


def _same_padding(size, kernel, stride, dilation):
    reach = (kernel - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _tiles(images, counts, size):
    """Patches that do not overlap, by reshaping."""
    channels = images.shape[-1]
    (rows, columns), (height, width) = counts, size
    images = images[:, : rows * height, : columns * width]
    x = ops.reshape(images, (-1, rows, height, columns, width * channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4))
    return ops.reshape(x, (-1, rows, columns, height * width * channels))


def _space_to_depth(operation, x):
    size = operation.block_size
    if operation.data_format != "channels_last":
        raise CannotExpand("kernels read channels last")
    slices = [x[:, row::size, column::size] for row in range(size) for column in range(size)]
    return ops.concatenate(slices, -1)


def _gray(operation, images):
    if operation.data_format != "channels_last":
        raise CannotExpand("kernels read channels last")
    return ops.matmul(images, np.array(_LUMA, "float32")[:, None])


def _crop(operation, images):
    if operation.data_format != "channels_last" or len(images.shape) != 4:
        raise CannotExpand("only images with channels last are known")
    ends = [
        _ends(size, before, after, target)
        for size, before, after, target in (
            (
                images.shape[1],
                operation.top_cropping,
                operation.bottom_cropping,
                operation.target_height,
            ),
            (
                images.shape[2],
                operation.left_cropping,
                operation.right_cropping,
                operation.target_width,
            ),
        )
    ]
    (top, bottom), (left, right) = ends
    return images[:, top:bottom, left:right]


def _ends(size, before, after, target):
    if before is None:
        before = size - after - target
    return before, before + target if target is not None else size - after


def _pad(operation, images):
    if operation.data_format != "channels_last" or len(images.shape) != 4:
        raise CannotExpand("only images with channels last are known")
    pairs = (
        (operation.top_padding, operation.bottom_padding, operation.target_height),
        (operation.left_padding, operation.right_padding, operation.target_width),
    )
    pads = []
    for size, (before, after, target) in zip(images.shape[1:3], pairs, strict=True):
        before = target - size - after if before is None else before
        pads.append((before, target - size - before if after is None else after))
    return ops.pad(images, ((0, 0), *pads, (0, 0)))


def _slice(operation, x, start):
    shape = operation.shape
    if any(isinstance(n, keras.KerasTensor) for n in (start, *np.atleast_1d(start))):
        raise CannotExpand("it begins where a tensor says")
    starts = [int(n) for n in np.asarray(start)]
    if starts[0] or shape[0] not in (-1, x.shape[0]):
        raise CannotExpand("it cuts the batch")
    keys = [slice(n, None if k == -1 else n + k) for n, k in zip(starts, shape, strict=True)]
    return x[(slice(None), *keys[1:])]


# ---- pooling to a given size -----------------------------------------------------------------


def _adaptive(pool, reduce):
    """Returns the function of an adaptive pooling.

    Where windows have one size it is a pooling; else each axis on its own: windows as long as the
    longest one, in which values stand twice, for a maximum, or a matrix, for an average.
    """

    def function(operation, x):
        if operation.data_format != "channels_last":
            raise CannotExpand("kernels read channels last")
        sizes = x.shape[1:-1]
        made = operation.output_size
        made = (made,) * len(sizes) if isinstance(made, int) else tuple(made)
        made = tuple(n if m is None else m for n, m in zip(sizes, made, strict=True))
        if None in sizes:
            raise CannotExpand("sizes must be known")
        if all(size % count == 0 for size, count in zip(sizes, made, strict=True)):
            size = tuple(n // m for n, m in zip(sizes, made, strict=True))
            return pool(x, size, size, "valid")
        for axis, (size, count) in enumerate(zip(sizes, made, strict=True), 1):
            x = reduce(x, axis, _windows(size, count))
        return x

    return function


def _windows(size, count):
    """Returns the windows of an adaptive pooling along one axis, a list of ranges.

    Example:
        >>> _windows(5, 2)
        [range(0, 3), range(2, 5)]
    """
    return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _largest_in(x, axis, windows):
    longest = max(map(len, windows))
    places = [place for w in windows for place in [*w, *[w[-1]] * (longest - len(w))]]
    taken = ops.take(x, np.array(places), axis=axis)
    shape = [*x.shape[:axis], len(windows), longest, *x.shape[axis + 1 :]]
    return ops.max(_reshaped(taken, shape), axis=axis + 1)


def _average_in(x, axis, windows):
    matrix = np.zeros((x.shape[axis], len(windows)), "float32")
    for column, window in enumerate(windows):
        matrix[window, column] = 1 / len(window)
    order = [a for a in range(len(x.shape)) if a != axis] + [axis]
    y = ops.matmul(ops.transpose(x, order), matrix)
    return ops.transpose(y, [int(n) for n in np.argsort(order)])


# ---- layers ----------------------------------------------------------------------------------


def _time_distributed(layer, inputs, training=None, mask=None):
    """Every step of every sequence as an example of its own."""
    if None in inputs.shape[1:] or mask is not None:
        raise CannotExpand("its sequences must have one length, and no mask")
    steps = inputs.shape[1]
    x = ops.reshape(inputs, (-1, *inputs.shape[2:]))
    options = {} if training is None else {"training": training}
    y = layer.layer(x, **options)
    return ops.reshape(y, (-1, steps, *y.shape[1:]))


def _center_crop(layer, images, training=None):
    if layer.data_format != "channels_last" or len(images.shape) != 4:
        raise CannotExpand("only images with channels last are known")
    height, width = (
        (n - m) // 2 for n, m in zip(images.shape[1:3], (layer.height, layer.width), strict=True)
    )
    if min(height, width) < 0:
        raise CannotExpand("it makes images larger")
    top, left = height // 2, width // 2
    return images[:, top : top + layer.height, left : left + layer.width]


_OPERATIONS = {
    lambda x: ops.dot_product_attention(x, x, x): _attention,
    lambda x: ops.einsum("abcd,abed->abce", x, x): _einsum,
    lambda x: ops.dot(x, x[0, 0]): _dot,
    lambda x: ops.glu(x): _glu,
    lambda x: ops.layer_normalization(x): _layer_norm,
    lambda x: ops.rms_normalization(x): _rms_norm,
    lambda x: ops.moments(x, 1): _moments,
    lambda x: ops.average(x, 1): _average,
    lambda x: ops.logaddexp(x, x): _log_add_exp,
    lambda x: ops.one_hot(ops.cast(x[:, 0, 0], "int32"), 3): _one_hot,
    lambda x: ops.image.extract_patches(x, 2): _extract_patches,
    lambda x: ops.space_to_depth(x, 2): _space_to_depth,
    lambda x: ops.image.rgb_to_grayscale(x[..., :3]): _gray,
    lambda x: ops.image.crop_images(
        x, top_cropping=0, left_cropping=0, bottom_cropping=1, right_cropping=1
    ): _crop,
    lambda x: ops.image.pad_images(
        x, top_padding=0, left_padding=0, bottom_padding=1, right_padding=1
    ): _pad,
    lambda x: ops.slice(x, (0, 0, 0, 0), (1, 1, 1, 1)): _slice,
    lambda x: ops.adaptive_average_pool(x, (2, 2)): _adaptive(ops.average_pool, _average_in),
    lambda x: ops.adaptive_max_pool(x, (2, 2)): _adaptive(ops.max_pool, _largest_in),
    lambda x: ops.amax(x, 1): lambda o, x: ops.max(x, o.axis, keepdims=o.keepdims),
    lambda x: ops.amin(x, 1): lambda o, x: ops.min(x, o.axis, keepdims=o.keepdims),
    lambda x: ops.ptp(x, 1): lambda o, x: (
        ops.max(x, o.axis, keepdims=o.keepdims) - ops.min(x, o.axis, keepdims=o.keepdims)
    ),
    lambda x: ops.fmin(x, x): lambda o, x, y: ops.minimum(x, y),
    lambda x: ops.fmax(x, x): lambda o, x, y: ops.maximum(x, y),
    lambda x: ops.zeros_like(x): lambda o, x, dtype=None: x * 0,
    lambda x: ops.ones_like(x): lambda o, x, dtype=None: x * 0 + 1,
}
