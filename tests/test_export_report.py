"""What an export tells: the report's numbers, each computed again from the file."""

import gzip
import json
import re

import keras
import numpy as np
import pytest
from keras import layers

import speq_keras
from speq_keras.export.tflite.runtimes import missing_reason, run_file

EXAMPLES, CLASSES = 24, 5


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    inputs = rng.uniform(-1, 2, (EXAMPLES, 10, 10, 3)).astype("float32")
    return inputs, rng.integers(0, CLASSES, EXAMPLES)


@pytest.fixture(scope="module")
def model(data):
    keras.utils.set_random_seed(2)
    x = keras.Input((10, 10, 3), name="image")
    y = layers.Conv2D(8, 3, use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Conv2D(8, 3, padding="same", activation="relu")(y)
    y = layers.DepthwiseConv2D(3, activation="relu")(y)
    y = layers.Dense(CLASSES, name="label")(layers.GlobalAveragePooling2D()(y))
    model = speq_keras.wrap(keras.Model(x, y), w_bits=4, a_bits=4)
    model.calibrate(data[0], verbose=0)
    return model


@pytest.fixture(scope="module")
def exported(model, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "m.tflite"
    runtimes = [name for name in ("builtin", "reference", "micro") if not missing_reason(name)]
    report = model.export_tflite(path, data=data, runtimes=runtimes)
    return report, path.read_bytes()


def test_sizes_are_those_of_the_file(exported):
    report, content = exported
    assert (report.bytes, report.gzip_bytes) == (len(content), len(gzip.compress(content)))


def test_accuracies_are_those_of_training_graph_and_file(model, data, exported):
    report, content = exported
    trained = np.mean(model.predict(data[0], verbose=0).argmax(axis=-1) == data[1])
    file = np.mean(run_file(content, data[0])[0].argmax(axis=-1) == data[1])
    assert report.accuracy.examples == EXAMPLES
    assert report.accuracy.trained == pytest.approx(trained)
    assert report.accuracy.file == report.accuracy.folded == pytest.approx(file)


def test_without_labels_there_is_no_accuracy(model, data, tmp_path):
    report = model.export_tflite(tmp_path / "m.tflite", data=data[0])
    assert report.accuracy is None
    assert "accuracy on" not in str(report)


@pytest.mark.parametrize("runtime", ["builtin", "reference", "micro"])
def test_other_runtimes_are_compared_with_the_default_one(exported, data, runtime):
    if missing_reason(runtime):
        pytest.skip(missing_reason(runtime))
    report, content = exported
    expected, got = (run_file(content, data[0], runtime=r)[0] for r in ("default", runtime))
    (row,) = (row for row in report.other_runtimes if row.runtime == runtime)
    assert row.differing == pytest.approx(np.mean(expected != got))
    assert row.largest == pytest.approx(np.max(np.abs(expected - got)), rel=1e-5)
    assert row.agreement == np.mean(expected.argmax(axis=-1) == got.argmax(axis=-1))
    assert f"{runtime} kernels, which round twice: " in str(report)


def test_double_rounding_moves_some_values_and_few_classes(exported):
    report, _ = exported
    assert any(0 < row.differing < 1 for row in report.other_runtimes)
    assert all(row.agreement > 0.8 for row in report.other_runtimes)


def test_a_report_is_plain_values(exported):
    plain = exported[0].to_dict()
    assert json.loads(json.dumps(plain)) == plain


def test_the_c_array_has_the_bytes_of_the_file(exported, tmp_path):
    report, content = exported
    assert report.to_c_array(tmp_path / "m.cc") is None
    values = re.findall(r"0x(..),", (tmp_path / "m.cc").read_text())
    assert bytes.fromhex("".join(values)) == content


def test_the_text_names_every_layer_with_weights(model, exported):
    text = str(exported[0])
    assert all(layer.name in text for layer in model.layers if hasattr(layer, "quantizers"))
