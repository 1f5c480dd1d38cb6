"""`python -m speq_keras`."""

import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import speq_keras
from speq_keras.__main__ import main
from speq_keras.export.tflite.inspect import inspect


@pytest.fixture(scope="module")
def float_model():
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 2), name="image")
    y = keras.layers.Conv2D(4, 3, activation="relu")(x)  # 4 bits go in pairs of channels
    y = keras.layers.Conv2D(4, 1, activation="relu")(y)
    y = keras.layers.Flatten()(y)
    return keras.Model(x, keras.layers.Dense(3, activation="softmax", name="label")(y))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, float_model):
    folder = tmp_path_factory.mktemp("models")
    model = speq_keras.wrap(float_model, w_bits=3, a_bits=3)
    model.calibrate([np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype(np.float32)])
    model.save(folder / "m.keras")
    float_model.save(folder / "float.keras")
    (folder / "damaged.keras").write_bytes((folder / "m.keras").read_bytes()[:1000])
    (folder / "damaged.tflite").write_bytes(b"\x20\0\0\0TFL3")
    return folder


@pytest.fixture
def call(capsys):
    """Runs the command line in this process."""

    def call(*arguments):
        """Returns (exit code, stdout, stderr)."""
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            code = end.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


# ---- export ----------------------------------------------------------------------------------


def test_export_writes_the_file_and_prints_the_report(folder, tmp_path, call):
    out = tmp_path / "m.tflite"
    code, printed, _ = call("export", folder / "m.keras", out)
    assert code == 0
    assert str(out) in printed
    assert out.exists()


def test_export_passes_its_options_on(folder, tmp_path, call):
    out = tmp_path / "m.tflite"
    options = ["--storage", "int4", "--io", "int8", "--batch_size", "3", "--logits"]
    assert call("export", folder / "m.keras", out, *options)[0] == 0
    found = inspect(out)
    assert "int4" in found.constant_bytes
    assert not {"SOFTMAX", "QUANTIZE", "DEQUANTIZE"} & set(found.operations)
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(str(out)).get_input_details()[0]
    assert (details["dtype"], tuple(details["shape"])) == (np.int8, (3, 6, 6, 2))


@pytest.mark.parametrize(("options", "signature"), [([], [1]), (["--batch_size", "any"], [-1])])
def test_only_a_file_that_was_asked_for_says_that_its_batch_may_change(
    folder, tmp_path, call, options, signature
):
    from ai_edge_litert.interpreter import Interpreter

    out = tmp_path / "m.tflite"
    assert call("export", folder / "m.keras", out, *options)[0] == 0
    details = Interpreter(str(out)).get_input_details()[0]
    assert details["shape_signature"].tolist() == [*signature, 6, 6, 2]


def test_another_runtime_is_compared_on_request(folder, tmp_path, call):
    out = tmp_path / "m.tflite"
    code, printed, _ = call("export", folder / "m.keras", out, "--runtime", "builtin")
    assert code == 0
    assert "builtin kernels, which round twice: " in printed


def test_the_defaults_are_those_of_export_tflite(folder, tmp_path, call):
    out = tmp_path / "m.tflite"
    call("export", folder / "m.keras", out)
    model = keras.saving.load_model(folder / "m.keras")
    model.export_tflite(tmp_path / "same.tflite")
    assert out.read_bytes() == (tmp_path / "same.tflite").read_bytes()


def test_export_writes_a_c_array_on_request(folder, tmp_path, call):
    out, source = tmp_path / "m.tflite", tmp_path / "m_data.cc"
    code, printed, _ = call("export", folder / "m.keras", out, "--io", "int8", "--c_array", source)
    assert code == 0
    assert printed.startswith(f"Wrote {source} and {tmp_path / 'm_data.h'}\n\n{out}: ")
    values = re.findall(r"0x(..),", source.read_text())
    assert bytes.fromhex("".join(values)) == out.read_bytes()
    assert f"g_m_data_size = {len(values)};" in (tmp_path / "m_data.h").read_text()


# ---- plan ------------------------------------------------------------------------------------


def test_plan_prints_the_plan_of_a_wrapped_model(folder, call):
    code, printed, _ = call("plan", folder / "m.keras")
    assert code == 0
    assert printed == f"{keras.saving.load_model(folder / 'm.keras').plan()}\n"


def test_plan_wraps_a_float_model_with_the_defaults_of_wrap(folder, float_model, call):
    assert call("plan", folder / "float.keras")[1] == f"{speq_keras.wrap(float_model).plan()}\n"


def test_plan_passes_widths_quantizers_and_names_on(folder, float_model, call):
    options = ["--w_bits", "2", "--a_bits", "float", "--boundary_bits", "float"]
    options += ["--weight_quantizer", "mse", "--skip", "dense*", "--skip", "label"]
    printed = call("plan", folder / "float.keras", *options[:-2])
    assert printed[0] == 2  # there is no layer of that name
    printed = call("plan", folder / "float.keras", *options[:-4], *options[-2:])[1]
    expected = speq_keras.wrap(
        float_model,
        w_bits=2,
        a_bits=None,
        boundary_bits=None,
        weight_quantizer="mse",
        skip=["label"],
        distillation=None,
    )
    assert printed == f"{expected.plan()}\n"
    assert "2 MSE" in printed


def test_plan_takes_an_activation_quantizer(folder, call, monkeypatch):
    given = {}

    def spy(model, **arguments):
        given.update(arguments)
        return speq_keras.wrap(model, **arguments)

    monkeypatch.setattr("speq_keras.__main__.wrap", spy)
    assert call("plan", folder / "float.keras", "--activation_quantizer", "lsq_plus")[0] == 0
    assert given == {"distillation": None, "activation_quantizer": "lsq_plus"}


def test_plan_writes_a_web_page_on_request(folder, tmp_path, call):
    out = tmp_path / "plan.html"
    code, printed, _ = call("plan", folder / "m.keras", "--html", out)
    assert code == 0
    plan = keras.saving.load_model(folder / "m.keras").plan()
    assert printed == f"Wrote {out}\n\n{plan}\n"
    assert out.read_text() == plan.to_html()


# ---- inspect ---------------------------------------------------------------------------------


def test_inspect_prints_the_table(folder, tmp_path, call):
    out = tmp_path / "m.tflite"
    call("export", folder / "m.keras", out)
    code, printed, _ = call("inspect", out)
    assert code == 0
    assert printed == f"{inspect(out)}\n"


def test_it_runs_as_a_module(folder):
    command = [sys.executable, "-m", "speq_keras", "inspect", folder / "damaged.tflite"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.splitlines()[-1].endswith("It is cut off or damaged.")
    assert "Traceback" not in process.stderr


# ---- errors ----------------------------------------------------------------------------------

MODEL_RULE = "The model must be a .keras file that a SPEQModel was saved to. Received: model="
PLAN_RULE = "The model must be a .keras file of a SPEQModel or a float model. Received: model="
BAD_CALLS = {
    "missing model": (["export", "no.keras", "m.tflite"], MODEL_RULE + "'no.keras'. There is no "),
    "float model": (
        ["export", "float.keras", "m.tflite"],
        MODEL_RULE
        + "'float.keras'. It holds a Functional. Train what `speq_keras.wrap` returns for",
    ),
    "damaged model": (
        ["export", "damaged.keras", "m.tflite"],
        MODEL_RULE + "'damaged.keras'. Keras cannot load it: ",
    ),
    "output without suffix": (["export", "m.keras", "m.bin"], "Received: path='m.bin'. "),
    "output in a missing folder": (["export", "m.keras", "no/m.tflite"], "Create 'no' first."),
    "array without suffix": (
        ["export", "no.keras", "m.tflite", "--c_array", "m.c"],
        "`c_array` must be a file that ends in .cc, in a folder that exists. Received: c_array='m.",
    ),
    "array whose name is none in C++": (
        ["export", "no.keras", "m.tflite", "--c_array", "a-b.cc"],
        "single underscores between them. Received: c_array='a-b.cc'. Call it a_b.cc.",
    ),
    "batch of nothing": (
        ["export", "m.keras", "m.tflite", "--batch_size", "0"],
        "Received: batch_size=0.",
    ),
    "plan of a missing model": (
        ["plan", "no.keras"],
        PLAN_RULE + "'no.keras'. There is no such fi",
    ),
    "plan of a damaged model": (
        ["plan", "damaged.keras"],
        PLAN_RULE + "'damaged.keras'. Keras cannot load it: ",
    ),
    "plan of a wrapped model at other widths": (
        ["plan", "m.keras", "--w_bits", "2", "--a_bits", "float"],
        "this one is already wrapped. Received: w_bits=2, a_bits=None. Omit them",
    ),
    "plan of a width that no code has": (
        ["plan", "float.keras", "--w_bits", "9"],
        "`w_bits` must be a whole number from 2 to 8, or None for floating point. Received: w_bits",
    ),
    "plan of nothing": (
        ["plan", "float.keras", "--w_bits", "float", "--a_bits", "float"],
        "must not both be None",
    ),
    "page without suffix": (
        ["plan", "no.keras", "--html", "p.txt"],
        "Received: html='p.txt'. Appe",
    ),
    "missing file": (["inspect", "no.tflite"], "Received: path='no.tflite'. There is no such fi"),
    "damaged file": (["inspect", "damaged.tflite"], "It is cut off or damaged."),
    "other file": (["inspect", "m.keras"], "It does not carry the identifier TFL3"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_an_error_is_one_line_on_stderr_and_exit_code_2(name, folder, call, monkeypatch):
    arguments, sentence = BAD_CALLS[name]
    monkeypatch.chdir(folder)
    code, printed, error = call(*arguments)
    assert code == 2
    assert printed == ""
    assert error.count("\n") == 1
    assert sentence in error
    assert not (folder / "m.tflite").exists()


def test_a_bad_output_is_refused_before_the_model_is_loaded(folder, call):
    assert "Append .tflite." in call("export", folder / "no.keras", "m.bin")[2]


def test_an_error_of_several_lines_becomes_one(folder, call, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("The first line,\n\n    and the second.")

    monkeypatch.setattr(keras.saving, "load_model", fail)
    error = call("export", folder / "m.keras", folder / "m.tflite")[2]
    assert error.endswith("Keras cannot load it: The first line, and the second.\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["import"], "invalid choice: 'import'"),
        (["export", "m.keras"], "the following arguments are required: OUT.tflite"),
        (["export", "m.keras", "m.tflite", "--storage", "int3"], "invalid choice: 'int3'"),
        (["export", "m.keras", "m.tflite", "--io", "int4"], "invalid choice: 'int4'"),
        (
            ["export", "m.keras", "m.tflite", "--batch_size", "two"],
            "a whole number or 'any', not 'two'",
        ),
        (["plan"], "the following arguments are required: MODEL.keras"),
        (["plan", "m.keras", "--w_bits", "two"], "--w_bits: a number or 'float', not 'two'"),
        (["plan", "m.keras", "--weight_quantizer", "pact"], "invalid choice: 'pact'"),
        (["inspect"], "the following arguments are required: FILE.tflite"),
    ],
)
def test_arguments_that_do_not_fit_end_with_the_usage(arguments, sentence, call):
    code, printed, error = call(*arguments)
    assert code == 2
    assert printed == ""
    assert error.startswith("usage: python -m speq_keras")
    assert sentence in error
