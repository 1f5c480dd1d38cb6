"""Operations that exist only in float islands, except functions of one value and linear ones."""

import math

import keras
import numpy as np

from speq_keras.export.folding.copying import axes_of
from speq_keras.export.folding.options import unsupported
from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.lowering.expression import Floats, broadcast
from speq_keras.export.lowering.float_functions import activated
from speq_keras.graph import Ref


def affine(builder, step):
    """Slope and shift, and a clipping."""
    x = Floats.input(builder, step)
    for slope, shift in step.affines:
        x = x * slope + shift
    if step.activation != "none":
        x = activated(x, step.layer, step.activation)
    return x.finish()


# ---- normalizations --------------------------------------------------------------------------


def _axes_and_shape(layer, shape):
    """Returns the axes that a layer normalizes over, and the shape of its γ and β."""
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    axes = tuple(axis % len(shape) for axis in axes)
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return axes, sizes[min(axes) :]


def _scaled(y, gamma, beta, shape):
    """γ · y + β, each if present, in a shape that broadcasts."""
    if gamma is not None:
        y = y * np.reshape(keras.ops.convert_to_numpy(gamma), shape)
    return y if beta is None else y + np.reshape(keras.ops.convert_to_numpy(beta), shape)


def _standardized(x, axes, epsilon):
    return (x - x.mean(axes)) * (x.variance(axes) + epsilon).made("rsqrt")


def layer_normalization(builder, step):
    """Layer normalization over any axes."""
    x, layer = Floats.input(builder, step), step.layer
    axes, shape = _axes_and_shape(layer, x.shape)
    y = _standardized(x, axes, layer.epsilon)
    return _scaled(y, layer.gamma, layer.beta, shape).finish()


def rms_normalization(builder, step):
    """Divides by the root of the mean square, and multiplies by the scale."""
    x, layer = Floats.input(builder, step), step.layer
    axes, shape = _axes_and_shape(layer, x.shape)
    epsilon = keras.config.epsilon() if layer.epsilon is None else layer.epsilon
    y = x * (x.made("square").mean(axes) + epsilon).made("rsqrt")
    return _scaled(y, getattr(layer, "scale", None), None, shape).finish()


def group_normalization(builder, step):
    """Layer normalization of groups of channels, each over all pixels."""
    x, layer = Floats.input(builder, step), step.layer
    channels = x.shape[-1]
    if layer.axis not in (-1, len(x.shape) - 1):
        raise unsupported("axis", layer.axis, "it must be the last axis")
    groups = (x.shape[0], math.prod(x.shape[1:-1]), layer.groups, channels // layer.groups)
    y = _standardized(x.reshape(groups), (1, 3), layer.epsilon).reshape(x.shape)
    return _scaled(y, layer.gamma, layer.beta, (channels,)).finish()


def unit_normalization(builder, step):
    """Divides by the L2 norm; Keras does not multiply by more than 1e12."""
    x = Floats.input(builder, step)
    axes, _ = _axes_and_shape(step.layer, x.shape)
    return (x * x.made("square").sum(axes).made("rsqrt").at_most(1e12)).finish()


def normalize(builder, step):
    """`ops.normalize`: divides by a norm, or by ε where that is larger."""
    x, operation = Floats.input(builder, step), step.layer
    length = _norm(x, _axes(operation, x), operation.order)
    return (x / length.at_least(operation.epsilon)).finish()


# ---- reductions ------------------------------------------------------------------------------


def _axes(operation, x):
    """Returns the axes of a reduction, counted from 0."""
    axes = tuple(sorted(axes_of(operation.axis, len(x.shape))))
    if 0 in axes:
        raise CannotExport("it goes over the batch")
    return axes


def _norm(x, axes, order):
    if order in (None, 2, "fro"):
        return x.made("square").sum(axes).made("sqrt")
    if order == 1:
        return abs(x).sum(axes)
    if order in (np.inf, "inf"):
        return abs(x).reduced("reduce_max", axes)
    raise CannotExport(f"there is no kernel for a norm of order {order!r}")


def _log_sum_exp(x, axes, operation):
    largest = x.reduced("reduce_max", axes)
    return (x - largest).made("exp").sum(axes).made("log") + largest


# By Keras' class name: a function of `(x, axes, operation)`.
REDUCTIONS = {
    "Sum": lambda x, axes, operation: x.sum(axes),
    "Prod": lambda x, axes, operation: x.reduced("reduce_prod", axes),
    "Any": lambda x, axes, operation: x.reduced("reduce_max", axes),
    "All": lambda x, axes, operation: x.reduced("reduce_min", axes),
    "Var": lambda x, axes, operation: x.variance(axes),
    "Std": lambda x, axes, operation: x.variance(axes).made("sqrt"),
    "Norm": lambda x, axes, operation: _norm(x, axes, operation.ord),
    "Logsumexp": _log_sum_exp,
}


def reduction(name):
    """Returns the row of a reduction, by Keras' class name."""

    def row(builder, step):
        x = Floats.input(builder, step)
        y = REDUCTIONS[name](x, _axes(step.layer, x), step.layer)
        return y.reshape(step.output.shape).finish()

    return row


def arg_max(builder, step):
    """The position of the largest value along an axis, an integer."""
    x, operation = Floats.input(builder, step), step.layer
    if operation.axis is None:
        raise CannotExport("it must have an axis")
    axis = operation.axis % len(x.shape)
    shape = [size for place, size in enumerate(x.shape) if place != axis]
    y = x.made("arg_max", shape=shape, dtype="int32", axis=axis)
    return y.reshape(step.output.shape).finish()


# ---- masks -----------------------------------------------------------------------------------


def operands(builder, step, dtype=None, given=None):
    """Returns all operands of a call as `Floats`; numbers and arrays are constants.

    Args:
        builder: The `Builder`.
        step: The step.
        dtype: Type of the constants; by default that of the last tensor.
        given: Replaces `given_operands`, or None.
    """
    given = given_operands(step) if given is None else given
    tensors = [Floats.input(builder, step, number) for number in range(len(step.inputs))]
    waiting = iter(tensors)
    return [
        next(waiting)
        if isinstance(x, Ref)
        else tensors[-1].constant(keras.ops.convert_to_numpy(x), dtype)
        for x in given
    ]


def given_operands(step):
    """Returns the arguments of a step's call: a `Ref` for each tensor, and constants."""
    node = step.nodes[0]
    given = [*node.args, *node.kwargs.values()]
    return list(given[0]) if given and isinstance(given[0], list | tuple) else given


def comparison(kind):
    """Returns the row of a comparison of two tensors, or of one and a constant."""

    def row(builder, step):
        x, y = operands(builder, step)
        if "float32" in (x.tensor.dtype, y.tensor.dtype):
            x, y = x.cast("float32"), y.cast("float32")
        return x.with_other(kind, y, dtype="int32").finish()

    return row


def logical(kind):
    """Returns the row of a function of masks: integers, of which all but 0 are true."""

    def row(builder, step):
        masks = [x.is_true("not_equal", 0) for x in operands(builder, step, "int32")]
        if kind == "not":
            return (1 - masks[0]).finish()
        x, y = masks
        return {"and": x.at_most, "or": x.at_least}[kind](y).finish()

    return row


def where(builder, step):
    """Selects one of two values by a mask."""
    mask, x, y = operands(builder, step, step.output.dtype)
    dtype = step.output.dtype
    x, y = x.cast(dtype), y.cast(dtype)
    shape = broadcast(mask.shape, broadcast(x.shape, y.shape))
    return mask.made("select", x, y, shape=shape, dtype=dtype).finish()


def masked_mean(builder, step):
    """The mean of the time steps that a mask keeps."""
    x, layer = Floats.input(builder, step), step.layer
    mask = Floats.input(builder, step, 1).is_true("not_equal", 0).cast("float32")
    mask = mask.reshape((*mask.shape, 1))
    y = (x * mask).sum((1,)) / mask.sum((1,))
    return (y if layer.keepdims else y.reshape(step.output.shape)).finish()


def masking(builder, step):
    """Zeros where all channels equal the mask value."""
    x = Floats.input(builder, step)
    is_other = x.is_true("not_equal", step.layer.mask_value)
    return (x * is_other.reduced("reduce_max", (len(x.shape) - 1,)).cast("float32")).finish()


def cast(builder, step):
    """The same numbers in another type."""
    x = Floats.input(builder, step)
    if step.layer.dtype == "bool":
        return x.is_true("not_equal", 0).finish()
    return x.made("cast", dtype=step.output.dtype).finish()
