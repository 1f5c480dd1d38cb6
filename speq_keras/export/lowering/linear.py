"""Convolutions, dense layers and per-channel slopes as integer operations."""

import dataclasses

import keras
import numpy as np

from speq_keras.export.folding.options import unsupported
from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.folding.weights import slope_of, summed_axes
from speq_keras.export.lowering import float_linear, float_only
from speq_keras.export.lowering.build import image_shape
from speq_keras.export.lowering.encoding import encoding_of
from speq_keras.export.lowering.expression import Floats
from speq_keras.export.lowering.float_functions import activated
from speq_keras.export.tflite.network import Tensor
from speq_keras.operations import fused_function, name_of
from speq_keras.ops import einsum_axes

# The largest code of a constant that represents a slope.
_LARGEST = 127


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """How to write a layer: node kind, kernel in the file's order, its channel axis, options.

    `rank` is 4 if the kernel reads height and width, whatever the layer reads. `reads` and `makes`
    are the kernel's shapes if they differ from the layer's, otherwise None.
    """

    kind: str
    kernel: np.ndarray
    axis: int
    options: dict
    rank: int | None = None
    reads: tuple | None = None
    makes: tuple | None = None


def call_of(step, layer, kernel, container="int8"):
    """Returns the `KernelCall` of a weighted layer; chosen by the layer's class.

    Args:
        step: The step; its output's shape and its absorbed padding are used.
        layer: The Keras layer.
        kernel: Codes or floats in the layer's own layout.
        container: Type of the codes.

    Raises:
        CannotExport: If no kernel computes the layer.
    """
    row = WEIGHTED.get(name_of(layer))
    if row is None:
        raise CannotExport("there is no kernel for it")
    return row(step, layer, kernel, container)


def linear(builder, step):
    """Lowers a step with a weighted layer."""
    weights = step.weights
    if step.is_float:
        return _linear_in_float(builder, step)
    _emit(builder, step, call_of(step, step.layer, weights.codes, weights.container), step.layer)


def _linear_in_float(builder, step):
    """A layer with float weights, or quantized ones as floats, with its activation function."""
    operation, layer = step.nodes[0].operation, step.layer
    if name_of(layer).startswith("Separable"):
        return separable(builder, step)
    kernel = layer.kernel
    if operation is not layer:
        kernel = operation.quantizers["kernel"](kernel.value)
    kernel = keras.ops.convert_to_numpy(kernel)
    try:
        call = call_of(step, layer, kernel)
    except CannotExport:
        if name_of(layer) != "EinsumDense":
            raise
        return _ended(float_linear.einsum_dense(builder, step, kernel), layer)
    x = prepared_input(builder, builder.tensor(step.inputs[0]), layer, call.rank, step.name)
    if call.reads is not None:
        x = builder.make(step, "reshape", [x.name], call.reads, {"shape": call.reads})
    bias = np.zeros(call.kernel.shape[call.axis])
    if layer.bias is not None:
        bias = keras.ops.convert_to_numpy(layer.bias).ravel()
    kernel = builder.constant(f"{step.name}/weights", call.kernel)
    bias = builder.constant(f"{step.name}/bias", bias)
    shape = step.output.shape if call.makes is None else call.makes
    shape = shape if call.rank is None else image_shape(shape)
    y = builder.make(step, call.kind, [x.name, kernel.name, bias.name], shape, call.options)
    return _ended(Floats(builder, step, y), layer)


def _ended(y, layer):
    """Makes the last node write a step's output, after the layer's activation function."""
    function = fused_function(layer)
    return (y if function is None else activated(y, layer, function)).finish()


def _dense(step, layer, kernel, container):
    summed = summed_axes(layer)
    if name_of(layer) == "EinsumDense":
        inputs, axes, _ = einsum_axes(layer.equation)
        order = [*(a for a in axes if a in inputs), *(a for a in axes if a not in inputs)]
        kernel = kernel.transpose([axes.index(axis) for axis in order])
    kernel = kernel.reshape(int(np.prod(kernel.shape[:summed])), -1).T
    kept = tuple(step.inputs[0].shape[:-summed])
    reads, makes = (*kept, kernel.shape[1]), (*kept, kernel.shape[0])
    return KernelCall(
        "fully_connected",
        kernel,
        0,
        {"keep_num_dims": len(kept) > 1},
        reads=reads if summed > 1 else None,
        makes=makes if makes != tuple(step.output.shape) else None,
    )


def _convolution(step, layer, kernel, container):
    kernel = kernel[None] if kernel.ndim == 3 else kernel  # one dimension: height one
    kernel = np.transpose(kernel, (3, 0, 1, 2))
    options = _window(step, layer)
    pointwise = kernel.shape[1:3] == (1, 1) and options["strides"] == (1, 1)
    if container != "int8" and pointwise and layer.groups == 1:
        # The kernel that reads narrow weights at full speed.
        matrix = kernel.reshape(kernel.shape[0], -1)
        return KernelCall("fully_connected", matrix, 0, {"keep_num_dims": True})
    return KernelCall("conv_2d", kernel, 0, options, rank=4)


def _depthwise(step, layer, kernel, container):
    kernel = kernel[None] if kernel.ndim == 3 else kernel
    height, width, channels, multiplier = kernel.shape
    kernel = kernel.reshape(1, height, width, channels * multiplier)
    options = {**_window(step, layer), "multiplier": multiplier}
    return KernelCall("depthwise_conv_2d", kernel, 3, options, rank=4)


def _transposed(step, layer, kernel, container):
    kernel = kernel[None] if kernel.ndim == 3 else kernel
    for axis, dilation in enumerate(_pair(layer.dilation_rate)):
        kernel = _dilated(kernel, axis, dilation)
    size = tuple(step.output.shape[1:-1])
    strides = _pair(layer.strides)
    # If windows do not overlap, both paddings are equivalent, and the delegate accepts only one.
    apart = any(np.less(kernel.shape[:2], strides))
    if apart and layer.padding == "same" and any(np.greater(kernel.shape[:2], strides)):
        # They overlap along the other axis: zeros fill the gaps.
        gaps = [(0, max(s - n, 0)) for n, s in zip(kernel.shape[:2], strides, strict=True)]
        kernel, apart = np.pad(kernel, [*gaps, (0, 0), (0, 0)]), False
    options = {
        "strides": strides,
        "padding": "valid" if apart else layer.padding,
        "output_size": (1, *size) if len(size) == 1 else size,
    }
    return KernelCall("transpose_conv", np.transpose(kernel, (2, 0, 1, 3)), 0, options, rank=4)


def _volume(step, layer, kernel, container):
    if layer.groups != 1:
        raise unsupported("groups", layer.groups, "kernels of volumes have one")
    options = {**_window(step, layer), "strides": _tuple(layer.strides)}
    return KernelCall("conv_3d", kernel, 4, options)


def _volume_transposed(step, layer, kernel, container):
    for axis, dilation in enumerate(layer.dilation_rate):
        kernel = _dilated(kernel, axis, dilation)
    options = {
        "strides": _tuple(layer.strides),
        "padding": layer.padding,
        "output_size": tuple(step.output.shape[1:-1]),
    }
    return KernelCall("conv_3d_transpose", kernel, 3, options)


def separable(builder, step):
    """A separable convolution in float: a depthwise and a 1×1 convolution."""
    layer = step.layer
    x = prepared_input(builder, builder.tensor(step.inputs[0]), layer, 4, step.name)
    kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
    kernels = [keras.ops.convert_to_numpy(kernel) for kernel in kernels]
    calls = [_depthwise(step, layer, kernels[0], "int8"), _pointwise(kernels[1])]
    shape = image_shape(step.output.shape)
    biases = [np.zeros(kernels[1].shape[-2]), np.zeros(shape[-1])]
    if layer.bias is not None:
        biases[1] = keras.ops.convert_to_numpy(layer.bias)
    for call, bias in zip(calls, biases, strict=True):
        names = [x.name]
        names.append(builder.constant(f"{step.name}/weights", call.kernel).name)
        names.append(builder.constant(f"{step.name}/bias", bias).name)
        made = (*shape[:-1], len(bias))
        x = builder.make(step, call.kind, names, made, call.options)
    return _ended(Floats(builder, step, x), layer)


def _pointwise(kernel):
    kernel = np.transpose(kernel.reshape(1, 1, *kernel.shape[-2:]), (3, 0, 1, 2))
    options = {"strides": (1, 1), "dilations": (1, 1), "padding": "valid"}
    return KernelCall("conv_2d", kernel, 0, options)


def _dilated(kernel, axis, dilation):
    """Returns a kernel with zeros between its positions along an axis."""
    shape = list(kernel.shape)
    shape[axis] = (shape[axis] - 1) * dilation + 1
    wide = np.zeros(shape, kernel.dtype)
    wide[(slice(None),) * axis + (slice(None, None, dilation),)] = kernel
    return wide


# By Keras' class name.
WEIGHTED = {
    "Dense": _dense,
    "EinsumDense": _dense,
    "DepthwiseConv1D": _depthwise,
    "DepthwiseConv2D": _depthwise,
    "Conv1DTranspose": _transposed,
    "Conv2DTranspose": _transposed,
    "Conv1D": _convolution,
    "Conv2D": _convolution,
    "Conv3D": _volume,
    "Conv3DTranspose": _volume_transposed,
}


def _tuple(values):
    return tuple(values) if isinstance(values, tuple | list) else (values,)


def _pair(values):
    values = _tuple(values)
    return (1, *values) if len(values) == 1 else values


def _window(step, layer):
    padding = "same" if step.absorbed is not None else layer.padding
    return {
        "strides": _pair(layer.strides),
        "dilations": _pair(layer.dilation_rate),
        "padding": "valid" if padding == "causal" else padding,
    }


def prepared_input(builder, x, layer, rank, name):
    """Returns the tensor that a kernel reads: padded if causal, with a height if it has none."""
    if getattr(layer, "padding", None) == "causal":
        reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        x = builder.pad(x, ((0, 0), (reach, 0), (0, 0)), name)
    return x if rank is None else builder.with_height(x, name)


def _emit(builder, step, call, layer=None):
    """Adds filter, bias and node."""
    weights, kernel = step.weights, call.kernel
    x = prepared_input(builder, builder.tensor(step.inputs[0]), layer, call.rank, step.name)
    if call.reads is not None:
        x = builder.reshape(x, call.reads, step.name)
    encoding = encoding_of(step.output.grid)
    scale = weights.unit / encoding.factor / np.float64(x.scale)
    multiplier = _along(weights.multiplier, kernel.ndim, call.axis)
    filter_tensor = builder.constant_of(
        step,
        Tensor(
            name=f"{step.name}/weights",
            shape=kernel.shape,
            dtype=weights.container if call.kind != "transpose_conv" else "int8",
            scale=scale.astype("float32"),
            axis=call.axis,
            data=(kernel * multiplier).astype("int8"),
            multiplier=int(weights.multiplier.max()),
            low=-127,
        ),
    )
    bias = ""
    # Only this kernel accepts a missing bias.
    if weights.bias_codes.any() or call.kind != "fully_connected":
        bias = builder.constant_of(
            step,
            Tensor(
                name=f"{step.name}/bias",
                shape=(weights.bias_codes.size,),
                dtype="int32",
                scale=np.float32(x.scale) * filter_tensor.scale,
                axis=0,
                data=weights.bias_codes.astype("int32"),
            ),
        ).name
    inputs = [x.name, filter_tensor.name, bias]
    builder.rounded(step, call.kind, inputs, call.options, shape=call.makes)


def _along(vector, rank, axis):
    return np.reshape(vector, [-1 if i == axis else 1 for i in range(rank)])


def affine(builder, step):
    """Lowers slope and shift per channel: a 1×1 depthwise convolution, or one multiplication."""
    if step.is_float:
        return float_only.affine(builder, step)
    weights = step.weights
    factor = slope_of(step)
    if factor is not None:
        return slope(builder, step, factor)
    x = builder.tensor(step.inputs[0])
    channels = x.shape[-1]
    kernel = weights.codes.reshape(1, 1, 1, channels)
    options = {"strides": (1, 1), "dilations": (1, 1), "padding": "valid", "multiplier": 1}
    reads = None
    if len(x.shape) != 4:  # kernels need height and width; the order of values is the same
        reads = (x.shape[0], 1, int(np.prod([1, *x.shape[1:-1]])), channels)
    return _emit(builder, step, KernelCall("depthwise_conv_2d", kernel, 3, options, reads=reads))


def slope(builder, step, factor):
    """Lowers multiplication by one number (1: only the grid changes) to MUL with a constant."""
    x = builder.tensor(step.inputs[0])
    encoding = encoding_of(step.output.grid)
    in_factor = np.float64(x.trained_scale) / np.float64(x.scale)
    scale = np.float32(abs(factor) * in_factor / encoding.factor / _LARGEST)
    code = _LARGEST if factor > 0 else -_LARGEST
    constant = builder.code_constant(f"{step.name}/slope", code, scale)
    builder.rounded(step, "mul", [x.name, constant.name], {})
