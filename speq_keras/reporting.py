"""plan() and report(): what is quantized, why not, and what it costs, as text and web page."""

import dataclasses
import math

from keras import layers

from speq_keras._checks import check_choice
from speq_keras.export.verdict import Verdict, verdict_of
from speq_keras.graph import read_graph
from speq_keras.html import LAYER_WORDS, RANGE_WORDS, report_page, written
from speq_keras.layers import QuantizedLayer
from speq_keras.operations import Kind, kind_of
from speq_keras.ops import einsum_axes
from speq_keras.quantizers import ActivationQuantizer
from speq_keras.recurrent import QuantizedRecurrent, read_unrolled
from speq_keras.text_tables import table

_FLOAT_BITS = 32
_STATUS = {
    Kind.CARRY: "carries codes",
    Kind.SAME_GRID: "keeps its input's grid",
    Kind.CONCAT: "joins codes of one grid",
}
_FOLDS = (Kind.AFFINE, Kind.RELU)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_CONVOLUTIONS = (
    *_TRANSPOSED,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
)


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer of the table.

    Attributes:
        name, type: The layer's name and class.
        status: "quantized", "float: why", or what happens to a layer without weights.
        weight_quantizer: Name of the weight quantizer's class, or "".
        w_bits, a_bits: Width in bits of the weights and of the inputs; None: float, or no weights.
        parameters: Number of parameters.
        bytes: Size of the parameters with the weights packed at `w_bits`, the rest in float32.
        macs: Multiply-accumulates per example; None if a shape or a formula is unknown.
        bitops: macs · w_bits · a_bits, with 32 for float.
        in_file: How it is exported: "integer", "float island", "refused: why", ...; "" if even that
            is unknown.
    """

    name: str
    type: str
    status: str
    weight_quantizer: str
    w_bits: int | None
    a_bits: int | None
    parameters: int
    bytes: float
    macs: int | None
    bitops: int | None
    in_file: str = ""

    @property
    def has_width(self):
        """Whether the widths of this layer are meaningful."""
        return self.macs is not None or bool(self.weight_quantizer)


@dataclasses.dataclass(frozen=True)
class RangeRow:
    """One activation quantizer: its width, whether it is drawn for the teacher, and its grid."""

    name: str
    type: str
    bits: int | None
    drawn_by_teacher: bool
    calibrated: bool
    scale: float | None
    low_code: int | None
    high_code: int | None


@dataclasses.dataclass(frozen=True)
class Report:
    """A printable table; `to_dict()` gives plain values, `to_html()` a web page.

    `file` is the `Verdict`: whether the model can be exported, and the sizes of the file.
    """

    title: str
    rows: tuple
    ranges: tuple = ()
    model: str = ""
    file: Verdict | None = None

    def row(self, name):
        """Returns the row of one layer.

        Raises:
            ValueError: If there is no layer of that name.
        """
        rows = {row.name: row for row in self.rows}
        return rows[check_choice("name", name, rows)]

    @property
    def float_layers(self):
        """{layer name: reason} of the layers that stay float."""
        return {
            row.name: row.status.removeprefix("float: ")
            for row in self.rows
            if row.status.startswith("float: ")
        }

    @property
    def totals(self):
        """Sums over the layers, and their ratios to float32."""
        parameters = sum(row.parameters for row in self.rows)
        size = sum(row.bytes for row in self.rows)
        known = [row for row in self.rows if row.macs]
        macs = sum(row.macs for row in known)
        bitops = sum(row.bitops for row in known)
        return {
            "parameters": parameters,
            "bytes": size,
            "float32_bytes": 4 * parameters,
            "size_ratio": 4 * parameters / size if size else 1.0,
            "macs": macs,
            "bitops": bitops,
            "bitops_ratio": macs * _FLOAT_BITS**2 / bitops if bitops else 1.0,
        }

    def to_dict(self):
        """Returns plain dicts, lists and numbers."""
        return {
            "title": self.title,
            "model": self.model,
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "ranges": [dataclasses.asdict(row) for row in self.ranges],
            "totals": self.totals,
            "file": None if self.file is None else self.file.to_dict(),
        }

    def to_html(self, path=None):
        """Returns the tables as a self-contained web page.

        Bars show widths (of 8 bits; float fills the cell in another colour), and sizes and bit
        operations relative to the largest layer.

        Args:
            path: File to write the page to, ".html", or None. It is written completely or not at
                all; of several processes the first one writes.

        Returns:
            The page as text.

        Raises:
            TypeError, ValueError: If no file can be written to `path`.

        Example:
            >>> import keras, speq_keras
            >>> inputs = keras.Input((4,))
            >>> float_model = keras.Model(inputs, layers.Dense(2, name="last")(inputs))
            >>> page = speq_keras.wrap(float_model, 3, 3).plan().to_html()
            >>> ">last</td>" in page
            True
        """
        return written(path, lambda: report_page(self))

    def __str__(self):
        totals = self.totals
        lines = [*table(self.layer_cells(), left=LAYER_WORDS), ""]
        lines.append(
            f"{totals['parameters']:,} parameters, {totals['bytes'] / 1000:.1f} kB packed "
            f"({totals['size_ratio']:.1f} times smaller than float32), {self._operations()}"
        )
        if self.ranges:
            lines += ["", *table(self.range_cells(), left=RANGE_WORDS)]
        if self.file is not None:
            lines += ["", *self.file.lines()]
        return "\n".join(lines)

    def _operations(self):
        """Returns the amount of computation as text; unknown for unknown sizes."""
        totals = self.totals
        unknown = sum(row.has_width and row.macs is None for row in self.rows)
        if unknown and not totals["macs"]:
            return "MMAC and GBitOP unknown"
        besides = f", plus {unknown} layers for which it is unknown" if unknown else ""
        return (
            f"{totals['macs'] / 1e6:.2f} MMAC, {totals['bitops'] / 1e9:.3f} GBitOP "
            f"({totals['bitops_ratio']:.1f} times fewer than float32){besides}"
        )

    def layer_cells(self):
        """Returns the table of the layers as text, with its header."""
        cells = [("layer", "type", "status", "in the file", *"W A params kB MMAC GBitOP".split())]
        for row in self.rows:
            cells.append(
                (
                    row.name,
                    row.type,
                    row.status,
                    row.in_file,
                    _width(row.w_bits, row.weight_quantizer) if row.has_width else "",
                    _width(row.a_bits) if row.has_width else "",
                    f"{row.parameters:,}" if row.parameters else "",
                    f"{row.bytes / 1000:.2f}" if row.parameters else "",
                    "" if row.macs is None else f"{row.macs / 1e6:.3f}",
                    "" if row.bitops is None else f"{row.bitops / 1e9:.3f}",
                )
            )
        return cells

    def range_cells(self):
        """Returns the table of the activation quantizers as text, with its header."""
        cells = [("quantizer", "type", "drawn", "bits", "scale", "codes")]
        cells += [
            (
                row.name,
                row.type,
                "yes" if row.drawn_by_teacher else "",
                _width(row.bits),
                "" if row.scale is None else f"{row.scale:.5g}",
                "" if row.scale is None else f"{row.low_code} ... {row.high_code}",
            )
            for row in self.ranges
        ]
        return cells


def _width(bits, quantizer=""):
    return f"{'float' if bits is None else bits} {quantizer}".strip()


def report(model, *, title, with_ranges=False):
    """Makes the `Report` of a wrapped model."""
    graph = read_graph(model)
    file = verdict_of(model, read_unrolled(model))
    rows = tuple(
        dataclasses.replace(row, in_file=file.layers.get(row.name, ""))
        for row in layer_rows(model, graph)
    )
    ranges = tuple(map(_range_row, model.activation_quantizers)) if with_ranges else ()
    return Report(title, rows, ranges, model.name, file)


def layer_rows(model, graph):
    """Returns the `LayerRow`s of a wrapped model, without their fate in the file.

    Args:
        model: The model.
        graph: Its graph, from `read_graph`.
    """
    reasons = dict(model.provenance.reasons)
    rows, macs = {}, {}
    for node in graph.nodes:
        if isinstance(node.operation, ActivationQuantizer):
            continue
        macs[node.name] = _add(macs.get(node.name, 0), _macs(node, graph))
        rows[node.name] = _row(node, graph, reasons, macs[node.name])
    return tuple(rows.values())


def _row(node, graph, reasons, macs):
    operation = node.operation
    quantized = isinstance(operation, QuantizedLayer)
    layer = operation.layer if quantized else operation
    quantizers = operation.quantizers if quantized else {}
    a_bits = _input_bits(node, graph)
    w_bits = max((q.bits or _FLOAT_BITS for q in quantizers.values()), default=_FLOAT_BITS)
    reason = None if quantized else reasons.get(node.name)
    status = "quantized" if quantized else _status(kind_of(operation), a_bits)
    if reason is not None:
        status = f"float: {reason}"
        # Only weights that are float because of a width are multiplied with codes (F/2); a layer
        # that was skipped, or has no config, computes in float.
        is_by_width = reason.startswith(("w_bits is None", "boundary_bits is None"))
        a_bits = a_bits if is_by_width else None
    parameters, size = _size(layer, quantizers, operation)
    has_macs = quantized or (macs or 0) > 0
    return LayerRow(
        name=node.name,
        type=type(layer).__name__,
        status=status,
        weight_quantizer=", ".join(sorted({type(q).__name__ for q in quantizers.values()})),
        w_bits=None if w_bits == _FLOAT_BITS else w_bits,
        a_bits=a_bits if has_macs else None,
        parameters=parameters,
        bytes=size,
        macs=macs if has_macs else None,
        bitops=macs * w_bits * (a_bits or _FLOAT_BITS) if has_macs and macs is not None else None,
    )


def _status(kind, a_bits):
    if kind in _STATUS:
        return _STATUS[kind]
    if a_bits is not None:
        return f"{a_bits}-bit inputs"
    return "folds into its input" if kind in _FOLDS else "float inputs"


def _size(layer, quantizers, operation):
    """Returns (parameters, bytes with the weights packed)."""
    if not hasattr(layer, "weights"):
        return 0, 0.0
    bits = {id(operation.variable(name)): q.bits for name, q in quantizers.items()}
    parameters, total_bits = 0, 0
    for variable in layer.weights:
        count = math.prod(variable.shape)
        parameters += count
        total_bits += count * (bits.get(id(variable)) or _FLOAT_BITS)
    return parameters, total_bits / 8


def _input_bits(node, graph):
    """Returns the width of the codes that a node reads, or None if it reads floats."""
    index = node.inputs[0] if node.inputs else None
    while index is not None:
        producer = graph.tensors[index].producer
        if producer is None:
            return None
        if isinstance(producer.operation, ActivationQuantizer):
            return producer.operation.bits
        if isinstance(producer.operation, QuantizedRecurrent):
            return producer.operation.activation_quantizers["states"].bits
        if kind_of(producer.operation) not in (Kind.CARRY, Kind.CONCAT):
            return None
        index = producer.inputs[0]


def _macs(node, graph):
    """Returns the multiply-accumulates of one call per example; None for unknown shapes."""
    operation = node.operation
    layer = operation.layer if isinstance(operation, QuantizedLayer) else operation
    if isinstance(layer, layers.EinsumDense):
        return _einsum_macs(layer, graph.tensors[node.inputs[0]].shape)
    if isinstance(operation, QuantizedRecurrent):
        kernels = [operation.variable(name) for name in operation.quantizers]
        steps = graph.tensors[node.inputs[0]].shape[1]
        return steps * sum(math.prod(kernel.shape) for kernel in kernels)
    if not isinstance(layer, (layers.Dense, *_CONVOLUTIONS)):
        known = isinstance(layer, layers.Embedding) or layer is operation
        return 0 if known else None
    # Every position of the output, or of a transposed convolution's input, uses the kernel.
    index = node.inputs[0] if isinstance(layer, _TRANSPOSED) else node.outputs[0]
    shape = graph.tensors[index].shape
    first = getattr(layer, "data_format", None) == "channels_first"
    positions = shape[2:] if first else shape[1:-1]
    if None in positions:
        return None
    names = ("kernel", "depthwise_kernel", "pointwise_kernel")
    kernels = [kernel for name in names if (kernel := getattr(layer, name, None)) is not None]
    return math.prod(positions) * sum(math.prod(kernel.shape) for kernel in kernels)


def _einsum_macs(layer, reads):
    """Every combination of the equation's indices is one multiplication, per example."""
    inputs, kernel, _ = einsum_axes(layer.equation)
    left, _, right = inputs.partition("...")
    sizes = dict(zip(kernel.replace("...", ""), layer.kernel.shape, strict=True))
    sizes |= dict(zip(left, reads, strict=False))
    sizes |= dict(zip(reversed(right), reversed(reads), strict=False))
    batch = left[:1]
    named = [size for letter, size in sizes.items() if letter != batch]
    others = reads[len(left) : len(reads) - len(right)] if "..." in inputs else ()
    known = [*named, *others[0 if batch else 1 :]]
    return None if None in known else math.prod(known)


def _add(a, b):
    return None if a is None or b is None else a + b


def _range_row(quantizer):
    try:
        grid = quantizer.grid()
    except ValueError:  # a user's tfmot quantizer may have none
        grid = None
    scale, low_code, high_code = grid if grid is not None else (None, None, None)
    return RangeRow(
        name=quantizer.name,
        type=type(quantizer).__name__,
        bits=quantizer.bits,
        drawn_by_teacher=quantizer.has_target_width,
        calibrated=quantizer.is_calibrated,
        scale=scale,
        low_code=low_code,
        high_code=high_code,
    )
