"""Keeps what a layer computes from its weights alone in its graph while it is taken apart.

Keras evaluates immediately whatever does not read a symbolic tensor, which would turn weights into
constants. Therefore the variables that a layer holds are tensors while its `call` runs, each made
by a `Weight`. So are the rows that an inner `Embedding` looks up for an array, such as
`ops.arange(n)`.
"""

import functools

import keras
from keras import layers, ops, tree

from speq_keras.own_weights import Weight


def variables_in(layer):
    """Returns {attribute: variable} of the weights that a layer holds itself, not its sublayers."""
    weights = {id(variable) for variable in layer.weights}
    return {
        name: value
        for name, value in vars(layer).items()
        if id(value) in weights and value.dtype == layer.variable_dtype
    }


def is_fixed(variable):
    """Whether a variable is effectively a constant: integers that are not trained."""
    return not variable.trainable and "int" in variable.dtype


def on_weights(layer, known):
    """Returns a function like the layer's `call` that reads tensors instead of variables.

    Args:
        layer: The layer.
        known: {id of a variable: (variable, its `Weight`)}, extended.
    """

    @functools.wraps(layer.call)
    def call(*args, **kwargs):
        """Calls the layer with its attributes replaced by the outputs of their `Weight`s."""
        x = next(x for x in tree.flatten((args, kwargs)) if is_symbolic(x))

        def weight(variable, owner):
            known.setdefault(id(variable), (variable, Weight.of(variable, owner)))
            return known[id(variable)][1](x)

        tables = {n: v for n, v in vars(layer).items() if type(v) is layers.Embedding}
        tables = {n: v for n, v in tables.items() if not v.mask_zero}
        variables = variables_in(layer)
        # Bypasses `__setattr__`, in which Keras tracks variables and layers.
        before = {**tables, **variables}
        vars(layer).update({n: _RowsOfArrays(v, weight) for n, v in tables.items()})
        vars(layer).update({n: weight(v, layer) for n, v in variables.items()})
        try:
            return layer.call(*args, **kwargs)
        finally:
            vars(layer).update(before)

    return call


class _RowsOfArrays:
    """An `Embedding` in another layer; the rows it looks up for arrays are symbolic, too.

    Args:
        layer: The Embedding.
        weight: Function of a variable and its layer: the variable as a symbolic tensor.
    """

    def __init__(self, layer, weight):
        self._layer, self._weight = layer, weight

    def __getattr__(self, name):
        return getattr(self._layer, name)

    def __call__(self, inputs, **kwargs):
        """Looks up rows."""
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
