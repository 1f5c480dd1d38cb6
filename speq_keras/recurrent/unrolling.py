"""The graph with separate nodes for each step of a recurrent layer, as in the file.

The nodes of a step are named after the layer, the index of the step, and the role of their output:
"lstm.3.cells". All steps share one operation per product and the layer's own quantizers.
"""

import dataclasses
import functools

import numpy as np
from keras import layers, ops

from speq_keras.graph import Ref, call_node, read_graph, run
from speq_keras.layers import QuantizedLayer
from speq_keras.operations import make_operation
from speq_keras.own_weights import Weight
from speq_keras.quantizers import ActivationQuantizer, WeightQuantizer
from speq_keras.recurrent.formulas import Arithmetic
from speq_keras.recurrent.layer import QuantizedRecurrent


def read_unrolled(model):
    """Returns the `Graph` of a model, with recurrent layers replaced by their steps.

    The `origin` of such a node is the origin of the whole layer.
    """
    graph = read_graph(model)
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        if isinstance(node.operation, QuantizedRecurrent):
            _unroll(graph, node)
        else:
            graph.nodes.append(node)
    return graph


def take_over_biases(graph):
    """Copies the biases of the products in a `read_unrolled` graph back to its recurrent layers."""
    found = {id(node.operation): node for node in graph.nodes if node.origin is not None}
    for node in found.values():
        if isinstance(node.operation, _Product):
            node.operation.give_back(node.origin.operation)


def broken_steps(graph):
    """Returns the nodes of recurrent layers whose unrolled steps compute something else.

    Both are run on random values, in float32. A value near a half may be rounded differently, so
    the mean difference is compared.

    Args:
        graph: A `Graph` of `read_unrolled`.
    """
    steps = {}
    for node in graph.nodes:
        if node.origin is not None:
            steps.setdefault(id(node.origin), (node.origin, []))[1].append(node)
    return [node for node, nodes in steps.values() if not _distance(graph, node, nodes) < 1]


def _distance(graph, node, nodes):
    """Returns the mean distance between the outputs of a layer and its steps, in state steps."""
    layer, (index,) = node.operation, node.inputs
    producer = graph.tensors[index].producer
    quantizer = producer.operation if producer is not None else None
    is_known = isinstance(quantizer, ActivationQuantizer)
    scale, low, high = quantizer.grid() if is_known else (1.0, -1, 1)
    shape = (4, *graph.tensors[index].shape[1:])
    codes = np.random.default_rng(0).integers(low, high + 1, shape)
    x = ops.convert_to_tensor((codes * scale).astype("float32"))
    values = {index: x}
    run(nodes, values, node.outputs, call=functools.partial(call_node, training=False))
    wanted = layer(x)
    wanted = wanted if layer.layer.return_state else [wanted]
    unit = layer.activation_quantizers["states"].grid()[0]
    pairs = zip(wanted, [values[output] for output in node.outputs], strict=True)
    return max(float(ops.mean(ops.abs(ops.cast(a, "float32") - b))) for a, b in pairs) / unit


class _AsTheyAre(WeightQuantizer):
    """Weights that are already quantized."""

    def round_to_grid(self, weights, bits):
        return weights


class _Product(QuantizedLayer):
    """A Dense layer equivalent to one of a recurrent layer's products.

    Args:
        layer: The `QuantizedRecurrent`.
        attribute: As in its `products`.
        part: The index of the product.
    """

    def __init__(self, layer, attribute, part):
        kernel, bias = layer.products(attribute)[part]
        dense = layers.Dense(
            kernel.shape[1], use_bias=bias is not None, name=f"{layer.name}.{part}"
        )
        dense.build((None, kernel.shape[0]))
        dense.kernel.assign(kernel)
        if bias is not None:
            dense.bias.assign(bias)
        own = layer.quantizers[f"cell.{attribute}"]
        quantizer = _AsTheyAre(
            bits=own.bits or 8, per_channel=own.per_channel, channel_axes=own.channel_axes
        )
        super().__init__(dense, {"kernel": quantizer}, name=f"{layer.name}.{attribute}_{part}")
        self.build((None, kernel.shape[0]))
        self.attribute, self.part = attribute, part

    def give_back(self, layer):
        """Returns the bias to the layer, if it has changed."""
        _, before = layer.products(self.attribute)[self.part]
        if before is not None:
            now = ops.convert_to_numpy(self.layer.bias.value)
            layer.move_bias(self.attribute, self.part, now - ops.convert_to_numpy(before))


def _unroll(graph, node):
    """Appends the nodes of all steps to a graph, replacing `node`."""
    layer = node.operation
    m, before = _Nodes(graph, node), len(graph.nodes)
    sums = m.inputs()
    steps = range(graph.tensors[node.inputs[0]].shape[1])
    states, outputs = (None,) * layer.formula.states, []
    for number in reversed(steps) if layer.layer.go_backwards else steps:
        m.step = str(number)
        here = [m.at(x, number) for x in sums]
        states = layer.formula.step(m, here, states)
        outputs.append(states[0])
    m.step = "output"
    ends = [m.joined(outputs) if layer.layer.return_sequences else states[0]]
    ends += states if layer.layer.return_state else ()
    for index, ref in zip(node.outputs, ends, strict=True):
        m.leave(index, ref)
    graph.nodes[before:] = _needed(graph.nodes[before:], node.outputs)


def _needed(nodes, outputs):
    """Returns the nodes that are needed to compute these outputs."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]


class _Nodes(Arithmetic):
    """Computes steps by appending nodes; values are `Ref`s.

    Args:
        graph: The `Graph`.
        node: The node of the whole layer, which is not in the graph.
    """

    def __init__(self, graph, node):
        self.graph, self.node, self.layer = graph, node, node.operation
        super().__init__(self.layer.reset_after)
        self.units = self.layer.layer.cell.units
        self.step = "inputs"
        count = range(len(self.layer.formula.parts))
        self.products = [_Product(self.layer, "recurrent_kernel", part) for part in count]
        names = ("Add", "Subtract", "Multiply", "Negative", "GetItem")
        self.operations = {name: make_operation(name) for name in names}

    def append(self, operation, what, args, shape, kwargs=None):
        """Appends a node; returns the `Ref` of its output."""
        name = f"{self.node.name}.{self.step}.{what}"
        batch = self.graph.tensors[self.node.inputs[0]].shape[0]
        shape = [((batch, *shape), "float32")]
        (ref,) = self.graph.add_node(operation, name, args, kwargs or {}, shape, origin=self.node)
        return ref

    def shape_of(self, ref):
        """The shape of a value, without the batch."""
        return self.graph.tensors[ref.index].shape[1:]

    def inputs(self):
        """Appends the products with all inputs; returns the rounded sums of each part."""
        (x,), sums = [Ref(index) for index in self.node.inputs], []
        steps = self.shape_of(x)[0]
        for part, (first, last) in enumerate(self.layer.formula.parts):
            product = _Product(self.layer, "kernel", part)
            shape = (steps, (last - first) * self.units)
            sums.append(self.rounded("input_sums", self.append(product, "kernel", [x], shape)))
        return sums

    def at(self, x, number):
        """The sums of one step."""
        key = (slice(None), number)
        return self.append(self.operations["GetItem"], "input", [x, key], self.shape_of(x)[1:])

    def joined(self, outputs):
        """All outputs, in the order in which they were computed."""
        count = len(outputs)
        row = self.append(layers.Concatenate(), "row", [list(outputs)], (count * self.units,))
        shape = (count, self.units)
        return self.append(layers.Reshape(shape), "sequence", [row], shape)

    def leave(self, index, ref):
        """Makes the existing tensor `index` equal to `ref`."""
        out = self.append(layers.Identity(), "end", [ref], self.shape_of(ref))
        node = self.graph.nodes[-1]
        node.outputs = [index]
        self.graph.tensors[index] = dataclasses.replace(
            self.graph.tensors[out.index], producer=node
        )

    def recurrent(self, part, h):
        """The product with a state, rounded; with zeros it is the bias."""
        product = self.products[part]
        shape = (product.layer.units,)
        if h is not None:
            return self.rounded("recurrent_sums", self.append(product, "recurrent", [h], shape))
        bias = product.layer.bias
        return None if bias is None else self.rounded("recurrent_sums", self.constant(bias.value))

    def constant(self, bias):
        """The result of a bias alone: a vector on the grid of the sums, without a batch."""
        values = self.layer.activation_quantizers["recurrent_sums"](bias)
        weight = Weight(values.shape, name="bias")
        weight.weight.assign(values)
        table = QuantizedLayer(weight, {"weight": _AsTheyAre(channel_axes=())})
        table.build(values.shape)
        ref = self.append(table, "bias", [Ref(self.node.inputs[0])], ())
        self.graph.tensors[ref.index].shape = tuple(values.shape)
        return ref

    def rounded(self, role, x):
        """`x` on the grid of a role."""
        quantizer = self.layer.activation_quantizers[role]
        return self.append(quantizer, role, [x], self.shape_of(x))

    def activated(self, role, x):
        """The activation function of a role."""
        return self.append(self.layer.activations[role], f"{role}_function", [x], self.shape_of(x))

    def columns(self, x, first, last):
        """Some of the gates."""
        key = (slice(None), slice(first * self.units, last * self.units))
        return self.append(
            self.operations["GetItem"], "columns", [x, key], ((last - first) * self.units,)
        )

    def split(self, x, count):
        """Splits off each gate."""
        return [self.columns(x, n, n + 1) for n in range(count)]

    def sum(self, a, b):
        """Returns a + b."""
        return self.append(self.operations["Add"], "sum", [a, b], self.shape_of(a))

    def difference(self, a, b):
        """Returns a − b."""
        return self.append(self.operations["Subtract"], "difference", [a, b], self.shape_of(a))

    def product(self, a, b):
        """Returns a · b."""
        return self.append(self.operations["Multiply"], "product", [a, b], self.shape_of(a))

    def negative(self, x):
        """Returns −x."""
        return self.append(self.operations["Negative"], "negative", [x], self.shape_of(x))
