"""Frozen layers: neither their weights nor the ranges of what they make are trained."""

import keras
import numpy as np
import pytest
from keras import layers

import speq_keras

RNG = np.random.default_rng(3)
Y = RNG.integers(0, 3, 64)
X = (RNG.normal(size=(64, 6, 6, 2)) + 0.7 * Y[:, None, None, None]).astype("float32")
QUANTIZERS = {
    "pact": {},
    "lsq": {"weight_quantizer": "lsq", "activation_quantizer": "lsq_plus"},
    "qil": {"weight_quantizer": "qil", "activation_quantizer": "lsq_plus"},
}


def base():
    inputs = keras.Input((6, 6, 2))
    x = layers.Rescaling(0.5)(inputs)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", use_bias=False)(x))
    y = layers.ReLU()(layers.Add()([x, y]))
    y = layers.SeparableConv2D(4, 3, activation="swish")(y)
    return keras.Model(inputs, layers.MaxPooling2D(name="features")(y), name="base")


def network(is_frozen):
    keras.utils.set_random_seed(0)
    part = base()
    part.trainable = not is_frozen
    inputs = keras.Input((6, 6, 2))
    x = layers.Dense(8, activation="relu", name="new")(layers.Flatten()(part(inputs)))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def train(model, epochs=2, learning_rate=0.02):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(learning_rate), loss)
    model.fit(X, Y, epochs=epochs, verbose=0)


def features(model):
    inner = keras.Model(model.input, model.get_layer("base.features").output)
    return inner.predict(X, verbose=0)


def trained(model):
    return {variable.path for variable in model.trainable_variables}


def frozen(model):
    """The activation quantizers that would learn, if their layers did."""
    quantizers = [q for q in model.activation_quantizers if q.trainable_variables]
    return {q.name for q in quantizers if q.is_frozen}


def wrapped(model, **kwargs):
    model = speq_keras.wrap(model, 3, 3, seed=0, **kwargs)
    model.calibrate(X, verbose=0)
    return model


@pytest.mark.parametrize("quantizers", QUANTIZERS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_features_of_a_frozen_base_do_not_move(when, quantizers):
    model = wrapped(network(when == "before"), **QUANTIZERS[quantizers])
    if when == "after":
        model.part("base").trainable = False
    before = features(model)
    train(model)
    np.testing.assert_array_equal(features(model), before)
    assert trained(model)
    assert not any("base." in path for path in trained(model))


def test_a_file_keeps_what_is_frozen(tmp_path):
    model = wrapped(network(True))
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert trained(loaded) == trained(model)
    before = features(loaded)
    train(loaded, epochs=1)
    np.testing.assert_array_equal(features(loaded), before)


def test_an_unfrozen_base_learns_its_ranges_again():
    model, free = wrapped(network(True)), wrapped(network(False))
    model.part("base").trainable = True
    assert len(trained(model)) == len(trained(free))
    before = features(model)
    train(model, epochs=1)
    assert np.abs(features(model) - before).max() > 0


def test_transfer_learning_as_the_guide_of_keras_teaches_it():
    model = wrapped(network(True))
    base_variables = {v.path: v for layer in model.part("base").layers for v in layer.variables}
    before = {path: v.numpy() for path, v in base_variables.items()}
    train(model)  # the new head on the frozen base: weights, statistics, ranges, all of it
    for path, variable in base_variables.items():
        np.testing.assert_array_equal(variable.numpy(), before[path], err_msg=path)
    head = {v.path: v.numpy() for v in model.get_layer("head").variables}
    model.part("base").trainable = True
    train(model, learning_rate=1e-4)  # fine-tuning with a low rate
    moved = {path for path, v in base_variables.items() if np.any(v.numpy() != before[path])}
    assert {path for path in moved if "kernel" in path}
    assert {path for path in moved if "moving_mean" in path}
    assert all(
        np.any(v.numpy() != head[v.path])
        for v in model.get_layer("head").variables
        if "kernel" in v.path or "bias" in v.path
    )
    model.part("base").trainable = False  # and back
    before = {path: v.numpy() for path, v in base_variables.items()}
    train(model)
    for path, variable in base_variables.items():
        np.testing.assert_array_equal(variable.numpy(), before[path], err_msg=path)


def test_parts_of_parts_and_names_that_are_none():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="deep")], name="inner")
    outer = keras.Sequential([keras.Input((4,)), inner, layers.Dense(4, name="d")], name="outer")
    model = keras.Sequential([keras.Input((4,)), outer, layers.Dense(3, name="head")])
    model = speq_keras.wrap(model, 4, 8)
    assert [layer.name for layer in model.part("outer").layers] == ["outer.inner.deep", "outer.d"]
    model.part("outer.inner").trainable = False
    assert model.part("outer").trainable  # a layer of it is
    assert not model.part("outer.inner").trainable
    with pytest.raises(ValueError, match=r"'outer', 'outer\.inner'\. Received: name='head'"):
        model.part("head")


def test_variables_are_trained_or_not_and_never_both():
    model = wrapped(network(True))
    parts = [*model.trainable_variables, *model.non_trainable_variables]
    assert sorted(map(id, parts)) == sorted(map(id, model.variables))
    parts = [*model.trainable_weights, *model.non_trainable_weights]
    assert sorted(map(id, parts)) == sorted(map(id, model.weights))


def chain():
    """Two branches that meet in a sum and in a concatenation."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 1, name="stem", activation="relu")(inputs)
    a = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 1, name="a")(x))
    b = layers.Conv2D(4, 1, name="b", activation="relu")(x)
    y = layers.ReLU(name="relu")(layers.Add(name="sum")([a, b]))
    c = layers.Conv2D(4, 1, name="c", activation="relu")(y)
    d = layers.Conv2D(4, 1, name="d", activation="relu")(y)
    y = layers.Concatenate(name="both")([c, d])
    y = layers.GlobalAveragePooling2D(name="mean")(layers.Conv2D(4, 1, name="e")(y))
    return keras.Model(inputs, layers.Dense(3, name="head")(y))


# Frozen layers, and of which tensors the ranges are frozen with them.
RULES = {
    ("stem",): {"stem_relu_quantizer"},
    ("a",): set(),
    ("norm",): set(),  # the convolution before it still learns
    ("a", "norm"): {"norm_quantizer"},
    ("b",): {"b_relu_quantizer"},
    ("a", "norm", "b"): {"norm_quantizer", "b_relu_quantizer", "relu_quantizer"},
    ("relu",): {"relu_quantizer"},
    ("c",): {"c_relu_quantizer"},  # the range of c and d: what is frozen must not move
    ("e",): {"e_quantizer", "mean_quantizer"},
    ("head",): {"head_quantizer"},
}


@pytest.mark.parametrize("names", RULES, ids="+".join)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_range_follows_the_layers_that_make_its_tensor(names, when):
    float_model = chain()
    if when == "before":
        for name in names:
            float_model.get_layer(name).trainable = False
    model = speq_keras.wrap(float_model, 3, 3)
    if when == "after":
        for name in names:
            model.get_layer(name).trainable = False
    found = frozen(model)
    assert found == RULES[names]
    learns = {path.split("/")[0] for path in trained(model) if "quantizer/" in path}
    assert not learns & found


@pytest.mark.parametrize("name", ["maker", "reader", "sum"])
def test_a_second_quantizer_follows_its_readers(name):
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="first")(inputs)
    x = layers.Dense(4, name="maker")(x)
    y = layers.Add(name="sum")([x, layers.Dense(4, name="reader")(x)])
    model = speq_keras.wrap(keras.Model(inputs, layers.Dense(2)(y)), 3, 3)
    model.get_layer(name).trainable = False
    assert ("maker_requantizer" in frozen(model)) == (name == "reader")


def test_what_is_made_of_the_inputs_without_weights_follows_its_readers():
    inputs = keras.Input((4,))
    x = layers.Rescaling(2.0, name="scaled")(inputs)
    x = layers.Dense(4, name="first")(x)
    model = speq_keras.wrap(keras.Model(inputs, layers.Dense(2)(x)), 3, 3)
    model.get_layer("first").trainable = False
    assert frozen(model) == {"scaled_quantizer", "first_quantizer"}
