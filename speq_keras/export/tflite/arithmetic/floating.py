"""Float islands: float32 arithmetic of the nodes between a DEQUANTIZE and a QUANTIZE.

Float kernels add in an order of their own, so these agree with the runtime to float32 rounding and
not bit for bit. Convolutions and matrix products stand in `products`, which serves both.
"""

import math

import numpy as np

from speq_keras.export.tflite.arithmetic.pooling import (
    interpolate,
    pool_counts,
    pool_windows,
    resize_nearest_neighbor,
)
from speq_keras.export.tflite.arithmetic.products import output_sizes, pad_images
from speq_keras.export.tflite.rounding import clamp_floats


def unary(function):
    """Returns the kernel of a function of one float tensor."""

    def kernel(values, inputs, output):
        return np.asarray(function(values[0]), np.float32)

    return kernel


def binary(function):
    """Returns the kernel of a function of two float tensors that broadcast."""

    def kernel(values, inputs, output, *, activation="none"):
        return clamp_floats(function(*values), activation)

    return kernel


def error_function(x):
    """Returns erf(x) with an error below 2e-7.

    Reference: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = (1.421413741, -1.453152027, 1.061405429)
    tail = ((series[2] * t + series[1]) * t + series[0]) * t - 0.284496736
    tail = (tail * t + 0.254829592) * t
    return np.sign(x) * (1 - tail * np.exp(-x * x))


def gelu(values, inputs, output, *, approximate=False):
    """Product x·Φ(x), or with `approximate` its tanh form."""
    x = values[0].astype(np.float64)
    if approximate:
        gate = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    else:
        gate = error_function(x / math.sqrt(2))
    return (0.5 * x * (1 + gate)).astype(np.float32)


def leaky_relu(values, inputs, output, *, alpha):
    """Where x ≥ 0 x, else α·x."""
    return np.where(values[0] >= 0, values[0], values[0] * np.float32(alpha))


def softmax(values, inputs, output):
    """Softmax over the last axis."""
    powers = np.exp(values[0] - values[0].max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def mean(values, inputs, output, *, axes, keep_dims=True):
    """Mean over `axes`."""
    return values[0].mean(axis=tuple(axes), keepdims=keep_dims, dtype=np.float32)


def average_pool_2d(values, inputs, output, *, activation="none", size, strides, padding="valid"):
    """Average of the values inside the image."""
    (x,) = values
    sizes, pads = output_sizes(x.shape[1:3], size, strides, (1, 1), padding)
    sums = sum(pool_windows(pad_images(x, pads), size, strides, sizes))
    counts = pool_counts(x.shape[1:3], size, strides, padding)
    return clamp_floats(sums / counts, activation)


def max_pool_2d(values, inputs, output, *, activation="none", size, strides, padding="valid"):
    """Largest value inside the image."""
    (x,) = values
    sizes, pads = output_sizes(x.shape[1:3], size, strides, (1, 1), padding)
    padded = pad_images(x, pads, value=-np.inf)
    largest = -np.inf
    for view in pool_windows(padded, size, strides, sizes):
        largest = np.maximum(largest, view)
    return clamp_floats(largest, activation)


def resize_bilinear(values, inputs, output, *, size, half_pixel_centers=False):
    """Bilinear interpolation."""
    return interpolate(values[0], size, half_pixel_centers).astype(np.float32)


def batch_matmul(values, inputs, output, *, adj_x=False, adj_y=False):
    """Matrix product of the last two axes."""
    a, b = values
    return np.matmul(a.swapaxes(-1, -2) if adj_x else a, b.swapaxes(-1, -2) if adj_y else b)


def cast(values, inputs, output):
    """The same numbers in the output's type."""
    return values[0].astype(output.dtype)


KERNELS = {
    "add": binary(np.add),
    "sub": binary(np.subtract),
    "mul": binary(np.multiply),
    "div": binary(np.divide),
    "maximum": binary(np.maximum),
    "minimum": binary(np.minimum),
    "squared_difference": binary(lambda a, b: np.square(a - b)),
    "pow": binary(np.power),
    "prelu": binary(lambda x, alpha: np.where(x >= 0, x, x * alpha)),
    "logistic": unary(lambda x: 0.5 + 0.5 * np.tanh(0.5 * x)),
    "tanh": unary(np.tanh),
    "elu": unary(lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x)),
    "relu": unary(lambda x: np.maximum(x, 0)),
    "relu6": unary(lambda x: np.clip(x, 0, 6)),
    "hard_swish": unary(lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "exp": unary(np.exp),
    "log": unary(np.log),
    "sqrt": unary(np.sqrt),
    "rsqrt": unary(lambda x: 1 / np.sqrt(x)),
    "square": unary(np.square),
    "neg": unary(np.negative),
    "abs": unary(np.abs),
    "floor": unary(np.floor),
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "softmax": softmax,
    "mean": mean,
    "average_pool_2d": average_pool_2d,
    "max_pool_2d": max_pool_2d,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "resize_bilinear": resize_bilinear,
    "batch_matmul": batch_matmul,
    "cast": cast,
}
