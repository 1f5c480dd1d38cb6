"""Layers that are a slope and a shift per channel: BatchNormalization, Rescaling, x * 0.5, ..."""

import keras
import numpy as np
from keras import layers

from speq_keras.export.folding.steps import CannotExport
from speq_keras.graph import Ref


def of(operation, channels):
    """Returns float64 `(slope, shift)`, vectors over the channels, of an AFFINE layer.

    Raises:
        CannotExport: If the layer does not work per channel of the last axis.
    """
    if isinstance(operation, layers.BatchNormalization):
        return _batch_normalization(operation, channels)
    if isinstance(operation, layers.Rescaling):
        return _vector(operation.scale, channels), _vector(operation.offset, channels)
    if isinstance(operation, layers.Normalization):
        return _normalization(operation, channels)
    raise CannotExport(f"{type(operation).__name__} is not known to be affine")


def of_call(node, channels):
    """Returns `(slope, shift)` of an operation on one tensor and a constant, such as `x + 3`.

    Raises:
        CannotExport: If it is none.
    """
    name = type(node.operation).__name__
    one, zero = np.ones(channels), np.zeros(channels)
    if name == "Negative":
        return -one, zero
    operands = [*node.args, *node.kwargs.values()][:2]
    if len(operands) != 2 or sum(isinstance(x, Ref) for x in operands) != 1:
        raise CannotExport("there is no integer kernel for it")
    tensor_first = isinstance(operands[0], Ref)
    constant = _vector(operands[1] if tensor_first else operands[0], channels)
    if name == "Add":
        return one, constant
    if name == "Subtract":
        return (one, -constant) if tensor_first else (-one, constant)
    if name == "Multiply":
        return constant, zero
    if name in ("Divide", "TrueDivide") and tensor_first:
        return 1 / constant, zero
    raise CannotExport("there is no integer kernel for it")


def _batch_normalization(layer, channels):
    if layer.axis not in (-1, len(layer.get_build_config()["input_shape"]) - 1):
        raise CannotExport("it must normalize the last axis")
    mean = _numpy(layer.moving_mean)
    deviation = np.sqrt(_numpy(layer.moving_variance) + layer.epsilon)
    slope = (_numpy(layer.gamma) if layer.scale else np.ones(channels)) / deviation
    shift = (_numpy(layer.beta) if layer.center else np.zeros(channels)) - mean * slope
    return slope, shift


def _normalization(layer, channels):
    mean, variance = (_vector(v, channels) for v in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.config.epsilon())
    if layer.invert:
        return deviation, mean
    return 1 / deviation, -mean / deviation


def _vector(value, channels):
    vector = np.asarray(keras.ops.convert_to_numpy(value), "float64").reshape(-1)
    if vector.size not in (1, channels):
        raise CannotExport("its constant must be one number, or one per channel of the last axis")
    return np.broadcast_to(vector, (channels,)).astype("float64")


def _numpy(variable):
    return keras.ops.convert_to_numpy(variable.value).astype("float64")
