"""Restores the float model of a wrapped model, and loads float weights into it."""

import json
import os

import keras
from keras import ops, tree

from speq_keras._checks import brief, describe
from speq_keras.graph import is_functional, read_graph, weights_changed
from speq_keras.layers import QuantizedLayer
from speq_keras.live_objects import with_live_objects
from speq_keras.operations import build_fused_layers
from speq_keras.wrapping.composite import Expander, is_composite
from speq_keras.wrapping.subclassed import as_functional


def model_with_weights_of(wrapped):
    """Returns the float model that a `SPEQModel` was made from, with its weights."""
    model = _bare_model(wrapped)
    for mine, theirs in _pairs(wrapped, model):
        theirs.assign(ops.copy(ops.reshape(mine.value, theirs.shape)))
    expand = Expander(lambda name, layer: False, verifies=False)
    weights_changed(node.operation for node in read_graph(model, expand).nodes)
    return model


def load(wrapped, source):
    """Copies the weights of a float model or file into a `SPEQModel`.

    Args:
        wrapped: The `SPEQModel`.
        source: As in `SPEQModel.load_float_weights`.
    """
    if not isinstance(source, keras.Model | str | os.PathLike):
        raise TypeError(
            "`source` must be a Keras model or a path to a .keras or .weights.h5 file. "
            f"{describe(source=source)}"
        )
    model = source if isinstance(source, keras.Model) else _model_of_file(wrapped, source)
    if isinstance(model, type(wrapped)):
        model = model.float_model()
    if not is_functional(model) and is_composite(model):
        model = as_functional(model, tree.map_structure(_input_like, wrapped.input))
    for mine, theirs in _pairs(wrapped, model):
        if _without_ones(mine.shape) != _without_ones(theirs.shape):
            raise ValueError(
                "The float weights must have the shapes of this model's. Received: "
                f"{theirs.path} with shape {tuple(theirs.shape)} for shape {tuple(mine.shape)}."
            )
    for mine, theirs in _pairs(wrapped, model):
        mine.assign(ops.copy(ops.reshape(theirs.value, mine.shape)))
    weights_changed(wrapped.layers)


def _input_like(x):
    return keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)


def _without_ones(shape):
    """Returns the sizes of a bias, which may have extra trailing axes of size 1."""
    return [size for size in shape if size != 1]


def _model_of_file(wrapped, path):
    rule = "`source` must be a .keras or .weights.h5 file of the float model"
    received = describe(source=str(path))
    if not str(path).endswith((".keras", ".weights.h5")) or not os.path.isfile(path):
        raise ValueError(f"{rule}. {received} There is no such file.")
    try:
        if str(path).endswith(".keras"):
            return keras.saving.load_model(path, compile=False)
        model = _bare_model(wrapped)
        model.load_weights(path)
    except Exception as error:  # a damaged file, another model, or an unknown layer
        raise ValueError(
            f"{rule}. {received} Keras cannot read it ({_cause(error)}). Load it yourself, and "
            "pass the model."
        ) from error
    return model


def _bare_model(wrapped):
    """Returns the float model with its own weights."""
    config = wrapped.provenance.float_config
    if config is None:
        raise RuntimeError(
            "The float model is known only for models made by `speq_keras.wrap`, and this one was "
            "not made by it."
        )
    config, objects = with_live_objects(json.loads(config), wrapped.layers, wrapped.float_classes)
    try:
        model = keras.saving.deserialize_keras_object(config, custom_objects=objects)
    except Exception as error:  # from a third-party `from_config`
        raise ValueError(
            "The float model must be reproducible from its config, which lacks what only this "
            f"process knew. {describe(model=wrapped.name, error=_cause(error))} Register functions "
            "and custom classes with keras.saving.register_keras_serializable, and wrap again."
        ) from error
    build_fused_layers(read_graph(model))
    return model


def _cause(error):
    """Returns, in brief, the cause of nested Keras errors, each of which repeats the config."""
    while error.__context__ is not None:
        error = error.__context__
    return brief(error)


def _pairs(wrapped, float_model):
    """Yields (variable of the `SPEQModel`, variable of the float model)."""
    sources = {name for _, name, _ in wrapped.provenance.origins}
    expand = Expander(lambda name, layer: name in sources, verifies=False)
    graph = read_graph(float_model, expand)
    build_fused_layers(graph)
    nodes = graph.nodes
    float_layers = {node.name: node.operation for node in nodes}
    mine = {layer.name: layer for layer in wrapped.layers}
    for name, float_name, indices in wrapped.provenance.origins:
        if float_name not in float_layers:
            raise ValueError(
                "The float model must have the layers of the one that was wrapped. Received: "
                f"model={float_model.name!r} without layer '{float_name}'."
            )
        layer, source = mine[name], float_layers[float_name]
        was_wrapped = isinstance(source, QuantizedLayer)
        if isinstance(layer, QuantizedLayer) and not was_wrapped:
            layer = layer.layer
        theirs = source.weights
        if indices is not None:
            theirs = [theirs[index] for index in indices]
        if len(layer.weights) != len(theirs):
            raise ValueError(
                "The float model must have the layers of the one that was wrapped. Received: "
                f"layer '{float_name}' with {len(theirs)} instead of {len(layer.weights)} weights."
            )
        yield from zip(layer.weights, theirs, strict=True)
