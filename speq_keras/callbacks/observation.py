"""What each activation quantizer reads in a batch, and the codes that it makes."""

import dataclasses

import keras
import numpy as np
from keras import ops

from speq_keras.calibration import sample
from speq_keras.processes import is_first_process, local_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
    """One activation quantizer on one batch.

    Attributes:
        name: The quantizer's name.
        bits: Its width in bits; None: float.
        scale: Distance between its levels in units of the values; None if the width is float.
        low_code, high_code: Its smallest and largest code.
        values: Float32 vector: an evenly spaced sample of the finite values that it reads.
        counts: Frequency of each code, `high_code - low_code + 1` numbers.
        size: Number of values that it reads.
        clipped: Number of these that it moves by more than half a step, because they are outside.
        not_finite: Number that are NaN or infinite.
    """

    name: str
    bits: int | None
    scale: float | None
    low_code: int
    high_code: int
    values: np.ndarray
    counts: np.ndarray
    size: int
    clipped: int
    not_finite: int

    @property
    def has_levels(self):
        """Whether there are levels: the width is not float and training has not diverged."""
        return self.scale is not None and bool(np.isfinite(self.scale))


def observe(model, batch, quantizers):
    """Runs the student on a batch in inference mode, without updates or random state.

    All processes must call this; the first one runs the network.

    Args:
        model: The `SPEQModel`.
        batch: Its inputs.
        quantizers: The activation quantizers to observe.

    Returns:
        An `Observation` per quantizer that ran, or None in all processes except the first. For a
        quantizer shared by several tensors, it covers all of them.
    """
    grids = {id(quantizer): quantizer.grid() for quantizer in quantizers}
    widths = {id(quantizer): quantizer.bits for quantizer in quantizers}
    values = local_values(model.variables)
    if not is_first_process():
        return None
    seen = {}

    def look(quantizer, inputs):
        """Records a quantizer's inputs and outputs, and returns the outputs."""
        x = ops.cast(inputs, "float32")
        y = quantizer.quantized(x)
        seen.setdefault(id(quantizer), []).append(
            _look(ops.convert_to_numpy(x), ops.convert_to_numpy(y), grids[id(quantizer)])
        )
        return ops.cast(y, inputs.dtype)

    try:
        for quantizer in quantizers:
            quantizer.observer = look
        with keras.StatelessScope(values):
            model(batch, training=False)
    finally:
        for quantizer in quantizers:
            quantizer.observer = None
    return [
        _joined(quantizer.name, widths[id(quantizer)], grids[id(quantizer)], seen[id(quantizer)])
        for quantizer in quantizers
        if id(quantizer) in seen
    ]


def _look(x, y, grid):
    """Returns (sampled values, counts of the codes, size, clipped, not finite) of one tensor."""
    finite = np.isfinite(x)
    not_finite = int(x.size - np.count_nonzero(finite))
    values = x[finite] if not_finite else x
    if grid is None or not np.isfinite(grid[0]):
        return sample(values), np.zeros(0, "int64"), x.size, 0, not_finite
    scale, low_code, high_code = grid
    codes = (y[finite] if not_finite else y).ravel() / np.float32(scale)
    codes = np.clip(np.rint(codes), low_code, high_code).astype("int64")
    counts = np.bincount(codes - low_code, minlength=high_code - low_code + 1)
    outside = (values < (low_code - 0.5) * scale) | (values > (high_code + 0.5) * scale)
    return sample(values), counts, x.size, int(np.count_nonzero(outside)), not_finite


def _joined(name, bits, grid, parts):
    scale, low_code, high_code = grid or (None, 0, 0)
    values, counts, size, clipped, not_finite = zip(*parts, strict=True)
    return Observation(
        name=name,
        bits=bits,
        scale=scale,
        low_code=low_code,
        high_code=high_code,
        values=np.concatenate(values),
        counts=np.sum(counts, axis=0),
        size=sum(size),
        clipped=sum(clipped),
        not_finite=sum(not_finite),
    )
