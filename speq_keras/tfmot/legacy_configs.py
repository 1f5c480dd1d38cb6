"""Our quantizers inside tfmot on tf_keras: a quantizer, a config, and a scheme.

Our quantizers compute with values that are held by variables of the tf_keras layer.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from speq_keras._checks import check_bits
from speq_keras.quantizers import get_activation_quantizer, get_weight_quantizer
from speq_keras.tfmot.importing import tf_keras, tfmot

_original: Any = tfmot.quantization.keras
_Registry: Any = _original.default_8bit.Default8BitQuantizeRegistry
_Scheme: Any = _original.default_8bit.Default8BitQuantizeScheme
_UNSIGNED = ("relu", "relu6")


class SPEQQuantizer(_original.quantizers.Quantizer):
    """One of our quantizers as a tfmot `Quantizer`.

    Args:
        quantizer: A `WeightQuantizer` or `ActivationQuantizer`, or its config.

    Example:
        >>> quantizer = SPEQQuantizer(get_activation_quantizer("pact").copy(bits=2))
        >>> layer = tf_keras.layers.Layer()
        >>> weights = quantizer.build(None, "post_activation", layer)
        >>> quantizer(tf.constant([-1.0, 1.9, 9.0]), False, weights).numpy().tolist()
        [0.0, 2.0, 6.0]
    """

    def __init__(self, quantizer):
        if not isinstance(quantizer, dict):
            quantizer = keras.saving.serialize_keras_object(quantizer)
        self.config = quantizer
        self.tensors = {}

    def build(self, tensor_shape, name, layer):
        tensor = _Tensor(keras.saving.deserialize_keras_object(self.config), tensor_shape)
        kernel = getattr(getattr(layer, "layer", None), name, None)
        if kernel is not None and hasattr(tensor.quantizer, "start_from"):
            tensor.quantizer.start_from(ops.convert_to_tensor(kernel))
        for variable in tensor.quantizer.variables:
            tensor.weights[variable.name] = layer.add_weight(
                f"{name}_{variable.name}",
                shape=tuple(variable.shape),
                initializer=tf_keras.initializers.Constant(ops.convert_to_numpy(variable)),
                trainable=variable.trainable,
                constraint=variable.constraint,
            )
        self.tensors[_key(tensor.weights)] = tensor
        return dict(tensor.weights)

    def __call__(self, inputs, training, weights, **kwargs):
        return self.tensors[_key(weights)](inputs)

    def get_config(self):
        return {"quantizer": self.config}


def _key(weights):
    """Returns what identifies the tensors of one quantizer: the first of its variables."""
    return id(next(iter(weights.values()), None))


class _Tensor:
    """One quantized tensor: our quantizer, and the tf_keras variables with its values.

    `drawn` is the drawn width in a teacher's forward pass, else None.
    """

    def __init__(self, quantizer, shape):
        self.quantizer, self.weights, self.drawn = quantizer, {}, None
        quantizer.build((None,) if shape is None else tuple(shape))

    def __call__(self, x):
        values = []
        for variable in self.quantizer.variables:
            value = tf.convert_to_tensor(self.weights[variable.name])
            is_drawn = variable is self.quantizer.width and self.drawn is not None
            values.append((variable, self.drawn if is_drawn else value))
        with keras.StatelessScope(values):
            return self.quantizer(x)

    def calibrate(self, histogram):
        """Sets the range, as `SPEQModel.calibrate` does."""
        self.quantizer.calibrate(histogram)
        for variable in self.quantizer.variables:
            self.weights[variable.name].assign(variable.value)


class SPEQQuantizeConfig(_original.QuantizeConfig):
    """A tfmot `QuantizeConfig` with our quantizers.

    Args:
        w_bits, a_bits: Widths in bits of the layer's weights and outputs, 2 to 8.
        has_target_width: Whether the width of activations is drawn for the teacher (Eq. 1). False
            for layers that keep their widths, such as the first and last ones with 8 bits.
        weight_quantizer, activation_quantizer: Names or objects of our quantizers.
        weight_attrs, activation_attrs: Attributes of the layer to quantize.
        quantize_output: Whether to quantize the layer's output if it has no activation.

    Example:
        >>> layer = tf_keras.layers.Dense(2, activation="relu")
        >>> layer.build((None, 3))
        >>> config = SPEQQuantizeConfig(w_bits=2, a_bits=3)
        >>> len(config.get_weights_and_quantizers(layer))
        1
    """

    def __init__(
        self,
        w_bits=3,
        a_bits=3,
        has_target_width=True,
        weight_quantizer="sawb",
        activation_quantizer="pact",
        weight_attrs=("kernel",),
        activation_attrs=("activation",),
        quantize_output=False,
    ):
        self.has_target_width = has_target_width
        self.weight_attrs, self.activation_attrs = list(weight_attrs), list(activation_attrs)
        self.quantize_output = quantize_output
        check_bits("w_bits", w_bits, optional=False)
        check_bits("a_bits", a_bits, optional=False)
        self.weights = _loaded(weight_quantizer, get_weight_quantizer)
        self.weights = self.weights.copy(bits=w_bits, has_target_width=has_target_width)
        self.activations = _loaded(activation_quantizer, get_activation_quantizer)
        self.activations = self.activations.copy(bits=a_bits, has_target_width=has_target_width)
        self.activation_quantizers = []  # those created for layers

    def get_weights_and_quantizers(self, layer):
        axes = (-2, -1) if "depthwise_kernel" in self.weight_attrs else (-1,)
        quantizer = self.weights.copy(channel_axes=axes)
        return [(getattr(layer, name), SPEQQuantizer(quantizer)) for name in self.weight_attrs]

    def get_activations_and_quantizers(self, layer):
        functions = [getattr(layer, name) for name in self.activation_attrs]
        return [(function, self.activation_quantizer(function)) for function in functions]

    def get_output_quantizers(self, layer):
        if not self.quantize_output:
            return []
        is_relu = isinstance(layer, tf_keras.layers.ReLU)
        function = tf_keras.activations.relu if is_relu else getattr(layer, "activation", None)
        return [self.activation_quantizer(function)]

    def activation_quantizer(self, function):
        """Returns a quantizer for the output of `function`, and records it."""
        # tfmot rounds the inputs of a softmax or sigmoid, which are signed.
        signed = getattr(function, "__name__", "") not in _UNSIGNED
        quantizer = SPEQQuantizer(self.activations.copy(signed=signed))
        self.activation_quantizers.append(quantizer)
        return quantizer

    def set_quantize_weights(self, layer, quantize_weights):
        for name, weight in zip(self.weight_attrs, quantize_weights, strict=True):
            setattr(layer, name, weight)

    def set_quantize_activations(self, layer, quantize_activations):
        for name, activation in zip(self.activation_attrs, quantize_activations, strict=True):
            setattr(layer, name, activation)

    def get_config(self):
        return {
            "w_bits": self.weights.bits,
            "a_bits": self.activations.bits,
            "has_target_width": self.has_target_width,
            "weight_quantizer": keras.saving.serialize_keras_object(self.weights),
            "activation_quantizer": keras.saving.serialize_keras_object(self.activations),
            "weight_attrs": self.weight_attrs,
            "activation_attrs": self.activation_attrs,
            "quantize_output": self.quantize_output,
        }


def _loaded(quantizer, get):
    if isinstance(quantizer, dict):
        quantizer = keras.saving.deserialize_keras_object(quantizer)
    return get(quantizer)


class _SPEQRegistry(_Registry):
    """tfmot's registry with our quantizers for weights and outputs of their layers and ReLUs."""

    def __init__(self, disable_per_axis, arguments):
        super().__init__(disable_per_axis)
        self.arguments = arguments

    def get_quantize_config(self, layer):
        config = super().get_quantize_config(layer)
        weights = getattr(config, "weight_attrs", [])
        if weights:
            return SPEQQuantizeConfig(
                weight_attrs=weights, activation_attrs=config.activation_attrs, **self.arguments
            )
        is_function = isinstance(layer, tf_keras.layers.ReLU | tf_keras.layers.Activation)
        if is_function and config.get_output_quantizers(layer):
            return SPEQQuantizeConfig(
                weight_attrs=(), activation_attrs=(), quantize_output=True, **self.arguments
            )
        return config


class SPEQScheme(_Scheme):
    """tfmot's default scheme with our quantizers: `quantize_apply(annotated, SPEQScheme(2, 2))`.

    Weights, and the outputs of weighted layers and ReLUs, have the given widths; sums, means and
    model inputs keep tfmot's 8 bits. Inputs of a Concatenate have tfmot's config. Annotate first
    and last layers with `SPEQQuantizeConfig(w_bits=8, a_bits=8, has_target_width=False)`.

    Args:
        w_bits, a_bits: Widths in bits, 2 to 8.
        weight_quantizer, activation_quantizer: Names or objects of our quantizers.

    Example:
        >>> registry = SPEQScheme(2, 2).get_quantize_registry()
        >>> registry.get_quantize_config(tf_keras.layers.Dense(2)).activations.bits
        2
    """

    def __init__(self, w_bits=3, a_bits=3, *, weight_quantizer="sawb", activation_quantizer="pact"):
        super().__init__()
        self._arguments = {
            "w_bits": w_bits,
            "a_bits": a_bits,
            "weight_quantizer": weight_quantizer,
            "activation_quantizer": activation_quantizer,
        }
        SPEQQuantizeConfig(**self._arguments)  # checks them

    def get_quantize_registry(self):
        return _SPEQRegistry(self._disable_per_axis, self._arguments)
