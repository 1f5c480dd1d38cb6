"""Results that are not rounded yet: following nodes may still be fused into them."""

import dataclasses

from speq_keras.export.folding import affine
from speq_keras.export.folding.steps import CannotExport
from speq_keras.operations import Kind, function_name

_ACTIVATIONS = ("none", "relu", "relu6")  # each clips what the ones before it clip


@dataclasses.dataclass(eq=False)
class Pending:
    """The nodes since the last codes: a step whose output has no grid yet.

    Attributes:
        kind: As in a `Step`.
        inputs: `Value`s, or one `Padded`.
        shape: Shape of the output.
        nodes: In order.
        affines: (slope, shift) per channel of each node folded into it, in order.
        activation: "none", "relu" or "relu6".
        options, absorbed: As in a `Step`.
    """

    kind: str
    inputs: list
    shape: tuple
    nodes: list
    affines: list = dataclasses.field(default_factory=list)
    activation: str = "none"
    options: dict = dataclasses.field(default_factory=dict)
    absorbed: object = None


def fused(pending, node, kind, *, in_float=False):
    """Returns a `Pending` with one more node: a BatchNormalization, Rescaling, ... or ReLU.

    Args:
        pending: What the node reads.
        node: The node.
        kind: `Kind.RELU`, or the kind of a slope and a shift.
        in_float: Whether it computes with floats.

    Raises:
        CannotExport: If the node cannot be part of that step.
    """
    result = dataclasses.replace(pending, nodes=[*pending.nodes, node])
    if kind is Kind.RELU:
        function = function_name(node.operation)
        result.activation = max(pending.activation, function, key=_ACTIVATIONS.index)
        return result
    if pending.kind not in ("linear", "affine") or pending.activation != "none":
        raise CannotExport("it cannot be folded into the operation before it")
    factors = affine.in_float if in_float else affine.of
    result.affines = [*pending.affines, factors(node.operation, result.shape)]
    return result
