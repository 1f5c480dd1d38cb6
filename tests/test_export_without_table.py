"""Functions that kernels or sums compute, where that gives the codes of a table."""

import keras
import numpy as np
import pytest
from keras import activations, layers, ops

import speq_keras
from speq_keras.export.tflite.runtimes import partitions

SIDE, CHANNELS, CLASSES = 6, 8, 3
# The function, and the operators of its file beside those of the other layers.
FUNCTIONS = {
    "hard sigmoid": (layers.Activation("hard_sigmoid"), {"MUL", "ADD"}),
    "hard swish": (layers.Activation("hard_swish"), {"MUL", "ADD"}),
    "ops.hard_silu": (ops.hard_silu, {"MUL", "ADD"}),
    "leaky 0.3": (layers.LeakyReLU(negative_slope=0.3), {"LEAKY_RELU"}),
    "leaky 0.1": (layers.LeakyReLU(negative_slope=0.1), {"LEAKY_RELU"}),
    "leaky 0.01": (layers.LeakyReLU(negative_slope=0.01), {"MUL", "ADD"}),
    "sloping ReLU": (layers.ReLU(negative_slope=0.2), {"LEAKY_RELU"}),
    "slope above 1": (layers.LeakyReLU(negative_slope=1.5), {"LEAKY_RELU"}),
    "ops.leaky_relu": (ops.leaky_relu, {"LEAKY_RELU"}),
    "leaky by name": (layers.Activation("leaky_relu"), {"LEAKY_RELU"}),
    "relu with a slope": (lambda x: activations.relu(x, negative_slope=0.3), {"LEAKY_RELU"}),
    "ELU": (layers.ELU(), {"ELU"}),
    "GELU": (layers.Activation("gelu"), {"GELU"}),
    "GELU of tanh": (lambda x: ops.gelu(x, approximate=True), {"GELU"}),
    # No kernel has these.
    "ELU of 0.5": (layers.ELU(alpha=0.5), {"CAST", "ADD", "GATHER"}),
    "mish": (layers.Activation("mish"), {"CAST", "ADD", "GATHER"}),
}
OTHERS = {"QUANTIZE", "CONV_2D", "RESHAPE", "FULLY_CONNECTED", "DEQUANTIZE"}


def data(count=24):
    return np.random.default_rng(count).normal(size=(count, SIDE, SIDE, 3)).astype("float32") * 2


def prepared(function, a_bits=8, settles=True):
    keras.utils.set_random_seed(1)
    x = keras.Input((SIDE, SIDE, 3))
    y = function(layers.Conv2D(CHANNELS, 3, name="first")(x))
    y = layers.Flatten()(layers.Conv2D(4, 2, name="second")(y))
    network = keras.Model(x, layers.Dense(CLASSES, name="last")(y))
    model = speq_keras.wrap(network, 8, a_bits, distillation=None)
    model.calibrate(data(), verbose=0)
    if settles:
        model.settle()
    return model


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_file_has_the_operators_that_are_known_and_is_the_network(name, tmp_path):
    function, operators = FUNCTIONS[name]
    model = prepared(function)
    report = model.export_tflite(tmp_path / "m.tflite", data=data())
    assert report.proof.holds
    found = partitions((tmp_path / "m.tflite").read_bytes())
    assert {*found.delegated, *found.others} - OTHERS == operators
    is_delegated = not operators & {"GELU", "GATHER"}
    assert (found.partitions == 1 and found.num_others == 0) == is_delegated
    # The trained graph itself computes the same; sums of floats are its own.
    folded = speq_keras.fold(model).predict(data(40))
    near = np.isclose(folded, model.predict(data(40), verbose=0), atol=1e-4)
    assert np.mean(near) > 0.98


@pytest.mark.parametrize("name", ["hard swish", "leaky 0.1", "ELU", "GELU", "hard sigmoid"])
def test_narrow_outputs_are_exact_too(name, tmp_path):
    model = prepared(FUNCTIONS[name][0], a_bits=3)
    report = model.export_tflite(tmp_path / "m.tflite", data=data())
    assert report.proof.holds
    found = partitions((tmp_path / "m.tflite").read_bytes())
    assert "GATHER" not in {*found.delegated, *found.others}


@pytest.mark.parametrize("options", [{"io": "int8"}, {"runtimes": ["micro"]}], ids=str)
def test_a_microcontroller_has_no_gelu(options, tmp_path):
    if "runtimes" in options:
        pytest.importorskip("tflite_micro")
    model = prepared(layers.Activation("gelu"))
    report = model.export_tflite(tmp_path / "m.tflite", data=data(), **options)
    assert report.proof.holds
    assert "GATHER" in report.micro.operators
    assert "GELU" not in report.micro.operators


def operators_of(model, path, **options):
    report = model.export_tflite(path, data=data(), **options)
    assert report.proof.holds
    found = partitions(path.read_bytes())
    return {*found.delegated, *found.others} - OTHERS


def test_a_leaky_relu_that_is_not_settled_is_a_sum(tmp_path):
    model = prepared(layers.LeakyReLU(negative_slope=0.1), settles=False)
    assert operators_of(model, tmp_path / "m.tflite") == {"MUL", "ADD"}


def test_training_makes_a_leaky_relu_a_sum_until_it_is_settled_again(tmp_path):
    model = prepared(layers.LeakyReLU(negative_slope=0.1))
    model.get_layer("first_quantizer").multiply_scale(1.001)
    assert operators_of(model, tmp_path / "m.tflite") == {"MUL", "ADD"}
    model.settle()
    assert operators_of(model, tmp_path / "m.tflite") == {"LEAKY_RELU"}


@pytest.mark.parametrize(
    ("options", "operators"),
    [({"io": "int8"}, {"MUL", "ADD"}), ({"runtimes": ["micro"]}, {"CAST", "ADD", "GATHER"})],
    ids=["io", "runtimes"],
)
def test_a_microcontroller_rounds_a_leaky_relu_once(options, operators, tmp_path):
    if "runtimes" in options:
        pytest.importorskip("tflite_micro")
    model = prepared(layers.LeakyReLU(negative_slope=0.1))
    assert operators_of(model, tmp_path / "m.tflite", **options) == operators


def test_leaky_relus_are_layers_whose_slope_can_move():
    keras.utils.set_random_seed(0)
    x = keras.Input((SIDE, SIDE, 3))
    y = layers.Conv2D(4, 1, activation="leaky_relu", activity_regularizer="l2", name="conv")(x)
    y = layers.Conv2D(4, 1, name="other")(layers.Activation("leaky_relu", name="by_name")(y))
    network = keras.Model(x, layers.Conv2D(4, 1)(ops.leaky_relu(y, 0.4)))
    model = speq_keras.wrap(network, 8, 8, distillation=None)
    found = [layer for layer in model.layers if type(layer) is layers.LeakyReLU]
    assert [layer.negative_slope for layer in found] == [0.2, 0.2, 0.4]
    assert [layer.name for layer in found[:2]] == ["conv_leaky_relu", "by_name"]
    assert model.get_layer("conv_leaky_relu").activity_regularizer is not None
    assert model.get_layer("conv").layer.activity_regularizer is None
    # Skipped, or in a network whose activations stay float, they are what they were.
    skipped = speq_keras.wrap(network, 8, 8, distillation=None, skip=["by_name"])
    assert type(skipped.get_layer("by_name")) is layers.Activation
    weights = speq_keras.wrap(network, 8, None, distillation=None)
    assert type(weights.get_layer("by_name")) is layers.Activation


def test_a_hard_swish_is_a_product_with_its_gate():
    keras.utils.set_random_seed(0)
    x = keras.Input((SIDE, SIDE, 3))
    network = keras.Model(x, layers.Conv2D(4, 1, activation="hard_swish", name="conv")(x))
    model = speq_keras.wrap(network, 8, 8, distillation=None)
    names = {layer.name: type(layer).__name__ for layer in model.layers}
    assert names["conv_hard_silu_hard_sigmoid"] == "Activation"
    assert names["conv_hard_silu"] == "Multiply"
    grid = model.get_layer("conv_hard_silu_hard_sigmoid_quantizer").grid()
    assert (float(grid[0]), grid[1], grid[2]) == (1 / 256, 0, 255)


def test_a_gate_beside_larger_numbers_is_exact(tmp_path):
    """A Concatenate has one grid for both, which does not end at 1."""
    keras.utils.set_random_seed(0)
    x = keras.Input((SIDE, SIDE, 3))
    y = layers.Conv2D(CHANNELS, 3, name="first")(x)
    y = layers.Concatenate()([layers.Activation("hard_sigmoid")(y), y * 3.0])
    network = keras.Model(x, layers.Dense(CLASSES, name="last")(layers.Flatten()(y)))
    model = speq_keras.wrap(network, 8, 8, distillation=None)
    model.calibrate(data(), verbose=0)
    model.settle()
    assert model.export_tflite(tmp_path / "m.tflite", data=data()).proof.holds
    folded = speq_keras.fold(model).predict(data(40))
    near = np.isclose(folded, model.predict(data(40), verbose=0), atol=1e-4)
    assert np.mean(near) > 0.98
