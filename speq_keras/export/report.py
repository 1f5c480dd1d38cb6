"""What an export tells: sizes, the proof, where it runs, what became of every layer."""

import dataclasses

from speq_keras.columns import aligned
from speq_keras.export.proof import Proof
from speq_keras.export.runtimes import Partitions


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightRow:
    """The weights of one layer in the file.

    Attributes:
        name: The layer's name.
        type: "int8", "int4" or "int2".
        largest: Largest magnitude of the trained codes.
        multiplier: What they were multiplied by to fill the container (the largest of the layer).
        bytes: Size of the packed codes.
        why: Why not a narrower container, or "".
    """

    name: str
    type: str
    largest: int
    multiplier: int
    bytes: int
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 accuracies on the same examples, 0 to 1."""

    examples: int
    trained: float
    folded: float
    file: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The result of `export_tflite`; prints as a table, `to_dict()` gives plain values.

    Attributes:
        path: Where the file is.
        storage, io: As asked for.
        bytes, gzip_bytes: Size of the file, and of what an app package makes of it.
        proof: A `Proof`.
        partitions: A `Partitions`: what the default runtime hands to its fast delegate.
        accuracy: An `Accuracy`, or None: no labelled data given.
        elsewhere: A `Deviation` for each of the other runtimes that were asked for.
        weights: A `WeightRow` per layer.
        notes: Sentences about what folding had to do.
        seconds: How long the export took, proof included.
    """

    path: str
    storage: str
    io: str
    bytes: int
    gzip_bytes: int
    proof: Proof
    partitions: Partitions
    accuracy: Accuracy | None
    elsewhere: tuple
    weights: tuple
    notes: tuple
    seconds: float

    def to_dict(self):
        """Returns the report as plain dicts, lists, numbers and strings."""
        plain = dataclasses.asdict(self)
        for name in ("elsewhere", "weights", "notes"):
            plain[name] = list(plain[name])
        plain["proof"]["tensors"] = [
            {**row, "shape": list(row["shape"])} for row in plain["proof"]["tensors"]
        ]
        return plain

    def __str__(self):
        proof, parts = self.proof, self.partitions
        others = ", ".join(f"{count} {name}" for name, count in sorted(parts.others.items()))
        lines = [
            f"{self.path}: {self.bytes / 1e3:,.1f} kB, {self.gzip_bytes / 1e3:,.1f} kB gzip, "
            f"storage {self.storage}, inputs and outputs {self.io}",
            f"  {sum(parts.delegated.values())} operations in {parts.partitions} XNNPACK "
            f"partition(s), {parts.num_others} outside{': ' + others if others else ''}",
            f"  {proof.examples} examples, {proof.compared:,} codes of {len(proof.tensors)} "
            f"tensors: {proof.mismatches} differ from the simulation, {proof.outside} are no "
            f"nearest code of the float value (largest distance {proof.deviation:.4f} steps)",
        ]
        if proof.agreement is not None:
            lines.append(f"  top-1 agreement with the float folded network {proof.agreement:.1%}")
        if self.accuracy is not None:
            a = self.accuracy
            lines.append(
                f"  accuracy on {a.examples:,} examples: training graph {a.trained:.2%}, folded "
                f"{a.folded:.2%}, file {a.file:.2%}"
            )
        lines += [f"  {_sentence(row)}" for row in self.elsewhere]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join([*lines, "", *_weight_table(self.weights), "", *_code_table(proof)])


def _sentence(row):
    agreement = "" if row.agreement is None else f", top-1 agreement {row.agreement:.1%}"
    return (
        f"{row.runtime} kernels, which round twice: {row.differing:.2%} of the output values are "
        f"others than on the default runtime, by up to {row.largest:.3g}{agreement}"
    )


def _weight_table(rows):
    cells = [("weights", "type", "codes", "times", "bytes", "why not narrower")]
    cells += [
        (r.name, r.type, f"±{r.largest}", str(r.multiplier), f"{r.bytes:,}", r.why) for r in rows
    ]
    return aligned(cells, left=(0, 1, 5))


def _code_table(proof):
    cells = [("codes", "made by", "grid", "used", "most frequent", "distance")]
    for row in proof.tensors:
        distance = "" if row.deviation is None else f"{row.deviation:.4f}"
        share = f"{row.largest_share:.0%}"
        cells.append((row.name, row.kind, str(row.codes), str(row.used), share, distance))
    return aligned(cells, left=(0, 1))
