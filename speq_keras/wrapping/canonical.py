"""Rewrites the float graph into the form in which it will be deployed.

Some layers hide a tensor that integer kernels have to round. They are taken apart:

    Conv2D(activation="swish")    ->  Conv2D, sigmoid, Multiply
    Dense(activation="softmax")   ->  Dense, softmax            (the teacher needs the logits, too)
    SeparableConv2D               ->  DepthwiseConv2D, Conv2D 1×1
    Add, Multiply, ... of n > 2   ->  n − 1 of two
    Average of n                  ->  Add, Rescaling(1/n)
    CustomScaleLayer(s)           ->  Rescaling(s), Add         (in Keras' InceptionResNetV2)
    x · s, x / s, x + s, x − s    ->  Rescaling                 (folds into the layer before it)
    Conv2D(activation=LeakyReLU())->  Conv2D, LeakyReLU
    ops.leaky_relu, "leaky_relu"  ->  LeakyReLU                 (whose slope `settle` moves)
    split, unstack                ->  slices
    transpose(x, (2, 0, 1, 3))[0] ->  slices, transpose         (the batch stays the first axis)
    stack                         ->  expand_dims, Concatenate
    ops.maximum(x, y)             ->  Maximum
    ops.pad(x, ..., 0.5)          ->  pad with zeros between x − 0.5 and + 0.5
    x * self.gamma                ->  ChannelOperation          (likewise +, -, /)
    ops.matmul(x, self.kernel)    ->  Dense
    cast to its own type          ->  nothing
    EinsumDense("abc,bd->adc")    ->  transpose, EinsumDense("acb,bd->acd"), transpose

All layers are fresh copies; `origins` records where the weights of each one come from.
"""

import dataclasses

from keras import layers

from speq_keras.fused_batch_norm import fused
from speq_keras.graph import (
    Graph,
    Names,
    Node,
    copy_operation,
    map_refs,
    output_specs,
    refs_in,
)
from speq_keras.layers import QuantizedLayer
from speq_keras.operations import (
    build_fused_layers,
    function_name,
    fused_function,
    fused_layer,
    make_operation,
    name_of,
    negative_slope,
)
from speq_keras.quantizers import Quantizer
from speq_keras.wrapping.constants import as_rescaling
from speq_keras.wrapping.own_weights import find_readers
from speq_keras.wrapping.pieces import PIECES, dense_order

_SEPARABLE = {
    layers.SeparableConv1D: (layers.DepthwiseConv1D, layers.Conv1D),
    layers.SeparableConv2D: (layers.DepthwiseConv2D, layers.Conv2D),
}
# Functions x · gate(x): {function: gate}.
_GATES = {"silu": "sigmoid", "hard_silu": "hard_sigmoid"}
_REMADE = (*_GATES, "leaky_relu")
_MERGES = {name: getattr(layers, name) for name in "Add Multiply Average Maximum Minimum".split()}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a layer's weights come from: a layer of the float model and the indices in it."""

    layer: str
    indices: tuple | None = None


@dataclasses.dataclass
class Canonical:
    """The rewritten graph, and for every layer with weights its `Origin` and original layer."""

    graph: Graph
    origins: dict
    originals: dict


def canonicalize(graph, is_float, splits_swish, fuses_batch_norm=False):
    """Rewrites a float graph.

    Args:
        graph: A `Graph` with the float model's own layers; they are not changed.
        is_float: Function of a node: True for layers that stay in floating point unchanged.
        splits_swish: Whether swish and hard swish are taken apart; not worthwhile if activations
            stay float.
        fuses_batch_norm: Whether to copy BatchNormalization as `fused_batch_norm` does.

    Returns:
        A `Canonical`.
    """
    return _Rewriter(graph, is_float, splits_swish, fuses_batch_norm).run()


class _Rewriter:
    def __init__(self, graph, is_float, splits_swish, fuses_batch_norm):
        self.old = graph
        self.node = None  # the node being rewritten
        # By operation: a layer has one copy, however often it is called.
        self.floats = {id(node.operation) for node in graph.nodes if is_float(node)}
        self.weight_readers = find_readers(graph, is_float)
        makes_output = {id(graph.tensors[index].producer) for index in graph.output_indices}
        self.last = {id(node.operation) for node in graph.nodes if id(node) in makes_output}
        self.splits_swish = splits_swish
        self.fuses_batch_norm = fuses_batch_norm
        self.new = Graph(name=graph.name)
        self.origins, self.originals = {}, {}
        self.copies = {}
        self.outer = {}  # id of a layer used as activation function: the layer around it
        self.names = Names(node.name for node in graph.nodes)

    def run(self):
        build_fused_layers(self.old)
        refs = {}
        for index in self.old.input_indices:
            tensor = self.old.tensors[index]
            refs[index] = self.new.add_tensor(tensor.shape, tensor.dtype, name=tensor.name)
        called = set()
        absorbed = {id(reader.weight) for reader in self.weight_readers.values()}
        for node in self.old.nodes:
            if id(node) in absorbed:
                continue
            self.node = node
            if id(node) in self.weight_readers:
                outputs = self.with_weight(self.weight_readers[id(node)], refs)
            else:
                args, kwargs = map_refs((node.args, node.kwargs), refs.__getitem__)
                outputs = self.rewrite(node, args, kwargs, again=id(node.operation) in called)
            called.add(id(node.operation))
            refs.update(zip(node.outputs, outputs, strict=True))
        self.new.inputs = map_refs(self.old.inputs, refs.__getitem__)
        self.new.outputs = map_refs(self.old.outputs, refs.__getitem__)
        self.new.drop_unread()
        return Canonical(self.new, self.origins, self.originals)

    def rewrite(self, node, args, kwargs, again):
        """Appends the replacement of one node; returns its new outputs."""
        operation, name = node.operation, node.name
        stays = id(operation) in self.floats or isinstance(operation, QuantizedLayer | Quantizer)
        inner = fused_layer(operation)
        if inner is not None and stays:
            self.floats.add(id(inner))
        if name_of(operation) == "Activation" and inner is not None:
            name = self.names.unique(name) if again and not inner.weights else name
            return self.activation_layer(operation, name, name, args, kwargs)
        if self.changes_no_type(operation, args):
            return refs_in(args)
        if name_of(operation) in PIECES:
            outputs = PIECES[name_of(operation)](self, operation, name, args, kwargs)
            if outputs is not None:
                return outputs
        if stays and inner is None and not self.hides_logits(operation):
            return self.call(self.copy(operation, name), name, args, kwargs)
        rescaling = as_rescaling(self.new, operation, args, kwargs)
        if rescaling is not None and not self.reads_mask():  # a layer would pass it on
            dtype = self.old.tensors[node.outputs[0]].dtype
            return self.rescaling(rescaling, name, refs_in((args, kwargs)), again, dtype)
        is_layer = isinstance(operation, layers.Layer)
        if (is_layer and name_of(operation) in _MERGES) or _is_scaled_sum(operation):
            return self.merge(operation, name, refs_in((args, kwargs)), again)
        if type(operation) in _SEPARABLE and not stays:
            outputs = self.separable(operation, name, args, kwargs)
            return self.activation(operation, name, outputs)
        if fused_function(operation) is not None:
            # The output is regularized, so the regularizer goes with the activation.
            changes = {"activation": "linear", "activity_regularizer": None}
            outputs = self.call_copy(operation, name, args, kwargs, **changes)
            return self.activation(operation, name, outputs)
        function = function_name(operation) if self.splits_here() else None
        if function in _REMADE and not isinstance(operation, layers.LeakyReLU | layers.ReLU):
            (x,) = refs_in((args, kwargs))
            return self.remade(function, self.names.unique(name) if again else name, x, operation)
        if function_name(operation) is not None and again:
            # A function has no weights to share; with one call per layer each input is unambiguous.
            fresh = self.names.unique(name)
            return self.call(copy_operation(operation, name=fresh), fresh, args, kwargs)
        return self.call_copy(operation, name, args, kwargs)

    def call_copy(self, operation, name, args, kwargs, **changes):
        """Appends a call of an operation's copy, between transpositions for an EinsumDense."""
        plan = dense_order(self.new, operation, args)
        if plan is None:
            return self.call(self.copy(operation, name, **changes), name, args, kwargs)
        before, options, after = plan
        copy = self.copy(operation, name, **changes, **options)
        (ref,) = self.transposed(args[0], before, name)
        (made,) = self.call(copy, name, [ref], kwargs)
        return self.transposed(made, after, name)

    def transposed(self, ref, axes, name):
        """Appends a transposition, unless it changes nothing; returns its output, a list."""
        if axes == sorted(axes):
            return [ref]
        transpose = make_operation("Transpose", axes=axes, name=self.names.unique(name))
        return self.call(transpose, transpose.name, [ref], {})

    def changes_no_type(self, operation, args):
        """Whether this casts a tensor to the type that it already has."""
        refs = refs_in(args)
        is_cast = name_of(operation) == "Cast" and len(refs) == 1
        return is_cast and self.new.tensors[refs[0].index].dtype == operation.dtype

    def with_weight(self, reader, refs):
        """Appends the layer that replaces an operation on a tensor and a `Weight`."""
        self.node = reader.weight  # whose name it gets
        operation, name = self.node.operation, self.node.name
        if id(operation) not in self.copies:
            self.copies[id(operation)] = layer = reader.layer(name)
            self.remember(layer, operation, Origin(name))
        return self.call(self.copies[id(operation)], name, [refs[reader.tensor.index]], {})

    def splits_here(self):
        """Whether this node's swish is taken apart: a Multiply treats masks differently."""
        return self.splits_swish and not self.reads_mask()

    def reads_mask(self):
        """Whether this node reads a tensor that carries a mask."""
        return not self.old.masked.isdisjoint(self.node.inputs)

    def hides_logits(self, operation):
        """Whether `operation` ends in the softmax or sigmoid of an output (see `heads`)."""
        return id(operation) in self.last and fused_function(operation) in ("softmax", "sigmoid")

    def copy(self, operation, name, **changes):
        """Returns the single copy of an operation, however often it is called."""
        if id(operation) not in self.copies:
            copy = copy_operation(operation, name=name, **changes)
            if self.fuses_batch_norm:
                copy = fused(copy)
            self.copies[id(operation)] = copy
            if isinstance(operation, layers.Layer) and operation.weights:
                self.remember(copy, *self.original_of(operation, name))
        return self.copies[id(operation)]

    def original_of(self, operation, name):
        """Returns the float model's layer whose weights a copy gets, and the `Origin`."""
        original, origin_name = self.outer.get(id(operation), (operation, name))
        inner = fused_layer(original)
        if inner is None:
            return original, Origin(origin_name)
        inside = {id(weight) for weight in inner.weights}
        is_inside = operation is inner
        indices = [i for i, w in enumerate(original.weights) if (id(w) in inside) == is_inside]
        return original, Origin(origin_name, tuple(indices))

    def remember(self, copy, original, origin):
        """Records where the weights of a copy come from."""
        self.origins[copy.name] = origin
        self.originals[copy.name] = original

    def call(self, operation, name, args, kwargs):
        """Appends one call; returns its outputs."""
        specs = output_specs(self.new, operation, args, kwargs)
        return self.new.add_node(operation, name, args, kwargs, specs, origin=self.node)

    def activation(self, operation, name, outputs):
        """Appends the activation function that was fused into `operation`, if any."""
        function = fused_function(operation)
        if function is None:
            return outputs
        if fused_layer(operation) is not None:
            inner = fused_layer(operation)
            known = self.copies.get(id(inner)) if inner.weights else None
            inner_name = self.names.unique(f"{name}_{inner.name}") if known is None else known.name
            return self.activation_layer(operation, name, inner_name, outputs, {})
        label = getattr(operation.activation, "__name__", "activation")
        name = self.names.unique(f"{name}_{label if label.isidentifier() else 'activation'}")
        layer = layers.Activation(
            operation.activation,
            activity_regularizer=operation.activity_regularizer,
            dtype=operation.dtype_policy,
            name=name,
        )
        if function in _REMADE and self.splits_here():
            return self.remade(function, name, outputs[0], layer)
        return self.call(layer, name, outputs, {})

    def activation_layer(self, operation, name, inner_name, args, kwargs):
        """Appends the layer that `operation` uses as its activation function."""
        inner = fused_layer(operation)
        if not inner.weights:
            self.copies.pop(id(inner), None)  # without weights, each call gets its own copy
        self.outer.setdefault(id(inner), (operation, name))
        outputs = self.rewrite(Node(inner, inner_name, args, kwargs), args, kwargs, again=False)
        if operation.activity_regularizer is None:
            return outputs
        regularized = layers.Activation(
            "linear",
            activity_regularizer=operation.activity_regularizer,
            dtype=operation.dtype_policy,
            name=self.names.unique(f"{inner_name}_regularizer"),
        )
        return self.call(regularized, regularized.name, outputs, {})

    def remade(self, function, name, x, operation):
        """Appends x · gate(x), or a LeakyReLU, with the dtype and regularizer of `operation`."""
        dtype = getattr(operation, "dtype_policy", self.old.tensors[self.node.outputs[0]].dtype)
        regularizer = getattr(operation, "activity_regularizer", None)
        options = {"activity_regularizer": regularizer, "dtype": dtype, "name": name}
        if function == "leaky_relu":
            return self.call(layers.LeakyReLU(negative_slope(operation), **options), name, [x], {})
        gate_name = self.names.unique(f"{name}_{_GATES[function]}")
        layer = layers.Activation(_GATES[function], dtype=dtype, name=gate_name)
        (gate,) = self.call(layer, gate_name, [x], {})
        return self.call(layers.Multiply(**options), name, [[x, gate]], {})

    def rescaling(self, scale_and_offset, name, refs, again, dtype):
        """Appends a Rescaling in place of an operation on a constant; returns its outputs.

        It computes in the dtype of the result, which is float for a whole number and a fraction.
        """
        name = self.names.unique(name) if again else name
        layer = layers.Rescaling(*scale_and_offset, dtype=dtype, name=name)
        return self.call(layer, name, refs, {})

    def merge(self, operation, name, refs, again):
        """Appends a sum, mean or product of any number of tensors as operations on two."""
        name = self.names.unique(name) if again else name
        dtype, last = operation.dtype_policy, _MERGES.get(name_of(operation))
        regularizer = {"activity_regularizer": operation.activity_regularizer}
        if _is_scaled_sum(operation):
            scaled = layers.Rescaling(
                operation.scale, dtype=dtype, name=self.names.unique(f"{name}_rescaling")
            )
            refs = [refs[0], *self.call(scaled, scaled.name, [refs[1]], {})]
            last = layers.Add
        if last is layers.Average:
            rescaling = layers.Rescaling(1 / len(refs), dtype=dtype, name=name, **regularizer)
            (total,) = self.pairs(layers.Add, self.names.unique(f"{name}_sum"), refs, dtype, {})
            return self.call(rescaling, name, [total], {})
        return self.pairs(last, name, refs, dtype, regularizer)

    def pairs(self, layer_class, name, refs, dtype, regularizer):
        """Appends sums or products of two, one after another; the last one gets the name `name`."""
        total = refs[0]
        for number, ref in enumerate(refs[1:], 1):
            is_last = number == len(refs) - 1
            own_name = name if is_last else self.names.unique(f"{name}_{number}")
            layer = layer_class(dtype=dtype, name=own_name, **(regularizer if is_last else {}))
            (total,) = self.call(layer, own_name, [[total, ref]], {})
        return [total]

    def separable(self, operation, name, args, kwargs):
        """Appends a separable convolution as two; returns the outputs of the second one."""
        if id(operation) not in self.copies:
            self.copies[id(operation)] = self.split_separable(operation, name)
        depthwise, pointwise = self.copies[id(operation)]
        outputs = self.call(depthwise, depthwise.name, args, kwargs)
        return self.call(pointwise, pointwise.name, outputs, {})

    def split_separable(self, operation, name):
        """Makes the depthwise and the pointwise layer of a separable convolution."""
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
            depthwise_constraint=operation.depthwise_constraint,
            name=self.names.unique(f"{name}_depthwise"),
            **shared,
        )
        pointwise = pointwise_class(
            operation.filters,
            1,
            use_bias=operation.use_bias,
            kernel_regularizer=operation.pointwise_regularizer,
            kernel_constraint=operation.pointwise_constraint,
            bias_regularizer=operation.bias_regularizer,
            bias_constraint=operation.bias_constraint,
            activity_regularizer=(
                operation.activity_regularizer if fused_function(operation) is None else None
            ),
            name=name,
            **shared,
        )
        self.remember(depthwise, operation, Origin(name, (0,)))
        _, own = self.original_of(operation, name)
        indices = own.indices or tuple(range(len(operation.weights)))
        self.remember(pointwise, operation, Origin(name, indices[1:]))
        return depthwise, pointwise


def _is_scaled_sum(operation):
    """Whether this is the layer of Keras' InceptionResNetV2 that computes x + scale · y."""
    return name_of(operation) == "CustomScaleLayer"
