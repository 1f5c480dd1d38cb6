"""SAWB: the clipping level from two moments of the weights."""

import numpy as np
from keras import ops

from speq_keras import ops as speq_ops
from speq_keras.quantizers.base import WeightQuantizer, register
from speq_keras.quantizers.minmax import largest_magnitude, symmetric_levels

# (c1, c2) by width. 2 bits: four levels without zero; 3 and 4 bits: grids with zero. Published fits
# to Gaussian, Laplace, uniform, ... weights: fms-model-optimizer (2 bits), quantlib (3, 4).
COEFFICIENTS = {2: (3.12, 2.064), 3: (6.99146, 6.34798), 4: (12.04287, 12.0704)}


def _grid_row(bits):
    """Returns (c1, c2, steps from zero to α, offset of the codes, smallest and largest code)."""
    if bits == 2:
        return (*COEFFICIENTS[2], 1.5, 0.5, -2.0, 1.0)
    levels = symmetric_levels(bits)
    return (*COEFFICIENTS.get(bits, (0.0, 0.0)), levels, 0.0, -levels, levels)


# By width, so that a run-time width costs one look-up; rows 0 and 1 are never used.
_GRIDS = np.array([_grid_row(max(b, 2)) for b in range(speq_ops.MAX_BITS + 1)], "float32")


@register
class SAWB(WeightQuantizer):
    """Statistics-aware weight binning.

        α = c1 · √E[w²] − c2 · E|w|         (max|w| if that is not positive, and above 4 bits)

        2 bits:  ±α/3, ±α
        3 to 8:  s · (−K ... K),  K = 2^(b−1) − 1,  s = α / K

    α is a constant in the backward pass and ∂q/∂w = 1 everywhere: a weight beyond α keeps its
    gradient, otherwise it could never come back.

    At 2 bits there is no zero: on the networks of this project four levels beat three. From 3 bits
    on, zero is a level, and all codes fit a signed integer of the same width.

    Args:
        per_channel, channel_axes, bits, has_target_width: See `WeightQuantizer`.

    Example:
        >>> weights = ops.convert_to_tensor([[-1.0, -0.2, 0.1, 1.0]])
        >>> print(SAWB(bits=2)(weights).numpy().round(4))
        [[-1.0468 -0.3489  0.3489  1.0468]]

    Reference: Choi et al., "Bridging the Accuracy Gap for 2-bit Quantized Neural Networks"
    (arXiv:1807.06964), Eq. 9.
    """

    def round_to_grid(self, weights, bits):
        axes = self.reduced_axes(len(weights.shape))
        if isinstance(bits, int):
            row = [float(number) for number in _GRIDS[bits]]
        else:
            row = ops.unstack(speq_ops.entry_of(_GRIDS, bits)[0])
        c1, c2, steps, offset, low_code, high_code = row
        values = ops.stop_gradient(weights)
        mean_square = ops.mean(ops.square(values), axis=axes, keepdims=True)
        mean_magnitude = ops.mean(ops.abs(values), axis=axes, keepdims=True)
        clip = c1 * ops.sqrt(mean_square) - c2 * mean_magnitude
        clip = ops.where(clip > speq_ops.SMALLEST_CLIP, clip, largest_magnitude(values, axes))
        scale = clip / steps
        codes = ops.clip(ops.round(values / scale - offset), low_code, high_code)
        return speq_ops.replace_value(weights, (codes + offset) * scale)
