"""tfmot's `quantize_annotate_*` for Keras 3: which layers to quantize, and how."""

import contextlib
import warnings

import keras

from speq_keras._checks import describe
from speq_keras.graph import copy_operation, is_functional, plain_functional
from speq_keras.tfmot.importing import tf_keras, tfmot
from speq_keras.tfmot.legacy_configs import SPEQQuantizeConfig, SPEQQuantizer

_original = tfmot.quantization.keras


@keras.saving.register_keras_serializable(package="speq_keras")
class QuantizeAnnotate(keras.layers.Wrapper):
    """Marks a layer for `quantize_apply`; computes the same as the layer.

    Args:
        layer: The layer.
        quantize_config: A tfmot `QuantizeConfig`, or None: the scheme's for this layer class.

    Example:
        >>> QuantizeAnnotate(keras.layers.Dense(2))(keras.ops.zeros((1, 3))).shape == (1, 2)
        True
    """

    def __init__(self, layer, quantize_config=None, **kwargs):
        super().__init__(layer, **kwargs)
        self.quantize_config = quantize_config
        self.supports_masking = layer.supports_masking
        # Sequential reads this for Dense(20, input_shape=(20,)); it has no public name.
        shape = getattr(layer, "_input_shape_arg", None)
        if shape is not None:
            self._input_shape_arg = shape

    def call(self, inputs=None, *args, **kwargs):
        """Returns the layer's output."""
        if inputs is not None:
            args = (inputs, *args)
        return self.layer(*args, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        """Returns the layer's own."""
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        """Returns the layer's own."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self):
        config = self.quantize_config
        if config is not None:
            config = keras.saving.serialize_keras_object(config)
        return {**super().get_config(), "quantize_config": config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"), custom_objects)
        quantize_config = config.pop("quantize_config", None)
        if quantize_config is not None:
            quantize_config = keras.saving.deserialize_keras_object(quantize_config, custom_objects)
        return cls(layer, quantize_config, **config)


def quantize_annotate_layer(to_annotate, quantize_config=None):
    """Marks one layer for `quantize_apply`.

    Args:
        to_annotate: A Keras 3 layer that is not a model; tf_keras layers are passed to tfmot
            itself.
        quantize_config: A tfmot `QuantizeConfig`; None: the scheme's for this layer class.

    Returns:
        A layer that computes the same.

    Raises:
        ValueError: If `to_annotate` is not a layer or `quantize_config` not a tfmot one.

    Example:
        >>> quantize_annotate_layer(keras.layers.Dense(2)).quantize_config is None
        True
    """
    if isinstance(to_annotate, tf_keras.layers.Layer):
        return _original.quantize_annotate_layer(to_annotate, quantize_config)
    is_layer = isinstance(to_annotate, keras.layers.Layer)
    if not is_layer or isinstance(to_annotate, keras.Model):
        raise ValueError(
            "`to_annotate` must be a Keras layer that is not a model. "
            f"{describe(to_annotate=to_annotate)} Pass models to quantize_annotate_model."
        )
    if not isinstance(quantize_config, _original.QuantizeConfig | None):
        raise ValueError(
            "`quantize_config` must be a tfmot QuantizeConfig or None. "
            f"{describe(quantize_config=quantize_config)}"
        )
    return QuantizeAnnotate(to_annotate, quantize_config)


def quantize_annotate_model(to_annotate):
    """Marks all layers of a model for `quantize_apply`, except those already marked.

    Args:
        to_annotate: A Functional or built Sequential Keras 3 model; it is not changed. tf_keras
            models are passed to tfmot itself.

    Returns:
        A model with the same weights.

    Raises:
        ValueError: If `to_annotate` is not such a model, or contains a model.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        >>> [type(layer).__name__ for layer in quantize_annotate_model(model).layers]
        ['InputLayer', 'QuantizeAnnotate']
    """
    if isinstance(to_annotate, tf_keras.Model):
        return _original.quantize_annotate_model(to_annotate)
    check_model("to_annotate", to_annotate)

    def annotated(layer):
        if isinstance(layer, QuantizeAnnotate):
            return QuantizeAnnotate(
                copy_operation(layer.layer), layer.quantize_config, name=layer.name
            )
        if isinstance(layer, keras.Model):
            raise ValueError(
                "A model to annotate must not contain a model. "
                f"{describe(layer=layer.name)} Replace it with its layers."
            )
        if isinstance(layer, keras.layers.Lambda):
            warnings.warn(
                f"The Lambda layer '{layer.name}' stays in float, because its function is unknown. "
                "Replace it with a layer, and annotate that with a QuantizeConfig.",
                stacklevel=4,
            )
            return copy_operation(layer)
        return QuantizeAnnotate(copy_operation(layer))

    return cloned(to_annotate, annotated)


def cloned(model, change):
    """Returns a copy of a model, same weights, with each layer replaced by `change(layer)`."""
    pairs = []

    def changed(operation):
        if not isinstance(operation, keras.layers.Layer):
            return copy_operation(operation)
        new = change(operation)
        pairs.append((operation, new))
        return new

    # The plain model and its clone are not compiled: as in tfmot, the optimizer is dropped.
    copy = keras.models.clone_model(plain_functional(model), clone_function=changed)
    for old, new in pairs:
        if old.weights:
            new.set_weights(old.get_weights())
    return copy


def check_model(name, model):
    """Raises a ValueError if `model` has no graph of layers."""
    if not is_functional(model):
        raise ValueError(
            f"`{name}` must be a Functional or a built Sequential Keras model. "
            f"{describe(**{name: model})}"
        )


@contextlib.contextmanager
def quantize_scope(*args):
    """Allows loading models with custom classes: a `QuantizeConfig`, a layer, ...

    Args:
        *args: Dicts {name: class}.

    Example:
        >>> class MyDense(keras.layers.Dense):
        ...     pass
        >>> with quantize_scope({"MyDense": MyDense}):
        ...     keras.saving.get_registered_object("MyDense") is MyDense
        True
    """
    objects = {cls.__name__: cls for cls in (SPEQQuantizeConfig, SPEQQuantizer)}
    for part in args:
        objects.update(part)
    scope = _original.quantize_scope(objects)  # adds tfmot's own classes
    objects = {name: value for part in scope.custom_objects for name, value in part.items()}
    with scope, keras.saving.custom_object_scope(objects):
        yield
