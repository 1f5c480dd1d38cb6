"""Ranges with the least squared error."""

from keras import ops

from speq_keras import ops as speq_ops
from speq_keras.quantizers.base import WeightQuantizer, register
from speq_keras.quantizers.minmax import largest_magnitude, symmetric_levels

_ROUNDS = 8


@register
class MSE(WeightQuantizer):
    """Least squares: the scale that minimizes Σ (q(w) − w)², found again in every step.

        q(w) = s · c(w),   c(w) = clip(round(w / s), −K, K),   K = 2^(b−1) − 1
        repeated 8 times:   s ← Σ w·c(w) / Σ c(w)²

    For given codes the second line is the best scale, for a given scale rounding gives the best
    codes, so the error never rises. s is a constant in the backward pass; ∂q/∂w = 1.

    Args:
        per_channel, channel_axes, bits, has_target_width: See `WeightQuantizer`.

    Example:
        >>> print(MSE(bits=2)(ops.convert_to_tensor([[-0.8, 0.0, 0.1, 1.0]])).numpy().round(3))
        [[-0.9  0.   0.   0.9]]
    """

    def round_to_grid(self, weights, bits):
        axes = self.reduced_axes(len(weights.shape))
        levels = symmetric_levels(bits)
        values = ops.stop_gradient(weights)
        # LSQ's start, but never a range beyond the largest weight.
        mean_magnitude = ops.mean(ops.abs(values), axis=axes, keepdims=True)
        scale = ops.minimum(
            2.0 * mean_magnitude / levels**0.5, largest_magnitude(values, axes) / levels
        )
        scale = ops.maximum(scale, speq_ops.SMALLEST_CLIP / levels)
        for _ in range(_ROUNDS):
            codes = ops.clip(ops.round(values / scale), -levels, levels)
            fit = ops.sum(values * codes, axis=axes, keepdims=True)
            power = ops.sum(codes * codes, axis=axes, keepdims=True)
            scale = ops.where(power > 0, fit / ops.maximum(power, 1.0), scale)
        codes = ops.clip(ops.round(values / scale), -levels, levels)
        return speq_ops.replace_value(weights, codes * scale)
