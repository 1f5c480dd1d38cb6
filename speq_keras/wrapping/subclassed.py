"""Turns subclassed models into Functional ones by tracing their `call` on symbolic tensors.

As with layers made of layers (`composite`), the graph replaces the model only if it has all of the
model's weights, is the same in training, and computes the same results on random data.
"""

import keras
from keras import tree

from speq_keras._checks import brief, describe
from speq_keras.graph import check_has_config, copy_operation, deep_graphs, is_functional, map_refs
from speq_keras.wrapping.composite import expand, is_composite
from speq_keras.wrapping.composite_check import difference
from speq_keras.wrapping.parts import CannotExpand

_RULE = (
    "`model` must be Functional or Sequential, or a subclassed model whose graph can be read off "
    "its `call`."
)


def as_functional(model, inputs=None):
    """Returns a Functional model that shares the layers and variables of a subclassed one.

    Args:
        model: A Keras model. One that already has a graph is returned unchanged.
        inputs: For a subclassed model: the first argument of its `call`, as `keras.Input` tensors,
            or None if it was called or built.
    """
    _check_inputs(model, inputs)
    if is_functional(model):
        return model
    if inputs is None and (inputs := _known_inputs(model)) is None:
        raise ValueError(
            f"{_RULE} {describe(model=type(model).__name__, inputs=None)} Call it once on data, "
            "or pass inputs=keras.Input(shape), so that the shapes are known."
        )
    if isinstance(inputs, dict):
        inputs = {key: _named(key, x) for key, x in inputs.items()}
    try:
        outputs = _outputs(model, inputs)
    except CannotExpand as error:
        raise ValueError(
            f"{_RULE} {describe(model=type(model).__name__, cause=str(error))} Fix that, or "
            "rebuild it as keras.Model(inputs, outputs) from keras.Input tensors."
        ) from error
    return keras.Model(inputs, outputs, name=model.name)


def taken_apart(graph, name):
    """Returns a Functional model of a graph, with a fresh layer for each one that its nodes call.

    It can be made from its config even if the layers of the original model have no config.

    Args:
        graph: A `Graph` from `read_graph`.
        name: Of the model.
    """
    copies, values = {}, {}

    def make_input(index):
        x = graph.tensors[index]
        values[index] = keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
        return values[index]

    inputs = map_refs(graph.inputs, make_input)
    for node in graph.nodes:
        operation = copies.get(id(node.operation))
        if operation is None:
            check_has_config(node.operation)
            operation = copy_operation(node.operation, name=node.name)
            copies[id(node.operation)] = operation
        args, kwargs = map_refs((node.args, node.kwargs), values.__getitem__)
        values.update(zip(node.outputs, tree.flatten(operation(*args, **kwargs)), strict=True))
    with deep_graphs():
        return keras.Model(inputs, map_refs(graph.outputs, values.__getitem__), name=name)


def _outputs(model, inputs):
    """Returns the outputs of a model's `call` on these `inputs`, through its graph."""
    if not is_composite(model):
        raise CannotExpand("a class of the library has no graph of its own")
    try:
        if not model.built:
            model(inputs)
    except Exception as error:  # anything: it is third-party code
        raise CannotExpand(f"its call fails on symbolic tensors ({brief(error)})") from error
    traced, tensors = expand(model, (inputs,), {}, _difference)
    with deep_graphs():  # inside, the batch size may differ
        clone = keras.models.clone_model(traced, tensors, clone_function=lambda layer: layer)
    return clone.output


def _named(key, x):
    """Returns an input named by its key, as Keras requires in a dict."""
    if not isinstance(x, keras.KerasTensor) or x.name == key:
        return x
    return keras.Input(batch_shape=x.shape, dtype=x.dtype, name=key)


def _difference(model, traced, args, kwargs):
    return difference(model, traced, args, kwargs, traced.inputs)


def _check_inputs(model, inputs):
    if inputs is None:
        return
    if is_functional(model):
        raise ValueError(
            "`inputs` is for subclassed models, and this model already has inputs. "
            f"{describe(model=model.name)} Leave it out."
        )
    leaves = tree.flatten(inputs)
    if not leaves or not all(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
        raise TypeError(
            "`inputs` must be keras.Input tensors: one, or a list or dict of them, as the model's "
            f"`call` takes them. {describe(inputs=inputs)} Pass inputs=keras.Input(shape)."
        )


def _known_inputs(model):
    """Returns new inputs with the shapes that a model was built for, any batch; or None."""
    shapes = (model.get_build_config() or {}).get("input_shape") if model.built else None
    return None if shapes is None else _inputs_of(shapes, model.input_dtype)


def _inputs_of(shapes, dtype, name=None):
    if isinstance(shapes, dict):
        return {key: _inputs_of(shape, dtype, key) for key, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return keras.Input(shapes[1:], dtype=dtype, name=name)
    return [_inputs_of(shape, dtype) for shape in shapes]
