"""Moves biases to the grid of the integer kernels' sums, and away from halves."""

import dataclasses

import keras
import numpy as np
from keras import layers

from speq_keras.export.folding import affine
from speq_keras.export.folding.steps import SETTLED_STEPS
from speq_keras.operations import Kind, kind_of, name_of

# Sums closer to a half than this, in steps, are decided by the last bits of float32.
_NEAR_HALF = 1e-4
# How far a bias may move to avoid halves, in units.
_MOST_UNITS = 8


@dataclasses.dataclass
class Move:
    """The change to settle one layer: `shift` per channel, in units of the step's output.

    `largest` is the largest shift in output steps.
    """

    name: str
    shift: np.ndarray
    largest: float


def move_of(step):
    """Returns the `Move` that brings a step's bias to its grid, or None if it is there.

    Channels with sums on halves move by further units, if that avoids all halves.
    """
    weights = step.weights
    wanted = weights.bias_codes + _away_from_halves(step)
    shift = wanted * weights.unit - weights.bias
    step_size = np.float64(step.output.grid.scale)
    largest = float(np.max(np.abs(shift), initial=0.0) / step_size)
    is_there = np.abs(shift) <= SETTLED_STEPS * step_size
    if np.all(is_there):
        return None
    return Move(step.name, np.where(is_there, 0.0, shift), largest)


def _away_from_halves(step):
    """Returns how many units each bias must move so that no sum is on a half, or 0.

    With the multiplier m, all sums of a channel are multiples of m units, so a bias in between
    moves all of them.
    """
    weights, grid = step.weights, step.output.grid
    steps = weights.unit / np.float64(grid.scale)
    lattice = weights.multiplier.astype("float64")
    moved = np.zeros(len(steps), "int64")
    near = _near_halves(weights.bias_codes, lattice, steps, grid)
    for channel in np.flatnonzero(near & (lattice > 1)):
        for distance in range(1, min(_MOST_UNITS, int(lattice[channel]) // 2) + 1):
            found = [
                sign * distance
                for sign in (1, -1)
                if not _near_halves(
                    weights.bias_codes[channel : channel + 1] + sign * distance,
                    lattice[channel : channel + 1],
                    steps[channel : channel + 1],
                    grid,
                )[0]
            ]
            if found:
                moved[channel] = found[0]
                break
    return moved


def _near_halves(bias_codes, lattice, steps, grid):
    """Returns for each channel whether a sum on its lattice may be on a half between codes."""
    halves = np.arange(grid.low, grid.high) + 0.5
    # Where the lattice would need a point, in units of its spacing.
    places = (halves[None, :] / steps[:, None] - bias_codes[:, None]) / lattice[:, None]
    distance = np.abs(places - np.rint(places)) * (lattice * steps)[:, None]
    return np.any(distance < _NEAR_HALF, axis=1)


def apply_move(step, move):
    """Moves what a step's trained layers add: a bias or β, otherwise an offset or a mean.

    Returns:
        Whether there was one.
    """
    shape = step.output.shape
    slope, found = np.ones(len(move.shift)), []
    for node in reversed(step.nodes):
        kind = kind_of(node.operation)
        if kind is Kind.RELU:
            continue
        layer = getattr(node.operation, "layer", node.operation)
        found.append((layer, move.shift / slope))
        if kind is not Kind.AFFINE:
            break
        slope = slope * np.resize(affine.of(layer, shape)[0], slope.shape)
    found = [(layer, shift) for layer, shift in found if np.all(np.isfinite(shift))]
    return any(_move_variable(layer, shift, shape) for layer, shift in found) or any(
        _move_constant(layer, shift, shape) for layer, shift in found
    )


def _move_variable(layer, shift, shape):
    """Adds `shift`, per channel, to a layer's bias, β, moving mean or other addend.

    Returns:
        Whether that was possible.
    """
    if name_of(layer) == "ChannelOperation":
        sign = {"add": 1, "subtract": 1 if layer.weight_first else -1}.get(layer.operation)
        return sign is not None and _add(layer.weight, sign * shift)
    if not isinstance(layer, layers.BatchNormalization):
        bias = getattr(layer, "bias", None)
        return isinstance(bias, keras.Variable) and _add(bias, shift)
    return _move_batch_norm(layer, shift, shape)


def _move_constant(layer, shift, shape):
    """Adds `shift` to the offset or mean of a layer that has no variable for it."""
    if len(shift) != shape[-1]:
        return False
    if isinstance(layer, layers.Rescaling):
        layer.offset = _plain(np.asarray(layer.offset, "float64") + shift)
        return True
    return isinstance(layer, layers.Normalization) and _move_normalization(layer, shift, shape)


def _move_batch_norm(layer, shift, shape):
    if layer.center:
        return _add(layer.beta, shift)
    slope, _ = affine.of(layer, shape)
    return bool(np.all(slope)) and _add(layer.moving_mean, -shift / slope)


def _move_normalization(layer, shift, shape):
    slope, _ = affine.of(layer, shape)
    change = shift if layer.invert else -shift / slope
    if layer.input_mean is not None:
        mean = np.asarray(layer.input_mean, "float64") + change
        layer.input_mean = _plain(mean)
        before = np.asarray(keras.ops.convert_to_numpy(layer.mean), "float64")
        layer.mean = keras.ops.convert_to_tensor((before + change).astype("float32"))
        return True
    if layer.adapt_mean.shape != change.shape:
        return False
    done = _add(layer.adapt_mean, change)
    layer.finalize_state()
    return done


def _add(variable, shift):
    values = keras.ops.convert_to_numpy(variable.value).astype("float64")
    if values.size != shift.size:
        return False
    variable.assign((values + shift.reshape(values.shape)).astype("float32"))
    return True


def _plain(values):
    """Returns an offset as a layer's config can store it: one number, or a list of numbers."""
    values = np.asarray(values, "float64")
    if np.all(values == values.reshape(-1)[0]):
        return float(values.reshape(-1)[0])
    return values.tolist()
