"""Like `parts`, for images: patches, crops, and pooling to a given size."""

import keras
import numpy as np
from keras import ops

# ITU-R 601-2, as in `ops.image.rgb_to_grayscale`.
_LUMA = (0.2989, 0.587, 0.114)


class CannotExpand(Exception):
    """Says, in a phrase, why a layer or operation has to stay one node."""


def reshaped(x, shape):
    """Returns a tensor in another shape; None is the batch."""
    if tuple(x.shape) == tuple(shape):
        return x
    return ops.reshape(x, [-1 if size is None else size for size in shape])


def extract_patches(operation, images):
    """Patches as slices: one for each position in a patch, concatenated."""
    if operation.is_3d or operation.data_format != "channels_last" or len(images.shape) != 4:
        raise CannotExpand("only patches of images with channels last are known")
    size, strides, dilation = (
        (n, n) if isinstance(n, int) else tuple(n)
        for n in (operation.size, operation.strides or operation.size, operation.dilation_rate)
    )
    if operation.padding == "same":
        pads = [
            _same_padding(*numbers)
            for numbers in zip(images.shape[1:3], size, strides, dilation, strict=True)
        ]
        images = ops.pad(images, ((0, 0), *pads, (0, 0)))
    _, height, width, _ = images.shape
    counts = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, s, d in zip((height, width), size, strides, dilation, strict=True)
    ]
    if size == strides and dilation == (1, 1):
        return _tiles(images, counts, size)
    slices = []
    for y in range(0, size[0] * dilation[0], dilation[0]):
        for x in range(0, size[1] * dilation[1], dilation[1]):
            rows, columns = (
                slice(first, first + (count - 1) * stride + 1, stride)
                for first, count, stride in zip((y, x), counts, strides, strict=True)
            )
            slices.append(images[:, rows, columns])
    return ops.concatenate(slices, -1)


def _same_padding(size, kernel, stride, dilation):
    reach = (kernel - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _tiles(images, counts, size):
    """Non-overlapping patches, by reshaping."""
    channels = images.shape[-1]
    (rows, columns), (height, width) = counts, size
    images = images[:, : rows * height, : columns * width]
    x = ops.reshape(images, (-1, rows, height, columns, width * channels))
    x = ops.transpose(x, (0, 1, 3, 2, 4))
    return ops.reshape(x, (-1, rows, columns, height * width * channels))


def space_to_depth(operation, x):
    """Each position in a block as channels, concatenated."""
    size = operation.block_size
    if operation.data_format != "channels_last":
        raise CannotExpand("kernels read channels last")
    slices = [x[:, row::size, column::size] for row in range(size) for column in range(size)]
    return ops.concatenate(slices, -1)


def gray(operation, images):
    """As a product with the weights of red, green and blue."""
    if operation.data_format != "channels_last":
        raise CannotExpand("kernels read channels last")
    return ops.matmul(images, np.array(_LUMA, "float32")[:, None])


def crop_images(operation, images):
    """As slices."""
    if operation.data_format != "channels_last" or len(images.shape) != 4:
        raise CannotExpand("only images with channels last are known")
    ends = [
        _ends(size, before, after, target)
        for size, before, after, target in (
            (
                images.shape[1],
                operation.top_cropping,
                operation.bottom_cropping,
                operation.target_height,
            ),
            (
                images.shape[2],
                operation.left_cropping,
                operation.right_cropping,
                operation.target_width,
            ),
        )
    ]
    (top, bottom), (left, right) = ends
    return images[:, top:bottom, left:right]


def _ends(size, before, after, target):
    if before is None:
        before = size - after - target
    return before, before + target if target is not None else size - after


def pad_images(operation, images):
    """As `ops.pad`."""
    if operation.data_format != "channels_last" or len(images.shape) != 4:
        raise CannotExpand("only images with channels last are known")
    pairs = (
        (operation.top_padding, operation.bottom_padding, operation.target_height),
        (operation.left_padding, operation.right_padding, operation.target_width),
    )
    pads = []
    for size, (before, after, target) in zip(images.shape[1:3], pairs, strict=True):
        before = target - size - after if before is None else before
        pads.append((before, target - size - before if after is None else after))
    return ops.pad(images, ((0, 0), *pads, (0, 0)))


def slice_constant(operation, x, start):
    """As an index, if it begins at a constant position."""
    shape = operation.shape
    if any(isinstance(n, keras.KerasTensor) for n in (start, *np.atleast_1d(start))):
        raise CannotExpand("it begins where a tensor says")
    starts = [int(n) for n in np.asarray(start)]
    if starts[0] or shape[0] not in (-1, x.shape[0]):
        raise CannotExpand("it cuts the batch")
    keys = [slice(n, None if k == -1 else n + k) for n, k in zip(starts, shape, strict=True)]
    return x[(slice(None), *keys[1:])]


# ---- pooling to a given size -----------------------------------------------------------------


def adaptive(pool, reduce):
    """Returns the function of an adaptive pooling.

    Windows of equal size become one pooling. Otherwise each axis is pooled separately: for a
    maximum with windows as long as the longest one, in which values may repeat, for an average with
    a matrix.
    """

    def function(operation, x):
        if operation.data_format != "channels_last":
            raise CannotExpand("kernels read channels last")
        sizes = x.shape[1:-1]
        made = operation.output_size
        made = (made,) * len(sizes) if isinstance(made, int) else tuple(made)
        made = tuple(n if m is None else m for n, m in zip(sizes, made, strict=True))
        if None in sizes:
            raise CannotExpand("sizes must be known")
        if all(size % count == 0 for size, count in zip(sizes, made, strict=True)):
            size = tuple(n // m for n, m in zip(sizes, made, strict=True))
            return pool(x, size, size, "valid")
        for axis, (size, count) in enumerate(zip(sizes, made, strict=True), 1):
            x = reduce(x, axis, _windows(size, count))
        return x

    return function


def _windows(size, count):
    """Returns the windows of an adaptive pooling along one axis, a list of ranges.

    Example:
        >>> _windows(5, 2)
        [range(0, 3), range(2, 5)]
    """
    return [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def largest_in(x, axis, windows):
    """Returns the largest value of each window along an axis."""
    longest = max(map(len, windows))
    places = [place for w in windows for place in [*w, *[w[-1]] * (longest - len(w))]]
    taken = ops.take(x, np.array(places), axis=axis)
    shape = [*x.shape[:axis], len(windows), longest, *x.shape[axis + 1 :]]
    return ops.max(reshaped(taken, shape), axis=axis + 1)


def average_in(x, axis, windows):
    """Returns the average of each window along an axis."""
    matrix = np.zeros((x.shape[axis], len(windows)), "float32")
    for column, window in enumerate(windows):
        matrix[window, column] = 1 / len(window)
    order = [a for a in range(len(x.shape)) if a != axis] + [axis]
    y = ops.matmul(ops.transpose(x, order), matrix)
    return ops.transpose(y, [int(n) for n in np.argsort(order)])


def center_crop(layer, images, training=None):
    """As slices, if it makes images smaller."""
    if layer.data_format != "channels_last" or len(images.shape) != 4:
        raise CannotExpand("only images with channels last are known")
    height, width = (
        (n - m) // 2 for n, m in zip(images.shape[1:3], (layer.height, layer.width), strict=True)
    )
    if min(height, width) < 0:
        raise CannotExpand("it makes images larger")
    top, left = height // 2, width // 2
    return images[:, top : top + layer.height, left : left + layer.width]
