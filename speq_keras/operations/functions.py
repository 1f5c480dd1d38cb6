"""Identifies activation functions by identity, never by name."""

import functools
import sys

from keras import activations, ops

# An unknown function, or a layer used as one.
OTHER = "other"
_NAMES = (
    "linear relu relu6 sigmoid tanh softmax gelu elu selu softplus hard_sigmoid hard_silu "
    "leaky_relu silu mish exponential celu softsign log_sigmoid tanh_shrink hard_tanh sparse_plus "
    "squareplus hard_shrink soft_shrink log_softmax"
).split()
# Functions of other packages with the same defaults as in `keras.activations`. The slope of
# jax.nn.leaky_relu differs.
_OF_TENSORFLOW = "relu relu6 sigmoid tanh softmax gelu elu selu softplus leaky_relu silu".split()
_OF_JAX = "relu relu6 sigmoid tanh softmax elu selu softplus hard_sigmoid hard_silu silu".split()
_APPROXIMATE = "gelu_approximate"


def name_of_function(function):
    """Returns Keras' name of an activation function, `OTHER` for one that is not Keras' own.

    Example:
        >>> name_of_function(activations.swish)
        'silu'
        >>> name_of_function(lambda x: x)
        'other'
    """
    packages = "tensorflow", "jax.nn", "keras_hub.src.utils.keras_utils"
    loaded = tuple(name for name in packages if name in sys.modules)
    return _known(loaded).get(id(function), OTHER)


@functools.cache
def _known(loaded):
    """Returns {id: name} of all known functions; these are never garbage-collected."""
    # Only GELU's default differs between the two.
    known = {id(ops.gelu): _APPROXIMATE}
    modules = [(activations, _NAMES), (ops, [name for name in _NAMES if name != "gelu"])]
    if "tensorflow" in loaded:
        modules.append((getattr(sys.modules["tensorflow"], "nn", None), _OF_TENSORFLOW))
    if "jax.nn" in loaded:
        jax = sys.modules["jax.nn"]
        modules.append((jax, _OF_JAX))
        known[id(getattr(jax, "gelu", None))] = _APPROXIMATE
    for module, names in modules:
        for name in names:
            known[id(getattr(module, name, None))] = name
    # KerasHub's models use a function of this name.
    hub = sys.modules.get("keras_hub.src.utils.keras_utils") if loaded else None
    known[id(getattr(hub, _APPROXIMATE, None))] = _APPROXIMATE
    known.pop(id(None), None)
    return known
