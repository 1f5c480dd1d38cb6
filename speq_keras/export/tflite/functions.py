"""Functions of one code: computed once for all 256 and looked up."""

import math

import numpy as np

from speq_keras.export.tflite.elementwise import binary, unary
from speq_keras.export.tflite.network import CODES, Tensor
from speq_keras.export.tflite.record import (
    Limits,
    Op,
    Operation,
    always,
    constant_of,
    operation_of,
    version_of,
)
from speq_keras.export.tflite.rounding import (
    round_half_away,
    store,
)


def logistic(values, inputs, output):
    """Sigmoid, 1 / (1 + e^−x), to even, by a table."""
    with np.errstate(over="ignore"):  # 1 / inf is the 0 that is meant
        return _look_up(values, _table(inputs[0], output, lambda x: 1 / (1 + np.exp(-x))))


def tanh(values, inputs, output):
    """Hyperbolic tangent, to even, by a table."""
    return _look_up(values, _table(inputs[0], output, np.tanh))


def elu(values, inputs, output):
    """Where x ≥ 0 x, else e^x − 1, to even, by a table."""
    return _look_up(values, _table(inputs[0], output, _elu))


def gelu(values, inputs, output, *, approximate=False):
    """Product x·Φ(x), or with `approximate` its tanh form, by a table: a builtin kernel."""
    function = _gelu_of_tanh if approximate else _gelu
    return _look_up(values, _table(inputs[0], output, function))


def leaky_relu(values, inputs, output, *, alpha):
    """Where x ≥ 0 x, else α·x, in XNNPACK's 256ths, halves up.

    y = ((m·(x − z_x) + 128) >> 8) + z_y,   m = round(256·s_x / s_y), below 0 round(256·α·s_x / s_y)
    """
    centred = values[0].astype(np.int32) - inputs[0].zero_point
    above, below = (
        int(np.rint(np.float32(256) * ratio)) for ratio in _ratios(inputs, output, alpha)
    )
    total = centred * np.where(centred < 0, below, above) + 128
    return store((total >> 8) + output.zero_point, output)


def softmax(values, inputs, output):
    """Softmax over the last axis by a table of float32 exponentials: a builtin kernel.

        y = round(e_i / (Σe · s_y)) + z_y,   e_i = exp(−s_x · (largest − x_i))

    The float32 sum runs from the first class to the last.
    """
    (x,) = values
    scale = -np.float32(inputs[0].scale)
    table = np.exp((scale * np.arange(256, dtype=np.float32)).astype(np.float64))
    x = x.astype(np.int16)
    powers = table.astype(np.float32)[x.max(axis=-1, keepdims=True) - x]
    sums = np.cumsum(powers, axis=-1, dtype=np.float32)[..., -1:]
    scaled = powers * (np.float32(1) / (sums * np.float32(output.scale)))
    return store(round_half_away(scaled) + output.zero_point, output)


def lookup(values, inputs, output):
    """Any function of one code: table[code + 128], or with 256 per channel table[c·256 + ...].

    Written as CAST, ADD and GATHER, which are builtin kernels.
    """
    x, table = values
    channels = len(table) // 256
    return table[x.astype(np.int32) + 128 + 256 * np.arange(channels)]


def _codes(tensor):
    low, high = CODES[tensor.dtype]
    return np.arange(low, high + 1)


def _real(tensor):
    codes = (_codes(tensor) - tensor.zero_point).astype(np.float32)
    return codes * np.float32(tensor.scale)


def _ratios(inputs, output, alpha):
    """Returns by how many steps of the output a step of the input counts, above 0 and below."""
    ratio = np.float32(inputs[0].scale) / np.float32(output.scale)
    return ratio, ratio * np.float32(alpha)


def _table(tensor, output, function):
    """round(float32(f(x)) · float32(1 / s) + z), ties of the sum to even: XNNPACK's tables."""
    result = function(_real(tensor).astype(np.float64)).astype(np.float32)
    scaled = result * (np.float32(1) / np.float32(output.scale))
    return store(np.rint(scaled + np.float32(output.zero_point)), output)


def _look_up(values, table):
    return table[values[0].astype(np.int16) - CODES[str(values[0].dtype)][0]]


# ---- in float ---------------------------------------------------------------------------------


def error_function(x):
    """Returns erf(x) with an error below 2e-7.

    Reference: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = (1.421413741, -1.453152027, 1.061405429)
    tail = ((series[2] * t + series[1]) * t + series[0]) * t - 0.284496736
    tail = (tail * t + 0.254829592) * t
    return np.sign(x) * (1 - tail * np.exp(-x * x))


def _elu(x):
    return np.where(x < 0, np.expm1(np.minimum(x, 0)), x)


def _gelu(x):
    return 0.5 * x * (1 + error_function(x / math.sqrt(2)))


def _gelu_of_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def float_gelu(values, inputs, output, *, approximate=False):
    """Product x·Φ(x), or with `approximate` its tanh form."""
    function = _gelu_of_tanh if approximate else _gelu
    return function(values[0].astype(np.float64)).astype(np.float32)


def float_leaky_relu(values, inputs, output, *, alpha):
    """Where x ≥ 0 x, else α·x."""
    return np.where(values[0] >= 0, values[0], values[0] * np.float32(alpha))


def float_softmax(values, inputs, output):
    """Softmax over the last axis."""
    powers = np.exp(values[0] - values[0].max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def float_log_softmax(values, inputs, output):
    """Logarithm of the softmax over the last axis."""
    x = values[0] - values[0].max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


# ---- emitters ---------------------------------------------------------------------------------


def _emit_gelu(node, tensors, batch_size):
    approximate = bool(node.options.get("approximate", False))
    version = version_of(node, tensors)
    return operation_of(node, "GELU", "GeluOptions", version=version, approximate=approximate)


def _emit_leaky_relu(node, tensors, batch_size):
    return operation_of(node, "LEAKY_RELU", "LeakyReluOptions", alpha=float(node.options["alpha"]))


def _emit_lookup(node, tensors, batch_size):
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


# ---- records ---------------------------------------------------------------------------------


def _ratios_of_slopes(node, tensors):
    x, output = tensors[node.inputs[0]], tensors[node.output]
    return np.array(_ratios([x], output, node.options["alpha"]), np.float32)


_SLOPES = Limits(
    low=2**-8,
    high=2**7,
    ratios=_ratios_of_slopes,
    says="its input has {:.3g} times the step of its output, and kernels take less than 128",
)

OPS = {
    "logistic": Op(
        emit=always("LOGISTIC", quantized=2),
        integer=logistic,
        floating=unary(lambda x: 0.5 + 0.5 * np.tanh(0.5 * x)),
        demands=(1 / 256, -128),
    ),
    "tanh": Op(
        emit=always("TANH", quantized=2),
        integer=tanh,
        floating=unary(np.tanh),
        demands=(1 / 128, 0),
    ),
    "softmax": Op(
        emit=always("SOFTMAX", "SoftmaxOptions", quantized=2, beta=1.0),
        integer=softmax,
        floating=float_softmax,
        demands=(1 / 256, -128),
    ),
    "log_softmax": Op(
        emit=always("LOG_SOFTMAX", "LogSoftmaxOptions"), integer=None, floating=float_log_softmax
    ),
    "lookup": Op(emit=_emit_lookup, integer=lookup, floating=None),
    "elu": Op(emit=always("ELU"), integer=elu, floating=unary(_elu)),
    "gelu": Op(
        emit=_emit_gelu, integer=gelu, floating=float_gelu, since={1: (2, 9, 0), 2: (2, 9, 0)}
    ),
    # In float islands only: codes have ReLU as a clipping, and the others in a table.
    "relu": Op(emit=always("RELU"), integer=None, floating=unary(lambda x: np.maximum(x, 0))),
    "relu6": Op(emit=always("RELU6"), integer=None, floating=unary(lambda x: np.clip(x, 0, 6))),
    "hard_swish": Op(
        emit=always("HARD_SWISH", "HardSwishOptions"),
        integer=None,
        floating=unary(lambda x: x * np.clip(x + 3, 0, 6) / 6),
    ),
    "leaky_relu": Op(
        emit=_emit_leaky_relu,
        integer=leaky_relu,
        floating=float_leaky_relu,
        limits=_SLOPES,
    ),
    "prelu": Op(
        emit=always("PRELU"),
        integer=None,
        floating=binary(lambda x, alpha: np.where(x >= 0, x, x * alpha)),
    ),
}
