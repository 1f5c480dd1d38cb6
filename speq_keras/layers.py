"""QuantizedLayer: a Keras layer that computes with quantized weights."""

import contextlib
import inspect
import warnings

import keras
import numpy as np

from speq_keras._checks import check_name, describe
from speq_keras.quantizers import ActivationQuantizer, WeightQuantizer


@contextlib.contextmanager
def _silent_masks():
    """Silences Keras' warning about a mask that ends here: layers get masks as arguments."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was passed an input with a mask attached")
        yield


@keras.saving.register_keras_serializable(package="speq_keras")
class QuantizedLayer(keras.layers.Wrapper):
    """Runs `layer` with quantized values in place of some of its variables.

    The layer itself is called, under a `keras.StatelessScope` that maps each variable to its value,
    quantized or not. `layer.stateless_call` would be shorter but skips `__call__`: it would lose
    autocasting, masks, activity losses and state updates. Changes to non-trainable variables
    (moving statistics, seeds) are assigned back; under the SPEQ teacher an outer scope catches
    them.

    The wrapper itself is float32 and does not autocast, so quantizers see the full weights while
    the layer computes in its own dtype.

    Args:
        layer: The layer, built or not.
        quantizers: {attribute name of a variable: `WeightQuantizer`}; "cell.kernel" is the kernel
            of the layer's cell.

    Example:
        >>> from speq_keras.quantizers import MinMax
        >>> layer = QuantizedLayer(keras.layers.Dense(4), {"kernel": MinMax(bits=2)})
        >>> layer(keras.ops.ones((1, 3))).shape == (1, 4)
        True
    """

    def __init__(self, layer, quantizers, name=None, trainable=True, **kwargs):
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(f"`layer` must be a Keras layer. {describe(layer=layer)}")
        is_dict = isinstance(quantizers, dict)
        if not (is_dict and all(isinstance(q, WeightQuantizer) for q in quantizers.values())):
            raise TypeError(
                "`quantizers` must be a dict from names of the layer's variables to "
                f"WeightQuantizer objects. {describe(quantizers=quantizers)}"
            )
        check_name("name", name, optional=True)
        kwargs.pop("dtype", None)
        super().__init__(
            layer,
            name=name or layer.name,
            trainable=trainable,
            dtype="float32",
            autocast=False,
            **kwargs,
        )
        self.quantizers = dict(quantizers)
        if not trainable:  # Keras passes only later changes on to inner layers
            for quantizer in self.quantizers.values():
                quantizer.trainable = False
        self.supports_masking = True  # `compute_mask` decides about masks

    def build(self, input_shape):
        """Builds the layer, then the quantizers for its variables."""
        if not self.layer.built:
            parameters = inspect.signature(self.layer.build).parameters.values()
            if sum(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) > 1:
                raise ValueError(
                    f"Layer '{self.layer.name}' ({type(self.layer).__name__}) reads several "
                    "tensors and must be built before it is wrapped, with all their shapes. "
                    f"{describe(input_shape=input_shape)} Call its `build` first."
                )
            self.layer.build(input_shape)
        for attribute, quantizer in self.quantizers.items():
            variable = self.variable(attribute)
            self._check_axes(attribute, variable, quantizer)
            if not quantizer.built:  # a loaded one is built already
                quantizer.build(variable.shape)
                quantizer.start_from(variable)

    def _check_axes(self, attribute, variable, quantizer):
        rank = len(variable.shape)
        # The default, the last axis, also applies to scalars: these have one scale.
        if any(not -max(rank, 1) <= axis < max(rank, 1) for axis in quantizer.channel_axes):
            raise ValueError(
                f"Layer '{self.layer.name}' ({type(self.layer).__name__}): `channel_axes` must be "
                f"axes of its '{attribute}', which has {rank}. "
                f"{describe(channel_axes=quantizer.channel_axes)} Give others in "
                "`QuantizeConfig(channel_axes=...)`."
            )

    def variable(self, attribute):
        """Returns the layer's variable that `attribute` names."""
        variable = self.layer
        for name in attribute.split("."):
            variable = getattr(variable, name, None)
        if not isinstance(variable, keras.Variable):
            raise ValueError(
                f"Layer '{self.layer.name}' ({type(self.layer).__name__}) has no variable "
                f"'{attribute}'. Name one of its variables in `QuantizeConfig(weights=...)`. "
                f"Received: {attribute} of type {type(variable).__name__}."
            )
        return variable

    def call(self, inputs=None, *args, **kwargs):
        """Returns the layer's output, computed with quantized values of its variables."""
        if inputs is not None:  # all of several inputs may be given by name
            args = (inputs, *args)
        # All variables, even unchanged ones: inside the scope below, values of an outer scope would
        # not be visible.
        values = {id(v): (v, v.value) for v in self.layer.variables}
        for attribute, quantizer in self.quantizers.items():
            variable = self.variable(attribute)
            values[id(variable)] = (variable, quantizer(variable.value))
        with keras.StatelessScope(values.values(), collect_losses=True) as scope:
            before = {key: scope.get_current_value(v) for key, (v, _) in values.items()}
            with contextlib.nullcontext() if self.layer.supports_masking else _silent_masks():
                outputs = self.layer(*args, **kwargs)
        for loss in scope.losses:
            # A new tensor: Keras tells losses apart by identity and would count this one twice.
            self.add_loss(1.0 * loss)
        for key, (variable, _) in values.items():
            after = scope.get_current_value(variable)
            if after is not before[key]:
                variable.assign(after)
        return outputs

    def compute_output_spec(self, *args, **kwargs):
        """Returns the layer's own: computing it with quantizers took half the time of `wrap`."""
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        """Returns the layer's own, or None if it does not support masks."""
        if not self.layer.supports_masking:
            return None
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self):
        """Returns the constructor's arguments, layer and quantizers as configs."""
        config = super().get_config()
        config.pop("dtype")
        quantizers = {
            attribute: keras.saving.serialize_keras_object(quantizer)
            for attribute, quantizer in self.quantizers.items()
        }
        return {**config, "quantizers": quantizers}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Makes the layer from the values of `get_config`."""
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(
            config.pop("layer"), custom_objects=custom_objects
        )
        quantizers = {
            attribute: keras.saving.deserialize_keras_object(quantizer)
            for attribute, quantizer in config.pop("quantizers").items()
        }
        return cls(layer, quantizers, **config)


@keras.saving.register_keras_serializable(package="speq_keras")
class Constant(keras.layers.Layer):
    """Returns the same array for any input: a constant output of a layer.

    Args:
        value: The array, or a list of its values.
        shape: Its shape; by default that of `value`.
        value_dtype: Its dtype; by default that of `value`.

    Example:
        >>> Constant([1.0, 2.0])(keras.ops.zeros((5, 3))).shape == (2,)
        True
    """

    def __init__(self, value, shape=None, value_dtype=None, **kwargs):
        super().__init__(**kwargs)
        value = np.asarray(value, value_dtype)
        self.value = value if shape is None else value.reshape(shape)

    def call(self, inputs):
        """Returns the array."""
        return keras.ops.convert_to_tensor(self.value)

    def compute_output_spec(self, inputs):
        """Returns the shape and dtype of the array."""
        return keras.KerasTensor(self.value.shape, dtype=str(self.value.dtype))

    def get_config(self):
        return {
            **super().get_config(),
            "value": self.value.ravel().tolist(),
            "shape": list(self.value.shape),  # nested lists lose the shape of an empty array
            "value_dtype": str(self.value.dtype),
        }


@keras.saving.register_keras_serializable(package="speq_keras")
class MaskedOutput(keras.layers.Layer):
    """Returns the first of two tensors, with the second as its mask, so that losses see it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs):
        """Returns the tensor."""
        return inputs[0]

    def compute_output_spec(self, inputs):
        """Returns the tensor's shape and dtype."""
        return keras.KerasTensor(inputs[0].shape, dtype=inputs[0].dtype)

    def compute_mask(self, inputs, previous_mask=None):
        """Returns the mask."""
        return keras.ops.cast(inputs[1], "bool")


def activation_quantizers(layer):
    """Returns the `ActivationQuantizer`s of a layer: the layer itself or those inside it.

    Example:
        >>> activation_quantizers(keras.layers.Dense(4))
        []
    """
    if isinstance(layer, ActivationQuantizer):
        return [layer]
    return list(getattr(layer, "activation_quantizers", {}).values())


def weight_quantizers(layer):
    """Returns the `WeightQuantizer`s of a layer, if any.

    Example:
        >>> weight_quantizers(keras.layers.Dense(4))
        []
    """
    if not isinstance(layer, QuantizedLayer):
        return []
    return [q for q in layer.quantizers.values() if isinstance(q, WeightQuantizer)]
