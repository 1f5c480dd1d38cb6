"""From the trained graph to steps: what stands between two quantizers becomes one."""

import dataclasses

import keras
import numpy as np

from speq_keras.export.folding import affine, ties
from speq_keras.export.folding.carry import carry_of, changes_nothing
from speq_keras.export.folding.floats import check_float
from speq_keras.export.folding.padding import Padded, is_same_padding
from speq_keras.export.folding.steps import (
    CannotExport,
    FoldedNetwork,
    Grid,
    Step,
    Value,
    Weights,
    plain_dtype,
)
from speq_keras.export.folding.weights import (
    finish,
    is_embedding,
    is_position_embedding,
    make_scales_positive,
    summed_axes,
    table_of,
    weights_of,
)
from speq_keras.export.storage import container_of
from speq_keras.graph import Names, read_graph
from speq_keras.wrapping.kinds import Kind, fixed_range, function_name, kind_of

# Layers that an integer kernel computes; a subclass may do something else.
LINEAR_LAYERS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
    keras.layers.EinsumDense,
)
_PAIRS = {"Add": "add", "Subtract": "subtract", "Multiply": "multiply", "Square": "multiply"}


@dataclasses.dataclass(eq=False)
class Pending:
    """Computed and not rounded yet: the nodes since the last codes."""

    kind: str
    inputs: list  # of Values
    shape: tuple
    nodes: list
    affines: list = dataclasses.field(default_factory=list)  # (slope, shift), in order
    activation: str = "none"
    options: dict = dataclasses.field(default_factory=dict)


def fold_graph(model, storage="int8"):
    """Folds a calibrated SPEQModel.

    Args:
        model: The model.
        storage: See `export.storage`.

    Returns:
        A `FoldedNetwork`.

    Raises:
        ValueError: If a layer cannot be computed with integers; names all such layers.
    """
    grids = {}
    while True:
        try:
            return _Walker(model, storage, grids).run()
        except _Nudged as nudge:
            # A grid may belong to several tensors, also to earlier ones: begin again.
            grids[nudge.name] = nudge.grid


class _Nudged(Exception):
    """The quantizer `name` needs another grid."""

    def __init__(self, name, grid):
        super().__init__(name)
        self.name, self.grid = name, grid


class _Walker:
    def __init__(self, model, storage, grids):
        self.model = model
        self.storage = storage
        self.grids = grids  # {name of a quantizer: its nudged grid}
        self.graph = read_graph(model)
        self.folded = FoldedNetwork(model.name)
        self.values = {}
        self.names = Names()
        self.problems = []
        self.constants = {}  # id(value): the step that makes it
        self.floats = {}  # id(value): (value, the same in float)
        self.float_layers = []

    def run(self):
        for index in self.graph.input_indices:
            tensor = self.graph.tensors[index]
            name = self.names.unique(tensor.name)
            value = Value(name, tensor.shape, None, dtype=plain_dtype(tensor.dtype))
            self.values[index] = value
            self.folded.inputs.append(value)
        for node in self.graph.nodes:
            arguments = [self.values[index] for index in node.inputs]
            if any(value is None for value in arguments):  # behind a layer already refused
                outputs = [None] * len(node.outputs)
            else:
                try:
                    outputs = self.visit(node, arguments)
                except CannotExport as error:
                    at = error.node or node
                    operation = getattr(at.operation, "layer", at.operation)
                    self.problems.append(f"'{at.name}' ({type(operation).__name__}): {error}")
                    outputs = [None] * len(node.outputs)
            self.values.update(zip(node.outputs, outputs, strict=True))
        for index in self.graph.output_indices:
            if self.values[index] is not None:
                self.folded.outputs.append(self.output(index))
        if self.problems:
            raise ValueError(
                "Every layer of a model must be one that integer kernels compute. Received: "
                f"model={self.model.name!r} with {'; '.join(self.problems)}. Replace these "
                "layers, or leave them out of the exported part."
            )
        self.folded.notes += [
            f"The scale of {name} was made larger by one part in 2048: the scales that meet there "
            "put many results halfway between two codes."
            for name in self.grids
        ]
        if self.float_layers:
            self.folded.notes.append(
                f"Computed in float: {', '.join(self.float_layers)}. What comes behind them equals "
                "the simulation only from tensor to tensor."
            )
        self.folded.input_names = [tensor.name for tensor in self.model.inputs]
        self.folded.output_names = list(self.model.output_names)
        return self.folded

    # ---- visits --------------------------------------------------------------------------------

    def visit(self, node, arguments):
        """Returns the outputs of one node, a list."""
        kind = kind_of(node.operation)
        if kind is Kind.QUANTIZER:
            return [self.quantize(node, arguments[0])]
        if changes_nothing(node.operation) or self.only_renames_type(node, arguments):
            return [arguments[0]]  # may stand before a quantizer
        if kind is Kind.WEIGHTED and is_embedding(node.operation.layer):
            return [self.embedding(node, arguments[0])]
        if kind is Kind.FLOAT or any(_is_float(value, kind) for value in arguments):
            return [self.in_float(node, [self.as_float(value) for value in arguments])]
        if kind is Kind.CARRY:
            return self.carry(node, arguments)
        if kind is Kind.CONCAT:
            return [self.concatenate(node, [self.codes(a, node) for a in arguments])]
        if kind in (Kind.AFFINE, Kind.RELU) and isinstance(arguments[0], Pending):
            return [self.extend(arguments[0], node, kind)]
        visits = {
            Kind.WEIGHTED: self.weighted,
            Kind.MATMUL: self.matmul,
            Kind.AFFINE: self.begin_affine,
            Kind.RELU: self.begin_affine,
            Kind.ELEMENTWISE: self.elementwise,
            Kind.MEAN: self.mean,
            Kind.SAME_GRID: self.same_grid,
            Kind.TABLE: self.table,
        }
        return [visits[kind](node, arguments)]

    def only_renames_type(self, node, arguments):
        """Whether a cast leaves whole numbers what they are; in a mask all but 0 is true."""
        made = self.graph.tensors[node.outputs[0]].dtype
        is_cast = type(node.operation).__name__ == "Cast" and plain_dtype(made) == "int32"
        return is_cast and _is_whole(arguments[0])

    def embedding(self, node, value):
        """A table's rows have the grid of its weights: nothing is rounded."""
        codes, scale = table_of(node.operation)
        grid = Grid(np.float32(scale), -128, 127)
        shape = self.shape_of(node)
        output = Value(self.names.unique(node.name), shape, grid)
        if is_position_embedding(node.operation.layer):
            kind, codes = "constant", codes[: shape[-2]]
        elif _is_whole(value):
            kind = "embedding"
        else:
            raise CannotExport("only whole numbers can look rows up")
        self.add(Step(kind, [value], output, [node], options={"codes": codes}))
        return output

    def weighted(self, node, arguments):
        operation = node.operation
        if type(operation.layer) not in LINEAR_LAYERS:
            raise CannotExport("there is no integer kernel for it")
        if getattr(operation.layer, "data_format", None) == "channels_first":
            raise CannotExport("integer kernels read channels last")
        summed_axes(operation.layer)  # checks it
        return self.pending("linear", node, [self.codes(arguments[0], node, padded=True)])

    def matmul(self, node, arguments):
        values = [self.codes(argument, node) for argument in arguments]
        x, y = (tuple(value.shape) for value in values)
        if len(x) != len(y) or len(x) < 3 or x[1:-2] != y[1:-2]:
            raise CannotExport(f"there is no integer kernel for the shapes {x} and {y}")
        return self.pending("matmul", node, values)

    def begin_affine(self, node, arguments):
        pending = self.pending("affine", node, [self.codes(arguments[0], node)])
        pending.nodes = []
        return self.extend(pending, node, kind_of(node.operation))

    def extend(self, pending, node, kind):
        """Fuses a BatchNormalization, Rescaling, ... or ReLU into what came before."""
        result = dataclasses.replace(pending, nodes=[*pending.nodes, node])
        if kind is Kind.RELU:
            result.activation = _stricter(pending.activation, function_name(node.operation))
            return result
        if pending.kind not in ("linear", "affine") or pending.activation != "none":
            raise CannotExport("it cannot be folded into what stands before it")
        result.affines = [*pending.affines, affine.of(node.operation, result.shape[-1])]
        return result

    def elementwise(self, node, arguments):
        name = type(node.operation).__name__
        if len(arguments) == 1 and name != "Square":
            pending = self.pending("affine", node, [self.codes(arguments[0], node)])
            pending.affines.append(affine.of_call(node, pending.shape[-1]))
            return pending
        if name not in _PAIRS or len(arguments) > 2:
            raise CannotExport("there is no integer kernel for it")
        if name == "Square":
            arguments = [*arguments, *arguments]
        values = [self.codes(argument, node) for argument in arguments]
        return self.pending(_PAIRS[name], node, values)

    def mean(self, node, arguments):
        value = self.codes(arguments[0], node)
        rank = len(value.shape)
        operation = node.operation
        if isinstance(operation, keras.layers.Layer):
            axes, keeps = tuple(range(1, rank - 1)), operation.keepdims
            if operation.data_format == "channels_first":
                raise CannotExport("integer kernels read channels last")
        else:
            axes = operation.axis if operation.axis is not None else tuple(range(rank))
            axes = (axes,) if isinstance(axes, int) else tuple(axes)
            axes, keeps = tuple(sorted(axis % rank for axis in axes)), operation.keepdims
        if 0 in axes:
            raise CannotExport("a mean over the batch has no integer kernel")
        pending = self.pending("mean", node, [value])
        pending.options = {"axes": axes, "keep_dims": bool(keeps)}
        return pending

    def same_grid(self, node, arguments):
        value = self.codes(arguments[0], node)
        kind, options = carry_of(node, value.shape, self.shape_of(node))
        pending = self.pending(kind, node, [value])
        pending.options = options
        return pending

    def table(self, node, arguments):
        return self.pending("table", node, [self.codes(arguments[0], node)])

    def carry(self, node, arguments):
        kind, options = carry_of(node, arguments[0].shape, self.shape_of(node))
        source = self.codes(arguments[0], node)
        if kind == "pad":
            return [Padded(source, options["paddings"], node, self.shape_of(node))]
        output = Value(self.names.unique(node.name), self.shape_of(node), source.grid)
        self.add(Step(kind, [source], output, [node], options=options))
        return [output]

    def concatenate(self, node, values):
        if any(value.grid != values[0].grid for value in values):
            raise CannotExport("its inputs have different grids")
        rank = len(values[0].shape)
        axis = getattr(node.operation, "axis", -1) % rank
        if type(node.operation).__name__ == "Stack":
            raise CannotExport("there is no integer kernel for it")
        output = Value(self.names.unique(node.name), self.shape_of(node), values[0].grid)
        self.add(Step("concatenate", values, output, [node], options={"axis": axis}))
        return output

    # ---- rounding ------------------------------------------------------------------------------

    def quantize(self, node, value):
        quantizer = node.operation
        grid = self.grids.get(quantizer.name) or grid_of(quantizer)
        if isinstance(value, Pending):
            return self.round(value, node, grid, quantizer)
        if isinstance(value, Padded):
            # Zero stays zero: rounding first leaves the padding to the reader.
            inner = self.quantize(node, value.source)
            return Padded(inner, value.paddings, value.node, value.shape)
        if value.grid is None:
            return self.rounded("quantize", node, [value], grid, quantizer)
        if value.grid == grid:
            return value
        if id(value) in self.constants:
            return self.round_constant(self.constants[id(value)], node, grid, quantizer)
        self.check_ties("requantize", [value], grid, quantizer)
        return self.rounded("requantize", node, [value], grid, quantizer)

    def round_constant(self, step, node, grid, quantizer):
        codes = grid.round(step.options["codes"] * np.float64(step.output.grid.scale))
        output = Value(self.names.unique(node.name), step.output.shape, grid, layer=node.name)
        options = {"codes": codes}
        self.add(
            Step("constant", step.inputs, output, step.nodes, options=options, quantizer=quantizer)
        )
        return output

    def check_ties(self, kind, values, grid, quantizer):
        if quantizer is None or quantizer.name in self.grids:
            return
        better = ties.nudged(kind, [value.grid for value in values], grid)
        if better is not None:
            raise _Nudged(quantizer.name, better)

    def rounded(self, kind, node, values, grid, quantizer):
        output = Value(self.names.unique(node.name), values[0].shape, grid, layer=node.name)
        self.add(Step(kind, values, output, [node], quantizer=quantizer))
        return output

    def round(self, pending, node, grid, quantizer=None):
        """Makes the step that computes `pending` and rounds it to `grid`."""
        layer = node.name if quantizer is not None else ""
        output = Value(self.names.unique(node.name), pending.shape, grid, layer=layer)
        step = Step(
            pending.kind,
            pending.inputs,
            output,
            pending.nodes,
            pending.activation,
            options=dict(pending.options),
            quantizer=quantizer,
        )
        if pending.kind in ("average_pool", "resize"):
            if grid != pending.inputs[0].grid:
                raise CannotExport("what it makes must have the grid of its input")
        elif pending.kind in ("add", "subtract", "multiply"):
            self.check_ties(pending.kind, pending.inputs, grid, quantizer)
        elif pending.kind in ("linear", "affine"):
            try:
                self.give_weights(step, pending)
            except CannotExport as error:
                error.node = pending.nodes[0]
                raise
        self.add(step)
        return output

    def give_weights(self, step, pending):
        source = step.inputs[0]
        if pending.kind == "affine":
            channels = pending.shape[-1]
            codes, scale, bias = np.ones(channels, "int32"), np.ones(channels), np.zeros(channels)
            axes = (-1,)
        else:
            codes, scale, bias, axes = weights_of(pending.nodes[0].operation)
        for slope, shift in pending.affines:
            # Where several axes number the channels, one number for each place on the last one.
            slope, shift = (np.resize(vector, scale.shape) for vector in (slope, shift))
            scale, bias = scale * slope, bias * slope + shift
        step.weights = Weights(codes, scale, bias, axes, input_scale=float(source.grid.scale))
        make_scales_positive(step.weights)
        if pending.kind == "linear":
            step.weights.container, step.options["why"] = container_of(step, self.storage)
        finish(step.weights, step.output.grid, self.folded.notes, step.name)

    # ---- values --------------------------------------------------------------------------------

    def codes(self, value, node, padded=False):
        """Returns `value` as codes that a step can read."""
        if isinstance(value, Padded):
            return value if padded else self.write_padding(value)
        return value

    def write_padding(self, value):
        if value.written is None:
            output = Value(self.names.unique(value.node.name), value.shape, value.source.grid)
            options = {"paddings": value.paddings}
            self.add(Step("pad", [value.source], output, [value.node], options=options))
            value.written = output
        return value.written

    def output(self, index):
        """Returns what leaves the model, as codes."""
        value = self.values[index]
        if isinstance(value, Padded):
            return self.write_padding(value)
        if not isinstance(value, Pending):
            return value
        operation = value.nodes[-1].operation
        if value.kind != "table" or fixed_range(operation) is None:
            return self.as_float(value)
        value = self.round(value, value.nodes[-1], fixed_grid(operation))
        self.values[index] = value
        return value

    # ---- floats --------------------------------------------------------------------------------

    def in_float(self, node, values):
        """Adds a step that computes one node in float."""
        check_float(node)
        dtype = plain_dtype(self.graph.tensors[node.outputs[0]].dtype)
        if dtype == "int32" and any(value.dtype == "float32" for value in values):
            raise CannotExport("whole numbers are not made of floats")
        reads_whole = [_is_whole(value) for value in values]
        is_masked = reads_whole == [False, True] and function_name(node.operation) == "softmax"
        is_cast = type(node.operation).__name__ == "Cast"
        if dtype == "float32" and any(reads_whole) and not (is_masked or is_cast):
            raise CannotExport("whole numbers have to be cast to floats first")
        output = Value(self.names.unique(node.name), self.shape_of(node), None, dtype=dtype)
        self.add(Step("float", values, output, [node]))
        if node.name not in self.float_layers and dtype == "float32":
            self.float_layers.append(node.name)
        return output

    def as_float(self, value):
        """Returns `value` as floats; codes go through DEQUANTIZE, once."""
        if isinstance(value, Padded):
            value = self.write_padding(value)
        if isinstance(value, Value) and value.grid is None:
            return value
        if id(value) not in self.floats:
            # The value itself is kept, so that its id stays its own.
            self.floats[id(value)] = (value, self.make_float(value))
        return self.floats[id(value)][1]

    def make_float(self, value):
        if isinstance(value, Value):
            output = Value(self.names.unique(f"{value.name}_float"), value.shape, None)
            self.add(Step("dequantize", [value], output))
            return output
        # Nothing rounds what was computed: it is computed in float from its inputs on.
        values = [self.as_float(x) for x in value.inputs]
        if "absorbed" in value.options:
            values = [self.in_float(value.options["absorbed"], values)]
        for node in value.nodes:
            values = [self.in_float(node, values)]
        return values[0]

    def pending(self, kind, node, inputs):
        if kind == "linear" and isinstance(inputs[0], Padded):
            inputs, absorbed = self.absorb_padding(node, inputs[0])
        else:
            absorbed = None
        pending = Pending(kind, inputs, self.shape_of(node), [node])
        if absorbed is not None:
            pending.options["absorbed"] = absorbed
        return pending

    def absorb_padding(self, node, padded):
        """Lets a convolution pad itself where that is what padding="same" does."""
        layer = node.operation.layer
        if is_same_padding(layer, padded):
            return [padded.source], padded.node
        return [self.write_padding(padded)], None

    def add(self, step):
        self.folded.steps.append(step)
        if step.kind == "constant":
            self.constants[id(step.output)] = step

    def shape_of(self, node):
        shape = self.graph.tensors[node.outputs[0]].shape
        if any(size is None for size in shape[1:]):
            raise CannotExport(f"it makes the shape {tuple(shape)}, and only the batch may be open")
        return shape


def grid_of(quantizer):
    """Returns the `Grid` of an activation quantizer at its current width."""
    grid = quantizer.grid()
    if grid is None:
        raise CannotExport("its width is float")
    scale, low, high = grid
    return Grid(np.float32(scale), int(low), int(high))


def fixed_grid(operation):
    """Returns the 8-bit grid that the integer kernel of softmax, sigmoid or tanh makes."""
    low, high = fixed_range(operation)
    scale = np.float32((high - low) / 255)
    return Grid(scale, round(low / float(scale)), round(high / float(scale)))


def _is_whole(value):
    return isinstance(value, Value) and value.grid is None and value.dtype == "int32"


def _is_float(value, kind):
    """Whether a node of this kind finds floats in `value`, not codes."""
    if isinstance(value, Pending):
        return kind not in (Kind.AFFINE, Kind.RELU)
    return isinstance(value, Value) and value.grid is None


def _stricter(before, now):
    order = ("none", "relu", "relu6")
    return order[max(order.index(before), order.index(now))]
