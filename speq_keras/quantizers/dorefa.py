"""DoReFa-Net: fixed ranges, nothing trained."""

from keras import ops

from speq_keras import ops as speq_ops
from speq_keras.quantizers.base import (
    ActivationQuantizer,
    WeightQuantizer,
    register,
    unsigned_codes,
)


@register
class DoReFa(WeightQuantizer):
    """Squashes weights into [−1, 1] and rounds to 2^b values without zero.

        n(w) = tanh(w) / (2 · max|tanh(w)|) + ½
        q(w) = 2 · round((2^b − 1) · n(w)) / (2^b − 1) − 1

    The maximum is a constant in the backward pass; rounding has gradient 1. The result fills
    [−1, 1] whatever the size of the weights, so a BatchNormalization should follow.

    Args:
        per_channel, channel_axes, bits, has_target_width: See `WeightQuantizer`.

    Example:
        >>> print(DoReFa(bits=2)(ops.convert_to_tensor([[-0.5, 0.1, 0.5]])).numpy().round(3))
        [[-1.     0.333  1.   ]]

    Reference: Zhou et al., "DoReFa-Net" (arXiv:1606.06160), Eq. 9.
    """

    keeps_units = False

    def round_to_grid(self, weights, bits):
        levels = speq_ops.levels_of(bits)
        squashed = ops.tanh(weights)
        axes = self.reduced_axes(len(weights.shape))
        largest = ops.stop_gradient(ops.max(ops.abs(squashed), axis=axes, keepdims=True))
        unit = squashed / (2.0 * ops.maximum(largest, speq_ops.SMALLEST_CLIP)) + 0.5
        return 2.0 * speq_ops.round_straight_through(unit * levels) / levels - 1.0


@register
class DoReFaActivation(ActivationQuantizer):
    """Clips to [0, 1] and rounds: q(x) = round((2^b − 1) · clip(x, 0, 1)) / (2^b − 1).

    Args:
        bits, has_target_width: See `ActivationQuantizer`. There is no calibration; negative values
            become 0 wherever the quantizer is placed.

    Example:
        >>> x = ops.convert_to_tensor([-1.0, 0.3, 5.0])
        >>> print(DoReFaActivation(bits=2)(x).numpy().round(3))
        [0.    0.333 1.   ]

    Reference: Zhou et al., "DoReFa-Net" (arXiv:1606.06160), Eq. 11.
    """

    def build_range(self):
        self._calibrated.assign(1.0)

    def round_to_grid(self, x, bits, rounds=True):
        low_code, high_code = unsigned_codes(bits)
        return speq_ops.fake_quantize(
            x,
            self.step(bits),
            low_code=low_code,
            high_code=high_code,
            clip_below=not self.nonnegative_input,
            rounds=rounds,
        )

    def step(self, bits):
        return ops.convert_to_tensor(1.0 / unsigned_codes(bits)[1])

    def grid(self):
        if self.bits is None:
            return None
        levels = int(speq_ops.levels_of(self.bits))
        return 1.0 / levels, 0, levels
