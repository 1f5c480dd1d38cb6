"""One small function for every kind of node: how the network represents it.

Each takes `(builder, node, arguments)` and returns what represents the node's output: a `Value`, a
`Padded` or a `Pending`. Arguments are also one of these. In a float island all of them are `Value`s
without a grid, and pending results are not rounded (`Builder.in_float`).
"""

import math

import keras
import numpy as np

from speq_keras.export.folding import affine
from speq_keras.export.folding.copying import copying_of, reduction_options
from speq_keras.export.folding.options import check_no_constants, unsupported
from speq_keras.export.folding.padding import Padded
from speq_keras.export.folding.pending import Pending, fused
from speq_keras.export.folding.steps import NO_KERNEL, CannotExport, Grid, Value, unwrapped
from speq_keras.export.folding.weights import check_linear, check_weights, is_linear, table_of
from speq_keras.export.tflite.network import batches
from speq_keras.graph import map_refs
from speq_keras.operations import LOWEST, Kind, function_name, kind_of, name_of

_TABLES = {"PositionEmbedding": "position_embeddings", "Weight": "weight"}
# Layers that read the masks attached to their inputs.
_READS_MASKS = ("Multiply", "Maximum", "Minimum")
# Kinds of steps that compute with two tensors; in float, one of them may be a constant.
_PAIRS = {"Add": "add", "Subtract": "subtract", "Multiply": "multiply"}
_PAIRS_IN_FLOAT = {
    **_PAIRS,
    **dict.fromkeys(("Divide", "TrueDivide"), "divide"),
    "Power": "power",
    "Maximum": "maximum",
    "Minimum": "minimum",
}
_RESIZING = ("Resizing", "Resize", "UpSampling2D")
# Operations that are a function of one value if the other operand is a constant.
_TABLED = ("Absolute", "Maximum", "Minimum")


def check_masks(graph, node):
    """Checks that a layer does not read attached masks, which a file does not have.

    Raises:
        CannotExport: If it does.
    """
    is_layer = isinstance(node.operation, keras.layers.Layer)
    looks = is_layer and name_of(node.operation) in _READS_MASKS
    if looks and not graph.carried.isdisjoint(node.inputs):
        raise CannotExport("its inputs carry masks, which it reads; use the operator")


def is_whole(argument):
    """Whether an argument consists of plain integers."""
    return isinstance(argument, Value) and argument.is_whole


def _in_float(arguments):
    """Whether a node computes with floats or plain integers, not with codes."""
    return isinstance(arguments[0], Value) and arguments[0].grid is None


def table_rows(builder, node, arguments):
    """Table rows are on the grid of the table's weights: nothing is rounded."""
    name = name_of(node.operation.layer)
    check_weights(node.operation, _TABLES.get(name, "embeddings"))
    codes, scale = table_of(node.operation)
    grid = Grid(np.float32(scale), -128, 127)
    if name == "Weight":
        return builder.weight(node, codes, grid)
    if name == "PositionEmbedding":
        return builder.constant(node, codes[: builder.shape_of(node)[-2]], grid)
    if not is_whole(arguments[0]):
        raise CannotExport("only whole numbers can look rows up")
    return builder.copied("embedding", arguments, node, grid, codes=codes)


def weighted(builder, node, arguments):
    """A layer with weights, which may pad its input itself."""
    layer = unwrapped(node.operation)
    if not _in_float(arguments):
        check_linear(layer)
    if layer is not node.operation:
        check_weights(node.operation, "kernel")
    return builder.pending("linear", node, arguments)


def matmul(builder, node, arguments):
    """The product of two tensors."""
    if _in_float(arguments):
        return builder.pending("matmul", node, arguments)
    if len(arguments) != 2:
        raise CannotExport("it multiplies by a constant")
    values = [builder.codes(argument) for argument in arguments]
    x, y = (tuple(value.shape) for value in values)
    if len(x) != len(y) or len(x) < 3 or x[1:-2] != y[1:-2]:
        raise CannotExport(f"there is no kernel for the shapes {x} and {y}")
    return builder.pending("matmul", node, values)


def affine_or_relu(builder, node, arguments):
    """A node that is fused into an unrounded result, or begins an affine step."""
    pending = arguments[0]
    if not isinstance(pending, Pending):
        pending = builder.pending("affine", node, [builder.codes(pending)])
        pending.nodes = []
    return fused(pending, node, kind_of(node.operation), in_float=_in_float(arguments))


def elementwise(builder, node, arguments):
    """An operation on two tensors, or on one and a constant."""
    name = name_of(node.operation)
    if _in_float(arguments):
        return builder.pending(_PAIRS_IN_FLOAT.get(name, "table"), node, arguments)
    if len(arguments) == 1 and name in _TABLED:
        return table(builder, node, arguments)
    if len(arguments) == 1 and name != "Square":
        pending = builder.pending("affine", node, [builder.codes(arguments[0])])
        pending.affines.append(affine.of_call(node, arguments[0].shape))
        return pending
    if name == "Square":
        name, arguments = "Multiply", [*arguments, *arguments]
    if name not in _PAIRS or len(arguments) > 2:
        raise CannotExport("there is no integer kernel for it")
    return builder.pending(_PAIRS[name], node, [builder.codes(argument) for argument in arguments])


def mean(builder, node, arguments):
    """A mean over some axes."""
    if len(arguments) > 1:  # the second one is a mask
        if _in_float(arguments):
            return builder.pending("GlobalAveragePooling1D", node, arguments)
        raise CannotExport("there is no integer kernel for a mean over masked values")
    value = builder.codes(arguments[0])
    options = reduction_options(node.operation, len(value.shape), "a mean")
    return builder.pending("mean", node, [value], options)


def same_grid(builder, node, arguments):
    """Operations that average codes on their own grid."""
    value, name = builder.codes(arguments[0]), name_of(node.operation)
    try:
        kind, options = copying_of(node, value.shape)
    except CannotExport:
        if not _in_float(arguments) or name not in _RESIZING:
            raise
        kind, options = name, {}
    if kind == "average_pool_3d" and not _in_float(arguments):
        raise CannotExport("there is no integer kernel for averages in three dimensions")
    return builder.pending(kind, node, [value], options)


def table(builder, node, arguments):
    """A function of one value, or softmax, whose second argument is the mask."""
    if _in_float(arguments) and name_of(node.operation) in _PAIRS_IN_FLOAT:
        return elementwise(builder, node, arguments)
    if len(arguments) > 1 and function_name(node.operation) != "softmax":
        raise CannotExport("there is a kernel for it only with one tensor and a constant")
    return builder.pending("table", node, [builder.codes(argument) for argument in arguments])


def carry(builder, node, arguments):
    """Operations that copy codes; zeros around them are left to the reader."""
    if id(arguments[0]) in builder.weights:
        value, codes = builder.weights[id(arguments[0])]
        tensor = keras.ops.convert_to_tensor(codes.astype("float32"))
        args, kwargs = map_refs((node.args, node.kwargs), lambda _: tensor)
        moved = keras.ops.convert_to_numpy(node.operation(*args, **kwargs))
        return builder.weight(node, moved.astype("int32"), value.grid)
    kind, options = copying_of(node, arguments[0].shape)
    source = builder.codes(arguments[0])
    if kind == "pad_constant" and source.grid is not None:
        _check_largest_is_taken(builder, node, options["constant"])
    if kind == "reshape":
        read, made = (_elements(shape) for shape in (source.shape, builder.shape_of(node)))
        if read != made:
            raise CannotExport("the batch has to stay the first axis")
    if kind == "pad":
        return Padded(source, options["paddings"], node, builder.shape_of(node))
    return builder.copied(kind, [source], node, source.grid, options)


def _check_largest_is_taken(builder, node, constant):
    """Checks that the padding value is practically -inf, and only read by max pooling."""
    readers = builder.graph.readers()[node.outputs[0]]
    if constant > LOWEST:
        raise CannotExport(f"argument constant_values={constant!r} is on no grid")
    if not readers or any("MaxPool" not in name_of(reader.operation) for reader in readers):
        raise CannotExport("only max pooling may read padding with such a low number")


def _elements(shape):
    """Returns the number of values in a shape, per example if the batch is open."""
    return math.prod(batches(size) or size for size in shape)


def concatenate(builder, node, arguments):
    """Concatenates tensors with one grid; also the maximum and minimum of codes."""
    check_no_constants(node)
    values = [builder.codes(argument) for argument in arguments]
    if any(value.grid != values[0].grid for value in values):
        raise CannotExport("its inputs have different grids")
    name = name_of(node.operation)
    if name in ("Maximum", "Minimum"):
        if len(values) != 2:
            raise CannotExport(f"kernels take 2 tensors at a time, and it reads {len(values)}")
        return builder.copied(name.lower(), values, node, values[0].grid)
    if name == "Stack":
        raise CannotExport(NO_KERNEL)
    axis = node.operation.axis % len(values[0].shape)
    if axis == 0:
        raise unsupported("axis", node.operation.axis, "it is the batch")
    return builder.copied("concatenate", values, node, values[0].grid, {"axis": axis})


def in_float_alone(builder, node, arguments):
    """A layer or operation without integer kernel, or one that is not quantized."""
    layer = unwrapped(node.operation)
    name = name_of(layer)
    if is_linear(layer):
        return weighted(builder, node, arguments)
    if kind_of(layer) is Kind.AFFINE or name in affine.ALONG_AXES:
        return affine_or_relu(builder, node, arguments)
    if function_name(layer) is not None:
        return table(builder, node, arguments)
    if not name:
        raise CannotExport(NO_KERNEL)
    return builder.pending(name, node, arguments)


RULES = {
    Kind.WEIGHTED: weighted,
    Kind.MATMUL: matmul,
    Kind.AFFINE: affine_or_relu,
    Kind.RELU: affine_or_relu,
    Kind.ELEMENTWISE: elementwise,
    Kind.MEAN: mean,
    Kind.SAME_GRID: same_grid,
    Kind.TABLE: table,
    Kind.CARRY: carry,
    Kind.CONCAT: concatenate,
    Kind.FLOAT: in_float_alone,
}
