"""tfmot on Keras 3: the same values as tfmot on tf_keras, in programs and in `wrap`."""

import importlib.util

import keras
import numpy as np
import pytest
from fresh_process import run

if importlib.util.find_spec("tensorflow_model_optimization") is None:
    pytest.skip("tfmot is not installed", allow_module_level=True)
if keras.backend.backend() != "tensorflow":
    pytest.skip("tfmot needs TensorFlow", allow_module_level=True)

import tensorflow as tf
from tfmot_networks import NETWORKS, digits, images, random_weights
from tfmot_programs import (
    CASES,
    NOT_FUSED,
    guide,
    guide_configs,
    not_fused,
    results,
    tutorial,
)

import speq_keras
from speq_keras import tfmot
from speq_keras.quantizers.histogram import Histogram
from speq_keras.tfmot.quantizers import (
    CalledWeights,
    FollowedActivations,
    activation_quantizer,
    weight_quantizer,
)
from speq_keras.tfmot.translate import OldView

Q = tfmot.quantization.keras.quantizers
REGISTRY = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()

# A warning of Keras 3 for `input_shape=`, which tfmot's examples have.
pytestmark = pytest.mark.filterwarnings("ignore:.*input_shape")

LEGACY = """
import sys
import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from tfmot_programs import CASES, results

# tfmot makes Lambda layers of a SeparableConv1D, and tf_keras refuses to copy them otherwise.
tf_keras.__internal__.enable_unsafe_deserialization()
found = {}
for case in CASES:
    found[case], found[f"{case}, ranges"] = results(tf_keras, tfmot, case)
np.savez(sys.argv[1], **found)
"""


# ---- the same programs on both ---------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfmot") / "expected.npz"
    process = run(LEGACY, path, TF_USE_LEGACY_KERAS="1")
    assert process.returncode == 0, process.stderr[-2000:]
    return np.load(path)


# The two Kerases do not normalize in the same order of sums: of 1,600 outputs behind a convolution
# and BatchNormalization, up to 3 fell on the other side of a threshold.
NORMALIZED = ("conv_bn_relu", "separable_norm", "transposed")


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_ranges_are_those_of_tfmot_on_tf_keras(expected, case):
    outputs, ranges = results(tf.keras, tfmot, case)
    # Tells what is rounded where: codes are often the same in two ranges, their ends are not.
    np.testing.assert_allclose(ranges, expected[f"{case}, ranges"], atol=1e-4)
    differ = np.abs(outputs - expected[case]) > 1e-5
    assert np.mean(differ) <= (0.003 if case in NORMALIZED else 0)


def test_the_tutorial_trains_and_exports(tmp_path):
    with pytest.warns(UserWarning, match="input_shape"):
        float_accuracy, accuracy, model = tutorial(tf.keras, tfmot)
    x, y = digits(1500)
    report = model.export_tflite(tmp_path / "m.tflite", data=(x, y))
    assert float_accuracy > 0.7
    assert accuracy > float_accuracy - 0.03
    assert report.accuracy.file == pytest.approx(accuracy, abs=0.005)


# ---- quantizers ------------------------------------------------------------------------------


def fake_quantized(x, low, high, bits):
    """TensorFlow's rule for a range that is moved so that zero has a code."""
    scale = (high - low) / (2**bits - 1)
    zero = np.floor(-low / scale + 0.5)
    return (np.clip(np.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


X = np.float32([-0.61, 0.23, 0.47, 1.13, 2.9])


def test_a_moving_average_moves_by_a_thousandth_of_the_way():
    quantizer = activation_quantizer(Q.MovingAverageQuantizer(8, False, False, False))
    quantizer(X, training=True)
    assert float(quantizer.range_low.value) == pytest.approx(-6 + 0.001 * (6 - 0.61))
    assert float(quantizer.range_high.value) == pytest.approx(6 - 0.001 * (6 - 2.9))


@pytest.mark.parametrize(("rule", "low"), [("LastValue", 0), ("MovingAverage", -6 + 0.001 * 6)])
def test_a_range_holds_zero_whatever_was_seen(rule, low):
    make = {"LastValue": weight_quantizer, "MovingAverage": activation_quantizer}[rule]
    for sign in (1, -1):
        quantizer = make(getattr(Q, f"{rule}Quantizer")(8, False, False, False))
        quantizer(sign * np.float32([1, 2]), training=True)
        end = quantizer.range_low if sign > 0 else quantizer.range_high
        assert sign * float(end.value) == pytest.approx(low)


def test_all_values_hold_what_was_seen_before():
    quantizer = activation_quantizer(Q.AllValuesQuantizer(8, False, False, False))
    quantizer(X, training=True)
    quantizer(X / 2 + 2, training=True)
    assert float(quantizer.range_low.value) == pytest.approx(-0.61)
    assert float(quantizer.range_high.value) == pytest.approx(3.45)


def test_inference_moves_no_range():
    quantizer = activation_quantizer(Q.AllValuesQuantizer(8, False, False, False))
    quantizer(X, training=True)
    quantizer(10 * X)
    assert float(quantizer.range_high.value) == pytest.approx(2.9)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_values_are_rounded_in_the_range_of_the_tensor(bits):
    quantizer = weight_quantizer(Q.LastValueQuantizer(bits, False, False, False))
    values = quantizer(X, training=True)
    np.testing.assert_allclose(values, fake_quantized(X, -0.61, 2.9, bits), atol=1e-6)


def test_a_symmetric_range_has_one_code_more_below_zero():
    quantizer = weight_quantizer(Q.LastValueQuantizer(4, False, True, False))
    quantizer(X, training=True)
    assert float(quantizer.range_low.value) == pytest.approx(-2.9 * 8 / 7)
    assert float(quantizer.range_high.value) == pytest.approx(2.9)


def test_a_range_per_axis_is_that_of_the_last_axis():
    quantizer = weight_quantizer(Q.LastValueQuantizer(8, True, True, True))
    quantizer(np.float32([[1, -4], [-2, 3]]), training=True)
    np.testing.assert_allclose(quantizer.range_high.value, [2, 4])


def test_a_fixed_quantizer_has_eight_bits_whatever_it_is_told_as_in_tfmot():
    quantizer = activation_quantizer(Q.FixedQuantizer(4, 0.0, 255.0, False))
    np.testing.assert_allclose(quantizer(np.float32([20.3, 300])), [20, 255])


@pytest.mark.parametrize("narrow_range", [False, True])
def test_a_run_time_width_rounds_as_the_constant_one(narrow_range):
    settings = {"rule": "fixed", "bits": 3, "low": -1.0, "high": 2.0, "narrow_range": narrow_range}
    constant = FollowedActivations(**settings)
    target = FollowedActivations(**settings, has_target_width=True)
    np.testing.assert_allclose(target(X), constant(X), atol=1e-6)


@pytest.mark.parametrize("narrow_range", [False, True])
def test_the_grid_holds_all_values_that_the_kernel_makes(narrow_range):
    quantizer = FollowedActivations(
        rule="fixed", bits=4, low=-0.61, high=2.9, narrow_range=narrow_range
    )
    x = np.linspace(-1, 4, 500, dtype="float32")
    values = np.unique(quantizer(x))
    scale, low, high = quantizer.grid()
    codes = values / scale
    np.testing.assert_allclose(codes, np.arange(low, high + 1), atol=1e-4)


def test_the_gradient_is_one_inside_the_range_and_zero_outside():
    quantizer = FollowedActivations(rule="fixed", low=-0.5, high=2.0)
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = quantizer(x)
    assert tape.gradient(y, x).numpy().tolist() == [0, 1, 1, 1, 0]


def test_activations_per_channel_are_refused():
    with pytest.raises(ValueError, match="one range per tensor"):
        activation_quantizer(Q.MovingAverageQuantizer(8, True, False, False))


def test_more_than_eight_bits_are_refused():
    with pytest.raises(ValueError, match="from 2 to 8"):
        weight_quantizer(Q.LastValueQuantizer(16, False, True, False))


# ---- wrap ------------------------------------------------------------------------------------


def small_model():
    return random_weights(NETWORKS["tutorial"](keras))


def default_configs(model):
    return {
        layer.name: REGISTRY.get_quantize_config(OldView(layer))
        for layer in model.layers
        if layer.weights
    }


def test_tfmots_configs_in_wrap_give_tfmots_values():
    model = small_model()
    wrapped = speq_keras.wrap(model, 8, 8, configs=default_configs(model), distillation=None)
    expected = tfmot.quantize_model(model)
    batches = [images("tutorial", batch) for batch in range(3)]
    # The input range is calibrated in `wrap`, and in tfmot the smallest and largest value so far.
    wrapped.activation_quantizers[0].calibrate(Histogram(batches[0]))
    for batch in batches:
        batch = np.clip(batch, batches[0].min(), batches[0].max())
        wrapped(batch, training=True)
        expected(batch, training=True)
    np.testing.assert_allclose(wrapped(batches[0]), expected(batches[0]), atol=1e-5)


def test_a_config_of_ones_own_goes_into_wrap():
    model = small_model()
    config = guide_configs(tf.keras, tfmot)["FewBitsConfig"]()
    wrapped = speq_keras.wrap(model, 8, 8, configs={model.layers[-1].name: config})
    row = wrapped.plan().row(model.layers[-1].name)
    assert row.w_bits == 4
    assert isinstance(wrapped.activation_quantizers[-1], FollowedActivations)


def test_a_quantizer_of_ones_own_goes_into_wrap():
    model = small_model()
    config = guide_configs(tf.keras, tfmot)["OwnQuantizerConfig"]()
    wrapped = speq_keras.wrap(model, 8, 8, configs={model.layers[-1].name: config})
    layer = wrapped.get_layer(model.layers[-1].name)
    assert isinstance(layer.quantizers["kernel"], CalledWeights)
    kernel = layer.quantizers["kernel"](layer.variable("kernel"))
    np.testing.assert_allclose(kernel, np.clip(layer.variable("kernel"), -0.1, 0.1))


def test_a_quantizer_of_ones_own_follows_the_student_and_not_the_teacher():
    dense = [keras.layers.Dense(4, activation="relu", name=f"d{n}") for n in range(4)]
    config = guide_configs(tf.keras, tfmot)["OwnQuantizerConfig"]()
    last = keras.layers.Dense(4, activation="softmax")
    model = speq_keras.wrap(dense_model(*dense, last), 2, 2, configs={"d3": config})
    model.calibrate(X[None], verbose=0)
    model.compile("sgd", "mse", run_eagerly=True)
    model.train_on_batch(X[None], np.zeros((1, 4)))
    quantizer = model.get_layer("d3").quantizers["kernel"]
    assert float(quantizer.own["limit"].value) == pytest.approx(0.9 * 0.1)  # one step, one pass


def test_weights_of_a_layer_with_different_quantizers_are_refused_in_wrap():
    class Different(guide_configs(tf.keras, tfmot)["FewBitsConfig"]):
        def get_weights_and_quantizers(self, layer):
            pair = super().get_weights_and_quantizers(layer)
            return [*pair, (layer.bias, Q.LastValueQuantizer(8, False, True, False))]

    model = dense_model(keras.layers.Dense(2, name="d"))
    with pytest.raises(ValueError, match="several from Different for layer 'd'. Use speq_keras"):
        speq_keras.wrap(model, 8, 8, configs={"d": Different()}, distillation=None)


def test_a_config_of_a_layer_without_weights_goes_into_wrap():
    config = REGISTRY.get_quantize_config(OldView(keras.layers.ReLU()))
    relu = keras.layers.ReLU(name="relu")
    model = dense_model(keras.layers.Dense(4), relu, keras.layers.Dense(2))
    wrapped = speq_keras.wrap(model, 8, 8, configs={"relu": config}, distillation=None)
    assert isinstance(wrapped.get_layer("relu_quantizer"), FollowedActivations)


def test_the_rest_of_a_model_with_a_config_of_tfmot_trains_with_speq():
    dense = [keras.layers.Dense(4, activation="relu", name=f"d{n}") for n in range(4)]
    config = REGISTRY.get_quantize_config(OldView(dense[3]))
    wrapped = speq_keras.wrap(dense_model(*dense), 2, 2, configs={"d3": config})
    assert [q.name for q in wrapped.target_quantizers] == ["d0_relu_quantizer", "d1_relu_quantizer"]


def test_fit_does_not_calibrate_what_follows_training():
    model = tfmot.quantize_model(small_model())
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = digits(32)
    model.fit(x, y, verbose=0)
    # One step of a moving average that begins at 6.
    assert 5.99 < float(model.activation_quantizers[1].range_high.value) < 6


# ---- annotations -----------------------------------------------------------------------------


def test_an_annotated_layer_computes_what_it_did():
    layer = keras.layers.Dense(3)
    annotated = tfmot.quantize_annotate_layer(layer)
    np.testing.assert_array_equal(annotated(X[None]), layer(X[None]))


def test_an_annotated_model_has_weights_of_its_own():
    model = small_model()
    before = model.get_weights()
    random_weights(tfmot.quantize_annotate_model(model), seed=1)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_an_annotated_model_is_saved_and_loaded(tmp_path):
    config = REGISTRY.get_quantize_config(OldView(keras.layers.Dense(3)))
    dense = tfmot.quantize_annotate_layer(keras.layers.Dense(3), config)
    model = keras.Sequential([keras.Input((5,)), dense])
    model.save(tmp_path / "m.keras")
    with tfmot.quantize_scope():
        loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.layers[0].quantize_config == config
    np.testing.assert_array_equal(loaded(X[None]), model(X[None]))


@pytest.mark.parametrize("config_name", ["FewBitsConfig", "OwnQuantizerConfig"])
def test_a_quantized_model_is_saved_and_loaded(tmp_path, config_name):
    with pytest.warns(UserWarning, match="input_shape"):
        model = guide(tf.keras, tfmot, config_name)
    x = np.random.default_rng(0).normal(size=(4, 20)).astype("float32")
    model(x, training=True)
    model.save(tmp_path / "m.keras")
    custom = type(model.layers[2].layer)
    scope = {**guide_configs(tf.keras, tfmot), "CustomLayer": custom}
    with tfmot.quantize_scope(scope):
        loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


def test_the_float_model_of_a_quantized_one_has_the_old_names_and_weights():
    model = small_model()
    quantized = tfmot.quantize_model(model)
    x = images("tutorial", 0)
    assert [layer.name for layer in quantized.float_model().layers[1:]] == [
        layer.name for layer in model.layers
    ]
    np.testing.assert_allclose(quantized.float_model()(x), model(x), atol=1e-6)


def test_the_prefix_begins_the_names_of_quantized_layers():
    model = tfmot.quantize_model(small_model(), quantized_layer_name_prefix="q8_")
    assert sum(layer.name.startswith("q8_") for layer in model.layers) == 8


def dense_model(*layers):
    return keras.Sequential([keras.Input((5,)), *layers])


def error_cases():
    lstm = keras.Sequential([keras.Input((5, 2)), keras.layers.LSTM(2)])
    elu = dense_model(keras.layers.Dense(2, activation="elu"))
    nested = dense_model(dense_model(keras.layers.Dense(2)))
    plain = dense_model(keras.layers.Dense(2))
    q_model, q_apply = tfmot.quantize_model, tfmot.quantize_apply
    return {
        "unknown layer": (lambda: q_model(lstm), RuntimeError, r"\(LSTM\). Pass one to"),
        "unknown function": (lambda: q_model(elu), ValueError, "Received: 'elu' in layer"),
        "nested": (lambda: q_model(nested), ValueError, "must not contain a model"),
        "no annotation": (lambda: q_apply(plain), ValueError, "must be annotated"),
        "no model": (lambda: q_apply("model"), ValueError, "`model` must be a Functional"),
        "no layer": (lambda: tfmot.quantize_annotate_layer(plain), ValueError, "is not a model"),
        "no config": (
            lambda: tfmot.quantize_annotate_layer(keras.layers.Dense(2), "8 bits"),
            ValueError,
            "`quantize_config` must be a tfmot QuantizeConfig",
        ),
        "scheme": (
            lambda: q_apply(tfmot.quantize_annotate_model(plain), scheme="default"),
            ValueError,
            "`scheme` must be tfmot's Default8BitQuantizeScheme",
        ),
    }


@pytest.mark.parametrize("case", error_cases())
def test_what_cannot_be_quantized_is_named(case):
    function, error, message = error_cases()[case]
    with pytest.raises(error, match=message):
        function()


@pytest.mark.parametrize("case", NOT_FUSED)
def test_a_normalization_that_no_rule_fuses_is_refused(case):
    # tfmot refuses each of these networks, too.
    model = not_fused(keras, tfmot, case)
    with pytest.raises(RuntimeError, match=r"'norm' \(BatchNormalization\). Pass one to"):
        tfmot.quantize_apply(model)


# ---- export ----------------------------------------------------------------------------------


def trained_for_export(name):
    model = tfmot.quantize_model(random_weights(NETWORKS[name](keras)))
    model(images(name, 0), training=True)
    return model


@pytest.mark.parametrize("name", ["conv_bn_relu", "relu_layers", "swish", "separable_norm"])
def test_exported_codes_are_those_of_the_simulation(tmp_path, name):
    report = trained_for_export(name).export_tflite(tmp_path / "m.tflite", data=images(name, 0))
    assert report.proof.holds


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("concatenate", "'quant_cat' (Concatenate): its inputs have different grids"),
        ("pooling", "its output must have the grid of its input"),
    ],
)
def test_what_integer_kernels_cannot_compute_is_a_float_island(tmp_path, name, message):
    model = trained_for_export(name)
    report = model.export_tflite(tmp_path / "m.tflite", data=images(name, 0))
    assert report.proof.holds
    assert any(message in note for note in report.notes)


def test_a_model_that_has_seen_nothing_is_not_exported(tmp_path):
    with pytest.raises(RuntimeError, match="must be calibrated or trained"):
        tfmot.quantize_model(small_model()).export_tflite(tmp_path / "m.tflite")


def test_calibration_sets_ranges_too(tmp_path):
    model = tfmot.quantize_model(small_model())
    x = images("tutorial", 0)
    model.calibrate(x, verbose=0)
    assert float(model.activation_quantizers[0].range_high) == pytest.approx(x.max())
