"""One node of the integer network as operations of the TFLite schema, still plain data.

`EMITTERS` maps a node's kind to a function (node, tensors, batch_size) -> [Operation, ...]. A new
kind is a small function here and a row in that table; the writer does not change.
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
        version: Of the operator: what the oldest runtime has to know to compute this right.
    """

    operator: str
    inputs: list
    outputs: list
    options_type: str | None = None
    options: dict = dataclasses.field(default_factory=dict)
    version: int = 1


def constant(node, what, values):
    """Returns an int32 constant for `node`: a shape, axes, paddings."""
    values = np.asarray(values, np.int32)
    name = f"{node.output}/{what}"
    return Tensor(name=name, shape=values.shape, dtype="int32", data=values)


def is_float(node, tensors):
    return tensors[node.inputs[0]].dtype == "float32"


def version_of(node, tensors, *, quantized=2):
    """Returns 1 for float32 and `quantized` for 8-bit tensors."""
    return 1 if is_float(node, tensors) else quantized


def activation_of(node):
    return {"fusedActivationFunction": node.activation.upper()}


def window_of(node):
    """Returns the fields that convolutions and pooling share."""
    height, width = node.options["strides"]
    return {
        "padding": node.options["padding"].upper(),
        "strideH": int(height),
        "strideW": int(width),
        **activation_of(node),
    }


def dilations_of(node):
    height, width = node.options.get("dilations", (1, 1))
    return {"dilationHFactor": int(height), "dilationWFactor": int(width)}


# ---- what multiplies by weights --------------------------------------------------------------


def emit_conv_2d(node, tensors, batch_size):
    image, weights = (tensors[name] for name in node.inputs[:2])
    grouped = weights.shape[-1] != image.shape[-1]
    if weights.dtype in ("int4", "int2"):
        version = 7
    elif grouped:
        version = 6
    else:
        version = version_of(node, tensors, quantized=3)
    return [
        Operation(
            operator="CONV_2D",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="Conv2DOptions",
            options={**window_of(node), **dilations_of(node)},
            version=version,
        )
    ]


def emit_depthwise_conv_2d(node, tensors, batch_size):
    dilated = max(node.options.get("dilations", (1, 1))) > 1
    if tensors[node.inputs[1]].dtype in ("int4", "int2"):
        version = 7
    elif is_float(node, tensors):
        version = 2 if dilated else 1
    else:
        version = 3
    multiplier = {"depthMultiplier": int(node.options["multiplier"])}
    return [
        Operation(
            operator="DEPTHWISE_CONV_2D",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="DepthwiseConv2DOptions",
            options={**window_of(node), **dilations_of(node), **multiplier},
            version=version,
        )
    ]


def emit_fully_connected(node, tensors, batch_size):
    weights = tensors[node.inputs[1]]
    keep = bool(node.options.get("keep_num_dims", False))
    version = version_of(node, tensors, quantized=4)
    if keep:
        version = max(version, 5)
    if len(node.inputs) < 3 or not node.inputs[2]:
        version = max(version, 6)
    if weights.dtype == "int4":
        version = max(version, 10)
    if weights.is_per_channel:
        # Older kernels read the first scale only, and say nothing.
        version = max(version, 12)
    if weights.dtype == "int2":
        version = 14
    return [
        Operation(
            operator="FULLY_CONNECTED",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="FullyConnectedOptions",
            options={**activation_of(node), "keepNumDims": keep},
            version=version,
        )
    ]


def emit_transpose_conv(node, tensors, batch_size):
    image, weights, *bias = node.inputs
    height, width = node.options["output_size"]
    shape = constant(node, "shape", (batch_size, height, width, tensors[weights].shape[0]))
    if node.activation != "none":
        version = 4
    elif bias and bias[0]:
        version = 3
    else:
        version = version_of(node, tensors)
    return [
        Operation(
            operator="TRANSPOSE_CONV",
            inputs=[shape, weights, image, *bias],
            outputs=node.outputs,
            options_type="TransposeConvOptions",
            options=window_of(node),
            version=version,
        )
    ]


def emit_batch_matmul(node, tensors, batch_size):
    return [
        Operation(
            operator="BATCH_MATMUL",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="BatchMatMulOptions",
            options={
                "adjX": bool(node.options.get("adj_x", False)),
                "adjY": bool(node.options.get("adj_y", False)),
            },
            version=version_of(node, tensors),
        )
    ]


# ---- pooling and means -----------------------------------------------------------------------


def pool_emitter(operator):
    def emit_pool(node, tensors, batch_size):
        height, width = node.options["size"]
        return [
            Operation(
                operator=operator,
                inputs=node.inputs,
                outputs=node.outputs,
                options_type="Pool2DOptions",
                options={**window_of(node), "filterHeight": int(height), "filterWidth": int(width)},
                version=version_of(node, tensors),
            )
        ]

    return emit_pool


def emit_mean(node, tensors, batch_size):
    return [
        Operation(
            operator="MEAN",
            inputs=[*node.inputs, constant(node, "axes", np.atleast_1d(node.options["axes"]))],
            outputs=node.outputs,
            options_type="ReducerOptions",
            options={"keepDims": bool(node.options["keep_dims"])},
            version=version_of(node, tensors),
        )
    ]


# ---- moving values around --------------------------------------------------------------------


def emit_concatenation(node, tensors, batch_size):
    return [
        Operation(
            operator="CONCATENATION",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="ConcatenationOptions",
            options={"axis": int(node.options["axis"]), **activation_of(node)},
            version=version_of(node, tensors),
        )
    ]


def emit_reshape(node, tensors, batch_size):
    # -1 rather than the batch size, so that the batch can be resized.
    shape = [-1 if size is None else int(size) for size in node.options["shape"]]
    return [
        Operation(
            operator="RESHAPE",
            inputs=[*node.inputs, constant(node, "shape", shape)],
            outputs=node.outputs,
            options_type="ReshapeOptions",
            options={"newShape": np.asarray(shape, np.int32)},
        )
    ]


def emit_transpose(node, tensors, batch_size):
    rank = len(tensors[node.inputs[0]].shape)
    return [
        Operation(
            operator="TRANSPOSE",
            inputs=[*node.inputs, constant(node, "permutation", node.options["permutation"])],
            outputs=node.outputs,
            options_type="TransposeOptions",
            version={5: 4, 6: 6}.get(rank, version_of(node, tensors)),
        )
    ]


def emit_pad(node, tensors, batch_size):
    rank = len(tensors[node.inputs[0]].shape)
    return [
        Operation(
            operator="PAD",
            inputs=[*node.inputs, constant(node, "paddings", node.options["paddings"])],
            outputs=node.outputs,
            options_type="PadOptions",
            version=4 if rank > 4 else version_of(node, tensors),
        )
    ]


def emit_strided_slice(node, tensors, batch_size):
    begin, end, strides = (node.options[key] for key in ("begin", "end", "strides"))
    open_ends = sum(1 << axis for axis, stop in enumerate(end) if stop is None)
    limits = [0 if stop is None else stop for stop in end]
    return [
        Operation(
            operator="STRIDED_SLICE",
            inputs=[
                *node.inputs,
                constant(node, "begin", begin),
                constant(node, "end", limits),
                constant(node, "strides", strides),
            ],
            outputs=node.outputs,
            options_type="StridedSliceOptions",
            options={"endMask": open_ends},
            version=4 if len(begin) > 4 else version_of(node, tensors),
        )
    ]


def resize_emitter(operator, options_type):
    def emit_resize(node, tensors, batch_size):
        centers = bool(node.options.get("half_pixel_centers", False))
        return [
            Operation(
                operator=operator,
                inputs=[*node.inputs, constant(node, "size", node.options["size"])],
                outputs=node.outputs,
                options_type=options_type,
                options={"halfPixelCenters": centers},
                version=3 if centers else version_of(node, tensors),
            )
        ]

    return emit_resize


def emit_gather(node, tensors, batch_size):
    return [
        Operation(
            operator="GATHER",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="GatherOptions",
            options={"axis": int(node.options.get("axis", 0))},
            version=version_of(node, tensors),
        )
    ]


def emit_cast(node, tensors, batch_size):
    return [
        Operation(
            operator="CAST",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="CastOptions",
            options={
                "inDataType": tensors[node.inputs[0]].dtype.upper(),
                "outDataType": tensors[node.output].dtype.upper(),
            },
        )
    ]


# ---- element by element ----------------------------------------------------------------------


def plain_emitter(operator, options_type=None, *, quantized=1, fused=False, **options):
    """Returns the emitter of an operator whose options do not depend on the node.

    Args:
        operator, options_type, options: As in `Operation`.
        quantized: Version for 8-bit tensors.
        fused: Whether the options hold the fused activation.
    """

    def emit(node, tensors, batch_size):
        return [
            Operation(
                operator=operator,
                inputs=node.inputs,
                outputs=node.outputs,
                options_type=options_type,
                options={**options, **(activation_of(node) if fused else {})},
                version=version_of(node, tensors, quantized=quantized),
            )
        ]

    return emit


def emit_mul(node, tensors, batch_size):
    a, b, product = (tensors[name] for name in (*node.inputs, node.output))
    version = version_of(node, tensors)
    if version > 1 and float(a.scale) * float(b.scale) >= float(product.scale):
        version = 3
    return [
        Operation(
            operator="MUL",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="MulOptions",
            options=activation_of(node),
            version=version,
        )
    ]


def emit_quantize(node, tensors, batch_size):
    return [
        Operation(
            operator="QUANTIZE",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="QuantizeOptions",
        )
    ]


def emit_gelu(node, tensors, batch_size):
    return [
        Operation(
            operator="GELU",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="GeluOptions",
            options={"approximate": bool(node.options.get("approximate", False))},
            version=version_of(node, tensors),
        )
    ]


def emit_leaky_relu(node, tensors, batch_size):
    return [
        Operation(
            operator="LEAKY_RELU",
            inputs=node.inputs,
            outputs=node.outputs,
            options_type="LeakyReluOptions",
            options={"alpha": float(node.options["alpha"])},
        )
    ]


def emit_lookup(node, tensors, batch_size):
    """Any function of one code: its 256 results, and the code moved to 0 ... 255 as the index."""
    code, table = node.inputs
    shape = tensors[code].shape
    wide = Tensor(name=f"{node.output}/code", shape=shape, dtype="int32")
    index = Tensor(name=f"{node.output}/index", shape=shape, dtype="int32")
    return [
        Operation(
            operator="CAST",
            inputs=[code],
            outputs=[wide],
            options_type="CastOptions",
            options={"inDataType": "INT8", "outDataType": "INT32"},
        ),
        Operation(
            operator="ADD",
            inputs=[wide, constant(node, "offset", 128)],
            outputs=[index],
            options_type="AddOptions",
        ),
        Operation(
            operator="GATHER",
            inputs=[table, index],
            outputs=node.outputs,
            options_type="GatherOptions",
            version=2,
        ),
    ]


EMITTERS = {
    "quantize": emit_quantize,
    "dequantize": plain_emitter("DEQUANTIZE", "DequantizeOptions", quantized=2),
    "conv_2d": emit_conv_2d,
    "depthwise_conv_2d": emit_depthwise_conv_2d,
    "fully_connected": emit_fully_connected,
    "transpose_conv": emit_transpose_conv,
    "batch_matmul": emit_batch_matmul,
    "add": plain_emitter("ADD", "AddOptions", quantized=2, fused=True),
    "sub": plain_emitter("SUB", "SubOptions", quantized=2, fused=True),
    "mul": emit_mul,
    "div": plain_emitter("DIV", "DivOptions", fused=True),
    "maximum": plain_emitter("MAXIMUM", "MaximumMinimumOptions", quantized=2),
    "minimum": plain_emitter("MINIMUM", "MaximumMinimumOptions", quantized=2),
    "squared_difference": plain_emitter(
        "SQUARED_DIFFERENCE", "SquaredDifferenceOptions", quantized=2
    ),
    "pow": plain_emitter("POW", "PowOptions"),
    "average_pool_2d": pool_emitter("AVERAGE_POOL_2D"),
    "max_pool_2d": pool_emitter("MAX_POOL_2D"),
    "mean": emit_mean,
    "concatenation": emit_concatenation,
    "reshape": emit_reshape,
    "transpose": emit_transpose,
    "pad": emit_pad,
    "strided_slice": emit_strided_slice,
    "resize_nearest_neighbor": resize_emitter(
        "RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"
    ),
    "resize_bilinear": resize_emitter("RESIZE_BILINEAR", "ResizeBilinearOptions"),
    "gather": emit_gather,
    "cast": emit_cast,
    "logistic": plain_emitter("LOGISTIC", quantized=2),
    "tanh": plain_emitter("TANH", quantized=2),
    "elu": plain_emitter("ELU"),
    "relu": plain_emitter("RELU", quantized=2),
    "relu6": plain_emitter("RELU6", quantized=2),
    "hard_swish": plain_emitter("HARD_SWISH", "HardSwishOptions"),
    "gelu": emit_gelu,
    "leaky_relu": emit_leaky_relu,
    "prelu": plain_emitter("PRELU"),
    "softmax": plain_emitter("SOFTMAX", "SoftmaxOptions", quantized=2, beta=1.0),
    "lookup": emit_lookup,
    "exp": plain_emitter("EXP", "ExpOptions"),
    "log": plain_emitter("LOG"),
    "sqrt": plain_emitter("SQRT"),
    "rsqrt": plain_emitter("RSQRT"),
    "square": plain_emitter("SQUARE", "SquareOptions"),
    "neg": plain_emitter("NEG", "NegOptions"),
    "abs": plain_emitter("ABS", "AbsOptions"),
    "floor": plain_emitter("FLOOR"),
}
