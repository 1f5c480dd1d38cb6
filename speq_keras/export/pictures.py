"""An export in pictures: a web page, and numbers for nodes in Google's Model Explorer."""

import math
import pathlib

from speq_keras.html import facts, heading, page, paragraph, table
from speq_keras.ops import MAX_BITS

# Replaces values that JSON cannot represent; two codes of a byte are never further apart.
_FURTHEST = 255.0
_LOW, _HIGH, _WRONG = (0xF4, 0xF8, 0xFD), (0x8F, 0xBC, 0xE6), "#f0a09a"  # under dark text

# {file name suffix: meaning of its numbers}.
NODE_DATA = {"": "deviation, steps", "_codes": "codes in use", "_bits": "bits"}


def export_page(report):
    """Returns the web page of an `ExportReport`."""
    proof = report.proof
    parts = [
        facts(_facts(report)),
        *(paragraph(line) for line in report.remarks()),
        heading("Tensors"),
        paragraph(
            "Bars show the bits out of 8, the codes in use out of all codes of the grid, and the "
            "largest deviation from the value that the trained network rounds, in steps, relative "
            "to the largest that a correct code can have."
        ),
        table(code_cells(proof.tensors), _code_bars(report), words=(0, 1)),
    ]
    if report.weights:
        cells = weight_cells(report.weights)
        parts += [heading("Weights"), table(cells, _weight_bars(report), words=(0, 1, 7))]
    verdict = "" if proof.holds else ": NOT the trained network"
    return page(f"Export of {pathlib.Path(report.path).name}{verdict}", parts)


def _facts(report):
    proof, partitions = report.proof, report.partitions
    inside = sum(partitions.delegated.values())
    boxes = [
        (
            "file",
            f"{report.bytes / 1000:,.1f} kB",
            f"storage {report.storage}, {report.io} in and out",
        ),
        (
            "codes as the trained network rounds them",
            f"{proof.rounded - proof.outside:,} of {proof.rounded:,}",
            f"largest deviation {proof.deviation:.4f} steps",
        ),
        (
            "codes as simulated",
            f"{proof.compared - proof.mismatches:,} of {proof.compared:,}",
            f"{proof.examples} {'random ' if proof.generated else ''}examples",
        ),
        ("operations in XNNPACK", f"{inside}", f"and {partitions.num_others} outside"),
    ]
    if report.agreement.top1 is not None:
        text = f"on {report.agreement.examples} examples"
        boxes.append(("same class as predict", f"{report.agreement.top1:.1%}", text))
    if report.accuracy is not None:
        accuracy = report.accuracy
        text = f"training graph {accuracy.trained:.2%}, {accuracy.examples:,} examples"
        boxes.append(("accuracy of the file", f"{accuracy.file:.2%}", text))
    return boxes


def code_cells(rows):
    """Returns the table of the proof's tensors as text, with its header."""
    header = "codes,made by,bits,grid,used,most frequent,flat channels,deviation".split(",")
    return [header] + [
        [
            row.name,
            row.kind,
            str(row.bits),
            str(row.codes),
            str(row.used),
            f"{row.largest_share:.0%}",
            f"{row.flat_channels} of {row.channels}" if row.channels else "",
            "" if row.deviation is None else f"{row.deviation:.4f}",
        ]
        for row in rows
    ]


def weight_cells(rows):
    """Returns the table of the weights as text, with its header; the last column is text."""
    header = "weights,type,bits,used,largest,times,bytes,why not narrower".split(",")
    return [header] + [
        [
            row.name,
            row.type,
            str(row.bits),
            str(row.used),
            f"±{row.largest}",
            str(row.multiplier),
            f"{row.bytes:,}",
            row.why,
        ]
        for row in rows
    ]


def _code_bars(report):
    """Returns {(row, column): share} for bits, codes in use, most frequent code, and deviation."""
    header = code_cells(report.proof.tensors)[0]
    bars = {}
    for number, row in enumerate(report.proof.tensors):
        shares = {
            "bits": row.bits / MAX_BITS,
            "used": _share(row.used, row.codes),
            "most frequent": row.largest_share,
            "flat channels": _share(row.flat_channels, row.channels) if row.channels else None,
            "deviation": None if row.deviation is None else _share(row.deviation, row.allowed),
        }
        for name, share in shares.items():
            if share is not None:
                bars[number, header.index(name)] = share
    return bars


def _weight_bars(report):
    header = weight_cells(report.weights)[0]
    most = max(row.bytes for row in report.weights)
    bars = {}
    for number, row in enumerate(report.weights):
        bars[number, header.index("bits")] = row.bits / MAX_BITS
        bars[number, header.index("used")] = _share(row.used, 2**row.bits)
        bars[number, header.index("bytes")] = _share(row.bytes, most)
    return bars


def _share(part, whole):
    """Returns a ratio, 0 to 1; 1 if it is not a number."""
    return min(part / whole, 1.0) if whole and math.isfinite(part) else float(bool(part))


# ---- Model Explorer --------------------------------------------------------------------------


def node_data(report):
    """Returns {suffix of `NODE_DATA`: a graph's node data in Model Explorer's JSON format}.

    A node is identified by the name of its output tensor. Its colour is darker the closer the
    number is to its maximum (half a step, all codes, 8 bits), and red if the proof failed.
    """
    proof = report.proof
    deviations = {
        row.name: _node(
            row.deviation if math.isfinite(row.deviation) else _FURTHEST,
            _share(row.deviation, row.allowed),
            row.holds,
        )
        for row in proof.tensors
        if row.deviation is not None
    }
    rows = [(row.name, row.bits, row.used, row.codes) for row in proof.tensors if row.codes]
    rows += [(row.tensor, row.bits, row.used, 2**row.bits) for row in report.weights]
    results = {
        "": deviations,
        "_codes": {name: _node(used, _share(used, codes)) for name, _, used, codes in rows},
        "_bits": {name: _node(bits, bits / MAX_BITS) for name, bits, _, _ in rows},
    }
    return {
        suffix: {"name": NODE_DATA[suffix], "results": found} for suffix, found in results.items()
    }


def _node(value, share, holds=True):
    colour = [round(low + share * (high - low)) for low, high in zip(_LOW, _HIGH, strict=True)]
    return {"value": value, "bgColor": f"#{bytes(colour).hex()}" if holds else _WRONG}
