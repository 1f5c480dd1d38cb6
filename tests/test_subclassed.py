"""Subclassed models: the graph of their `call`, their weights, and what cannot be read."""

import fresh_process
import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras


def data(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


class Block(layers.Layer):
    """Without a config from which it could be made again: it asks for a function."""

    def __init__(self, units, function, **kwargs):
        super().__init__(**kwargs)
        self.units, self.function = units, function
        self.dense = layers.Dense(units, name="dense")
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, x, training=False):
        return x + self.function(self.norm(self.dense(x), training=training))


class Network(keras.Model):
    """Layers in a list and a dict, a variable of its own, dropout; no config."""

    def __init__(self, head):
        super().__init__(name="network")
        self.blocks = [Block(6, ops.relu, name=f"block{i}") for i in range(2)]
        self.more = {"drop": layers.Dropout(0.5, name="drop"), "head": head}

    def build(self, shape):
        self.gamma = self.add_weight(name="gamma", shape=(6,), initializer="ones")
        self.built = True

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x, training=training)
        return self.more["head"](self.more["drop"](x * self.gamma, training=training))


class Inputs(keras.Model):
    """Takes a dict, and asks for the size of the batch."""

    def __init__(self, keys):
        super().__init__()
        self.keys = keys
        self.dense = layers.Dense(5, activation="relu", name="dense")
        self.last = layers.Dense(2, name="last")

    def call(self, inputs):
        x, y = (inputs[key] for key in self.keys)
        x = ops.reshape(self.dense(x), (ops.shape(x)[0], 5))
        return {"a": self.last(ops.concatenate([x, y], axis=-1))}


class Other(keras.Model):
    """One layer, and what `function` makes of it."""

    def __init__(self, function):
        super().__init__()
        self.dense = layers.Dense(3, name="dense")
        self.function = function

    def call(self, x, training=None):
        return self.function(self.dense(x), training)


def network():
    """Returns a `Network` that was called, with weights that all count."""
    model = Network(layers.Dense(3, name="head"))
    model(data(2, 6))
    rng = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def wrapped_in_float(model, **kwargs):
    return speq_keras.wrap(
        model, None, None, boundary_bits=None, distillation=None, skip="*", **kwargs
    )


def close(found, wanted):
    # The same float32 operations, in another order where Keras fuses them.
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_without_rounding_it_computes_the_same_and_the_names_are_those_of_its_layers():
    model, x = network(), data(8, 6)
    wrapped = speq_keras.wrap(model, 4, 8, distillation=None)
    assert {"block0.dense", "block1.norm", "head"} <= {layer.name for layer in wrapped.layers}
    close(wrapped.float_model().predict(x, verbose=0), model.predict(x, verbose=0))
    assert wrapped.name == "network"


def test_it_is_trained_saved_loaded_without_its_class_and_exported(tmp_path):
    model, x = network(), data(16, 6)
    before = [w.copy() for w in model.get_weights()]
    wrapped = speq_keras.wrap(model, 4, 8, distillation=None)
    wrapped.calibrate(x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    wrapped.compile("adam", loss)
    wrapped.fit(x, np.arange(16) % 3, verbose=0)
    np.testing.assert_equal(model.get_weights(), before)
    wrapped.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", x)
    code = """
import json, sys
import keras, numpy as np
import speq_keras
model = keras.saving.load_model(sys.argv[1])
x = np.load(sys.argv[2])
both = [m.predict(x, verbose=0).tolist() for m in (model, model.float_model())]
print(json.dumps(both))
"""
    both = fresh_process.result_of(code, tmp_path / "m.keras", tmp_path / "x.npy")
    close(both[0], wrapped.predict(x, verbose=0))
    close(both[1], wrapped.float_model().predict(x, verbose=0))
    assert wrapped.export_tflite(tmp_path / "m.tflite", data=x).proof.holds


def test_its_weights_are_loaded_again():
    model, x = network(), data(8, 6)
    wrapped = speq_keras.wrap(model, 4, 8, distillation=None)
    for weight in model.weights:
        weight.assign(weight.value * 1.5)
    wrapped.load_float_weights(model)
    close(wrapped.float_model().predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("keys", [("x", "y"), (1, 0)])
def test_inputs_in_a_dict_or_list(keys, called):
    model, wide, narrow = Inputs(keys), data(4, 7), data(4, 3)
    given = {keys[0]: wide, keys[1]: narrow} if keys == ("x", "y") else [narrow, wide]
    inputs = keras.tree.map_structure(lambda x: keras.Input(x.shape[1:]), given)
    if called:
        model(given)
    wrapped = speq_keras.wrap(model, 4, 8, distillation=None, inputs=None if called else inputs)
    assert all(x.shape[0] is None for x in wrapped.inputs)
    found, wanted = (m.predict(given, verbose=0) for m in (wrapped.float_model(), model))
    close(found["a"], wanted["a"])


def test_whole_numbers_as_inputs():
    class Words(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.last = layers.Embedding(9, 4), layers.Dense(2)

        def call(self, x):
            return self.last(ops.mean(self.table(x), axis=1))

    wrapped = speq_keras.wrap(
        Words(), distillation=None, inputs=keras.Input((5,), dtype="int32", name="words")
    )
    assert (wrapped.input.dtype, wrapped.input.shape) == ("int32", (None, 5))


def test_inside_a_functional_model_and_around_one(tmp_path):
    inputs = keras.Input((6,))
    inner = Other(lambda x, training: ops.relu(x))
    model = keras.Model(inputs, layers.Dense(2, name="last")(inner(inputs)))
    wrapped = speq_keras.wrap(model, 4, 8, distillation=None)
    assert f"{inner.name}.dense" in [layer.name for layer in wrapped.layers]
    base = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="in")], name="base")
    outer = Other(lambda x, training: base(x))
    outer.base = base
    x = data(4, 6)
    outer(x)
    wrapped = speq_keras.wrap(outer, 4, 8, distillation=None)
    assert {"dense", "base.in"} <= {layer.name for layer in wrapped.layers}
    close(wrapped.float_model().predict(x, verbose=0), outer.predict(x, verbose=0))


def test_a_subclassed_teacher():
    model, teacher, x = network(), network(), data(8, 6)
    wrapped = speq_keras.wrap(model, 4, 4, teacher=teacher)
    wrapped.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrapped.calibrate(x)
    history = wrapped.fit(x, np.arange(8) % 3, verbose=0).history
    assert np.isfinite(history["loss"][0])


class Needing(keras.Model):
    """Decides by the values of a tensor, which a symbolic one does not have."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x) if float(np.asarray(x).sum()) > 0 else x


class Frozen(keras.Model):
    """Without `training` in its call, which it gives to a layer; Functional models override it."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm = layers.Dense(3), layers.BatchNormalization()

    def call(self, x):
        return self.norm(self.dense(x), training=False)


REFUSED = {
    "training=False in its call": (Frozen, "as a graph it computes other values.* in training"),
    "another graph in training": (
        lambda: Other(lambda x, training: ops.relu(x) if training else x),
        "its graph differs in training",
    ),
    "other values in training": (
        lambda: Other(lambda x, training: x * (2.0 if training else 1.0)),
        "as a graph it computes other values, off by .* in training",
    ),
    "by values": (Needing, "its call fails on symbolic tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_with_the_cause(case):
    make, cause = REFUSED[case]
    with pytest.raises(
        ValueError,
        match=f"(?s)must be Functional or Sequential, or a subclassed.*cause=.*{cause}.*rebuild",
    ):
        speq_keras.wrap(make(), distillation=None, inputs=keras.Input((6,)))


def test_of_unknown_shapes_it_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="Received: .*inputs=None. Call it once on data, or pass"):
        speq_keras.wrap(Network(layers.Dense(3)))


@pytest.mark.parametrize("inputs", [data(2, 6), (6,), [], "x"], ids=repr)
def test_inputs_have_to_be_tensors_of_keras(inputs):
    with pytest.raises(TypeError, match="`inputs` must be keras.Input tensors.*Received: inputs="):
        speq_keras.wrap(Network(layers.Dense(3)), inputs=inputs)


def test_inputs_are_not_for_models_that_have_some():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="`inputs` is for subclassed models"):
        speq_keras.wrap(model, inputs=keras.Input((6,)))
