"""The float graph in the form in which it will be deployed.

Three layers hide a tensor that integer kernels have to round, and are taken apart:

    Conv2D(activation="swish")    ->  Conv2D, sigmoid, Multiply
    Dense(activation="softmax")   ->  Dense, softmax            (the teacher needs the logits, too)
    SeparableConv2D               ->  DepthwiseConv2D, Conv2D 1×1

All layers are fresh copies; `origins` remembers where each one's weights come from.
"""

import dataclasses

from keras import layers, tree

from speq_keras.graph import Graph, Ref, copy_operation, output_specs
from speq_keras.layers import QuantizedLayer
from speq_keras.quantizers import Quantizer
from speq_keras.wrapping.kinds import function_name

_SEPARABLE = {
    layers.SeparableConv1D: (layers.DepthwiseConv1D, layers.Conv1D),
    layers.SeparableConv2D: (layers.DepthwiseConv2D, layers.Conv2D),
}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the weights of a layer come from: a layer of the float model and the indices in it."""

    layer: str
    indices: tuple | None = None


@dataclasses.dataclass
class Canonical:
    """The rewritten graph, and for every layer with weights its `Origin` and original layer."""

    graph: Graph
    origins: dict
    originals: dict


def canonicalize(graph, is_float, splits_swish):
    """Rewrites a float graph.

    Args:
        graph: A `Graph` with the float model's own layers; they are not changed.
        is_float: Function of a layer's name: True for layers that stay as they are, in float.
        splits_swish: Whether swish is taken apart; not worth it where activations stay float.

    Returns:
        A `Canonical`.
    """
    return _Rewriter(graph, is_float, splits_swish).run()


class _Rewriter:
    def __init__(self, graph, is_float, splits_swish):
        self.old = graph
        self.is_float = is_float
        self.splits_swish = splits_swish
        self.new = Graph(name=graph.name)
        self.origins, self.originals = {}, {}
        self.copies = {}
        self.names = {node.name for node in graph.nodes}

    def run(self):
        refs = {}
        for index in self.old.input_indices:
            tensor = self.old.tensors[index]
            refs[index] = self.new.add_tensor(tensor.shape, tensor.dtype, name=tensor.name)
        called = set()
        for node in self.old.nodes:
            args, kwargs = _renumber((node.args, node.kwargs), refs)
            outputs = self.rewrite(node, args, kwargs, again=id(node.operation) in called)
            called.add(id(node.operation))
            refs.update(zip(node.outputs, outputs, strict=True))
        self.new.inputs = _renumber(self.old.inputs, refs)
        self.new.outputs = _renumber(self.old.outputs, refs)
        return Canonical(self.new, self.origins, self.originals)

    def rewrite(self, node, args, kwargs, again):
        """Appends what becomes of one node; returns its new outputs."""
        operation, name = node.operation, node.name
        if self.is_float(name) or isinstance(operation, QuantizedLayer | Quantizer):
            return self.call(self.copy(operation, name), name, args, kwargs)
        if type(operation) in _SEPARABLE:
            outputs = self.separable(operation, name, args, kwargs)
            return self.activation(operation, name, outputs)
        if _has_fused_activation(operation):
            copy = self.copy(operation, name, activation="linear")
            return self.activation(operation, name, self.call(copy, name, args, kwargs))
        if function_name(operation) == "silu" and self.splits_swish:
            return self.swish(self.unique(name) if again else name, args[0], operation)
        if function_name(operation) is not None and again:
            # A function has no weights to share, and one call per layer keeps its input
            # unambiguous.
            fresh = self.unique(name)
            return self.call(copy_operation(operation, name=fresh), fresh, args, kwargs)
        return self.call(self.copy(operation, name), name, args, kwargs)

    def copy(self, operation, name, **changes):
        """Returns the one copy of an operation, however often it is called."""
        if id(operation) not in self.copies:
            copy = copy_operation(operation, name=name, **changes)
            self.copies[id(operation)] = copy
            if isinstance(operation, layers.Layer) and operation.weights:
                self.remember(copy, operation, Origin(name))
        return self.copies[id(operation)]

    def remember(self, copy, original, origin):
        self.origins[copy.name] = origin
        self.originals[copy.name] = original

    def call(self, operation, name, args, kwargs):
        specs = output_specs(self.new, operation, args, kwargs)
        return self.new.add_node(operation, name, args, kwargs, specs)

    def activation(self, operation, name, outputs):
        """Appends the activation function that was fused into `operation`, if any."""
        if not _has_fused_activation(operation):
            return outputs
        function = operation.activation
        name = self.unique(f"{name}_{getattr(function, '__name__', 'activation')}")
        layer = layers.Activation(function, dtype=operation.dtype_policy, name=name)
        if function_name(layer) == "silu" and self.splits_swish:
            return self.swish(name, outputs[0], operation)
        return self.call(layer, name, outputs, {})

    def swish(self, name, x, operation):
        dtype = getattr(operation, "dtype_policy", None)
        sigmoid = layers.Activation("sigmoid", dtype=dtype, name=self.unique(f"{name}_sigmoid"))
        multiply = layers.Multiply(dtype=dtype, name=name)
        (gate,) = self.call(sigmoid, sigmoid.name, [x], {})
        return self.call(multiply, name, [[x, gate]], {})

    def separable(self, operation, name, args, kwargs):
        if id(operation) not in self.copies:
            self.copies[id(operation)] = self.split_separable(operation, name)
        depthwise, pointwise = self.copies[id(operation)]
        outputs = self.call(depthwise, depthwise.name, args, kwargs)
        return self.call(pointwise, pointwise.name, outputs, {})

    def split_separable(self, operation, name):
        depthwise_class, pointwise_class = _SEPARABLE[type(operation)]
        shared = {
            "data_format": operation.data_format,
            "dtype": operation.dtype_policy,
            "trainable": operation.trainable,
        }
        depthwise = depthwise_class(
            operation.kernel_size,
            strides=operation.strides,
            padding=operation.padding,
            dilation_rate=operation.dilation_rate,
            depth_multiplier=operation.depth_multiplier,
            use_bias=False,
            depthwise_regularizer=operation.depthwise_regularizer,
            name=self.unique(f"{name}_depthwise"),
            **shared,
        )
        pointwise = pointwise_class(
            operation.filters,
            1,
            use_bias=operation.use_bias,
            kernel_regularizer=operation.pointwise_regularizer,
            bias_regularizer=operation.bias_regularizer,
            name=name,
            **shared,
        )
        self.remember(depthwise, operation, Origin(name, (0,)))
        count = len(operation.weights)
        self.remember(pointwise, operation, Origin(name, tuple(range(1, count))))
        return depthwise, pointwise

    def unique(self, name):
        candidate, number = name, 0
        while candidate in self.names:
            number += 1
            candidate = f"{name}_{number}"
        self.names.add(candidate)
        return candidate


def _has_fused_activation(operation):
    if not isinstance(operation, layers.Layer) or isinstance(operation, layers.Activation):
        return False
    if not operation.weights:
        return False
    return getattr(getattr(operation, "activation", None), "__name__", "linear") != "linear"


def _renumber(structure, refs):
    return tree.map_structure(
        lambda leaf: refs[leaf.index] if isinstance(leaf, Ref) else leaf, structure
    )
