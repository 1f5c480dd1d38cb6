"""What a layer computes of its weights alone, as part of its graph: while it is taken apart.

Keras computes at once what reads no symbolic tensor, and weights would become constants by it. So
the variables that a layer holds are tensors while its `call` runs, each made by a `Weight`, and so
are the rows that an `Embedding` inside it looks up for an array, such as `ops.arange(n)`.
"""

import functools

import keras
from keras import layers, ops, tree

from speq_keras.own_weights import Weight


def variables_in(layer):
    """Returns {attribute: variable} of the weights that a layer holds itself, not in layers."""
    weights = {id(variable) for variable in layer.weights}
    return {
        name: value
        for name, value in vars(layer).items()
        if id(value) in weights and value.dtype == layer.variable_dtype
    }


def is_fixed(variable):
    """Whether a variable is as good as a constant: whole numbers that nobody trains."""
    return not variable.trainable and "int" in variable.dtype


def on_weights(layer, known):
    """Returns a function like the layer's `call` that reads tensors in place of variables.

    Args:
        layer: The layer.
        known: {id of a variable: (variable, its `Weight`)}, extended.
    """

    @functools.wraps(layer.call)
    def call(*args, **kwargs):
        """Calls the layer while its attributes are what their `Weight`s make."""
        x = next(x for x in tree.flatten((args, kwargs)) if is_symbolic(x))

        def weight(variable, owner):
            known.setdefault(id(variable), (variable, Weight.of(variable, owner)))
            return known[id(variable)][1](x)

        tables = {n: v for n, v in vars(layer).items() if type(v) is layers.Embedding}
        tables = {n: v for n, v in tables.items() if not v.mask_zero}
        variables = variables_in(layer)
        # The attributes themselves: Keras tells variables and layers from others when they are set.
        before = {**tables, **variables}
        vars(layer).update({n: _RowsOfArrays(v, weight) for n, v in tables.items()})
        vars(layer).update({n: weight(v, layer) for n, v in variables.items()})
        try:
            return layer.call(*args, **kwargs)
        finally:
            vars(layer).update(before)

    return call


class _RowsOfArrays:
    """An `Embedding` inside another layer; the rows that it looks up for arrays are symbolic, too.

    Args:
        layer: The Embedding.
        weight: Function of a variable and its layer: the variable as a symbolic tensor.
    """

    def __init__(self, layer, weight):
        self._layer, self._weight = layer, weight

    def __getattr__(self, name):
        return getattr(self._layer, name)

    def __call__(self, inputs, **kwargs):
        """Looks rows up."""
        layer = self._layer
        if is_symbolic(inputs):
            return layer(inputs, **kwargs)
        numbers = ops.convert_to_numpy(inputs)
        if not layer.built:
            layer.build(numbers.shape)
        rows = ops.take(self._weight(layer.embeddings, layer), numbers.reshape(-1), axis=0)
        return ops.reshape(rows, (*numbers.shape, layer.output_dim))


def is_symbolic(leaf):
    """Whether an argument of a call is a tensor of the graph."""
    return isinstance(leaf, keras.KerasTensor)
