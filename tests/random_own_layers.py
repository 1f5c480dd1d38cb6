"""Layers and functions of a user's own, some of them named like those of Keras."""

import keras
from keras import layers, ops

_registered = keras.saving.register_keras_serializable(package="random_networks")


@_registered
class Dropout(layers.Layer):
    """Not Keras' Dropout: it halves, at inference too."""

    def call(self, x):
        return 0.5 * x


@_registered
class Identity(layers.Layer):
    def call(self, x):
        return x + 1.0


@_registered
class Negative(layers.Layer):
    def call(self, x):
        return ops.exp(-ops.abs(x))


@_registered
class Square(layers.Layer):
    def call(self, x):
        return x + 0.3 * x * x


@_registered
class ReLU(layers.Layer):
    def call(self, x):
        return ops.where(x > 0, x, 0.4 * x - 0.1)


@_registered
class Flatten(layers.Layer):
    def call(self, x):
        return ops.reshape(ops.flip(x, axis=-1), (-1, x.shape[1] * x.shape[-1]))


@_registered
class Scale(layers.Layer):
    """ConvNeXt's layer scale: a weight per channel."""

    def build(self, shape):
        self.gamma = self.add_weight(shape=(shape[-1],), initializer="ones", name="gamma")

    def call(self, x):
        return x * self.gamma


@_registered
class Shuffle(layers.Layer):
    """ShuffleNet's change of places between two groups of channels."""

    def call(self, x):
        shape = x.shape[1:-1]
        x = ops.reshape(x, (-1, *shape, 2, x.shape[-1] // 2))
        axes = list(range(len(x.shape)))
        return ops.reshape(
            ops.transpose(x, [*axes[:-2], axes[-1], axes[-2]]), (-1, *shape, x.shape[-1] * 2)
        )


@_registered
class DynamicBatch(layers.Layer):
    """Reshapes by the batch size that it reads while it runs."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        y = self.dense(x)
        return ops.reshape(y, (ops.shape(x)[0], *y.shape[1:]))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@_registered
class Block(layers.Layer):
    """Layers in a layer, with a residual."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.first = layers.Dense(6, activation="gelu")
        self.second = layers.Dense(shape[-1])
        self.norm.build(shape)
        self.first.build(shape)
        self.second.build((*shape[:-1], 6))

    def call(self, x):
        return x + self.second(self.first(self.norm(x)))


@_registered
class PlainDense(layers.Dense):
    """A subclass that changes nothing: it is a Dense."""


@_registered
class ScaledDense(layers.Dense):
    """A subclass that computes something else."""

    def call(self, inputs):
        return 0.5 * super().call(inputs) + 1.0


@_registered
class StandardizedConv(layers.Conv2D):
    """A subclass that changes what `call` uses."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - ops.mean(kernel))


@_registered
class LeakyNorm(layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return ops.abs(super().call(inputs, training=training, mask=mask))


@_registered
def sigmoid(x):
    """Not Keras' sigmoid."""
    return 0.3 * x


@_registered
def relu(x):
    return ops.maximum(x, -0.5)


def twice(layer, x):
    """Calls one layer two times, one call after the other."""
    return layer(layer(x))


def both(layer, x, y):
    """Calls one layer on two tensors."""
    return layer(x) - layer(y)
