"""QIL: a trained interval of weights, and a trained curve inside it."""

from keras import ops

from speq_keras import ops as speq_ops
from speq_keras.quantizers.base import AtLeastSmallest, WeightQuantizer, register, signed_codes

# The curve's slope may be infinite where the interval begins.
_SMALLEST_POSITION = 1e-6


@register
class QIL(WeightQuantizer):
    """Quantization interval learning: prunes below a trained interval and clips above it.

        t(w) = clip((|w| − c) / 2d + ½, 0, 1)              0 at c − d, 1 at c + d
        q(w) = sign(w) · round(K · t(w)^γ) / K,            K = 2^(b−1) − 1

    The center c, the half width d and the exponent γ are trained with the gradients of t^γ;
    rounding has gradient 1. Initially the interval is 0 ... max|w| and γ is 1. The result fills
    [−1, 1] whatever the size of the weights, so a BatchNormalization should follow.

    The paper also has an interval for activations. There an interval that begins above zero maps
    its lower end to zero, which no integer kernel computes: use another quantizer for activations.

    Args:
        per_channel, channel_axes, bits, has_target_width: See `WeightQuantizer`.

    Example:
        >>> quantizer = QIL(bits=3)
        >>> quantizer.build((1, 4))
        >>> quantizer.start_from([[-0.9, 0.2, 0.3, 0.6]])  # c = d = 0.45
        >>> print(quantizer(ops.convert_to_tensor([[-0.9, 0.2, 0.3, 0.6]])).numpy().round(3))
        [[-1.     0.333  0.333  0.667]]

    Reference: Jung et al., "Learning to Quantize Deep Networks by Optimizing Quantization Intervals
    with Task Loss" (arXiv:1808.05779), Eq. 3-5.
    """

    keeps_units = False

    def build(self, input_shape):
        super().build(input_shape)
        shape = self.shape_of_scales(input_shape)
        self.center = self.add_scalar("center", 0.5, shape=shape, trainable=True)
        self.half_width = self.add_scalar("half_width", 0.5, shape=shape, trainable=True)
        self.half_width.constraint = AtLeastSmallest()
        self.exponent = self.add_scalar("exponent", 1.0, shape=shape, trainable=True)
        self.exponent.constraint = AtLeastSmallest()

    def start_from(self, weights):
        weights = ops.convert_to_tensor(weights)
        axes = self.reduced_axes(len(weights.shape))
        half = ops.max(ops.abs(weights), axis=axes, keepdims=True) / 2
        half = ops.maximum(half, speq_ops.SMALLEST_CLIP)
        self.center.assign(half)
        self.half_width.assign(half)

    def round_to_grid(self, weights, bits):
        _, high_code = signed_codes(bits)
        half_width = speq_ops.keep_positive(ops.convert_to_tensor(self.half_width.value))
        exponent = speq_ops.keep_positive(ops.convert_to_tensor(self.exponent.value))
        position = (ops.abs(weights) - self.center) / (2.0 * half_width) + 0.5
        inside = ops.clip(position, _SMALLEST_POSITION, 1.0)
        curve = ops.where(position > 0.0, inside**exponent, 0.0)
        return ops.sign(weights) * speq_ops.round_straight_through(curve * high_code) / high_code
