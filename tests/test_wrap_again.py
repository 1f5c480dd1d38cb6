"""Quantized models that are extended and wrapped again."""

import sys

import keras
import numpy as np
import pytest
from keras import layers
from wrapped_networks import (
    average_pooling,
    chain,
    concatenations,
    conv,
    example_for,
    network,
    quantizers_in,
    reads,
    standard,
    values_of,
    weights_in,
    wrapped,
)

import speq_keras
from speq_keras.quantizers import ActivationQuantizer


def feature_extractor():
    """A trained, calibrated SPEQ model up to its last hidden layer."""
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, activation="relu", name="first")(inputs)
    x = layers.Dense(8, activation="relu", name="second")(x)
    x = layers.Dense(8, activation="relu", name="third")(x)
    float_model = keras.Model(inputs, layers.Dense(4, activation="softmax", name="last")(x))
    model = speq_keras.wrap(float_model, 3, 3, seed=0)
    model.calibrate(example_for(model, 16), verbose=0)
    return keras.Model(model.input, model.get_layer("third_relu_quantizer").output, name="base")


def extended(base, trainable=True):
    base.trainable = trainable
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, activation="relu", name="new")(base(inputs))
    return keras.Model(inputs, layers.Dense(2, activation="softmax", name="head")(x))


@pytest.fixture(scope="module")
def base():
    return feature_extractor()


@pytest.fixture
def further(base):
    return speq_keras.wrap(extended(base), 2, 2, seed=0)


def test_a_model_cut_out_of_a_wrapped_one_is_a_plain_functional(base):
    assert type(base) is type(network(chain))


def test_old_layers_keep_their_weight_widths(further):
    assert weights_in(further) == {
        "base.first.kernel": "MinMax 8 per channel",
        "base.second.kernel": "SAWB 3*",
        "base.third.kernel": "SAWB 3*",
        "new.kernel": "SAWB 2*",
        "head.kernel": "MinMax 8 per channel",
    }


def test_old_tensors_keep_their_quantizers_and_new_ones_get_theirs(further):
    assert quantizers_in(further) == {
        "base.x_quantizer": "x: FixedRange s8",
        "base.first_relu_quantizer": "base.first_relu: PACT u3*",
        "base.second_relu_quantizer": "base.second_relu: PACT u3*",
        "base.third_relu_quantizer": "base.third_relu: PACT u8",
        "base.third_relu_requantizer": "base.third_relu_quantizer: PACT u2*",
        "new_relu_quantizer": "new_relu: PACT u8",
        "head_quantizer": "head: PACT s8",
    }


def test_old_quantizers_keep_their_ranges(base, further):
    for layer in base.layers:
        if isinstance(layer, ActivationQuantizer):
            assert further.get_layer(f"base.{layer.name}").grid() == layer.grid()


def test_old_quantizers_stay_calibrated_and_new_ones_are_not(further):
    calibrated = [q.name for q in further.activation_quantizers if q.is_calibrated]
    assert all(name.startswith("base.") for name in calibrated)
    assert len(calibrated) == 4


def test_the_teacher_draws_in_old_quantizers_too(further):
    assert [q.name for q in further.target_quantizers] == [
        "base.first_relu_quantizer",
        "base.second_relu_quantizer",
        "base.third_relu_requantizer",
    ]


def test_old_layers_compute_what_they_computed(base, further):
    inputs = example_for(base)
    again = keras.Model(further.input, further.get_layer("base.third_relu_quantizer").output)
    np.testing.assert_array_equal(again(inputs), base(inputs))


def test_a_width_set_at_run_time_is_the_old_width():
    model = wrapped(chain)
    model.set_bits(weights=4, activations=5)
    cut = keras.Model(model.input, model.get_layer("third_relu").output)
    again = speq_keras.wrap(keras.Model(cut.input, conv(cut.output, "new")), 2, 2)
    assert weights_in(again)["second.kernel"] == "SAWB 4*"
    assert quantizers_in(again)["first_relu_quantizer"] == "first_relu: PACT u5*"


def test_an_old_concatenation_keeps_its_one_quantizer():
    model = standard(concatenations)
    cut = keras.Model(model.input, model.get_layer("join_2").output)
    x = layers.GlobalAveragePooling2D(name="mean")(cut.output)
    again = speq_keras.wrap(keras.Model(cut.input, layers.Dense(2, name="new")(x)), 2, 2)
    found = quantizers_in(again)
    assert found["first_relu_quantizer"] == "first_relu, second_relu, third_relu: PACT u2*"
    assert reads(again, "mean") == ["join_2"]


def test_an_old_average_pooling_is_rounded_once():
    model = standard(average_pooling)
    cut = keras.Model(model.input, model.get_layer("second_quantizer").output)
    again = speq_keras.wrap(keras.Model(cut.input, conv(cut.output, "new")), 2, 2)
    assert quantizers_in(again)["first_relu_quantizer"] == "first_relu, average: PACT u2*"


def test_a_frozen_extractor_is_bit_equal_after_training(base):
    model = speq_keras.wrap(extended(base, trainable=False), 2, 2, seed=0)
    base.trainable = True
    old = [v for layer in base.layers[1:] for v in model.get_layer(f"base.{layer.name}").variables]
    before = values_of(old)
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    with pytest.warns(UserWarning, match="not calibrated"):
        model.fit(example_for(model, 8), np.arange(8) % 2, epochs=2, batch_size=4, verbose=0)
    for a, b in zip(values_of(old), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_new_layers_over_a_frozen_extractor_are_trained(base):
    model = speq_keras.wrap(extended(base, trainable=False), 2, 2, distillation=None)
    base.trainable = True
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {
        "base.third_relu_requantizer",
        "new",
        "new_relu_quantizer",
        "head",
        "head_quantizer",
    }


def test_a_graph_with_more_than_a_thousand_operations_in_a_row_is_wrapped_and_loaded(tmp_path):
    # Python stops functions that call themselves a thousand times, as Keras does on such a graph.
    limit = sys.getrecursionlimit()
    x = y = keras.Input((2,))
    for _ in range(limit // 3 + 50):
        y = layers.Dense(2, activation="relu")(y)
    model = speq_keras.wrap(keras.Model(x, y), 3, 3, distillation=None)
    assert len(model.layers) > limit
    model.save(tmp_path / "deep.keras")
    assert len(keras.saving.load_model(tmp_path / "deep.keras").layers) == len(model.layers)
    assert sys.getrecursionlimit() == limit
