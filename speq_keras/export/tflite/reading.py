"""Reads TFLite files that may be damaged, in pure Python: kernels only see checked data."""

import math
import os
import pathlib
import struct

import numpy as np

from speq_keras._checks import describe

IDENTIFIER = b"TFL3"
# Bits per value of the types that have a fixed size.
TYPE_BITS = {
    **dict.fromkeys(("int2",), 2),
    **dict.fromkeys(("int4", "uint4"), 4),
    **dict.fromkeys(("bool", "int8", "uint8"), 8),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 16),
    **dict.fromkeys(("float32", "int32", "uint32"), 32),
    **dict.fromkeys(("complex64", "float64", "int64", "uint64"), 64),
    "complex128": 128,
}
# What the accessors raise for a wrong offset, length or number in a file.
_DAMAGE = (
    AttributeError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    UnicodeDecodeError,
    ValueError,
    struct.error,
)


def read_model(path_or_bytes):
    """Returns `(content, model)`: the bytes of a TFLite file, and the `ModelT` in them.

    The whole file is unpacked, and all references are followed: every offset, and every index of a
    tensor, buffer or operator code.

    Args:
        path_or_bytes: Path of the file, or its bytes.

    Raises:
        TypeError: If it is neither.
        ValueError: If there is no such file, it is not a TFLite file, or it is damaged.
    """
    content, received = _content_of(path_or_bytes)
    rule = f"A TFLite file is expected, whole and undamaged. {received}"
    if not content:
        raise ValueError(f"{rule} It is empty.")
    if content[4:8] != IDENTIFIER:
        raise ValueError(f"{rule} It does not carry the identifier TFL3 in bytes 4 to 7.")
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromPackedBuf(_Strict(content))
        _follow_numbers(model, content, type_names(schema))
    except _DAMAGE as error:
        raise ValueError(f"{rule} It is cut off or damaged.") from error
    return content, model


def type_names(schema):
    """Returns {value in the schema's TensorType: name in lower case}."""
    types = vars(schema.TensorType).items()
    return {number: name.lower() for name, number in types if not name.startswith("_")}


def data_of(model, tensor, content):
    """Returns the bytes of a tensor as a uint8 array, or None if it is not a constant."""
    buffer = model.buffers[tensor.buffer]
    if buffer.data is not None and len(buffer.data):
        return buffer.data
    if buffer.offset > 1:  # files above 2 GB hold their constants after the flatbuffer
        data = content[buffer.offset : buffer.offset + buffer.size]
        if len(data) != buffer.size:
            raise ValueError("a constant lies beyond the end of the file")
        return np.frombuffer(data, np.uint8)
    return None


class _Strict(bytes):
    """Bytes that refuse a slice beyond their end, which Python would silently shorten."""

    def __getitem__(self, key):
        if isinstance(key, slice) and key.stop is not None and key.stop > len(self):
            raise IndexError("a slice ends beyond the end of the file")
        return super().__getitem__(key)


def _content_of(path_or_bytes):
    if isinstance(path_or_bytes, (bytes, bytearray, memoryview)):
        content = bytes(path_or_bytes)
        return content, f"Received: {len(content)} bytes."
    if not isinstance(path_or_bytes, (str, os.PathLike)):
        raise TypeError(
            "The path of a TFLite file, or its bytes, is expected. " + describe(path=path_or_bytes)
        )
    received = describe(path=os.fspath(path_or_bytes))
    path = pathlib.Path(path_or_bytes)
    if path.is_dir():
        raise ValueError(f"A TFLite file is expected. {received} This is a folder.")
    try:
        return path.read_bytes(), received
    except FileNotFoundError:
        raise ValueError(f"A TFLite file is expected. {received} There is no such file.") from None
    except OSError as error:
        raise ValueError(f"A TFLite file is expected. {received} {error.strerror}.") from error


def _follow_numbers(model, content, names):
    """Raises one of `_DAMAGE` if a number in the file refers to nothing.

    Numbers that are unsigned by their type, and used here, need no extra check.
    """
    if not model.subgraphs:
        raise ValueError("no graph")
    for graph in model.subgraphs:
        tensors = graph.tensors or []
        for tensor in tensors:
            _check_tensor(tensor, model, content, names)
        ends = [(graph.inputs, 0), (graph.outputs, 0)]
        for operator in graph.operators or []:
            _in_range([operator.opcodeIndex], 0, len(model.operatorCodes))
            ends += [(operator.inputs, -1), (operator.outputs, 0)]
        for numbers, lowest in ends:
            if numbers is not None:
                _in_range(numbers, lowest, len(tensors))
    for entry in model.metadata or []:
        _in_range([entry.buffer], 0, len(model.buffers))
    for signature in model.signatureDefs or []:
        count = len(model.subgraphs[signature.subgraphIndex].tensors or [])
        entries = [*(signature.inputs or []), *(signature.outputs or [])]
        _in_range([entry.tensorIndex for entry in entries], 0, count)


def _in_range(numbers, lowest, end):
    if not all(lowest <= number < end for number in numbers):
        raise IndexError("a number refers to nothing")


def _check_tensor(tensor, model, content, names):
    tensor.name = (tensor.name or b"").decode()
    scales, zero_points = (
        () if values is None else values
        for values in (getattr(tensor.quantization, name, None) for name in ("scale", "zeroPoint"))
    )
    if len(scales) != len(zero_points):  # the runtime refuses it too
        raise ValueError("not as many zero points as scales")
    bits = TYPE_BITS.get(names[tensor.type])
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    if min(shape, default=0) < -1:
        raise ValueError("a negative size")
    data = data_of(model, tensor, content)
    if data is None or bits is None or tensor.sparsity is not None:
        return
    if len(data) != -(-math.prod(shape) * bits // 8):
        raise ValueError("a constant does not fill its shape")
