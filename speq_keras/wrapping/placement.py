"""Decides where quantizers go and which width every layer gets, as plain data.

The rules, in order:

1. A layer with a quantize config reads its inputs at its own width: the target width, or
   `boundary_bits` for the first and last weighted layers, or 8 bits inside squeeze-excite blocks,
   or what its config says. A product of two tensors (attention) reads its inputs at the target
   width, but a softmax at 8 bits, because that has a fixed grid.
2. Add, Multiply, ..., means, tabulated functions and the model's outputs are read at 8 bits.
   BatchNormalization and ReLU need no width if they fold into the layer before them. Layers that
   stay float read float tensors as they are, and results of integer kernels at 8 bits.
3. Operations that copy or order codes (max pooling, reshape, ...), average pooling and Concatenate
   tie their inputs and outputs to one grid: one *group* of tensors with one quantizer, placed
   where the group's tensors are made.
4. If all readers of a group have one width, it gets that quantizer. If they have several, or its
   producer can only make 8 bits, it gets 8 bits, and each narrower reader a second quantizer.
   If a config names a quantizer for one of its tensors, the group gets that one.
"""

import dataclasses
import functools
from typing import Any

from speq_keras.graph import Names
from speq_keras.operations import (
    AFFINE_FOLDS_INTO,
    RELU_FOLDS_INTO,
    Kind,
    fixed_range,
    is_never_negative,
)
from speq_keras.quantizers import PACT, FixedRange
from speq_keras.recurrent import QuantizedRecurrent

_TIES = (Kind.CARRY, Kind.SAME_GRID, Kind.CONCAT)
_READS_8_BITS = (Kind.ELEMENTWISE, Kind.MEAN, Kind.TABLE)
_MAKES_8_BITS = (Kind.MEAN, Kind.TABLE, Kind.FLOAT)


@dataclasses.dataclass(frozen=True, eq=False)
class Demand:
    """A width at which a tensor is read. `quantizer`: the prototype to copy.

    Demands for the same width and kind of quantizer are equal, so that they share one.
    """

    bits: int | None
    has_target_width: bool
    quantizer: Any

    # Computed only when needed: `get_config` imports TensorFlow on every backend.
    @functools.cached_property
    def _key(self):
        by_placement = {"name", "bits", "has_target_width", "signed", "nonnegative_input"}
        config = {} if self.quantizer is None else self.quantizer.get_config()
        shared = {key: value for key, value in config.items() if key not in by_placement}
        return self.bits, self.has_target_width, f"{type(self.quantizer).__name__} {shared}"

    def __eq__(self, other):
        return isinstance(other, Demand) and self._key == other._key

    def __hash__(self):
        return hash(self._key)

    def quantizer_of(self, *, signed):
        """Returns a new quantizer of this width, for tensors that may be negative if `signed`."""
        return self.quantizer.copy(
            bits=self.bits,
            has_target_width=self.has_target_width,
            signed=signed,
            nonnegative_input=not signed,
        )


EIGHT_BITS = Demand(8, False, PACT())


@dataclasses.dataclass(eq=False)
class Spec:
    """One quantizer to make; several tensors of a group share the object."""

    quantizer: Any
    name: str


@dataclasses.dataclass
class Placement:
    """The decisions.

    Attributes:
        at: {tensor: [Spec, ...]}: quantizers at the tensor itself, for all its readers.
        between: {(tensor, demand): Spec}: second quantizers, for readers with that demand.
        demands: {(node id, tensor): Demand}: what each reader of a tensor asks for.
        averages: The tensors whose codes are averages of codes: halves are rounded up.
    """

    at: dict
    between: dict
    demands: dict
    averages: set = dataclasses.field(default_factory=set)


def float_tensors(graph):
    """Returns the numbers of the tensors that hold floats."""
    return {i for i, tensor in enumerate(graph.tensors) if "float" in tensor.dtype}


def find_boundaries(graph, is_weighted):
    """Returns the operations (by id) that are the first or last weighted one on some path."""
    forward = [(node, node.inputs, node.outputs) for node in graph.nodes]
    backward = [(node, node.outputs, node.inputs) for node in reversed(graph.nodes)]
    return _first_weighted(forward, is_weighted) | _first_weighted(backward, is_weighted)


def _first_weighted(visits, is_weighted):
    """Returns the operations (by id) of the weighted nodes with no other one before them.

    Args:
        visits: (node, tensors from which it is reached, tensors that it leads to), in order.
        is_weighted: Function of a node.
    """
    behind, first = set(), set()
    for node, before, after in visits:
        is_behind = not behind.isdisjoint(before)
        if is_weighted(node):
            if not is_behind:
                first.add(id(node.operation))
            is_behind = True
        if is_behind:
            behind.update(after)
    return first


def find_squeeze_excite(graph, kinds):
    """Returns the operations (by id) between a global mean and its product with the features."""
    pooled, made_by = set(), {}
    gates = []
    for node in graph.nodes:
        inputs = node.inputs
        is_pooled = [index in pooled for index in inputs]
        if kinds[id(node)] is Kind.MEAN or (inputs and all(is_pooled)):
            pooled.update(node.outputs)
            made_by.update(dict.fromkeys(node.outputs, node))
        elif kinds[id(node)] is Kind.ELEMENTWISE and any(is_pooled):
            gates += [i for i, p in zip(inputs, is_pooled, strict=True) if p]
    found = set()
    while gates:
        node = made_by.get(gates.pop())
        if node is None or id(node) in found:
            continue
        found.add(id(node))
        if kinds[id(node)] is not Kind.MEAN:
            gates += node.inputs
    return {id(n.operation) for n in graph.nodes if id(n) in found}


def place(graph, kinds, layer_demands, quantizes_outputs, given=None, rounding=frozenset()):
    """Decides where quantizers go.

    Args:
        graph: A canonical `Graph`.
        kinds: {id(node): Kind}.
        layer_demands: {id(operation): Demand or None}: the input width of weighted layers and of
            products of two tensors.
        quantizes_outputs: Whether the model's outputs are rounded to 8 bits.
        given: {tensor: ActivationQuantizer}, the configs' output quantizers, or None.
        rounding: ids of the operations that make codes of 8 bits themselves.

    Returns:
        A `Placement`.
    """
    return _Placer(graph, kinds, layer_demands, quantizes_outputs, given or {}, rounding).run()


class _Placer:
    def __init__(self, graph, kinds, layer_demands, quantizes_outputs, given, rounding):
        self.graph, self.kinds, self.layer_demands = graph, kinds, layer_demands
        self.quantizes_outputs, self.given, self.rounding = quantizes_outputs, given, rounding
        self.readers = graph.readers()
        self.floats = float_tensors(graph)
        self.outputs = set(graph.output_indices)
        self.placement = Placement(at={}, between={}, demands={})
        self.names = Names(node.name for node in graph.nodes)

    def run(self):
        nonnegative = self.find_nonnegative()
        for group in self.find_groups():
            self.place_group(sorted(group), nonnegative)
        return self.placement

    def kind_of_producer(self, index):
        """Returns the `Kind` of a tensor's producer, or None for a model input."""
        producer = self.graph.tensors[index].producer
        return None if producer is None else self.kinds[id(producer)]

    def find_nonnegative(self):
        """Returns the tensors that are never negative, whatever the weights."""
        nonnegative = set()
        for node in self.graph.nodes:
            flags = [index in nonnegative for index in node.inputs]
            if is_never_negative(node.operation, self.kinds[id(node)], flags):
                nonnegative.update(node.outputs)
        return nonnegative

    def find_groups(self):
        """Returns the sets of tensors that share one grid (rule 3)."""
        group = {index: {index} for index in self.floats}
        for node in self.graph.nodes:
            if self.kinds[id(node)] in _TIES:
                tied = [i for i in [*node.inputs, *node.outputs] if i in self.floats]
                for index in tied[1:]:
                    if group[index] is not group[tied[0]]:
                        merged = group[index] | group[tied[0]]
                        for member in merged:
                            group[member] = merged
        return list({id(members): members for members in group.values()}.values())

    def demand(self, node, index):
        """Returns the width at which `node` reads tensor `index` (rules 1 and 2), or None."""
        kind = self.kinds[id(node)]
        if kind in (Kind.WEIGHTED, Kind.MATMUL):
            demand = self.layer_demands.get(id(node.operation))
            if kind is Kind.MATMUL and demand is not None and self.has_fixed_range(index):
                return EIGHT_BITS
            return demand
        if kind is Kind.TABLE and not self.quantizes_outputs and self.makes_output(node):
            return None
        if kind in _READS_8_BITS:
            return EIGHT_BITS
        if kind in (Kind.AFFINE, Kind.RELU):
            into = AFFINE_FOLDS_INTO if kind is Kind.AFFINE else RELU_FOLDS_INTO
            alone = len(self.readers[index]) == 1 and index not in self.outputs
            return None if alone and self.kind_of_producer(index) in into else EIGHT_BITS
        return None

    def makes_output(self, node):
        """Whether a node's result is an output of the model."""
        return any(index in self.outputs for index in node.outputs)

    def output_demand(self, index):
        """Returns the width at which a model output is read, or None."""
        kind = self.kind_of_producer(index)
        stays_float = kind in (None, Kind.FLOAT, Kind.QUANTIZER, Kind.TABLE)
        return None if stays_float or not self.quantizes_outputs else EIGHT_BITS

    def reads_float(self, node):
        """Whether a node computes in float."""
        kind = self.kinds[id(node)]
        return kind is Kind.FLOAT or (
            kind in (Kind.WEIGHTED, Kind.MATMUL)
            and self.layer_demands.get(id(node.operation)) is None
        )

    def is_integer(self, index):
        """Whether integer kernels compute the tensor; a float reader then gets it at 8 bits."""
        producer = self.graph.tensors[index].producer
        while producer is not None and self.kinds[id(producer)] in (*_TIES, Kind.AFFINE, Kind.RELU):
            producer = self.graph.tensors[producer.inputs[0]].producer
        if producer is None or self.kinds[id(producer)] in (Kind.FLOAT, Kind.QUANTIZER):
            return False
        return not self.reads_float(producer)

    def has_fixed_range(self, index):
        """Whether a tensor is the result of a function with a fixed grid."""
        producer = self.graph.tensors[index].producer
        while producer is not None and self.kinds[id(producer)] in _TIES:
            producer = self.graph.tensors[producer.inputs[0]].producer
        return producer is not None and fixed_range(producer.operation) is not None

    def place_group(self, group, nonnegative):
        """Places all quantizers of one group (rule 4)."""
        demands, is_read_as_float, is_rounded_for_floats = set(), False, False
        for index in group:
            for node in self.readers[index]:
                demand = self.demand(node, index)
                if demand is not None:
                    self.placement.demands[id(node), index] = demand
                    demands.add(demand)
                is_read_as_float |= self.reads_float(node)
                is_layer_in_float = self.kinds[id(node)] is Kind.FLOAT
                is_rounded_for_floats |= is_layer_in_float and self.is_integer(index)
            if index in self.outputs:
                is_read_as_float = True
                if self.output_demand(index) is not None:
                    demands.add(EIGHT_BITS)
        if is_rounded_for_floats:
            demands.add(EIGHT_BITS)
        if not demands and not any(index in self.given for index in group):
            return
        if is_read_as_float:
            demands.add(EIGHT_BITS)
        roots = [i for i in group if self.kind_of_producer(i) not in _TIES]
        signed = not all(index in nonnegative for index in roots)
        root_demand = self.place_roots(group, roots, demands, signed)
        for index in group:
            # One negative member makes the group signed; a second quantizer sees only one tensor.
            self.place_between(index, root_demand, signed=index not in nonnegative)

    def place_roots(self, group, roots, demands, signed):
        """Places the quantizers where the group's tensors are made; returns the grid's width."""
        existing = {self.existing_quantizer(index) for index in roots}
        if len(existing) == 1 and None not in existing:
            (quantizer,) = existing
            self.round_again(group, Spec(quantizer, quantizer.name))
            return Demand(quantizer.bits, quantizer.has_target_width, None)
        given = [self.given[index] for index in group if index in self.given]
        if given:
            spec = Spec(given[0], self.name_at(roots[0]))
            self.placement.at.update({index: [spec] for index in roots})
            self.round_again(group, spec)
            return Demand(given[0].bits, given[0].has_target_width, None)
        if all(self.is_rounded(index) for index in group):
            return EIGHT_BITS
        makes_8_bits = any(
            self.kind_of_producer(index) in (None, *_MAKES_8_BITS) for index in roots
        )
        demand = next(iter(demands)) if len(demands) == 1 and not makes_8_bits else EIGHT_BITS
        ranges = {i: self.range_of(i) for i in roots}
        spec = None
        for index, ends in ranges.items():
            self.placement.at[index] = []
            if ends is not None:
                low, high = ends
                name = self.name_at(index)
                fixed = Spec(FixedRange(low=low, high=high, signed=low is None or low < 0), name)
                self.placement.at[index].append(fixed)
                spec = fixed
        if len(roots) > 1 or ranges[roots[0]] is None:
            spec = Spec(demand.quantizer_of(signed=signed), self.name_at(roots[0]))
            for index in roots:
                self.placement.at[index].append(spec)
        self.round_again(group, spec)
        return demand

    def is_rounded(self, index):
        """Whether a tensor comes from a recurrent layer, with 8-bit codes on its own grid."""
        kind, producer = self.kind_of_producer(index), self.graph.tensors[index].producer
        if kind is Kind.CARRY:
            return True  # like its input
        is_recurrent = isinstance(producer and producer.operation, QuantizedRecurrent)
        return is_recurrent or id(producer and producer.operation) in self.rounding

    def existing_quantizer(self, index):
        """Returns the quantizer of a wrapped model, now extended, that makes a tensor, or None."""
        if self.kind_of_producer(index) is not Kind.QUANTIZER:
            return None
        return self.graph.tensors[index].producer.operation

    def range_of(self, index):
        """Returns the ends of an untrained range: (None, None) for a model input."""
        producer = self.graph.tensors[index].producer
        return (None, None) if producer is None else fixed_range(producer.operation)

    def round_again(self, group, spec):
        """Average pooling makes new values, which are rounded to the grid of its input."""
        for index in group:
            kinds = {self.kinds[id(node)] for node in self.readers[index]}
            if self.kind_of_producer(index) is Kind.SAME_GRID and kinds != {Kind.QUANTIZER}:
                self.placement.at[index] = [spec]
                self.placement.averages.add(index)

    def place_between(self, index, root_demand, signed):
        """Places second quantizers for readers whose demand the tensor's grid does not meet."""
        for node in self.readers[index]:
            demand = self.placement.demands.get((id(node), index))
            if demand is None or self.is_met(demand, root_demand):
                self.placement.demands.pop((id(node), index), None)
            elif (index, demand) not in self.placement.between:
                name = self.names.unique(f"{self.base_name(index)}_requantizer")
                spec = Spec(demand.quantizer_of(signed=signed), name)
                self.placement.between[index, demand] = spec

    @staticmethod
    def is_met(demand, root):
        """Whether a grid meets a demand: the same one, or a narrower one read as 8 bits."""
        if root.quantizer is not None:
            return demand == root
        # It existed before. The teacher draws the target width up to 8 bits.
        if demand.has_target_width or demand.bits < 8:
            return demand.has_target_width == root.has_target_width and (
                root.has_target_width or root.bits == demand.bits
            )
        return True

    def base_name(self, index):
        """Returns the common prefix of the names of a tensor's quantizers."""
        tensor = self.graph.tensors[index]
        if tensor.producer is None:
            return tensor.name
        return tensor.producer.name.removesuffix("_quantizer")

    def name_at(self, index):
        """Returns a new name for a quantizer at a tensor's producer."""
        return self.names.unique(f"{self.base_name(index)}_quantizer")
