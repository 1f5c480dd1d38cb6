"""Models whose inputs are whole numbers: pixels of 8 bits, counts, places in a table."""

import functools

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers, ops

import speq_keras

EXAMPLES = 32
# What stands before the first layer with weights; shape, dtype, number of values; types of the
# file's input for io="float32", "uint8" and "int8".
PIXELS = ((6, 6, 3), "uint8", 256), ("float32", "uint8", "int8")
COUNTS = ((9,), "int32", 10), ("int32", "int32", "int32")
CASES = {
    "x / 255": (lambda x: x / 255.0, *PIXELS),
    "(x - 127.5) / 127.5": (lambda x: (x - 127.5) / 127.5, *PIXELS),
    "Rescaling": (lambda x: layers.Rescaling(1 / 127.5, -1.0)(x), *PIXELS),
    "Normalization": (
        lambda x: layers.Normalization(mean=[100.0, 120, 130], variance=[50.0, 60, 70])(x),
        *PIXELS,
    ),
    "cast(x) / 255": (lambda x: ops.cast(x, "float32") / 255, *PIXELS),
    "int8 times a number": (
        lambda x: x * 0.02,
        ((6, 6, 3), "int8", 100),
        ("float32", "uint8", "int8"),
    ),
    "x * 0.1": (lambda x: x * 0.1, *COUNTS),
    "x / 10": (lambda x: x / 10, *COUNTS),
    "cast(x) * 0.1": (lambda x: ops.cast(x, "float32") * 0.1, *COUNTS),
    "cast of truths": (
        lambda x: ops.cast(x, "float32") * 2,
        ((9,), "bool", 2),
        ("int32", "int32", "int32"),
    ),
    "places of 8 bits": (
        lambda x: layers.Embedding(20, 4)(x),
        ((5,), "uint8", 20),
        ("int32", "int32", "int32"),
    ),
}


def data(shape, dtype, count):
    return np.random.default_rng(1).integers(0, count, (EXAMPLES, *shape)).astype(dtype)


def quantized(scale, numbers):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(numbers[0], dtype=numbers[1])
    x = layers.Flatten()(scale(inputs))
    x = layers.Dense(6, activation="relu")(layers.Dense(6)(x))
    network = keras.Model(inputs, layers.Dense(3, name="last")(x))
    model = speq_keras.wrap(network, 8, 8, distillation=None)
    model.calibrate(data(*numbers), verbose=0)
    return network, model


def run(path, x, model, io):
    """Returns the type of a file's input, and what it makes of whole numbers, in float."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (read,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    # As io="int8" says, pixels of uint8 come less 128.
    offset = 128 if io == "int8" and x.dtype == np.uint8 and read["dtype"] == np.int8 else 0
    offset = -128 if io == "uint8" and x.dtype == np.int8 else offset
    rows = []
    for row in x.astype("int32") - offset:
        interpreter.set_tensor(read["index"], row[None].astype(read["dtype"]))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(made["index"]))
    values = np.concatenate(rows).astype("float64")
    if io != "float32":
        scale, zero_point = made["quantization"]
        values = (values - zero_point) * scale
    return np.dtype(read["dtype"]).name, values


@pytest.mark.parametrize("name", CASES)
def test_a_wrapped_model_reads_what_keras_reads(name):
    scale, numbers, _ = CASES[name]
    network, model = quantized(scale, numbers)
    x = data(*numbers)
    wanted = network.predict(x, verbose=0)
    away = np.sqrt(np.mean((model.predict(x, verbose=0) - wanted) ** 2))
    assert away < 0.03 * wanted.std()  # three layers of 8 bits


@functools.cache
def settled(name):
    _, model = quantized(*CASES[name][:2])
    model.settle()
    return model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("place", range(3), ids=["float32", "uint8", "int8"])
def test_the_file_reads_whole_numbers(name, place, tmp_path):
    _, numbers, types = CASES[name]
    io = ("float32", "uint8", "int8")[place]
    model = settled(name)
    # Once on random inputs, once on these.
    assert model.export_tflite(tmp_path / "m.tflite", io=io).proof.holds
    x = data(*numbers)
    report = model.export_tflite(tmp_path / "m.tflite", io=io, data=x)
    assert report.proof.holds
    dtype, values = run(tmp_path / "m.tflite", x, model, io)
    assert dtype == types[place]
    step = model.get_layer("last_quantizer").grid()[0]
    np.testing.assert_allclose(values, model.predict(x, verbose=0), atol=1e-3 * step)


def test_random_inputs_reach_all_of_the_pixels():
    from speq_keras.export.inputs import generate_inputs

    for name in ("x / 255", "cast(x) / 255"):
        _, model = quantized(*CASES[name][:2])
        (x,) = generate_inputs(speq_keras.fold(model).folded)
        assert np.array_equal(x, np.rint(x))
        assert x.min() < 16
        assert x.max() > 239
        assert x.min() >= 0
        assert x.max() <= 255


INTEGER_OPERATIONS = {
    "x + 1": lambda x: x + 1,
    "x - 3": lambda x: x - 3,
    "x * 2": lambda x: x * 2,
    "x // 2": lambda x: x // 2,
    "x + x": lambda x: x + x,
    "abs(x - 5)": lambda x: ops.abs(x - 5),
    "maximum(x, 4)": lambda x: ops.maximum(x, 4),
    "not_equal(x, 0)": lambda x: ops.not_equal(x, 0),
}


@pytest.mark.parametrize("name", INTEGER_OPERATIONS)
def test_arithmetic_of_whole_numbers_is_computed_or_refused(name, tmp_path):
    inputs = keras.Input((4,), dtype="int32")
    x = ops.cast(INTEGER_OPERATIONS[name](inputs), "float32")
    x = layers.Dense(3)(layers.Dense(3)(x))
    model = speq_keras.wrap(keras.Model(inputs, x), 8, 8, distillation=None)
    x = data((4,), "int32", 10)
    model.calibrate(x, verbose=0)
    if model.plan().file.is_refused:
        with pytest.raises(ValueError, match="must be one that integer kernels compute"):
            model.export_tflite(tmp_path / "m.tflite")
        return
    model.settle()
    assert model.export_tflite(tmp_path / "m.tflite", data=x).proof.holds
    _, values = run(tmp_path / "m.tflite", x, model, "float32")
    # Whole numbers may lie halfway between two codes, which no settling of floats avoids.
    away = np.abs(values - model.predict(x, verbose=0))
    assert np.mean(away < 1e-4) > 0.8
    assert np.max(away) < 2.01 * model.activation_quantizers[-1].grid()[0]
