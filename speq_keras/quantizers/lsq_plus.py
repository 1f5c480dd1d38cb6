"""LSQ+: a trained scale and, for tensors that go below zero, a trained offset."""

import functools
import math

import keras
from keras import ops

from speq_keras import ops as speq_ops
from speq_keras._checks import check_bits
from speq_keras.quantizers.base import ActivationQuantizer, AtLeastSmallest, register


class AtMostZero(keras.constraints.Constraint):
    """Keeps zero inside the range after an optimizer step."""

    def __call__(self, value):
        return ops.minimum(value, 0.0)


@register
class LSQPlus(ActivationQuantizer):
    """Trains the scale s and an offset β that is rounded to an integer zero point z.

        z = clip(round(−β / s), 0, L),   L = 2^b − 1
        q(x) = s · (round(v) − z),       v = clip(x / s + z, 0, L)

    Gradients are the paper's: ∂q/∂s = round(v) − v inside the range, L above it, 0 below it;
    ∂q/∂β = 1 outside the range, 0 inside; both times g = 1/√(N·L), N = values per example. The
    paper's offset is a float; integer kernels add an integer zero point, so z is an integer here,
    during training too. The offset is kept at or below 0, so that zero stays on the grid.

    Made for swish, whose minimum is −0.278: a symmetric grid would spend half its codes below zero,
    this one only as many as are worth it. Unsigned tensors have z = 0 and no offset.

    `scale` holds the scale for the width the quantizer was made with; other widths keep the range:
    s_b = s · L_made / L_b.

    Args:
        signed, weight_decay, bits, has_target_width: See `ActivationQuantizer`.

    Example:
        >>> quantizer = LSQPlus(bits=2, signed=True)
        >>> quantizer.build((None, 4))
        >>> _ = quantizer.scale.assign(1.0), quantizer.offset.assign(-1.2)
        >>> quantizer(ops.convert_to_tensor([[-7.0, -0.6, 0.4, 7.0]])).numpy().tolist()
        [[-1.0, -1.0, 0.0, 2.0]]
    """

    def __init__(self, *, made_with_bits=None, **kwargs):
        super().__init__(**kwargs)
        made_with_bits = check_bits("made_with_bits", made_with_bits)
        self.made_with_bits = made_with_bits or self._initial_bits or speq_ops.MAX_BITS

    def build(self, input_shape):
        values = math.prod(size or 1 for size in input_shape[1:])
        self._gradient_factor = float((values * speq_ops.levels_of(self.made_with_bits)) ** -0.5)
        super().build(input_shape)

    def build_range(self):
        start = 6.0 / speq_ops.levels_of(self.made_with_bits)
        self.scale = self.add_range("scale", start)
        self.scale.constraint = AtLeastSmallest()
        self.offset = None
        if self.signed:
            self.offset = self.add_scalar("offset", -start, trainable=True)
            self.offset.constraint = AtMostZero()

    def _grid(self, bits):
        """Returns the scale, the zero point, the number of steps, and a shift.

        The shift is zero and only carries gradients: it gives −z·s the gradients of β, although z
        is rounded and clipped.
        """
        levels = speq_ops.levels_of(bits)
        scale = speq_ops.keep_positive(ops.convert_to_tensor(self.scale.value))
        scale = speq_ops.scale_gradient(scale, self._gradient_factor)
        scale = scale * (speq_ops.levels_of(self.made_with_bits) / levels)
        if self.offset is None:
            return scale, 0.0, levels, 0.0
        offset = speq_ops.scale_gradient(
            ops.convert_to_tensor(self.offset.value), self._gradient_factor
        )
        zero = ops.stop_gradient(ops.clip(ops.round(-offset / scale), 0.0, levels))
        return scale, zero, levels, speq_ops.replace_value(offset + zero * scale, 0.0)

    def round_to_grid(self, x, bits, rounds=True):
        scale, zero, levels, shift = self._grid(bits)
        if keras.backend.backend() == "tensorflow":
            return _tensorflow_function()(x, scale, shift, zero, levels, rounds)
        code = ops.minimum(ops.maximum((x - shift) / scale + zero, 0.0), levels)
        rounded = speq_ops.round_straight_through(code)
        if rounds is not True:
            rounded = ops.where(rounds, rounded, code)
        return (rounded - zero) * scale + shift

    def step(self, bits):
        return self._grid(bits)[0]

    def multiply_scale(self, factor):
        self.scale.assign(self.scale * factor)
        if self.offset is not None:
            self.offset.assign(self.offset * factor)
        return True

    def set_range(self, histogram):
        bits = self.bits or speq_ops.MAX_BITS
        levels = int(speq_ops.levels_of(bits))
        # At 8 bits only every third zero point is tried: a step of 1.2 % of the range.
        zeros = range(0, levels, max(1, levels // 64)) if self.signed else [0]
        best_scale, best_zero, best_error = None, 0, float("inf")
        for zero in zeros:
            scale, error = histogram.best_scale(-zero, levels - zero)
            if scale is not None and error < best_error:
                best_scale, best_zero, best_error = scale, zero, error
        if best_scale is None:
            return
        ratio = levels / speq_ops.levels_of(self.made_with_bits)
        self.scale.assign(max(best_scale * ratio, speq_ops.SMALLEST_CLIP))
        if self.offset is not None:
            self.offset.assign(-best_zero * best_scale)

    def grid(self):
        if self.bits is None:
            return None
        scale, zero, levels = (float(ops.convert_to_numpy(v)) for v in self._grid(self.bits)[:3])
        zero = 0 if math.isnan(zero) else int(zero)  # after training diverged; the scale shows it
        return scale, -zero, int(levels) - zero

    def get_config(self):
        return {**super().get_config(), "made_with_bits": self.made_with_bits}


@functools.cache
def _tensorflow_function():
    """Returns f(x, scale, shift, zero, levels, rounds): the quantizer with hand-written gradients.

    Gives the same numbers as the formula, for which TensorFlow's own gradients take twice as many
    passes over the tensor.
    """
    import tensorflow as tf  # only if it is the backend

    @tf.custom_gradient
    def quantize(x, scale, shift, zero, levels, rounds):
        place = x / scale + zero  # the value of `shift` is 0
        code = tf.clip_by_value(place, 0.0, levels)
        rounded = code + rounds * (tf.round(code) - code)

        def gradient(dy):
            dx = dy * tf.cast(tf.equal(place, code), "float32")
            outside = dy - dx
            dscale = tf.reduce_sum(dx * (rounded - code) + outside * (code - zero))
            return dx, dscale, tf.reduce_sum(outside), None, None, None

        return (rounded - zero) * scale, gradient

    def function(x, scale, shift, zero, levels, rounds):
        numbers = (tf.cast(value, "float32") for value in (scale, shift, zero, levels, rounds))
        return quantize(x, *numbers)

    return function
