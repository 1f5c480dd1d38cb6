"""What an export tells a program for TensorFlow Lite Micro: operators, arena, flash."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import speq_keras
from speq_keras.export import micro
from speq_keras.export.micro import KERNELS, method_of, micro_needs
from speq_keras.export.tflite import elementwise, functions, moving, pooling, products, volumes
from speq_keras.export.tflite.runtimes import missing_reason

needs_micro = pytest.mark.skipif(
    missing_reason("micro") is not None, reason="tflite-micro is not installed"
)

# Read by eye in tensorflow/lite/micro/micro_mutable_op_resolver.h of August 2026.
METHODS = {
    "ABS": "AddAbs",
    "ADD": "AddAdd",
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "BATCH_MATMUL": "AddBatchMatMul",
    "CAST": "AddCast",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEQUANTIZE": "AddDequantize",
    "DIV": "AddDiv",
    "ELU": "AddElu",
    "EXP": "AddExp",
    "FLOOR": "AddFloor",
    "FULLY_CONNECTED": "AddFullyConnected",
    "GATHER": "AddGather",
    "HARD_SWISH": "AddHardSwish",
    "LEAKY_RELU": "AddLeakyRelu",
    "LOG": "AddLog",
    "LOGISTIC": "AddLogistic",
    "MAXIMUM": "AddMaximum",
    "MAX_POOL_2D": "AddMaxPool2D",
    "MEAN": "AddMean",
    "MINIMUM": "AddMinimum",
    "MIRROR_PAD": "AddMirrorPad",
    "MUL": "AddMul",
    "NEG": "AddNeg",
    "PAD": "AddPad",
    "PRELU": "AddPrelu",
    "QUANTIZE": "AddQuantize",
    "RELU": "AddRelu",
    "RELU6": "AddRelu6",
    "RESHAPE": "AddReshape",
    "RESIZE_BILINEAR": "AddResizeBilinear",
    "RESIZE_NEAREST_NEIGHBOR": "AddResizeNearestNeighbor",
    "RSQRT": "AddRsqrt",
    "SOFTMAX": "AddSoftmax",
    "SQRT": "AddSqrt",
    "SQUARE": "AddSquare",
    "SQUARED_DIFFERENCE": "AddSquaredDifference",
    "STRIDED_SLICE": "AddStridedSlice",
    "SUB": "AddSub",
    "TANH": "AddTanh",
    "TRANSPOSE": "AddTranspose",
    "TRANSPOSE_CONV": "AddTransposeConv",
    "ARG_MAX": "AddArgMax",
    "CEIL": "AddCeil",
    "COS": "AddCos",
    "EQUAL": "AddEqual",
    "GREATER": "AddGreater",
    "GREATER_EQUAL": "AddGreaterEqual",
    "LESS": "AddLess",
    "LESS_EQUAL": "AddLessEqual",
    "LOG_SOFTMAX": "AddLogSoftmax",
    "NOT_EQUAL": "AddNotEqual",
    "ROUND": "AddRound",
    "SIN": "AddSin",
    # Written by nobody here today, and some of them spelled in ways of their own.
    "DEPTH_TO_SPACE": "AddDepthToSpace",
    "PACK": "AddPack",
    "REDUCE_MAX": "AddReduceMax",
    "REDUCE_MIN": "AddReduceMin",
    "SELECT_V2": "AddSelectV2",
    "SPACE_TO_DEPTH": "AddSpaceToDepth",
    "SPLIT": "AddSplit",
    "SUM": "AddSum",
    "UNPACK": "AddUnpack",
    "BATCH_TO_SPACE_ND": "AddBatchToSpaceNd",
    "CUMSUM": "AddCumSum",
    "L2_POOL_2D": "AddL2Pool2D",
    "PADV2": "AddPadV2",
    "REVERSE_V2": "AddReverseV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}
WITHOUT_KERNEL = {"CONV_3D", "CONV_3D_TRANSPOSE", "GELU", "POW", "REDUCE_PROD"}


def test_methods_are_spelled_as_in_the_header():
    assert {name: method_of(name) for name in METHODS} == METHODS
    assert set(METHODS) <= KERNELS
    assert not WITHOUT_KERNEL & KERNELS


def test_each_operator_that_a_file_can_have_is_known_or_known_to_be_missing():
    families = elementwise, functions, moving, pooling, products, volumes
    source = "".join(pathlib.Path(x.__file__).read_text(encoding="utf-8") for x in families)
    written = set(re.findall(r'"([A-Z][A-Z0-9_]+)"', source)) - {"BOOL", "INT8", "INT32"}
    assert len(written) > 40
    assert written - set(METHODS) == WITHOUT_KERNEL


RUN = """
import sys
from tflite_micro.python.tflite_micro import runtime
runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2])).invoke()
"""


def runs_in_micro(path, arena_bytes):
    """Whether Micro runs a file; in a process of its own, since too small an arena may end it."""
    command = [sys.executable, "-c", RUN, str(path), str(arena_bytes)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


# ---- of a file -------------------------------------------------------------------------------


def exported(folder, *, skip=(), **options):
    """Returns the report of a network with convolutions, a sum, a GELU and a classifier."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = layers.Add()([y, layers.Conv2D(4, 3, padding="same", activation="relu")(y)])
    y = layers.Activation("gelu", name="gelu")(layers.Conv2D(4, 3, name="before_gelu")(y))
    network = keras.Model(x, layers.Dense(3, name="label")(layers.Flatten()(y)))
    model = speq_keras.wrap(network, 3, 3, distillation=None, skip=skip)
    data = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype("float32")
    model.calibrate(data, verbose=0)
    return model.export_tflite(folder / "m.tflite", data=data, **options)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("micro"), io="int8")


def test_the_snippet_registers_the_operators_of_the_file_and_no_others(report):
    # The names come from the runtime, not from this package's reader.
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(report.path, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    names = {operation["op_name"] for operation in interpreter._get_ops_details()}
    first, *calls = report.micro.resolver.splitlines()
    assert first == f"tflite::MicroMutableOpResolver<{len(names)}> resolver;"
    assert sorted(calls) == sorted(f"resolver.{METHODS[name]}();" for name in names)


def test_flash_is_the_size_of_the_file(report):
    assert report.micro.flash_bytes == pathlib.Path(report.path).stat().st_size


@needs_micro
def test_the_arena_is_the_smallest_with_which_micro_loads_the_file(report):
    assert report.micro.arena_bytes % 16 == 0
    assert runs_in_micro(report.path, report.micro.arena_bytes)
    assert not runs_in_micro(report.path, report.micro.arena_bytes - 16)


def test_without_tflite_micro_the_report_says_how_to_get_it(report, monkeypatch):
    monkeypatch.setattr(micro, "missing_reason", lambda runtime: "Micro is not installed.")
    needs = micro_needs(report.path)
    assert needs.resolver == report.micro.resolver
    assert needs.arena_bytes is None
    assert "arena not measured: Micro is not installed." in str(needs)


@needs_micro
def test_what_micro_cannot_load_is_said_in_its_words(report, monkeypatch):
    too_small = micro._MEASURE.replace("int(sys.argv[1])", "2000")
    monkeypatch.setattr(micro, "_MEASURE", too_small)
    needs = micro_needs(report.path)
    assert needs.arena_bytes is None
    assert needs.why_no_arena.startswith("tflite-micro cannot load this file: Failed to allocate")


def test_an_operator_without_a_kernel_is_named(tmp_path):
    report = exported(tmp_path, skip=["before_gelu", "gelu", "label"], io="int8")
    assert report.micro.without_kernel == ("GELU",)
    assert "Micro has no kernel for GELU: it does not run this file, unless" in str(report)
    assert "Gelu" not in report.micro.resolver
    others = set(report.micro.operators) - {"GELU"}
    assert f"<{len(others)}> resolver;" in report.micro.resolver
    if missing_reason("micro") is None:
        assert report.micro.arena_bytes is None
        assert "GELU" in report.micro.why_no_arena


@pytest.mark.parametrize(("storage", "type_name"), [("int4", "int4"), ("int2", "int2")])
def test_packed_weights_that_micro_does_not_take_are_named(tmp_path, storage, type_name):
    keras.utils.set_random_seed(0)
    dense = [layers.Dense(8, activation="relu", name=name) for name in ("first", "hidden", "last")]
    model = speq_keras.wrap(
        keras.Sequential([keras.Input((8,)), *dense]),
        2,
        4,
        distillation=None,
        weight_quantizer="lsq" if storage == "int2" else "sawb",
    )
    model.calibrate(np.random.default_rng(0).normal(size=(8, 8)), verbose=0)
    report = model.export_tflite(tmp_path / "m.tflite", storage=storage, io="int8")
    assert {row.type for row in report.weights} == {"int8", type_name}
    (sentence,) = report.micro.without_kernel
    assert sentence.startswith(f"FULLY_CONNECTED with {type_name} weights")
    assert "resolver.AddFullyConnected();" in report.micro.resolver
    if missing_reason("micro") is None:
        assert report.micro.arena_bytes is None
    report = model.export_tflite(tmp_path / "m.tflite", io="int8")
    assert report.micro.without_kernel == ()


def test_the_report_of_a_file_without_floats_at_its_ends_has_the_snippet(report):
    assert all(f"  {line}" in str(report) for line in report.micro.resolver.splitlines())
    assert f"TensorFlow Lite Micro: {report.micro.flash_bytes:,} bytes of flash; " in str(report)


def test_the_report_of_another_file_says_where_the_snippet_is(tmp_path):
    report = exported(tmp_path)
    assert "MicroMutableOpResolver" not in str(report)
    assert "`print(report.micro)` has what a program registers" in str(report)
    assert "resolver.AddQuantize();" in str(report.micro)
    assert "arena not measured: `runtimes=['micro']` measures it" in str(report.micro)


@needs_micro
def test_who_compares_with_micro_is_told_the_arena(tmp_path):
    report = exported(tmp_path, runtimes=["micro"])
    assert f"{report.micro.arena_bytes:,} bytes of arena (tflite-micro " in str(report)


def test_what_micro_needs_is_plain_values(report):
    plain = report.micro.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["resolver"] == report.micro.resolver
    assert report.to_dict()["micro"] == plain
    assert set(plain) == {x.name for x in dataclasses.fields(report.micro)} | {"resolver"}
