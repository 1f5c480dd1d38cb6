"""Turns a float model into a quantized graph.

    as_functional  subclassed models -> Functional ones    subclassed.py
    read_graph     Keras model -> plain nodes              ../graph
    Expander       blocks made of layers -> those layers   composite.py, parts.py
    canonicalize   fused activations, swish, separable     canonical.py
    decide         which layer gets which width            decisions.py
    place          where the quantizers go                 placement.py
    find_owners    which layers the ranges belong to       owners.py
    build_graph    plain nodes -> Keras graph              build.py

`../operations.py` says what integer kernels do with a tensor; the placement follows from that.
"""

import dataclasses

from speq_keras._checks import describe
from speq_keras.graph import Graph, read_graph
from speq_keras.wrapping.build import build_graph, copy_weights
from speq_keras.wrapping.canonical import Canonical, canonicalize
from speq_keras.wrapping.composite import Expander
from speq_keras.wrapping.decisions import WrapOptions, decide
from speq_keras.wrapping.owners import find_owners
from speq_keras.wrapping.placement import Placement, place
from speq_keras.wrapping.subclassed import as_functional, taken_apart


@dataclasses.dataclass
class QuantizedGraph:
    """A built graph: inputs, outputs, why layers stay float, origins of weights, owners of ranges.

    `read` is the float `Graph` it was made from.
    """

    inputs: object
    outputs: object
    reasons: dict
    canonical: Canonical
    owners: dict = dataclasses.field(default_factory=dict)
    read: Graph | None = None

    def copy_weights(self, layers):
        """Copies the float model's weights into `layers`, of a model made from this graph."""
        copy_weights(layers, self.canonical.origins, self.canonical.originals)


def quantize_graph(model, options, *, fuses_batch_norm=False):
    """Builds the quantized graph of a float model, with initial weights.

    Args:
        model: A Functional or built Sequential model; it is not changed.
        options: The `WrapOptions`.
        fuses_batch_norm: See `canonicalize`.

    Returns:
        A `QuantizedGraph`.
    """
    expander = Expander(options.names_whole)
    graph = read_graph(model, expander)
    _check_float(graph, options)
    options.check_patterns(graph.nodes)
    activations = options.a_bits is not None
    canonical = canonicalize(
        graph,
        is_float=options.is_skipped,
        splits_swish=activations,
        fuses_batch_norm=fuses_batch_norm,
    )
    decisions = decide(canonical.graph, options)
    placement = Placement(at={}, between={}, demands={})
    if activations:
        placement = place(
            canonical.graph,
            decisions.kinds,
            decisions.demands,
            quantizes_outputs=options.boundary_bits is not None,
            given=decisions.outputs,
            rounding=decisions.rounding,
        )
    inputs, outputs = build_graph(canonical, placement, decisions.weights, decisions.rounding)
    reasons = _with_causes(decisions.reasons, expander.reasons)
    owners = find_owners(canonical, decisions.kinds, placement)
    return QuantizedGraph(inputs, outputs, reasons, canonical, owners, graph)


def _with_causes(reasons, causes):
    """Returns why layers stay float; for composite layers, why they could not be taken apart."""
    return {
        name: f"{reason}; {causes[name]}" if name in causes and reason != "skipped" else reason
        for name, reason in reasons.items()
    }


def _check_float(graph, options):
    for node in graph.nodes:
        mode = getattr(node.operation, "quantization_mode", None)
        if mode is not None:
            raise ValueError(
                f"Layer '{node.name}' ({type(node.operation).__name__}) must have float weights, "
                f"and Keras' own `quantize` has rounded them. {describe(quantization_mode=mode)} "
                "Wrap the model first."
            )
        if getattr(node.operation, "lora_enabled", False) and not options.is_skipped(node):
            raise ValueError(
                f"Layer '{node.name}' ({type(node.operation).__name__}) must have one kernel to "
                "round, and LoRA adds two to it. "
                f"{describe(lora_rank=node.operation.lora_rank)} Save the weights, load them into "
                f"a model without LoRA, and wrap that, or pass skip=['{node.name}']."
            )


__all__ = ["QuantizedGraph", "WrapOptions", "as_functional", "quantize_graph", "taken_apart"]
