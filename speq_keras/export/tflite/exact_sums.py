"""Exact sums of products of integers, in float32 if that can represent them."""

import numpy as np

LARGEST_EXACT_FLOAT32 = 2**24


def accumulator(x):
    """Returns the type of sums: int32, or float32 in a float island."""
    return np.float32 if x.dtype == np.float32 else np.int32


def centre(x, tensor):
    """Returns stored values minus the zero point in int16; floats unchanged."""
    if x.dtype == np.float32:
        return x
    return x.astype(np.int16) - np.int16(tensor.zero_point)


def exact_factors(matrix, x):
    """Returns (m, f) so that `matrix` = m · f and the float product of `x` and m is exact."""
    if x.dtype == np.float32:
        return matrix.astype(np.float32), np.float32(1)
    factor = max(int(np.gcd.reduce(matrix, axis=None)), 1)
    matrix = matrix // factor
    largest = int(np.abs(x).max(initial=0)) * int(
        np.abs(matrix).sum(axis=-2, dtype=np.int64).max(initial=0)
    )
    dtype = np.float32 if largest < LARGEST_EXACT_FLOAT32 else np.float64
    return matrix.astype(dtype), np.int32(factor)


def exact_product(x, matrix):
    """Returns the int32 product of integers, computed in floats; the float32 product of floats."""
    dtype = accumulator(x)
    matrix, factor = exact_factors(matrix, x)
    return (x.astype(matrix.dtype) @ matrix).astype(dtype) * factor
