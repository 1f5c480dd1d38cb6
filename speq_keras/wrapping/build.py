"""Builds the Keras graph that a placement describes."""

import keras
from keras import ops

from speq_keras.graph import map_refs, weights_changed
from speq_keras.layers import QuantizedLayer
from speq_keras.quantizers import ActivationQuantizer


def build_graph(canonical, placement, weight_specs):
    """Calls every layer of a canonical graph, with quantizers where the placement puts them.

    Args:
        canonical: A `Canonical`.
        placement: A `Placement`.
        weight_specs: {id(operation): {attribute: WeightQuantizer}}: what `QuantizedLayer` wraps.

    Returns:
        `(inputs, outputs)`: structures of KerasTensors like those of the float model.
    """
    graph = canonical.graph
    values, made = {}, {}

    def quantized(index, x):
        for spec in placement.at.get(index, []):
            quantizer = layer_of(spec)
            # A quantizer with a `call` of its own need not know the argument.
            knows = type(quantizer).call is ActivationQuantizer.call
            is_average = knows and index in placement.averages
            x = quantizer(x, halves_up=True) if is_average else quantizer(x)
        return x

    def layer_of(spec):
        if id(spec) not in made:
            existing = spec.quantizer.name == spec.name
            made[id(spec)] = spec.quantizer if existing else spec.quantizer.copy(name=spec.name)
        return made[id(spec)]

    def input_of(index):
        tensor = graph.tensors[index]
        values[index] = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
        return values[index]

    inputs = map_refs(graph.inputs, input_of)
    for index in graph.input_indices:
        values[index] = quantized(index, values[index])

    operations, requantized = {}, {}

    def read(node, index):
        spec = placement.between.get((index, placement.demands.get((id(node), index))))
        if spec is None:
            return values[index]
        if id(spec) not in requantized:
            requantized[id(spec)] = layer_of(spec)(values[index])
        return requantized[id(spec)]

    for node in graph.nodes:
        operation = node.operation
        if id(operation) not in operations:
            quantizers = weight_specs.get(id(operation))
            operations[id(operation)] = (
                QuantizedLayer(operation, quantizers, trainable=operation.trainable)
                if quantizers
                else operation
            )
        args, kwargs = (
            map_refs(part, lambda index, node=node: read(node, index))
            for part in (node.args, node.kwargs)
        )
        outputs = operations[id(operation)](*args, **kwargs)
        for index, x in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
            values[index] = quantized(index, x)
    return inputs, map_refs(graph.outputs, values.__getitem__)


def copy_weights(layers, origins, originals):
    """Copies the float weights into a wrapped model's layers, and starts trained weight ranges.

    Args:
        layers: The wrapped model's layers.
        origins: From `Canonical`.
        originals: From `Canonical`.
    """
    for layer in layers:
        origin = origins.get(layer.name)
        if origin is None:
            continue
        original = originals[layer.name]
        was_wrapped = isinstance(original, QuantizedLayer)
        target = layer.layer if isinstance(layer, QuantizedLayer) and not was_wrapped else layer
        sources = original.weights
        if origin.indices is not None:
            sources = [sources[i] for i in origin.indices]
        for variable, source in zip(target.weights, sources, strict=True):
            variable.assign(ops.copy(source.value))
            if not source.trainable:  # of a layer inside one that stays whole, no config tells it
                variable.trainable = False
        if target is not layer:
            for attribute, quantizer in layer.quantizers.items():
                quantizer.start_from(layer.variable(attribute))
    weights_changed(layers)
