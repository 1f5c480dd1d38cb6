"""Subclassed models: their `call` as a graph, trained, saved without their class, and exported."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

SHAPE = (6, 6, 3)


class Block(keras.Model):
    """Convolutions in a list, one BatchNormalization for both, and no config."""

    def __init__(self, channels):
        super().__init__(name="block")
        self.convs = [layers.Conv2D(channels, 3, padding="same", name=f"conv{n}") for n in (0, 1)]
        self.norm = layers.BatchNormalization(name="norm")

    def call(self, x, training=None):
        y = x
        for conv in self.convs:
            y = ops.relu(self.norm(conv(y), training=training))
        return x + y


class Net(keras.Model):
    """A weight of its own, a nested model, and the size of the batch in a shape."""

    def __init__(self):
        super().__init__(name="net")
        self.stem = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")
        self.block = Block(4)
        self.drop = layers.Dropout(0.5)
        self.gamma = self.add_weight(shape=(4,), initializer="random_normal", name="gamma")
        self.head = layers.Dense(3, name="head")

    def call(self, x, training=None):
        x = self.drop(self.block(self.stem(x)), training=training) * self.gamma
        x = ops.mean(x, axis=(1, 2))
        return self.head(ops.reshape(x, (ops.shape(x)[0], -1)))


class TwoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.table, self.dense = layers.Embedding(9, 4), layers.Dense(4, activation="relu")
        self.head = layers.Dense(2)

    def call(self, data):
        return self.head(self.dense(data["x"]) + ops.mean(self.table(data["words"]), axis=1))


class OneLayer(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3, name="head")


class Trains(OneLayer):
    def call(self, x, training=None):
        return self.head(ops.mean(x * 2 if training else x + 1, axis=(1, 2)))


class Decides(OneLayer):
    def call(self, x, training=None):
        if np.asarray(ops.mean(x)) > 0:
            x = -x
        return self.head(ops.mean(x, axis=(1, 2)))


def data(count=16):
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype("float32")


def net(cls=Net):
    keras.utils.set_random_seed(2)
    model = cls()
    model(data(2))
    return model


def test_without_rounding_it_computes_what_the_subclassed_model_does():
    model, x = net(), data()
    wrapped = speq_keras.wrap(model, 8, None, distillation=None, weight_quantizer="minmax")
    names = {layer.name for layer in wrapped.layers}
    assert {"stem", "block.conv0", "block.conv1", "block.norm", "head", "gamma"} <= names
    wanted = ops.convert_to_numpy(model(x))
    # 127 levels for the largest weight of a channel, five layers in a row.
    np.testing.assert_allclose(wrapped.predict(x, verbose=0), wanted, atol=0.02 * np.ptp(wanted))


def test_it_trains_and_loads_without_its_class_and_is_its_file(tmp_path):
    model, x = net(), data()
    wrapped = speq_keras.wrap(model, 4, 8, distillation=None)
    wrapped.calibrate(x, verbose=0)
    wrapped.compile("adam", "mse")
    wrapped.fit(x, np.zeros((16, 3)), epochs=1, verbose=0)
    report = wrapped.export_tflite(tmp_path / "m.tflite", data=x)
    assert report.proof.holds
    wrapped.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", x)
    program = (
        "import keras, numpy as np, speq_keras\n"
        "model = keras.saving.load_model('m.keras')\n"
        "np.save('y.npy', model.predict(np.load('x.npy'), verbose=0))\n"
        "assert model.float_model().get_layer('head').kernel.shape == (4, 3)\n"
    )
    folder = os.path.dirname(os.path.dirname(speq_keras.__file__))
    environment = {**os.environ, "PYTHONPATH": folder}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    found = np.load(tmp_path / "y.npy")
    # Another process may sum in another order: a code in a hundred falls on the other side.
    wanted = wrapped.predict(x, verbose=0)
    assert np.mean(np.abs(found - wanted) > 1e-5 * np.ptp(wanted)) < 0.05


def test_the_model_itself_keeps_its_weights():
    model = net()
    before = [ops.convert_to_numpy(weight) for weight in model.weights]
    speq_keras.wrap(model, 4, 8, distillation=None)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_weights_of_a_subclassed_model_can_be_loaded():
    model, x = net(), data()
    wrapped = speq_keras.wrap(model, 8, None, distillation=None)
    model.head.kernel.assign(2 * model.head.kernel)
    wrapped.load_float_weights(model)
    again = speq_keras.wrap(model, 8, None, distillation=None)
    np.testing.assert_array_equal(*(m.predict(x, verbose=0) for m in (wrapped, again)))


def test_inputs_say_what_a_model_reads_that_was_never_called():
    inputs = {
        "x": keras.Input((5,), name="x"),
        "words": keras.Input((3,), dtype="int32", name="words"),
    }
    model = TwoInputs()
    wrapped = speq_keras.wrap(model, 8, None, inputs=inputs, distillation=None)
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(4, 5)).astype("float32"),
        "words": rng.integers(0, 9, (4, 3)),
    }
    wanted = ops.convert_to_numpy(model(arrays))
    found = wrapped.predict(arrays, verbose=0)
    np.testing.assert_allclose(found, wanted, atol=0.03 * np.ptp(wanted))  # 8 bits of weights


def test_inside_a_functional_model_it_is_flattened(tmp_path):
    inner, x = net(), data()
    inputs = keras.Input(SHAPE)
    outer = keras.Model(inputs, layers.Dense(2, name="last")(inner(inputs)))
    wrapped = speq_keras.wrap(outer, 8, 8, distillation=None)
    assert "net.block.conv0" in {layer.name for layer in wrapped.layers}
    wrapped.calibrate(x, verbose=0)
    assert wrapped.export_tflite(tmp_path / "m.tflite", data=x).proof.holds


def test_a_subclassed_teacher_teaches():
    teacher, inputs = net(), keras.Input(SHAPE)
    x = layers.Conv2D(2, 3)(layers.Conv2D(2, 3)(inputs))
    student = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    model = speq_keras.wrap(student, 4, 4, teacher=teacher)
    model.calibrate(data(), verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    assert np.isfinite(model.fit(data(), np.zeros(16), verbose=0).history["loss"][0])


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (
            Net,
            ValueError,
            "must know what it reads.*model='Net', built=False. Call it once on data",
        ),
        (
            lambda: net(Trains),
            ValueError,
            "must have a `call` that is one graph.*another.*training",
        ),
    ],
)
def test_what_is_no_graph_is_refused(make, error, sentence):
    with pytest.raises(error, match=f"(?s){sentence}"):
        speq_keras.wrap(make(), 4, 8)


def test_what_cannot_be_traced_is_refused_with_the_cause():
    with pytest.raises(ValueError, match="one graph.*Decides.*call fails on symbolic tensors"):
        speq_keras.wrap(net(Decides), 4, 8, inputs=keras.Input(SHAPE))


@pytest.mark.parametrize("inputs", [(6, 6, 3), np.zeros((1, 6, 6, 3))])
def test_inputs_are_symbolic(inputs):
    with pytest.raises(TypeError, match="`inputs` must be a keras.Input.*inputs=keras.Input"):
        speq_keras.wrap(net(), 4, 8, inputs=inputs)


def test_a_functional_model_has_its_own_inputs():
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match="for a subclassed model alone"):
        speq_keras.wrap(model, 4, 8, inputs=inputs)
