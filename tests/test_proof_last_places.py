"""What subtracts a mean of nearly equal values: its result is the last places of float32.

Keras and the kernels are off by some of them, each in its own way, and the proof allows for that:
by what the trained layers make of inputs whose last places are others, so that it depends on the
values, and is nothing where they differ.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

NORMS = {
    "layer": lambda x: layers.LayerNormalization()(x),
    "layer, ReLU": lambda x: layers.ReLU()(layers.LayerNormalization(scale=False)(x)),
    "layer, two axes": lambda x: layers.LayerNormalization(axis=(1, 2))(x),
    "group": lambda x: layers.GroupNormalization(1)(x),
    "variance": lambda x: ops.var(x, axis=-1, keepdims=True),
    "deviation": lambda x: ops.std(x, axis=-1, keepdims=True),
}


def proof_of(name, x, tmp_path):
    """Returns the proof of a norm over the five columns of a row, and a Dense."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(x.shape[1:])
    y = layers.Reshape((1, 5))(layers.Dense(5, name="columns")(inputs))
    network = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(NORMS[name](y))))
    kernel, bias = network.get_layer("columns").weights
    kernel.assign(np.ones(kernel.shape) if x.shape[1] == 1 else np.eye(5))
    bias.assign(np.zeros(5))
    model = speq_keras.wrap(network, 8, 8, distillation=None, seed=0)
    model.calibrate(x, verbose=0)
    return model.export_tflite(tmp_path / "m.tflite", data=x, strict=False).proof


@pytest.mark.parametrize("name", NORMS)
def test_norms_of_equal_values_are_no_failure(name, tmp_path):
    """All five columns are the same large number."""
    x = np.random.default_rng(0).uniform(0.5e4, 1e4, (64, 1)).astype("float32")
    proof = proof_of(name, x, tmp_path)
    assert proof.holds, proof.first_failure()


@pytest.mark.parametrize("name", NORMS)
def test_where_values_differ_the_last_places_are_nothing(name, tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    proof = proof_of(name, x, tmp_path)
    assert proof.holds, proof.first_failure()
    # Half a step, 255 / 8192 for the order of sums in float, and a hundredth for the last places.
    assert all(row.allowed < 0.5 + 255 / 8192 + 0.01 for row in proof.tensors)


ONE_VALUE = {
    "layer": layers.LayerNormalization,
    "layer, two axes": lambda: layers.LayerNormalization(axis=(2, 3)),
    "group": lambda: layers.GroupNormalization(2),
}


@pytest.mark.parametrize("name", ONE_VALUE)
def test_a_norm_of_a_single_value_is_its_offset(name, tmp_path):
    keras.utils.set_random_seed(0)
    channels = 2 if name == "group" else 1
    shape = (1, 1, channels) if name == "group" else (8, 1, 1)
    inputs = keras.Input(shape)
    y = ONE_VALUE[name]()(layers.Add()([inputs, 2.0 * inputs, ops.softplus(inputs)]))
    network = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(y)))
    norm = next(layer for layer in network.layers if "normalization" in layer.name)
    norm.beta.assign(np.full(norm.beta.shape, 0.0568))
    model = speq_keras.wrap(network, 8, 8, distillation=None, seed=0)
    x = np.random.default_rng(0).integers(0, 256, (64, *shape)).astype("float32")
    model.calibrate(x, verbose=0)
    proof = model.export_tflite(tmp_path / "m.tflite", data=x, strict=False).proof
    assert proof.holds, proof.first_failure()
