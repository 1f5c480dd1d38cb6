"""SPEQ on tf_keras: our quantizers in tfmot's `quantize_apply`, and `LegacySPEQModel`."""

import importlib.util

import keras
import numpy as np
import pytest

if importlib.util.find_spec("tensorflow_model_optimization") is None:
    pytest.skip("tfmot is not installed", allow_module_level=True)
if keras.backend.backend() != "tensorflow":
    pytest.skip("tfmot needs TensorFlow", allow_module_level=True)

import tensorflow as tf
from dense_network import distance, softmax
from tfmot_networks import digits, random_weights

from speq_keras import calibration, precision, tfmot
from speq_keras.losses import DistillationLoss
from speq_keras.quantizers import PACT, SAWB
from speq_keras.quantizers.histogram import Histogram
from speq_keras.tfmot import legacy
from speq_keras.tfmot.importing import tf_keras
from speq_keras.training.step import to_logits

LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LAYERS = tf_keras.layers


def network(**scheme):
    model = tf_keras.Sequential(
        [
            LAYERS.Input((8, 8)),
            LAYERS.Reshape((8, 8, 1)),
            LAYERS.Conv2D(6, 3, use_bias=False),
            LAYERS.BatchNormalization(momentum=0.8),
            LAYERS.ReLU(),
            LAYERS.Flatten(),
            LAYERS.Dense(12, activation="relu"),
            tfmot.quantize_annotate_layer(
                LAYERS.Dense(10),
                tfmot.SPEQQuantizeConfig(w_bits=8, a_bits=8, has_target_width=False),
            ),
        ]
    )
    random_weights(model)
    with tfmot.quantize_scope():
        annotated = tfmot.quantize_annotate_model(model)
        scheme = tfmot.SPEQScheme(**{"w_bits": 2, "a_bits": 2, **scheme})
        return tfmot.quantize_apply(annotated, scheme)


def speq(**settings):
    model = tfmot.LegacySPEQModel(network(), seed=3, **settings)
    model.calibrate(digits(64)[0])
    model.compile(tf_keras.optimizers.SGD(0.01), LOSS, metrics=["accuracy"], run_eagerly=True)
    return model


# ---- quantizers and configs ------------------------------------------------------------------


def test_a_quantizer_in_tfmot_computes_what_it_computes_on_keras_3():
    quantizer = tfmot.SPEQQuantizer(PACT(bits=3, signed=True))
    weights = quantizer.build(None, "post_activation", LAYERS.Layer())
    x = np.linspace(-8, 8, 33, dtype="float32")
    np.testing.assert_array_equal(quantizer(x, False, weights), PACT(bits=3, signed=True)(x))


def test_the_gradient_of_a_quantizer_reaches_its_variable_in_tf_keras():
    quantizer = tfmot.SPEQQuantizer(PACT(bits=2))
    weights = quantizer.build(None, "post_activation", LAYERS.Layer())
    with tf.GradientTape() as tape:
        y = quantizer(tf.constant([1.0, 7.0, 9.0]), True, weights)
    assert float(tape.gradient(y, weights["alpha"])) == 2  # PACT: one for each that is clipped


def test_two_tensors_of_one_quantizer_have_variables_of_their_own():
    quantizer = tfmot.SPEQQuantizer(PACT(bits=2))
    first, second = (quantizer.build(None, name, LAYERS.Layer()) for name in ("a", "b"))
    first["alpha"].assign(3.0)
    x = tf.constant([9.0])
    assert [float(quantizer(x, False, w)[0]) for w in (first, second)] == [3, 6]


def test_weights_in_the_network_are_on_the_grid_of_sawb():
    model = network()
    layer = next(layer for layer in model.layers if layer.name.startswith("quant_conv2d"))
    kernel, quantizer, variables = layer._weight_vars[0]
    expected = SAWB(bits=2)(keras.ops.convert_to_tensor(kernel.numpy()))
    np.testing.assert_allclose(quantizer(kernel, False, variables), expected, atol=1e-6)


def test_activations_have_no_more_values_than_their_width():
    model = speq()
    relu = next(layer for layer in model.network.layers if layer.name.startswith("quant_re_lu"))
    part = tf_keras.Model(model.network.inputs, relu.output)
    assert len(np.unique(part(digits(64)[0]))) <= 4


def test_a_network_is_saved_and_loaded(tmp_path):
    model = speq()
    x = digits(16)[0]
    with tfmot.quantize_scope():
        model.network.save(tmp_path / "m", save_format="tf")
        loaded = tf_keras.models.load_model(tmp_path / "m")
    np.testing.assert_allclose(loaded(x), model.network(x), atol=1e-6)


# ---- the training step -----------------------------------------------------------------------


def test_only_tensors_of_the_target_width_are_drawn():
    model = speq()
    assert [t.quantizer.bits for t in model.tensors()] == [2, 2, 8]
    assert [t.quantizer.bits for t in model.drawn_tensors()] == [2, 2]


def test_calibration_sets_ranges_from_data():
    model = speq()
    assert all(float(t.weights["calibrated"]) == 1 for t in model.tensors())
    assert all(float(t.weights["alpha"]) != 6 for t in model.tensors())


def test_calibration_sees_all_batches():
    dense = [LAYERS.Dense(4, "relu"), LAYERS.Dense(2)]
    plain = random_weights(tf_keras.Sequential([LAYERS.Input((3,)), *dense]))
    with tfmot.quantize_scope():
        annotated = tfmot.quantize_annotate_model(plain)
        network = tfmot.quantize_apply(annotated, tfmot.SPEQScheme(2, 2))
    model = tfmot.LegacySPEQModel(network)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    ranges = []
    for batches in ([x, 5 * x], [5 * x, x], [x]):
        model.calibrate(batches)
        ranges.append([float(tensor.weights["alpha"]) for tensor in model.tensors()])
    assert ranges[0] == pytest.approx(ranges[1])
    assert np.all(np.array(ranges[0]) > 2 * np.array(ranges[2]))


def test_calibration_keeps_a_sample_of_each_batch(monkeypatch):
    sizes = []
    monkeypatch.setattr(calibration, "_VALUES_PER_BATCH", 100)
    monkeypatch.setattr(legacy, "Histogram", lambda x: sizes.append(x.size) or Histogram(x))
    speq().calibrate(digits(64)[0], batch_size=32)
    assert sizes
    assert max(sizes) < 2 * 150  # of two batches, with their ends


def test_calibration_keeps_the_moving_statistics():
    model = speq()
    norm = next(layer for layer in model.network.layers if "batch_norm" in layer.name)
    np.testing.assert_array_equal(norm.layer.moving_mean, np.zeros(6))


def test_calibration_lets_tfmots_quantizers_follow():
    model = speq()
    assert float(model.network.layers[0].quantizer_vars["max_var"]) == 1  # digits go up to 1


def test_a_teacher_of_the_students_width_is_the_student():
    model = speq(teacher_precision=precision.Fixed(2))
    x = tf.constant(digits(32)[0])
    np.testing.assert_allclose(model.teacher_outputs(x), model(x, training=True), atol=1e-5)


def test_a_teacher_of_eight_bits_is_the_network_with_eight_bits():
    model = speq(teacher_precision=precision.Fixed(8))
    x = tf.constant(digits(32)[0])
    teacher = model.teacher_outputs(x)
    student = model(x, training=True)
    for tensor in model.drawn_tensors():
        tensor.weights["bits"].assign(8.0)
    np.testing.assert_allclose(teacher, model(x, training=True), atol=1e-3)
    assert np.max(np.abs(teacher - student)) > 0.05


def test_a_teacher_changes_no_variable():
    model = speq()
    before = [v.numpy() for v in model.network.variables]
    model.teacher_outputs(tf.constant(digits(32)[0]))
    for variable, value in zip(model.network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_no_gradient_flows_into_the_teacher():
    model = speq()
    with tf.GradientTape() as tape:
        outputs = tf.reduce_sum(model.teacher_outputs(tf.constant(digits(8)[0])))
    assert all(g is None for g in tape.gradient(outputs, model.trainable_variables))


def train(model, sample_weight=None):
    """Trains a step of 32 digits; returns (teacher's outputs, student's, logs), of that step."""
    x, y = digits(32)
    before = model.network.get_weights()
    teacher = np.float64(model.teacher_outputs(tf.constant(x)))
    student = np.float64(model(tf.constant(x), training=True))
    model.network.set_weights(before)
    return teacher, student, model.train_on_batch(x, y, sample_weight, return_dict=True)


@pytest.mark.parametrize(("method", "temperature"), [("cosine", 2.0), ("kl", 3.0)])
def test_the_distillation_loss_is_that_of_eq_6_and_8(method, temperature):
    settings = {"distillation": method, "temperature": temperature}
    teacher, student, logs = train(speq(teacher_precision=precision.Fixed(8), **settings))
    expected = np.mean(distance(teacher, student, method, temperature))
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-3)


def test_a_loss_of_ones_own_is_set_and_takes_the_place_of_the_one_that_was_compiled():
    model = speq(teacher_precision=precision.Fixed(8))
    model.compile(tf_keras.optimizers.SGD(0.0), LOSS)
    train(model)
    model.distillation = lambda p, q: tf.reduce_sum(tf.square(p - q), axis=-1)
    model.temperature = 3.0
    teacher, student, logs = train(model)
    p, q = (softmax(z / 3) for z in (teacher, student))
    expected = 9 * np.mean(np.sum((p - q) ** 2, axis=-1))
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "value"), [("distillation", "auto"), ("temperature", 0), ("teacher_precision", 8)]
)
def test_a_setting_that_is_not_allowed_is_refused_when_it_is_set(name, value):
    model = speq()
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        setattr(model, name, value)


def test_sample_weights_weigh_the_distillation_too():
    weights = np.repeat([0.0, 0.5, 3.0, 1.0], 8)
    model = speq(teacher_precision=precision.Fixed(8))
    teacher, student, logs = train(model, weights)
    expected = np.mean(weights * distance(teacher, student, "cosine"))
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-3)


def test_eq_2_is_what_the_step_descends():
    x, y = (tf.constant(part) for part in digits(32))
    model = speq(teacher_precision=precision.Fixed(8), temperature=3.0)
    before = model.network.get_weights()
    teacher = model.teacher_outputs(x)
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        loss = LOSS(y, logits) + DistillationLoss("cosine", 3.0)(teacher, logits)
    gradients = tape.gradient(loss, variables)
    model.network.set_weights(before)
    expected = [v - 0.01 * g for v, g in zip(variables, gradients, strict=True)]
    model.train_on_batch(x, y)
    for after, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(after, value, atol=1e-5)


class GivenWidths(precision.TeacherPrecision):
    """Proposes 8 bits for the first quantizer and 3 for the second."""

    def candidates(self, target_bits, seed):
        return tf.constant([[8.0, 3.0]])


def test_every_tensor_gets_the_width_that_is_drawn_for_it():
    model = speq(teacher_precision=GivenWidths())
    x = tf.constant(digits(32)[0])
    teacher = model.teacher_outputs(x)
    for tensor, bits in zip(model.drawn_tensors(), (8.0, 3.0), strict=True):
        tensor.weights["bits"].assign(bits)
    np.testing.assert_allclose(teacher, model(x, training=True), atol=1e-3)


def test_the_seed_chooses_the_draws_and_each_step_has_its_own():
    x = tf.constant(digits(8)[0])
    model = speq()
    drawn = []
    for seed in (3, 3, 4):
        model.draw_seed = tfmot.LegacySPEQModel(model.network, seed=seed).draw_seed
        drawn.append([float(np.sum(model.teacher_outputs(x))) for _ in range(6)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_evaluation_has_no_distillation():
    x, y = digits(8)
    assert set(speq().evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "accuracy"}


def test_without_distillation_there_is_no_teacher(monkeypatch):
    model = speq(distillation=None)
    monkeypatch.setattr(model, "teacher_outputs", None)
    logs = model.train_on_batch(*digits(32), return_dict=True)
    assert logs["distillation_loss"] == 0


def test_probabilities_are_distilled_as_their_logits():
    model = speq(teacher_precision=precision.Fixed(8))
    inputs = tf_keras.Input((8, 8))
    with_softmax = tf_keras.Model(inputs, tf.nn.softmax(model.network(inputs)))
    x = tf.constant(digits(32)[0])
    logits = model(x, training=False)
    head = tfmot.LegacySPEQModel(with_softmax, distillation=None, from_logits=False).head
    back = to_logits(with_softmax(x), head, False)
    difference = back - logits
    np.testing.assert_allclose(difference - difference[:, :1], 0 * back, atol=1e-4)


def test_a_legacy_model_learns_with_speq():
    x, y = digits(1000)
    model = speq()
    model.compile(tf_keras.optimizers.Adam(0.003), LOSS, metrics=["accuracy"])
    history = model.fit(x, y, batch_size=50, epochs=5, verbose=0).history
    loss, accuracy = model.evaluate(x, y, verbose=0)
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    assert accuracy > 0.4  # chance is 0.1, and 2 bits are trained from random weights
    assert np.isfinite(loss)


def test_a_network_without_widths_to_draw_is_refused():
    plain = tf_keras.Sequential([LAYERS.Input((3,)), LAYERS.Dense(2)])
    with pytest.raises(ValueError, match="has none"):
        tfmot.LegacySPEQModel(plain)


def test_a_greedy_teacher_is_refused():
    model = speq(teacher_precision=precision.Greedy())
    with pytest.raises(ValueError, match="draws one row of widths"):
        model.teacher_outputs(tf.constant(digits(4)[0]))


def test_wrong_widths_are_refused_before_anything_is_quantized():
    with pytest.raises(ValueError, match="from 2 to 8"):
        tfmot.SPEQScheme(1, 2)
