"""What `wrap` does with one layer: which weights, at which widths, with which quantizers."""

import dataclasses
import fnmatch

from speq_keras._checks import check_axes, check_bits, describe
from speq_keras.quantizers import (
    ActivationQuantizer,
    WeightQuantizer,
    get_activation_quantizer,
    get_weight_quantizer,
)

TARGET = "target"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How one layer is quantized; omitted fields come from the layer's class and from `wrap`.

    Args:
        weights: Names of the layer's attributes that hold the variables to quantize, such as
            `("kernel",)`. None: those registered for the class.
        channel_axes: Axes of the weights that number the output channels (per-channel quantizers).
        w_bits: Width of the weights in bits (2 to 8), None for float, or "target": the width given
            to `wrap`, which `set_bits` changes.
        a_bits: Width of the layer's inputs, likewise. A number is fixed: the teacher does not draw
            it.
        weight_quantizer, activation_quantizer: Name or object. None: `wrap`'s.
        output_quantizer: `ActivationQuantizer` for the layer's output: after its activation
            function, or before one that integer kernels compute by table on a fixed grid (softmax,
            sigmoid, tanh). None: the readers of the output decide.

    Example:
        >>> QuantizeConfig(w_bits=8, a_bits=8).w_bits
        8
    """

    weights: tuple | None = None
    channel_axes: tuple | None = None
    w_bits: int | str | None = TARGET
    a_bits: int | str | None = TARGET
    weight_quantizer: str | WeightQuantizer | None = None
    activation_quantizer: str | ActivationQuantizer | None = None
    output_quantizer: ActivationQuantizer | None = None

    def __post_init__(self):
        for name in ("weights", "channel_axes"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, tuple | list | None):
                raise TypeError(f"`{name}` must be a tuple or None. {describe(**{name: value})}")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        if self.channel_axes is not None:
            check_axes("channel_axes", self.channel_axes)
        for name in self.weights or ():
            if not isinstance(name, str):
                raise TypeError(
                    f"`weights` must hold names of attributes. {describe(weights=self.weights)}"
                )
        for name in ("w_bits", "a_bits"):
            if getattr(self, name) != TARGET:
                check_bits(name, getattr(self, name))
        if self.weight_quantizer is not None:
            get_weight_quantizer(self.weight_quantizer)
        if self.activation_quantizer is not None:
            get_activation_quantizer(self.activation_quantizer)
        if not isinstance(self.output_quantizer, ActivationQuantizer | None):
            raise TypeError(
                "`output_quantizer` must be an ActivationQuantizer object or None. "
                f"{describe(output_quantizer=self.output_quantizer)}"
            )

    def over(self, base):
        """Returns this config with omitted fields taken from `base`."""
        return dataclasses.replace(
            self,
            weights=base.weights if self.weights is None else self.weights,
            channel_axes=base.channel_axes if self.channel_axes is None else self.channel_axes,
        )


# {class of configs of another package: function (config, layer) that returns a QuantizeConfig}
TRANSLATIONS = {}


def is_config(value):
    """Whether `value` is a `QuantizeConfig`, or a translatable one of another package."""
    return isinstance(value, (QuantizeConfig, *TRANSLATIONS))


def translated(config, layer):
    """Returns a config as a `QuantizeConfig` for `layer`, which must be built."""
    for cls, translation in TRANSLATIONS.items():
        if isinstance(config, cls):
            return translation(config, layer)
    return config


def matches(pattern, name):
    """Whether a shell-style pattern names a layer: its full name, or its name in a nested model.

    Example:
        >>> matches("conv*", "backbone.conv_1")
        True
    """
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.split(".")[-1], pattern)
