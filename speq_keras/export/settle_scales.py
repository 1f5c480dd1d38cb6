"""Finds scales whose sums, products and means are never halfway between two codes.

Before rounding, a sum of codes is c = (s_a·a + s_b·b) / s_c. Float32 and integer kernels agree on
the nearest code, except near halves. If s_a / s_c = p / q and s_b / s_c = r / q with integers and
an odd q, c is a multiple of 1/q, and the closest one to a half is 1 / (2q) away from it: further
than any kernel's rounding. This takes a change of a scale by less than 1/500. Products, means and
mere changes of scale have ratios of the same kind. Network inputs are rounded, too: see
`Scales.settle_input`.
"""

import dataclasses

import numpy as np

from speq_keras.export.folding.ties import NUDGE
from speq_keras.export.folding.weights import slope_of
from speq_keras.export.settle_slopes import LARGEST_MOVE, LeakyReLU, find_leaky_relu

# The number of denominators to try.
_CANDIDATES = 2000
# Relative error of a result in float32: three roundings, with as much again in reserve.
_FLOAT32 = 2.0**-21
# A ratio this close to p / q counts as equal, within float32 scales.
_IS_RATIO = 2.0**-21
# The terms of a fraction that network inputs may be multiples of: pixels, perhaps resized.
_LARGEST_TERM = 256
# An input scale that is such a fraction is enlarged by this fraction, or a multiple of it.
_INPUT_MOVE = 0.31 * 2.0**-10
_AGAIN = ("requantize", "affine")
_RELATIONS = ("add", "subtract", "multiply", "matmul", "mean", "requantize")


@dataclasses.dataclass
class Relation:
    """One step whose result is a sum of products of codes and these ratios.

    Attributes:
        name: Name of its output.
        inputs: Pairs of quantizers' names (one or two factors each) and a constant factor.
        output: Name of the quantizer of the result.
        is_sum: Whether XNNPACK adds the terms, with factors of 20 bits.
        largest: Largest magnitude of the result's codes.
    """

    name: str
    inputs: list
    output: str
    is_sum: bool
    largest: int

    def denominators(self, ratios):
        """Returns odd numbers q for which kernels move no result by as much as 1 / (4q)."""
        noise = self.largest * _FLOAT32
        if self.is_sum:
            # Each factor is off by half of its 20th bit, and codes go to 255.
            noise = max(noise, 255 * 2.0 ** (np.frexp(np.max(ratios))[1] - 21))
        most = max(int(1 / (4 * noise)), 3) // 2 * 2 + 1
        return np.arange(max(most - 2 * _CANDIDATES, 3), most + 1, 2, dtype="float64")


def relations_of(folded, owners, prescribed):
    """Returns the `Relation`s and `LeakyReLU`s of a `FoldedNetwork`, in the order of settling.

    First steps that round a tensor again to a prescribed grid. Then sums, products and means,
    starting at the outputs, so that the scale of a result is decided before those of its inputs.
    Last, steps that round a tensor again to a trained grid.

    Args:
        folded: The network.
        owners: {id(value): name of the quantizer whose grid it has}.
        prescribed: Names of quantizers whose scale cannot change.
    """
    found = []
    for step in folded.steps:
        if step.quantizer is None:
            continue
        slope = slope_of(step)
        names = [owners.get(id(value)) for value in step.inputs]
        leaky_relu = find_leaky_relu(step, [*names, step.quantizer.name])
        if leaky_relu is not None:
            found.append((step.kind, leaky_relu))
        if step.kind not in _RELATIONS and slope is None:
            continue
        if slope is not None:
            inputs = [((names[0],), abs(slope))]
        elif step.kind in ("multiply", "matmul"):
            inputs = [(tuple(names), 1.0)]
        elif step.kind == "mean":
            inputs = [((names[0],), 1.0 / _count(step))]
        else:
            inputs = [((name,), 1.0) for name in names]
        is_sum = step.kind in ("add", "subtract")
        largest = max(-step.output.grid.low, step.output.grid.high)
        relation = Relation(step.name, inputs, step.quantizer.name, is_sum, largest)
        found.append((step.kind, relation))
    again = [relation for kind, relation in found if kind in _AGAIN]
    return [
        *(relation for relation in again if relation.output in prescribed),
        *(relation for kind, relation in reversed(found) if kind not in _AGAIN),
        *(relation for relation in again if relation.output not in prescribed),
    ]


def _count(step):
    shape = step.inputs[0].shape
    return float(np.prod([shape[axis] for axis in step.options["axes"]]))


class Scales:
    """The scales while they are being settled.

    Args:
        quantizers: {name: ActivationQuantizer}.

    Attributes:
        now: {name: scale}.
        prescribed, decided: Names of quantizers whose scale cannot move, or must not any more.
        twins: {name: names of quantizers that round its codes again, to the same grid}: they move
            with it, so that they still have nothing to do.
        moved: {name: its scale, as a part of what it was}.
        slopes: {leaky ReLU: its slope, as a part of what it was}.
    """

    def __init__(self, quantizers):
        self.quantizers = quantizers
        self.twins = {}
        self.now = {name: float(np.float32(q.grid()[0])) for name, q in quantizers.items()}
        self.prescribed = {name for name, q in quantizers.items() if not q.multiply_scale(1.0)}
        self.decided = set(self.prescribed)
        self.moved, self.slopes = {}, {}

    def settle(self, relation):
        """Moves scales so that `relation` has no halves; returns whether that is so now.

        A `LeakyReLU` always has a way to be exact: the kernel that it is settled for, or a sum.
        """
        if isinstance(relation, LeakyReLU):
            relation.settle(self)
            return True
        factors = {name for names, _ in relation.inputs for name in names}
        if not (factors | {relation.output}) <= set(self.now):
            return False
        free = factors - self.decided
        if not self._is_settled(relation):
            self._move(relation, free, relation.output not in self.decided)
        self.decided |= factors | {relation.output}
        return self._is_settled(relation)

    def settle_input(self, name):
        """Moves the scale of a network input away from fractions, whose halves inputs can be.

        Upscaled pixels are halves of integers: with a scale of 1, usual for 8-bit pixels, every
        other one is on a half, which kernels round to even.
        """
        step = 1
        while self._is_fraction(self.now[name] * (1 + step * _INPUT_MOVE)):
            step += 1
        if self._is_fraction(self.now[name]):
            self.move(name, 1 + step * _INPUT_MOVE)

    @staticmethod
    def _is_fraction(scale):
        numerators = scale * np.arange(1, _LARGEST_TERM + 1)
        if scale > 1:
            numerators = np.arange(1, _LARGEST_TERM + 1) / scale
        whole = np.maximum(np.rint(numerators), 1)
        return bool(np.any(np.abs(numerators / whole - 1) < _IS_RATIO))

    def _ratios(self, relation):
        ratios = []
        for names, constant in relation.inputs:
            ratio = constant / self.now[relation.output]
            for name in names:
                ratio *= self.now[name]
            ratios.append(ratio)
        return np.array(ratios)

    def _is_settled(self, relation):
        ratios = self._ratios(relation)
        numerators = np.outer(relation.denominators(ratios), ratios)
        whole = np.maximum(np.rint(numerators), 1)
        return bool(np.any(np.all(np.abs(numerators / whole - 1) < _IS_RATIO, axis=1)))

    def _move(self, relation, free, output_is_free):
        """Chooses the denominator that moves the free scales least, and moves them.

        A result may be on the grid of a factor, as when a Concatenate joins both: then one power of
        that scale cancels, and only the rest of the ratio can move.
        """
        ratios = self._ratios(relation)
        owners = [
            [name for name in names if name in free and name != relation.output]
            for names, _ in relation.inputs
        ]
        # If a term has no scale of its own to move, the result's scale has to move instead.
        powers = [names.count(relation.output) - 1 for names, _ in relation.inputs]
        stuck = [i for i, names in enumerate(owners) if not names and powers[i]]
        shared = len({name for names in owners for name in names}) < sum(map(bool, owners))
        if shared or len(stuck) > output_is_free:
            self._move_together(relation, ratios, free, output_is_free)
            return
        numerators = np.outer(relation.denominators(ratios), ratios)
        wanted = np.maximum(np.rint(numerators), 1) / numerators
        output = wanted[:, stuck[0]] ** (1 / powers[stuck[0]]) if stuck else np.ones(len(wanted))
        moves = wanted / output[:, None] ** powers
        largest = np.max(np.abs(np.column_stack([moves, output]) - 1), axis=1)
        # If a term depends on no movable scale, the others must use its denominators.
        fixed = [i for i, names in enumerate(owners) if not names and not powers[i]]
        largest[np.any(np.abs(wanted[:, fixed] - 1) > _IS_RATIO, axis=1)] = np.inf
        best = int(np.argmin(largest))
        if largest[best] > LARGEST_MOVE:
            return
        self.move(relation.output, float(output[best]))
        for names, move in zip(owners, moves[best], strict=True):
            if names:
                self.move(names[0], float(move ** (1 / names.count(names[0]))))

    def _move_together(self, relation, ratios, free, output_is_free):
        """Like `_move` if all terms have the same ratio, as in x + x: one scale moves."""
        names = {names for names, _ in relation.inputs}
        if len(names) > 1 or not (output_is_free or free):
            return
        numerators = relation.denominators(ratios) * ratios[0]
        wanted = np.maximum(np.rint(numerators), 1) / numerators
        best = int(np.argmin(np.abs(wanted - 1)))
        if abs(wanted[best] - 1) > LARGEST_MOVE:
            return
        if output_is_free:
            self.move(relation.output, float(1 / wanted[best]))
        else:
            (name, *_), (factors,) = sorted(free), names
            self.move(name, float(wanted[best] ** (1 / factors.count(name))))

    def move(self, name, factor):
        """Makes a scale `factor` times as large, and those of its twins."""
        if factor == 1.0:
            return
        before = self.now[name]
        names = [name, *(twin for twin in self.twins.get(name, ()) if twin not in self.decided)]
        for each in names:
            self.quantizers[each].multiply_scale(factor)
            self.now[each] = float(np.float32(self.quantizers[each].grid()[0]))
            self.moved[each] = self.moved.get(each, 1.0) * self.now[each] / before
        self.decided.update(names[1:])

    def take_over(self, scales):
        """Moves scales to where folding would put them; returns the names of those that cannot."""
        left = []
        for name, scale in scales.items():
            if self.quantizers[name].multiply_scale(float(scale) / self.now[name]):
                self.moved[name] = self.moved.get(name, 1.0) * float(NUDGE)
            else:
                left.append(name)
        return left
