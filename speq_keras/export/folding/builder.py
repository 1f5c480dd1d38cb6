"""The network under construction: appends steps, rounds, turns codes into floats."""

import numpy as np

from speq_keras.export.folding import ties
from speq_keras.export.folding.grids import grid_of
from speq_keras.export.folding.node_rules import RULES
from speq_keras.export.folding.padding import Padded, is_same_padding
from speq_keras.export.folding.pending import Pending
from speq_keras.export.folding.steps import (
    CannotExport,
    FoldedNetwork,
    Grid,
    Problem,
    Step,
    Value,
    plain_dtype,
)
from speq_keras.export.folding.weights import folded_weights
from speq_keras.graph import Names
from speq_keras.merged_batches import batches_in
from speq_keras.operations import Kind, function_name, kind_of, name_of

# The codes of 8-bit integers.
_BYTES = {
    "uint8": Grid(np.float32(1), 0, 255),
    "int8": Grid(np.float32(1), -128, 127),
}

# Operations that turn floats into integers, by Keras' class name.
_COMPARISONS = ("Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual")
_MAKES_WHOLE_NUMBERS = (*_COMPARISONS, "Argmax", "Cast", "LogicalAnd", "LogicalOr", "LogicalNot")


class Builder:
    """A `FoldedNetwork` under construction.

    Between steps there is a `Value`, a `Padded` (zeros not written yet) or a `Pending` (not rounded
    yet). The last two become steps when they are read.

    Args:
        graph: The `Graph` to fold.
        name: Name of the model.
        grids: {name of a quantizer: the `Grid` that replaces its own}.
        no_kernel: The `Problem`s of nodes known to have no integer kernel.
    """

    def __init__(self, graph, name, grids, no_kernel=()):
        self.graph = graph
        self.grids = grids
        self.no_kernel = {id(problem.node): problem for problem in no_kernel}
        self.folded = FoldedNetwork(name)
        self.names = Names()
        self.constants = {}  # id(value): the step that makes it
        self.weights = {}  # id(value): (value, the codes of a weight in the shape that Keras knows)
        self.floats = {}  # id(value): (value, the same as floats)
        self.times = batches_in(graph)
        self.nudged = None  # (name of a quantizer, a grid without ties)

    # ---- steps ---------------------------------------------------------------------------------

    def input(self, index):
        """Adds an input of the network and returns its `Value`.

        8-bit integers used in arithmetic are already codes, with a scale of 1.
        """
        tensor = self.graph.tensors[index]
        grid = _BYTES.get(tensor.dtype)
        is_codes = grid is not None and self.is_arithmetic(index)
        dtype = "float32" if is_codes else plain_dtype(tensor.dtype)
        whole = () if grid is None else (grid.low, grid.high)
        name = self.names.unique(tensor.name)
        value = Value(name, tensor.shape, None, dtype=dtype, whole=whole)
        self.folded.inputs.append(value)
        if not is_codes:
            return value
        codes = Value(self.names.unique(f"{tensor.name}_codes"), tensor.shape, grid)
        return self.add(Step("quantize", [value], codes))

    def is_arithmetic(self, index):
        """Whether an integer input is only used in arithmetic, such as add or multiply."""
        readers = self.graph.readers()[index]
        return bool(readers) and all(
            self.makes_floats(node)
            and (
                kind_of(node.operation) in (Kind.AFFINE, Kind.ELEMENTWISE)
                or name_of(node.operation) == "Cast"
            )
            for node in readers
        )

    def makes_floats(self, node):
        """Whether a node's output is float."""
        return plain_dtype(self.graph.tensors[node.outputs[0]].dtype) == "float32"

    def add(self, step):
        """Appends a step and returns its output."""
        self.folded.steps.append(step)
        if step.kind == "constant":
            self.constants[id(step.output)] = step
        return step.output

    def copied(self, kind, inputs, node, grid, options=None, codes=None):
        """Adds a step that does not round, with codes on `grid`; returns its output."""
        output = self.value(node, self.shape_of(node), grid)
        return self.add(Step(kind, inputs, output, [node], options=options or {}, codes=codes))

    def value(self, node, shape, grid, layer=""):
        """Returns a new `Value` for a node's output."""
        dtype = "float32" if grid else plain_dtype(self.graph.tensors[node.outputs[0]].dtype)
        return Value(self.names.unique(node.name), shape, grid, layer=layer, dtype=dtype)

    def constant(self, node, codes, grid):
        """Adds a step that makes the same codes for every example, without a batch axis.

        Returns:
            Its output, with a first axis of size 1.
        """
        output = Value(self.names.unique(node.name), (1, *codes.shape), grid)
        return self.add(Step("constant", [], output, [node], codes=codes))

    def weight(self, node, codes, grid):
        """Adds a constant that has no batch in Keras either; returns its output."""
        drops = int(codes.ndim > 0 and codes.shape[0] == 1)  # the first axis has size 1
        value = self.constant(node, codes.reshape(codes.shape[drops:]), grid)
        self.weights[id(value)] = (value, codes)
        return value

    def pending(self, kind, node, inputs, options=None):
        """Returns the `Pending` of one node; a convolution absorbs the padding before it."""
        absorbed = None
        if kind == "linear" and isinstance(inputs[0], Padded):
            padded = inputs[0]
            if is_same_padding(node.operation.layer, padded):
                inputs, absorbed = [padded.source], padded.node
            else:
                inputs = [self.codes(padded)]
        shape, options = self.shape_of(node), options or {}
        return Pending(kind, inputs, shape, [node], options=options, absorbed=absorbed)

    def shape_of(self, node):
        """Returns a node's output shape, batch first.

        Raises:
            CannotExport: If a size other than the batch's is unknown.
        """
        index = node.outputs[0]
        shape, times = tuple(self.graph.tensors[index].shape), self.times.get(index, 1)
        if any(size is None for size in shape[1:]):
            raise CannotExport(f"it makes the shape {shape}, and only the batch may be open")
        if times != int(times):
            raise CannotExport("the batch has to stay the first axis")
        return shape if times == 1 else (-int(times), *shape[1:])

    def codes(self, value):
        """Returns `value` as codes that any step can read, with the zeros around them written."""
        if not isinstance(value, Padded):
            return value
        if value.written is None:
            options = {"paddings": value.paddings}
            value.written = self.copied("pad", [value.source], value.node, value.grid, options)
        return value.written

    # ---- rounding ------------------------------------------------------------------------------

    def quantize(self, node, value):
        """Returns `value` on the grid of the quantizer that is the node's operation."""
        quantizer = node.operation
        grid = self.grids.get(quantizer.name) or grid_of(quantizer)
        if isinstance(value, Pending):
            try:
                return self.round(value, node, grid, quantizer)
            except CannotExport as error:
                value = self.instead_of(Problem.at(node, error), lambda: self.as_float(value))
        if isinstance(value, Padded):
            # Zero stays zero: rounding first leaves the padding to the next step.
            inner = self.quantize(node, value.source)
            return Padded(inner, value.paddings, value.node, value.shape)
        if value.grid == grid:
            return value
        if value.grid is not None and id(node) in self.no_kernel:
            value = self.instead_of(self.no_kernel[id(node)], lambda: self.as_float(value))
        if value.grid is None:
            return self.rounded("quantize", node, [value], grid, quantizer)
        if id(value) in self.constants:
            output = self.round_constant(self.constants[id(value)], node, grid, quantizer)
            if id(value) in self.weights:
                codes = self.constants[id(output)].codes
                shape = self.weights[id(value)][1].shape
                self.weights[id(output)] = (output, codes.reshape(shape))
            return output
        self.look_for_ties("requantize", [value], grid, quantizer)
        return self.rounded("requantize", node, [value], grid, quantizer)

    def stand_ins(self, node, arguments):
        """Returns stand-ins for the outputs of a node that is refused, or after such a node.

        They let the layers after it be checked, too: codes on the grid of a quantizer, or on that
        of the codes that a layer copies; floats for a layer that computes in float; otherwise None.
        """
        try:
            self.shape_of(node)
            grid = self.expected_grid(node, arguments)
        except CannotExport:
            return [None] * len(node.outputs)
        values = []
        for index in node.outputs:
            tensor, name = self.graph.tensors[index], self.names.unique(node.name)
            value = Value(name, tensor.shape, grid, dtype=plain_dtype(tensor.dtype))
            values.append(self.add(Step("refused", [], value)))
        return values

    def expected_grid(self, node, arguments):
        """Returns the grid of a node's output, or None for floats.

        Raises:
            CannotExport: If it cannot be determined.
        """
        kind = kind_of(node.operation)
        if kind is Kind.QUANTIZER:
            return self.grids.get(node.operation.name) or grid_of(node.operation)
        if kind is Kind.FLOAT:
            return None
        known = [x for x in arguments if isinstance(x, Value | Padded)]
        if kind in (Kind.CARRY, Kind.CONCAT) and known:
            return known[0].grid
        raise CannotExport("its output has no grid yet")

    def round_constant(self, step, node, grid, quantizer):
        """Adds a constant step like `step`, on another grid; returns its output."""
        codes = grid.round(step.codes * np.float64(step.output.grid.scale))
        output = Value(self.names.unique(node.name), step.output.shape, grid, layer=node.name)
        return self.add(Step("constant", [], output, step.nodes, codes=codes, quantizer=quantizer))

    def look_for_ties(self, kind, values, grid, quantizer, slope=None):
        """Records a better grid if many results would lie halfway between two codes of `grid`."""
        if quantizer is None or quantizer.name in self.grids or self.nudged is not None:
            return
        better = ties.nudged(kind, [value.grid for value in values], grid, slope)
        if better is not None:
            self.nudged = (quantizer.name, better)

    def rounded(self, kind, node, values, grid, quantizer):
        """Adds a step that rounds its inputs; returns its output."""
        output = Value(self.names.unique(node.name), values[0].shape, grid, layer=node.name)
        return self.add(Step(kind, values, output, [node], quantizer=quantizer))

    def round(self, pending, node, grid, quantizer=None):
        """Adds the step that computes `pending` and rounds it to `grid`; returns its output.

        With a grid of None, nothing is rounded and the step computes in float.
        """
        weights = None if grid is None else self.checked_weights(pending, grid)
        layer = node.name if quantizer is not None else ""
        step = Step(
            pending.kind,
            pending.inputs,
            self.value(node, pending.shape, grid, layer),
            pending.nodes,
            pending.activation,
            options=dict(pending.options),
            absorbed=pending.absorbed,
            quantizer=quantizer,
            weights=weights,
        )
        if grid is None:
            step.affines = pending.affines
            return self.add(step)
        self.look_for_ties(pending.kind, pending.inputs, grid, quantizer, ties.leaky_slope(pending))
        return self.add(step)

    def checked_weights(self, pending, grid):
        """Returns the weights of a linear or affine step; `store` decides how they are stored.

        Raises:
            CannotExport: If a kernel does not support them, or this grid.
        """
        first = pending.nodes[0]
        try:
            if kind_of(first.operation) is Kind.SAME_GRID and grid != pending.inputs[0].grid:
                raise CannotExport("its output must have the grid of its input")
            if pending.kind in ("linear", "affine"):
                return folded_weights(pending, float(pending.inputs[0].grid.scale))
        except CannotExport as error:
            error.node = first
            raise
        return None

    # ---- floats --------------------------------------------------------------------------------

    def in_float(self, node, values):
        """Adds a step that computes one node on floats, or on whole numbers; returns its output."""
        kind = kind_of(node.operation)
        dtype = plain_dtype(self.graph.tensors[node.outputs[0]].dtype)
        if kind in (Kind.AFFINE, Kind.ELEMENTWISE) and dtype == "float32":
            values = [self.cast(value) if value.is_whole else value for value in values]
        try:
            if len(node.outputs) != 1:
                raise CannotExport("it has several outputs")
            made = RULES[kind](self, node, values)
            check_whole_numbers(node.operation, values, dtype)
        except CannotExport as error:
            error.node = node  # not its float reader
            raise
        made = self.round(made, node, None) if isinstance(made, Pending) else self.codes(made)
        if node.name not in self.folded.float_layers and dtype == "float32":
            self.folded.float_layers.append(node.name)
        return made

    def in_float_instead(self, problem, node, values):
        """Computes a node without integer kernel in float; returns its output."""
        return self.instead_of(
            problem, lambda: self.in_float(node, [self.as_float(value) for value in values])
        )

    def instead_of(self, problem, make):
        """Returns the float result of `make`.

        Raises:
            CannotExport: The `problem`, if there is no float kernel either.
        """
        try:
            made = make()
        except CannotExport:
            error = CannotExport(problem.reason, by_ranges=problem.by_ranges)
            error.node = problem.node
            raise error from None
        self.folded.no_kernel.append(problem)
        return made

    def as_float(self, value):
        """Returns `value` as floats; codes are dequantized once."""
        value = self.codes(value)
        if isinstance(value, Value) and value.grid is None:
            return value
        if id(value) not in self.floats:
            # The value itself is kept, so that its id stays unique.
            self.floats[id(value)] = (value, self.make_float(value))
        return self.floats[id(value)][1]

    def cast(self, value):
        """Returns integers as floats."""
        output = Value(self.names.unique(f"{value.name}_float"), value.shape, None)
        return self.add(Step("cast", [value], output))

    def make_float(self, value):
        """Adds the steps that turn codes, or results without codes yet, into floats."""
        if isinstance(value, Value):
            output = Value(self.names.unique(f"{value.name}_float"), value.shape, None)
            return self.add(Step("dequantize", [value], output))
        # Results that are not rounded are computed in float, starting from their inputs.
        values = [self.as_float(x) for x in value.inputs]
        if value.absorbed is not None:
            values = [self.in_float(value.absorbed, values)]
        for node in value.nodes:
            values = [self.in_float(node, values)]
        return values[0]


def check_whole_numbers(operation, values, dtype):
    """Checks that conversions between integers and floats happen only where kernels do them.

    Args:
        operation: The node's operation.
        values: The `Value`s that it reads, without grids.
        dtype: Type of its output: "float32" or "int32".

    Raises:
        CannotExport: If a kernel would read a type that it does not support.
    """
    reads_floats = [value.dtype == "float32" for value in values]
    name = name_of(operation)
    if dtype == "int32" and any(reads_floats) and name not in _MAKES_WHOLE_NUMBERS:
        raise CannotExport("whole numbers are not made of floats")
    knows_masks = name == "GlobalAveragePooling1D" or function_name(operation) == "softmax"
    is_masked = knows_masks and reads_floats == [True, False]
    reads_whole = is_masked or name in ("Cast", "Where")
    if dtype == "float32" and not all(reads_floats) and not reads_whole:
        raise CannotExport("whole numbers have to be cast to floats first")
