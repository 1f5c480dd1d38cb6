"""Operations on a tensor and a constant, as the scale and offset of a Rescaling."""

import keras
import numpy as np

from speq_keras.graph import Ref, output_specs
from speq_keras.operations import ARITHMETIC, name_of


def as_rescaling(graph, operation, args, kwargs):
    """Returns (scale, offset) of the Rescaling equivalent to an operation, or None.

    The constant must be one number, or one per channel of the last axis: along another axis a
    Rescaling could not be folded. Operations with integer results are left alone.

    Args:
        graph: The `Graph` of the call.
        operation: Any operation.
        args: Arguments of its call, with `Ref`s.
        kwargs: Likewise.
    """
    name = name_of(operation)
    operands = [*args, *kwargs.values()]
    if isinstance(operation, keras.layers.Layer) or name not in ARITHMETIC or len(operands) != 2:
        return None
    refs = [x for x in operands if isinstance(x, Ref)]
    constants = [x for x in operands if not isinstance(x, Ref)]
    if len(refs) != 1 or keras.tree.is_nested(constants[0]):
        return None
    tensor = graph.tensors[refs[0].index]
    ((shape, dtype),) = output_specs(graph, operation, args, kwargs)
    if "float" not in dtype or tuple(shape) != tuple(tensor.shape):
        return None
    constant = _per_channel(constants[0], tensor.shape)
    return None if constant is None else _scale_and_offset(name, constant, operands[0] is refs[0])


def _per_channel(value, shape):
    """Returns a number, or a vector over the last axis, or None if it is neither."""
    array = np.asarray(keras.ops.convert_to_numpy(value), "float64")
    if array.size == 1:
        return float(array.reshape(()))
    is_vector = array.shape[-1:] == (array.size,) and array.size == shape[-1]
    return array.reshape(-1) if is_vector else None


def _scale_and_offset(name, constant, tensor_first):
    if name == "Multiply":
        return constant, 0.0
    if name == "Add":
        return 1.0, constant
    if name == "Subtract":
        return (1.0, -constant) if tensor_first else (-1.0, constant)
    if not tensor_first or not np.all(constant):
        return None
    return 1 / constant, 0.0
