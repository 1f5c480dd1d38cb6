"""Sums and products of two tensors, and the way into and out of integers."""

import numpy as np

from speq_keras.export.tflite.rounding import (
    fixed_point,
    multiply_by_fixed_point,
    requantize,
    store,
)


def quantize(values, inputs, output):
    """Float values to codes, or codes to the codes of another type or scale.

    From float32: round(x · float32(1 / s)) + z, ties to even. Between integers the runtime
    multiplies by s_x / s_y rounded to 1/256, ties up, which is exact where the scales are equal.
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
    """Difference, as `add` with a negative multiplier for `b`."""
    return _sum(values, inputs, output, activation, sign=-1)


def _sum(values, inputs, output, activation, sign):
    ratios = [np.float32(tensor.scale) / np.float32(output.scale) for tensor in inputs]
    _, exponent = np.frexp(max(ratios))
    shift = 20 - (int(exponent) - 1)
    # Two numbers of 8 + 21 bits and the half of 2^30 or less: int32 holds them.
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


def prelu(values, inputs, output):
    """Where x ≥ 0 x, else α·x; each rounded twice: a builtin kernel."""
    x, alpha = [
        value.astype(np.int64) - tensor.zero_point
        for value, tensor in zip(values, inputs, strict=True)
    ]
    scales = [float(np.float32(tensor.scale)) for tensor in (*inputs, output)]
    positive = multiply_by_fixed_point(x, *fixed_point(scales[0] / scales[2]))
    negative = multiply_by_fixed_point(x * alpha, *fixed_point(scales[0] * scales[1] / scales[2]))
    return store(np.where(x >= 0, positive, negative) + output.zero_point, output)
