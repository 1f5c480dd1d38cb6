"""How a stock int8 kernel is made to compute fewer than 8 bits.

    codes                stored with                        clipped by
    -------------------  ---------------------------------  --------------------------------------
    8 bits               zero point -128 - low              saturation, both ends
    0 ... L              zero point 127 - L                 RELU below, saturation above
    -z ... h, z <= h     scale 1/h, zero point z - 128      saturation below, RELU_N1_TO_1 above
    -z ... h, z > h      scale 1/z, zero point 127 - h      RELU_N1_TO_1 below, saturation above

In the last two rows the scale in the file is not the step of the trained grid. The operations that
write and read the tensor multiply by their own scales, which absorb the factor.
"""

import dataclasses

import numpy as np

from speq_keras.export.tflite.network import Tensor


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Scale and zero point in the file, the step of the trained grid, and the clipping needed."""

    scale: np.float32
    zero_point: int
    step: np.float32
    low: int
    high: int
    clip: str

    @property
    def factor(self):
        """The factor from the numbers in the file to those of the model."""
        return np.float64(self.step) / np.float64(self.scale)


def encoding_of(grid):
    """Returns the `Encoding` of a `Grid`.

    Example:
        >>> from speq_keras.export.folding import Grid
        >>> encoding = encoding_of(Grid(np.float32(0.5), -4, 3))
        >>> encoding.zero_point, encoding.clip, float(encoding.scale)
        (124, 'relu_n1_to_1', 0.25)
    """
    low, high = grid.low, grid.high
    scale, clip = grid.scale, "none"
    if high - low == 255:
        zero_point = -128 - low
    elif low == 0:
        zero_point, clip = 127 - high, "relu"
    elif -low <= high:
        scale, zero_point, clip = np.float32(1) / np.float32(high), -128 - low, "relu_n1_to_1"
    else:
        scale, zero_point, clip = np.float32(1) / np.float32(-low), 127 - high, "relu_n1_to_1"
    return Encoding(
        np.float32(scale), zero_point, np.float32(grid.scale), low + zero_point,
        high + zero_point, clip,
    )  # fmt: skip


def tensor_of(value):
    """Returns the `Tensor` of a `Value` with a grid."""
    encoding = encoding_of(value.grid)
    return Tensor(
        name=value.name,
        shape=tuple(value.shape),
        scale=encoding.scale,
        zero_point=encoding.zero_point,
        low=encoding.low,
        high=encoding.high,
        trained_scale=encoding.step,
        layer=value.layer,
    )


def fused_activation(activation, grid):
    """Returns `(fused, after)`: what the operation fuses, and what must be clipped afterwards.

    Args:
        activation: "none", "relu" or "relu6", from the trained graph.
        grid: The `Grid` that follows it.
    """
    encoding = encoding_of(grid)
    if activation == "relu6" and np.rint(6.0 / np.float64(grid.scale)) >= grid.high:
        activation = "relu"  # the grid ends before 6
    if encoding.clip == "none":
        return activation, None
    if encoding.clip == "relu":
        return (activation if activation == "relu6" else "relu"), None
    if activation == "none":
        return "relu_n1_to_1", None
    return "relu_n1_to_1", activation
