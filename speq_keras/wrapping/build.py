"""Builds the Keras graph that a placement describes."""

import functools

import keras
from keras import ops

from speq_keras.graph import map_refs, weights_changed
from speq_keras.layers import QuantizedLayer
from speq_keras.quantizers import ActivationQuantizer
from speq_keras.recurrent import quantized_recurrent


def build_graph(canonical, placement, weight_specs, rounding=frozenset()):
    """Calls every layer of a canonical graph, inserting the quantizers of the placement.

    Args:
        canonical: A `Canonical`.
        placement: A `Placement`.
        weight_specs: {id(operation): {attribute: WeightQuantizer}}: for `QuantizedLayer`.
        rounding: ids of the recurrent operations that round inside.

    Returns:
        `(inputs, outputs)`: structures of KerasTensors like those of the float model.
    """
    graph = canonical.graph
    builder = _Builder(graph, placement, weight_specs, rounding)
    inputs = map_refs(graph.inputs, builder.make_input)
    for index in graph.input_indices:
        builder.round(index)
    for node in graph.nodes:
        builder.call(node)
    return inputs, map_refs(graph.outputs, builder.values.__getitem__)


class _Builder:
    """Makes the KerasTensors of a graph, `values`, one at a time."""

    def __init__(self, graph, placement, weight_specs, rounding):
        self.graph, self.placement, self.weight_specs = graph, placement, weight_specs
        self.rounding = rounding
        self.values, self.requantized = {}, {}  # by tensor; by id of a `Spec`
        self.layers, self.quantizers = {}, {}  # by id of an operation; by id of a `Spec`

    def make_input(self, index):
        tensor = self.graph.tensors[index]
        shape, dtype = tensor.shape, tensor.dtype
        self.values[index] = keras.Input(batch_shape=shape, dtype=dtype, name=tensor.name)
        return self.values[index]

    def round(self, index):
        """Applies the quantizers of a tensor."""
        for spec in self.placement.at.get(index, []):
            quantizer = self.quantizer_of(spec)
            # A quantizer with its own `call` may not have the argument.
            knows = type(quantizer).call is ActivationQuantizer.call
            options = {"halves_up": True} if knows and index in self.placement.averages else {}
            self.values[index] = quantizer(self.values[index], **options)

    def quantizer_of(self, spec):
        """Returns the layer of a `Spec`, which several tensors may share."""
        if id(spec) not in self.quantizers:
            quantizer = spec.quantizer
            existing = quantizer.name == spec.name
            self.quantizers[id(spec)] = quantizer if existing else quantizer.copy(name=spec.name)
        return self.quantizers[id(spec)]

    def read(self, node, index):
        """Returns a tensor as seen by a node: possibly rounded again."""
        demand = self.placement.demands.get((id(node), index))
        spec = self.placement.between.get((index, demand))
        if spec is None:
            return self.values[index]
        if id(spec) not in self.requantized:
            self.requantized[id(spec)] = self.quantizer_of(spec)(self.values[index])
        return self.requantized[id(spec)]

    def layer_of(self, operation):
        """Returns an operation, or its `QuantizedLayer` if it has quantized weights."""
        if id(operation) not in self.layers:
            quantizers = self.weight_specs.get(id(operation))
            make = quantized_recurrent if id(operation) in self.rounding else QuantizedLayer
            self.layers[id(operation)] = (
                make(operation, quantizers, trainable=operation.trainable)
                if quantizers
                else operation
            )
        return self.layers[id(operation)]

    def call(self, node):
        """Calls the operation of a node."""
        args, kwargs = map_refs((node.args, node.kwargs), functools.partial(self.read, node))
        outputs = self.layer_of(node.operation)(*args, **kwargs)
        for index, x in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
            self.values[index] = x
            self.round(index)


def copy_weights(layers, origins, originals):
    """Copies the float weights into a wrapped model's layers, and sets initial weight ranges.

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
            # A bias may have extra trailing axes of size 1.
            variable.assign(ops.copy(ops.reshape(source.value, variable.shape)))
            if not source.trainable:  # not in the config of a layer inside one that stays whole
                variable.trainable = False
        if target is not layer:
            for attribute, quantizer in layer.quantizers.items():
                quantizer.start_from(layer.variable(attribute))
    weights_changed(layers)
