"""The report of an export: sizes, the proof, where it runs, how every layer was exported."""

import dataclasses
import functools
import gzip
import json
import pathlib

from speq_keras.export.c_array import check_c_array_path, write_c_array
from speq_keras.export.micro import MicroNeeds
from speq_keras.export.pictures import (
    NODE_DATA,
    code_cells,
    export_page,
    node_data,
    weight_cells,
)
from speq_keras.export.proof import FLAT_SHARE, Proof
from speq_keras.export.tflite.runtimes import Deviation, Partitions
from speq_keras.files import check_path
from speq_keras.html import written
from speq_keras.processes import is_first_process, path_to_write
from speq_keras.text_tables import aligned


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightRow:
    """The weights of one layer in the file.

    Attributes:
        name: The layer's name.
        tensor: The tensor's name in the file.
        type: "int8", "int4" or "int2".
        bits: The trained width.
        used: Number of different codes.
        largest: Largest magnitude of the trained codes.
        multiplier: Their factor to fill the container (the largest of the layer).
        bytes: Size of the packed codes.
        why: Why the container is not narrower, or "".
    """

    name: str
    tensor: str
    type: str
    bits: int
    used: int
    largest: int
    multiplier: int
    bytes: int
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 accuracies on the same examples, 0 to 1.

    `apart`: number of examples on which exactly one of training graph and file is right.
    """

    examples: int
    trained: float
    folded: float
    file: float
    apart: int = 0

    @property
    def differs(self):
        """Whether the file is a different network: over 3 sigma of a fair coin, plus one example.

        Rounding affects examples either way alike: of `apart` examples, half are right in the file.
        """
        difference = abs(self.file - self.trained) * self.examples
        return difference > 3 * self.apart**0.5 + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """How close `model.predict` and the file are, on the examples of the proof.

    Attributes:
        examples: Number of examples.
        top1: Share of the same top-1 classes, 0 to 1; None: not a classifier.
        distance: Largest difference of an output value.
        span: The outputs' largest value minus their smallest.
    """

    examples: int
    top1: float | None
    distance: float
    span: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The result of `export_tflite`; prints as a table.

    `to_dict()` gives plain values, `to_html()` a web page, `to_model_explorer()` colours for nodes.

    Attributes:
        path: Path of the file.
        storage, io: As requested.
        bytes: Size of the file.
        proof: A `Proof`.
        partitions: A `Partitions`: what the default runtime delegates to XNNPACK.
        agreement: An `Agreement` of `model.predict` and the file.
        accuracy: An `Accuracy`, or None if no labelled data was given.
        other_runtimes: A `Deviation` for each of the other requested runtimes.
        on_arm: A `Deviation`, simulated, of the results on ARM and in browsers of a file with
            `storage="smallest"`; None: the same.
        weights: A `WeightRow` per layer.
        notes: Sentences about what folding did.
        micro: A `MicroNeeds`: what a program for TensorFlow Lite Micro registers, and its memory.
        seconds: Duration of the export, including the proof.
    """

    path: str
    storage: str
    io: str
    bytes: int
    proof: Proof
    partitions: Partitions
    agreement: Agreement
    accuracy: Accuracy | None
    other_runtimes: tuple
    on_arm: Deviation | None
    weights: tuple
    notes: tuple
    micro: MicroNeeds
    seconds: float

    @functools.cached_property
    def gzip_bytes(self):
        """Compressed size of the file at `path`, as in an app package; computed when first used."""
        return len(gzip.compress(pathlib.Path(self.path).read_bytes()))

    def to_c_array(self, path):
        """Writes the file at `self.path` as a C array, for programs that keep it in flash.

        Args:
            path: Path of the source, ending in ".cc" or ".cpp". "digits.cc" defines the bytes
                `g_digits`, aligned to 16 bytes; "digits.h", next to it, declares them and their
                number, `g_digits_size`.

        Raises:
            TypeError, ValueError: If nothing can be written there, or the name of the file cannot
                be part of a C++ name; nothing is written.
        """
        check_c_array_path(path)
        if is_first_process():
            write_c_array(pathlib.Path(self.path).read_bytes(), path)

    def to_dict(self):
        """Returns the report as plain dicts, lists, numbers and strings."""
        plain = dataclasses.asdict(self)
        plain["micro"] = self.micro.to_dict()
        for name in ("other_runtimes", "weights", "notes"):
            plain[name] = list(plain[name])
        plain["proof"]["runtimes"] = list(self.proof.runtimes)
        for name in ("holds", "mismatches", "outside", "deviation", "flat_share"):
            plain["proof"][name] = getattr(self.proof, name)
        for part in ("tensors", "outputs"):
            plain["proof"][part] = [
                {key: list(x) if isinstance(x, tuple) else x for key, x in row.items()}
                for row in plain["proof"][part]
            ]
        return plain

    def to_html(self, path=None):
        """Returns the report as a self-contained web page.

        Bars show widths (of 8 bits), the share of a grid's codes in use, the largest distance from
        the value that the trained network rounds (of the largest that a correct code can have), and
        bytes relative to the largest layer.

        Args:
            path: File to write the page to, ".html", or None. It is written completely or not at
                all; of several processes the first one writes.

        Returns:
            The page as text.

        Raises:
            TypeError, ValueError: If no file can be written to `path`.
        """
        return written(path, lambda: export_page(self))

    def to_model_explorer(self, path):
        """Writes numbers for the nodes of the file, which Google's Model Explorer shows in colours.

        Model Explorer shows one number per node and file of node data, so there are three files:

            x.json        largest distance from the value that the trained network rounds, in steps
            x_codes.json  number of different codes that occurred; for weights, that there are
            x_bits.json   the width in bits

        The program is installed by `pip install ai-edge-model-explorer`:

            model-explorer m.tflite --node_data_paths=x.json,x_codes.json,x_bits.json

        Args:
            path: The first file, ".json". Of several processes the first one writes.

        Returns:
            The three paths, a list.

        Raises:
            TypeError, ValueError: If no file can be written there.
        """
        path = check_path(path, suffix=".json")
        paths = {suffix: path.with_name(f"{path.stem}{suffix}.json") for suffix in NODE_DATA}
        with path_to_write(path) as target:
            for suffix, data in node_data(self).items():
                place = target.with_name(paths[suffix].name)
                place.write_bytes(json.dumps(data, indent=1, allow_nan=False).encode())
        return list(paths.values())

    def __str__(self):
        proof, parts = self.proof, self.partitions
        others = ", ".join(f"{count} {name}" for name, count in sorted(parts.others.items()))
        lines = [
            f"{self.path}: {self.bytes / 1e3:,.1f} kB, storage {self.storage}, "
            f"inputs and outputs {self.io}",
            f"  {sum(parts.delegated.values())} operations in {parts.partitions} XNNPACK "
            f"partition(s), {parts.num_others} outside{': ' + others if others else ''}",
            *(f"  {line}" for line in _proof_lines(proof)),
            f"  {_agreement_line(self.agreement, proof)}",
        ]
        if self.accuracy is not None:
            line = _accuracy_line(self.accuracy)
            lines.insert(0 if self.accuracy.differs else len(lines), f"  {line}".rstrip())
        if self.on_arm is not None:
            lines.append(f"  {_arm_line(self.on_arm)}")
        lines += [f"  {_sentence(row)}" for row in self.other_runtimes]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  {line}" for line in _micro_lines(self)]
        tables = (weight_cells(self.weights), code_cells(proof.tensors))
        return "\n".join(
            [*lines, "", *aligned(tables[0], (0, 1, 7)), "", *aligned(tables[1], (0, 1))]
        )

    def remarks(self):
        """Yields the sentences that are more than mere figures."""
        if self.accuracy is not None and self.accuracy.differs:
            yield _accuracy_line(self.accuracy)
        figures, codes, *flat = _proof_lines(self.proof)
        yield from flat if self.proof.holds else (figures, codes, *flat)
        if self.on_arm is not None:
            yield _arm_line(self.on_arm)
        yield from map(_sentence, self.other_runtimes)
        yield from self.notes


_WAYS = {
    ("default", "compiled"): "in LiteRT's interpreter and in its CompiledModel",
    ("default",): "in LiteRT's interpreter only: no process can be started for its CompiledModel",
}


def _proof_lines(proof):
    """Returns the lines about the proof's result and its coverage."""
    kind = "random examples" if proof.generated else "examples"
    verdict = "all equal" if proof.holds else f"NOT equal: {proof.first_failure()}"
    yield (
        f"proof, {proof.examples} {kind}: {proof.rounded:,} roundings of the trained network "
        f"compared with the file's codes, {proof.outside} differ (largest distance "
        f"{proof.deviation:.4f} steps); {verdict}"
    )
    yield (
        f"{proof.compared:,} codes of {len(proof.tensors)} tensors: {proof.mismatches} differ from "
        f"the simulation, run {_WAYS[proof.runtimes]}"
    )
    if proof.flat_share > FLAT_SHARE:
        yield (
            f"{proof.flat_share:.1%} of the channels showed a single code, so little is known "
            "about them: pass `data` with more variety"
        )


def _agreement_line(agreement, proof):
    top1 = "" if agreement.top1 is None else f"top-1 agreement {agreement.top1:.1%}, "
    settled = "" if proof.settled else "; model.settle() brings them together"
    return (
        f"predict and file on {agreement.examples} examples: {top1}largest distance "
        f"{agreement.distance:.3g} of a span of {agreement.span:.3g}{settled}"
    )


def _accuracy_line(accuracy):
    figures = (
        f"accuracy on {accuracy.examples:,} examples: training graph {accuracy.trained:.2%}, "
        f"folded {accuracy.folded:.2%}, file {accuracy.file:.2%}"
    )
    if not accuracy.differs:
        return figures
    return (
        f"CAUTION: the file is not as accurate as the training graph, by more than sampling "
        f"explains ({accuracy.apart} examples are right in only one of the two). {figures}"
    )


def _sentence(row):
    rounding = "" if row.runtime in ("default", "compiled") else " kernels, which round twice"
    return _difference(f"{row.runtime}{rounding}", row, "on the default runtime")


def _arm_line(row):
    return (
        "NOT the same network everywhere: kernels outside XNNPACK round once "
        f"{_difference('on ARM and in browsers', row, 'on x86')} (simulated)"
    )


def _difference(where, row, than):
    agreement = "" if row.agreement is None else f", top-1 agreement {row.agreement:.1%}"
    return (
        f"{where}: {row.differing:.2%} of the output values differ from those {than}, by up to "
        f"{row.largest:.3g}{agreement}"
    )


def _micro_lines(report):
    """Returns what a program for a microcontroller needs, or where to find it."""
    if report.io != "float32" or report.micro.arena_bytes is not None:
        return str(report.micro).splitlines()
    return ["TensorFlow Lite Micro: `print(report.micro)` has what a program registers"]
