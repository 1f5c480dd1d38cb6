"""Layers of a user's own that call operations on kernels of their own, or act in training only."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

SIDE, CHANNELS, UNITS = 6, 4, 5
registered = keras.saving.register_keras_serializable(package="own_kernels")


class Own(layers.Layer):
    def weight(self, name, *shape):
        values = keras.initializers.RandomUniform(-0.5, 1.5, seed=len(name))
        setattr(self, name, self.add_weight(name=name, shape=shape, initializer=values))


@registered
class Conv(Own):
    def build(self, shape):
        self.weight("kernel", 3, 3, shape[-1], UNITS)

    def call(self, x):
        return ops.conv(x, self.kernel, padding="same")


@registered
class ConvWithStrides(Own):
    def build(self, shape):
        self.weight("kernel", 3, 2, shape[-1], UNITS)
        self.weight("bias", UNITS)

    def call(self, x):
        return ops.relu(ops.conv(x, self.kernel, strides=(2, 1), padding="valid") + self.bias)


@registered
class DilatedConv1D(Own):
    def build(self, shape):
        self.weight("kernel", 2, shape[-1] * SIDE, UNITS)

    def call(self, x):
        x = ops.reshape(x, (-1, SIDE, SIDE * x.shape[-1]))
        return ops.expand_dims(ops.conv(x, self.kernel, dilation_rate=2), 1)


@registered
class DepthwiseConv(Own):
    def build(self, shape):
        self.weight("kernel", 3, 3, shape[-1], 2)

    def call(self, x):
        return ops.depthwise_conv(x, self.kernel, strides=2, padding="same")


@registered
class SeparableConv(Own):
    def build(self, shape):
        self.weight("kernel", 3, 3, shape[-1], 2)
        self.weight("pointwise", 1, 1, 2 * shape[-1], UNITS)

    def call(self, x):
        return ops.separable_conv(x, self.kernel, self.pointwise, padding="same")


@registered
class Tensordot(Own):
    def build(self, shape):
        self.weight("kernel", shape[-1], UNITS)

    def call(self, x):
        return ops.tensordot(x, self.kernel, axes=1)


@registered
class TensordotOfAxes(Own):
    def build(self, shape):
        self.weight("kernel", shape[-1], UNITS)

    def call(self, x):
        return ops.tensordot(x, self.kernel, axes=([3], [0]))


@registered
class TwoStrides(Own):
    """One kernel that is read in two ways stays a tensor, of which there is no kernel."""

    def build(self, shape):
        self.weight("kernel", 1, 1, shape[-1], UNITS)

    def call(self, x):
        y = ops.conv(x, self.kernel, strides=2)
        return ops.add(y, ops.conv(x, self.kernel)[:, ::2, ::2])


@registered
class Einsum(Own):
    def build(self, shape):
        self.weight("kernel", shape[-1], UNITS)

    def call(self, x):
        return ops.einsum("bhwc,cd->bhwd", x, self.kernel)


@registered
class Dot(Own):
    def build(self, shape):
        self.weight("kernel", shape[-1], UNITS)

    def call(self, x):
        return ops.dot(x, self.kernel)


@registered
class LayerNorm(Own):
    def build(self, shape):
        self.weight("gamma", shape[-1])
        self.weight("beta", shape[-1])

    def call(self, x):
        return ops.layer_normalization(x, self.gamma, self.beta, axis=-1)


@registered
class DropPath(layers.Layer):
    """Stochastic depth; nothing at inference."""

    def call(self, x, training=None):
        if not training:
            return x
        return x * ops.cast(keras.random.uniform((ops.shape(x)[0], 1, 1, 1)) > 0.1, x.dtype)


@registered
class Gate(layers.Layer):
    """Squeeze-excite, with an index that adds axes."""

    def call(self, x):
        return x * ops.sigmoid(ops.mean(x, axis=(1, 2)))[:, None, None, :]


CONVOLUTIONS = (Conv, ConvWithStrides, DilatedConv1D, DepthwiseConv, SeparableConv)
PRODUCTS = (Einsum, Dot, Tensordot, TensordotOfAxes)
CASES = (*CONVOLUTIONS, *PRODUCTS, LayerNorm, DropPath, Gate)


def data(count=16):
    return np.random.default_rng(count).normal(size=(count, SIDE, SIDE, 3)).astype("float32")


def network(cls):
    keras.utils.set_random_seed(0)
    x = keras.Input((SIDE, SIDE, 3))
    y = cls(name="own")(layers.Conv2D(CHANNELS, 3, padding="same", name="first")(x))
    y = layers.Dense(4, name="middle")(layers.GlobalAveragePooling2D()(y))
    return keras.Model(x, layers.Dense(3, name="last")(y))


@pytest.mark.parametrize("cls", CASES)
def test_without_rounding_it_computes_what_the_layer_computes(cls):
    model = network(cls)
    wrapped = speq_keras.wrap(model, a_bits=None, boundary_bits=None, distillation=None)
    wrapped.set_bits(weights=None)
    # Sums of some hundred float32 products in another order.
    np.testing.assert_allclose(wrapped(data()), model(data()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", CASES)
def test_it_is_trained_comes_back_and_is_exported(cls, tmp_path):
    model = speq_keras.wrap(network(cls), 4, 8, distillation=None)
    assert not any("stays whole" in why for why in model.plan().float_layers.values())
    model.calibrate(data(), verbose=0)
    model.compile("sgd", "mse", run_eagerly=True)
    model.train_on_batch(data(), np.zeros((16, 3), "float32"))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(data()), model(data()))
    assert loaded.export_tflite(tmp_path / "m.tflite", data=data()).proof.holds


def test_a_kernel_that_is_read_in_two_ways_is_refused_before_training():
    assert speq_keras.wrap(network(TwoStrides), 4, 8).plan().file.is_refused


def test_what_acts_in_training_only_still_acts():
    model = speq_keras.wrap(network(DropPath), 8, 8, distillation=None)
    model.calibrate(data(), verbose=0)
    once, again = (np.asarray(model(data(64), training=True)) for _ in range(2))
    assert np.any(once != again)
    assert model.plan().row("own").in_file == "left out: it passes its input on"
