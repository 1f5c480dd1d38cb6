"""Scales and slopes at which LEAKY_RELU computes a leaky ReLU exactly.

The kernel multiplies codes by whole numbers of 256ths: m above 0 and n below, and sends halves up.
Where the scales of input and output have the ratio m / 256, and the slope is n / m, it is exact but
for the halves, which every other arithmetic sends its own way. So the ratio becomes a little larger
and the slope a little smaller, by so much that no result is a half, or nearer to one than 1 / 1024,
and that the nearest codes are those of the kernel.

Neither moves by much: a scale by less than 1/500 of itself, and the slope by half a 256th of a step
per code, a quarter of a step at the end of 8 bits.
"""

import dataclasses

import numpy as np
from keras import layers

from speq_keras.operations import negative_slope

# The largest moves, as parts of themselves: of one scale, and of the slope.
LARGEST_MOVE = 2.0**-9
_LARGEST_SLOPE_MOVE = 0.02
# A ratio or slope this near to a wanted one is it, as float32 can have it.
_IS_EQUAL = 2.0**-21
# How far from the nearest m others are tried.
_NEIGHBOURS = np.arange(-2, 3)
# Fewer 256ths than this, and XNNPACK leaves the operation to another kernel.
_FEWEST = 2


@dataclasses.dataclass
class LeakyReLU:
    """A leaky ReLU between two grids.

    Attributes:
        layer: The layer, whose slope can move.
        input, output: Names of the quantizers of what it reads and makes.
    """

    layer: layers.Layer
    input: str
    output: str

    def settle(self, scales):
        """Moves scales and slope to where the kernel is exact, if that is near."""
        if not {self.input, self.output} <= set(scales.now):
            return
        names = {self.input, self.output}
        free = [name for name in (self.output, self.input) if name not in scales.decided]
        free = free if len(names) == 2 else []  # one grid for both
        found = self._nearest(scales.now[self.input] / scales.now[self.output], len(free))
        scales.decided |= names
        if found is None:
            return
        move, below = found
        for name in free:
            part = move ** (1 / len(free))
            scales.move(name, 1 / part if name == self.output else part)
        ratio = scales.now[self.input] / scales.now[self.output]
        before, slope = negative_slope(self.layer), _away_from_halves(below, -1) / 256 / ratio
        if abs(slope / before - 1) > _IS_EQUAL:
            self.layer.negative_slope = slope
            scales.slopes[self.layer.name] = slope / before

    def _nearest(self, ratio, num_free):
        """Returns `(factor for the ratio, n)` that move results least, or None.

        Args:
            ratio: Of the scales of input and output.
            num_free: How many of them can move.
        """
        slope, best = negative_slope(self.layer), None
        for above in np.rint(256 * ratio) + (_NEIGHBOURS if num_free else [0]):
            below = float(np.rint(above * slope))
            if min(above, below) < _FEWEST:
                continue
            move = _away_from_halves(above, 1) / (256 * ratio)
            slope_move = below / above / slope - 1
            largest = (1 + LARGEST_MOVE) ** num_free - 1 if num_free else _IS_EQUAL
            if abs(move - 1) > largest or abs(slope_move) > _LARGEST_SLOPE_MOVE:
                continue
            cost = abs(move - 1) + slope * ratio * abs(slope_move)
            if best is None or cost < best[0]:
                best = cost, move if abs(move - 1) > _IS_EQUAL else 1.0, below
        return None if best is None else best[1:]


def _away_from_halves(number, sign):
    """Returns a whole number of 256ths, moved so that none of its multiples is a half any more.

    Its multiples up to 255 lie on halves or further from one than 2^k / 256, where 2^k divides it.
    """
    step = int(number) & -int(number)
    return number if step >= 256 else number + sign * step / 512


def find_leaky_relu(step, names):
    """Returns the `LeakyReLU` of a step, or None.

    Args:
        step: A step of a `FoldedNetwork`.
        names: Names of the quantizers of what it reads and makes; None: none.
    """
    can_move = step.kind == "table" and type(step.layer) in (layers.LeakyReLU, layers.ReLU)
    is_unrolled = can_move and step.nodes[0].origin is not None
    if not can_move or is_unrolled or not negative_slope(step.layer) or step.activation != "none":
        return None
    return LeakyReLU(step.layer, *names)
