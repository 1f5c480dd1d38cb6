"""`wrap`: what a quantized model takes over, and that the float model stays as it was."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops
from wrapped_networks import (
    at_float,
    chain,
    conv,
    example_for,
    nested,
    network,
    separable,
    standard,
    weights_in,
    with_random_statistics,
    wrapped,
)

import speq_keras
from speq_keras import QuantizedLayer

# ---- what is carried over ---------------------------------------------------------------------


def test_float_weights_are_carried_over_bit_for_bit():
    float_model = with_random_statistics(network(chain))
    model = speq_keras.wrap(float_model, 2, 2)
    for layer in float_model.layers:
        mine = model.get_layer(layer.name)
        mine = mine.layer if isinstance(mine, QuantizedLayer) else mine
        for a, b in zip(mine.get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_weights_of_a_separable_convolution_are_carried_over_to_its_parts():
    float_model = network(separable)
    model = speq_keras.wrap(float_model, 2, 2)
    depthwise, pointwise, bias = float_model.get_layer("second").get_weights()
    np.testing.assert_array_equal(model.get_layer("second_depthwise").layer.kernel, depthwise)
    np.testing.assert_array_equal(model.get_layer("second").layer.kernel, pointwise)
    np.testing.assert_array_equal(model.get_layer("second").layer.bias, bias)


def test_weights_of_nested_models_are_carried_over():
    float_model = nested()
    model = speq_keras.wrap(float_model, 2, 2)
    inner = float_model.get_layer("outer").get_layer("inner").get_layer("dense")
    np.testing.assert_array_equal(model.get_layer("outer.inner.dense").layer.kernel, inner.kernel)


def test_trained_weight_ranges_start_from_the_float_weights():
    model = wrapped(chain, weight_quantizer="lsq")
    layer = model.get_layer("second")
    # 2 mean|w| / sqrt(Q_P), and Q_P = 1 at two bits
    start = 2 * np.abs(np.asarray(layer.layer.kernel)).mean()
    np.testing.assert_allclose(float(ops.max(layer.quantizers["kernel"].scale)), start, rtol=1e-6)


def test_dtype_policies_are_carried_over():
    def body(x):
        x = layers.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16", name="first")(x)
        return layers.Conv2D(2, 3, name="last")(x)

    model = wrapped(body)
    names = ["first", "last"]
    assert [model.get_layer(n).layer.dtype_policy.name for n in names] == [
        "mixed_bfloat16",
        "float32",
    ]


def test_an_activity_regularizer_regularizes_what_it_did_before():
    def body(x):
        x = layers.Conv2D(4, 3, activation="relu", activity_regularizer="l2", name="first")(x)
        x = layers.SeparableConv2D(4, 3, activity_regularizer="l1", name="second")(x)
        x = layers.Conv2D(4, 1, activation="swish", activity_regularizer="l2", name="third")(x)
        return layers.Conv2D(2, 1, name="last")(x)

    float_model = network(body)
    model = at_float(speq_keras.wrap(float_model, 2, 2, boundary_bits=None))
    inputs = example_for(float_model)
    float_model(inputs), model(inputs)
    np.testing.assert_allclose(
        sorted(map(float, model.losses)), sorted(map(float, float_model.losses)), rtol=1e-5
    )


def test_regularizers_and_constraints_of_a_separable_convolution_go_to_its_parts():
    def body(x):
        arguments = {
            f"{part}_{kind}": value
            for part in ("depthwise", "pointwise", "bias")
            for kind, value in (("regularizer", "l2"), ("constraint", "non_neg"))
        }
        return conv(layers.SeparableConv2D(4, 3, name="first", **arguments)(x), "last")

    model = wrapped(body)
    depthwise, pointwise = (model.get_layer(n).layer for n in ("first_depthwise", "first"))
    variables = [depthwise.kernel, pointwise.kernel, pointwise.bias]
    assert all(v.regularizer is not None and v.constraint is not None for v in variables)


def test_frozen_layers_stay_frozen():
    float_model = network(chain)
    float_model.get_layer("second").trainable = False
    model = speq_keras.wrap(float_model, 2, 2)
    assert [w.path for w in model.get_layer("second").trainable_weights] == []


def test_a_wrapped_sequential_takes_what_the_sequential_took():
    float_model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)])
    model = speq_keras.wrap(float_model, 2, 2, distillation=None)
    assert model(np.ones((5, 4), "float32")).shape == (5, 2)


def test_the_model_has_the_float_models_name():
    assert standard(chain).name == "network"


def test_the_model_takes_another_name():
    assert wrapped(chain, name="quantized").name == "quantized"


# ---- the float model is not changed -----------------------------------------------------------


def snapshot(model):
    """Config, weights and number of calls of all layers."""
    return {
        "config": json.dumps(model.get_config(), sort_keys=True, default=str),
        "weights": [np.array(w) for w in model.get_weights()],
        # Private, and the only place where Keras keeps the calls of a layer.
        "calls": {layer.name: len(layer._inbound_nodes) for layer in model.layers},
        "trainable": [v.path for v in model.trainable_variables],
    }


@pytest.fixture(scope="module")
def after_training():
    """A float model with everything in it: before, and after its wrapped model was trained."""
    float_model = with_random_statistics(network(chain))
    inputs = example_for(float_model)
    before = snapshot(float_model), np.array(float_model(inputs))
    model = speq_keras.wrap(float_model, 2, 2)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    model.calibrate(inputs, verbose=0)
    model.train_on_batch(inputs, np.array([0, 1, 2]))
    return before, (snapshot(float_model), np.array(float_model(inputs)))


@pytest.mark.parametrize("what", ["config", "calls", "trainable"])
def test_wrapping_and_training_leave_the_float_model_alone(after_training, what):
    (before, _), (after, _) = after_training
    assert after[what] == before[what]


def test_wrapping_and_training_leave_the_float_weights_alone(after_training):
    (before, _), (after, _) = after_training
    for a, b in zip(after["weights"], before["weights"], strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrapping_and_training_leave_the_float_outputs_alone(after_training):
    (_, before), (_, after) = after_training
    np.testing.assert_array_equal(after, before)


def test_a_float_model_is_wrapped_twice():
    float_model = network(chain)
    two, four = (speq_keras.wrap(float_model, bits, bits) for bits in (2, 4))
    assert (weights_in(two)["second.kernel"], weights_in(four)["second.kernel"]) == (
        "SAWB 2*",
        "SAWB 4*",
    )
