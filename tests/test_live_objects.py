"""The float model of networks with functions and classes that nobody registered."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")


def tripled(x):
    return 3.0 * x


def halved_relu(x):
    return 0.5 * ops.relu(x)


class Shift(layers.Layer):
    """Is taken apart: the wrapped model has no such layer any more."""

    def call(self, x):
        return x + 1.0


class Sorted(layers.Layer):
    """Stays whole."""

    def call(self, x):
        return ops.sort(x, axis=-1)


def nested(x):
    inner = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: x - 1.0, name="same")])
    return inner(layers.Lambda(lambda x: x + 2.0, name="same")(x))


BODIES = {
    "a lambda": lambda x: layers.Lambda(lambda x: 2.0 * x)(x),
    "a lambda that reads a variable": lambda x, factor=5.0: layers.Lambda(lambda x: factor * x)(x),
    "a function": lambda x: layers.Lambda(tripled)(x),
    "two lambdas": lambda x: layers.Lambda(tripled)(layers.Lambda(lambda x: x - 1.0)(x)),
    "lambdas of the same name, one in a nested model": nested,
    "an activation": lambda x: layers.Dense(4, activation=halved_relu)(x),
    "an activation layer": lambda x: layers.Activation(halved_relu)(x),
    "a class that is taken apart": lambda x: Shift()(x),
    "a class that stays whole": lambda x: Sorted()(x),
}


def network(body):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(4)(layers.Dense(4)(inputs))
    return keras.Model(inputs, layers.Dense(2)(body(x)))


@pytest.mark.parametrize("body", BODIES)
def test_the_float_model_computes_what_was_wrapped(body):
    model = network(BODIES[body])
    wrapped = speq_keras.wrap(model, 3, 3, distillation=None)
    np.testing.assert_array_equal(wrapped.float_model()(X), model(X))


def test_float_weights_come_from_a_file_where_there_is_a_lambda(tmp_path):
    model = network(BODIES["a lambda"])
    wrapped = speq_keras.wrap(model, 3, 3, distillation=None)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    model.save_weights(tmp_path / "m.weights.h5")
    wrapped.load_float_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(wrapped.float_model()(X), model(X))


def test_a_loaded_model_has_the_functions_of_its_own_lambdas(tmp_path):
    model = network(BODIES["a lambda"])
    speq_keras.wrap(model, 3, 3, distillation=None).save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", safe_mode=False)
    np.testing.assert_array_equal(loaded.float_model()(X), model(X))


def test_code_in_a_config_is_not_run():
    wrapped = speq_keras.wrap(network(lambda x: x), 3, 3, distillation=None)
    other = speq_keras.wrap(network(BODIES["a lambda"]), 3, 3, distillation=None)
    # As a file could have it: a graph without a Lambda, and a config with one.
    config = other.provenance.float_config
    wrapped._provenance = dataclasses.replace(wrapped.provenance, float_config=config)
    with pytest.raises(ValueError, match="must be reproducible from its config.*register_keras_s"):
        wrapped.float_model()


def test_what_a_loaded_model_does_not_know_is_named(tmp_path):
    wrapped = speq_keras.wrap(network(BODIES["a class that is taken apart"]), 3, 3, seed=0)
    wrapped.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="Received: model='functional.*Could not locate class 'Sh"):
        loaded.float_model()
