"""Runs TFLite files on the runtimes available from Python, with one thread each.

default    LiteRT with the XNNPACK delegate: what an app gets by default
compiled   LiteRT's `CompiledModel`, which uses the same kernels
builtin    LiteRT's own optimized kernels, no delegate
reference  LiteRT's reference kernels
micro      TensorFlow Lite for Microcontrollers, from the PyPI package `tflite-micro`
"""

import collections
import dataclasses
import importlib.util
import math

import numpy as np

from speq_keras._checks import check_choice, describe
from speq_keras.export.tflite.compiled_model import missing_interpreter, run_compiled

RUNTIMES = ("default", "compiled", "builtin", "reference", "micro")
# What apps run, with the same kernels: the proof uses these.
PROVEN_RUNTIMES = ("default", "compiled")
# Micro has no heap: everything lives in an arena, and too small an arena fails. This is the margin
# above what the tensors need.
SPARE_ARENA_BYTES = 16 * 2**20
_INPUT_TYPES = ("float32", "int32", "uint8", "int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Partitions:
    """What the default runtime delegates to XNNPACK.

    Attributes:
        partitions: Number of connected pieces. One is best: tensors stay inside.
        delegated, others: {operator: how many} inside and outside of XNNPACK.
    """

    partitions: int
    delegated: dict
    others: dict

    @property
    def num_others(self):
        """The number of operations that run outside XNNPACK."""
        return sum(self.others.values())


def run_file(content, inputs, *, runtime="default"):
    """Runs a TFLite file on any number of examples.

    Args:
        content: The file as bytes.
        inputs: One array, or a list of arrays in the order of the graph's inputs. Their first axis
            is the examples; the file's batch size is kept, and the last batch is padded.
        runtime: One of `RUNTIMES`.

    Returns:
        A list of arrays in the order of the graph's outputs: with `write(extra_outputs=...)` the
        network's own outputs and then the intermediate tensors, which "compiled" cannot return.

    Raises:
        ValueError: If the runtime is unknown, or the inputs do not fit the graph's.
        RuntimeError: If the runtime cannot load the file or is not installed.

    Example:
        >>> import keras, pathlib, speq_keras, tempfile
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> model = speq_keras.wrap(network, 4, 8)
        >>> x = np.random.rand(5, 4).astype("float32")
        >>> model.calibrate(x, verbose=0)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "m.tflite")
        >>> _ = model.export_tflite(path)
        >>> [y.shape for y in run_file(path.read_bytes(), x)]
        [(5, 3)]
    """
    check_choice("runtime", runtime, RUNTIMES)
    if isinstance(inputs, np.ndarray):
        inputs = [inputs]
    session = _SESSIONS[runtime](content, runtime)
    _check_inputs(session.inputs, inputs)
    batch_size = int(session.inputs[0]["shape"][0])
    number = len(inputs[0])
    missing = -number % batch_size  # examples to pad the last batch
    if missing:
        inputs = [np.concatenate([x, x[-1:].repeat(missing, axis=0)]) for x in inputs]
    batches = [
        [array[start : start + batch_size] for array in inputs]
        for start in range(0, number, batch_size)
    ]
    results = [np.concatenate(arrays) for arrays in zip(*session.run(batches), strict=True)]
    # Also with several rows per example.
    return [array[: len(array) * number // (number + missing)] for array in results]


def _check_inputs(details, inputs):
    if len(inputs) != len(details):
        raise ValueError(
            f"`inputs` must be {len(details)} arrays, one per input of the graph. "
            + describe(number_of_arrays=len(inputs))
        )
    for array, detail in zip(inputs, details, strict=True):
        if array.shape[1:] != tuple(detail["shape"][1:]) or array.dtype != detail["dtype"]:
            raise ValueError(
                f"Input {detail['name']!r} must have shape (any, {tuple(detail['shape'][1:])}) and "
                f"type {np.dtype(detail['dtype']).name}. "
                + describe(shape=array.shape, dtype=array.dtype.name)
            )


def missing_reason(runtime):
    """Returns why a runtime cannot be used here, or None.

    Args:
        runtime: One of `RUNTIMES`.

    Example:
        >>> missing_reason("reference") is None
        True
    """
    check_choice("runtime", runtime, RUNTIMES)
    package = "tflite_micro" if runtime == "micro" else "ai_edge_litert"
    if importlib.util.find_spec(package) is not None:
        return missing_interpreter() if runtime == "compiled" else None
    if runtime == "micro":
        return (
            "TensorFlow Lite Micro is not installed. Install it with `pip install --pre "
            "tflite-micro`, on Linux x86-64, for the versions of Python that have a wheel."
        )
    return "LiteRT is not installed. Install it with `pip install ai-edge-litert`."


def partitions(content):
    """Returns the `Partitions` of a file: what the default runtime delegates to XNNPACK.

    Args:
        content: The file as bytes.

    Example:
        >>> import keras, pathlib, speq_keras, tempfile
        >>> network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> model = speq_keras.wrap(network, 4, 8)
        >>> model.calibrate(np.random.rand(5, 4).astype("float32"), verbose=0)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "m.tflite")
        >>> _ = model.export_tflite(path)
        >>> partitions(path.read_bytes()).partitions
        1
    """
    session = _LiteRT(content, "default")
    # The only list of all operations, delegates included, is a private method.
    operations = session.interpreter._get_ops_details()
    delegates = [op for op in operations if op["op_name"] == "DELEGATE"]
    operations = [op for op in operations if op["op_name"] != "DELEGATE"]
    makers = {index: op for op in operations for index in op["outputs"]}
    inside = set()
    for delegate in delegates:
        # The operations between its inputs and outputs are those it replaced.
        known, open_ends = set(delegate["inputs"]), list(delegate["outputs"])
        while open_ends:
            index = open_ends.pop()
            if index in known or index not in makers:
                continue
            known.add(index)
            maker = makers[index]
            inside.add(maker["index"])
            open_ends += [*maker["inputs"], *maker["outputs"]]
    counts = [collections.Counter(), collections.Counter()]
    for op in operations:
        counts[op["index"] not in inside][op["op_name"]] += 1
    return Partitions(partitions=len(delegates), delegated=dict(counts[0]), others=dict(counts[1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far another runtime's outputs deviate from the default runtime's.

    The other kernels round twice where XNNPACK rounds the exact result once, so a code is
    occasionally off by one.

    Attributes:
        runtime: One of `RUNTIMES`, or another name.
        differing: Share of the output values that differ, 0 to 1.
        largest: Largest difference, in units of the outputs.
        agreement: Share of the top-1 classes that are the same, 0 to 1; None: not a classifier.
    """

    runtime: str
    differing: float
    largest: float
    agreement: float | None


def deviations(content, inputs, runtimes):
    """Runs a file on the default runtime and on others, and returns a `Deviation` for each.

    Args:
        content: The file as bytes.
        inputs: As in `run_file`.
        runtimes: Some of `RUNTIMES`.
    """
    expected = run_file(content, inputs) if runtimes else None
    return tuple(
        deviation(runtime, expected, run_file(content, inputs, runtime=runtime))
        for runtime in runtimes
    )


def deviation(runtime, expected, got):
    """Returns the `Deviation` of outputs `got` from outputs `expected`, lists of arrays."""
    distances = [
        np.abs(a.astype("float64") - b).reshape(-1) for a, b in zip(got, expected, strict=True)
    ]
    distances = np.concatenate(distances)
    agreement = None
    if len(expected) == 1 and expected[0].ndim == 2 and expected[0].shape[-1] > 1:
        same = np.argmax(got[0], axis=-1) == np.argmax(expected[0], axis=-1)
        agreement = float(np.mean(same))
    return Deviation(
        runtime=runtime,
        differing=float(np.mean(distances > 0)),
        largest=float(distances.max()),
        agreement=agreement,
    )


class _LiteRT:
    """A file loaded in LiteRT."""

    def __init__(self, content, runtime):
        # Imported at the first use only: training does not need the runtime.
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        resolvers = {
            "default": OpResolverType.AUTO,
            "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            "reference": OpResolverType.BUILTIN_REF,
        }
        try:
            self.interpreter = Interpreter(
                model_content=content,
                num_threads=1,
                experimental_op_resolver_type=resolvers[runtime],
            )
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"The {runtime} runtime of LiteRT cannot load this file: {error}"
            ) from error
        self.inputs = self.interpreter.get_input_details()
        self.outputs = [detail["index"] for detail in self.interpreter.get_output_details()]

    def run(self, batches):
        """Runs batches of input arrays; returns a list of outputs for each."""
        return [self._run(arrays) for arrays in batches]

    def _run(self, arrays):
        for detail, array in zip(self.inputs, arrays, strict=True):
            self.interpreter.set_tensor(detail["index"], array)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(index) for index in self.outputs]


class _Compiled:
    """A file for LiteRT's `CompiledModel`."""

    def __init__(self, content, runtime):
        reason = missing_reason(runtime)
        if reason:
            raise RuntimeError(reason)
        # Read from the file: none of the interpreter's runtimes loads every file.
        from ai_edge_litert import schema_py_generated as schema

        types = {getattr(schema.TensorType, name.upper()): name for name in _INPUT_TYPES}
        graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
        tensors = [graph.Tensors(graph.Inputs(i)) for i in range(graph.InputsLength())]
        self.content = content
        self.inputs = [
            {
                "name": tensor.Name().decode(),
                "shape": [tensor.Shape(i) for i in range(tensor.ShapeLength())],
                "dtype": np.dtype(types[tensor.Type()]),
            }
            for tensor in tensors
        ]

    def run(self, batches):
        """Runs batches of input arrays; returns a list of outputs for each."""
        return run_compiled(self.content, batches)


class _Micro:
    """A file loaded in TensorFlow Lite Micro."""

    def __init__(self, content, name):
        reason = missing_reason(name)
        if reason:
            raise RuntimeError(reason)
        from ai_edge_litert import schema_py_generated as schema
        from tflite_micro.python.tflite_micro import runtime

        # Micro does not report the number of inputs and outputs.
        graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
        tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
        arena_bytes = SPARE_ARENA_BYTES
        for tensor in tensors:
            arena_bytes += 4 * math.prod(tensor.Shape(i) for i in range(tensor.ShapeLength()))
        try:
            self.interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)
        except RuntimeError as error:
            raise RuntimeError(
                f"TensorFlow Lite Micro cannot load this file: {error}. See stderr for details."
            ) from error
        names = [tensors[graph.Inputs(i)].Name().decode() for i in range(graph.InputsLength())]
        self.inputs = [
            {"name": name, **self.interpreter.get_input_details(i)} for i, name in enumerate(names)
        ]
        self.num_outputs = graph.OutputsLength()

    def run(self, batches):
        """Runs batches of input arrays; returns a list of outputs for each."""
        return [self._run(arrays) for arrays in batches]

    def _run(self, arrays):
        for index, array in enumerate(arrays):
            self.interpreter.set_input(np.ascontiguousarray(array), index)
        self.interpreter.invoke()
        return [np.array(self.interpreter.get_output(i)) for i in range(self.num_outputs)]


_SESSIONS: dict = {
    "default": _LiteRT,
    "compiled": _Compiled,
    "builtin": _LiteRT,
    "reference": _LiteRT,
    "micro": _Micro,
}
