"""The container types of a layer's weight codes."""

import numpy as np
from keras import layers

from speq_keras.export.tflite.network import CODES

STORAGES = {
    "int8": "every weight in one byte",
    "int4": "4 bits where the fast kernels read them: dense layers and 1×1 convolutions",
    "int2": "as int4, and 2 bits in dense layers, which LiteRT reads exactly from version 2 on",
    "smallest": "4 or 2 bits wherever some kernel reads them; most of these kernels are slow",
}
DEFAULT_STORAGE = next(iter(STORAGES))
_DENSE = (layers.Dense, layers.EinsumDense)
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def container_of(step, storage):
    """Returns `(container, why)`: "int8", "int4" or "int2", and why it is not narrower.

    Args:
        step: A linear `Step` whose weights have codes.
        storage: One of `STORAGES`.
    """
    if storage == "int8":
        return "int8", ""
    layer = step.nodes[0].operation.layer
    matrix = isinstance(layer, _DENSE) or _is_pointwise(layer)
    low, high = int(step.weights.codes.min()), int(step.weights.codes.max())
    if not _fits(low, high, "int4"):
        return "int8", f"its codes go from {low} to {high}"
    if storage in ("int4", "int2"):
        inputs = step.weights.codes.size // step.weights.scale.size
        if not matrix:
            return "int8", "the fast kernels read 4 bits in matrices only"
        if inputs % 2:
            return "int8", "the fast kernel reads 4 bits in pairs, and its inputs are odd in number"
        if storage == "int4":
            return "int4", ""
        if not isinstance(layer, _DENSE):
            return "int4", "2 bits take twice the time where a matrix has many rows"
        if not _fits(low, high, "int2"):
            return "int4", f"2 bits hold -2 to 1, and its codes go from {low} to {high}"
        if inputs % 4:
            return "int4", "the fast kernel reads 2 bits in fours, which its inputs do not fill"
        return "int2", ""
    if isinstance(layer, _DENSE) or (matrix and isinstance(layer, _CONVOLUTIONS)):
        if _fits(low, high, "int2"):
            return "int2", ""
        return "int4", f"2 bits hold -2 to 1, and its codes go from {low} to {high}"
    if isinstance(layer, _CONVOLUTIONS) and getattr(layer, "groups", 1) == 1:
        return "int4", "only matrices can have 2 bits"
    if isinstance(layer, _DEPTHWISE):
        return "int4", "only matrices can have 2 bits"
    return "int8", f"no kernel reads a narrower {type(layer).__name__}"


def _is_pointwise(layer):
    if not isinstance(layer, _CONVOLUTIONS) or layer.groups != 1:
        return False
    return all(n == 1 for n in (*layer.kernel_size, *layer.strides))


def _fits(low, high, container):
    return CODES[container][0] <= low and high <= CODES[container][1]


def largest_multiplier(low, high, container):
    """Returns the factor by which codes `low` ... `high` (arrays) can be multiplied to fit.

    8-bit codes stay within ±127, as kernels require.
    """
    room_low, room_high = CODES[container]
    room_low = max(room_low, -room_high) if container == "int8" else room_low
    above = np.where(high > 0, room_high // np.maximum(high, 1), room_high)
    below = np.where(low < 0, room_low // np.minimum(low, -1), -room_low)
    return np.maximum(np.minimum(above, below), 1)
