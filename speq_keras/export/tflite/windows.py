"""Positions of windows on images, for convolutions and pooling."""

import numpy as np


def output_sizes(sizes, kernel, strides, dilations, padding):
    """Returns ((height, width), ((top, bottom), (left, right))) of a convolution or pooling."""
    outputs, pads = [], []
    for size, taps_, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (taps_ - 1) * dilation + 1
        if padding == "same":
            out = -(-size // stride)
            total = max((out - 1) * stride + reach - size, 0)
        else:
            out = -(-(size - reach + 1) // stride)
            total = 0
        outputs.append(out)
        pads.append((total // 2, total - total // 2))
    return tuple(outputs), tuple(pads)


def pad_images(x, pads, value=0):
    """Pads the height and width of NHWC images."""
    if any(any(pair) for pair in pads):
        x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)
    return x


def taps(offset, dilation, stride, size):
    """Returns the slice of the positions that filter row (or column) `offset` reads."""
    start = offset * dilation
    return slice(start, start + (size - 1) * stride + 1, stride)


def windows(x, kernel, strides, dilations, sizes):
    """Returns the patches of padded NHWC images: a view of shape (N, H, W, *kernel, C)."""
    reach = [(kernel[i] - 1) * dilations[i] + 1 for i in range(2)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(1, 2))
    view = view[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]
    return view[:, : sizes[0], : sizes[1]].transpose(0, 1, 2, 4, 5, 3)


def pool_windows(x, size, strides, sizes):
    """Yields, for every position of a pooling window, the pixels of `x` that it reads."""
    for row, column in np.ndindex(*size):
        yield x[:, taps(row, 1, strides[0], sizes[0]), taps(column, 1, strides[1], sizes[1])]


def pool_counts(image_size, size, strides, padding):
    """Returns how many pixels of each window lie inside the image."""
    sizes, pads = output_sizes(image_size, size, strides, (1, 1), padding)
    inside = pad_images(np.ones((1, *image_size, 1), np.int32), pads)
    return sum(pool_windows(inside, size, strides, sizes))


def interpolate(x, size, half_pixel_centers, *, weight_one=None):
    """Returns bilinear interpolation of NHWC images.

    Args:
        x: Images, float or integer.
        size: (height, width) of the result.
        half_pixel_centers: Whether a pixel's value applies to its centre, not its corner.
        weight_one: None for float weights. Otherwise weights are integers that sum to this number
            in either direction, and the result is not divided by it.
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
