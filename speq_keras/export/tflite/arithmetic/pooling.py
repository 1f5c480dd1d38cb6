"""Pooling, resizing and softmax."""

import math

import numpy as np

from speq_keras.export.tflite.arithmetic.products import output_sizes, pad_images, taps
from speq_keras.export.tflite.rounding import round_half_away, store


def mean(values, inputs, output, *, axes, keep_dims=True):
    """Mean over `axes`.

        y = round(float32(float32(Σx) · m) + float32(z_y − float32(float32(N·z_x) · m)))
        m = float32(s_x / s_y) · float32(1 / N)

    Ties of the whole sum, zero points included, go to even: XNNPACK sums the stored values and
    lets the zero point of `x` come in as a float32 offset. At sums that are close to a tie this is
    not the rounded exact mean.
    """
    (x,) = values
    axes = tuple(axes)
    count = math.prod(x.shape[axis] for axis in axes)
    sums = x.sum(axis=axes, keepdims=keep_dims, dtype=np.int32).astype(np.float32)
    multiplier, offset = _mean_factors(inputs[0], output, count)
    return store(np.rint(sums * multiplier + offset), output)


def _mean_factors(x, output, count):
    multiplier = np.float32(x.scale) / np.float32(output.scale)
    multiplier = multiplier * (np.float32(1) / np.float32(count))
    offset = np.float32(count * x.zero_point) * multiplier
    return multiplier, np.float32(output.zero_point) - offset


def mean_sends_halves_up(x, output, count):
    """Whether `mean` is the exact mean of codes with halves rounded up, for each sum there can be.

    With a fused multiplication and addition, too: processors differ in that.

    Args:
        x: `network.Tensor` of the codes.
        output: `network.Tensor` of their mean, in the same codes and near to the same scale.
        count: How many codes there are.
    """
    sums = np.arange(count * x.low, count * x.high + 1)
    exact = (2 * (sums - count * x.zero_point) + count) // (2 * count) + output.zero_point
    multiplier, offset = _mean_factors(x, output, count)
    once = np.rint(sums.astype(np.float32) * multiplier + offset)
    fused = np.rint((sums * np.float64(multiplier) + np.float64(offset)).astype(np.float32))
    return bool(np.all(once == exact) and np.all(fused == exact))


def average_pool_2d(values, inputs, output, *, activation="none", size, strides, padding="valid"):
    """Average of the stored values inside the image, ties away from zero: a builtin kernel.

    The output has the scale and zero point of `x`.
    """
    (x,) = values
    sizes, pads = output_sizes(x.shape[1:3], size, strides, (1, 1), padding)
    sums = sum(pool_windows(pad_images(x.astype(np.int32), pads), size, strides, sizes))
    counts = pool_counts(x.shape[1:3], size, strides, padding)
    means = np.sign(sums) * ((np.abs(sums) + counts // 2) // counts)
    return store(means, output, activation, builtin=True)


def max_pool_2d(values, inputs, output, *, activation="none", size, strides, padding="valid"):
    """Largest stored value inside the image; the output has the scale and zero point of `x`."""
    (x,) = values
    sizes, pads = output_sizes(x.shape[1:3], size, strides, (1, 1), padding)
    padded = pad_images(x, pads, value=np.iinfo(x.dtype).min)
    largest = np.full((), np.iinfo(x.dtype).min, x.dtype)
    for view in pool_windows(padded, size, strides, sizes):
        largest = np.maximum(largest, view)
    return store(largest, output, activation)


def resize_nearest_neighbor(values, inputs, output, *, size, half_pixel_centers=False):
    """Copies of the nearest pixels."""
    (x,) = values
    for axis in (1, 2):
        scale = np.float32(x.shape[axis]) / np.float32(size[axis - 1])
        centre = np.float32(0.5 if half_pixel_centers else 0)
        positions = np.floor((np.arange(size[axis - 1], dtype=np.float32) + centre) * scale)
        x = x.take(np.clip(positions.astype(int), 0, x.shape[axis] - 1), axis)
    return x


def resize_bilinear(values, inputs, output, *, size, half_pixel_centers=False):
    """Bilinear interpolation with weights in 1/2048, rounded once, ties up."""
    sums = interpolate(values[0].astype(np.int64), size, half_pixel_centers, weight_one=2048)
    return store((sums + 2**21) >> 22, output)


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


def pool_windows(x, size, strides, sizes):
    """Yields, for every position of a pooling window, the pixels of `x` that it reads."""
    for row, column in np.ndindex(*size):
        yield x[:, taps(row, 1, strides[0], sizes[0]), taps(column, 1, strides[1], sizes[1])]


def pool_counts(image_size, size, strides, padding):
    """Returns how many pixels of every window lie inside the image."""
    sizes, pads = output_sizes(image_size, size, strides, (1, 1), padding)
    inside = pad_images(np.ones((1, *image_size, 1), np.int32), pads)
    return sum(pool_windows(inside, size, strides, sizes))


def interpolate(x, size, half_pixel_centers, *, weight_one=None):
    """Returns bilinear interpolation of NHWC images.

    Args:
        x: Images, float or whole numbers.
        size: (height, width) of the result.
        half_pixel_centers: Whether a pixel's value stands for its centre, not its corner.
        weight_one: None for float weights. Else weights are whole numbers and add up to this in
            either direction, and the result is not divided by it.
    """
    for axis in (2, 1):
        size_in, size_out = x.shape[axis], size[axis - 1]
        scale = np.float32(size_in) / np.float32(size_out)
        shift = np.float32(0.5 if half_pixel_centers else 0)
        positions = (np.arange(size_out, dtype=np.float32) + shift) * scale - shift
        positions = np.clip(positions, 0, size_in - 1)
        low = positions.astype(np.int64)
        weights = positions - low.astype(np.float32)
        if weight_one is not None:
            weights = np.rint(weights * np.float32(weight_one)).astype(np.int64)
        weights = weights.reshape([-1 if i == axis else 1 for i in range(4)])
        first, second = x.take(low, axis), x.take(np.minimum(low + 1, size_in - 1), axis)
        x = first * (weight_one or 1) + (second - first) * weights
    return x
