"""Ranges from the largest magnitude."""

from keras import ops

from speq_keras import ops as speq_ops
from speq_keras.quantizers.base import WeightQuantizer, register


def symmetric_levels(bits):
    """Returns K = 2^(b−1) − 1, the largest code of the symmetric grid −K ... K."""
    return (speq_ops.levels_of(bits) + 1) / 2 - 1


def largest_magnitude(weights, axes):
    """Returns max|w| over `axes` (kept), but at least the smallest clip: zeros stay zero."""
    return ops.maximum(ops.max(ops.abs(weights), axis=axes, keepdims=True), speq_ops.SMALLEST_CLIP)


@register
class MinMax(WeightQuantizer):
    """Clips nothing: the largest weight gets the largest code.

        q(w) = s · round(w / s),   s = max|w| / K,   K = 2^(b−1) − 1

    s is a constant in the backward pass; ∂q/∂w = 1. The usual choice at 8 bits, per channel.

    Args:
        per_channel, channel_axes, bits, has_target_width: See `WeightQuantizer`.

    Example:
        >>> MinMax(bits=2)(ops.convert_to_tensor([[-0.9, 0.3, 0.5, 1.0]])).numpy().tolist()
        [[-1.0, 0.0, 0.0, 1.0]]
    """

    def round_to_grid(self, weights, bits):
        axes = self.reduced_axes(len(weights.shape))
        scale = largest_magnitude(weights, axes) / symmetric_levels(bits)
        return speq_ops.replace_value(weights, ops.round(weights / scale) * scale)
