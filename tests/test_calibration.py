"""Calibration, and the statistics of BatchNormalization estimated again."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from dense_network import compiled, data, float_model, quantized_model, values
from keras import layers

from speq_keras.quantizers import PACT


class Batches(keras.utils.PyDataset):
    """The data of the tests in batches of 8, with targets."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return tuple(part[8 * index : 8 * index + 8] for part in data())


def ranges(model):
    """Returns {path: value} of everything that calibration sets."""
    names = ("alpha", "range_low", "range_high")
    return {v.path: float(v.value) for v in model.variables if v.path.endswith(names)}


def calibrated(source, model=None, **kwargs):
    model = quantized_model(model, calibrate=False)
    model.calibrate(source, verbose=0, **kwargs)
    return ranges(model)


# ---- kinds of data ---------------------------------------------------------------------------

SOURCES = {
    "tf.data of inputs": lambda: tf.data.Dataset.from_tensor_slices(data()[0]).batch(8),
    "tf.data of pairs": lambda: tf.data.Dataset.from_tensor_slices(data()).batch(8),
    "generator of inputs": lambda: (Batches()[i][0] for i in range(2)),
    "generator of pairs": lambda: (Batches()[i] for i in range(2)),
    "generator of triples": lambda: ((*Batches()[i], None) for i in range(2)),
    "PyDataset": Batches,
    "list of batches": lambda: [Batches()[i][0] for i in range(2)],
    "tensor": lambda: tf.constant(data()[0]),
    "dict of arrays": lambda: {"x": data()[0]},
    "tf.data of dicts": lambda: tf.data.Dataset.from_tensor_slices({"x": data()[0]}).batch(8),
}


@pytest.mark.parametrize("source", SOURCES)
def test_ranges_are_the_same_from_all_kinds_of_data(source):
    model = float_model()
    if "dict" in source:
        model = keras.Model({"x": model.input}, model.output)
    assert calibrated(SOURCES[source](), model) == calibrated(data()[0], batch_size=8)


def two_inputs():
    """Returns a model whose inputs are not in the order of their names, and arrays for it."""
    inputs = [keras.Input((4,), name=name) for name in ("b", "a")]
    x = layers.Concatenate()([layers.Dense(3)(x) for x in inputs])
    x = layers.Dense(2)(layers.Dense(3, activation="relu")(x))
    random = np.random.default_rng(0)
    return keras.Model(inputs, x), [
        random.normal(size=(16, 4)).astype("float32") * factor for factor in (1, 9)
    ]


def test_a_list_of_arrays_for_several_inputs_is_that_of_a_dict():
    model, arrays = two_inputs()
    named = dict(zip("ba", arrays, strict=True))
    assert calibrated(arrays, model, batch_size=8) == calibrated(named, model, batch_size=8)


def test_a_list_of_batches_of_several_inputs_is_that_of_arrays():
    model, arrays = two_inputs()
    batches = [[x[start : start + 8] for x in arrays] for start in (0, 8)]
    assert calibrated(batches, model) == calibrated(arrays, model, batch_size=8)


def test_steps_bound_the_number_of_batches():
    x, _ = data()
    assert calibrated(x, batch_size=4, steps=2) == calibrated(x[:8])


def test_steps_leave_the_rest_of_a_generator_alone():
    batches = (Batches()[i % 2] for i in range(5))
    calibrated(batches, steps=2)
    assert len(list(batches)) == 3


def test_calibration_is_deterministic():
    x, _ = data()
    assert calibrated(x) == calibrated(x)


def test_calibration_sets_trained_ranges_again():
    x, _ = data()
    model = quantized_model()
    before = ranges(model)
    for quantizer in model.activation_quantizers:
        if isinstance(quantizer, PACT):
            quantizer.alpha.assign(99.0)
    model.calibrate(x, verbose=0)
    assert ranges(model) == before


@pytest.mark.parametrize("training", [False, True])
def test_calibration_changes_ranges_and_nothing_else(training):
    x, _ = data()
    model = quantized_model(float_model(batch_norm=True, dropout=0.5), calibrate=False)
    before = values(model.variables)
    model.calibrate(x, training=training, verbose=0)
    after = values(model.variables)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    flags = {path for path in before if path.endswith("/calibrated")}
    assert changed == flags | set(ranges(model))


def test_calibration_sets_the_scale_of_wide_lsq_weights(tmp_path):
    keras.utils.set_random_seed(0)
    dense = [layers.Dense(64, name=name) for name in ("first", "middle", "last")]
    network = keras.Sequential([keras.Input((6,)), *dense])
    x = data(examples=64)[0]
    model = quantized_model(network, w_bits=8, a_bits=8, weight_quantizer="lsq", calibrate=False)

    def error():
        kernel = model.get_layer("middle").layer.kernel.numpy()
        rounded = model.get_layer("middle").quantizers["kernel"](kernel).numpy()
        return np.mean((rounded - kernel) ** 2) / np.mean(kernel**2)

    before = error()
    model.calibrate(x, verbose=0)
    assert error() < before / 5
    # A weight of -128 would have no kernel: the widest scale has none, and the narrow one clips.
    scale = model.get_layer("middle").quantizers["kernel"].scale
    scale.assign(scale * 0.5)
    assert model.export_tflite(tmp_path / "m.tflite").proof.holds


def test_calibration_leaves_widths_alone():
    model = quantized_model(calibrate=False)
    before = [quantizer.bits for quantizer in model.weight_quantizers]
    model.calibrate(data()[0], verbose=0)
    assert [quantizer.bits for quantizer in model.weight_quantizers] == before == [8, 3, 3, 8]


def test_failed_calibration_leaves_the_model_as_it_was():
    x, _ = data()
    model = quantized_model()
    before = model(x).numpy()
    with pytest.raises(ValueError, match="must be finite"):
        model.calibrate(np.full_like(x, np.nan), verbose=0)
    np.testing.assert_array_equal(model(x), before)


# ---- ranges ----------------------------------------------------------------------------------


def rounding_error(values, clip, low_code, high_code, steps):
    """Returns the summed squared error of rounding to multiples of clip / steps."""
    scale = clip / steps
    codes = np.clip(np.round(values / scale), low_code, high_code)
    return np.square(codes * scale - values).sum()


def best_error(values, low_code, high_code, steps):
    """Returns the least error of clipping levels 2^(1/16) apart; the first one clips nothing."""
    widest = max(values.max() / high_code, values.min() / (low_code or -np.inf)) * steps
    clips = widest * 2.0 ** (-np.arange(160) / 16)
    return min(rounding_error(values, clip, low_code, high_code, steps) for clip in clips)


@pytest.fixture(scope="module")
def float_activations():
    """A float model, its quantized model, and what the float model computes at every layer."""
    x, _ = data(examples=64)
    model = float_model()
    quantized = quantized_model(model, calibrate=False)
    quantized.calibrate(x, verbose=0)
    kernel, bias = (v.numpy() for v in model.get_layer("last").weights)
    names = {"first": "first", "second": "second_relu", "third": "third"}
    outputs = [model.get_layer(name).output for name in names.values()]
    computed = keras.Model(model.input, outputs)(x)
    activations = dict(zip(names, (y.numpy() for y in computed), strict=True))
    return quantized, {**activations, "last": activations["third"] @ kernel + bias, "x": x}


@pytest.mark.parametrize(
    ("layer", "codes", "steps"),
    [
        ("first", (0, 3), 3),
        ("second", (0, 3), 3),
        ("third", (0, 255), 255),
        ("last", (-128, 127), 128),
    ],
)
def test_clipping_level_has_the_least_error_on_the_float_network(
    float_activations, layer, codes, steps
):
    model, activations = float_activations
    name = "last_quantizer" if layer == "last" else f"{layer}_relu_quantizer"
    clip = float(model.get_layer(name).alpha.value)
    values = activations[layer].astype("float64")
    error = rounding_error(values, clip, *codes, steps)
    # Calibration counts the values in 2,048 bins, 8 to a step of 8 bits: errors of (1/16)² of a
    # step in those of 1/12.
    assert error <= 1.05 * best_error(values, *codes, steps)


def test_input_range_reaches_from_the_smallest_to_the_largest_value(float_activations):
    model, activations = float_activations
    quantizer = model.get_layer("x_quantizer")
    assert float(quantizer.range_low.value) == activations["x"].min()
    assert float(quantizer.range_high.value) == activations["x"].max()


def test_calibration_sees_float_weights_at_the_boundary_too():
    x, _ = data()
    model = float_model()
    # Rounded to 8 bits per output, the small weights of this layer are lost.
    kernel = model.get_layer("first").kernel.numpy()
    kernel[1:] *= 1e-3
    model.get_layer("first").kernel.assign(kernel)
    seen = []
    quantized = quantized_model(model, calibrate=False)
    quantizer = quantized.get_layer("first_relu_quantizer")
    quantizer.set_range = lambda histogram: seen.append((histogram.low, histogram.high))
    quantized.calibrate(x, verbose=0)
    y = keras.Model(model.input, model.get_layer("first").output)(x).numpy()
    assert seen == [(pytest.approx(y.min(), abs=1e-7), pytest.approx(y.max(), rel=1e-6))]


def test_sampling_of_large_tensors_meets_all_channels():
    # 2^18 values and 64 channels, of which one carries all there is.
    x = np.zeros((4096, 64), "float32")
    x[:, 1] = np.random.default_rng(0).uniform(size=4096)
    inputs = keras.Input((64,), name="x")
    h = layers.ReLU(name="relu")(layers.Dense(64, use_bias=False, name="first")(inputs))
    model = keras.Model(inputs, layers.Dense(2, "softmax")(layers.Dense(4, name="second")(h)))
    model.get_layer("first").kernel.assign(np.eye(64))
    quantized = quantized_model(model, calibrate=False)
    quantized.calibrate(x, batch_size=4096, verbose=0)
    clip = float(quantized.get_layer("relu_quantizer").alpha.value)
    # Uniform values on [0, 1] have the least error where 0, s, 2s, 3s are 3.5 steps of s = 2/7;
    # the candidates lie 2^(1/16) apart.
    assert clip == pytest.approx(6 / 7, rel=0.044)


# ---- training without calibration ------------------------------------------------------------


def test_training_without_calibration_says_so_once():
    x, y = data()
    model = compiled(quantized_model(calibrate=False))
    with pytest.warns(UserWarning, match="not calibrated.*first batch"):
        model.fit(x, y, verbose=0)
    model.fit(x, y, verbose=0)  # a second warning would be an error


def test_training_without_calibration_says_so_before_it_changes_anything():
    x, y = data()
    model = compiled(quantized_model(calibrate=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="not calibrated"):
            model.train_on_batch(x, y)
    assert not model.is_calibrated


@pytest.mark.parametrize("source", ["arrays", "tf.data", "PyDataset", "generator"])
def test_training_without_calibration_calibrates_on_the_first_batch(source):
    x, y = data()
    float_network = float_model(batch_norm=True)  # the batch's own statistics count
    model = quantized_model(float_network, calibrate=False)
    compiled(model, optimizer=keras.optimizers.SGD(0.0))
    arguments = {
        "arrays": {"x": x, "y": y, "batch_size": 8},
        "tf.data": {"x": tf.data.Dataset.from_tensor_slices((x, y)).batch(8)},
        "PyDataset": {"x": Batches()},
        "generator": {"x": (Batches()[i] for i in range(2)), "steps_per_epoch": 2},
    }
    with pytest.warns(UserWarning, match="not calibrated"):
        model.fit(**arguments[source], shuffle=False, verbose=0)
    assert ranges(model) == calibrated(x[:8], float_network, training=True)


def test_training_on_a_batch_calibrates_on_all_of_it():
    x, y = data(examples=40)
    model = compiled(quantized_model(calibrate=False), optimizer=keras.optimizers.SGD(0.0))
    with pytest.warns(UserWarning, match="not calibrated"):
        model.train_on_batch(x, y)
    assert ranges(model) == calibrated(x, batch_size=40, training=True)


def test_calibration_before_training_takes_no_batch_from_a_generator():
    x, y = data()
    trained_on = []

    def batches():
        for start in range(0, 16, 4):
            trained_on.append(start)
            yield x[start : start + 4], y[start : start + 4]

    model = compiled(quantized_model(calibrate=False))
    seen = []
    train_step = model.train_step
    model.train_step = lambda batch: seen.append(batch[0][0, 0]) or train_step(batch)
    with pytest.warns(UserWarning, match="not calibrated"):
        model.fit(batches(), steps_per_epoch=4, verbose=0)
    assert [float(value) for value in seen] == [x[start, 0] for start in range(0, 16, 4)]


def test_training_sets_only_ranges_that_are_not_calibrated():
    x, y = data()
    source, target = quantized_model(), quantized_model(calibrate=False)
    name = "second_relu_quantizer"
    for mine, theirs in zip(
        target.get_layer(name).variables, source.get_layer(name).variables, strict=True
    ):
        mine.assign(theirs)
    target.get_layer(name).alpha.assign(0.123)
    compiled(target, optimizer=keras.optimizers.SGD(0.0))
    with pytest.warns(UserWarning, match="not calibrated"):
        target.train_on_batch(x, y)
    expected = {**calibrated(x, training=True), f"{name}/alpha": pytest.approx(0.123)}
    assert ranges(target) == expected


# ---- BatchNormalization ----------------------------------------------------------------------


def test_statistics_estimated_again_are_averages_over_batches():
    x, _ = data()
    model = quantized_model(float_model(batch_norm=True))
    features = keras.Model(model.input, model.get_layer("second").output)
    batches = [features(x[start : start + 8]).numpy() for start in (0, 8)]
    assert model.reestimate_batch_norm(x, batch_size=8) == 1
    norm = model.get_layer("norm")
    means, variances = ([f(b, axis=0) for b in batches] for f in (np.mean, np.var))
    np.testing.assert_allclose(norm.moving_mean, np.mean(means, axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, np.mean(variances, axis=0), rtol=1e-5)


def test_estimating_statistics_again_changes_nothing_else():
    x, _ = data()
    model = quantized_model(float_model(batch_norm=True, dropout=0.5))
    before = values(model.variables)
    model.reestimate_batch_norm(x)
    after = values(model.variables)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {"norm/moving_mean", "norm/moving_variance"}
    assert model.get_layer("norm").momentum == 0.99


def test_frozen_statistics_are_not_estimated_again():
    x, _ = data()
    model = quantized_model(float_model(batch_norm=True))
    model.get_layer("norm").trainable = False
    assert model.reestimate_batch_norm(x) == 0
    np.testing.assert_array_equal(model.get_layer("norm").moving_mean, np.zeros(8))


def test_statistics_cannot_be_estimated_from_nothing():
    model = quantized_model(float_model(batch_norm=True))
    with pytest.raises(ValueError, match="Received: an empty data set"):
        model.reestimate_batch_norm([])
