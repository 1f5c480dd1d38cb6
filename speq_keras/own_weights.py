"""Turns weights that a layer reads in its own `call` into layers of the graph.

`x * self.gamma` has two tensors, one of which has no producer. While such a layer is taken apart
(`composite`), a `Weight` makes it; `wrapping` turns these into layers with integer kernels where
possible: a `ChannelOperation` folds into the layer before it.
"""

import keras
from keras import constraints, initializers, ops, regularizers

_OPERATIONS = {
    "add": ops.add,
    "subtract": ops.subtract,
    "multiply": ops.multiply,
    "divide": ops.divide,
}


class _OneWeight(keras.layers.Layer):
    """A layer with one weight, `self.weight`, which has the layer's own dtype.

    Args:
        shape: Shape of the weight.
        weight_initializer: By default zeros.
        weight_regularizer: None, or as in Keras' layers.
        weight_constraint: Likewise.
        variable: An existing variable that becomes the weight, or None.
    """

    def __init__(
        self,
        shape,
        weight_initializer="zeros",
        weight_regularizer=None,
        weight_constraint=None,
        variable=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.weight_initializer = initializers.get(weight_initializer)
        self.weight_regularizer = regularizers.get(weight_regularizer)
        self.weight_constraint = constraints.get(weight_constraint)
        if variable is not None:
            self.weight = variable
            return
        self.weight = self.add_weight(
            name="weight",
            shape=self.shape,
            initializer=self.weight_initializer,
            regularizer=self.weight_regularizer,
            constraint=self.weight_constraint,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "shape": list(self.shape),
            "weight_initializer": initializers.serialize(self.weight_initializer),
            "weight_regularizer": regularizers.serialize(self.weight_regularizer),
            "weight_constraint": constraints.serialize(self.weight_constraint),
        }


@keras.saving.register_keras_serializable(package="speq_keras")
class Weight(_OneWeight):
    """Returns its weight for any input: a weight that a user's layer reads in its `call`.

    The result has the shape of the weight, without a batch.

    Example:
        >>> Weight((3,), weight_initializer="ones")(keras.ops.zeros((5, 2))).shape == (3,)
        True
    """

    @classmethod
    def of(cls, variable, layer):
        """Returns the `Weight` of a variable that `layer` holds."""
        return cls(
            variable.shape,
            weight_regularizer=variable.regularizer,
            weight_constraint=variable.constraint,
            variable=variable,
            dtype=layer.dtype_policy,
            trainable=variable.trainable,
            name=variable.name,
        )

    def call(self, inputs):
        """Returns the weight."""
        return self.weight.value

    def compute_output_spec(self, inputs):
        """Returns the shape of the weight, and the layer's compute dtype."""
        return _WeightTensor(self.shape, dtype=self.compute_dtype)


class _WeightTensor(keras.KerasTensor):
    """A symbolic tensor that can be indexed like a variable: Keras' own lacks `x[:3]`."""

    @property
    def __jax_array__(self):
        # Keras' own raises an error; without it, a JAX array leaves sums with it to this class.
        raise AttributeError("__jax_array__")

    def __getitem__(self, key):
        return super().__getitem__(key if isinstance(key, int | tuple) else (key,))


@keras.saving.register_keras_serializable(package="speq_keras")
class ChannelOperation(_OneWeight):
    """Adds a trained number per channel, or multiplies by it.

    Args:
        shape: Shape of the weight: () or (1,) for one number, or (..., channels) with 1 elsewhere.
        operation: "add", "subtract", "multiply" or "divide".
        weight_first: Whether the weight is the first operand: `weight - x`.
        **kwargs: As in `Weight`.

    Example:
        >>> layer = ChannelOperation((2,), "multiply", weight_initializer="ones")
        >>> layer(keras.ops.ones((1, 2))).shape == (1, 2)
        True
    """

    def __init__(self, shape, operation, weight_first=False, **kwargs):
        super().__init__(shape, **kwargs)
        self.operation = operation
        self.weight_first = weight_first

    def call(self, inputs):
        """Returns the inputs with the operation applied to each channel."""
        # The value: `convert_to_tensor` does not look a variable up in a StatelessScope.
        operands = (inputs, self.weight.value)
        operands = operands[::-1] if self.weight_first else operands
        return _OPERATIONS[self.operation](*operands)

    def compute_output_spec(self, inputs):
        """Returns the shape of the inputs, and the layer's compute dtype."""
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self):
        config = {"operation": self.operation, "weight_first": self.weight_first}
        return {**super().get_config(), **config}
