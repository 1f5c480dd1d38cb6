"""Layers that are a slope and a shift per channel: BatchNormalization, Rescaling, x * 0.5, ..."""

import keras
import numpy as np

from speq_keras.export.folding.options import unsupported
from speq_keras.export.folding.steps import CannotExport
from speq_keras.graph import Ref
from speq_keras.operations import name_of

# Layers whose values may vary along any axis: these also scale floats.
ALONG_AXES = ("Rescaling", "Normalization")


def of(operation, shape):
    """Returns float64 `(slope, shift)`, vectors over the channels, of an AFFINE layer.

    Args:
        operation: The layer.
        shape: Shape of the tensor that it reads, batch first.

    Raises:
        CannotExport: If the layer does not work per channel of the last axis.
    """
    name = name_of(operation)
    if name == "BatchNormalization":
        axis, slope, shift = _batch_normalization(operation, shape)
        if axis != len(shape) - 1:
            raise unsupported("axis", operation.axis, "it must be the last axis")
        return slope, shift
    if name in ALONG_AXES:
        slope, shift = along_axes(operation)
        return _vector(slope, shape), _vector(shift, shape)
    if name == "ChannelOperation":
        return _channel_operation(operation, shape)
    raise CannotExport("it is not known to be a slope and a shift")


def in_float(operation, shape):
    """Returns `(slope, shift)` in a shape that broadcasts against floats; arguments as in `of`."""
    if name_of(operation) in ALONG_AXES:
        pair = along_axes(operation)
    elif name_of(operation) == "BatchNormalization":
        axis, *pair = _batch_normalization(operation, shape)
        sizes = [size if place == axis else 1 for place, size in enumerate(shape)]
        pair = [vector.reshape(sizes) for vector in pair]
    else:
        pair = of(operation, shape)
    return tuple(np.atleast_1d(vector) for vector in pair)


def of_call(node, shape):
    """Returns `(slope, shift)` of an operation on one tensor and a constant, such as `x + 3`.

    Raises:
        CannotExport: If it is not such an operation.
    """
    name = name_of(node.operation)
    if name == "Negative":
        return -np.ones(shape[-1]), np.zeros(shape[-1])
    operands = [*node.args, *node.kwargs.values()][:2]
    if len(operands) != 2 or sum(isinstance(x, Ref) for x in operands) != 1:
        raise CannotExport("there is no integer kernel for it")
    tensor_first = isinstance(operands[0], Ref)
    constant = _vector(operands[1] if tensor_first else operands[0], shape)
    return _of_constant(name, constant, tensor_first)


def _of_constant(name, constant, tensor_first):
    """Returns `(slope, shift)` of an operation on a tensor and a vector, given by Keras' name."""
    one, zero = np.ones(len(constant)), np.zeros(len(constant))
    if name == "Add":
        return one, constant
    if name == "Subtract":
        return (one, -constant) if tensor_first else (-one, constant)
    if name == "Multiply":
        return constant, zero
    if name in ("Divide", "TrueDivide") and tensor_first:
        if not np.all(constant):
            raise CannotExport("it divides by zero")
        return 1 / constant, zero
    raise CannotExport("there is no integer kernel for it")


def _channel_operation(layer, shape):
    constant = _vector(layer.weight, shape)
    return _of_constant(layer.operation.capitalize(), constant, not layer.weight_first)


def _batch_normalization(layer, shape):
    """Returns its axis, counted from 0, and the slope and shift along it."""
    axis = (layer.axis[0] if isinstance(layer.axis, list | tuple) else layer.axis) % len(shape)
    mean = _numpy(layer.moving_mean)
    deviation = np.sqrt(_numpy(layer.moving_variance) + layer.epsilon)
    slope = (_numpy(layer.gamma) if layer.scale else np.ones(shape[axis])) / deviation
    shift = (_numpy(layer.beta) if layer.center else np.zeros(shape[axis])) - mean * slope
    return axis, slope, shift


def along_axes(layer):
    """Returns float64 `(slope, shift)` of a Rescaling or Normalization, for broadcasting.

    Raises:
        CannotExport: If its data format is channels first.
    """
    if name_of(layer) == "Rescaling":
        if keras.config.image_data_format() == "channels_first":
            raise CannotExport("kernels read channels last, and Keras is set to channels_first")
        return _array(layer.scale), _array(layer.offset)
    mean, deviation = _array(layer.mean), np.sqrt(_array(layer.variance))
    deviation = np.maximum(deviation, keras.config.epsilon())
    if layer.invert:
        return deviation, mean
    return 1 / deviation, -mean / deviation


def _array(value):
    return np.asarray(keras.ops.convert_to_numpy(value), "float64")


def _vector(value, shape):
    """Returns a constant that broadcasts against a tensor of `shape`, as a vector over channels."""
    array = _array(value)
    is_vector = array.size == shape[-1] and array.shape[-1:] == (array.size,)
    if array.size != 1 and not (is_vector and array.ndim <= len(shape)):
        raise CannotExport(
            f"its constant of shape {array.shape} must be one number, or one per channel of the "
            "last axis"
        )
    return np.broadcast_to(array.reshape(-1), (shape[-1],)).astype("float64")


def _numpy(variable):
    return keras.ops.convert_to_numpy(variable.value).astype("float64")
