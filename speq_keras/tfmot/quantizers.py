"""tfmot's quantizers as quantizers of Keras 3, with the same values.

    tfmot                    rule               range after a training step on a tensor x
    ----------------------   ----------------   ------------------------------------------------
    LastValueQuantizer       "last_value"       [min(x, 0), max(x, 0)]
    MovingAverageQuantizer   "moving_average"   0.999 · range + 0.001 · [min(x, 0), max(x, 0)]
    AllValuesQuantizer       "all_values"       the smallest one that contains all x so far
    FixedQuantizer           "fixed"            never changes

Inference changes no range. Ranges start at [−6, 6], or at [0, 0] for "all_values". Weights and
activations can have any of these rules; all other quantizers, such as custom ones, are called
directly.

`FollowedWeights` and the others must keep these names: Keras finds a layer's variables in a file by
its class name, including those of saved models.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from speq_keras import ops as speq_ops
from speq_keras._checks import check_bool, check_choice, describe
from speq_keras.quantizers import ActivationQuantizer, Quantizer, WeightQuantizer
from speq_keras.quantizers.base import register
from speq_keras.tfmot.importing import tfmot

_tfmot_quantizers = tfmot.quantization.keras.quantizers
_START = {"last_value": 6.0, "moving_average": 6.0, "all_values": 0.0, "fixed": 6.0}
_DECAY = 0.999  # a constant in tfmot, too


class _FollowedRange(Quantizer):
    """What weights and activations share: a range set by training, and tfmot's kernels.

    Args:
        rule: See the module.
        symmetric: Whether the range is widened to be symmetric ("last_value" and others).
        narrow_range: Whether the smallest code is not used: −127 ... 127.
        low, high: Initial ends of the range, permanent with "fixed"; None: the rule's.
    """

    def __init__(
        self,
        *,
        rule="last_value",
        symmetric=False,
        narrow_range=False,
        low=None,
        high=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.rule = check_choice("rule", rule, _START)
        self.symmetric, self.narrow_range = (
            check_bool("symmetric", symmetric),
            check_bool("narrow_range", narrow_range),
        )
        self.low = -_START[rule] if low is None else float(low)
        self.high = _START[rule] if high is None else float(high)

    def add_range_variables(self, shape):
        # Under tf.distribute, every replica sees a part of the batch: aggregated by mean.
        self.range_low = self.add_scalar("range_low", self.low, shape, aggregation="mean")
        self.range_high = self.add_scalar("range_high", self.high, shape, aggregation="mean")

    def follow(self, x, axes):
        """Updates the range like a training step on `x`."""
        low, high = ops.min(x, axis=axes), ops.max(x, axis=axes)
        if self.symmetric:
            low, high = self.made_symmetric(low, high, ops)
        low, high = ops.minimum(low, 0.0), ops.maximum(high, 0.0)
        old = [ops.convert_to_tensor(end.value) for end in (self.range_low, self.range_high)]
        if self.rule == "moving_average":
            low, high = (o - (o - n) * (1 - _DECAY) for o, n in zip(old, (low, high), strict=True))
        elif self.rule == "all_values":
            low, high = ops.minimum(old[0], low), ops.maximum(old[1], high)
        self.range_low.assign(low)
        self.range_high.assign(high)

    def made_symmetric(self, low, high, functions):
        """Returns the ends widened so that the codes −2^(b−1) ... 2^(b−1) − 1 fill them."""
        steps = speq_ops.levels_of(self._initial_bits) + 1
        ratio = -1.0 if self.narrow_range else -(steps - 2) / steps
        return functions.minimum(low, high / ratio), functions.maximum(high, low * ratio)

    def fake_quantized(self, x, bits, rounds):
        low, high = (ops.convert_to_tensor(e.value) for e in (self.range_low, self.range_high))
        if isinstance(bits, int) and rounds is True:
            kernel = tf.quantization.fake_quant_with_min_max_vars
            if low.shape.rank:
                kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel
            return kernel(x, low, high, num_bits=bits, narrow_range=self.narrow_range)
        scale, zero, levels = self.nudged(low, high, speq_ops.levels_of(bits), ops)
        y = speq_ops.fake_quantize(x, scale, low_code=-zero, high_code=levels - zero, rounds=rounds)
        return y

    def nudged(self, low, high, levels, functions):
        """Returns scale, zero point and number of steps of the kernels' grid.

        The kernels move the range by less than half a step, so that zero is on the grid.
        """
        levels = levels - self.narrow_range
        scale = functions.maximum(high - low, speq_ops.SMALLEST_CLIP) / levels
        zero = functions.clip(functions.floor(-low / scale + 0.5), 0.0, levels)
        return scale, zero, levels

    def get_config(self):
        return {
            **super().get_config(),
            "rule": self.rule,
            "symmetric": self.symmetric,
            "narrow_range": self.narrow_range,
            "low": self.low,
            "high": self.high,
        }


@register
class FollowedWeights(_FollowedRange, WeightQuantizer):
    """A tfmot quantizer for weights; with `per_channel` one range per index of the last axis.

    Example:
        >>> quantizer = FollowedWeights(bits=2, symmetric=True, narrow_range=True)
        >>> weights = ops.convert_to_tensor([[-0.9, 0.3, 0.4, 1.0]])
        >>> quantizer(weights, training=True).numpy().tolist()
        [[-1.0, 0.0, 0.0, 1.0]]
    """

    def build(self, input_shape):
        super().build(input_shape)
        self.add_range_variables((input_shape[-1],) if self.per_channel else ())

    def call(self, weights, training=None):
        if training and self.rule != "fixed" and self.trainable:
            x = ops.cast(weights, "float32")
            rank = len(x.shape)
            self.follow(x, tuple(range(rank - 1)) if self.per_channel else None)
        return super().call(weights)

    def round_to_grid(self, weights, bits):
        return self.fake_quantized(weights, bits, True)


@register
class FollowedActivations(_FollowedRange, ActivationQuantizer):
    """A tfmot quantizer for activations: its range comes from training, not from calibration.

    `SPEQModel.calibrate` works too, and sets the range to all observed values.

    Example:
        >>> quantizer = FollowedActivations(rule="all_values", bits=2)
        >>> quantizer(ops.convert_to_tensor([0.0, 1.9, 3.0]), training=True).numpy().tolist()
        [0.0, 2.0, 3.0]
        >>> quantizer(ops.convert_to_tensor([9.0])).numpy().tolist()
        [3.0]
    """

    follows_training = True

    def build_range(self):
        self.add_range_variables(())

    @property
    def is_calibrated(self):
        ends = (ops.convert_to_numpy(end.value) for end in (self.range_low, self.range_high))
        return bool(np.subtract(*ends) < 0)

    def call(self, inputs, training=None):
        if training and self.rule != "fixed" and self.observer is None and not self.is_frozen:
            self.follow(ops.cast(inputs, "float32"), None)
        return super().call(inputs)

    def round_to_grid(self, x, bits, rounds=True):
        return self.fake_quantized(x, bits, rounds)

    def set_range(self, histogram):
        if self.rule == "fixed":
            return
        low, high = histogram.low, histogram.high
        if self.symmetric:
            low, high = self.made_symmetric(low, high, np)
        self.range_low.assign(min(low, 0.0))
        self.range_high.assign(max(high, 0.0))

    def grid(self):
        if self.bits is None:
            return None
        low, high = (
            np.float32(ops.convert_to_numpy(end.value)) for end in (self.range_low, self.range_high)
        )
        levels = np.float32(speq_ops.levels_of(self.bits))
        scale, zero, levels = self.nudged(low, high, levels, np)
        return float(scale), -int(zero), int(levels - zero)


class _Called(Quantizer):
    """What weights and activations share: a user's own tfmot `Quantizer`, called as tfmot does."""

    def __init__(self, *, quantizer, **kwargs):
        super().__init__(**kwargs)
        self.quantizer = quantizer

    def build_quantizer(self, input_shape):
        self.own = self.quantizer.build(input_shape, self.name, _Builder(self)) or {}

    def quantized(self, x, training):
        weights = {name: variable.value for name, variable in self.own.items()}
        # Its assignments to `tf.Variable`s would bypass the scope of a SPEQ teacher.
        return self.quantizer(x, bool(training) and not _is_stateless(), weights=weights)

    def copy(self, **changes):
        # The same object: its class need not be registered before the model is saved.
        return super().copy(**{"quantizer": self.quantizer, **changes})

    def get_config(self):
        quantizer = keras.saving.serialize_keras_object(self.quantizer)
        return {**super().get_config(), "quantizer": quantizer}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        quantizer = config.pop("quantizer")
        if isinstance(quantizer, dict):
            quantizer = keras.saving.deserialize_keras_object(quantizer)
        return cls(quantizer=quantizer, **config)


def _is_stateless():
    """Returns whether a `keras.StatelessScope` is open, for which Keras has no public function."""
    with keras.StatelessScope() as scope:
        return scope.original_scope is not None


class _Builder:
    """The layer passed to a tfmot `Quantizer.build`: adds weights with Keras 2 arguments."""

    def __init__(self, quantizer):
        self._quantizer = quantizer

    def add_weight(self, name=None, shape=None, dtype=None, initializer=None, **kwargs):
        shape = () if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
        return self._quantizer.add_weight(
            name=name,
            shape=shape,
            dtype=dtype or "float32",
            initializer=initializer,
            trainable=kwargs.get("trainable", True),
            autocast=False,
        )

    def __getattr__(self, name):
        return getattr(self._quantizer, name)


@register
class CalledWeights(_Called, WeightQuantizer):
    """A custom tfmot `Quantizer` for weights."""

    def build(self, input_shape):
        super().build(input_shape)
        self.build_quantizer(tf.TensorShape(input_shape))

    def call(self, weights, training=None):
        return self.quantized(ops.cast(weights, "float32"), training)


@register
class CalledActivations(_Called, ActivationQuantizer):
    """A custom tfmot `Quantizer` for activations."""

    follows_training = True

    def build(self, input_shape):
        super().build(input_shape)
        # tfmot does not pass the output shape of an activation function.
        self.build_quantizer(None)

    def build_range(self):
        """Creates nothing: the quantizer has its own range."""

    def call(self, inputs, training=None):
        if self.observer is not None:
            return inputs
        y = self.quantized(ops.cast(inputs, "float32"), training)
        return ops.cast(y, inputs.dtype)

    @property
    def is_calibrated(self):
        return True

    def calibrate(self, histogram):
        """Does nothing: the quantizer sets its range itself."""

    def grid(self):
        raise ValueError(
            "Activations that are exported must be on a known grid. Received: "
            f"'{self.name}' with a custom {type(self.quantizer).__name__}. Use one of tfmot's "
            "quantizers there."
        )


def _rule_of(quantizer):
    """Returns the rule of a quantizer that computes like one of tfmot's, or None."""
    rules = {
        "last_value": _tfmot_quantizers.LastValueQuantizer,
        "moving_average": _tfmot_quantizers.MovingAverageQuantizer,
        "all_values": _tfmot_quantizers.AllValuesQuantizer,
        "fixed": _tfmot_quantizers.FixedQuantizer,
    }
    # The one for transposed convolutions only differs in the order of axes, which does not matter
    # per tensor.
    is_tfmots = type(quantizer).__module__.startswith("tensorflow_model_optimization.")
    for rule, cls in rules.items():
        if is_tfmots and isinstance(quantizer, cls):
            return rule
    return None


def _arguments(quantizer, rule):
    if rule == "fixed":
        # tfmot ignores `num_bits` of this one: it computes with 8 bits.
        ends = {"low": quantizer.init_min, "high": quantizer.init_max}
        return {"rule": rule, "bits": 8, "narrow_range": quantizer.narrow_range, **ends}
    return {
        "rule": rule,
        "bits": quantizer.num_bits,
        "symmetric": quantizer.symmetric,
        "narrow_range": quantizer.narrow_range,
    }


def weight_quantizer(quantizer, **kwargs):
    """Returns the Keras 3 quantizer with the values of a tfmot `Quantizer`, for weights.

    Args:
        quantizer: A tfmot `Quantizer`.
        **kwargs: Arguments of `WeightQuantizer`.

    Example:
        >>> last_value = _tfmot_quantizers.LastValueQuantizer(4, False, True, False)
        >>> weight_quantizer(last_value).bits
        4
    """
    rule = _rule_of(quantizer)
    if rule is None:
        return CalledWeights(quantizer=quantizer, **kwargs)
    per_channel = rule == "last_value" and quantizer.per_axis
    return FollowedWeights(**_arguments(quantizer, rule), per_channel=per_channel, **kwargs)


def activation_quantizer(quantizer, **kwargs):
    """Returns the Keras 3 quantizer with the values of a tfmot `Quantizer`, for activations.

    Raises:
        ValueError: If the quantizer has a range per channel: integer kernels have one per tensor.
    """
    rule = _rule_of(quantizer)
    if rule is None:
        return CalledActivations(quantizer=quantizer, **kwargs)
    if rule in ("last_value", "moving_average") and quantizer.per_axis:
        raise ValueError(
            "Activations must have one range per tensor. "
            f"{describe(quantizer=type(quantizer).__name__, per_axis=True)} Pass per_axis=False."
        )
    return FollowedActivations(**_arguments(quantizer, rule), **kwargs)
