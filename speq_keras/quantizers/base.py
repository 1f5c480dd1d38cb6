"""What all quantizers share: widths set at run time, and ranges that can be calibrated."""

import types

import keras
from keras import ops

from speq_keras import ops as speq_ops
from speq_keras._checks import check_axes, check_bits, check_bool, check_name, check_number

# In steps. Averages of up to 2,000 codes are exact halves or further than this from one.
_HALF_UP = 2.0**-12


def register(cls):
    """Registers a quantizer class with Keras, so that saved models can be loaded."""
    return keras.saving.register_keras_serializable(package="speq_keras")(cls)


class AtLeastSmallest(keras.constraints.Constraint):
    """Keeps a trained scale or range positive after every optimizer step."""

    def __call__(self, value):
        return ops.maximum(value, speq_ops.SMALLEST_CLIP)


class Quantizer(keras.layers.Layer):
    """Base class of weight and activation quantizers.

    A quantizer computes in float32 whatever the dtype policy. Quantizers with the target width hold
    it in a non-trainable scalar variable (0 means float), so that `set_bits` and the SPEQ teacher
    can change it without retracing; all others have a constant width.

    Args:
        bits: Width in bits, 2 to 8, or None: float.
        has_target_width: Whether `set_bits` and the teacher may change the width.
    """

    def __init__(
        self,
        *,
        bits=8,
        has_target_width=False,
        model_settings=None,
        name=None,
        trainable=True,
        **kwargs,
    ):
        kwargs.pop("dtype", None)
        check_name("name", name, optional=True)
        super().__init__(name=name, trainable=trainable, dtype="float32", autocast=False, **kwargs)
        self._initial_bits = check_bits("bits", bits)
        self.has_target_width = check_bool("has_target_width", has_target_width)
        # `SPEQModel` stores its settings on one of its quantizers, see there.
        self.model_settings = model_settings
        self.width = None

    def build(self, input_shape):
        """Creates the variables for the width and the range."""
        if self.has_target_width:
            self.width = self.add_scalar("bits", self._initial_bits or 0)

    def add_scalar(self, name, value, shape=(), **kwargs):
        """Adds a float32 variable exempt from autocasting; not trainable by default."""
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            autocast=False,
            **{"trainable": False, **kwargs},
        )

    @property
    def bits(self):
        """The current width in bits, or None for float."""
        if self.width is None:
            return self._initial_bits
        return int(ops.convert_to_numpy(self.width)) or None

    @bits.setter
    def bits(self, bits):
        bits = check_bits("bits", bits)
        if self.width is None:
            self._initial_bits = bits
        else:
            self.width.assign(float(bits or 0))

    def copy(self, **changes):
        """Returns a new, unbuilt quantizer with the same arguments except for `changes`."""
        config = self.get_config()
        config.pop("name")
        config.pop("model_settings", None)
        if "bits" in changes:
            # A trained scale belongs to the width it was made with, which is now the new one.
            config.pop("made_with_bits", None)
        return type(self).from_config({**config, **changes})

    def get_config(self):
        """Returns the constructor's arguments, with the width as it is now."""
        config = super().get_config()
        config.pop("dtype")
        own = {"bits": self.bits, "has_target_width": self.has_target_width}
        if self.model_settings is not None:
            own["model_settings"] = self.model_settings
        return {**config, **own}


class WeightQuantizer(Quantizer):
    """Base class of weight quantizers: a subclass writes `round_to_grid(weights, bits)`.

    Args:
        per_channel: One scale per output channel instead of one per tensor.
        channel_axes: The axes of the weight that number the output channels; set by `wrap` from the
            layer's quantize config.

    Example:
        >>> class Halves(WeightQuantizer):
        ...     def round_to_grid(self, weights, bits):
        ...         high = speq_ops.levels_of(bits) // 2
        ...         return speq_ops.fake_quantize(weights, 0.5, low_code=-high, high_code=high)
        >>> Halves(bits=2)(ops.convert_to_tensor([[-3.0, 0.1, 0.3]])).numpy().tolist()
        [[-0.5, 0.0, 0.5]]
    """

    # Whether quantized weights approximate the weights themselves, not a function of them.
    keeps_units = True

    def __init__(self, *, per_channel=False, channel_axes=(-1,), **kwargs):
        super().__init__(**kwargs)
        self.per_channel = check_bool("per_channel", per_channel)
        self.channel_axes = check_axes("channel_axes", channel_axes)

    def reduced_axes(self, rank):
        """Returns the axes over which one scale is shared, for a weight of this rank."""
        if not self.per_channel:
            return tuple(range(rank))
        channels = {axis % rank for axis in self.channel_axes}
        return tuple(axis for axis in range(rank) if axis not in channels)

    def shape_of_scales(self, shape):
        """Returns the shape of a weight's scales: one per output channel, or one in all."""
        reduced = self.reduced_axes(len(shape))
        return tuple(1 if axis in reduced else size for axis, size in enumerate(shape))

    def start_from(self, weights):
        """Sets trainable ranges from the float weights, if there are any."""

    def calibrate(self, weights):
        """Called by a model's `calibrate`: may set ranges that still have their initial values."""

    def call(self, weights):
        """Returns the quantized weights, or the weights themselves where the width is float."""
        weights = ops.cast(weights, "float32")
        if self.width is None:
            return (
                self.round_to_grid(weights, self._initial_bits) if self._initial_bits else weights
            )
        bits = ops.convert_to_tensor(self.width.value)
        # Weights are small, so both branches are computed: cheaper than a branch in the graph.
        return ops.where(bits > 0, self.round_to_grid(weights, ops.maximum(bits, 2.0)), weights)

    def round_to_grid(self, weights, bits):
        """Returns float32 weights on the grid of `bits` (a Python int or a float32 scalar)."""
        raise NotImplementedError

    def get_config(self):
        return {
            **super().get_config(),
            "per_channel": self.per_channel,
            "channel_axes": list(self.channel_axes),
        }


class ActivationQuantizer(Quantizer):
    """Base class of activation quantizers: a layer of the graph.

    A subclass writes `build_range`, `round_to_grid`, `set_range` and `grid`.

    Args:
        signed: Whether the tensor may be negative. `wrap` decides it from the graph.
        nonnegative_input: True promises that inputs are never negative (directly after a ReLU) and
            saves one pass over the tensor.
        weight_decay: L2 factor on the trainable range; adds factor · α² (LSQ+: s²) to the loss.

    Attributes:
        follows_training: Whether training sets the range by itself from the first step, so that
            `fit` need not calibrate first.

    Example:
        >>> class UpToOne(ActivationQuantizer):
        ...     def round_to_grid(self, x, bits, rounds=True):
        ...         high = speq_ops.levels_of(bits)
        ...         codes = {"low_code": 0, "high_code": high, "rounds": rounds}
        ...         return speq_ops.fake_quantize(x, 1 / high, **codes)
        ...
        ...     def grid(self):
        ...         high = speq_ops.levels_of(self.bits)
        ...         return 1 / high, 0, high
        >>> [round(float(y), 2) for y in UpToOne(bits=2)(ops.convert_to_tensor([-1.0, 0.6, 9.0]))]
        [0.0, 0.67, 1.0]
    """

    follows_training = False

    def __init__(self, *, signed=False, nonnegative_input=False, weight_decay=0.0, **kwargs):
        super().__init__(**kwargs)
        self.signed = check_bool("signed", signed)
        self.nonnegative_input = check_bool("nonnegative_input", nonnegative_input)
        self.weight_decay = check_number("weight_decay", weight_decay, low=0)
        self.supports_masking = True
        self.observer = None
        self._calibrated = None
        self._owners = types.SimpleNamespace(layers=())  # so that Keras does not track them

    def belongs_to(self, owners):
        """Sets the layers whose `trainable` decides whether the range is trained.

        Args:
            owners: [(layers of which any one freezes the range, layers that must all be frozen),
                ...], one entry for each tensor that is rounded.
        """
        self._owners.layers = tuple(owners)

    @property
    def is_frozen(self):
        """Whether the range is not trained: it is frozen itself, or its layers are."""
        return not self.trainable or any(
            not all(layer.trainable for layer in any_of)
            or (all_of and not any(layer.trainable for layer in all_of))
            for any_of, all_of in self._owners.layers
        )

    def build(self, input_shape):
        super().build(input_shape)
        # In a variable, not an attribute: a weights file must contain it.
        self._calibrated = self.add_scalar("calibrated", 0.0)
        self.build_range()

    def build_range(self):
        """Creates the variables of the range."""

    def add_range(self, name, value):
        """Adds a trainable range variable under the quantizer's weight decay."""
        regularizer = keras.regularizers.L2(self.weight_decay) if self.weight_decay else None
        return self.add_scalar(name, value, trainable=True, regularizer=regularizer)

    @property
    def is_calibrated(self):
        """Whether the range was set from data, by `calibrate` or by loading calibrated weights."""
        return self._calibrated is not None and bool(ops.convert_to_numpy(self._calibrated))

    def calibrate(self, histogram):
        """Sets the range that has the least squared rounding error on the observed values."""
        self.set_range(histogram)
        self._calibrated.assign(1.0)

    def call(self, inputs, halves_up=False):
        """Returns `inputs` on the quantizer's grid, in the dtype of `inputs`.

        An `observer`, if set, is called instead, with the quantizer and `inputs`. Its result is
        returned, or `inputs` unchanged if that is None.

        Args:
            inputs: Tensor of any shape.
            halves_up: For averages of codes, many of which are exact halves: rounds these up, as
                integer kernels do. In float32 the last bits of the scale would decide.
        """
        if self.observer is not None:
            outputs = self.observer(self, inputs)
            return inputs if outputs is None else outputs
        return self.quantized(inputs, halves_up=halves_up)

    def quantized(self, inputs, *, halves_up=False):
        """Returns `inputs` on the quantizer's grid, in the dtype of `inputs`; calls no observer."""
        x = ops.cast(inputs, "float32")
        if self.width is None:
            bits = self._initial_bits or speq_ops.MAX_BITS
            rounds = self._initial_bits is not None
        else:
            bits = ops.convert_to_tensor(self.width.value)
            rounds = bits > 0
        if halves_up:
            x = x + _HALF_UP * ops.stop_gradient(self.step(bits)) * ops.cast(rounds, "float32")
        return ops.cast(self.round_to_grid(x, bits, rounds), inputs.dtype)

    def step(self, bits):
        """Returns the distance between neighbouring codes at a width, in units of the inputs.

        If it is 0, `halves_up` has no effect.

        Args:
            bits: As in `round_to_grid`.
        """
        return ops.zeros(())

    def multiply_scale(self, factor):
        """Multiplies the scale by `factor`; codes stay the same.

        Returns:
            Whether that was possible: False if the range is prescribed.
        """
        return False

    def compute_output_spec(self, inputs, halves_up=False):
        """Returns the shape and dtype of the inputs."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def round_to_grid(self, x, bits, rounds=True):
        """Returns float32 `x` on the grid of `bits`, or clipped to its range but not rounded.

        Args:
            x: Float32 tensor.
            bits: Python int, or float32 scalar tensor; 0 means float, with the range of 8 bits.
            rounds: Whether to round: a Python bool, or a bool scalar tensor.
        """
        raise NotImplementedError

    def set_range(self, histogram):
        """Sets the range from a `Histogram` of inputs."""

    def grid(self):
        """Returns `(scale, low_code, high_code)` as numbers at the current width (None: float)."""
        raise NotImplementedError

    def get_config(self):
        return {
            **super().get_config(),
            "signed": self.signed,
            "nonnegative_input": self.nonnegative_input,
            "weight_decay": self.weight_decay,
        }


def unsigned_codes(bits):
    """Returns the smallest and largest code of an unsigned width: 0 ... 2^b − 1."""
    return 0, speq_ops.levels_of(bits)


def signed_codes(bits):
    """Returns the smallest and largest code of a signed width: −2^(b−1) ... 2^(b−1) − 1."""
    half = (speq_ops.levels_of(bits) + 1) / 2
    return -half, half - 1
