"""Sums and products of two tensors, and conversions to and from integers."""

import numpy as np

from speq_keras.export.tflite.network import Tensor
from speq_keras.export.tflite.record import (
    Limits,
    Op,
    Operation,
    activation_of,
    always,
    input_ratios,
    operation_of,
    product_ratio,
    version_of,
)
from speq_keras.export.tflite.rounding import clamp_floats, requantize, store


def quantize(values, inputs, output):
    """Converts floats to codes, or codes to those of another type or scale.

    From float32: round(x · float32(1 / s)) + z, ties to even. Between integers the runtime
    multiplies by s_x / s_y rounded to 1/256, ties up, which is exact if the scales are equal.
    """
    (x,) = values
    if x.dtype == np.float32:
        scaled = x * (np.float32(1) / np.float32(output.scale))
        low, high = np.float32(-(2**30)), np.float32(2**30)
        return store(np.rint(np.clip(scaled, low, high)) + np.float32(output.zero_point), output)
    ratio = np.float32(inputs[0].scale) / np.float32(output.scale)
    multiplier = int(np.rint(np.float32(256) * ratio))
    centred = x.astype(np.int32) - inputs[0].zero_point
    return store(((centred * multiplier + 128) >> 8) + output.zero_point, output)


def dequantize(values, inputs, output):
    """(q − z) · s in float32."""
    (x,) = values
    centred = (x.astype(np.int32) - inputs[0].zero_point).astype(np.float32)
    return centred * np.float32(inputs[0].scale)


def add(values, inputs, output, *, activation="none"):
    """Sum in XNNPACK's fixed point.

        y = ((m_a·(a − z_a) + m_b·(b − z_b) + 2^(k−1)) >> k) + z_y,   m = round(s / s_y · 2^k)

    k is chosen so that the larger multiplier has 21 bits. Ties go up.
    """
    return _sum(values, inputs, output, activation, sign=1)


def sub(values, inputs, output, *, activation="none"):
    """Difference, like `add` with a negative multiplier for `b`."""
    return _sum(values, inputs, output, activation, sign=-1)


def _sum(values, inputs, output, activation, sign):
    ratios = [np.float32(tensor.scale) / np.float32(output.scale) for tensor in inputs]
    _, exponent = np.frexp(max(ratios))
    # Below ratios of 2^-11, any sum of codes is less than half a step: fewer bits suffice.
    shift = min(20 - (int(exponent) - 1), 31)
    # Two numbers of 8 + 21 bits plus at most 2^30 / 2 fit into int32.
    total = np.int32(1 << (shift - 1))
    for value, tensor, ratio, factor in zip(values, inputs, ratios, (1, sign), strict=True):
        multiplier = np.int32(factor * int(np.rint(np.ldexp(ratio, shift))))
        total = total + (value.astype(np.int32) - np.int32(tensor.zero_point)) * multiplier
    total >>= np.int32(shift)
    total += np.int32(output.zero_point)
    return store(total, output, activation)


def mul(values, inputs, output, *, activation="none"):
    """Product: round(float32((a − z_a)·(b − z_b)) · float32(float32(s_a·s_b) / s_y)) + z_y."""
    a, b = [
        value.astype(np.int32) - np.int32(tensor.zero_point)
        for value, tensor in zip(values, inputs, strict=True)
    ]
    scale = np.float32(inputs[0].scale) * np.float32(inputs[1].scale)
    return requantize(a * b, scale / np.float32(output.scale), output, activation)


# ---- in float ---------------------------------------------------------------------------------


def unary(function):
    """Returns the kernel of a function of one float tensor."""

    def kernel(values, inputs, output):
        return np.asarray(function(values[0]), output.dtype)

    return kernel


def binary(function):
    """Returns the kernel of a function of two float tensors that broadcast."""

    def kernel(values, inputs, output, *, activation="none"):
        return clamp_floats(function(*values), activation)

    return kernel


def comparison(function):
    """Returns the kernel of a comparison of two tensors: 1 where it is true, else 0."""

    def kernel(values, inputs, output):
        return function(*values).astype(np.int32)

    return kernel


def select(values, inputs, output):
    """Values of the second tensor where the first is not 0, else of the third."""
    mask, x, y = values
    return np.where(mask != 0, x, y)


def cast(values, inputs, output):
    """The same numbers in the output's type."""
    return values[0].astype(output.dtype)


# ---- emitters ---------------------------------------------------------------------------------


def _emit_mul(node, tensors, batch_size):
    version = version_of(node, tensors)
    if tensors[node.output].scale is not None:  # codes, not plain integers
        a, b, product = (float(tensors[name].scale) for name in (*node.inputs, node.output))
        version = 3 if a * b >= product else version
    return operation_of(node, "MUL", "MulOptions", version=version, **activation_of(node))


def _emit_cast(node, tensors, batch_size):
    types = [tensors[name].dtype.upper() for name in (node.inputs[0], node.output)]
    return operation_of(node, "CAST", "CastOptions", inDataType=types[0], outDataType=types[1])


def _emit_comparison(operator):
    """A comparison makes booleans, which are cast to integers."""

    def emit(node, tensors, batch_size):
        truth = Tensor(name=f"{node.output}/truth", shape=tensors[node.output].shape, dtype="bool")
        options = f"{''.join(word.title() for word in operator.split('_'))}Options"
        return [
            Operation(operator=operator, inputs=node.inputs, outputs=[truth], options_type=options),
            _cast(truth, "BOOL", node.output, "INT32"),
        ]

    return emit


def _emit_select(node, tensors, batch_size):
    mask, *values = node.inputs
    truth = Tensor(name=f"{node.output}/truth", shape=tensors[mask].shape, dtype="bool")
    select = Operation(
        operator="SELECT_V2",
        inputs=[truth, *values],
        outputs=node.outputs,
        options_type="SelectV2Options",
    )
    return [_cast(mask, "INT32", truth, "BOOL"), select]


def _cast(source, source_type, target, target_type):
    options = {"inDataType": source_type, "outDataType": target_type}
    return Operation(
        operator="CAST",
        inputs=[source],
        outputs=[target],
        options_type="CastOptions",
        options=options,
    )


# ---- records ---------------------------------------------------------------------------------

_SUMS = Limits(
    low=2**-10,
    high=2**8,
    ratios=input_ratios,
    says="its largest input has {:.3g} times its output's step, and kernels accept 2^-10 to 2^8",
)
_PRODUCTS = Limits(
    low=2**-16,
    high=2**8,
    ratios=product_ratio,
    says="its products are {:.3g} output steps wide, and kernels accept less than 256",
)
_CODES = Limits(
    low=2**-8,
    high=2**7,
    ratios=input_ratios,
    says="its input has {:.3g} times the step of its output, and kernels accept less than 128",
)


def _in_float(emit, function):
    """Returns the record of an operation that exists only in float islands."""
    return Op(emit=emit, integer=None, floating=function)


def _extreme(operator, function):
    """Returns the record of a maximum or minimum, of floats or of codes on one grid."""
    emit = always(operator, "MaximumMinimumOptions", quantized=2)

    def kernel(values, inputs, output):
        return function(*values)

    return Op(emit=emit, integer=kernel, floating=kernel, copies=True)


_SQUARED_DIFFERENCE = always("SQUARED_DIFFERENCE", "SquaredDifferenceOptions")

OPS = {
    "quantize": Op(
        emit=always("QUANTIZE", "QuantizeOptions"),
        integer=quantize,
        floating=None,
        limits=_CODES,
    ),
    "dequantize": Op(
        emit=always("DEQUANTIZE", "DequantizeOptions", quantized=2),
        integer=dequantize,
        floating=None,
    ),
    "add": Op(
        emit=always("ADD", "AddOptions", quantized=2, fused=True),
        integer=add,
        floating=binary(np.add),
        limits=_SUMS,
        fuses=True,
    ),
    "sub": Op(
        emit=always("SUB", "SubOptions", quantized=2, fused=True),
        integer=sub,
        floating=binary(np.subtract),
        limits=_SUMS,
        fuses=True,
    ),
    "mul": Op(
        emit=_emit_mul,
        integer=mul,
        floating=binary(np.multiply),
        limits=_PRODUCTS,
        fuses=True,
    ),
    "cast": _in_float(_emit_cast, cast),
    "div": _in_float(always("DIV", "DivOptions", fused=True), binary(np.divide)),
    "minimum": _extreme("MINIMUM", np.minimum),
    "maximum": _extreme("MAXIMUM", np.maximum),
    "squared_difference": _in_float(_SQUARED_DIFFERENCE, binary(lambda a, b: np.square(a - b))),
    "abs": _in_float(always("ABS", "AbsOptions"), unary(np.abs)),
    "exp": _in_float(always("EXP", "ExpOptions"), unary(np.exp)),
    "log": _in_float(always("LOG"), unary(np.log)),
    "neg": _in_float(always("NEG", "NegOptions"), unary(np.negative)),
    "sqrt": _in_float(always("SQRT"), unary(np.sqrt)),
    "square": _in_float(always("SQUARE", "SquareOptions"), unary(np.square)),
    "rsqrt": _in_float(always("RSQRT"), unary(lambda x: 1 / np.sqrt(x))),
    "pow": _in_float(always("POW", "PowOptions"), binary(np.power)),
    "floor": _in_float(always("FLOOR"), unary(np.floor)),
    "ceil": _in_float(always("CEIL"), unary(np.ceil)),
    "round": _in_float(always("ROUND"), unary(np.rint)),
    "sin": _in_float(always("SIN"), unary(np.sin)),
    "cos": _in_float(always("COS", "CosOptions"), unary(np.cos)),
    "equal": _in_float(_emit_comparison("EQUAL"), comparison(np.equal)),
    "not_equal": _in_float(_emit_comparison("NOT_EQUAL"), comparison(np.not_equal)),
    "less": _in_float(_emit_comparison("LESS"), comparison(np.less)),
    "less_equal": _in_float(_emit_comparison("LESS_EQUAL"), comparison(np.less_equal)),
    "greater": _in_float(_emit_comparison("GREATER"), comparison(np.greater)),
    "greater_equal": _in_float(_emit_comparison("GREATER_EQUAL"), comparison(np.greater_equal)),
    "select": _in_float(_emit_select, select),
}
