"""What layers make of their weights alone: class tokens for every example, rows of arrays."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

TIME, SIZE, CLASSES, WORDS = 5, 6, 3, 20
registered = keras.saving.register_keras_serializable(package="tokens")


class Holds(layers.Layer):
    """A layer with weights of different sizes."""

    def weight(self, name, *shape):
        values = keras.initializers.RandomUniform(0.5, 1.5, seed=len(name))
        return self.add_weight(name=name, shape=shape, initializer=values)


class WithToken(Holds):
    def build(self, shape):
        self.token = self.weight("token", 1, 1, shape[-1])

    def call(self, x):
        return ops.concatenate([self.repeated(ops.shape(x)[0]), x], axis=1)


@registered
class Broadcast(WithToken):
    def repeated(self, batch):
        return ops.broadcast_to(self.token, (batch, 1, SIZE))


@registered
class Tiled(WithToken):
    def repeated(self, batch):
        return ops.tile(self.token, [batch, 1, 1])


@registered
class Repeated(WithToken):
    def repeated(self, batch):
        return ops.repeat(self.token, batch, axis=0)


@registered
class OnZeros(WithToken):
    def repeated(self, batch):
        return ops.zeros((batch, 1, SIZE)) + self.token


@registered
class TimesOnes(WithToken):
    def repeated(self, batch):
        return ops.ones((batch, 1, 1)) * self.token


@registered
class Vector(WithToken):
    def build(self, shape):
        self.token = self.weight("token", shape[-1])

    def repeated(self, batch):
        return ops.broadcast_to(self.token, (batch, 1, SIZE))


@registered
class Registers(WithToken):
    def build(self, shape):
        super().build(shape)
        self.registers = self.weight("registers", 1, 3, shape[-1])

    def repeated(self, batch):
        registers = ops.tile(self.registers, (batch, 1, 1))
        return ops.concatenate([ops.broadcast_to(self.token, (batch, 1, SIZE)), registers], axis=1)


@registered
class Constants(Holds):
    """Ones beside the features, without any weight."""

    def call(self, x):
        return ops.concatenate([ops.ones((ops.shape(x)[0], 2, SIZE)), x], axis=1)


@registered
class PatchEncoder(layers.Layer):
    """As vision transformers add positions: `Embedding` of all numbers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.projection = layers.Dense(SIZE)
        self.positions = layers.Embedding(TIME, SIZE)

    def call(self, x):
        numbers = ops.expand_dims(ops.arange(0, TIME, 1), axis=0)
        return self.projection(x) + self.positions(numbers)


@registered
class FirstPositions(layers.Layer):
    """Of more positions than there are."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.positions = layers.Embedding(2 * TIME, SIZE)

    def call(self, x):
        return x + self.positions(ops.arange(x.shape[1]))


@registered
class NumbersInAVariable(layers.Layer):
    def build(self, shape):
        self.numbers = self.add_weight(
            name="numbers", shape=(1, TIME), dtype="int32", trainable=False, initializer="zeros"
        )
        self.numbers.assign(np.arange(TIME)[None, ::-1])
        self.positions = layers.Embedding(TIME, SIZE)
        self.positions.build((1, TIME))

    def call(self, x):
        return x + self.positions(self.numbers)


@registered
class FirstRows(Holds):
    def build(self, shape):
        self.table = self.weight("table", 2 * TIME, shape[-1])

    def call(self, x):
        return x + self.table[: x.shape[1]]


@registered
class Words(layers.Layer):
    """As text transformers begin: words and their places."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.words = layers.Embedding(WORDS, SIZE)
        self.places = layers.Embedding(TIME, SIZE)

    def call(self, x):
        return self.words(x) + self.places(ops.arange(0, ops.shape(x)[-1], 1))


TOKENS = (Broadcast, Tiled, Repeated, OnZeros, TimesOnes, Vector, Registers, Constants)
POSITIONS = (PatchEncoder, FirstPositions, NumbersInAVariable, FirstRows)
ALL = (*TOKENS, *POSITIONS, Words)


class WholeModel(keras.Model):
    """A vision transformer as people subclass it: the token belongs to the model."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(SIZE)
        self.positions = layers.Embedding(TIME + 1, SIZE)
        self.attention = layers.MultiHeadAttention(2, 3)
        self.last = layers.Dense(CLASSES)
        self.token = self.add_weight(name="token", shape=(1, 1, SIZE), initializer="random_normal")

    def call(self, x):
        x = self.first(x)
        token = ops.broadcast_to(self.token, (ops.shape(x)[0], 1, SIZE))
        x = ops.concatenate([token, x], axis=1)
        x = x + self.positions(ops.arange(TIME + 1))
        return self.last((x + self.attention(x, x))[:, 0])


def data(cls, count=24):
    rng = np.random.default_rng(count)
    if cls is Words:
        return rng.integers(0, WORDS, (count, TIME)).astype("int32")
    return rng.normal(size=(count, TIME, SIZE)).astype("float32")


def network(cls):
    keras.utils.set_random_seed(0)
    if cls is WholeModel:
        model = WholeModel()
        model(data(cls, 1))
        return model
    x = keras.Input((TIME,), dtype="int32") if cls is Words else keras.Input((TIME, SIZE))
    y = x if cls is Words else layers.Dense(SIZE, name="first")(x)
    y = layers.Flatten()(layers.Dense(4, name="middle")(cls(name="own")(y)))
    return keras.Model(x, layers.Dense(CLASSES, name="last")(y))


def trained(cls):
    """Returns a wrapped model, calibrated and trained a little."""
    model = speq_keras.wrap(network(cls), 4, 8, distillation=None)
    model.calibrate(data(cls), verbose=0)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(data(cls), np.zeros((24, CLASSES), "float32"), epochs=2, verbose=0)
    return model


@pytest.mark.parametrize("cls", [*ALL, WholeModel])
def test_the_graph_computes_what_the_layer_does(cls):
    model = network(cls)
    wrapped = speq_keras.wrap(model, 8, None, boundary_bits=None, distillation=None)
    assert not any(layer.name == "own" for layer in wrapped.layers)
    wrapped.set_bits(weights=None)
    for count in (1, 3):
        x = data(cls, count)
        wanted = keras.ops.convert_to_numpy(model(x))
        # Tables that are added keep 8 bits whatever the widths are.
        atol = 0.02 * np.abs(wanted).max()
        np.testing.assert_allclose(wrapped.predict(x, verbose=0), wanted, atol=atol)


@pytest.mark.parametrize("cls", [*ALL, WholeModel])
def test_the_file_is_what_predict_computes(cls, tmp_path):
    model = trained(cls)
    model.settle()
    report = model.export_tflite(tmp_path / "m.tflite", data=data(cls))
    assert report.proof.holds
    assert not any("Computed in float" in note for note in report.notes)
    predicted = model.predict(data(cls), verbose=0)
    folded = speq_keras.fold(model).predict(data(cls))
    assert np.mean(np.isclose(folded, predicted, atol=1e-5)) > 0.95  # all but ties of float sums


# Keras says it of layers whose weights are all in layers, while it makes them from their config.
@pytest.mark.filterwarnings("ignore:`build..` was called on layer")
@pytest.mark.parametrize("cls", [*TOKENS[:-1], *POSITIONS, Words])
def test_weights_are_trained_and_come_back(cls, tmp_path):
    before = network(cls).get_layer("own").get_weights()
    model = trained(cls)
    after = model.float_model().get_layer("own").get_weights()
    assert [w.shape for w in after] == [w.shape for w in before]
    numbers = [w.dtype.kind == "i" for w in before]
    for old, new, is_fixed in zip(before, after, numbers, strict=True):
        assert np.any(old != new) != is_fixed
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    predicted = model.predict(data(cls), verbose=0)
    np.testing.assert_array_equal(loaded.predict(data(cls), verbose=0), predicted)


def test_a_file_for_a_larger_batch_has_a_token_for_every_example(tmp_path):
    model = trained(Tiled)
    report = model.export_tflite(tmp_path / "m.tflite", data=data(Tiled), batch_size=4)
    assert report.proof.holds
