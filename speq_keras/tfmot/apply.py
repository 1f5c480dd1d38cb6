"""`quantize_apply` and `quantize_model` for Keras 3: turns an annotated model into a `SPEQModel`.

without_annotations   annotated model -> float model, and the configs
Layout                which tensors tfmot rounds          layout.py
canonicalize, build   the graph with quantizers     ../wrapping
"""

import dataclasses

import keras

from speq_keras._checks import describe
from speq_keras.entry import assemble
from speq_keras.graph import copy_operation, read_graph
from speq_keras.settings import TrainingSettings
from speq_keras.tfmot.annotate import (
    QuantizeAnnotate,
    check_model,
    cloned,
    quantize_annotate_model,
)
from speq_keras.tfmot.importing import tf_keras, tfmot
from speq_keras.tfmot.layout import Layout
from speq_keras.tfmot.quantizers import FollowedActivations
from speq_keras.wrapping import QuantizedGraph
from speq_keras.wrapping.build import build_graph
from speq_keras.wrapping.canonical import canonicalize
from speq_keras.wrapping.placement import Placement, Spec

_original = tfmot.quantization.keras
_Scheme = _original.default_8bit.Default8BitQuantizeScheme


def quantize_model(to_quantize, quantized_layer_name_prefix="quant_"):
    """Quantizes all layers of a model with tfmot's default 8-bit scheme.

    Args:
        to_quantize: A Functional or built Sequential Keras 3 model; it is not changed. tf_keras
            models are passed to tfmot itself.
        quantized_layer_name_prefix: Prefix for the names of the quantized layers.

    Returns:
        A `SPEQModel` without distillation, not compiled.

    Raises:
        ValueError: If `to_quantize` is not such a model.
        RuntimeError: If tfmot's scheme does not know a layer.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
        >>> [layer.name for layer in quantize_model(model).layers[1:]]
        ['quantize_layer', 'quant_dense', 'quant_dense_post_activation']
    """
    if isinstance(to_quantize, tf_keras.Model):
        return _original.quantize_model(to_quantize, quantized_layer_name_prefix)
    check_model("to_quantize", to_quantize)
    annotated = quantize_annotate_model(to_quantize)
    return quantize_apply(annotated, quantized_layer_name_prefix=quantized_layer_name_prefix)


def quantize_apply(model, scheme=None, quantized_layer_name_prefix="quant_"):
    """Quantizes the annotated layers of a model as tfmot does, value for value.

    Args:
        model: A Keras 3 model with annotated layers (`quantize_annotate_layer`); it is not changed.
            tf_keras models are passed to tfmot itself.
        scheme: tfmot's `Default8BitQuantizeScheme`, or None, which is the same.
        quantized_layer_name_prefix: Prefix for the names of the annotated layers.

    Returns:
        A `SPEQModel` without distillation, not compiled.

    Raises:
        ValueError: If `model` is not such a model, no layer is annotated, or `scheme` is a
            different one.
        RuntimeError: If an annotated layer has no config, and tfmot's scheme does not know it.

    Example:
        >>> from speq_keras.tfmot.annotate import quantize_annotate_layer
        >>> dense = quantize_annotate_layer(keras.layers.Dense(2, name="dense"))
        >>> model = quantize_apply(keras.Sequential([keras.Input((3,)), dense]))
        >>> model.plan().row("quant_dense").w_bits
        8
    """
    if isinstance(model, tf_keras.Model):
        return _original.quantize_apply(model, scheme or _Scheme(), quantized_layer_name_prefix)
    check_model("model", model)
    if scheme is not None and type(scheme) is not _Scheme:
        raise ValueError(
            "`scheme` must be tfmot's Default8BitQuantizeScheme, or None. "
            f"{describe(scheme=scheme)} Annotate layers with a QuantizeConfig, or use "
            "speq_keras.wrap for other widths."
        )
    prefix = quantized_layer_name_prefix or ""
    float_model, annotated = without_annotations(model)
    if not annotated:
        raise ValueError(
            "At least one layer of `model` must be annotated. "
            f"{describe(model=model.name)} Use quantize_annotate_layer or quantize_annotate_model."
        )
    graph = quantized_graph(float_model, annotated, scheme or _Scheme(), prefix)
    return assemble(float_model, graph, TrainingSettings(distillation=None), name=model.name)


def without_annotations(model):
    """Returns a float model without annotations, and {layer name: tfmot config or None}."""
    annotated = {}

    def unwrapped(layer):
        if not isinstance(layer, QuantizeAnnotate):
            return copy_operation(layer)
        annotated[layer.layer.name] = layer.quantize_config
        return copy_operation(layer.layer)

    return cloned(model, unwrapped), annotated


def quantized_graph(float_model, annotated, scheme, prefix):
    """Builds the graph of a float model with quantizers in the same places as in tfmot.

    Args:
        float_model: The Keras 3 model.
        annotated: {layer name: tfmot `QuantizeConfig` or None}.
        scheme: A tfmot `QuantizeScheme`.
        prefix: Prefix for the names of the annotated layers.

    Returns:
        A `QuantizedGraph`.
    """
    graph = read_graph(float_model)
    layout = Layout(graph, annotated, scheme.get_quantize_registry())
    names = {node.name: prefix + node.name for node in graph.nodes if node.name in annotated}
    placer = _Placer(layout)
    for node in graph.nodes:
        placer.decide(node)
        node.name = names.get(node.name, node.name)
    canonical = canonicalize(graph, is_float=lambda node: False, splits_swish=False)
    placer.place(canonical.graph)
    inputs, outputs = build_graph(canonical, placer.placement, placer.weights)
    # The float model's layers have no prefix.
    old_names = {new: old for old, new in names.items()}
    canonical.origins = {
        name: dataclasses.replace(origin, layer=old_names.get(origin.layer, origin.layer))
        for name, origin in canonical.origins.items()
    }
    return QuantizedGraph(inputs, outputs, {}, canonical)


class _Placer:
    """Puts the quantizers of a `Layout` on the tensors of a canonical graph."""

    def __init__(self, layout):
        self.layout = layout
        self.parts = {}  # id(float layer): LayerQuantizers of its parts
        self.specs = {}  # (id(float layer), which): Spec, the same for all calls of the layer
        self.placement = Placement(at={}, between={}, demands={})
        self.weights = {}

    def decide(self, node):
        """Queries the layout for a node of the float graph; must run before nodes are renamed."""
        layer = node.operation
        if id(layer) in self.parts or not isinstance(layer, keras.layers.Layer):
            return
        if isinstance(layer, keras.layers.SeparableConv1D | keras.layers.SeparableConv2D):
            self.parts[id(layer)] = self.layout.quantizers_of_parts(node)
        else:
            self.parts[id(layer)] = (self.layout.quantizers(node),)

    def place(self, graph):
        """Fills `placement` and `weights`."""
        for index in self.layout.quantized_inputs:
            number = self.layout.graph.input_indices.index(index)
            quantizer = FollowedActivations(rule="all_values", bits=8)
            name = "quantize_layer" + (f"_{number}" if number else "")
            self.placement.at[graph.input_indices[number]] = [Spec(quantizer, name)]
        by_origin = {}
        for node in graph.nodes:
            by_origin.setdefault(id(node.origin), []).append(node)
        for nodes in by_origin.values():
            self.place_layer(nodes[0].origin, nodes)

    def place_layer(self, origin, nodes):
        """Places the quantizers of one layer of the float model, which became `nodes`."""
        parts = self.parts.get(id(origin.operation))
        if parts is None:
            return
        first = nodes[0]
        if len(parts) == 2:
            self.weights[id(first.operation)] = parts[0].weights
            self.add(first.outputs[0], origin, "depthwise_post_activation", parts[0].after)
            first = nodes[1]
        found = parts[-1]
        if found.weights:
            self.weights[id(first.operation)] = found.weights
        if found.before is not None:
            self.place_before(nodes, first, origin, found.before)
        self.add(nodes[-1].outputs[0], origin, "post_activation", found.after)
        self.add(nodes[-1].outputs[0], origin, "output", found.output)

    def place_before(self, nodes, first, origin, quantizer):
        if nodes[-1] is not first:
            self.add(first.outputs[0], origin, "pre_activation", quantizer)
            return
        # An activation layer has its own quantizer, even if others read the tensor.
        index, reader = first.inputs[0], id(first)
        self.placement.demands[reader, index] = reader
        self.placement.between[index, reader] = self.spec(origin, "pre_activation", quantizer)

    def add(self, index, origin, which, quantizer):
        if quantizer is not None:
            spec = self.spec(origin, which, quantizer)
            self.placement.at.setdefault(index, []).append(spec)

    def spec(self, origin, which, quantizer):
        key = id(origin.operation), which
        if key not in self.specs:
            self.specs[key] = Spec(quantizer, f"{origin.name}_{which}")
        return self.specs[key]
