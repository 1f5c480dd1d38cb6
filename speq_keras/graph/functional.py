"""Functional and Sequential models: which models have a graph, and how to make deep ones."""

import contextlib
import sys

import keras

_MOST_OPERATIONS_IN_A_ROW = 20_000


def is_functional(operation):
    """Whether `operation` is a model with a graph of layers that can be read."""
    if not isinstance(operation, keras.Model):
        return False
    if isinstance(operation, keras.Sequential):
        return operation.built
    try:
        return bool(operation.inputs) and bool(operation.operations)
    except AttributeError:  # subclassed models have no graph
        return False


@contextlib.contextmanager
def deep_graphs():
    """Lets Keras make models with thousands of consecutive operations.

    Keras recurses once per operation when it makes a Functional model; Python's limit is a
    thousand.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _MOST_OPERATIONS_IN_A_ROW))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def plain_functional(model):
    """Returns a plain Functional model with the same graph and the same layers.

    Subclasses of Functional have their own constructors and configs, and a Sequential model that
    was never called has no `input`.
    """
    with deep_graphs():
        if isinstance(model, keras.Sequential):
            return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        return keras.Model(model.input, model.output, name=model.name)
