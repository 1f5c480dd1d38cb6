"""The grids of quantizers, and of kernels that prescribe one."""

import numpy as np

from speq_keras.export.folding.steps import CannotExport, Grid
from speq_keras.operations import fixed_range


def grid_of(quantizer):
    """Returns the `Grid` of an activation quantizer at its current width.

    Raises:
        CannotExport: If the width is float, or the quantizer has no grid (it says why).
    """
    try:
        grid = quantizer.grid()
    except ValueError as error:
        raise CannotExport(str(error)) from error
    if grid is None:
        raise CannotExport("its width is float")
    scale, low, high = grid
    return Grid(np.float32(scale), int(low), int(high))


def fixed_grid(operation):
    """Returns the 8-bit grid that the integer kernel of softmax, sigmoid or tanh prescribes."""
    low, high = fixed_range(operation)
    scale = np.float32((high - low) / 255)
    return Grid(scale, round(low / float(scale)), round(high / float(scale)))
