"""Operations that move values and compute nothing; they serve integers and floats alike."""

import numpy as np


def concatenation(values, inputs, output, *, axis, activation="none"):
    """Joins tensors of one scale and zero point."""
    return np.concatenate(values, axis=axis)


def gather(values, inputs, output, *, axis=0):
    """Slices of the first input at the positions that the second one names."""
    return values[0].take(values[1], axis)


def reshape(values, inputs, output, *, shape):
    """Gives every example another shape."""
    return values[0].reshape([-1 if size is None else size for size in shape])


def transpose(values, inputs, output, *, permutation):
    """Orders the axes."""
    return np.ascontiguousarray(values[0].transpose(permutation))


def pad(values, inputs, output, *, paddings):
    """Surrounds the tensor with zeros: stored as the zero point."""
    value = inputs[0].zero_point if inputs[0].scale is not None else 0
    return np.pad(values[0], [tuple(pair) for pair in paddings], constant_values=value)


def mirror_pad(values, inputs, output, *, paddings, mode):
    """Surrounds the tensor with itself, mirrored: without ("reflect") or with its edge."""
    return np.pad(values[0], [tuple(pair) for pair in paddings], mode=mode)


def strided_slice(values, inputs, output, *, begin, end, strides):
    """Cuts a piece out."""
    slices = tuple(slice(*limits) for limits in zip(begin, end, strides, strict=True))
    return np.ascontiguousarray(values[0][slices])
