"""Subclassed models as Functional ones: their `call` is traced like that of a composite layer."""

import keras
from keras import tree

from speq_keras._checks import describe
from speq_keras.graph import (
    copy_operation,
    is_functional,
    map_refs,
    plain_functional,
    read_graph,
)
from speq_keras.live_objects import own_classes
from speq_keras.wrapping.composite import Expander, expand
from speq_keras.wrapping.composite_check import difference
from speq_keras.wrapping.parts import CannotExpand

_RULE = "A subclassed model must have a `call` that is one graph, whatever the data are"


def as_functional(model, inputs=None):
    """Returns a Functional model with copies of the layers and weights of a subclassed one.

    Args:
        model: A Keras model; one that is Functional or Sequential is returned as it is.
        inputs: What `call` reads, as `keras.Input` tensors: one, or a list or dict of them. None:
            as many floats as when the model was built or first called.

    Raises:
        TypeError: If `inputs` are no symbolic tensors.
        ValueError: If the model is Functional and `inputs` are given, or the subclassed model was
            never called, or its `call` cannot be traced, or is another graph in training.
    """
    if is_functional(model) or isinstance(model, keras.Sequential):
        if inputs is not None:
            raise ValueError(
                "`inputs` must be given for a subclassed model alone: this one has its own. "
                f"{describe(model=model.name, inputs=inputs)} Leave them out."
            )
        return _serializable(model)
    inputs = _inputs_of(model, inputs)
    try:
        graph, _ = expand(model, (inputs,), {}, _difference)
    except CannotExpand as error:
        received = describe(model=type(model).__name__)
        raise ValueError(
            f"{_RULE}. {received} {str(error).capitalize()}. Write it in operations of Keras, or "
            "rebuild the model as keras.Model(inputs, outputs)."
        ) from error
    return _flat(graph, inputs, model.name)


def _serializable(model):
    """Returns a Functional model, or where it has layers without a config, what they are made of.

    Layers in place of which there is no graph have to have a config of their own.
    """
    if not own_classes(model):
        return model
    try:
        keras.saving.serialize_keras_object(model)
        return model
    except Exception:  # from a `get_config` of other people
        inputs = tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
            plain_functional(model).input,
        )
        return _flat(model, inputs, model.name)


def _flat(model, inputs, name):
    """Returns a model of copies of all layers and operations, those in composite layers apart.

    Args:
        model: A Functional model.
        inputs: What takes the place of its inputs, of any structure.
        name: Of the new model.
    """
    graph = read_graph(model, Expander(lambda name, layer: False))
    copies, values = {}, dict(zip(graph.input_indices, tree.flatten(inputs), strict=True))

    def copy_of(node):
        if id(node.operation) not in copies:
            copies[id(node.operation)] = copy_operation(node.operation, name=node.name)
        return copies[id(node.operation)]

    for node in graph.nodes:
        args, kwargs = map_refs((node.args, node.kwargs), values.__getitem__)
        outputs = tree.flatten(copy_of(node)(*args, **kwargs))
        values.update(zip(node.outputs, outputs, strict=True))
    flat = keras.Model(inputs, map_refs(graph.outputs, values.__getitem__), name=name)
    for node in graph.nodes:
        if isinstance(node.operation, keras.layers.Layer):
            for variable, source in zip(copy_of(node).weights, node.operation.weights, strict=True):
                variable.assign(source.value)
                variable.trainable = source.trainable
    return flat


def _difference(model, graph, args, kwargs):
    return difference(model, graph, args, kwargs, graph.inputs)


def _inputs_of(model, inputs):
    """Returns symbolic inputs for a model: the given ones, or such as it was built for."""
    if inputs is not None:
        if not all(isinstance(x, keras.KerasTensor) for x in tree.flatten(inputs)):
            raise TypeError(
                "`inputs` must be a keras.Input, or a list or dict of them. "
                f"{describe(inputs=inputs)} Such as inputs=keras.Input((32, 32, 3))."
            )
        return inputs
    shapes = (model.get_build_config() or {}).get("input_shape") if model.built else None
    if shapes is None:
        raise ValueError(
            "A subclassed model must know what it reads. "
            f"{describe(model=type(model).__name__, built=model.built)} Call it once on data, or "
            "pass inputs=keras.Input(...) to `wrap`."
        )
    return tree.map_shape_structure(lambda shape: keras.Input(shape[1:]), shapes)
