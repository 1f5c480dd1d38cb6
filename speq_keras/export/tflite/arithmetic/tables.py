"""Functions of one code: computed once for all 256 and looked up."""

import math

import numpy as np

from speq_keras.export.tflite.network import CODES
from speq_keras.export.tflite.rounding import (
    divide_by_power_of_two,
    doubling_high_product,
    fixed_point,
    round_half_away,
    store,
)


def logistic(values, inputs, output):
    """Sigmoid, 1 / (1 + e^−x)."""
    with np.errstate(over="ignore"):  # 1 / inf is the 0 that is meant
        return _look_up(values, _table(inputs[0], output, lambda x: 1 / (1 + np.exp(-x))))


def tanh(values, inputs, output):
    """Hyperbolic tangent."""
    return _look_up(values, _table(inputs[0], output, np.tanh))


def elu(values, inputs, output):
    """Where x ≥ 0 x, else e^x − 1."""
    return _look_up(
        values, _table(inputs[0], output, lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x))
    )


def gelu(values, inputs, output, *, approximate=False):
    """Product x·Φ(x), or its tanh form: a builtin kernel, ties away from zero."""
    x = _real(inputs[0])
    half = np.float32(0.5) * x
    if approximate:
        inner = np.float32(math.sqrt(2 / math.pi)) * x
        inner = inner * (np.float32(1) + np.float32(0.044715) * x * x)
        result = half * (np.float32(1) + np.tanh(inner.astype(np.float64)).astype(np.float32))
    else:
        scaled = x * np.float32(-math.sqrt(0.5))
        result = half * np.array([math.erfc(v) for v in scaled], np.float32)
    scaled = result * (np.float32(1) / np.float32(output.scale))
    return _look_up(values, store(round_half_away(scaled) + output.zero_point, output))


def leaky_relu(values, inputs, output, *, alpha):
    """Where x ≥ 0 x, else α·x, with factors that XNNPACK rounds to multiples of 1/256.

    y = (((x − z_x)·m + 128) >> 8) + z_y,   m = round(256·s_x/s_y), or round(256·α·s_x/s_y)
    """
    centred = _codes(inputs[0]) - inputs[0].zero_point
    ratio = np.float32(inputs[0].scale) / np.float32(output.scale)
    positive = int(np.rint(np.float32(256) * ratio))
    negative = int(np.rint(np.float32(256) * (ratio * np.float32(alpha))))
    product = centred * np.where(centred > 0, positive, negative)
    return _look_up(values, store(((product + 128) >> 8) + output.zero_point, output))


def hard_swish(values, inputs, output):
    """Product x · clip(x + 3, 0, 6) / 6 in the 16-bit fixed point of the builtin kernel."""
    fine_scale = np.float32(1 / 128) * np.float32(inputs[0].scale)
    to_output, output_shift = _fixed_point_16(float(fine_scale / np.float32(output.scale)))
    to_gate, gate_shift = _fixed_point_16(float(fine_scale / np.float32(3 / 32768)))
    fine = (_codes(inputs[0]) - inputs[0].zero_point) * 128
    scaled = doubling_high_product(fine, to_output, bits=16)
    gate = fine
    if gate_shift > 0:
        gate = _clip_16(gate << (gate_shift - 1))
    gate = doubling_high_product(gate, to_gate, bits=16)
    if gate_shift > 0:
        gate = _clip_16(gate << 1)
    elif gate_shift < 0:
        gate = divide_by_power_of_two(gate, -gate_shift)
    gate = (gate + 2**15) >> 1
    product = gate * scaled
    product = np.minimum(np.sign(product) * (np.abs(product) >> 15), 2**15 - 1)
    result = divide_by_power_of_two(product, -output_shift)
    return _look_up(values, store(result + output.zero_point, output))


def lookup(values, inputs, output):
    """Any function of one code: table[code + 128], or with 256 per channel table[c·256 + ...]."""
    x, table = values
    channels = len(table) // 256
    return table[x.astype(np.int32) + 128 + 256 * np.arange(channels)]


def _codes(tensor):
    low, high = CODES[tensor.dtype]
    return np.arange(low, high + 1)


def _real(tensor):
    codes = (_codes(tensor) - tensor.zero_point).astype(np.float32)
    return codes * np.float32(tensor.scale)


def _table(tensor, output, function):
    """round(float32(f(x)) · float32(1 / s) + z), ties of the sum to even: XNNPACK's tables."""
    result = function(_real(tensor).astype(np.float64)).astype(np.float32)
    scaled = result * (np.float32(1) / np.float32(output.scale))
    return store(np.rint(scaled + np.float32(output.zero_point)), output)


def _look_up(values, table):
    return table[values[0].astype(np.int16) - CODES[str(values[0].dtype)][0]]


def _fixed_point_16(multiplier):
    mantissa, exponent = fixed_point(multiplier)
    return min((mantissa + 2**15) >> 16, 2**15 - 1), exponent


def _clip_16(values):
    return np.clip(values, -(2**15), 2**15 - 1)
