"""Quantizers by name and as objects, and the registry of their names.

    weights                                activations
    -------  ----------------------------  --------  ----------------------------------
    sawb     range from two moments        pact      trained clipping level
    minmax   range from max|w|             lsq_plus  trained scale, integer zero point
    mse      least squares, every step     dorefa    [0, 1]
    lsq      trained scale                 fixed     not trained, calibrated once
    dorefa   tanh into [−1, 1]
    qil      trained interval and curve

Pass an object to set options: `wrap(model, weight_quantizer=SAWB(per_channel=True))`.
"""

import keras

from speq_keras._checks import check_choice, check_name, describe
from speq_keras.quantizers.base import ActivationQuantizer, Quantizer, WeightQuantizer
from speq_keras.quantizers.dorefa import DoReFa, DoReFaActivation
from speq_keras.quantizers.fixed import FixedRange
from speq_keras.quantizers.lsq import LSQ
from speq_keras.quantizers.lsq_plus import LSQPlus
from speq_keras.quantizers.minmax import MinMax
from speq_keras.quantizers.mse import MSE
from speq_keras.quantizers.pact import PACT
from speq_keras.quantizers.qil import QIL
from speq_keras.quantizers.sawb import SAWB

WEIGHT_QUANTIZERS = {
    "sawb": SAWB,
    "minmax": MinMax,
    "mse": MSE,
    "lsq": LSQ,
    "dorefa": DoReFa,
    "qil": QIL,
}
ACTIVATION_QUANTIZERS = {
    "pact": PACT,
    "lsq_plus": LSQPlus,
    "dorefa": DoReFaActivation,
    "fixed": FixedRange,
}
_KINDS = {WeightQuantizer: WEIGHT_QUANTIZERS, ActivationQuantizer: ACTIVATION_QUANTIZERS}


def register_quantizer(name, cls):
    """Registers a quantizer class under `name`, for `wrap` and for saved models.

    Args:
        name: A new name.
        cls: A subclass of `WeightQuantizer` or `ActivationQuantizer`.

    Raises:
        TypeError: If `cls` is not a quantizer class, or `name` not a string.
        ValueError: If the name is taken.

    Example:
        >>> class Ternary(MinMax):
        ...     pass
        >>> register_quantizer("ternary_example", Ternary)
        >>> get_weight_quantizer("ternary_example").per_channel
        False
    """
    check_name("name", name)
    for base, registry in _KINDS.items():
        if isinstance(cls, type) and issubclass(cls, base):
            if name in registry:
                raise ValueError(
                    f"`name` must be new. {describe(name=name)} Taken: {', '.join(registry)}."
                )
            registry[name] = cls
            keras.saving.register_keras_serializable(package="speq_keras_user")(cls)
            return
    raise TypeError(
        f"`cls` must be a subclass of WeightQuantizer or ActivationQuantizer. {describe(cls=cls)}"
    )


def _get(argument, value, base):
    registry = _KINDS[base]
    if isinstance(value, base):
        return value
    if isinstance(value, type) and issubclass(value, base):
        return value()
    if isinstance(value, str):
        return registry[check_choice(argument, value, registry)]()
    raise TypeError(
        f"`{argument}` must be one of {', '.join(map(repr, registry))}, "
        f"or a quantizer object of class {base.__name__}. {describe(**{argument: value})}"
    )


def get_weight_quantizer(value):
    """Returns a `WeightQuantizer` from a name, a class or an object.

    Example:
        >>> get_weight_quantizer("sawb").bits
        8
    """
    return _get("weight_quantizer", value, WeightQuantizer)


def get_activation_quantizer(value):
    """Returns an `ActivationQuantizer` from a name, a class or an object.

    Example:
        >>> get_activation_quantizer(PACT(bits=3)).bits
        3
    """
    return _get("activation_quantizer", value, ActivationQuantizer)


__all__ = [
    "ACTIVATION_QUANTIZERS",
    "DoReFa",
    "DoReFaActivation",
    "FixedRange",
    "LSQ",
    "LSQPlus",
    "MSE",
    "MinMax",
    "PACT",
    "QIL",
    "Quantizer",
    "SAWB",
    "WEIGHT_QUANTIZERS",
    "ActivationQuantizer",
    "WeightQuantizer",
    "get_activation_quantizer",
    "get_weight_quantizer",
    "register_quantizer",
]
