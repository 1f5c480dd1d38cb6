"""Layers of a user's own that hold weights: quantized, trained, saved and exported."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import speq_keras
from speq_keras.layers import QuantizedLayer

TIME, SIZE, CLASSES = 4, 6, 3
registered = keras.saving.register_keras_serializable(package="own_weights")


class Holds(layers.Layer):
    """A layer with weights that are neither 0 nor 1."""

    def weight(self, name, *shape, **kwargs):
        values = keras.initializers.RandomUniform(0.5, 1.5, seed=len(name))
        return self.add_weight(name=name, shape=shape, initializer=values, **kwargs)


@registered
class LayerScale(Holds):
    def build(self, shape):
        self.gamma = self.weight("gamma", shape[-1], regularizer=keras.regularizers.L2(0.1))

    def call(self, x):
        return x * self.gamma


@registered
class Affine(Holds):
    """All four operations, the weight first or second, one number or one per channel."""

    def build(self, shape):
        self.gamma = self.weight("gamma", 1, shape[-1])
        self.beta = self.weight("beta", shape[-1])
        self.size = self.weight("size")
        self.shift = self.weight("shift", 1)

    def call(self, x):
        return (self.beta - x * self.gamma) / self.size - self.shift


@registered
class Projection(Holds):
    """A Dense of one's own."""

    def build(self, shape):
        self.kernel = self.weight("kernel", shape[-1], SIZE)
        self.bias = self.weight("bias", SIZE)

    def call(self, x):
        return ops.relu(ops.matmul(x, self.kernel) + self.bias)


@registered
class Position(Holds):
    def build(self, shape):
        self.table = self.weight("table", 1, *shape[1:])

    def call(self, x):
        return x + self.table


@registered
class Turned(Holds):
    """A weight that is copied into another shape before it is read."""

    def build(self, shape):
        self.table = self.weight("table", shape[-1], shape[1])

    def call(self, x):
        return ops.concatenate([x, x * ops.transpose(self.table)], axis=-1)


@registered
class Twice(Holds):
    def build(self, shape):
        self.gamma = self.weight("gamma", shape[-1])

    def call(self, x):
        return x * self.gamma + self.gamma


@registered
class Nested(layers.Layer):
    def build(self, shape):
        self.scale = LayerScale(name="scale")
        self.scale.build(shape)

    def call(self, x):
        return x + self.scale(x)


@registered
class Exponent(Holds):
    def build(self, shape):
        self.gamma = self.weight("gamma", shape[-1])

    def call(self, x):
        return x * ops.exp(self.gamma)


@registered
class Counts(Holds):
    def build(self, shape):
        self.calls = self.weight("calls", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x * 1.0


APART = (LayerScale, Affine, Projection, Position, Turned, Twice, Nested)
# What each computes, in NumPy, of the layer's weights in the order in which they were made.
FORMULAS = {
    LayerScale: lambda x, gamma: x * gamma,
    Affine: lambda x, gamma, beta, size, shift: (beta - x * gamma) / size - shift,
    Projection: lambda x, kernel, bias: np.maximum(x @ kernel + bias, 0),
    Position: lambda x, table: x + table,
    Turned: lambda x, table: np.concatenate([x, x * table.T], axis=-1),
    Twice: lambda x, gamma: x * gamma + gamma,
    Nested: lambda x, gamma: x + x * gamma,
}
# The layers that each becomes; those that hold a table keep 8 bits for it.
PARTS = {
    LayerScale: {"own.gamma": "ChannelOperation"},
    Affine: {f"own.{name}": "ChannelOperation" for name in ("gamma", "beta", "size", "shift")},
    Projection: {"own.kernel": "Dense", "own.bias": "ChannelOperation"},
    Position: {"own.table": "Weight"},
    Turned: {"own.table": "Weight"},
    Twice: {"own.gamma": "Weight"},
    Nested: {"own.scale.gamma": "ChannelOperation"},
}
WHOLE = {
    Exponent: "it has weights of its own (gamma), and no kernel of Exp reads weights",
    Counts: "it has weights of its own (calls), and its call fails on symbolic tensors",
}


def data(count=32):
    return np.random.default_rng(count).normal(size=(count, TIME, SIZE)).astype("float32")


def network(*own, first=True):
    keras.utils.set_random_seed(0)
    y = x = keras.Input((TIME, SIZE), name="x")
    y = layers.Dense(SIZE, name="first")(y) if first else y
    for layer in own:
        y = layer(y)
    y = layers.Dense(4, name="inner")(layers.Dense(5, name="middle")(y))
    return keras.Model(x, layers.Dense(CLASSES, name="last")(y))


def prepared(cls, **kwargs):
    """Returns a wrapped model, calibrated and trained a little."""
    model = speq_keras.wrap(network(cls(name="own")), 4, 8, distillation=None, **kwargs)
    model.calibrate(data(), verbose=0)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(data(), np.zeros((32, TIME, CLASSES), "float32"), epochs=2, verbose=0)
    return model


def file_outputs(path, x):
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (read,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for row in x:
        interpreter.set_tensor(read["index"], row[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(made["index"]))
    return np.concatenate(rows)


@pytest.mark.parametrize("cls", APART)
def test_the_parts_compute_the_formula(cls):
    model = network(cls(name="own"), first=False)
    wrapped = speq_keras.wrap(model, a_bits=None, boundary_bits=None, distillation=None)
    wrapped.set_bits(weights=None)
    weights = [w.numpy() for w in model.get_layer("own").weights]
    if any(part == "Weight" for part in PARTS[cls].values()):
        # Rounded to 8 bits whatever the widths are: the formula gets the same numbers.
        ((name, _),) = PARTS[cls].items()
        layer = wrapped.get_layer(name)
        weights = [layer.quantizers["weight"](layer.layer.weight.value).numpy()]
        step = np.abs(model.get_layer("own").weights[0].numpy()).max() / 127
        np.testing.assert_allclose(weights[0], model.get_layer("own").weights[0], atol=step / 2)
    kernels = [model.get_layer(name).get_weights() for name in ("middle", "inner", "last")]
    y = FORMULAS[cls](data().astype("float64"), *weights)
    for kernel, bias in kernels:
        y = y @ kernel + bias
    np.testing.assert_allclose(wrapped(data()), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", APART)
def test_each_weight_has_a_layer_of_its_own(cls):
    wrapped = speq_keras.wrap(network(cls(name="own")), 4, 8)
    assert not any(layer.name == "own" for layer in wrapped.layers)
    found = {}
    for name in PARTS[cls]:
        layer = wrapped.get_layer(name)
        found[name] = type(layer.layer if isinstance(layer, QuantizedLayer) else layer).__name__
    assert found == PARTS[cls]
    assert wrapped.plan().row(name).in_file.startswith("integer")


@pytest.mark.parametrize("cls", APART)
def test_the_file_is_what_predict_computes(cls, tmp_path):
    model = prepared(cls)
    model.settle()
    report = model.export_tflite(tmp_path / "m.tflite", data=data())
    assert report.proof.holds
    step = model.get_layer("last_quantizer").grid()[0]
    away = np.abs(file_outputs(tmp_path / "m.tflite", data()) - model.predict(data(), verbose=0))
    assert np.mean(away < 1e-3 * step) > 0.99
    assert np.max(away) < 1.01 * step


@pytest.mark.parametrize("cls", APART)
def test_it_is_trained_and_comes_back_to_the_float_model(cls, tmp_path):
    before = network(cls(name="own")).get_layer("own").get_weights()
    model = prepared(cls)
    after = model.float_model().get_layer("own").get_weights()
    assert [w.shape for w in after] == [w.shape for w in before]
    assert all(np.any(x != y) for x, y in zip(before, after, strict=True))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        loaded.predict(data(), verbose=0), model.predict(data(), verbose=0)
    )
    other = network(cls(name="own"))
    loaded.load_float_weights(other)
    for mine, theirs in zip(
        loaded.float_model().get_layer("own").get_weights(), before, strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_the_regularizer_goes_along():
    model = network(LayerScale(name="own"))
    wrapped = speq_keras.wrap(model, distillation=None)
    gamma = model.get_layer("own").gamma.numpy()
    np.testing.assert_allclose(sum(wrapped.losses), 0.1 * np.sum(gamma**2), rtol=1e-6)


def test_what_is_frozen_stays_frozen():
    layer = LayerScale(name="own")
    model = network(layer)
    layer.trainable = False
    wrapped = speq_keras.wrap(model, 4, 8, distillation=None)
    assert not wrapped.get_layer("own.gamma").trainable_variables
    assert wrapped.get_layer("first").trainable_variables


def test_a_layer_that_is_called_twice_has_one_weight():
    own = LayerScale(name="own")
    model = network(own, layers.Dense(SIZE, name="between"), own)
    wrapped = speq_keras.wrap(model, 8, 8, distillation=None)
    paths = [variable.path for variable in wrapped.trainable_variables]
    assert sum("gamma/weight" in path for path in paths) == 1
    wrapped.calibrate(data(), verbose=0)
    wrapped.set_bits(weights=None)
    away = np.abs(wrapped.predict(data(), verbose=0) - model.predict(data(), verbose=0))
    assert np.max(away) < 0.05 * np.ptp(model.predict(data(), verbose=0))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_in_mixed_precision(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model = prepared(Affine)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("own.gamma").compute_dtype == policy.removeprefix("mixed_")
    assert model.export_tflite(tmp_path / "m.tflite", data=data()).proof.holds


@pytest.mark.parametrize("cls", WHOLE)
def test_what_no_kernel_reads_stays_whole(cls):
    model = network(cls(name="own"))
    wrapped = speq_keras.wrap(model, 4, 8)
    assert WHOLE[cls] in wrapped.plan().float_layers["own"]
    assert wrapped.plan().file.is_refused
    if cls is Counts:  # `call` has to find its own variable again, whatever came in between
        assert isinstance(model.get_layer("own").calls, keras.Variable)


def test_settling_moves_a_bias_of_ones_own(tmp_path):
    model = prepared(Projection)
    before = model.get_layer("own.bias").weight.numpy()
    assert model.settle().biases
    assert np.any(model.get_layer("own.bias").weight.numpy() != before)
    report = model.export_tflite(tmp_path / "m.tflite", data=data())
    assert report.proof.settled
