"""The emitters: one node of the integer network as operations of the TFLite schema.

`EMITTERS` maps a node's kind to a function (node, tensors, batch_size) that returns an `Operation`,
or a list of them. A new kind is a row in that table, with a small function where its options depend
on the node; the writer does not change.
"""

import numpy as np

from speq_keras.export.tflite.network import Tensor
from speq_keras.export.tflite.record import (
    Operation,
    activation_of,
    constant_of,
    dilations_of,
    operation_of,
    version_of,
    window_of,
    without_absent_end,
)


def _always(operator, options_type=None, *, quantized=1, fused=False, **options):
    """Returns the emitter of an operator whose options are the same for all nodes.

    `quantized` is its version for 8-bit tensors; `fused`: its options hold the fused activation.
    """

    def emit(node, tensors, batch_size):
        activation = activation_of(node) if fused else {}
        version = version_of(node, tensors, quantized=quantized)
        return operation_of(node, operator, options_type, version=version, **options, **activation)

    return emit


# ---- what multiplies by weights --------------------------------------------------------------


def _biased(node, tensors):
    """Returns the inputs of a convolution, with zeros for an absent bias: its kernels need one."""
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


def _conv_2d(node, tensors, batch_size):
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


def _depthwise_conv_2d(node, tensors, batch_size):
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


def _fully_connected(node, tensors, batch_size):
    weights = tensors[node.inputs[1]]
    keeps = bool(node.options.get("keep_num_dims", False))
    needs = {
        version_of(node, tensors, quantized=4): True,
        5: keeps,
        6: not any(node.inputs[2:]),
        # The converter does not raise the version for scales per channel, but kernels from before
        # them read one scale and say nothing. TensorFlow 2.14, which knows 10, computes them right.
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


def _transpose_conv(node, tensors, batch_size):
    image, weights, *bias = node.inputs
    size = (batch_size, *node.options["output_size"], tensors[weights].shape[0])
    version = 3 if any(bias) else version_of(node, tensors)
    return Operation(
        operator="TRANSPOSE_CONV",
        inputs=without_absent_end([constant_of(node, "shape", size), weights, image, *bias]),
        outputs=node.outputs,
        options_type="TransposeConvOptions",
        options=window_of(node),
        version=version if node.activation == "none" else 4,
    )


def _batch_matmul(node, tensors, batch_size):
    return operation_of(
        node,
        "BATCH_MATMUL",
        "BatchMatMulOptions",
        version=version_of(node, tensors),
        adjX=bool(node.options.get("adj_x", False)),
        adjY=bool(node.options.get("adj_y", False)),
    )


# ---- pooling and means -----------------------------------------------------------------------


def _pool(operator):
    def emit(node, tensors, batch_size):
        height, width = node.options["size"]
        options = {**window_of(node), "filterHeight": int(height), "filterWidth": int(width)}
        version = version_of(node, tensors)
        return operation_of(node, operator, "Pool2DOptions", version=version, **options)

    return emit


def _mean(node, tensors, batch_size):
    return operation_of(
        node,
        "MEAN",
        "ReducerOptions",
        more_inputs=[constant_of(node, "axes", np.atleast_1d(node.options["axes"]))],
        version=version_of(node, tensors),
        keepDims=bool(node.options["keep_dims"]),
    )


# ---- moving values around --------------------------------------------------------------------


def _concatenation(node, tensors, batch_size):
    options = {"axis": int(node.options["axis"]), **activation_of(node)}
    version = version_of(node, tensors)
    return operation_of(node, "CONCATENATION", "ConcatenationOptions", version=version, **options)


def _reshape(node, tensors, batch_size):
    # -1 rather than the batch size, so that the batch can be resized.
    shape = np.array([-1 if size is None else size for size in node.options["shape"]], np.int32)
    target = [constant_of(node, "shape", shape)]
    return operation_of(node, "RESHAPE", "ReshapeOptions", more_inputs=target, newShape=shape)


def _transpose(node, tensors, batch_size):
    rank = len(tensors[node.inputs[0]].shape)
    order = [constant_of(node, "permutation", node.options["permutation"])]
    version = {5: 4, 6: 6}.get(rank, version_of(node, tensors))
    return operation_of(node, "TRANSPOSE", "TransposeOptions", more_inputs=order, version=version)


def _pad(node, tensors, batch_size):
    rank = len(tensors[node.inputs[0]].shape)
    paddings = [constant_of(node, "paddings", node.options["paddings"])]
    version = 4 if rank > 4 else version_of(node, tensors)
    return operation_of(node, "PAD", "PadOptions", more_inputs=paddings, version=version)


def _mirror_pad(node, tensors, batch_size):
    paddings = [constant_of(node, "paddings", node.options["paddings"])]
    version = version_of(node, tensors)
    mode = node.options["mode"].upper()
    return operation_of(
        node, "MIRROR_PAD", "MirrorPadOptions", more_inputs=paddings, version=version, mode=mode
    )


def _strided_slice(node, tensors, batch_size):
    end = node.options["end"]
    limits = {
        "begin": node.options["begin"],
        "end": [0 if stop is None else stop for stop in end],
        "strides": node.options["strides"],
    }
    return operation_of(
        node,
        "STRIDED_SLICE",
        "StridedSliceOptions",
        more_inputs=[constant_of(node, what, values) for what, values in limits.items()],
        version=4 if len(end) > 4 else version_of(node, tensors),
        endMask=sum(1 << axis for axis, stop in enumerate(end) if stop is None),
    )


def _resize(operator, options_type):
    def emit(node, tensors, batch_size):
        centers = bool(node.options.get("half_pixel_centers", False))
        return operation_of(
            node,
            operator,
            options_type,
            more_inputs=[constant_of(node, "size", node.options["size"])],
            version=3 if centers else version_of(node, tensors),
            halfPixelCenters=centers,
        )

    return emit


def _gather(node, tensors, batch_size):
    axis = int(node.options.get("axis", 0))
    return operation_of(
        node, "GATHER", "GatherOptions", version=version_of(node, tensors), axis=axis
    )


def _cast(node, tensors, batch_size):
    types = [tensors[name].dtype.upper() for name in (node.inputs[0], node.output)]
    return operation_of(node, "CAST", "CastOptions", inDataType=types[0], outDataType=types[1])


# ---- element by element ----------------------------------------------------------------------


def _mul(node, tensors, batch_size):
    version = version_of(node, tensors)
    if tensors[node.output].scale is not None:  # codes, and no whole numbers
        a, b, product = (float(tensors[name].scale) for name in (*node.inputs, node.output))
        version = 3 if a * b >= product else version
    return operation_of(node, "MUL", "MulOptions", version=version, **activation_of(node))


def _gelu(node, tensors, batch_size):
    approximate = bool(node.options.get("approximate", False))
    version = version_of(node, tensors)
    return operation_of(node, "GELU", "GeluOptions", version=version, approximate=approximate)


def _leaky_relu(node, tensors, batch_size):
    return operation_of(node, "LEAKY_RELU", "LeakyReluOptions", alpha=float(node.options["alpha"]))


def _lookup(node, tensors, batch_size):
    """Any function of one code: a table of its 256 results, read at code + 128.

    Where every channel has its own 256, they stand one after the other.
    """
    code, table = node.inputs
    channels = tensors[table].shape[0] // 256
    offset = 128 if channels == 1 else 128 + 256 * np.arange(channels)
    wide, index = (
        Tensor(name=f"{node.output}/{what}", shape=tensors[code].shape, dtype="int32")
        for what in ("code", "index")
    )
    to_int32 = Operation(
        operator="CAST",
        inputs=[code],
        outputs=[wide],
        options_type="CastOptions",
        options={"inDataType": "INT8", "outDataType": "INT32"},
    )
    to_index = Operation(
        operator="ADD",
        inputs=[wide, constant_of(node, "offset", offset)],
        outputs=[index],
        options_type="AddOptions",
    )
    read = Operation(
        operator="GATHER",
        inputs=[table, index],
        outputs=node.outputs,
        options_type="GatherOptions",
        version=2,
    )
    return [to_int32, to_index, read]


EMITTERS = {
    "quantize": _always("QUANTIZE", "QuantizeOptions"),
    "dequantize": _always("DEQUANTIZE", "DequantizeOptions", quantized=2),
    "conv_2d": _conv_2d,
    "depthwise_conv_2d": _depthwise_conv_2d,
    "fully_connected": _fully_connected,
    "transpose_conv": _transpose_conv,
    "batch_matmul": _batch_matmul,
    "average_pool_2d": _pool("AVERAGE_POOL_2D"),
    "max_pool_2d": _pool("MAX_POOL_2D"),
    "mean": _mean,
    "concatenation": _concatenation,
    "reshape": _reshape,
    "transpose": _transpose,
    "pad": _pad,
    "mirror_pad": _mirror_pad,
    "strided_slice": _strided_slice,
    "resize_nearest_neighbor": _resize("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
    "resize_bilinear": _resize("RESIZE_BILINEAR", "ResizeBilinearOptions"),
    "gather": _gather,
    "cast": _cast,
    "add": _always("ADD", "AddOptions", quantized=2, fused=True),
    "sub": _always("SUB", "SubOptions", quantized=2, fused=True),
    "mul": _mul,
    "logistic": _always("LOGISTIC", quantized=2),
    "tanh": _always("TANH", quantized=2),
    "elu": _always("ELU"),
    "hard_swish": _always("HARD_SWISH", "HardSwishOptions"),
    "gelu": _gelu,
    "leaky_relu": _leaky_relu,
    "prelu": _always("PRELU"),
    "softmax": _always("SOFTMAX", "SoftmaxOptions", quantized=2, beta=1.0),
    "lookup": _lookup,
    # Below: for float islands.
    "abs": _always("ABS", "AbsOptions"),
    "div": _always("DIV", "DivOptions", fused=True),
    "exp": _always("EXP", "ExpOptions"),
    "floor": _always("FLOOR"),
    "log": _always("LOG"),
    "maximum": _always("MAXIMUM", "MaximumMinimumOptions"),
    "minimum": _always("MINIMUM", "MaximumMinimumOptions"),
    "neg": _always("NEG", "NegOptions"),
    "pow": _always("POW", "PowOptions"),
    "relu": _always("RELU"),
    "relu6": _always("RELU6"),
    "rsqrt": _always("RSQRT"),
    "sqrt": _always("SQRT"),
    "square": _always("SQUARE", "SquareOptions"),
    "squared_difference": _always("SQUARED_DIFFERENCE", "SquaredDifferenceOptions"),
}


def emit(node, tensors, batch_size):
    """Returns the `Operation`s that compute `node`, in computing order.

    Args:
        node: A `Node`.
        tensors: {name: `Tensor`} of its network.
        batch_size: The file's batch size.
    """
    operations = EMITTERS[node.kind](node, tensors, batch_size)
    return operations if isinstance(operations, list) else [operations]
