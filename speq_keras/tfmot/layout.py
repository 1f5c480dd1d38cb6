"""tfmot's default 8-bit layout: layers that one kernel computes are rounded together.

The rules are those of tfmot's `Default8BitQuantizeLayoutTransform`, with its order and effects,
intended or not, on a Keras 3 graph:

    Conv, BatchNormalization              rounded after the normalization
    Conv, BatchNormalization, ReLU        rounded after the ReLU
    Dense, BatchNormalization             rounded after the normalization (and a ReLU once more)
    Concatenate of 2 to 6 tensors         rounded after it; its inputs are not
    Add, Conv or Dense, then ReLU layer   rounded after the ReLU; the Conv or Dense keeps float
                                          weights, as it does in tfmot

A rule applies if all its layers are annotated, without a user's config (except for the last two),
and the tensors between them have one reader. One thing differs: tfmot feeds a Concatenate its
tensors in the order of the model's layers, whatever their order in the program.
"""

import dataclasses

from keras import layers

from speq_keras.operations import function_name, fused_function, name_of
from speq_keras.tfmot.quantizers import FollowedActivations
from speq_keras.tfmot.translate import LayerQuantizers, OldView, quantizers_of

# The last part of a separable convolution; tfmot puts a reshape after that of a 1D one.
_LAST_PARTS = {"SeparableConv2D": "Conv2D", "SeparableConv1D": "Conv2D and reshape"}
_CONVOLUTIONS = ("Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "Conv2D and reshape")
_BEFORE_RELU = ("Add", "Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "Dense")
_NORMALIZATION = ("BatchNormalization",)
_MOST_CONCATENATED = 6


@dataclasses.dataclass
class LayerLayout:
    """What happens to one annotated layer.

    Attributes:
        config: The user's tfmot `QuantizeConfig`, "nothing", "output", or None: the registry's.
        rounds_activation: Whether the layer's final activation function is quantized.
        rounds_output: Whether the config's output quantizer is kept.
    """

    config: object = None
    rounds_activation: bool = True
    rounds_output: bool = True


class Layout:
    """The layouts of all annotated layers of a float graph.

    Args:
        graph: A `Graph` with the layers of the float model.
        annotated: {layer name: tfmot `QuantizeConfig` or None}.
        registry: tfmot's `Default8BitQuantizeRegistry`.
    """

    def __init__(self, graph, annotated, registry):
        self.graph, self.registry = graph, registry
        self.readers = graph.readers()
        self.layouts = {name: LayerLayout(config) for name, config in annotated.items()}
        self.calls = {}
        for node in graph.nodes:
            self.calls.setdefault(node.name, []).append(node)
        self.quantized_inputs = {
            index
            for index in graph.input_indices
            if any(reader.name in annotated for reader in self.readers[index])
        }
        self.feeders = set(self.find_feeders())
        self.apply_rules()

    def find_feeders(self):
        """Yields the names of float layers that make the only input of an annotated layer."""
        for name in self.layouts:
            nodes = self.calls.get(name, [])
            if len(nodes) == 1 and len(nodes[0].inputs) == 1:
                producer = self.graph.tensors[nodes[0].inputs[0]].producer
                if producer is not None and producer.name not in self.layouts:
                    yield producer.name

    # ---- rules ---------------------------------------------------------------------------------

    def apply_rules(self):
        """Applies the rules of the module, in order."""
        heads = [node for node in self.graph.nodes if self.takes_rules(node)]
        relus = [node for node in heads if _is_relu(node.operation)]
        normalizations = [node for node in heads if self.class_name(node) in _NORMALIZATION]
        for node in relus:
            self.round_behind(node, self.before(node, _NORMALIZATION), _CONVOLUTIONS)
        for node in normalizations:
            self.round_behind(None, node, _CONVOLUTIONS)
        for node in heads:
            if self.class_name(node) == "Concatenate":
                self.round_behind_concatenate(node)
        for node in normalizations:
            self.round_behind(None, node, ("Dense",))
        for node in relus:
            maker = self.before(node, _BEFORE_RELU)
            if maker is not None:
                self.layouts[maker.name].config = "nothing"

    def takes_rules(self, node):
        """Whether a node belongs to an annotated layer that is called once."""
        return node.name in self.layouts and len(self.calls[node.name]) == 1

    def class_name(self, node):
        """Returns Keras' name of a layer's class; if tfmot splits the layer, of the last part."""
        name = name_of(node.operation)
        is_split = node.name in self.layouts and self.layouts[node.name].config is None
        return _LAST_PARTS.get(name, name) if is_split else name

    def before(self, node, class_names):
        """Returns the node that makes the only input of `node`, if it has one of these classes."""
        if node is None or len(node.inputs) != 1:
            return None
        maker = self.graph.tensors[node.inputs[0]].producer
        if maker is None or not self.takes_rules(maker) or self.is_shared(node.inputs[0]):
            return None
        return maker if self.class_name(maker) in class_names else None

    def is_shared(self, index):
        """Whether a tensor has several readers, counting an output of the model as one."""
        names = {node.name for node in self.readers[index]}
        return len(names) + self.graph.output_indices.count(index) > 1

    def round_behind(self, relu, normalization, class_names):
        """Rounds once after a layer, its normalization, and a ReLU (or None) after both."""
        layer = self.before(normalization, class_names)
        if layer is None or fused_function(layer.operation) is not None:
            return
        found = [self.layouts[n.name] for n in (relu, normalization, layer) if n is not None]
        if any(layout.config is not None for layout in found):
            return
        found[-1].rounds_activation = False
        found[-2].config = "output" if relu is None else "nothing"

    def round_behind_concatenate(self, node):
        """Rounds the output of a Concatenate, but not its inputs."""
        makers = [self.graph.tensors[index].producer for index in node.inputs]
        if not 2 <= len(set(node.inputs)) == len(makers) <= _MOST_CONCATENATED:
            return
        for index, maker in zip(node.inputs, makers, strict=True):
            is_known = index in self.quantized_inputs if maker is None else self.has_config(maker)
            if not is_known or self.is_shared(index):
                return
        for index, maker in zip(node.inputs, makers, strict=True):
            if maker is None:
                self.quantized_inputs.discard(index)
            else:
                self.layouts[maker.name].rounds_output = False
        if self.layouts[node.name].config is None:
            self.layouts[node.name].config = "output"

    def has_config(self, node):
        """Whether tfmot quantizes a node, by the user's config or its own."""
        if not self.takes_rules(node):
            return False
        is_split = self.class_name(node) in _LAST_PARTS.values()
        has_own = self.layouts[node.name].config is not None
        return has_own or is_split or self.registry.supports(OldView(node.operation))

    # ---- quantizers ----------------------------------------------------------------------------

    def quantizers(self, node):
        """Returns the `LayerQuantizers` of a node that is not a separable convolution.

        Raises:
            RuntimeError: If it is annotated, and neither has a config nor is known to tfmot.
        """
        layer = node.operation
        view = OldView(layer)
        if node.name in self.feeders:
            if not self.registry.supports(view):
                return LayerQuantizers()
            found = quantizers_of(self.registry.get_quantize_config(view), layer)
            return dataclasses.replace(found, weights={})
        layout = self.layouts.get(node.name, LayerLayout("nothing"))
        if layout.config == "nothing":
            return LayerQuantizers()
        if layout.config == "output":
            moving_average = FollowedActivations(rule="moving_average", bits=8)
            return LayerQuantizers(output=moving_average if layout.rounds_output else None)
        if layout.config is None and not self.registry.supports(view):
            raise RuntimeError(
                "Every annotated layer must be one that tfmot's scheme quantizes, or have a "
                f"QuantizeConfig. Received: layer '{node.name}' ({type(layer).__name__}). Pass one "
                "to quantize_annotate_layer, or do not annotate the layer."
            )
        config = layout.config or self.registry.get_quantize_config(view)
        return _as_laid_out(quantizers_of(config, layer), layout)

    def quantizers_of_parts(self, node):
        """Returns the `LayerQuantizers` of both parts of a separable convolution."""
        layout = self.layouts.get(node.name)
        if layout is None:
            return LayerQuantizers(), LayerQuantizers()
        if layout.config not in (None, "nothing"):
            found = quantizers_of(layout.config, node.operation)
            kernels = [found.weights.get(f"{part}_kernel") for part in ("depthwise", "pointwise")]
            first, last = ({"kernel": kernel} if kernel else {} for kernel in kernels)
            last = dataclasses.replace(found, weights=last)
            return LayerQuantizers(weights=first), _as_laid_out(last, layout)
        # The layers that tfmot splits it into, 2D ones also for a 1D one.
        parts = layers.DepthwiseConv2D(1), layers.Conv2D(1, 1, activation=node.operation.activation)
        for part in parts:
            part.build((None, 1, 1, 1))
        first, last = (
            quantizers_of(self.registry.get_quantize_config(OldView(part)), part) for part in parts
        )
        return first, LayerQuantizers() if layout.config == "nothing" else _as_laid_out(
            last, layout
        )


def _is_relu(operation):
    """Whether an operation is a ReLU without a slope; tfmot ignores caps."""
    is_layer = name_of(operation) == "ReLU" and isinstance(operation, layers.Layer)
    if is_layer:
        return not operation.negative_slope and not operation.threshold
    return function_name(operation) == "relu"


def _as_laid_out(found, layout):
    if not layout.rounds_activation:
        found = dataclasses.replace(found, before=None, after=None)
    return found if layout.rounds_output else dataclasses.replace(found, output=None)
