"""Convolutions and matrix products: exact int32 sums, one float32 multiplication, one rounding.

    y = clamp(round(float32(Σ (x − z_x)·w + b) · float32(float32(s_x·s_w) / s_y)) + z_y)

Ties go to even. The sum is exact, so its order does not matter, and it is computed in the fastest
exact way: weights divided by their greatest common factor (`Tensor.multiplier`, for weights that
were scaled up), in float32 as long as no partial sum can reach 2^24, else in float64.

Weights of 4 and 2 bits stay in XNNPACK only in `fully_connected`, and only if the input channels
fill whole bytes. The builtin kernels used otherwise round twice in fixed point; how they round ties
depends on whether they are vectorized. One of them, for ungrouped convolutions, rounds once on ARM
and in browsers, ties up: `differs_elsewhere`.

The same functions serve float islands: no zero point, no rounding, any order of summation.
"""

import math

import numpy as np

from speq_keras.export.tflite.exact_sums import accumulator, centre, exact_factors, exact_product
from speq_keras.export.tflite.network import Tensor, batches
from speq_keras.export.tflite.record import (
    Limits,
    Op,
    Operation,
    activation_of,
    always,
    constant_of,
    dilations_of,
    operation_of,
    product_ratio,
    version_of,
    window_of,
    without_absent_end,
)
from speq_keras.export.tflite.rounding import clamp_floats, float32_scale, requantize, rescale
from speq_keras.export.tflite.windows import output_sizes, pad_images, taps, windows

# Codes per byte, for weights narrower than a byte.
PACKED = {"int4": 2, "int2": 4}
CHUNK_BYTES = 4 * 2**20  # of unfolded patches at a time, for the same reason


def conv_2d(
    values,
    inputs,
    output,
    *,
    activation="none",
    strides=(1, 1),
    dilations=(1, 1),
    padding="same",
    once=False,
):
    """Convolution of x, filter OHWI and bias; grouped if the filter has fewer channels."""
    x, weights, bias = values
    channels_out, *kernel, channels_in = weights.shape
    groups = x.shape[3] // channels_in
    sizes, pads = output_sizes(x.shape[1:3], kernel, strides, dilations, padding)
    columns = math.prod(kernel) * channels_in
    # (group, filter size, filters of the group)
    matrix = weights.reshape(groups, channels_out // groups, columns).transpose(0, 2, 1)
    centred = centre(x, inputs[0])
    matrix, factor = exact_factors(matrix, centred)
    sums = np.empty((len(x), *sizes, channels_out), accumulator(x))
    step = max(1, CHUNK_BYTES // (4 * columns * groups * math.prod(sizes)))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        padded = pad_images(centred[part].astype(matrix.dtype), pads)
        patches = windows(padded, kernel, strides, dilations, sizes)
        if groups == 1:
            product = patches.reshape(-1, columns) @ matrix[0]
        else:
            patches = patches.reshape(*patches.shape[:5], groups, channels_in)
            patches = patches.transpose(5, 0, 1, 2, 3, 4, 6).reshape(groups, -1, columns)
            product = (patches @ matrix).transpose(1, 0, 2)
        sums[part] = product.reshape(-1, *sizes, channels_out)
    ties_up = groups == 1 if rounds_twice("conv_2d", inputs[1]) else None
    return finish(sums * factor, bias, inputs, output, activation, ties_up, once=once)


def depthwise_conv_2d(
    values,
    inputs,
    output,
    *,
    activation="none",
    strides=(1, 1),
    dilations=(1, 1),
    padding="same",
    multiplier=1,
):
    """Depthwise convolution: filter 1HW(C·M), output channel c·M + m reads channel c."""
    x, weights, bias = values
    kernel = weights.shape[1:3]
    sizes, pads = output_sizes(x.shape[1:3], kernel, strides, dilations, padding)
    padded = pad_images(centre(x, inputs[0]), pads).astype(accumulator(x))
    if multiplier > 1:
        padded = np.repeat(padded, multiplier, axis=3)
    weights = weights[0].astype(padded.dtype)
    sums = np.zeros((len(x), *sizes, weights.shape[2]), padded.dtype)
    for row, column in np.ndindex(*kernel):
        rows = taps(row, dilations[0], strides[0], sizes[0])
        columns = taps(column, dilations[1], strides[1], sizes[1])
        sums += padded[:, rows, columns] * weights[row, column]
    twice = rounds_twice("depthwise_conv_2d", inputs[1])
    ties_up = vector_channels(sums.shape[3]) if twice else None
    return finish(sums, bias, inputs, output, activation, ties_up)


def fully_connected(values, inputs, output, *, activation="none", keep_num_dims=False):
    """Product of x and a filter OI, plus a bias; the axes before the last are kept or merged."""
    x, weights, bias = values
    sums = exact_product(centre(x, inputs[0]).reshape(-1, weights.shape[1]), weights.T)
    if keep_num_dims:
        sums = sums.reshape(*x.shape[:-1], len(weights))
    ties_up = True if rounds_twice("fully_connected", inputs[1]) else None
    return finish(sums, bias, inputs, output, activation, ties_up)


def batch_matmul(values, inputs, output):
    """Matrix products of two tensors: (..., rows, n) · (..., n, columns).

    XNNPACK accepts those whose second tensor has a zero point of 0.
    """
    x, y = (centre(*pair).astype(np.float64) for pair in zip(values, inputs, strict=True))
    scales = [float32_scale(tensor.scale) for tensor in (*inputs, output)]
    sums = (x @ y).astype(np.int64)  # exact: below 2^53
    if inputs[1].zero_point == 0:
        return requantize(sums, scales[0] * scales[1] / scales[2], output)
    scales = [np.float64(scale) for scale in scales]
    return rescale(sums, scales[0] * scales[1] / scales[2], output)


def float_batch_matmul(values, inputs, output):
    """Matrix products of the last two axes, in float."""
    return values[0] @ values[1]


def transpose_conv(
    values,
    inputs,
    output,
    *,
    activation="none",
    strides=(1, 1),
    padding="same",
    output_size=None,
):
    """Transposed convolution of x, filter OHWI and bias: each pixel adds its filter to the output.

    The padding is that of the convolution from `output_size` back to the size of `x`. A filter
    smaller than the stride stays in XNNPACK only with padding "valid", which is equivalent there.
    """
    x, weights, bias = values
    channels_out, *kernel, channels_in = weights.shape
    _, pads = output_sizes(output_size, kernel, strides, (1, 1), padding)
    product = exact_product(
        centre(x, inputs[0]).reshape(-1, channels_in), weights.reshape(-1, channels_in).T
    ).reshape(*x.shape[:3], channels_out, *kernel)
    full = [
        max((x.shape[1 + i] - 1) * strides[i] + kernel[i], pads[i][0] + output_size[i])
        for i in range(2)
    ]
    sums = np.zeros((len(x), *full, channels_out), product.dtype)
    for row, column in np.ndindex(*kernel):
        rows = taps(row, 1, strides[0], x.shape[1])
        columns = taps(column, 1, strides[1], x.shape[2])
        sums[:, rows, columns] += product[..., row, column]
    top, left = pads[0][0], pads[1][0]
    sums = sums[:, top : top + output_size[0], left : left + output_size[1]]
    small = any(size < stride for size, stride in zip(kernel, strides, strict=True))
    ties_up = vector_channels(channels_out) if padding == "same" and small else None
    return finish(sums, bias, inputs, output, activation, ties_up)


def vector_channels(channels):
    """Returns which channels fill vectors of 8; the rest take a builtin kernel's scalar path."""
    return np.arange(channels) < channels // 8 * 8


def finish(sums, bias, inputs, output, activation, ties_up=None, once=False):
    """Adds the bias to the sums and requantizes them; floats are only clamped.

    `ties_up` is None for XNNPACK; otherwise it and `once` are as in `rescale`.
    """
    if bias is not None:
        sums = sums + bias.astype(sums.dtype)
    if sums.dtype == np.float32:
        return clamp_floats(sums, activation)
    scales = [float32_scale(tensor.scale) for tensor in (*inputs[:2], output)]
    if ties_up is None:
        return requantize(sums, scales[0] * scales[1] / scales[2], output, activation)
    multipliers = np.float64(scales[0]) * scales[1].astype(np.float64) / np.float64(scales[2])
    return rescale(sums, multipliers, output, activation, ties_up=ties_up, once=once)


def differs_elsewhere(node, tensors):
    """Whether a node's kernel computes different codes on ARM and in browsers than on x86.

    Args:
        node: `network.Node`.
        tensors: {name: `network.Tensor`}.
    """
    if node.kind != "conv_2d":
        return False
    x, weights = (tensors[name] for name in node.inputs[:2])
    return rounds_twice(node.kind, weights) and weights.shape[3] == x.shape[3]


def rounds_twice(kind, weights):
    """Whether a node with weights runs outside XNNPACK, on a kernel that rounds twice.

    Args:
        kind: Kind of the node.
        weights: The `Tensor` of its weights.
    """
    if weights.dtype not in PACKED:
        return False
    return kind != "fully_connected" or weights.shape[1] % PACKED[weights.dtype] != 0


def unit_steps(node, tensors):
    """Returns the distance between neighbouring sums in output steps, a vector over channels."""
    x, weights = (tensors[name] for name in node.inputs[:2])
    return np.float64(x.scale) * weights.scale / np.float64(tensors[node.output].scale)


def _slack_of_weights(node, tensors):
    """Returns the distance between sums; builtin kernels first round them to a fraction of it."""
    if not rounds_twice(node.kind, tensors[node.inputs[1]]):
        return 0.0
    return float(np.max(unit_steps(node, tensors)))


def _slack_of_matmul(node, tensors):
    return float(unit_steps(node, tensors)) if tensors[node.inputs[1]].zero_point else 0.0


# ---- emitters ---------------------------------------------------------------------------------


def _biased(node, tensors):
    """Returns a convolution's inputs, with zeros for an absent bias: its kernels need one."""
    image, weights, *bias = node.inputs
    if any(bias):
        return node.inputs
    kernel = tensors[weights]
    channels = kernel.shape[0 if node.kind == "conv_2d" else 3]
    zeros = Tensor(
        name=f"{node.output}/bias",
        shape=(channels,),
        dtype="float32" if kernel.scale is None else "int32",
        data=np.zeros(channels, np.int32),
    )
    if kernel.scale is not None:
        zeros.scale = np.float32(tensors[image].scale) * np.asarray(kernel.scale, np.float32)
        zeros.axis = 0 if kernel.is_per_channel else None
    return [image, weights, zeros]


def _emit_conv_2d(node, tensors, batch_size):
    image, weights = (tensors[name] for name in node.inputs[:2])
    if weights.dtype == "int4":
        version = 7
    elif weights.shape[-1] != image.shape[-1]:  # grouped
        version = 6
    else:
        version = version_of(node, tensors, quantized=3)
    return operation_of(
        node,
        "CONV_2D",
        "Conv2DOptions",
        inputs=_biased(node, tensors),
        version=version,
        **window_of(node),
        **dilations_of(node),
    )


def _emit_depthwise_conv_2d(node, tensors, batch_size):
    options = {
        **window_of(node),
        **dilations_of(node),
        "depthMultiplier": node.options["multiplier"],
    }
    dilated = options["dilationHFactor"] > 1 or options["dilationWFactor"] > 1
    if tensors[node.inputs[1]].dtype == "int4":
        version = 7
    else:
        version = max(2 if dilated else 1, version_of(node, tensors, quantized=3))
    return operation_of(
        node,
        "DEPTHWISE_CONV_2D",
        "DepthwiseConv2DOptions",
        inputs=_biased(node, tensors),
        version=version,
        **options,
    )


def _emit_fully_connected(node, tensors, batch_size):
    weights = tensors[node.inputs[1]]
    keeps = bool(node.options.get("keep_num_dims", False))
    needs = {
        version_of(node, tensors, quantized=4): True,
        5: keeps,
        6: not any(node.inputs[2:]),
        # The converter does not raise the version for scales per channel, but older kernels
        # silently read only one scale. TensorFlow 2.14, which supports 10, computes them correctly.
        10: weights.is_per_channel or weights.dtype == "int4",
        12: weights.is_per_channel and weights.dtype == "int4",  # 2.14 fails on these
        14: weights.dtype == "int2",
    }
    return operation_of(
        node,
        "FULLY_CONNECTED",
        "FullyConnectedOptions",
        version=max(version for version, needed in needs.items() if needed),
        keepNumDims=keeps,
        **activation_of(node),
    )


def _emit_transpose_conv(node, tensors, batch_size):
    image, weights, *bias = node.inputs
    first = tensors[node.output].shape[0]
    first = batches(first) * batch_size or first
    size = (first, *node.options["output_size"], tensors[weights].shape[0])
    version = 3 if any(bias) else version_of(node, tensors)
    return Operation(
        operator="TRANSPOSE_CONV",
        inputs=without_absent_end([constant_of(node, "shape", size), weights, image, *bias]),
        outputs=node.outputs,
        options_type="TransposeConvOptions",
        options=window_of(node),
        version=version if node.activation == "none" else 4,
    )


# ---- records ---------------------------------------------------------------------------------

_LIMITS = Limits(
    low=0,
    high=2**8,
    ratios=product_ratio,
    says="its sums are {:.3g} output steps wide, and kernels accept less than 256",
)


def _with_bias(emit, kernel, since):
    """Returns the record of an operation that multiplies by weights and adds a bias."""
    return Op(
        emit=emit,
        integer=kernel,
        floating=kernel,
        limits=_LIMITS,
        slack=_slack_of_weights,
        since=since,
        is_spatial=kernel is not fully_connected,
        has_bias=True,
        fuses=True,
    )


OPS = {
    "conv_2d": _with_bias(_emit_conv_2d, conv_2d, {6: (2, 9, 0), 7: (2, 11, 0)}),
    "depthwise_conv_2d": _with_bias(_emit_depthwise_conv_2d, depthwise_conv_2d, {7: (2, 11, 0)}),
    # The oldest versions on which they were run.
    "fully_connected": _with_bias(
        _emit_fully_connected,
        fully_connected,
        {10: (2, 14, 0), 12: (2, 19, 0), 14: (2, 21, 0)},
    ),
    "transpose_conv": _with_bias(_emit_transpose_conv, transpose_conv, {4: (2, 13, 0)}),
    "batch_matmul": Op(
        emit=always("BATCH_MATMUL", "BatchMatMulOptions", quantized=2),
        integer=batch_matmul,
        floating=float_batch_matmul,
        limits=_LIMITS,
        slack=_slack_of_matmul,
    ),
}
