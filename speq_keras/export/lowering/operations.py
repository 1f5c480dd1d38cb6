"""One small function `(builder, step)` per kind of step without weights: adds its operations.

Codes and floats are handled alike: for floats, the emitted operation is the float form of the same
operation, with nothing to round (`Builder.emit`, `Builder.rounded`).
"""

import copy
import math

import keras
import numpy as np

from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.lowering import float_linear
from speq_keras.export.lowering.encoding import encoding_of
from speq_keras.export.lowering.float_only import given_operands, operands
from speq_keras.export.tflite.network import Tensor
from speq_keras.export.tflite.pooling import mean_sends_halves_up
from speq_keras.graph import Ref, map_refs


def copied(builder, step):
    """Copies or averages codes on their grid: the operation of that name, with given options."""
    x, options = builder.tensor(step.inputs[0]), step.options
    if "size" in options and len(x.shape) == 3:  # sequences, as images of height one
        x = builder.with_height(x, step.name)
        ones = {name: (1, *options[name]) for name in ("size", "strides") if name in options}
        options = {**options, **ones}
    return builder.emit(step, step.kind, [x.name], options)


def one_to_one(kind):
    """Returns the row of an operation on one tensor of any kind, without options."""

    def row(builder, step):
        return builder.emit(step, kind, [builder.at_trained_scale(step.inputs[0]).name])

    return row


def pair(kind):
    """Returns the row of an operation on two tensors; for floats, one may be a constant."""

    def row(builder, step):
        if step.is_float:
            inputs = _operands(builder, step)
        else:
            inputs = [builder.at_trained_scale(value) for value in step.inputs]
        builder.rounded(step, kind, [tensor.name for tensor in inputs], {}, has_scale=False)

    return row


def _operands(builder, step):
    """Returns the tensors of both operands of an operation on floats; numbers are constants."""
    given = given_operands(step)
    if len(given) != 2:
        raise CannotExport(f"kernels take 2 tensors at a time, and it reads {len(given)}")
    if step.kind == "add":
        given = [x if isinstance(x, Ref) else _added(step, x) for x in given]
    return [x.tensor for x in operands(builder, step, step.output.dtype, given)]


def _added(step, constant):
    """Returns what a sum with a constant adds at every position.

    On TensorFlow, Keras takes a column for a bias of the channels if sizes match.
    """
    constant = np.asarray(constant)
    if constant.ndim < 2 or constant.shape[-1] > 1 or step.output.dtype != "float32":
        return constant
    zeros = keras.ops.zeros((1, *step.inputs[0].shape[1:]))
    args, kwargs = map_refs((step.nodes[0].args, step.nodes[0].kwargs), lambda _: zeros)
    return keras.ops.convert_to_numpy(step.layer(*args, **kwargs))[0]


def matmul(builder, step):
    """The product of two tensors; its kernel fuses no activation."""
    if step.is_float:
        return float_linear.matmul(builder, step)
    x, y = step.inputs
    inputs = [builder.at_trained_scale(x), builder.at_trained_scale(y, around_zero=True)]
    names = [tensor.name for tensor in inputs]
    builder.rounded(step, "batch_matmul", names, {}, has_scale=False)


def mean(builder, step):
    """The result of a mean has its own grid."""
    x = builder.at_trained_scale(step.inputs[0])
    builder.rounded(step, "mean", [x.name], step.options, has_scale=False)


def concatenate(builder, step):
    """All inputs have one grid, so codes are copied."""
    inputs = [builder.tensor(value).name for value in step.inputs]
    builder.emit(step, "concatenation", inputs, step.options)


def reshape(builder, step):
    """Codes are copied."""
    x = builder.tensor(step.inputs[0])
    builder.emit(step, "reshape", [x.name], {"shape": step.output.shape})


def gather(builder, step):
    """Values at constant positions of some axes, one axis after another."""
    x, places = builder.tensor(step.inputs[0]), step.options["places"]
    if step.options["reads"] is not None:
        x = builder.reshape(x, step.options["reads"], step.name)
    *first, last = places
    for axis in first:
        made = builder.like(x, f"{step.name}/axis_{axis}", _sized(x.shape, axis, places))
        index = builder.constant(f"{step.name}/places_{axis}", places[axis], "int32")
        x = builder.add("gather", [x.name, index.name], made, options={"axis": axis})
    index = builder.constant(f"{step.name}/places_{last}", places[last], "int32")
    shape = _sized(x.shape, last, places)
    builder.emit(step, "gather", [x.name, index.name], {"axis": last}, shape=shape)


def _sized(shape, axis, places):
    return (*shape[:axis], len(places[axis]), *shape[axis + 1 :])


# ---- tables ----------------------------------------------------------------------------------


def embedding(builder, step):
    """Rows of a table, copied."""
    rows = _table_tensor(builder, step, f"{step.name}/table")
    names = [rows.name, builder.tensor(step.inputs[0]).name]
    builder.add("gather", names, builder.tensor_for(step), layer=step.name)


def constant(builder, step):
    """A table that is added to every example."""
    tensor = _table_tensor(builder, step, step.name)
    tensor.shape, tensor.data = (1, *tensor.shape), tensor.data[None]
    builder.tensors[id(step.output)] = tensor


def _table_tensor(builder, step, name):
    encoding = encoding_of(step.output.grid)
    codes = step.codes + encoding.zero_point
    return builder.network.add_tensor(
        Tensor(
            name=name,
            shape=codes.shape,
            scale=encoding.scale,
            zero_point=encoding.zero_point,
            trained_scale=encoding.step,
            data=codes.astype("int8"),
        )
    )


# ---- pooling ---------------------------------------------------------------------------------


def max_pool(builder, step):
    """Every other pixel as a convolution: the fast delegate has no such pooling."""
    if step.is_float or set(step.options["size"]) != {1}:
        return copied(builder, step)
    step = copy.copy(step)
    step.options = {**step.options, "padding": "valid"}
    return average_pool(builder, step)


def pool_3d(builder, step):
    """As two image poolings: over height and width, then over depth."""
    x, options = builder.tensor(step.inputs[0]), step.options
    kind, padding = step.kind.replace("3d", "2d"), options["padding"]
    size, strides = options["size"], options["strides"]
    batch, depth, *_, channels = x.shape
    _, new_depth, height, width, _ = step.output.shape

    def added(kind, x, shape, **options):
        made = builder.like(x, f"{step.name}/{kind}", shape)
        return builder.add(kind, [x.name], made, options=options, layer=step.name)

    order = (0, 2, 3, 1, 4)
    x = added("transpose", x, [x.shape[axis] for axis in order], permutation=order)
    x = builder.reshape(x, (*x.shape[:3], depth * channels), step.name)
    window = {"size": size[1:], "strides": strides[1:], "padding": padding}
    x = added(kind, x, (batch, height, width, depth * channels), **window)
    x = builder.reshape(x, (batch, height * width, depth, channels), step.name)
    window = {"size": (1, size[0]), "strides": (1, strides[0]), "padding": padding}
    x = added(kind, x, (batch, height * width, new_depth, channels), **window)
    x = builder.reshape(x, (batch, height, width, new_depth, channels), step.name)
    return builder.emit(step, "transpose", [x.name], {"permutation": (0, 3, 1, 2, 4)})


def average_pool(builder, step):
    """As a depthwise convolution with equal weights, if every window is full.

    AVERAGE_POOL_2D rounds halves away from zero, that is, some codes up and others down, and does
    not run on the fast delegate. The bias is less than half the distance between two sums, so it
    only moves the halves; they are rounded up, as in training.

    A window of the whole image is a mean, which is fast and needs no weights, if that also rounds
    halves up.
    """
    if step.is_float:
        return copied(builder, step)
    x, options = builder.tensor(step.inputs[0]), step.options
    size, strides = options["size"], options["strides"]
    if tuple(x.shape[1:-1]) == tuple(size) and _mean_of_image(builder, step, x, math.prod(size)):
        return builder.tensor_for(step)
    if options["padding"] != "valid":
        return copied(builder, step)
    if len(x.shape) == 3:
        size, strides = (1, *size), (1, *strides)
    x = builder.with_height(x, step.name)
    window = {"strides": strides, "dilations": (1, 1), "padding": "valid", "multiplier": 1}
    names = [x.name, *_equal_weights(builder, step, x, size)]
    return builder.emit(step, "depthwise_conv_2d", names, window)


def _mean_of_image(builder, step, x, count):
    """Adds the mean of whole images if some scale makes it exact; returns whether it did.

    MEAN rounds halves to even. A scale that is smaller by a fraction of 1 / (N (L + 1/2)) moves all
    means up: halves past the half, for means of N codes up to L, and no other sum that far. An
    exact multiplication then restores the scale of the codes.
    """
    options = {"axes": tuple(range(1, len(x.shape) - 1)), "keep_dims": True}
    output = builder.tensor_for(step)
    if mean_sends_halves_up(x, output, count):
        builder.emit(step, "mean", [x.name], options)
        return True
    inner = copy.copy(output)
    inner.name, inner.layer = f"{step.name}/mean", ""
    largest = max(x.high - x.zero_point, 1)
    inner.scale = np.float32(np.float64(x.scale) / (1 + 1 / (count * (largest + 0.5))))
    if not mean_sends_halves_up(x, inner, count):
        return False
    builder.network.add_tensor(inner)
    builder.add("mean", [x.name], inner, options=options, layer=step.name)
    one = builder.one(step.name, np.float64(output.scale) / np.float64(inner.scale))
    builder.emit(step, "mul", [inner.name, one.name])
    return True


def _equal_weights(builder, step, x, size):
    """Adds the filter that averages a window, and its bias; returns their names."""
    channels, count = x.shape[-1], int(np.prod(size))
    code = 127
    filter_tensor = builder.network.add_tensor(
        Tensor(
            name=f"{step.name}/weights",
            shape=(1, *size, channels),
            scale=np.full(channels, 1 / (code * count), "float32"),
            axis=3,
            data=np.full((1, *size, channels), code, "int8"),
            multiplier=code,
        )
    )
    bias = builder.network.add_tensor(
        Tensor(
            name=f"{step.name}/bias",
            shape=(channels,),
            dtype="int32",
            scale=np.float32(x.scale) * filter_tensor.scale,
            axis=0,
            data=np.full(channels, code // 2, "int32"),
        )
    )
    return filter_tensor.name, bias.name
