"""Layers of your own: taken apart where the graph computes the same; else plan() says why not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

TIME, SIZE = 4, 6
registered = keras.saving.register_keras_serializable(package="own")


class Own(layers.Layer):
    """A layer with a Dense in it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(SIZE)

    def build(self, shape):
        self.dense.build(shape)

    def compute_output_shape(self, shape):
        return shape


@registered
class ByShape(Own):
    def call(self, x):
        batch, time, size = ops.shape(x)
        y = ops.reshape(self.dense(x), (batch, time * size))
        return ops.reshape(y, (batch, -1, size))


@registered
class ByStaticShape(Own):
    def call(self, x):
        return ops.reshape(ops.reshape(self.dense(x), (x.shape[0], -1)), (x.shape[0], TIME, SIZE))


@registered
class Heads(Own):
    """Batch and heads in one axis, as in windows of attention."""

    def call(self, x):
        batch = ops.shape(x)[0]
        y = ops.reshape(self.dense(x), (batch, TIME, 2, SIZE // 2))
        y = ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (batch * 2, TIME, SIZE // 2))
        y = ops.transpose(ops.reshape(ops.relu(y), (batch, 2, TIME, SIZE // 2)), (0, 2, 1, 3))
        return ops.reshape(y, (batch, TIME, SIZE))


@registered
class Shuffle(layers.Layer):
    """Without weights."""

    def call(self, x):
        x = ops.reshape(x, (-1, TIME, 2, SIZE // 2))
        return ops.reshape(ops.transpose(x, (0, 1, 3, 2)), (-1, TIME, SIZE))


@registered
class Silent(Own):
    """No config can be made of its arguments."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)

    def call(self, x):
        return ops.relu(self.dense(x))


@registered
class HasSilent(layers.Layer):
    def build(self, shape):
        self.silent = Silent(layers.Dense(1))
        self.silent.build(shape)

    def call(self, x):
        return x + self.silent(x)


@registered
class CountsBatch(Own):
    def call(self, x):
        return self.dense(x) / ops.shape(x)[0]


@registered
class KeepsBatch(Own):
    """Another function on symbolic tensors."""

    def call(self, x):
        return self.dense(x) * (1.0 if isinstance(x, keras.KerasTensor) else 2.0)


@registered
class TrainsOtherwise(Own):
    """The same operations in training, with other numbers."""

    def call(self, x, training=None):
        return self.dense(x) * (0.5 if training else 1.0)


@registered
class Noisy(Own):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x):
        return self.dense(x) + 0.1 * keras.random.normal((TIME, SIZE), seed=self.seed)


@registered
class Regularized(Own):
    def __init__(self, **kwargs):
        super().__init__(**{"activity_regularizer": "l2", **kwargs})

    def call(self, x):
        return self.dense(x)


@registered
class AddsLoss(Own):
    def call(self, x):
        y = self.dense(x)
        if not isinstance(y, keras.KerasTensor):
            self.add_loss(ops.sum(ops.square(y)))
        return y


@registered
class Decides(Own):
    def call(self, x):
        return self.dense(x) if isinstance(x, keras.KerasTensor) or float(x[0, 0, 0]) else x


@registered
class NeedsMore(Own):
    """Cannot be made again from its config."""

    def __init__(self, needed, **kwargs):
        super().__init__(**kwargs)

    def get_config(self):
        return layers.Layer.get_config(self)

    def call(self, x, training=None):
        return self.dense(x) * (0.5 if training else 1.0)


@registered
class HasNeedsMore(layers.Layer):
    def build(self, shape):
        self.inner = NeedsMore(1)
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


APART = (ByShape, ByStaticShape, Heads, Shuffle, HasSilent)
WHOLE = {
    CountsBatch: "as a graph it computes other values",
    KeepsBatch: "as a graph it computes other values",
    TrainsOtherwise: "of the largest in training",
    Noisy: "as a graph it computes other values",
    Regularized: "it has an activity regularizer",
    AddsLoss: "as a graph it adds other losses",
    HasNeedsMore: "its graph cannot be made again (ValueError: Layer 'needs_more",
}


def data(count):
    return np.random.default_rng(count).normal(size=(count, TIME, SIZE)).astype("float32")


def around(layer):
    keras.utils.set_random_seed(0)
    x = keras.Input((TIME, SIZE), name="x")
    y = layer(layers.Dense(SIZE, name="first")(x))
    y = layers.Dense(SIZE, name="middle")(y)
    return keras.Model(x, layers.Dense(3, name="last")(y))


def same_in_float(model, wrapped):
    wrapped.set_bits(weights=None)
    for count in (5, 2):  # other sizes than those of the check
        # The same float32 operations, in another order at most.
        np.testing.assert_allclose(wrapped(data(count)), model(data(count)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", APART)
def test_it_is_taken_apart_and_computes_the_same(cls, tmp_path):
    model = around(cls(name="own"))
    wrapped = speq_keras.wrap(model, a_bits=None, boundary_bits=None, distillation=None)
    assert not any(layer.name == "own" for layer in wrapped.layers)
    same_in_float(model, wrapped)
    wrapped.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(data(3)), wrapped(data(3)))


@pytest.mark.parametrize("cls", APART)
def test_taken_apart_it_is_calibrated_trained_and_exported(cls, tmp_path):
    model = speq_keras.wrap(around(cls(name="own")), 8, 8, distillation=None)
    model.calibrate(data(16), verbose=0)
    model.compile("sgd", "mse")
    model.fit(data(16), np.zeros((16, TIME, 3), "float32"), batch_size=5, verbose=0)
    if cls is not Heads:  # kernels keep the axis of the batch
        assert model.export_tflite(tmp_path / "m.tflite", data=data(8)).proof.holds


@pytest.mark.parametrize("cls", [cls for cls in WHOLE if cls is not HasNeedsMore])
def test_it_stays_whole_and_plan_says_why(cls):
    model = around(cls(name="own"))
    before = [variable.numpy() for variable in model.variables]
    wrapped = speq_keras.wrap(model, a_bits=None, boundary_bits=None, distillation=None)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    reason = wrapped.plan().float_layers["own"]
    assert reason.startswith(f"no quantize config for {cls.__name__}; stays whole: ")
    assert WHOLE[cls] in reason
    if cls is not Noisy:
        same_in_float(model, wrapped)


def test_where_a_layer_inside_cannot_be_made_again_the_outer_one_stays_whole():
    wrapped = speq_keras.wrap(around(HasNeedsMore(name="own")), 8, 8, distillation=None)
    assert WHOLE[HasNeedsMore] in wrapped.plan().float_layers["own"]
    wrapped.calibrate(data(8), verbose=0)


def test_blocks_that_are_alike_are_checked_once(monkeypatch):
    from speq_keras.wrapping import composite

    checked = []

    def difference(layer, *args):
        checked.append(layer.name)

    monkeypatch.setattr(composite, "difference", difference)
    x = keras.Input((TIME, SIZE))
    y = x
    for number in range(3):
        y = ByShape(name=f"block_{number}")(y)
    speq_keras.wrap(keras.Model(x, layers.Dense(3)(y)), 3, 3)
    assert checked == ["block_0"]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_in_another_dtype_it_is_taken_apart_too(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = around(ByShape(name="own"))
        wrapped = speq_keras.wrap(model, 8, 8, distillation=None)
    finally:
        keras.config.set_dtype_policy("float32")
    assert "own.dense" in {layer.name for layer in wrapped.layers}


def test_the_refusal_of_a_wrapper_names_the_class_that_the_user_knows(tmp_path):
    x = keras.Input((TIME, SIZE))
    y = layers.SpectralNormalization(layers.Dense(4), name="per_step")(x)
    model = keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))
    model = speq_keras.wrap(model, 8, 8, distillation=None)
    assert model.plan().row("per_step").type == "SpectralNormalization"
    model.calibrate(data(8), verbose=0)
    with pytest.raises(ValueError, match=r"'per_step' \(SpectralNormalization\)"):
        model.export_tflite(tmp_path / "m.tflite")


def test_of_open_sizes_the_costs_are_unknown_and_weights_carry_the_ranges(tmp_path):
    def network(size):
        x = keras.Input((size, size, 3), name="x")
        y = layers.Conv2D(4, 3, padding="same", activation="relu", name="a")(x)
        return keras.Model(x, layers.Conv2D(2, 1, name="b")(y))

    images = np.random.default_rng(0).random((8, 6, 6, 3)).astype("float32")
    model = speq_keras.wrap(network(None), 8, 8, distillation=None)
    model.calibrate(images, verbose=0)
    assert "MMAC and GBitOP unknown" in str(model.plan())
    assert "0.00 MMAC" not in str(model.plan())
    with pytest.raises(ValueError, match=r"fixed\.set_weights\(model\.get_weights\(\)\)"):
        model.export_tflite(tmp_path / "m.tflite")
    fixed = speq_keras.wrap(network(6), 8, 8, distillation=None)
    fixed.set_weights(model.get_weights())
    np.testing.assert_array_equal(fixed.predict(images), model.predict(images))
    assert fixed.export_tflite(tmp_path / "m.tflite", data=images).proof.holds


@registered
class Activates(Own):
    """An operation, and a layer that is made anew in every call."""

    def call(self, x):
        return layers.ReLU()(ops.leaky_relu(self.dense(x)) + 1.0)


def test_a_layer_that_is_called_again_is_taken_apart_each_time(tmp_path):
    keras.utils.set_random_seed(0)
    own, x = Activates(name="own"), keras.Input((TIME, SIZE))
    model = keras.Model(x, layers.Dense(3)(own(own(x)) + own(2.0 * x)))
    wrapped = speq_keras.wrap(model, 8, 8, distillation=None)
    names = [operation.name for operation in wrapped.operations]
    assert [name for name in names if name.startswith("own.dense")].count("own.dense") == 1
    assert {"own.leaky_relu", "own.leaky_relu_1", "own.leaky_relu_2"} <= set(names)
    wrapped.calibrate(data(32), verbose=0)
    wanted = model.predict(data(32), verbose=0)
    # 8 bits in some ten tensors in a row; another function is off by the whole range.
    assert np.mean(np.abs(wrapped.predict(data(32), verbose=0) - wanted)) < 0.02 * np.ptp(wanted)
    assert wrapped.export_tflite(tmp_path / "m.tflite", data=data(32)).proof.holds
