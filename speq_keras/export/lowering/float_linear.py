"""Linear operations of float islands that are not layers: products, resizing, cumulative sums."""

import math

import keras
import numpy as np

from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.lowering.expression import Floats
from speq_keras.export.lowering.float_only import operands
from speq_keras.ops import einsum_axes


def matmul(builder, step):
    """The product of two tensors, or of one and a constant, in float."""
    x, y = operands(builder, step)
    if len(y.shape) == 1:
        y = y.reshape((*y.shape, 1))
    rank = max(len(x.shape), len(y.shape))
    if len(x.shape) < 2 or any(len(z.shape) < rank for z in (x, y) if not z.tensor.is_constant):
        raise CannotExport(f"there is no kernel for the shapes {x.shape} and {y.shape}")
    x, y = (z.reshape((1,) * (rank - len(z.shape)) + z.shape) for z in (x, y))
    return x.matmul(y).reshape(step.output.shape).finish()


def einsum_dense(builder, step, kernel):
    """An EinsumDense with any equation: a matrix product between transpositions.

    Args:
        builder: The `Builder`.
        step: The step.
        kernel: The layer's kernel, float.

    Returns:
        `Floats`, with the bias added.
    """
    x, layer = Floats.input(builder, step), step.layer
    read, axes, made = einsum_axes(layer.equation)
    shared = [a for a in axes if a in read and a in made]
    summed = [a for a in axes if a in read and a not in made]
    columns = [a for a in axes if a not in read]
    rows = [a for a in read[1:] if a not in axes]
    if "." in layer.equation or read[0] in axes or set(made) != {read[0], *shared, *rows, *columns}:
        raise CannotExport(f"there is no kernel for its equation {layer.equation!r}")
    sizes = dict(zip(read, x.shape, strict=True)) | dict(zip(axes, kernel.shape, strict=True))

    def count(group):
        return math.prod(sizes[axis] for axis in group)

    order = [read[0], *shared, *rows, *summed]
    x = x.transpose([read.index(axis) for axis in order])
    x = x.reshape((x.shape[0], count(shared), count(rows), count(summed)))
    kernel = kernel.transpose([axes.index(axis) for axis in [*shared, *summed, *columns]])
    y = x.matmul(x.constant(kernel.reshape(1, count(shared), count(summed), count(columns))))
    order = [read[0], *shared, *rows, *columns]
    y = y.reshape([sizes[axis] for axis in order])
    y = y.transpose([order.index(axis) for axis in made])
    return y if layer.bias is None else y + keras.ops.convert_to_numpy(layer.bias)


def along_axis(x, matrix, axis):
    """Multiplies every vector along an axis by a matrix.

    Args:
        x: `Floats`.
        matrix: (outputs, inputs).
        axis: Counted from 1.
    """
    before, after = x.shape[1:axis], x.shape[axis + 1 :]
    flat = x.reshape((x.shape[0], math.prod(before), x.shape[axis], math.prod(after)))
    y = x.constant(matrix[None, None]).matmul(flat)
    return y.reshape((x.shape[0], *before, len(matrix), *after))


def resize(builder, step):
    """Any resizing that preserves constant images: a matrix for each axis.

    The matrices are its results for images that are 1 in one row or column.
    """
    x = Floats.input(builder, step)
    _, height, width, _ = x.shape
    ones = np.ones((1, height, width, 1), "float32")
    if not np.allclose(_called(step, ones), 1, atol=1e-4):  # weights add up to 1
        raise CannotExport("its result for a constant image is not constant")
    rows = np.eye(height, dtype="float32")[:, :, None, None] * ones
    columns = np.eye(width, dtype="float32")[:, None, :, None] * ones
    x = along_axis(x, _called(step, rows)[:, :, 0, 0].T, 1)
    return along_axis(x, _called(step, columns)[:, 0, :, 0].T, 2).finish()


def cumulative_sum(builder, step):
    """Sums of all values up to each position of an axis."""
    x, axis = Floats.input(builder, step), step.layer.axis
    if axis is None or axis % len(x.shape) == 0:
        raise CannotExport("it goes over the batch")
    axis %= len(x.shape)
    size = x.shape[axis]
    return along_axis(x, np.tril(np.ones((size, size), "float32")), axis).finish()


def _called(step, images):
    made = step.layer(keras.ops.convert_to_tensor(images))
    return keras.ops.convert_to_numpy(made)
