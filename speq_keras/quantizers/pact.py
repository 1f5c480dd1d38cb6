"""PACT: a trained clipping level."""

from keras import ops

from speq_keras import ops as speq_ops
from speq_keras.quantizers.base import (
    ActivationQuantizer,
    AtLeastSmallest,
    register,
    signed_codes,
    unsigned_codes,
)


@register
class PACT(ActivationQuantizer):
    """Clips at a trained level α and rounds to 2^b values.

        unsigned:  q(x) = s · round(clip(x, 0, α) / s),             s = α / (2^b − 1)
        signed:    q(x) = s · clip(round(x / s), −2^(b−1), 2^(b−1) − 1),   s = α / 2^(b−1)

    Gradients (straight-through): ∂q/∂x = 1 inside the range, 0 outside; unsigned ∂q/∂α = 1 where
    x > α, else 0; signed 1 − 2^(1−b) above and −1 below the range.

    α starts at 6, and calibration sets it to the least squared error. It stays positive: a step
    that pushes it below 1e-5 leaves it at that value, with its gradient alive.

    Args:
        signed, nonnegative_input, weight_decay, bits, has_target_width: See `ActivationQuantizer`.

    Example:
        >>> PACT(bits=2)(ops.convert_to_tensor([-1.0, 1.9, 3.1, 9.0])).numpy().tolist()
        [0.0, 2.0, 4.0, 6.0]

    Reference: Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks"
    (arXiv:1805.06085), Eq. 1-3. The signed form is ours.
    """

    def build_range(self):
        self.alpha = self.add_range("alpha", 6.0)
        self.alpha.constraint = AtLeastSmallest()

    def codes(self, bits):
        """Returns the smallest and largest code of a width."""
        return signed_codes(bits) if self.signed else unsigned_codes(bits)

    def round_to_grid(self, x, bits, rounds=True):
        low_code, high_code = self.codes(bits)
        scale = self._scale(low_code, high_code)
        # Only the full 8-bit range has the kernel's own lower limit; a constant width is known
        # here.
        clips_itself = isinstance(bits, int) and bits == speq_ops.MAX_BITS
        clip_below = not clips_itself and not self.nonnegative_input
        return speq_ops.fake_quantize(
            x,
            scale,
            low_code=low_code,
            high_code=high_code,
            clip_below=clip_below,
            rounds=rounds,
            is_symmetric=self.signed,
        )

    def step(self, bits):
        return self._scale(*self.codes(bits))

    def _scale(self, low_code, high_code):
        alpha = speq_ops.keep_positive(ops.convert_to_tensor(self.alpha.value))
        return alpha / (-low_code if self.signed else high_code)

    def multiply_scale(self, factor):
        self.alpha.assign(self.alpha * factor)
        return True

    def set_range(self, histogram):
        low_code, high_code = self.codes(self.bits or speq_ops.MAX_BITS)
        scale, _ = histogram.best_scale(low_code, high_code)
        if scale is not None:
            steps = -low_code if self.signed else high_code
            self.alpha.assign(max(scale * steps, speq_ops.SMALLEST_CLIP))

    def grid(self):
        alpha = max(float(ops.convert_to_numpy(self.alpha)), speq_ops.SMALLEST_CLIP)
        if self.bits is None:
            return None
        low_code, high_code = self.codes(self.bits)
        return alpha / (-low_code if self.signed else high_code), int(low_code), int(high_code)
