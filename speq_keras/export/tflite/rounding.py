"""Rounding and clamping, the last step of every integer kernel.

XNNPACK rounds in float32 with ties to even; LiteRT's older builtin kernels multiply by a 32-bit
fixed-point number and round twice. Both are here, because the default runtime uses the latter for
operations that XNNPACK does not support.
"""

import math

import numpy as np

from speq_keras.export.tflite.network import CODES

# The limits to which a fused activation clamps real values.
BOUNDS = {
    "none": (None, None),
    "relu": (0, None),
    "relu6": (0, 6),
    "relu_n1_to_1": (-1, 1),
}


def float32_scale(scale):
    """Returns `scale` as float32, a number or a vector."""
    return np.asarray(scale, np.float32)[()]


def code_range(output, activation="none", *, builtin=False):
    """Returns the smallest and largest stored value that the operation may write.

    A fused activation is a clamp of the stored values. XNNPACK rounds its bounds with the zero
    point, round(bound / scale + zero point), ties to even; the builtin kernels without it, ties
    away from zero.

    Args:
        output: `network.Tensor`.
        activation: One of `BOUNDS`.
        builtin: Whether a builtin kernel computes this.
    """
    low, high = CODES[output.dtype]
    stored = []
    for bound in BOUNDS[activation]:
        if bound is not None:
            bound = np.float32(bound) / np.float32(output.scale)
            offset = np.float32(output.zero_point)
            bound = round_half_away(bound) + offset if builtin else np.rint(bound + offset)
            bound = min(max(int(bound), low), high)
        stored.append(bound)
    return (low if stored[0] is None else stored[0], high if stored[1] is None else stored[1])


def store(values, output, activation="none", *, builtin=False):
    """Clamps integers to the range of `output` and returns them in its type."""
    low, high = code_range(output, activation, builtin=builtin)
    return np.clip(values, low, high, out=values).astype(output.dtype)


def clamp_floats(values, activation="none"):
    """Applies a fused activation to real values and returns them in float32."""
    low, high = BOUNDS[activation]
    if (low, high) != (None, None):
        values = np.clip(values, low, high)
    return np.asarray(values, np.float32)


def requantize(accumulators, scale, output, activation="none"):
    """Returns clamp(round(float32(accumulator) · scale) + zero point), ties to even.

    The product is rounded to float32 before it is rounded to an integer, as in the kernels.

    Args:
        accumulators: int32 array.
        scale: float32, or a vector along the last axis.
        output: `network.Tensor`.
        activation: One of `BOUNDS`.
    """
    values = accumulators.astype(np.float32)
    values *= scale
    np.rint(values, out=values)
    values += np.float32(output.zero_point)
    return store(values, output, activation)


def round_half_away(values):
    """Returns the nearest integers, ties away from zero: C's `round`."""
    return np.copysign(np.floor(np.abs(values) + 0.5), values)


def rescale(accumulators, multipliers, output, activation="none", *, ties_up=False, once=False):
    """Returns accumulators · multipliers as LiteRT's builtin kernels compute it: rounded twice.

    Args:
        accumulators: int32 array.
        multipliers: float64, or a vector along the last axis.
        output: `network.Tensor`.
        activation: One of `BOUNDS`.
        ties_up: Whether ties of the last rounding go up, as in vectorized kernels, or away from
            zero. A vector: by channel.
        once: Whether the kernel rounds only once, ties up, as one does on ARM and in browsers.
    """
    pairs = [fixed_point(float(multiplier)) for multiplier in np.atleast_1d(multipliers)]
    mantissas, exponents = np.array(pairs, np.int64).T
    if once:
        products = accumulators.astype(np.int64) * mantissas
        values = (products + (np.int64(1) << (30 - exponents))) >> (31 - exponents)
    else:
        values = multiply_by_fixed_point(accumulators, mantissas, exponents, ties_up=ties_up)
    return store(values + output.zero_point, output, activation, builtin=True)


def fixed_point(multiplier):
    """Returns (mantissa, exponent) so that multiplier ≈ mantissa · 2^(exponent − 31)."""
    if multiplier == 0:
        return 0, 0
    fraction, exponent = math.frexp(multiplier)
    mantissa = int(math.floor(abs(fraction) * 2**31 + 0.5)) * (1 if fraction > 0 else -1)
    if abs(mantissa) == 2**31:
        mantissa //= 2
        exponent += 1
    if exponent < -31:
        return 0, 0
    return mantissa, exponent


def divide_by_power_of_two(values, exponent, *, ties_up=False):
    """Returns round(values / 2^exponent), ties up or away from zero."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + ((values < 0) & np.logical_not(ties_up))
    return (values >> exponent) + ((values & mask) > threshold)


def doubling_high_product(a, b):
    """Returns round(2·a·b / 2^32) as the builtin kernels round: ties up, then truncated."""
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    nudge = np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    half = 1 << 31
    result = product + nudge
    return np.minimum(np.sign(result) * (np.abs(result) // half), half - 1)


def multiply_by_fixed_point(values, mantissa, exponent, *, ties_up=False):
    """Returns values · mantissa · 2^(exponent − 31), rounded twice as the builtin kernels do."""
    values = np.asarray(values, np.int64) << np.maximum(exponent, 0)
    product = doubling_high_product(values, mantissa)
    return divide_by_power_of_two(product, np.maximum(-exponent, 0), ties_up=ties_up)
