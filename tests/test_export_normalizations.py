"""Normalizations: float islands, which compute in the file what Keras computes."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

pytestmark = pytest.mark.tensorflow


def moments(x, axes):
    return x.mean(axes, keepdims=True), x.var(axes, keepdims=True)


def standardized(x, axes, epsilon):
    mean, variance = moments(x, axes)
    return (x - mean) / np.sqrt(variance + epsilon)


def by_groups(x, groups, epsilon=1e-3):
    parts = np.split(x, groups, axis=-1)
    return np.concatenate([standardized(part, (1, 2, 3), epsilon) for part in parts], axis=-1)


# {name: (layer, the same in NumPy with γ = 1 and β = 0)}
NORMALIZATIONS = {
    "LayerNormalization": (layers.LayerNormalization, lambda x: standardized(x, -1, 1e-3)),
    "LayerNormalization of pixels": (
        lambda **name: layers.LayerNormalization(axis=(1, 2, 3), **name),
        lambda x: standardized(x, (1, 2, 3), 1e-3),
    ),
    "LayerNormalization without": (
        lambda **name: layers.LayerNormalization(center=False, scale=False, **name),
        lambda x: standardized(x, -1, 1e-3),
    ),
    "RMSNormalization": (
        layers.RMSNormalization,
        lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6),
    ),
    "GroupNormalization": (
        lambda **name: layers.GroupNormalization(groups=2, **name),
        lambda x: by_groups(x, 2),
    ),
    "GroupNormalization of one": (
        lambda **name: layers.GroupNormalization(groups=1, **name),
        lambda x: by_groups(x, 1),
    ),
    "GroupNormalization of all": (
        lambda **name: layers.GroupNormalization(groups=-1, **name),
        lambda x: by_groups(x, 4),
    ),
    "UnitNormalization": (
        layers.UnitNormalization,
        lambda x: x / np.sqrt((x**2).sum(-1, keepdims=True)),
    ),
    "UnitNormalization of pixels": (
        lambda **name: layers.UnitNormalization(axis=(1, 2), **name),
        lambda x: x / np.sqrt((x**2).sum((1, 2), keepdims=True)),
    ),
}
DATA = np.random.default_rng(0).normal(1, 2, (16, 6, 5, 4)).astype("float32")


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_numpy_is_keras(name):
    layer, in_numpy = NORMALIZATIONS[name]
    # Float32 sums of 120 squares, and Keras' own order.
    np.testing.assert_allclose(layer()(DATA), in_numpy(DATA.astype("float64")), atol=1e-4)


def trained(name):
    inputs = keras.Input((6, 5, 4))
    x = layers.Conv2D(4, 3, padding="same", name="before")(inputs)
    x = NORMALIZATIONS[name][0](name="norm")(x)
    x = layers.Conv2D(4, 1, activation="relu", name="after")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    for variable in model.get_layer("norm").weights:
        variable.assign(np.random.default_rng(1).normal(1, 0.3, variable.shape))
    wrapped = speq_keras.wrap(model, 4, 4, distillation=None)
    wrapped.calibrate(DATA, verbose=0)
    return wrapped


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_trained_network_is_its_file(name, tmp_path):
    model = trained(name)
    assert model.plan().file.islands == ("norm",)
    report = model.export_tflite(tmp_path / "m.tflite", data=DATA)
    assert report.proof.holds


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(12, 10), (3, 5), (9, 4)])
def test_images_are_resized(size, interpolation, tmp_path):
    inputs = keras.Input((6, 5, 4))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(3, 1)(ops.image.resize(x, size, interpolation=interpolation))
    model = speq_keras.wrap(keras.Model(inputs, layers.Flatten()(x)), 4, 4, distillation=None)
    model.calibrate(DATA, verbose=0)
    assert not model.plan().file.islands
    assert model.export_tflite(tmp_path / "m.tflite", data=DATA).proof.holds
