"""Reports a TFLite file's contents: its tensors and how many of their bits are used."""

import collections
import dataclasses
import gzip
import math

import numpy as np

from speq_keras.export.tflite.network import CODES
from speq_keras.export.tflite.packing import unpack_codes
from speq_keras.export.tflite.reading import TYPE_BITS, data_of, read_model, type_names
from speq_keras.text_tables import aligned

# Operations whose output codes are those of their first input, except for zero padding.
CARRYING = (
    "AVERAGE_POOL_2D",
    "MAX_POOL_2D",
    "PAD",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "RESIZE_NEAREST_NEIGHBOR",
    "SQUEEZE",
    "STRIDED_SLICE",
    "TRANSPOSE",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRow:
    """One tensor.

    Attributes:
        name, type: Name, and type in the file: "int8", "int4", "int32", "float32", ...
        shape: Sizes; None if the file leaves them open.
        is_constant: Whether the file contains its values.
        bits: Width needed by the codes in use. For constants: by the number of different codes. For
            activations: by the range that the preceding operation can reach. None: not quantized.
        codes: Number of different codes in a constant; None for activations.
        scale: Distance between neighbouring values; (smallest, largest) if there is one per
            channel; None: not quantized.
        zero_point: The code that means zero, or None.
        bytes: Size of a constant's values in the file; 0 for activations.
    """

    name: str
    type: str
    shape: tuple
    is_constant: bool
    bits: int | None
    codes: int | None
    scale: float | tuple | None
    zero_point: int | None
    bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of `inspect`. It prints as a table; `to_dict()` gives the same as plain values.

    Attributes:
        bytes, gzip_bytes: Size of the file, and its size with gzip.
        constant_bytes: {type: bytes} of constants; data shared by tensors counts once.
        operations: {operator: how many}.
        signatures: {key: {"inputs": {name: tensor}, "outputs": {name: tensor}}}.
        metadata: {name: text, or the number of bytes if it is not text}.
        description: The file's description of its writer.
        tensors: One `TensorRow` each.
    """

    bytes: int
    gzip_bytes: int
    constant_bytes: dict
    operations: dict
    signatures: dict
    metadata: dict
    description: str
    tensors: tuple

    def to_dict(self):
        """Returns plain dicts, lists and numbers."""
        return dataclasses.asdict(self)

    def __str__(self):
        head = ("tensor", "type", "shape", "bits", "codes", "scale", "zero point", "bytes")
        cells = [head, *(_cells(row) for row in self.tensors)]
        lines = aligned(cells, left=range(3))
        rest = self.bytes - sum(self.constant_bytes.values())
        sizes = [f"{name} {size:,}" for name, size in self.constant_bytes.items()]
        counts = [f"{name} {count}" for name, count in self.operations.items()]
        lines += [
            "",
            f"file        {self.bytes:,} bytes, {self.gzip_bytes:,} with gzip",
            f"constants   {', '.join([*sizes, f'everything else {rest:,}'])} bytes",
            f"operations  {', '.join(counts)}",
        ]
        for key, ends in self.signatures.items():
            names = [", ".join(ends[end]) for end in ("inputs", "outputs")]
            lines.append(f"signature   {key}: {names[0]} -> {names[1]}")
        lines += [f"metadata    {name}: {text}" for name, text in self.metadata.items()]
        return "\n".join(lines)


def inspect(path_or_bytes):
    """Lists the tensors of a TFLite file with the bits in use, and totals.

    Nothing is executed, and files from other writers can be inspected too.

    Args:
        path_or_bytes: Path of the file, or its bytes.

    Returns:
        An `Inspection`.

    Raises:
        TypeError, ValueError: As in `reading.read_model`: not a file, not TFLite, or damaged.
    """
    content, model = read_model(path_or_bytes)
    from ai_edge_litert import schema_py_generated as schema

    types = type_names(schema)
    rows, operations, sizes = [], collections.Counter(), {}
    for graph in model.subgraphs:
        ranges = {}
        for operator in graph.operators or []:
            name = operator_name(model.operatorCodes[operator.opcodeIndex], schema)
            operations[name] += 1
            _follow_range(ranges, name, operator, graph, types, schema)
        for number, tensor in enumerate(graph.tensors or []):
            data = data_of(model, tensor, content)
            rows.append(_row(tensor, types[tensor.type], data, ranges.get(number)))
            if data is not None:
                sizes[tensor.buffer] = (types[tensor.type], len(data))
    constant_bytes = collections.Counter()
    for type_name, size in sizes.values():
        constant_bytes[type_name] += size
    return Inspection(
        bytes=len(content),
        gzip_bytes=len(gzip.compress(content, mtime=0)),
        constant_bytes=dict(sorted(constant_bytes.items())),
        operations=dict(sorted(operations.items())),
        signatures=_signatures(model),
        metadata=_metadata(model),
        description=(model.description or b"").decode(errors="replace"),
        tensors=tuple(rows),
    )


def _row(tensor, type_name, data, code_range):
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = () if shape is None else tuple(None if size < 0 else int(size) for size in shape)
    scale, zero_point = _quantization(tensor)
    codes, bits = None, None
    if type_name in CODES and scale is not None:
        if data is None:
            low, high = code_range or CODES[type_name]
            bits = _width(max(1, high - low + 1))
        else:
            codes = len(np.unique(_values(data, type_name, math.prod(shape))))
            bits = _width(codes)
    return TensorRow(
        name=tensor.name,
        type=type_name,
        shape=shape,
        is_constant=data is not None,
        bits=bits,
        codes=codes,
        scale=scale,
        zero_point=zero_point,
        bytes=0 if data is None else len(data),
    )


def _width(codes):
    """Returns the number of bits that `codes` different codes need."""
    return max(1, (codes - 1).bit_length())


def _values(data, type_name, count):
    bits = TYPE_BITS[type_name]
    return unpack_codes(data, bits, count) if bits < 8 else np.asarray(data)


def _quantization(tensor):
    """Returns `(scale, zero point)` as `TensorRow` shows them."""
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return None, None
    scales = [float(scale) for scale in (min(quantization.scale), max(quantization.scale))]
    zero_point = 0 if quantization.zeroPoint is None else int(quantization.zeroPoint[0])
    return (scales[0] if len(quantization.scale) == 1 else tuple(scales)), zero_point


def operator_name(code, schema):
    """Returns the schema's name of an `OperatorCodeT`, or the name of a custom operator."""
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    for name, value in vars(schema.BuiltinOperator).items():
        if value == number and name != "CUSTOM":
            return name
    return (code.customCode or b"CUSTOM").decode(errors="replace")


def _follow_range(ranges, name, operator, graph, types, schema):
    """Records the smallest and largest code that an operation's outputs can have."""
    inputs = [] if operator.inputs is None else [int(number) for number in operator.inputs]
    for number in [] if operator.outputs is None else operator.outputs:
        tensor = graph.tensors[number]
        type_name = types[tensor.type]
        scale, zero_point = _quantization(tensor)
        if type_name not in CODES or not isinstance(scale, float):
            continue
        low, high = CODES[type_name]
        sources = {"CONCATENATION": inputs}.get(name, inputs[:1] if name in CARRYING else [])
        if sources and all(types[graph.tensors[x].type] == type_name for x in sources):
            ends = [ranges.get(x, CODES[type_name]) for x in sources]
            ends += [(zero_point, zero_point)] if name == "PAD" else []
            low, high = min(x[0] for x in ends), max(x[1] for x in ends)
        fused = getattr(operator.builtinOptions, "fusedActivationFunction", 0)
        bounds = _bounds(fused, scale, zero_point, schema.ActivationFunctionType)
        ranges[int(number)] = max(low, bounds[0]), min(high, bounds[1])


def _bounds(fused, scale, zero_point, names):
    """Returns the codes at which a fused activation clips, rounded as in the kernels."""
    low, high = {
        names.RELU: (0, math.inf),
        names.RELU6: (0, 6),
        names.RELU_N1_TO_1: (-1, 1),
    }.get(fused, (-math.inf, math.inf))
    if not 1e-20 < scale < 1e20:  # damaged, or meant for no kernel
        return -math.inf, math.inf
    return tuple(
        x if math.isinf(x) else int(np.rint(np.float32(x) / np.float32(scale))) + zero_point
        for x in (low, high)
    )


def _signatures(model):
    signatures = {}
    for signature in model.signatureDefs or []:
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        signatures[_text(signature.signatureKey)] = {
            end: {_text(x.name): tensors[x.tensorIndex].name for x in getattr(signature, end) or []}
            for end in ("inputs", "outputs")
        }
    return signatures


def _metadata(model):
    found = {}
    for entry in model.metadata or []:
        data = model.buffers[entry.buffer].data
        data = b"" if data is None else bytes(data)
        text = data.rstrip(b"\0").decode(errors="replace")
        found[_text(entry.name)] = text if text.isprintable() else f"{len(data)} bytes"
    return found


def _text(name):
    return (name or b"").decode(errors="replace")


def _cells(row):
    if isinstance(row.scale, tuple):
        scale = f"{row.scale[0]:.3g} ... {row.scale[1]:.3g}"
    else:
        scale = "" if row.scale is None else f"{row.scale:.6g}"
    return (
        row.name,
        row.type,
        " x ".join("?" if size is None else str(size) for size in row.shape),
        *("" if x is None else str(x) for x in (row.bits, row.codes)),
        scale,
        "" if row.zero_point is None else str(row.zero_point),
        f"{row.bytes:,}" if row.is_constant else "",
    )
