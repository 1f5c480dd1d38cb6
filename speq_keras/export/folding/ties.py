"""Scale ratios at which many exact results lie halfway between two codes.

Kernels agree on what the nearest code is, and disagree on halves: up, to even, away from zero. Two
trained scales are never in a ratio like 1:2, but copied or fixed ones may be. Then the scale of the
result is made larger by one part in 2048, which moves no code by more than an eighth of a step.
"""

import dataclasses

import numpy as np

from speq_keras.operations import negative_slope

NUDGE = np.float32(1 + 2.0**-11)
# Nearer to a half than this is called a tie; in unrelated ratios one result in 2048 is.
_NEAR = 2.0**-12
_MOST = 2.0**-8


def leaky_slope(pending):
    """Returns the slope below zero of a leaky ReLU that is to be rounded; of all else None."""
    operation = pending.nodes[0].operation if pending.kind == "table" else None
    return None if operation is None else negative_slope(operation)


def ties(kind, inputs, output, slope=None):
    """Returns the share of code combinations whose exact result is halfway between two codes.

    Args:
        kind: "add", "subtract", "multiply" or "requantize"; "table" with a `slope`.
        inputs: `Grid`s of the inputs.
        output: `Grid` of the result.
        slope: Of a leaky ReLU below zero.

    Example:
        >>> from speq_keras.export.folding import Grid
        >>> grid = Grid(np.float32(0.25), 0, 255)
        >>> float(ties("requantize", [grid], Grid(np.float32(0.5), 0, 255)))
        0.5
    """
    codes = [np.arange(grid.low, grid.high + 1, dtype="float64") for grid in inputs]
    values = [c * np.float64(grid.scale) for c, grid in zip(codes, inputs, strict=True)]
    if slope is not None:
        results = np.where(values[0] < 0, slope * values[0], values[0])
    elif kind == "requantize":
        results = values[0]
    elif kind == "multiply":
        results = np.multiply.outer(*values)
    else:
        results = np.add.outer(values[0], values[1] if kind == "add" else -values[1])
    steps = results / np.float64(output.scale)
    near = _NEAR if slope is None else _NEAR / 4  # as far as a kernel's sum may be off
    return np.mean(np.abs(steps - np.floor(steps) - 0.5) < near)


def nudged(kind, inputs, output, slope=None):
    """Returns a slightly larger output `Grid` where many results tie, else None."""
    if slope is None and kind not in ("add", "subtract", "multiply", "requantize"):
        return None
    grid = dataclasses.replace(output, scale=np.float32(output.scale * NUDGE))
    if kind == "requantize" and inputs[0] == grid:
        return grid  # the same as before its input was nudged
    most = _MOST if slope is None else 0.0  # of a leaky ReLU all codes have to be its own
    if ties(kind, inputs, output, slope) <= most:
        return None
    return grid if ties(kind, inputs, grid, slope) <= most else None
