"""Whole numbers, half precision and casts: a wrapped model computes what the float model does."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

RNG = np.random.default_rng(0)
SIZE = 12


def normalization():
    return layers.Normalization(mean=np.linspace(10, 90, SIZE), variance=np.linspace(9, 99, SIZE))


# Name: (what the network does first, dtype of its input, the largest value).
FIRST = {
    "divided": (lambda x: x / 255.0, "uint8", 255),
    "divided by a whole number": (lambda x: x / 10, "int32", 9),
    "times a fraction": (lambda x: x * 0.1, "int32", 9),
    "a fraction times": (lambda x: 0.1 * x, "int32", 9),
    "times a whole number, divided": (lambda x: x * 3 / 7, "int32", 9),
    "bytes with a sign": (lambda x: x / 127.0, "int8", 127),
    "long numbers": (lambda x: x * 0.25, "int64", 9),
    "flags": (lambda x: x * 0.5, "bool", 1),
    "flags as numbers": (lambda x: ops.cast(x, "float32") * 0.5, "bool", 1),
    "shifted": (lambda x: (x - 127.5) / 127.5, "uint8", 255),
    "added": (lambda x: (x + 1) / 4, "int32", 9),
    "subtracted from": (lambda x: (255.0 - x) / 255.0, "uint8", 255),
    "divided twice": (lambda x: x / 5 / 51.0, "uint8", 255),
    "cast": (lambda x: ops.cast(x, "float32") / 255, "uint8", 255),
    "cast to half": (lambda x: ops.cast(ops.cast(x, "float16") / 255, "float32"), "uint8", 255),
    "Rescaling": (lambda x: layers.Rescaling(1 / 127.5, -1)(x), "uint8", 255),
    "Normalization": (lambda x: normalization()(x), "uint8", 255),
    "sum": (lambda x: layers.Add()([x, x]) / 20, "int32", 9),
    "mean": (lambda x: layers.Average()([x, x, x]) * 0.1, "int32", 9),
    "product": (lambda x: layers.Multiply()([x, x]) * 0.01, "int32", 9),
    "a half times": (lambda x: ops.cast(x * 0.5, "float32"), "float16", 2),
    "a half times a single": (lambda x: x * np.float32(0.5), "float16", 2),
    "double": (lambda x: ops.cast(x / 3.0, "float32"), "float64", 2),
    "of half a layer": (
        lambda x: ops.cast(layers.Dense(SIZE, dtype="float16")(x) * 0.5, "float32"),
        "float32",
        2,
    ),
}


def data(dtype, high, count=64):
    if "float" in dtype:
        return RNG.uniform(-high, high, (count, SIZE)).astype(dtype)
    return RNG.integers(0, high + 1, (count, SIZE)).astype(dtype)


def network(name):
    first, dtype, high = FIRST[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE,), dtype=dtype, name="x")
    y = layers.Dense(8, activation="relu")(first(inputs))
    y = layers.Dense(8, activation="relu")(y)
    return keras.Model(inputs, layers.Dense(3)(y)), data(dtype, high)


@pytest.mark.parametrize("name", FIRST)
def test_in_float_it_is_the_same_function(name):
    model, x = network(name)
    wrapped = speq_keras.wrap(model, a_bits=None, boundary_bits=None, distillation=None)
    wrapped.set_bits(weights=None)
    wanted = model.predict(x, verbose=0)
    # A product with 1/n in place of a quotient is rounded once more, and in half precision coarser.
    rtol = 4e-3 if "half" in name else 1e-5
    np.testing.assert_allclose(wrapped.predict(x, verbose=0), wanted, rtol=rtol, atol=rtol)
    assert wrapped.output.dtype == model.output.dtype


@pytest.mark.parametrize("name", FIRST)
def test_at_8_bits_it_is_close_and_its_file_is_it(name, tmp_path):
    model, x = network(name)
    wrapped = speq_keras.wrap(model, 8, 8, distillation=None)
    wrapped.calibrate(x, verbose=0)
    wanted, found = model.predict(x, verbose=0), wrapped.predict(x, verbose=0)
    # Roundings of weights and activations, about 3 % each; another function is off by 100 %.
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.1 * wanted.std()
    assert wrapped.export_tflite(tmp_path / "m.tflite").proof.holds
    assert wrapped.export_tflite(tmp_path / "m.tflite", data=x).proof.holds


def test_in_mixed_precision_a_function_keeps_the_dtype_of_its_tensor():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((SIZE,), dtype="float32", name="x")
        y = ops.silu(inputs) * 1000.0
        model = keras.Model(inputs, layers.Dense(2, dtype="float32")(y))
        wrapped = speq_keras.wrap(model, 8, 8, distillation=None)
    finally:
        keras.config.set_dtype_policy("float32")
    x = data("float32", 40)
    wrapped.calibrate(x, verbose=0)
    made = {layer.name: layer.output.dtype for layer in wrapped.layers if "silu" in layer.name}
    assert len(made) == 4
    assert set(made.values()) == {"float32"}


MASKED = {
    # Keras' Multiply takes 1 for what a mask hides; x · sigmoid(x) of a masked x is no product.
    "swish": lambda x: layers.Dense(4, activation="swish")(ops.silu(x)),
    # An operation passes no mask on, and a layer in its place would; Minimum looks at both masks.
    "a factor": lambda x: layers.Minimum()([layers.Concatenate()([x, x * 0.1]), ops.tile(x, 2)]),
}


@pytest.mark.parametrize("body", MASKED.values(), ids=MASKED)
def test_masked_words_are_computed_as_keras_does(body):
    keras.utils.set_random_seed(0)
    words = keras.Input((5,), dtype="int32")
    x = body(layers.Dense(4)(layers.Embedding(11, 3, mask_zero=True)(words)))
    network = keras.Model(words, layers.Dense(2)(layers.Flatten()(x)))
    model = speq_keras.wrap(network, 8, 8, distillation=None)
    for quantizer in model.weight_quantizers:
        quantizer.bits = None
    for quantizer in model.activation_quantizers:
        quantizer.observer = lambda quantizer, inputs: None
    data = np.random.default_rng(0).integers(0, 11, (16, 5))
    assert np.any(data == 0)
    # The order of sums in float32.
    np.testing.assert_allclose(model(data), network(data), rtol=1e-4, atol=1e-5)
