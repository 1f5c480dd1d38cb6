"""One node of the integer network as operations of the TFLite schema, still plain data.

`EMITTERS` maps a node's kind to a function (node, tensors, batch_size) that returns an `Operation`,
or a list of them. A new kind is a row in that table, with a small function where its options depend
on the node; the writer does not change.
"""

import dataclasses

import numpy as np

from speq_keras.export.network import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation in the schema's own words.

    Attributes:
        operator: Name in the schema's `BuiltinOperator`.
        inputs, outputs: Tensor names, "" for an input that is absent, or a `Tensor` that is not in
            the network and exists for this operation only.
        options_type: Name in the schema's `BuiltinOptions`, or None.
        options: {field of that options table: value}. Enumerations by name: "SAME", "RELU".
        version: Of the operator: the oldest one whose kernels compute this right.
    """

    operator: str
    inputs: list
    outputs: list
    options_type: str | None = None
    options: dict = dataclasses.field(default_factory=dict)
    version: int = 1


def _operation(node, operator, options_type=None, *, more_inputs=(), version=1, **options):
    """Returns the `Operation` that reads what `node` reads, and then `more_inputs`."""
    return Operation(
        operator=operator,
        inputs=_present([*node.inputs, *more_inputs]),
        outputs=node.outputs,
        options_type=options_type,
        options=options,
        version=version,
    )


def _present(inputs):
    """Returns `inputs` without the absent ones at the end, which convolutions do not accept."""
    while inputs and inputs[-1] == "":
        inputs = inputs[:-1]
    return inputs


def _constant(node, what, values):
    """Returns an int32 constant for `node`: a shape, axes, paddings."""
    values = np.asarray(values, np.int32)
    name = f"{node.output}/{what}"
    return Tensor(name=name, shape=values.shape, dtype="int32", data=values)


def _version(node, tensors, *, quantized=2):
    """Returns 1 for float32, and `quantized` for the versions that brought 8 bits."""
    return 1 if tensors[node.inputs[0]].dtype == "float32" else quantized


def _activation(node):
    return {"fusedActivationFunction": node.activation.upper()}


def _window(node):
    """Returns the fields that convolutions and pooling share."""
    height, width = node.options["strides"]
    return {
        "padding": node.options["padding"].upper(),
        "strideH": int(height),
        "strideW": int(width),
        **_activation(node),
    }


def _dilations(node):
    height, width = node.options.get("dilations", (1, 1))
    return {"dilationHFactor": int(height), "dilationWFactor": int(width)}


def _always(operator, options_type=None, *, quantized=1, fused=False, **options):
    """Returns the emitter of an operator whose options are the same for all nodes.

    `quantized` is its version for 8-bit tensors; `fused`: its options hold the fused activation.
    """

    def emit(node, tensors, batch_size):
        activation = _activation(node) if fused else {}
        version = _version(node, tensors, quantized=quantized)
        return _operation(node, operator, options_type, version=version, **options, **activation)

    return emit


# ---- what multiplies by weights --------------------------------------------------------------


def _conv_2d(node, tensors, batch_size):
    image, weights = (tensors[name] for name in node.inputs[:2])
    if weights.dtype == "int4":
        version = 7
    elif weights.shape[-1] != image.shape[-1]:  # grouped
        version = 6
    else:
        version = _version(node, tensors, quantized=3)
    options = {**_window(node), **_dilations(node)}
    return _operation(node, "CONV_2D", "Conv2DOptions", version=version, **options)


def _depthwise_conv_2d(node, tensors, batch_size):
    options = {**_window(node), **_dilations(node), "depthMultiplier": node.options["multiplier"]}
    dilated = options["dilationHFactor"] > 1 or options["dilationWFactor"] > 1
    if tensors[node.inputs[1]].dtype == "int4":
        version = 7
    else:
        version = max(2 if dilated else 1, _version(node, tensors, quantized=3))
    return _operation(
        node, "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", version=version, **options
    )


def _fully_connected(node, tensors, batch_size):
    weights = tensors[node.inputs[1]]
    keeps = bool(node.options.get("keep_num_dims", False))
    needs = {
        _version(node, tensors, quantized=4): True,
        5: keeps,
        6: not any(node.inputs[2:]),
        10: weights.dtype == "int4",
        12: weights.is_per_channel,  # older kernels read the first scale only, and say nothing
        14: weights.dtype == "int2",
    }
    return _operation(
        node,
        "FULLY_CONNECTED",
        "FullyConnectedOptions",
        version=max(version for version, needed in needs.items() if needed),
        keepNumDims=keeps,
        **_activation(node),
    )


def _transpose_conv(node, tensors, batch_size):
    image, weights, *bias = node.inputs
    size = (batch_size, *node.options["output_size"], tensors[weights].shape[0])
    version = 3 if any(bias) else _version(node, tensors)
    return Operation(
        operator="TRANSPOSE_CONV",
        inputs=_present([_constant(node, "shape", size), weights, image, *bias]),
        outputs=node.outputs,
        options_type="TransposeConvOptions",
        options=_window(node),
        version=version if node.activation == "none" else 4,
    )


def _batch_matmul(node, tensors, batch_size):
    return _operation(
        node,
        "BATCH_MATMUL",
        "BatchMatMulOptions",
        version=_version(node, tensors),
        adjX=bool(node.options.get("adj_x", False)),
        adjY=bool(node.options.get("adj_y", False)),
    )


# ---- pooling and means -----------------------------------------------------------------------


def _pool(operator):
    def emit(node, tensors, batch_size):
        height, width = node.options["size"]
        options = {**_window(node), "filterHeight": int(height), "filterWidth": int(width)}
        version = _version(node, tensors)
        return _operation(node, operator, "Pool2DOptions", version=version, **options)

    return emit


def _mean(node, tensors, batch_size):
    return _operation(
        node,
        "MEAN",
        "ReducerOptions",
        more_inputs=[_constant(node, "axes", np.atleast_1d(node.options["axes"]))],
        version=_version(node, tensors),
        keepDims=bool(node.options["keep_dims"]),
    )


# ---- moving values around --------------------------------------------------------------------


def _concatenation(node, tensors, batch_size):
    options = {"axis": int(node.options["axis"]), **_activation(node)}
    version = _version(node, tensors)
    return _operation(node, "CONCATENATION", "ConcatenationOptions", version=version, **options)


def _reshape(node, tensors, batch_size):
    # -1 rather than the batch size, so that the batch can be resized.
    shape = np.array([-1 if size is None else size for size in node.options["shape"]], np.int32)
    target = [_constant(node, "shape", shape)]
    return _operation(node, "RESHAPE", "ReshapeOptions", more_inputs=target, newShape=shape)


def _transpose(node, tensors, batch_size):
    rank = len(tensors[node.inputs[0]].shape)
    order = [_constant(node, "permutation", node.options["permutation"])]
    version = {5: 4, 6: 6}.get(rank, _version(node, tensors))
    return _operation(node, "TRANSPOSE", "TransposeOptions", more_inputs=order, version=version)


def _pad(node, tensors, batch_size):
    rank = len(tensors[node.inputs[0]].shape)
    paddings = [_constant(node, "paddings", node.options["paddings"])]
    version = 4 if rank > 4 else _version(node, tensors)
    return _operation(node, "PAD", "PadOptions", more_inputs=paddings, version=version)


def _strided_slice(node, tensors, batch_size):
    end = node.options["end"]
    limits = {
        "begin": node.options["begin"],
        "end": [0 if stop is None else stop for stop in end],
        "strides": node.options["strides"],
    }
    return _operation(
        node,
        "STRIDED_SLICE",
        "StridedSliceOptions",
        more_inputs=[_constant(node, what, values) for what, values in limits.items()],
        version=4 if len(end) > 4 else _version(node, tensors),
        endMask=sum(1 << axis for axis, stop in enumerate(end) if stop is None),
    )


def _resize(operator, options_type):
    def emit(node, tensors, batch_size):
        centers = bool(node.options.get("half_pixel_centers", False))
        return _operation(
            node,
            operator,
            options_type,
            more_inputs=[_constant(node, "size", node.options["size"])],
            version=3 if centers else _version(node, tensors),
            halfPixelCenters=centers,
        )

    return emit


def _gather(node, tensors, batch_size):
    axis = int(node.options.get("axis", 0))
    return _operation(node, "GATHER", "GatherOptions", version=_version(node, tensors), axis=axis)


def _cast(node, tensors, batch_size):
    types = [tensors[name].dtype.upper() for name in (node.inputs[0], node.output)]
    return _operation(node, "CAST", "CastOptions", inDataType=types[0], outDataType=types[1])


# ---- element by element ----------------------------------------------------------------------


def _mul(node, tensors, batch_size):
    version = _version(node, tensors)
    if version > 1:
        a, b, product = (float(tensors[name].scale) for name in (*node.inputs, node.output))
        version = 3 if a * b >= product else version
    return _operation(node, "MUL", "MulOptions", version=version, **_activation(node))


def _gelu(node, tensors, batch_size):
    approximate = bool(node.options.get("approximate", False))
    version = _version(node, tensors)
    return _operation(node, "GELU", "GeluOptions", version=version, approximate=approximate)


def _leaky_relu(node, tensors, batch_size):
    return _operation(node, "LEAKY_RELU", "LeakyReluOptions", alpha=float(node.options["alpha"]))


def _lookup(node, tensors, batch_size):
    """Any function of one code: a table of its 256 results, read at code + 128."""
    code, table = node.inputs
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
        inputs=[wide, _constant(node, "offset", 128)],
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
    """Returns the `Operation`s that compute `node`, in computing order."""
    operations = EMITTERS[node.kind](node, tensors, batch_size)
    return operations if isinstance(operations, list) else [operations]
