"""A TFLite file read with the schema alone, run, and computed again in exact arithmetic.

Nothing here imports the export: `TFLiteFile` unpacks the file's bytes, makes every tensor an output
and runs it in LiteRT; `distances` takes what each operation read in that run and computes from the
definition of the operation, in whole numbers and float64, what it should have written.

Whole numbers stay below 2^53 in all sums, so float64 holds them exactly; products with scales,
which are float32, are off by less than 1e-12 steps.
"""

import dataclasses
import functools
import math

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

_TYPES = {value: name for name, value in vars(schema.TensorType).items() if name[0].isupper()}
_OPERATORS = {v: name for name, v in vars(schema.BuiltinOperator).items() if name[0].isupper()}
_ACTIVATIONS = {0: (None, None), 1: (0.0, None), 2: (-1.0, 1.0), 3: (0.0, 6.0)}
SAME = schema.Padding.SAME

# Rounding a float32 product of up to 255 steps: three roundings of 2^-24 each.
FLOAT32 = 1e-4
# XNNPACK adds in fixed point, with factors of 20 bits; two of them.
FIXED_POINT = 2 * 255 * 2.0**-20
# It interpolates with weights that are multiples of 1/2048, off by up to half of one, in 2 axes.
INTERPOLATED = 255 * 2 * 2.0**-12


@dataclasses.dataclass
class Entry:
    """A tensor of the file. `scale` is float64, one number or one per channel of `axis`."""

    name: str
    type: str
    shape: tuple
    scale: np.ndarray | None
    zero_point: int
    axis: int
    data: np.ndarray | None

    def real(self, stored):
        """Returns what stored values mean, in float64."""
        if self.scale is None:
            return np.asarray(stored, "float64")
        return (np.asarray(stored, "float64") - self.zero_point) * self.scale[0]


@dataclasses.dataclass
class Operation:
    """An operation of the file: its operator's name and its options in the schema's class."""

    name: str
    inputs: list
    outputs: list
    options: object


class TFLiteFile:
    """The operations and tensors of a TFLite file."""

    def __init__(self, content):
        self.content = bytes(content)
        model = schema.ModelT.InitFromPackedBuf(self.content, 0)
        (graph,) = model.subgraphs
        self.tensors = [_entry(tensor, model.buffers) for tensor in graph.tensors]
        codes = [_OPERATORS[code.builtinCode] for code in model.operatorCodes]
        self.operations = [
            Operation(codes[op.opcodeIndex], list(op.inputs), list(op.outputs), op.builtinOptions)
            for op in graph.operators
        ]
        self.inputs, self.outputs = list(graph.inputs), list(graph.outputs)

    @functools.cached_property
    def numbers(self):
        return {tensor.name: number for number, tensor in enumerate(self.tensors)}

    def makers(self):
        """Returns {tensor number: operation that writes it}."""
        return {number: op for op in self.operations for number in op.outputs}

    def run(self, *arrays):
        """Runs the file as it is; returns a list of arrays."""
        return _run(self.content, arrays)

    def run_all(self, *arrays):
        """Returns {tensor number: array} for inputs and for everything that an operation writes.

        The outputs have to be those of the file as it is, where tensors in between stay inside the
        delegate.
        """
        model = schema.ModelT.InitFromPackedBuf(self.content, 0)
        made = [number for op in self.operations for number in op.outputs]
        model.subgraphs[0].outputs = np.array(made, np.int32)
        builder = flatbuffers.Builder(2**20)
        builder.Finish(model.Pack(builder), b"TFL3")
        values = dict(zip(made, _run(bytes(builder.Output()), arrays), strict=True))
        values.update(zip(self.inputs, arrays, strict=True))
        for number, plain in zip(self.outputs, self.run(*arrays), strict=True):
            np.testing.assert_array_equal(plain, values[number])
        return values


def distances(file, values):
    """Returns {tensor name: (largest distance, allowed distance)}, in steps of the output.

    Args:
        file: A `TFLiteFile`.
        values: What `run_all` returned.
    """
    found = {}
    for op in file.operations:
        (output,) = op.outputs
        tensors = [None if number < 0 else file.tensors[number] for number in op.inputs]
        arrays = [
            None if t is None else values[n] if t.data is None else t.data
            for n, t in zip(op.inputs, tensors, strict=True)
        ]
        exact, allowed = _COMPUTE[op.name](op, arrays, tensors, file.tensors[output])
        made = values[output].astype("float64")
        assert made.shape == exact.shape, (op.name, made.shape, exact.shape)
        assert made.shape[1:] == file.tensors[output].shape[1:], f"{op.name}: shape in the file"
        distance = float(np.max(np.abs(made - exact), initial=0.0))
        found[file.tensors[output].name] = distance, allowed
    return found


def _entry(tensor, buffers):
    kind = _TYPES[tensor.type].lower()
    quantization = tensor.quantization
    scale, zero_point, axis = None, 0, 0
    if quantization is not None and quantization.scale is not None and len(quantization.scale):
        scale = np.asarray(quantization.scale, "float64")
        (zero_point,) = set(np.asarray(quantization.zeroPoint).tolist())
        axis = quantization.quantizedDimension
    data = buffers[tensor.buffer].data
    if data is not None and len(data):
        data = _unpacked(np.asarray(data, np.uint8), kind, tuple(tensor.shape))
    else:
        data = None
    return Entry(tensor.name.decode(), kind, tuple(tensor.shape), scale, zero_point, axis, data)


def _unpacked(data, kind, shape):
    if kind in ("int4", "int2"):  # the first value lies in the lowest bits
        bits = int(kind[3:])
        codes = (data[:, None] >> np.arange(0, 8, bits)) & (2**bits - 1)
        codes = np.where(codes >= 2 ** (bits - 1), codes - 2.0**bits, codes).astype(np.int8)
        return codes.reshape(-1)[: int(np.prod(shape))].reshape(shape)
    return data.view(np.dtype(kind)).reshape(shape)


def _run(content, arrays):
    interpreter = Interpreter(model_content=content, num_threads=1)
    details = interpreter.get_input_details()
    for detail, array in zip(details, arrays, strict=True):
        if tuple(detail["shape"]) != array.shape:
            interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


# ---- one function per operation: exact stored values, and what rounding may do -----------------


def _stored(real, output, activation=0, allowed=FLOAT32, ends=(-128, 127)):
    """Returns clipped, not rounded, stored values for real ones, and the allowed distance."""
    low, high = _ACTIVATIONS[activation]
    clipped = np.clip(real, low, high) if low is not None or high is not None else real
    stored = clipped / output.scale[0] + output.zero_point
    ends = (0, 255) if output.type == "uint8" else ends
    return np.clip(stored, *ends), 0.5 + allowed


def _quantize(op, arrays, tensors, output):
    return _stored(tensors[0].real(arrays[0]), output)


def _dequantize(op, arrays, tensors, output):
    real = tensors[0].real(arrays[0])
    return real, float(np.max(np.abs(real), initial=0.0)) * 2.0**-23


def rounds_twice(op, weights):
    """Whether the sum is rounded to a fraction first, by up to the distance between two sums.

    Weights below 8 bits make convolutions run outside of XNNPACK, and dense layers whose inputs do
    not fill bytes.
    """
    per_byte = {"int4": 2, "int2": 4}.get(weights.type, 1)
    return per_byte > 1 and (op.name != "FULLY_CONNECTED" or weights.shape[1] % per_byte != 0)


def double_rounding_steps(file):
    """Returns by how many steps of an output rounding twice may move a result of a `TFLiteFile`."""
    largest = 0.0
    for op in file.operations:
        if op.name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            continue
        x, weights = (file.tensors[number] for number in op.inputs[:2])
        if rounds_twice(op, weights):
            scale = file.tensors[op.outputs[0]].scale[0]
            largest = max(largest, float(np.max(x.scale[0] * weights.scale) / scale))
    return largest


def bias_steps(file):
    """Returns by how many steps of an output a rounded bias of a `TFLiteFile` may be off."""
    largest = 0.0
    for op in file.operations:
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            x, weights = (file.tensors[number] for number in op.inputs[:2])
            scale = file.tensors[op.outputs[0]].scale
            if scale is not None and x.scale is not None:
                largest = max(largest, float(np.max(x.scale[0] * weights.scale) / scale[0]) / 2)
    return largest


def _weighted(sums, op, tensors, output, bias):
    """Adds the bias to whole sums, and scales both."""
    x, weights = tensors[:2] if op.name != "TRANSPOSE_CONV" else (tensors[2], tensors[1])
    sums = sums + (0 if bias is None else bias.astype("float64"))
    assert np.max(np.abs(sums), initial=0) < 2**31, "sums must fit into 32 bits"
    factor = x.scale[0] * weights.scale
    steps = float(np.max(factor)) / output.scale[0]
    allowed = FLOAT32 + (steps if rounds_twice(op, weights) else 0.0)
    return _stored(sums * factor, output, op.options.fusedActivationFunction, allowed)


def same_padding(size, kernel, stride, dilation=1):
    """Returns (before, after), as TensorFlow's documentation of "SAME" says."""
    reach = (kernel - 1) * dilation + 1
    total = max(reach - stride, 0) if size % stride == 0 else max(reach - size % stride, 0)
    return total // 2, total - total // 2


def _window(op, x, kernel, value=0.0):
    """Returns `x`, padded where the operation pads, and the strides."""
    options = op.options
    strides = options.strideH, options.strideW
    dilations = getattr(options, "dilationHFactor", 1), getattr(options, "dilationWFactor", 1)
    pads = [(0, 0)] * 4
    if options.padding == SAME:
        rows = zip(x.shape[1:3], kernel, strides, dilations, strict=True)
        pads[1:3] = [same_padding(*row) for row in rows]
    return np.pad(x, pads, constant_values=value), strides, dilations


def _taps(x, kernel, strides, dilations):
    """Yields (row, column, what this tap of the kernel reads)."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    counts = [(n - r) // s + 1 for n, r, s in zip(x.shape[1:3], reach, strides, strict=True)]
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            top, left = row * dilations[0], column * dilations[1]
            yield (
                row,
                column,
                x[
                    :,
                    top : top + (counts[0] - 1) * strides[0] + 1 : strides[0],
                    left : left + (counts[1] - 1) * strides[1] + 1 : strides[1],
                ],
            )


def _conv_2d(op, arrays, tensors, output):
    x = arrays[0].astype("float64") - tensors[0].zero_point
    weights = arrays[1].astype("float64")  # OHWI
    count, *kernel, depth = weights.shape
    x, strides, dilations = _window(op, x, kernel)
    groups = x.shape[-1] // depth
    sums = 0.0
    for row, column, part in _taps(x, kernel, strides, dilations):
        part = part.reshape(*part.shape[:-1], groups, depth)
        taps = weights[:, row, column].reshape(groups, count // groups, depth)
        sums = sums + np.einsum("nhwgd,gcd->nhwgc", part, taps, optimize=True)
    sums = sums.reshape(*sums.shape[:3], count)
    return _weighted(sums, op, tensors, output, arrays[2])


def _depthwise_conv_2d(op, arrays, tensors, output):
    x = arrays[0].astype("float64") - tensors[0].zero_point
    weights = arrays[1].astype("float64")[0]  # HWC, the multiplier inside C
    kernel = weights.shape[:2]
    x, strides, dilations = _window(op, x, kernel)
    x = np.repeat(x, weights.shape[-1] // x.shape[-1], axis=-1)
    sums = sum(
        part * weights[row, column] for row, column, part in _taps(x, kernel, strides, dilations)
    )
    return _weighted(sums, op, tensors, output, arrays[2])


def _fully_connected(op, arrays, tensors, output):
    x = arrays[0].astype("float64") - tensors[0].zero_point
    sums = x.reshape(-1, x.shape[-1]) @ arrays[1].astype("float64").T
    if op.options.keepNumDims:
        sums = sums.reshape(*x.shape[:-1], -1)
    return _weighted(sums, op, tensors, output, arrays[2] if len(arrays) > 2 else None)


def _batch_matmul(op, arrays, tensors, output):
    assert (bool(op.options.adjX), bool(op.options.adjY)) == (False, False)
    x, y = (a.astype("float64") - t.zero_point for a, t in zip(arrays, tensors, strict=True))
    factor = tensors[0].scale[0] * tensors[1].scale[0]
    # The builtin kernel rounds to a fraction first, by up to the distance between two sums.
    first = factor / output.scale[0] if tensors[1].zero_point else 0.0
    return _stored(x @ y * factor, output, allowed=FLOAT32 + first)


def _transpose_conv(op, arrays, tensors, output):
    x = arrays[2].astype("float64") - tensors[2].zero_point
    weights = arrays[1].astype("float64")  # OHWI
    shape = tuple(int(n) for n in arrays[0])
    kernel, strides = weights.shape[1:3], (op.options.strideH, op.options.strideW)
    pads = [(0, 0), (0, 0)]
    if op.options.padding == SAME:
        rows = zip(shape[1:3], kernel, strides, strict=True)
        pads = [same_padding(*row) for row in rows]
    full = np.zeros(
        (
            len(x),
            *(n + sum(p) + k for n, p, k in zip(shape[1:3], pads, kernel, strict=True)),
            shape[3],
        )
    )
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            top, left = row * strides[0], column * strides[1]
            part = np.einsum("ni,ohwi->nhwo", x[:, row, column], weights)
            full[:, top : top + kernel[0], left : left + kernel[1]] += part
    (top, _), (left, _) = pads
    sums = full[:, top : top + shape[1], left : left + shape[2]]
    return _weighted(sums, op, tensors, output, arrays[3] if len(arrays) > 3 else None)


def _pair(function, allowed):
    def compute(op, arrays, tensors, output):
        activation = op.options.fusedActivationFunction
        if output.scale is None:  # plain numbers: the index of a lookup, or a float island
            return function(*(a.astype("float64") for a in arrays)), 0.0
        real = function(*(t.real(a) for t, a in zip(tensors, arrays, strict=True)))
        return _stored(real, output, activation, allowed)

    return compute


def _mean(op, arrays, tensors, output):
    axes = tuple(int(axis) for axis in np.atleast_1d(arrays[1]))
    real = np.mean(tensors[0].real(arrays[0]), axis=axes, keepdims=bool(op.options.keepDims))
    return _stored(real, output)


def _average_pool_2d(op, arrays, tensors, output):
    kernel = op.options.filterHeight, op.options.filterWidth
    real = tensors[0].real(arrays[0])
    ones = np.ones_like(real)
    (x, strides, _), (count, _, _) = _window(op, real, kernel), _window(op, ones, kernel)
    sums, counts = (
        sum(part for _, _, part in _taps(array, kernel, strides, (1, 1))) for array in (x, count)
    )
    return _stored(sums / counts, output, op.options.fusedActivationFunction)


def _max_pool_2d(op, arrays, tensors, output):
    kernel = op.options.filterHeight, op.options.filterWidth
    x, strides, _ = _window(op, arrays[0].astype("float64"), kernel, value=-np.inf)
    parts = [part for _, _, part in _taps(x, kernel, strides, (1, 1))]
    return np.max(parts, axis=0), 0.0


def _sampled(position, size):
    low = np.floor(position)
    return (
        np.clip(low, 0, size - 1).astype(int),
        np.clip(low + 1, 0, size - 1).astype(int),
        (position - low),
    )


def _resize_bilinear(op, arrays, tensors, output):
    x = arrays[0].astype("float64")
    for axis, size in zip((1, 2), arrays[1], strict=True):
        shift = 0.5 if op.options.halfPixelCenters else 0.0
        old = x.shape[axis]
        position = np.maximum((np.arange(size) + shift) * old / size - shift, 0)
        low, high, part = _sampled(position, old)
        part = part.reshape([-1 if i == axis else 1 for i in range(4)])
        x = np.take(x, low, axis) * (1 - part) + np.take(x, high, axis) * part
    return x, 0.5 + INTERPOLATED


def _resize_nearest(op, arrays, tensors, output):
    x = arrays[0].astype("float64")
    for axis, size in zip((1, 2), arrays[1], strict=True):
        shift = 0.5 if op.options.halfPixelCenters else 0.0
        places = np.floor((np.arange(size) + shift) * x.shape[axis] / size).astype(int)
        x = np.take(x, np.minimum(places, x.shape[axis] - 1), axis)
    return x, 0.0


def _function(function, allowed=FLOAT32):
    def compute(op, arrays, tensors, output):
        return _stored(function(tensors[0].real(arrays[0])), output, allowed=allowed)

    return compute


def _softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _copy(function):
    """Returns what moves stored values; scale and zero point have to stay."""

    def compute(op, arrays, tensors, output):
        read = [t for t in tensors if t is not None and t.scale is not None]
        for tensor in read:
            assert np.array_equal(tensor.scale, output.scale), f"{op.name}: {tensor.name}"
            assert tensor.zero_point == output.zero_point, f"{op.name}: {tensor.name}"
        return function(op, [np.asarray(a, "float64") for a in arrays], output), 0.0

    return compute


def _slice(op, arrays, output):
    x, begin, end, strides = arrays
    key = [
        slice(int(b), None if op.options.endMask >> axis & 1 else int(e), int(s))
        for axis, (b, e, s) in enumerate(zip(begin, end, strides, strict=True))
    ]
    return x[tuple(key)]


def _pad(op, arrays, output):
    return np.pad(arrays[0], arrays[1].astype(int), constant_values=output.zero_point)


def _reshape(op, arrays, output):
    return arrays[0].reshape(len(arrays[0]), *arrays[1].astype(int)[1:])


def _transpose(op, arrays, output):
    return np.transpose(arrays[0], arrays[1].astype(int))


def _mirror_pad(op, arrays, output):
    """Reads backwards from the edge on: with the edge itself (mode 1), or without it (mode 0)."""
    image = arrays[0]
    for axis, (before, after) in enumerate(arrays[1].astype(int)):
        size, edge = image.shape[axis], 1 - op.options.mode
        first = [edge + n for n in range(before)][::-1]
        last = [size - 1 - edge - n for n in range(after)]
        image = image.take([*first, *range(size), *last], axis)
    return image


def _concatenation(op, arrays, output):
    return np.concatenate(arrays, axis=op.options.axis)


def _gather(op, arrays, output):
    return arrays[0][arrays[1].astype(int)]


_COMPUTE = {
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv_2d,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
    "BATCH_MATMUL": _batch_matmul,
    "ADD": _pair(np.add, FIXED_POINT),
    "SUB": _pair(np.subtract, FIXED_POINT),
    "MUL": _pair(np.multiply, FLOAT32),
    "MEAN": _mean,
    "AVERAGE_POOL_2D": _average_pool_2d,
    "MAX_POOL_2D": _max_pool_2d,
    "RESIZE_BILINEAR": _resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "LOGISTIC": _function(lambda x: 1 / (1 + np.exp(-x))),
    "TANH": _function(np.tanh),
    "ELU": _function(lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x)),
    "GELU": _function(lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2),
    # Its kernel works in fixed point.
    "SOFTMAX": _function(_softmax, allowed=0.01),
    "CAST": lambda op, arrays, tensors, output: (arrays[0].astype("float64"), 0.0),
    "GATHER": _copy(_gather),
    "STRIDED_SLICE": _copy(_slice),
    "PAD": _copy(_pad),
    "MIRROR_PAD": _copy(_mirror_pad),
    "RESHAPE": _copy(_reshape),
    "TRANSPOSE": _copy(_transpose),
    "CONCATENATION": _copy(_concatenation),
}
