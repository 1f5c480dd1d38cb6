"""Convolutions, dense layers and slopes per channel as integer operations."""

import numpy as np
from keras import layers

from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.lowering.encoding import encoding_of
from speq_keras.export.network import Tensor

# The largest code of a constant that a slope is made of.
_LARGEST = 127


def linear(builder, step):
    """Lowers a step with a weighted layer; chosen by the layer's class."""
    layer = step.nodes[0].operation.layer
    for classes, row in _ROWS:
        if isinstance(layer, classes):
            return row(builder, step, layer)
    raise CannotExport(f"there is no integer kernel for {type(layer).__name__}")


def _dense(builder, step, layer):
    codes = step.weights.codes.reshape(step.weights.codes.shape[0], -1)
    rank = len(step.inputs[0].shape)
    options = {"keep_num_dims": rank > 2}
    _emit(builder, step, "fully_connected", codes.T, 0, options)


def _convolution(builder, step, layer):
    codes = step.weights.codes
    if codes.ndim == 3:  # one dimension: a row of height one
        codes = codes[None]
    kernel = np.transpose(codes, (3, 0, 1, 2))
    options = _window(step, layer)
    pointwise = kernel.shape[1:3] == (1, 1) and options["strides"] == (1, 1)
    if step.weights.container != "int8" and pointwise and getattr(layer, "groups", 1) == 1:
        # The kernel that reads narrow weights at full speed.
        matrix = kernel.reshape(kernel.shape[0], -1)
        return _emit(builder, step, "fully_connected", matrix, 0, {"keep_num_dims": True})
    return _emit(builder, step, "conv_2d", kernel, 0, options, rank=4)


def _depthwise(builder, step, layer):
    codes = step.weights.codes
    if codes.ndim == 3:
        codes = codes[None]
    height, width, channels, multiplier = codes.shape
    kernel = codes.reshape(1, height, width, channels * multiplier)
    options = {**_window(step, layer), "multiplier": multiplier}
    return _emit(builder, step, "depthwise_conv_2d", kernel, 3, options, rank=4)


def _transposed(builder, step, layer):
    codes = step.weights.codes
    if codes.ndim == 3:
        codes = codes[None]
    if layer.output_padding is not None or any(n != 1 for n in _pair(layer.dilation_rate)):
        raise CannotExport("output_padding and dilation of a transposed convolution")
    kernel = np.transpose(codes, (2, 0, 1, 3))
    size = step.output.shape[1:-1]
    options = {
        "strides": _pair(layer.strides),
        "padding": layer.padding,
        "output_size": (1, *size) if len(size) == 1 else tuple(size),
    }
    return _emit(builder, step, "transpose_conv", kernel, 0, options, rank=4)


_ROWS = (
    ((layers.Dense, layers.EinsumDense), _dense),
    ((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    ((layers.Conv1DTranspose, layers.Conv2DTranspose), _transposed),
    ((layers.Conv1D, layers.Conv2D), _convolution),
)


def _pair(values):
    values = tuple(values) if isinstance(values, tuple | list) else (values,)
    return (1, *values) if len(values) == 1 else values


def _window(step, layer):
    padding = "same" if "absorbed" in step.options else layer.padding
    return {
        "strides": _pair(layer.strides),
        "dilations": _pair(layer.dilation_rate),
        "padding": "valid" if padding == "causal" else padding,
    }


def _emit(builder, step, kind, kernel, axis, options, rank=None):
    """Adds filter, bias and node. `kernel`: codes in the order of the file, channels on `axis`."""
    weights = step.weights
    x = builder.tensor(step.inputs[0])
    layer = step.nodes[0].operation.layer if step.kind == "linear" else None
    if layer is not None and getattr(layer, "padding", None) == "causal":
        reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        x = builder.pad(x, ((0, 0), (reach, 0), (0, 0)), step.name)
    if rank is not None and len(x.shape) == 3:
        x = builder.reshape(x, (x.shape[0], 1, *x.shape[1:]), step.name)
    encoding = encoding_of(step.output.grid)
    scale = weights.unit / encoding.factor / np.float64(x.scale)
    multiplier = _along(weights.multiplier, kernel.ndim, axis)
    filter_tensor = builder.network.add_tensor(
        Tensor(
            name=f"{step.name}/weights",
            shape=kernel.shape,
            dtype=weights.container if kind != "transpose_conv" else "int8",
            scale=scale.astype("float32"),
            axis=axis,
            data=(kernel * multiplier).astype("int8"),
            multiplier=int(weights.multiplier.max()),
            low=-127,
        )
    )
    builder.check_scales(step, filter_tensor.scale, x.scale, encoding.scale)
    bias = ""
    if weights.bias_codes.any() or kind != "fully_connected":  # only that kernel can do without
        bias = builder.network.add_tensor(
            Tensor(
                name=f"{step.name}/bias",
                shape=(weights.bias_codes.size,),
                dtype="int32",
                scale=np.float32(x.scale) * filter_tensor.scale,
                axis=0,
                data=weights.bias_codes.astype("int32"),
            )
        ).name
    inputs = [x.name, filter_tensor.name, bias]
    builder.rounded(step, kind, inputs, options, flattened=rank is not None)


def _along(vector, rank, axis):
    return np.reshape(vector, [-1 if i == axis else 1 for i in range(rank)])


def affine(builder, step):
    """Lowers a slope and shift per channel: a 1×1 depthwise convolution, or one multiplication."""
    weights = step.weights
    slopes = weights.scale * weights.codes
    if not weights.bias_codes.any() and np.all(slopes == slopes[0]) and slopes[0] != 0:
        return slope(builder, step, float(slopes[0]))
    x = builder.tensor(step.inputs[0])
    channels = x.shape[-1]
    kernel = weights.codes.reshape(1, 1, 1, channels)
    options = {"strides": (1, 1), "dilations": (1, 1), "padding": "valid", "multiplier": 1}
    if len(x.shape) == 4:
        return _emit(builder, step, "depthwise_conv_2d", kernel, 3, options)
    # Kernels want height and width; the values do not care.
    spatial = int(np.prod([1, *x.shape[1:-1]]))
    flat = builder.reshape(x, (x.shape[0], 1, spatial, channels), step.name)
    inner = builder.renamed(step, flat)
    return _emit(builder, inner, "depthwise_conv_2d", kernel, 3, options, rank=4)


def slope(builder, step, factor):
    """Lowers multiplication by one number (1: a mere change of grid) to MUL with a constant."""
    x = builder.tensor(step.inputs[0])
    encoding = encoding_of(step.output.grid)
    in_factor = np.float64(x.step) / np.float64(x.scale)
    scale = np.float32(abs(factor) * in_factor / encoding.factor / _LARGEST)
    code = _LARGEST if factor > 0 else -_LARGEST
    constant = builder.constant(f"{step.name}/slope", code, scale)
    builder.rounded(step, "mul", [x.name, constant.name], {})
