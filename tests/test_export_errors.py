"""What cannot be exported: the sentence says why, nothing is written, and an old file stays."""

import importlib
import os
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import speq_keras
from speq_keras.export.tflite.network import Tensor

# The package's attribute of that name is the function.
export_module = importlib.import_module("speq_keras.export.export")

SHAPE = (6, 6, 3)
OLD = b"the file before"


def small_model(body=lambda x: x, shape=SHAPE, **kwargs):
    keras.utils.set_random_seed(1)
    x = keras.Input(shape)
    y = layers.Conv2D(4, 3, activation="relu", name="first")(x)
    y = layers.Conv2D(4, 1, name="middle")(body(y))
    y = layers.GlobalAveragePooling2D(name="pooled")(y)
    outputs = layers.Dense(3, activation="softmax", name="last")(y)
    return speq_keras.wrap(keras.Model(x, outputs, name="small"), 3, 3, seed=0, **kwargs)


def examples(count=4, shape=SHAPE):
    return np.random.default_rng(0).uniform(-1, 2, (count, *shape)).astype("float32")


@pytest.fixture(scope="module")
def model():
    model = small_model()
    model.calibrate(examples(), verbose=0)
    return model


@pytest.fixture
def path(tmp_path):
    """A file that was there before."""
    path = tmp_path / "m.tflite"
    path.write_bytes(OLD)
    return path


@pytest.fixture(autouse=True)
def nothing_is_written(tmp_path):
    yield
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names in ([], ["m.tflite"])
    if names:
        assert (tmp_path / "m.tflite").read_bytes() == OLD


# ---- arguments ---------------------------------------------------------------------------------

ARGUMENTS = {
    "unknown storage": ({"storage": "int3"}, "`storage` must be .*int8.*storage='int3'"),
    "storage of another type": ({"storage": 8}, "`storage` must be .*storage=8"),
    "unknown io": ({"io": "float16"}, "`io` must be .*uint8.*io='float16'"),
    "batch size zero": (
        {"batch_size": 0},
        "whole number from 1 to 2147483647, or None.*batch_size=0. None writes .*strict=True",
    ),
    "batch size beyond int32": ({"batch_size": 2**31}, "from 1 to 2147483647.*=2147483648"),
    "batch size beyond 2 GiB": ({"batch_size": 2**30}, "whole number from 1 to .*=1073741824"),
    "no data": ({"data": []}, "`data` must"),
    "data without examples": ({"data": examples(0)}, "at least one example"),
    "data sets without batches": ({"data": iter(())}, "at least one example"),
    "data of another shape": (
        {"data": examples(2, (6, 5, 3))},
        r"shapes \[\(None, 6, 6, 3\)\].*6, 5, 3",
    ),
    "data without a batch axis": (
        {"data": examples()[0]},
        r"examples first.*\[\(6, 6, 3\)\].*x\[None\]",
    ),
    "data that is not finite": ({"data": np.full((2, *SHAPE), np.nan, "float32")}, "finite"),
    "two inputs for one": ({"data": [[examples()] * 4]}, "x, .* Received: a list of 4"),
    "an unknown runtime": ({"runtimes": ["gpu"]}, "`runtimes` must be one of 'default', .*'gpu'"),
    "self test of another type": ({"self_test": "t.json"}, "`self_test` must be .*ends in .npz"),
    "self test in a missing folder": ({"self_test": "no_folder/t.npz"}, "Create 'no_folder' first"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_that_is_not_allowed_is_named(model, path, name):
    arguments, sentence = ARGUMENTS[name]
    with pytest.raises(ValueError, match=f"(?s){sentence}"):
        model.export_tflite(path, **arguments)


@pytest.mark.parametrize("name", ["batch_size", "softmax", "strict", "runtimes"])
@pytest.mark.parametrize("value", [2.5, b"", "no"])
def test_an_argument_of_another_type_is_named(model, path, name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be .* Received: {name}="):
        model.export_tflite(path, **{name: value})


def test_runtimes_are_a_list(model, path):
    with pytest.raises(TypeError, match=r"must be a list of names.*Pass runtimes=\['builtin'\]"):
        model.export_tflite(path, runtimes="builtin")


def test_a_runtime_that_is_not_installed_is_named_before_any_work(path, monkeypatch):
    monkeypatch.setattr(export_module, "missing_reason", lambda runtime: f"no {runtime} here")
    with pytest.raises(RuntimeError, match="no micro here"):
        small_model().export_tflite(path, runtimes=["micro"])  # not calibrated either


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("m.txt", "Append .tflite"), ("no/m.tflite", "Create .* first"), ("", "ends in .tflite")],
)
def test_a_path_that_cannot_be_written_to_is_refused(model, tmp_path, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.export_tflite(tmp_path / name if name else "")


def test_what_is_no_path_is_a_type_error(model):
    with pytest.raises(TypeError, match="`path` must be a file.*path=3"):
        model.export_tflite(3)


def test_the_path_is_checked_before_the_model_is_looked_at(tmp_path):
    with pytest.raises(ValueError, match="Append .tflite"):
        small_model().export_tflite(tmp_path / "m.h5")


def test_export_to_litert_checks_the_path_too(model, tmp_path):
    with pytest.raises(ValueError, match="Append .tflite"):
        model.export(tmp_path / "m.bin", format="litert")


@pytest.mark.parametrize(
    "thing", [keras.Sequential([keras.Input((3,)), layers.Dense(2)]), "m.keras"]
)
def test_what_is_no_speq_model_cannot_be_folded(thing):
    with pytest.raises(TypeError, match="`model` must be a SPEQModel.*speq_keras.wrap"):
        speq_keras.fold(thing)


# ---- models ------------------------------------------------------------------------------------


def test_a_model_that_was_never_calibrated_is_refused(path):
    with pytest.raises(RuntimeError, match="(?s)calibrated or trained.*'small'.*model.calibrate"):
        small_model().export_tflite(path)


def test_activations_in_float_are_refused(path):
    model = small_model()
    model.calibrate(examples(), verbose=0)
    model.set_bits(activations=None)
    with pytest.raises(ValueError, match="(?s)2 to 8 bits.*activations in float.*set_bits"):
        model.export_tflite(path)


def test_weights_that_diverged_are_refused_and_named(path):
    model = small_model()
    model.calibrate(examples(), verbose=0)
    kernel = model.trainable_variables[0]
    kernel.assign(kernel * float("nan"))
    with pytest.raises(ValueError, match=f"(?s)must be finite.*{kernel.path}.*lower learning rate"):
        model.export_tflite(path)


def test_open_sizes_are_refused(path):
    model = small_model(shape=(None, None, 3))
    model.calibrate(examples(), verbose=0)
    with pytest.raises(ValueError, match=r"(?s)sizes must be known.*\(None, None, None, 3\)"):
        model.export_tflite(path)


def test_two_layers_without_a_kernel_are_both_named(path):
    def body(x):
        a = keras.ops.sort(layers.Conv2D(4, 1)(x), axis=1)
        b = keras.ops.argsort(layers.Conv2D(4, 1)(x), axis=1)
        b = keras.ops.cast(b, "float32")
        return layers.Concatenate()([a, b])

    model = small_model(body)
    model.calibrate(examples(), verbose=0)
    with pytest.raises(ValueError, match=r"(?s)\(Argsort\): .*\(Sort\): "):
        model.export_tflite(path)


def test_a_recurrent_convolution_is_refused(path):
    def body(x):
        x = layers.Reshape((4, 4, 4))(x)
        return layers.ConvLSTM1D(4, 1, return_sequences=True, name="memory")(x)

    model = small_model(body)
    model.calibrate(examples(), verbose=0)
    with pytest.raises(ValueError, match=r"'memory' \(ConvLSTM1D\): "):
        model.export_tflite(path)


def test_a_table_that_is_read_by_floats_is_refused(path):
    x = keras.Input((5,))
    y = layers.Dense(4)(layers.Flatten()(layers.Embedding(7, 3, name="words")(x)))
    model = speq_keras.wrap(keras.Model(x, y), 3, 3, seed=0)
    model.calibrate(np.float32(np.arange(20).reshape(4, 5) % 7), verbose=0)
    with pytest.raises(ValueError, match=r"'words' \(Embedding\): only whole numbers"):
        model.export_tflite(path)


# ---- files that do not compute the network -----------------------------------------------------


def write_with_one_weight_flipped(network, **kwargs):
    weights = next(name for name in network.tensors if name.endswith("/weights"))
    tensor = network.tensors[weights]
    data = tensor.data.copy()
    data.reshape(-1)[0] = -data.reshape(-1)[0] if data.reshape(-1)[0] else 127
    wrong = dict(network.tensors)
    wrong[weights] = Tensor(**{**vars(tensor), "data": data})
    changed = type(network)(**{**vars(network), "tensors": wrong})
    return real_write(changed, **kwargs)


real_write = export_module.write


@pytest.fixture
def flipped_weight(monkeypatch):
    monkeypatch.setattr(export_module, "write", write_with_one_weight_flipped)
    session_module = importlib.import_module("speq_keras.export.session")
    monkeypatch.setattr(session_module, "write", write_with_one_weight_flipped)


def test_a_file_with_one_wrong_weight_is_an_error(model, path, flipped_weight):
    with pytest.raises(
        RuntimeError, match="(?s)does not compute.*in tensor.*after first.*Nothing was"
    ):
        model.export_tflite(path)


def test_without_strict_a_wrong_file_is_written_and_reported(model, path, flipped_weight):
    report = model.export_tflite(path, strict=False)
    assert report.proof.mismatches > 0
    assert not report.proof.holds
    assert path.read_bytes() != OLD
    path.write_bytes(OLD)


KILLED = """
import os, signal, sys
import keras, numpy as np, speq_keras
from speq_keras import files

def killed(*args):
    os.kill(os.getpid(), signal.SIGKILL)

dense = [keras.layers.Dense(4), keras.layers.Dense(2)]
model = speq_keras.wrap(keras.Sequential([keras.Input((3,)), *dense]), 3, 3)
model.calibrate(np.ones((2, 3), "float32"), verbose=0)
files.os.fsync = killed
model.export_tflite(sys.argv[1])
"""


def test_an_export_that_is_killed_in_the_middle_leaves_the_old_file(path):
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        capture_output=True,
        check=False,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
    )
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == OLD
    for left in path.parent.glob(".speq_*"):  # hidden, never under the final name
        shutil.rmtree(left)
