"""LSQ: a trained weight scale."""

import numpy as np
from keras import ops

from speq_keras import ops as speq_ops
from speq_keras._checks import check_bits
from speq_keras.quantizers.base import AtLeastSmallest, WeightQuantizer, register, signed_codes
from speq_keras.quantizers.mse import MSE

# Up to this width, the clipping of the paper's initial scale suits training.
_MOST_BITS_OF_START = 4


@register
class LSQ(WeightQuantizer):
    """Learned step size.

        q(w) = s · round(clip(w / s, −Q_N, Q_P)),   Q_N = 2^(b−1),   Q_P = 2^(b−1) − 1

    At 8 bits Q_N is 127: integer kernels do not accept a weight of −128.

    Gradients: ∂q/∂w = 1 inside the range, else 0; ∂q/∂s = round(w/s) − w/s inside, −Q_N below, Q_P
    above, times g = 1/√(N·Q_P), N = weights per scale. s starts at 2·mean|w|/√Q_P. Above 4 bits
    that is far too coarse before training (at 8 bits, the range of Gaussian weights is ±18 standard
    deviations), so `calibrate` replaces it by the s with the least squared error, if s has not
    changed yet.

    `scale` holds s for the width the quantizer was made with; other widths keep the range:
    s_b = s · Q_P,made / Q_P,b.

    Args:
        per_channel, channel_axes, bits, has_target_width: See `WeightQuantizer`.

    Example:
        >>> quantizer = LSQ(bits=2)
        >>> quantizer.build((1, 4))
        >>> quantizer.start_from([[-0.9, 0.2, 0.3, 0.6]])  # s = 2 · 0.5 / √1
        >>> quantizer(ops.convert_to_tensor([[-0.9, 0.2, 0.3, 0.6]])).numpy().tolist()
        [[-1.0, 0.0, 0.0, 1.0]]

    Reference: Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153), Eq. 1-3.
    """

    def __init__(self, *, made_with_bits=None, **kwargs):
        super().__init__(**kwargs)
        made_with_bits = check_bits("made_with_bits", made_with_bits)
        self.made_with_bits = made_with_bits or self._initial_bits or speq_ops.MAX_BITS

    def build(self, input_shape):
        super().build(input_shape)
        reduced = self.reduced_axes(len(input_shape))
        shape = self.shape_of_scales(input_shape)
        _, largest_code = signed_codes(self.made_with_bits)
        per_scale = float(np.prod([input_shape[axis] for axis in reduced]))
        self._gradient_factor = (per_scale * largest_code) ** -0.5
        self.scale = self.add_scalar("scale", 1.0, shape=shape, trainable=True)
        self.scale.constraint = AtLeastSmallest()

    def start_from(self, weights):
        self.scale.assign(self._start(ops.convert_to_numpy(weights)))

    def _start(self, weights):
        axes = self.reduced_axes(weights.ndim)
        _, largest_code = signed_codes(self.made_with_bits)
        start = 2 * np.abs(weights).mean(axis=axes, keepdims=True) / largest_code**0.5
        return np.maximum(start, speq_ops.SMALLEST_CLIP).astype("float32")

    def calibrate(self, weights):
        weights = ops.convert_to_numpy(weights)
        is_start = np.array_equal(ops.convert_to_numpy(self.scale), self._start(weights))
        if self.made_with_bits > _MOST_BITS_OF_START and is_start:
            least = MSE(
                bits=self.made_with_bits,
                per_channel=self.per_channel,
                channel_axes=self.channel_axes,
            )
            self.scale.assign(least.scale_of(ops.convert_to_tensor(weights), self.made_with_bits))

    def round_to_grid(self, weights, bits):
        low_code, high_code = signed_codes(bits)
        low_code = ops.maximum(low_code, -127.0)
        _, made_with_code = signed_codes(self.made_with_bits)
        scale = speq_ops.keep_positive(ops.convert_to_tensor(self.scale.value))
        scale = speq_ops.scale_gradient(scale, self._gradient_factor) * (made_with_code / high_code)
        codes = ops.minimum(ops.maximum(weights / scale, low_code), high_code)
        return speq_ops.round_straight_through(codes) * scale

    def get_config(self):
        return {**super().get_config(), "made_with_bits": self.made_with_bits}
