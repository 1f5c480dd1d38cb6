"""A model in which what is frozen stays as it is: weights, and the ranges that go with them."""

import keras

from speq_keras.quantizers import ActivationQuantizer
from speq_keras.saving import SafeSaving


class FreezingModel(SafeSaving, keras.Model):
    """A model whose activation quantizers train only while the layers that they belong to do.

    A quantizer is a layer of its own. `layer.trainable = False` on the layer whose tensor it rounds
    would not reach it, and a trained range moves all that comes after.
    """

    def _give_ranges_to_layers(self, owners):
        """Lets the range of every activation quantizer follow the layers that it belongs to.

        Args:
            owners: As in `Settings`.
        """
        found = {layer.name: layer for layer in self.layers}
        for name, places in owners:
            if isinstance(found.get(name), ActivationQuantizer):
                found[name].belongs_to(
                    [[found[n] for n in names if n in found] for names in place] for place in places
                )

    def _trained(self, variables):
        """Returns the variables that are in no frozen range."""
        quantizers = [q for q in self.layers if isinstance(q, ActivationQuantizer) and q.is_frozen]
        frozen = {id(v) for q in quantizers for v in q.trainable_variables}
        return [v for v in variables if id(v) not in frozen]

    @property
    def trainable_variables(self):
        """As in Keras; the ranges of a frozen layer's tensors are not among them."""
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
