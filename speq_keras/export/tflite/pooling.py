"""Pooling, means and resizing."""

import functools
import math

import numpy as np

from speq_keras.export.tflite.exact_sums import accumulator
from speq_keras.export.tflite.record import Op, constant_of, operation_of, version_of, window_of
from speq_keras.export.tflite.rounding import clamp_floats, store
from speq_keras.export.tflite.windows import (
    interpolate,
    output_sizes,
    pad_images,
    pool_counts,
    pool_windows,
)


def mean(values, inputs, output, *, axes, keep_dims=True):
    """Mean over `axes`.

        y = round(float32(float32(Σx) · m) + float32(z_y − float32(float32(N·z_x) · m)))
        m = float32(s_x / s_y) · float32(1 / N)

    Ties of the whole sum, zero points included, go to even: XNNPACK sums the stored values and adds
    the zero point of `x` as a float32 offset. For sums close to a tie this is not the rounded exact
    mean.
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
    """Whether `mean` is the exact mean of codes, halves rounded up, for every possible sum.

    This must also hold with a fused multiply-add: processors differ in that.

    Args:
        x: `network.Tensor` of the codes.
        output: `network.Tensor` of their mean, in the same codes and with nearly the same scale.
        count: The number of codes.
    """
    sums = np.arange(count * x.low, count * x.high + 1)
    exact = (2 * (sums - count * x.zero_point) + count) // (2 * count) + output.zero_point
    multiplier, offset = _mean_factors(x, output, count)
    once = np.rint(sums.astype(np.float32) * multiplier + offset)
    fused = np.rint((sums * np.float64(multiplier) + np.float64(offset)).astype(np.float32))
    return bool(np.all(once == exact) and np.all(fused == exact))


def average_pool_2d(values, inputs, output, *, activation="none", size, strides, padding="valid"):
    """Average of the stored values inside the image; for codes a builtin kernel: ties from zero."""
    (x,) = values
    sizes, pads = output_sizes(x.shape[1:3], size, strides, (1, 1), padding)
    sums = sum(pool_windows(pad_images(x.astype(accumulator(x)), pads), size, strides, sizes))
    counts = pool_counts(x.shape[1:3], size, strides, padding)
    if output.scale is None:
        return clamp_floats(sums / counts, activation)
    means = np.sign(sums) * ((np.abs(sums) + counts // 2) // counts)
    return store(means, output, activation, builtin=True)


def max_pool_2d(values, inputs, output, *, activation="none", size, strides, padding="valid"):
    """Largest stored value inside the image."""
    (x,) = values
    sizes, pads = output_sizes(x.shape[1:3], size, strides, (1, 1), padding)
    lowest = -np.inf if output.scale is None else np.iinfo(x.dtype).min
    views = pool_windows(pad_images(x, pads, value=lowest), size, strides, sizes)
    largest = functools.reduce(np.maximum, views)
    if output.scale is None:
        return clamp_floats(largest, activation)
    return store(np.array(largest), output, activation)


def reduce_max(values, inputs, output, *, axes, keep_dims):
    """Largest stored value over `axes`."""
    return values[0].max(axis=tuple(axes), keepdims=keep_dims)


def reduce_min(values, inputs, output, *, axes, keep_dims):
    """Smallest stored value over `axes`."""
    return values[0].min(axis=tuple(axes), keepdims=keep_dims)


def resize_nearest_neighbor(values, inputs, output, *, size, half_pixel_centers=False):
    """Copies of the nearest pixels: a builtin kernel."""
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


def _slack_of_interpolation(node, tensors):
    """Weights of both axes are multiples of 1/2048, each off by up to half of that."""
    output = tensors[node.output]
    return (output.high - output.low) * 2.0**-11


# ---- in float ---------------------------------------------------------------------------------


def float_mean(values, inputs, output, *, axes, keep_dims=True):
    """Mean over `axes`."""
    return values[0].mean(axis=tuple(axes), keepdims=keep_dims, dtype=np.float32)


def _float_reducer(function):
    """Returns the kernel of a reduction of plain numbers."""

    def kernel(values, inputs, output, *, axes, keep_dims=True):
        x = values[0]
        return function(x, axis=tuple(axes), keepdims=keep_dims).astype(x.dtype)

    return kernel


def arg_max(values, inputs, output, *, axis):
    """The position of the largest value along an axis, the first of equal ones."""
    return values[0].argmax(axis=axis).astype(np.int32)


def float_resize_bilinear(values, inputs, output, *, size, half_pixel_centers=False):
    """Bilinear interpolation."""
    return interpolate(values[0], size, half_pixel_centers).astype(np.float32)


# ---- emitters ---------------------------------------------------------------------------------


def _emit_pool(operator):
    def emit(node, tensors, batch_size):
        height, width = node.options["size"]
        options = {**window_of(node), "filterHeight": int(height), "filterWidth": int(width)}
        version = version_of(node, tensors)
        return operation_of(node, operator, "Pool2DOptions", version=version, **options)

    return emit


def _emit_reducer(operator):
    def emit(node, tensors, batch_size):
        return operation_of(
            node,
            operator,
            "ReducerOptions",
            more_inputs=[constant_of(node, "axes", np.atleast_1d(node.options["axes"]))],
            version=version_of(node, tensors),
            keepDims=bool(node.options["keep_dims"]),
        )

    return emit


def _emit_arg_max(node, tensors, batch_size):
    axis = [constant_of(node, "axis", np.array(node.options["axis"]))]
    return operation_of(
        node,
        "ARG_MAX",
        "ArgMaxOptions",
        more_inputs=axis,
        version=version_of(node, tensors),
        outputType="INT32",
    )


def _emit_resize(operator, options_type):
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


# ---- records ---------------------------------------------------------------------------------

OPS = {
    "average_pool_2d": Op(
        emit=_emit_pool("AVERAGE_POOL_2D"),
        integer=average_pool_2d,
        floating=average_pool_2d,
        copies=True,
        is_spatial=True,
    ),
    "max_pool_2d": Op(
        emit=_emit_pool("MAX_POOL_2D"),
        integer=max_pool_2d,
        floating=max_pool_2d,
        copies=True,
        is_spatial=True,
    ),
    "mean": Op(emit=_emit_reducer("MEAN"), integer=mean, floating=float_mean),
    "sum": Op(emit=_emit_reducer("SUM"), integer=None, floating=_float_reducer(np.sum)),
    "reduce_prod": Op(
        emit=_emit_reducer("REDUCE_PROD"), integer=None, floating=_float_reducer(np.prod)
    ),
    "arg_max": Op(emit=_emit_arg_max, integer=None, floating=arg_max),
    "reduce_max": Op(
        emit=_emit_reducer("REDUCE_MAX"), integer=reduce_max, floating=reduce_max, copies=True
    ),
    "reduce_min": Op(
        emit=_emit_reducer("REDUCE_MIN"), integer=reduce_min, floating=reduce_min, copies=True
    ),
    "resize_nearest_neighbor": Op(
        emit=_emit_resize("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions"),
        integer=resize_nearest_neighbor,
        floating=resize_nearest_neighbor,
        copies=True,
        is_spatial=True,
    ),
    "resize_bilinear": Op(
        emit=_emit_resize("RESIZE_BILINEAR", "ResizeBilinearOptions"),
        integer=resize_bilinear,
        floating=float_resize_bilinear,
        slack=_slack_of_interpolation,
        copies=True,
        is_spatial=True,
    ),
}
