"""A model in which frozen parts do not change: weights, and the ranges that belong to them."""

import keras

from speq_keras._checks import describe
from speq_keras.quantizers import ActivationQuantizer
from speq_keras.saving import SafeSaving


class Part:
    """The layers into which `wrap` flattened a nested model, or a layer made of layers.

    Attributes:
        name: The name of the nested model.
        layers: Its layers in the quantized model, in order.
    """

    def __init__(self, name, layers):
        self.name, self.layers = name, layers

    @property
    def trainable(self):
        """Whether any of its layers is trained. Setting it sets all, as in Keras; then compile."""
        return any(layer.trainable for layer in self.layers)

    @trainable.setter
    def trainable(self, value):
        for layer in self.layers:
            layer.trainable = value


class FreezingModel(SafeSaving, keras.Model):
    """A model whose activation quantizers train only while the layers they belong to do.

    A quantizer is a separate layer. `layer.trainable = False` on the layer whose tensor it rounds
    would not reach it, and a trained range affects everything after it.
    """

    def part(self, name):
        """Returns the `Part` of this model that was a nested model, to freeze or unfreeze it.

        Args:
            name: The nested model's name.

        Raises:
            ValueError: If no layer comes from a model of that name.

        Example:
            >>> import speq_keras
            >>> base = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)], name="base")
            >>> base.trainable = False
            >>> network = keras.Sequential([keras.Input((4,)), base, keras.layers.Dense(2)])
            >>> model = speq_keras.wrap(network, 4, 8)
            >>> model.part("base").trainable
            False
            >>> model.part("base").trainable = True  # and compile again, as in Keras
        """
        parts = {}
        for layer in self.layers:
            if not isinstance(layer, ActivationQuantizer):  # they follow their layers
                names = layer.name.split(".")
                for end in range(1, len(names)):
                    parts.setdefault(".".join(names[:end]), []).append(layer)
        if name not in parts:
            known = ", ".join(map(repr, parts)) or "none"
            raise ValueError(
                f"`name` must be the name of a nested model in the wrapped model: {known}. "
                f"{describe(name=name)} Use `get_layer` for layers."
            )
        return Part(name, parts[name])

    def _give_ranges_to_layers(self, owners):
        """Makes the range of each activation quantizer follow the layers it belongs to.

        Args:
            owners: As in `Provenance`.
        """
        found = {layer.name: layer for layer in self.layers}
        for name, places in owners:
            if isinstance(found.get(name), ActivationQuantizer):
                found[name].belongs_to(
                    [[found[n] for n in names if n in found] for names in place] for place in places
                )

    def _trained(self, variables):
        """Returns the variables that do not belong to a frozen range."""
        quantizers = [q for q in self.layers if isinstance(q, ActivationQuantizer) and q.is_frozen]
        frozen = {id(v) for q in quantizers for v in q.trainable_variables}
        return [v for v in variables if id(v) not in frozen]

    @property
    def trainable_variables(self):
        """As in Keras, without the ranges of frozen layers' tensors.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in "abc"]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> len(model.trainable_variables)
            9
            >>> model.get_layer("a").trainable = False  # its kernel, bias, and range of its outputs
            >>> len(model.trainable_variables)
            6
        """
        return self._trained(super().trainable_variables)

    @property
    def trainable_weights(self):
        """As `trainable_variables`."""
        return self._trained(super().trainable_weights)

    @property
    def non_trainable_variables(self):
        """All variables that are not in `trainable_variables`."""
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def non_trainable_weights(self):
        """All weights that are not in `trainable_weights`."""
        trained = {id(v) for v in self.trainable_weights}
        return [v for v in self.weights if id(v) not in trained]
