"""Float operations of a step written as arithmetic: `(x - x.mean(axes)) * 2` adds three nodes."""

import numpy as np


class Floats:
    """A tensor of plain numbers computed by a step; every operation on it adds a node.

    Args:
        builder: The `Builder`.
        step: The step.
        tensor: The `Tensor`.
    """

    def __init__(self, builder, step, tensor):
        self.builder, self.step, self.tensor = builder, step, tensor

    @classmethod
    def input(cls, builder, step, number=0):
        """Returns an input of a step."""
        return cls(builder, step, builder.tensor(step.inputs[number]))

    @property
    def shape(self):
        """Sizes; None in the first position is the batch."""
        return tuple(self.tensor.shape)

    def made(self, kind, *others, shape=None, dtype=None, **options):
        """Adds a node of a kind (see `Node`); returns its output, by default of the same shape."""
        names = [x.tensor.name for x in (self, *others)]
        if kind == "reshape":
            options["shape"] = shape
        shape = self.shape if shape is None else shape
        dtype = self.tensor.dtype if dtype is None else dtype
        tensor = self.builder.make(self.step, kind, names, shape, options, dtype=dtype)
        return Floats(self.builder, self.step, tensor)

    def constant(self, values, dtype=None):
        """Adds a constant of the same type."""
        dtype = self.tensor.dtype if dtype is None else dtype
        values = np.atleast_1d(np.asarray(values))
        tensor = self.builder.constant(f"{self.step.name}/constant", values, dtype)
        return Floats(self.builder, self.step, tensor)

    def finish(self):
        """Makes the last node write the step's output."""
        return self.builder.finish(self.step, self.tensor)

    # ---- two operands ----------------------------------------------------------------------------

    def with_other(self, kind, other, *, swapped=False, dtype=None):
        """Adds a node that computes with another tensor or constant, by broadcasting."""
        other = other if isinstance(other, Floats) else self.constant(other)
        first, second = (other, self) if swapped else (self, other)
        return first.made(kind, second, shape=broadcast(first.shape, second.shape), dtype=dtype)

    def __add__(self, other):
        return self.with_other("add", other)

    __radd__ = __add__

    def __sub__(self, other):
        return self.with_other("sub", other)

    def __rsub__(self, other):
        return self.with_other("sub", other, swapped=True)

    def __mul__(self, other):
        return self.with_other("mul", other)

    __rmul__ = __mul__

    def __truediv__(self, other):
        return self.with_other("div", other)

    def __rtruediv__(self, other):
        return self.with_other("div", other, swapped=True)

    def __neg__(self):
        return self.made("neg")

    def __abs__(self):
        return self.made("abs")

    def at_least(self, other):
        """max(x, other)."""
        return self.with_other("maximum", other)

    def at_most(self, other):
        """min(x, other)."""
        return self.with_other("minimum", other)

    def is_true(self, comparison, other):
        """Integers: 1 where a comparison ("greater", ...) with another tensor is true."""
        return self.with_other(comparison, other, dtype="int32")

    def cast(self, dtype):
        """The same numbers in another type."""
        return self if self.tensor.dtype == dtype else self.made("cast", dtype=dtype)

    # ---- axes ------------------------------------------------------------------------------------

    def reduced(self, kind, axes):
        """Adds a reduction ("mean", "sum", "reduce_max", ...); axes keep a size of 1."""
        shape = [1 if axis in axes else size for axis, size in enumerate(self.shape)]
        return self.made(kind, shape=shape, axes=tuple(axes), keep_dims=True)

    def mean(self, axes):
        """Mean over axes, which keep a size of 1; a single value is its own mean, exactly."""
        if all(self.shape[axis] == 1 for axis in axes):
            return self  # a kernel may be off by the last place, which a norm then divides by 0 + ε
        return self.reduced("mean", axes)

    def variance(self, axes):
        """Mean square of the distance from the mean."""
        return self.made("squared_difference", self.mean(axes)).mean(axes)

    def sum(self, axes):
        """Sum over axes, which keep a size of 1."""
        return self.reduced("sum", axes)

    def reshape(self, shape):
        """Another shape; None is the batch."""
        shape = tuple(shape)
        return self if shape == self.shape else self.made("reshape", shape=shape)

    def transpose(self, permutation):
        """Another order of axes."""
        permutation = tuple(permutation)
        if permutation == tuple(range(len(permutation))):
            return self
        shape = [self.shape[axis] for axis in permutation]
        return self.made("transpose", shape=shape, permutation=permutation)

    def matmul(self, other):
        """Product of the last two axes; those before broadcast."""
        shape = (*broadcast(self.shape[:-2], other.shape[:-2]), self.shape[-2], other.shape[-1])
        return self.made("batch_matmul", other, shape=shape)


def broadcast(one, other):
    """Returns the shape of two tensors that broadcast; None is an open batch.

    Example:
        >>> broadcast((None, 3, 1), (4,))
        (None, 3, 4)
    """
    rank = max(len(one), len(other))
    one, other = ((1,) * (rank - len(shape)) + tuple(shape) for shape in (one, other))
    return tuple(b if a == 1 else a for a, b in zip(one, other, strict=True))
