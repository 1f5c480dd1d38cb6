"""Convolutions in three dimensions, which have float kernels only."""

import itertools

import numpy as np

from speq_keras.export.tflite.network import batches
from speq_keras.export.tflite.record import Op, Operation, activation_of, constant_of, operation_of
from speq_keras.export.tflite.rounding import clamp_floats
from speq_keras.export.tflite.windows import output_sizes, taps


def conv_3d(
    values, inputs, output, *, activation="none", strides, dilations=(1, 1, 1), padding="same"
):
    """Convolution of volumes: filter DHWIO."""
    x, weights, bias = values
    kernel = weights.shape[:3]
    sizes, pads = output_sizes(x.shape[1:4], kernel, strides, dilations, padding)
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    sums = np.zeros((len(x), *sizes, weights.shape[-1]), np.float32)
    for place in itertools.product(*map(range, kernel)):
        parts = [
            taps(index * dilation, 1, stride, size)
            for index, dilation, stride, size in zip(place, dilations, strides, sizes, strict=True)
        ]
        sums += x[(slice(None), *parts)] @ weights[place]
    return clamp_floats(sums + bias, activation)


def conv_3d_transpose(
    values, inputs, output, *, activation="none", strides, padding="same", output_size
):
    """Transposed convolution of volumes: filter DHWOI; each voxel adds its filter to the output."""
    x, weights, bias = values
    kernel = weights.shape[:3]
    _, pads = output_sizes(output_size, kernel, strides, (1, 1, 1), padding)
    rows = zip(x.shape[1:4], strides, kernel, pads, output_size, strict=True)
    full = [max((n - 1) * s + k, pad[0] + made) for n, s, k, pad, made in rows]
    sums = np.zeros((len(x), *full, weights.shape[3]), np.float32)
    for place in itertools.product(*map(range, kernel)):
        parts = [taps(i, 1, s, n) for i, s, n in zip(place, strides, x.shape[1:4], strict=True)]
        sums[(slice(None), *parts)] += x @ weights[place].T
    parts = [slice(pad[0], pad[0] + made) for pad, made in zip(pads, output_size, strict=True)]
    return clamp_floats(sums[(slice(None), *parts)] + bias, activation)


def _options(node):
    dilations = node.options.get("dilations", (1, 1, 1))
    names = ("D", "H", "W")
    return {
        "padding": node.options["padding"].upper(),
        **{f"stride{name}": int(n) for name, n in zip(names, node.options["strides"], strict=True)},
        **{f"dilation{name}Factor": int(n) for name, n in zip(names, dilations, strict=True)},
        **activation_of(node),
    }


def _emit_conv_3d(node, tensors, batch_size):
    return operation_of(node, "CONV_3D", "Conv3DOptions", **_options(node))


def _emit_conv_3d_transpose(node, tensors, batch_size):
    volume, weights, bias = node.inputs
    shape = tensors[node.output].shape
    shape = (batches(shape[0]) * batch_size or shape[0], *shape[1:])
    return Operation(
        operator="CONV_3D_TRANSPOSE",
        inputs=[constant_of(node, "shape", shape), weights, volume, bias],
        outputs=node.outputs,
        options_type="Conv3DOptions",
        options=_options(node),
    )


OPS = {
    "conv_3d": Op(emit=_emit_conv_3d, integer=None, floating=conv_3d, since={1: (2, 5, 0)}),
    "conv_3d_transpose": Op(
        emit=_emit_conv_3d_transpose, integer=None, floating=conv_3d_transpose, since={1: (2, 6, 0)}
    ),
}
