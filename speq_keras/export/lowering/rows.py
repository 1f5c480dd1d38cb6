"""One small function `(builder, step)` for every step without weights: adds its operations."""

import copy
import math

import keras
import numpy as np

from speq_keras.export.folding.carry import slice_sizes
from speq_keras.export.folding.options import unsupported
from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.lowering.encoding import encoding_of
from speq_keras.export.tflite.network import Tensor
from speq_keras.export.tflite.pooling import mean_sends_halves_up
from speq_keras.operations import function_name, name_of

# Functions whose kernel rounds the exact value to a grid that it prescribes.
_PRESCRIBED = {"sigmoid": "logistic", "tanh": "tanh", "softmax": "softmax"}


def pair(kind):
    """Returns the row of an operation on two tensors."""

    def row(builder, step):
        inputs = [builder.plain(value) for value in step.inputs]
        builder.rounded(step, kind, [tensor.name for tensor in inputs], {}, has_scale=False)

    return row


def matmul(builder, step):
    """The product of two tensors; its kernel fuses no activation."""
    x, y = step.inputs
    inputs = [builder.plain(x).name, builder.plain(y, around_zero=True).name]
    builder.rounded(step, "batch_matmul", inputs, {}, has_scale=False)


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
    codes = step.options["codes"] + encoding.zero_point
    return builder.network.add_tensor(
        Tensor(
            name=name,
            shape=codes.shape,
            scale=encoding.scale,
            zero_point=encoding.zero_point,
            step=encoding.step,
            data=codes.astype("int8"),
        )
    )


def mean(builder, step):
    """A mean has a grid of its own."""
    x = builder.plain(step.inputs[0])
    options = {"axes": step.options["axes"], "keep_dims": step.options["keep_dims"]}
    builder.rounded(step, "mean", [x.name], options, has_scale=False)


def pool(kind):
    """Returns the row of a pooling operation; its output has the grid of its input."""

    def row(builder, step):
        if kind == "max_pool_2d" and set(step.options["size"]) == {1}:
            # Every other pixel: the fast delegate has a convolution for that, and no pooling.
            step = copy.copy(step)
            step.options = {**step.options, "padding": "valid"}
            return average_pool(builder, step)
        x = builder.tensor(step.inputs[0])
        names = ("size", "strides", "padding")
        options = {name: step.options[name] for name in names}
        if len(x.shape) == 3:
            options.update({name: (1, *options[name]) for name in ("size", "strides")})
        x = builder.with_height(x, step.name)
        return builder.emit(step, kind, [x.name], options, flattened=True)

    return row


def average_pool(builder, step):
    """As a depthwise convolution with equal weights where every window is full.

    AVERAGE_POOL_2D rounds halves away from zero, which in codes is up here and down there, and
    leaves the fast delegate. The bias is less than half the distance between two sums, so it moves
    nothing but the halves, which it sends up, as training does.

    One that is the whole image is a mean, which is fast and has no weights, wherever that sends
    halves up as well.
    """
    x = builder.tensor(step.inputs[0])
    options = step.options
    size = options["size"]
    if tuple(x.shape[1:-1]) == tuple(size) and _mean_of_image(builder, step, x, math.prod(size)):
        return builder.tensor_for(step)
    if options["padding"] != "valid":
        return pool("average_pool_2d")(builder, step)
    strides = options["strides"]
    if len(x.shape) == 3:
        size, strides = (1, *size), (1, *strides)
    x = builder.with_height(x, step.name)
    window = {
        "strides": strides,
        "dilations": (1, 1),
        "padding": "valid",
        "multiplier": 1,
    }
    names = [x.name, *_equal_weights(builder, step, x, size)]
    return builder.emit(step, "depthwise_conv_2d", names, window, flattened=True)


def _mean_of_image(builder, step, x, count):
    """Adds the mean of whole images, if some scale makes it exact; returns whether it did.

    MEAN sends halves to even. A scale that is smaller by a fraction of 1 / (N (L + 1/2)) moves all
    means up: halves over the half, for means of N codes up to L, and no other sum as far as that.
    A multiplication, which is exact, gives the codes their own scale back.
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
    factor = np.float64(output.scale) / np.float64(inner.scale)
    one = builder.constant(f"{step.name}/one", 127, np.float32(factor / 127))
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


def concatenate(builder, step):
    """All inputs have one grid, so codes are copied."""
    inputs = [builder.tensor(value).name for value in step.inputs]
    builder.emit(step, "concatenation", inputs, {"axis": step.options["axis"]})


def reshape(builder, step):
    """Codes are copied."""
    x = builder.tensor(step.inputs[0])
    builder.emit(step, "reshape", [x.name], {"shape": step.output.shape})


def transpose(builder, step):
    """Codes are copied."""
    options = {"permutation": step.options["permutation"]}
    builder.emit(step, "transpose", [builder.tensor(step.inputs[0]).name], options)


def pad(builder, step):
    """The kernel pads with the zero point, which means zero."""
    options = {"paddings": step.options["paddings"]}
    builder.emit(step, "pad", [builder.tensor(step.inputs[0]).name], options)


def mirror_pad(builder, step):
    """The kernel copies codes from inside."""
    options = {"paddings": step.options["paddings"], "mode": step.options["mode"]}
    builder.emit(step, "mirror_pad", [builder.tensor(step.inputs[0]).name], options)


def slice_(builder, step):
    """Codes are copied; an axis that an index took away goes by a reshape."""
    x = builder.tensor(step.inputs[0])
    options = {name: step.options[name] for name in ("begin", "end", "strides")}
    shape = (None, *slice_sizes(options)[1:])
    builder.emit(step, "strided_slice", [x.name], options, shape=shape)


def resize(kind):
    """Returns the row of a resize operation; Keras samples at the centres of the pixels."""

    def row(builder, step):
        x = builder.tensor(step.inputs[0])
        size = step.options["size"]
        if len(x.shape) == 3:
            size = (1, *size)
        x = builder.with_height(x, step.name)
        options = {"size": size, "half_pixel_centers": True}
        builder.emit(step, kind, [x.name], options, flattened=True)

    return row


def table(builder, step):
    """A function of one value: the kernel of that name, or its 256 values written down."""
    x = builder.plain(step.inputs[0])
    operation = step.nodes[0].operation
    name = function_name(operation)
    axis = getattr(operation, "axis", -1)
    if name == "softmax" and (np.atleast_1d(axis) % len(x.shape)).tolist() != [len(x.shape) - 1]:
        raise unsupported("axis", axis, "kernels know softmax over the last axis")
    if len(step.inputs) > 1:
        raise CannotExport("a mask has no integer kernel")
    if name in _PRESCRIBED:
        return builder.emit(step, _PRESCRIBED[name], [x.name])
    codes = np.arange(-128, 128) - x.zero_point
    values = codes.astype("float32") * np.float32(x.step)
    output = builder.tensor_for(step)
    values = _values_of(operation, values, x.shape[-1])
    stored = step.output.grid.round(values).reshape(-1) + output.zero_point
    data = builder.network.add_tensor(
        Tensor(
            name=f"{step.name}/table",
            shape=stored.shape,
            scale=output.scale,
            zero_point=output.zero_point,
            data=stored.astype("int8"),
        )
    )
    return builder.emit(step, "lookup", [x.name, data.name])


def _values_of(operation, values, channels):
    """Returns the function's values: a vector, or a row per channel where channels differ."""
    if name_of(operation) == "PReLU":
        alpha = keras.ops.convert_to_numpy(operation.alpha)
        if alpha.size != 1 and alpha.size != alpha.shape[-1]:
            shared = operation.shared_axes
            raise unsupported("shared_axes", shared, "share all axes but the last one")
        rows = np.where(values > 0, values, alpha.reshape(-1, 1) * values)
        return rows[0] if len(rows) == 1 else rows
    return keras.ops.convert_to_numpy(operation(keras.ops.convert_to_tensor(values)))
