"""Quantize configs: what to quantize in each layer."""

import keras

from speq_keras._checks import describe
from speq_keras.configs.layers import REGISTRY, registered_config
from speq_keras.configs.quantize_config import TARGET, QuantizeConfig, matches


def register_config(layer_class, config):
    """Registers how a custom layer class is quantized.

    Args:
        layer_class: A subclass of `keras.layers.Layer`.
        config: A `QuantizeConfig` with `weights`, or a function of the layer that returns one.

    Raises:
        TypeError: If `layer_class` is not a layer class, or `config` is neither of these.

    Example:
        >>> class MyDense(keras.layers.Dense):
        ...     pass
        >>> register_config(MyDense, QuantizeConfig(weights=("kernel",), channel_axes=(-1,)))
    """
    if not (isinstance(layer_class, type) and issubclass(layer_class, keras.layers.Layer)):
        raise TypeError(
            "`layer_class` must be a subclass of keras.layers.Layer. "
            f"{describe(layer_class=layer_class)}"
        )
    if not (callable(config) or isinstance(config, QuantizeConfig)):
        raise TypeError(f"`config` must be a QuantizeConfig. {describe(config=config)}")
    REGISTRY[layer_class] = config


__all__ = [
    "TARGET",
    "QuantizeConfig",
    "REGISTRY",
    "matches",
    "register_config",
    "registered_config",
]
