"""Translates a tfmot `QuantizeConfig` for a Keras 3 layer into Keras 3 quantizers.

tfmot overwrites a layer's attributes with quantized tensors. Keras 3 layers do not allow that, so a
config's getters are used here (`get_weights_and_quantizers`, `get_activations_and_quantizers`,
`get_output_quantizers`), but not its setters: the quantizers are put into the graph.
"""

import dataclasses

import keras

from speq_keras._checks import describe
from speq_keras.configs import QuantizeConfig, registered_config
from speq_keras.configs.quantize_config import TRANSLATIONS
from speq_keras.operations import fused_function
from speq_keras.tfmot.importing import tf_keras, tfmot
from speq_keras.tfmot.quantizers import activation_quantizer, weight_quantizer

# Integer kernels fuse some functions into the operation before them, and compute others by table.
_ROUNDED_BEFORE = {"softmax", "sigmoid", "tanh", "gelu"}
_ROUNDED_AFTER = {"linear", "relu", "silu", "gelu"}
# Keras 3 names, and the names in tfmot's own configs.
_OLD_ATTRIBUTES = {"depthwise_kernel": "kernel"}


@dataclasses.dataclass
class LayerQuantizers:
    """The quantizers of one layer.

    Attributes:
        weights: {attribute: `WeightQuantizer`}.
        before: `ActivationQuantizer` between the layer and its activation function, or None.
        after: `ActivationQuantizer` after the function, or None.
        output: `ActivationQuantizer` after that, or None.
    """

    weights: dict = dataclasses.field(default_factory=dict)
    before: object = None
    after: object = None
    output: object = None


class OldView:
    """A Keras 3 layer as tfmot's own configs and registries see it: by its tf_keras class.

    They compare classes with those of tf_keras and use names that Keras 3 changed.

    Args:
        layer: The layer.
    """

    def __init__(self, layer):
        self._layer = layer

    @property
    def __class__(self):
        cls = type(self._layer)
        is_keras = getattr(keras.layers, cls.__name__, None) is cls
        return getattr(tf_keras.layers, cls.__name__, cls) if is_keras else cls

    @property
    def activation(self):
        """The layer's activation function, as tf_keras has it."""
        function = self._layer.activation
        is_swish = getattr(function, "__name__", "") == "silu"
        return tf_keras.activations.swish if is_swish else function

    def __getattr__(self, name):
        if not hasattr(self._layer, name):
            name = _OLD_ATTRIBUTES.get(name, name)
        return getattr(self._layer, name)


def as_seen_by(config, layer):
    """Returns the layer, or its `OldView` for a config of tfmot's own."""
    is_tfmots = type(config).__module__.startswith("tensorflow_model_optimization.")
    return OldView(layer) if is_tfmots else layer


def quantizers_of(config, layer):
    """Translates a config.

    Args:
        config: A tfmot `QuantizeConfig`.
        layer: A built Keras 3 layer.

    Returns:
        `LayerQuantizers`.

    Raises:
        TypeError: If `config` is not a tfmot QuantizeConfig.
        ValueError: If it quantizes something that is neither a variable nor the activation.

    Example:
        >>> from speq_keras.tfmot.quantization.keras import default_8bit
        >>> registry = default_8bit.Default8BitQuantizeRegistry()
        >>> layer = keras.layers.Dense(2)
        >>> layer.build((None, 3))
        >>> config = registry.get_quantize_config(OldView(layer))
        >>> quantizers_of(config, layer).weights["kernel"].bits
        8
    """
    if not isinstance(config, tfmot.quantization.keras.QuantizeConfig):
        raise TypeError(
            f"`quantize_config` must be a tfmot QuantizeConfig. {describe(config=config)}"
        )
    seen = as_seen_by(config, layer)
    registered = registered_config(layer)
    channel_axes = None if registered is None else registered.channel_axes
    axes = {} if channel_axes is None else {"channel_axes": channel_axes}
    result = LayerQuantizers()
    for variable, quantizer in config.get_weights_and_quantizers(seen):
        attribute = _attribute_of(layer, variable)
        result.weights[attribute] = weight_quantizer(quantizer, **axes)
    for function, quantizer in config.get_activations_and_quantizers(seen):
        name = _function_name(layer, seen, function)
        if name in _ROUNDED_BEFORE:
            result.before = activation_quantizer(quantizer)
        if name in _ROUNDED_AFTER:
            result.after = activation_quantizer(quantizer)
    for quantizer in list(config.get_output_quantizers(seen))[:1]:  # tfmot reads no more
        result.output = activation_quantizer(quantizer)
    return result


def quantize_config(config, layer):
    """Returns a tfmot `QuantizeConfig` for a Keras 3 layer as our `QuantizeConfig`.

    `wrap(configs=...)` calls it. The layer's inputs have 8 bits, and its weights and outputs have
    tfmot's quantizers. If several tensors share one grid (Concatenate), the first one's quantizer
    is used.

    Raises:
        ValueError: If weights of the layer have different quantizers.
    """
    found = quantizers_of(config, layer)
    quantizers = list(found.weights.values())
    plain = [{**q.get_config(), "name": None} for q in quantizers]
    if any(other != plain[0] for other in plain):
        raise ValueError(
            "In `wrap`, all weights of a layer have one quantizer. Received: several from "
            f"{type(config).__name__} for layer '{layer.name}'. Use speq_keras.tfmot's "
            "quantize_annotate_layer and quantize_apply."
        )
    return QuantizeConfig(
        weights=tuple(found.weights),
        w_bits=quantizers[0].bits if quantizers else None,
        a_bits=8,
        weight_quantizer=quantizers[0] if quantizers else None,
        output_quantizer=found.output or found.after or found.before,
    )


TRANSLATIONS[tfmot.quantization.keras.QuantizeConfig] = quantize_config


def _attribute_of(layer, variable):
    if isinstance(variable, keras.Variable):
        for name in (variable.name, *vars(layer)):
            if getattr(layer, name, None) is variable:
                return name
    raise ValueError(
        "A QuantizeConfig must return variables that are attributes of the layer itself. Received: "
        f"{variable} from get_weights_and_quantizers, for layer '{layer.name}' "
        f"({type(layer).__name__}). Return layer.kernel, or its other weight attributes."
    )


def _function_name(layer, seen, function):
    """Returns the Keras 3 name of a layer's activation function, after checks."""
    is_last = isinstance(layer, keras.layers.Activation) or _ends_in_activation(layer)
    if function is not getattr(seen, "activation", None) or not is_last:
        raise ValueError(
            "Only the final activation function of a layer can be quantized. Received: "
            f"{function} from get_activations_and_quantizers, for layer '{layer.name}' "
            f"({type(layer).__name__}). Return [] there, and quantize the output with "
            "get_output_quantizers."
        )
    name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
    if name not in _ROUNDED_BEFORE | _ROUNDED_AFTER:
        known = ", ".join(sorted(_ROUNDED_BEFORE | _ROUNDED_AFTER))
        raise ValueError(
            f"A quantized activation must be one of {known}. Received: {name!r} in layer "
            f"'{layer.name}'. Quantize the output with get_output_quantizers instead."
        )
    return name


def _ends_in_activation(layer):
    return fused_function(layer) is not None or getattr(layer.activation, "__name__", "") == (
        "linear"
    )
