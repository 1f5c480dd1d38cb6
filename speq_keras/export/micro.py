"""What a program for TensorFlow Lite Micro needs to run a file: operators, arena, flash."""

import dataclasses
import math
import subprocess
import sys

from speq_keras.export.tflite.inspect import operator_name
from speq_keras.export.tflite.reading import read_model
from speq_keras.export.tflite.runtimes import SPARE_ARENA_BYTES, missing_reason

# The operators with a method in micro_mutable_op_resolver.h (tflite-micro of August 2026).
KERNELS = frozenset(
    """
    ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND
    BROADCAST_ARGS BROADCAST_TO CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM
    DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EMBEDDING_LOOKUP EQUAL
    EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER
    GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG
    LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MEAN MINIMUM
    MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_ALL REDUCE_MAX
    REDUCE_MIN RELU RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT
    SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE
    SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV
    UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE
    """.split()
)
# Words of an operator's name that its method does not write with just one capital.
_SPELLINGS = {"2D": "2D", "CUMSUM": "CumSum", "LSTM": "LSTM", "MATMUL": "MatMul", "PADV2": "PadV2"}
# In a separate process: Micro reports errors on stderr only, and if the arena is too small it may
# crash instead. So each size is tried in a child of that process. The total that Micro prints is
# less than it takes to load a small file.
_MEASURE = """
import os, resource, sys
sys.path = [folder for folder in sys.path if folder]  # no module of the folder we are in
from tflite_micro import __version__, runtime
content, most = sys.stdin.buffer.read(), int(sys.argv[1])

def is_enough(arena_bytes):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    try:
        runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)
    except RuntimeError:
        os._exit(1)
    os._exit(0)

runtime.Interpreter.from_bytes(content, arena_size=most)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
low, high = 0, most // 16
while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if is_enough(16 * middle) else (middle, high)
print(16 * high, __version__)
"""
NOT_ASKED = "`runtimes=['micro']` measures it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroNeeds:
    """What a program for TensorFlow Lite Micro needs for a file; prints as lines to paste.

    Attributes:
        operators: Names of the file's operators in the TFLite schema, each once.
        without_kernel: Operators that Micro has no kernel for, at all or for the types in the file.
        flash_bytes: Size of the file, which stays in flash and is read there.
        arena_bytes: The smallest arena, a multiple of 16 bytes on a 16-byte boundary, with which
            the installed tflite-micro loads the file on this machine; None: not measured. This is
            with reference kernels and 64-bit pointers: with 32-bit pointers its tables need less,
            and kernels for a chip (CMSIS-NN) may need more working memory.
        why_no_arena: Why it was not measured, or "".
        measured_by: Version of tflite-micro used for the measurement, or "".
    """

    operators: tuple
    without_kernel: tuple
    flash_bytes: int
    arena_bytes: int | None
    why_no_arena: str
    measured_by: str

    @property
    def resolver(self):
        """The C++ lines that register the operators that have a kernel."""
        known = [name for name in self.operators if name in KERNELS]
        lines = [f"tflite::MicroMutableOpResolver<{len(known)}> resolver;"]
        return "\n".join([*lines, *(f"resolver.{method_of(name)}();" for name in known)])

    def to_dict(self):
        """Returns plain lists, numbers and strings, including `resolver`."""
        plain = {
            key: list(x) if isinstance(x, tuple) else x
            for key, x in dataclasses.asdict(self).items()
        }
        return {**plain, "resolver": self.resolver}

    def __str__(self):
        if self.arena_bytes is None:
            arena = f"arena not measured: {self.why_no_arena}"
        else:
            arena = (
                f"{self.arena_bytes:,} bytes of arena (tflite-micro {self.measured_by} on this "
                "machine: reference kernels, 64-bit pointers)"
            )
        lines = [f"TensorFlow Lite Micro: {self.flash_bytes:,} bytes of flash; {arena}"]
        if self.without_kernel:
            lines.append(
                f"Micro has no kernel for {', '.join(self.without_kernel)}: it does not run this "
                "file, unless you write and register one."
            )
        return "\n".join([*lines, self.resolver])


def micro_needs(path_or_bytes, *, measure=True):
    """Returns the `MicroNeeds` of a TFLite file.

    Args:
        path_or_bytes: Path of the file, or its bytes.
        measure: Whether to measure the arena if tflite-micro is installed: in a separate process,
            which takes a fraction of a second.

    Raises:
        TypeError, ValueError: As in `reading.read_model`: not a file, not TFLite, or damaged.
    """
    content, model = read_model(path_or_bytes)
    from ai_edge_litert import schema_py_generated as schema

    operators, without_kernel = set(), set()
    for graph in model.subgraphs:
        for operator in graph.operators or []:
            name = operator_name(model.operatorCodes[operator.opcodeIndex], schema)
            operators.add(name)
            if name not in KERNELS:
                without_kernel.add(name)
            elif name == "FULLY_CONNECTED":
                without_kernel.update(_refused(graph.tensors[operator.inputs[1]], schema))
    reason = missing_reason("micro") if measure else NOT_ASKED
    arena_bytes, version, reason = (None, "", reason) if reason else _measured(content, model)
    return MicroNeeds(
        operators=tuple(sorted(operators)),
        without_kernel=tuple(sorted(without_kernel)),
        flash_bytes=len(content),
        arena_bytes=arena_bytes,
        why_no_arena=reason,
        measured_by=version,
    )


def method_of(operator):
    """Returns the method of MicroMutableOpResolver that registers an operator.

    Example:
        >>> method_of("DEPTHWISE_CONV_2D")
        'AddDepthwiseConv2D'
    """
    words = operator.split("_")
    return "Add" + "".join(_SPELLINGS.get(word, word.capitalize()) for word in words)


def _refused(weights, schema):
    """Yields the weights that Micro's kernel of dense layers and 1×1 convolutions rejects."""
    quantization = weights.quantization
    scales = None if quantization is None else quantization.scale
    if weights.type == schema.TensorType.INT4 and scales is not None and len(scales) > 1:
        yield "FULLY_CONNECTED with int4 weights and a scale per channel (storage='int8' has none)"
    if weights.type == getattr(schema.TensorType, "INT2", None):
        yield "FULLY_CONNECTED with int2 weights (storage='int8' has none)"


def _measured(content, model):
    """Returns (bytes of the arena, version of tflite-micro, ""), or (None, "", why not)."""
    values = sum(
        math.prod([] if tensor.shape is None else [int(size) for size in tensor.shape])
        for graph in model.subgraphs
        for tensor in graph.tensors or []
    )
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(SPARE_ARENA_BYTES + 4 * values)],
        input=content,
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        arena_bytes, version = done.stdout.splitlines()[-1].split()
        return int(arena_bytes), version.decode(), ""
    said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    said = said or [f"its process ended with status {done.returncode}"]
    # Micro's own messages first; if there are none, Python's last line.
    words = said[-1] if said[0].startswith("Traceback") else said[0]
    return None, "", f"tflite-micro cannot load this file: {words}"
