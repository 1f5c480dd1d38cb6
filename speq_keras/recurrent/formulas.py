"""One step of LSTM, GRU and SimpleRNN, written once for tensors and for nodes of a graph.

`m` does the computing: `recurrent(part, h)` is h · U + b of some gates, rounded; `round(role, x)`
rounds with the quantizer of a role; `function(role, x)` applies the activation function of a role
and rounds. The other methods do what their names say. A state of None is zero, and products with it
are omitted.

    LSTM      gates = σ(q(x + h·U)): i, f, o;  g = tanh(...)     c = q(q(f·c) + q(i·g))
              h = q(o · tanh(c))
    GRU       gates = σ(q(x + h·U)): z, r                        h = q(g + q(z · q(h − g)))
              g = tanh(q(x + q(r · (h·U))))     reset after;  q(r·h) · U before
    SimpleRNN h = tanh(q(x + h·U))

x is the rounded x·W + b of the same step. h − g instead of z·h + (1 − z)·g saves an operation and
is just as exact.
"""

import dataclasses
import typing

from keras import layers


def _lstm(m, sums, states):
    (x,), (h, c) = sums, states
    total = m.round("gate_sums", m.add(x, m.recurrent(0, h)))
    i, f, o = m.split(m.function("gates", m.columns(total, 0, 3)), 3)
    candidate = m.function("candidates", m.columns(total, 3, 4))
    kept = m.round("kept", m.multiply(f, c))
    added = m.round("added", m.multiply(i, candidate))
    c = m.round("cells", m.add(kept, added))
    h = m.round("states", m.multiply(o, m.function("candidates", c)))
    return h, c


def _gru(m, sums, states):
    (gate_x, candidate_x), (h,) = sums, states
    total = m.round("gate_sums", m.add(gate_x, m.recurrent(0, h)))
    z, r = m.split(m.function("gates", total), 2)
    if m.reset_after:
        inner = m.round("resets", m.multiply(r, m.recurrent(1, h)))
    else:
        inner = m.recurrent(1, m.round("resets", m.multiply(r, h)))
    total = m.round("candidate_sums", m.add(candidate_x, inner))
    candidate = m.function("candidates", total)
    difference = m.round("differences", m.subtract(h, candidate))
    move = m.round("moves", m.multiply(z, difference))
    return (m.round("states", m.add(candidate, move)),)


def _simple(m, sums, states):
    (x,), (h,) = sums, states
    total = m.round("gate_sums", m.add(x, m.recurrent(0, h)))
    return (m.function("states", total),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Formula:
    """A kind of cell.

    Attributes:
        step: Function of `m`, the sums of its parts and the states: returns the new states, the
            output first.
        states: Their number.
        order: The indices of the gates in the columns of Keras' kernels, in the order in which the
            step reads them.
        parts: (first, past the last) of the gates that one product computes.
        functions: {role: the attribute of the cell with its activation function}.
        roles: All others, in order of computation.
    """

    step: typing.Callable
    states: int
    order: tuple
    parts: tuple
    functions: dict
    roles: tuple


_BOTH = {"gates": "recurrent_activation", "candidates": "activation"}
FORMULAS = {
    layers.LSTMCell: Formula(
        step=_lstm,
        states=2,
        order=(0, 1, 3, 2),  # the three sigmoids are adjacent
        parts=((0, 4),),
        functions=_BOTH,
        roles=("input_sums", "recurrent_sums", "gate_sums", "kept", "added", "cells", "states"),
    ),
    layers.GRUCell: Formula(
        step=_gru,
        states=1,
        order=(0, 1, 2),
        parts=((0, 2), (2, 3)),
        functions=_BOTH,
        roles=(
            *("input_sums", "recurrent_sums", "gate_sums", "resets", "candidate_sums"),
            *("differences", "moves", "states"),
        ),
    ),
    layers.SimpleRNNCell: Formula(
        step=_simple,
        states=1,
        order=(0,),
        parts=((0, 1),),
        functions={"states": "activation"},
        roles=("input_sums", "recurrent_sums", "gate_sums"),
    ),
}


class Arithmetic:
    """The arithmetic of a step; subclasses implement the operations.

    Args:
        reset_after: For a GRU: whether the reset gate comes after the product.
    """

    recurrent: typing.Callable
    rounded: typing.Callable
    activated: typing.Callable
    columns: typing.Callable
    split: typing.Callable
    sum: typing.Callable
    difference: typing.Callable
    product: typing.Callable
    negative: typing.Callable

    def __init__(self, reset_after):
        self.reset_after = reset_after

    def add(self, a, b):
        """Returns a + b."""
        return b if a is None else a if b is None else self.sum(a, b)

    def subtract(self, a, b):
        """Returns a − b."""
        return self.negative(b) if a is None else self.difference(a, b)

    def multiply(self, a, b):
        """Returns a · b."""
        return None if a is None or b is None else self.product(a, b)

    def round(self, role, x):
        """`x` on the grid of a role."""
        return None if x is None else self.rounded(role, x)

    def function(self, role, x):
        """The activation function of a role, on the grid of that role."""
        return self.rounded(role, self.activated(role, x))
