"""What the containers of the weights are for each `storage`, and that the file is `predict`."""

import keras
import numpy as np
import pytest
from keras import layers

import speq_keras
from speq_keras.export.tflite.inspect import inspect
from speq_keras.export.tflite.runtimes import run_file


def dense(*, inputs=24, weight_quantizer="minmax"):
    """A calibrated network with a hidden dense layer of 2 bits, and its data."""
    keras.utils.set_random_seed(3)
    x = keras.Input((inputs,), name="x")
    y = layers.Dense(24, activation="relu", name="first")(x)
    y = layers.Dense(inputs, activation="relu", name="wide")(y)
    y = layers.Dense(8, activation="relu", name="hidden")(y)
    network = keras.Model(x, layers.Dense(5, name="last")(y))
    model = speq_keras.wrap(network, 2, 4, weight_quantizer=weight_quantizer, seed=0)
    data = np.random.default_rng(4).uniform(-1, 1, (64, inputs)).astype("float32")
    model.calibrate(data, verbose=0)
    return model, data


def row_of(report, name="hidden"):
    (row,) = [row for row in report.weights if row.name == name]
    return row


def test_two_bits_of_a_dense_layer_stay_in_the_fast_kernel_and_are_predict(tmp_path):
    model, data = dense()
    model.settle(storage="int2")
    report = model.export_tflite(tmp_path / "m.tflite", storage="int2", data=data)
    assert row_of(report).type == "int2"
    assert row_of(report).bytes == 24 * 8 / 4
    assert report.partitions.num_others == 0
    got = run_file((tmp_path / "m.tflite").read_bytes(), [data])[0]
    step = np.diff(np.unique(got)).min()  # of the output's codes
    np.testing.assert_allclose(got, model.predict(data, verbose=0), atol=step / 100)


def test_such_a_file_says_which_runtime_it_needs(tmp_path):
    model, data = dense()
    model.export_tflite(tmp_path / "m.tflite", storage="int2", data=data)
    assert inspect(tmp_path / "m.tflite").metadata["min_runtime_version"].startswith("2.21.0")


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"weight_quantizer": "sawb"}, "2 bits hold -2 to 1, and its codes go from -3 to 3"),
        ({"inputs": 22}, "the fast kernel reads 2 bits in fours, which its inputs do not fill"),
    ],
)
def test_a_dense_layer_that_does_not_fit_takes_four_bits_and_says_why(kwargs, why, tmp_path):
    model, data = dense(**kwargs)
    report = model.export_tflite(tmp_path / "m.tflite", storage="int2", data=data)
    assert (row_of(report).type, row_of(report).why) == ("int4", why)
    assert report.partitions.num_others == 0


def convolutions():
    """A calibrated network of convolutions, and its data."""
    keras.utils.set_random_seed(3)
    x = keras.Input((6, 6, 4))
    y = layers.Conv2D(8, 3, activation="relu", name="first")(x)
    y = layers.Conv2D(8, 1, activation="relu", name="hidden")(y)
    y = layers.Conv2D(8, 3, activation="relu", name="square")(y)
    y = layers.Dense(3)(layers.Flatten()(y))
    model = speq_keras.wrap(keras.Model(x, y), 2, 4, weight_quantizer="minmax", seed=0)
    data = np.random.default_rng(4).uniform(-1, 1, (16, 6, 6, 4)).astype("float32")
    model.calibrate(data, verbose=0)
    return model, data


def test_convolutions_are_stored_as_with_four_bits(tmp_path):
    model, data = convolutions()
    reports = [
        model.export_tflite(tmp_path / "m.tflite", storage=storage, data=data)
        for storage in ("int4", "int2")
    ]
    types = [[row.type for row in report.weights] for report in reports]
    assert types[0] == types[1]
    assert [row_of(reports[1], name).type for name in ("hidden", "square")] == ["int4", "int8"]


def test_a_file_that_is_another_network_on_arm_says_so(tmp_path):
    keras.utils.set_random_seed(3)
    x = y = keras.Input((8, 8, 4))
    for channels in (16, 16, 16, 9):
        y = layers.Conv2D(channels, 2, activation="relu")(y)
    model = speq_keras.wrap(keras.Model(x, y), 3, 3, seed=0)
    data = np.random.default_rng(4).uniform(-1, 1, (16, 8, 8, 4)).astype("float32")
    model.calibrate(data, verbose=0)
    report = model.export_tflite(tmp_path / "m.tflite", storage="smallest", data=data)
    assert 0 < report.on_arm.differing < 1
    assert f"{report.on_arm.differing:.2%} of the output values differ from those on x86" in str(
        report
    )
    assert "NOT the same network everywhere" in str(report)
    assert report.to_dict()["on_arm"]["differing"] == report.on_arm.differing


@pytest.mark.parametrize("storage", ["int8", "int4", "int2"])
def test_other_files_are_the_same_everywhere(storage, tmp_path):
    model, data = convolutions()
    report = model.export_tflite(tmp_path / "m.tflite", storage=storage, data=data)
    assert report.on_arm is None
    assert "everywhere" not in str(report)


def test_packed_depthwise_weights_run_wherever_apps_run_them(tmp_path):
    keras.utils.set_random_seed(3)
    x = keras.Input((8, 8, 4))
    y = layers.Conv2D(8, 3, activation="relu")(x)
    y = layers.DepthwiseConv2D(3, activation="relu", name="packed")(y)
    model = speq_keras.wrap(keras.Model(x, layers.Dense(3)(layers.Flatten()(y))), 3, 3, seed=0)
    data = np.random.default_rng(4).uniform(-1, 1, (8, 8, 8, 4)).astype("float32")
    model.calibrate(data, verbose=0)
    report = model.export_tflite(tmp_path / "m.tflite", storage="smallest", data=data)
    assert row_of(report, "packed").type == "int4"
    assert report.proof.runtimes == ("default", "compiled")
