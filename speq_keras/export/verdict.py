"""What the TFLite file would do with every layer: a dry run of the export, without a file."""

import contextlib
import dataclasses

import keras
import numpy as np

from speq_keras.export.fold import float_widths_reason, metadata_of, unfoldable_reason
from speq_keras.export.folding import Grid
from speq_keras.export.networks import IntegerNetworks
from speq_keras.export.storage import DEFAULT_STORAGE, STORAGES
from speq_keras.export.tflite.write import write
from speq_keras.operations import Kind, kind_of
from speq_keras.ops import MAX_BITS
from speq_keras.processes import local_values

_INTEGER, _FLOAT = "integer", "float island"
_BOTH = "integer, and float island"  # codes for one reader, floats for another
_LEFT_OUT = "left out: it passes its input on"
_BEHIND = "not checked: after a refused layer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `export_tflite` would do with a model as it is now; `str()` is one line.

    Attributes:
        layers: {name of a layer or operation: "integer", "float island", "refused: why", ...};
            empty if the whole model is refused for a general reason, such as unknown sizes.
        reason: Why the whole model is refused, regardless of its layers, or "".
        problems: A `Problem` for every layer that is refused, with storage "int8".
        islands: Names of the layers that compute in float.
        is_calibrated: Whether all ranges were set. If not, they have stand-ins, and nothing that
            depends on them is refused.
        bytes: {storage: size of the file in bytes}; empty if the model is refused.
        only_refused_as: {storage: problems} of storages that are refused although "int8" is not.
    """

    layers: dict
    reason: str
    problems: tuple
    islands: tuple
    is_calibrated: bool
    bytes: dict
    only_refused_as: dict

    @property
    def is_refused(self):
        """Whether `export_tflite` would raise, once the model is calibrated."""
        return bool(self.reason or self.problems)

    def to_dict(self):
        """Returns plain dicts, lists, numbers and strings."""
        return {
            "sentence": str(self),
            "is_refused": self.is_refused,
            "refused": {problem.layer: problem.reason for problem in self.problems},
            "float_islands": list(self.islands),
            "is_calibrated": self.is_calibrated,
            "bytes": dict(self.bytes),
            "only_refused_as": {
                storage: {problem.layer: problem.reason for problem in problems}
                for storage, problems in self.only_refused_as.items()
            },
        }

    def __str__(self):
        problems = "; ".join(map(str, self.problems))
        if self.reason:
            besides = f" It also refuses {problems}." if problems else ""
            return f"Export refuses this model: {self.reason}{besides}"
        if problems:
            return f"Export refuses this model: {problems}."
        text = "Export writes this model with integers only."
        if self.islands:
            text = f"Export writes this model with float islands: {', '.join(self.islands)}."
        for storage, problems in self.only_refused_as.items():
            text += f" With storage {storage} it refuses {'; '.join(map(str, problems))}."
        if not self.is_calibrated:
            text += " Not calibrated yet: what depends on ranges is checked at export."
        return text

    def lines(self):
        """Returns the lines that end a report: the sizes of the file, and the verdict."""
        sizes = [f"{size / 1000:,.1f} kB with storage {name}" for name, size in self.bytes.items()]
        return [*([f"TFLite file: {', '.join(sizes)}"] if sizes else []), str(self)]


def verdict_of(model, graph):
    """Dry-runs the export of a SPEQModel for every storage, otherwise with the default options.

    Args:
        model: The model; it need not be calibrated.
        graph: Its graph, from `read_unrolled`.

    Returns:
        A `Verdict`.
    """
    # With several processes, a computation on the variables of all would wait for the others.
    local = local_values(model.variables)
    with keras.StatelessScope(local) if local else contextlib.nullcontext():
        return _dry_run(model, graph)


def _dry_run(model, graph):
    is_calibrated = all(q.is_calibrated for q in model.activation_quantizers)
    unfoldable = unfoldable_reason(model)
    reason = unfoldable or float_widths_reason(model) or ""
    layers, problems, islands, sizes, others = {}, (), (), {}, {}
    if unfoldable is None:
        networks = IntegerNetworks(
            model, graph, _stand_ins(model), forgives_ranges=not is_calibrated
        )
        for storage in STORAGES:
            folded, network, found = networks.of(storage)
            found = tuple(found)
            if storage == DEFAULT_STORAGE:
                problems, layers = found, _layers(graph, folded, found)
                islands = tuple(folded.float_layers)
            if problems or reason:
                break
            if found:
                others[storage] = found
                continue
            network.metadata.update(metadata_of(model, storage))
            sizes[storage] = len(write(network))
    return Verdict(
        layers=layers,
        reason=reason,
        problems=problems,
        islands=islands,
        is_calibrated=is_calibrated,
        bytes=sizes,
        only_refused_as=others,
    )


def _stand_ins(model):
    """Returns {name: Grid} of the quantizers whose range was never set, or whose width is float.

    No two scales are equal or in a simple ratio, as with trained ones.
    """
    grids = {}
    for number, quantizer in enumerate(model.activation_quantizers, 1):
        irregular = np.float32(1 + 0.1 * (number * (5**0.5 - 1) / 2 % 1))
        if quantizer.bits is None:
            half = 2 ** (MAX_BITS - 1)
            low = -half if quantizer.signed else 0
            grids[quantizer.name] = Grid(irregular / half, low, low + 2 * half - 1)
        elif not quantizer.is_calibrated:
            scale, low, high = quantizer.grid()
            grids[quantizer.name] = Grid(np.float32(scale) * irregular, int(low), int(high))
    return grids


def _layers(graph, folded, problems):
    """Returns {node name: what becomes of it}; a layer that is called twice has one name."""
    found = {}
    for step in folded.steps:
        is_island = step.is_float and step.output.dtype == "float32"
        absorbed = [] if step.absorbed is None else [step.absorbed]
        for node in [*step.nodes, *absorbed]:
            found.setdefault((node.origin or node).name, set()).add(
                _FLOAT if is_island else _INTEGER
            )
    refused = {}
    for problem in problems:
        refused.setdefault(problem.layer, []).append(problem.reason)
    reasons = {problem.layer: problem.reason for problem in folded.no_kernel}
    layers = {}
    for node in graph.nodes:
        name = (node.origin or node).name
        if kind_of(node.operation) is Kind.QUANTIZER:
            continue
        if name in refused:
            layers[name] = f"refused: {'; '.join(dict.fromkeys(refused[name]))}"
        elif name in found:
            text = _BOTH if len(found[name]) == 2 else next(iter(found[name]))
            layers[name] = f"{text}: {reasons[name]}" if name in reasons else text
        else:
            layers[name] = _LEFT_OUT if name in folded.left_out else _BEHIND
    return layers
