"""Ranges that are not trained: known from the function before, or calibrated once."""

from keras import ops

from speq_keras import ops as speq_ops
from speq_keras._checks import check_number, describe
from speq_keras.quantizers.base import ActivationQuantizer, register


@register
class FixedRange(ActivationQuantizer):
    """Rounds to 2^b values between two fixed limits.

        s = (high − low) / (2^b − 1),   z = round(−low / s)
        q(x) = s · (clip(round(x / s) + z, 0, 2^b − 1) − z)

    Zero is always a grid value (padding needs it), so the range is widened to contain it and
    shifted by less than half a step. Used for model inputs (ends from calibration) and for
    functions that know their range: a sigmoid fills [0, 255/256] with the scale 1/256 that integer
    kernels demand.

    Args:
        low, high: Ends of the range in units of the tensor, or both None: calibration sets them to
            the smallest and largest value seen.

    Example:
        >>> sigmoid_range = FixedRange(low=0.0, high=255 / 256, bits=8)
        >>> sigmoid_range(ops.convert_to_tensor([0.5, 1.0])).numpy().tolist()
        [0.5, 0.99609375]
    """

    def __init__(self, *, low=None, high=None, **kwargs):
        super().__init__(**kwargs)
        if low is not None and high is not None:
            low, high = check_number("low", low), check_number("high", high)
        if (low is None) != (high is None) or (low is not None and not low < high):
            raise ValueError(
                "`low` and `high` must be two numbers, the first one smaller, or both None. "
                f"{describe(low=low, high=high)}"
            )
        self.low, self.high = low, high

    def build_range(self):
        low, high = (-1.0, 1.0) if self.low is None else (self.low, self.high)
        self.range_low = self.add_scalar("range_low", min(low, 0.0))
        self.range_high = self.add_scalar("range_high", max(high, 0.0))
        if self.low is not None:
            self._calibrated.assign(1.0)

    def _grid(self, bits):
        low = ops.convert_to_tensor(self.range_low.value)
        high = ops.convert_to_tensor(self.range_high.value)
        levels = speq_ops.levels_of(bits)
        scale = ops.maximum(high - low, speq_ops.SMALLEST_CLIP) / levels
        # A range like [-1, 1] is a tie, which float32 could break differently in another compiler:
        # the small term breaks it the same way everywhere.
        zero_code = ops.clip(ops.round(-low / scale + 1e-3), 0.0, levels)
        return scale, zero_code, levels

    def round_to_grid(self, x, bits, rounds=True):
        scale, zero_code, levels = self._grid(bits)
        return speq_ops.fake_quantize(
            x,
            ops.stop_gradient(scale),
            low_code=ops.stop_gradient(-zero_code),
            high_code=ops.stop_gradient(levels - zero_code),
            clip_below=not (isinstance(bits, int) and bits == speq_ops.MAX_BITS),
            rounds=rounds,
        )

    def step(self, bits):
        return self._grid(bits)[0]

    def multiply_scale(self, factor):
        if self.low is not None:
            return False
        self.range_low.assign(self.range_low * factor)
        self.range_high.assign(self.range_high * factor)
        return True

    def set_range(self, histogram):
        if self.low is None:
            self.range_low.assign(min(histogram.low, 0.0))
            self.range_high.assign(max(histogram.high, 0.0))

    def grid(self):
        if self.bits is None:
            return None
        scale, zero_code, levels = (float(ops.convert_to_numpy(v)) for v in self._grid(self.bits))
        return scale, -int(zero_code), int(levels - zero_code)

    def get_config(self):
        return {**super().get_config(), "low": self.low, "high": self.high}
