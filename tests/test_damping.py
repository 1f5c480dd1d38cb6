"""Oscillation damping: the loss, its gradient and its schedule, in training and nowhere else."""

import json

import keras
import numpy as np
import pytest
from dense_network import NAMES, compiled, data, quantized_model
from fresh_process import result_of
from gradients import gradients_of

from speq_keras import OscillationDamping
from speq_keras.damping import distance_to_grid
from speq_keras.quantizers import LSQ, MinMax
from speq_keras.settings import TrainingSettings
from speq_keras.training import tensorflow as training_step

# ---- the loss, by hand -----------------------------------------------------------------------

# At scale 1 and 2 bits the codes are -2 ... 1: two weights are beyond the ends.
WEIGHTS = np.array([[-3.0, -1.8, -0.4, 0.3, 5.0]], "float32")


def lsq():
    quantizer = LSQ(bits=2)
    quantizer.build(WEIGHTS.shape)
    quantizer.scale.assign(np.ones(quantizer.scale.shape))
    return quantizer


def test_the_loss_is_the_squared_distance_of_clipped_weights_to_their_values():
    expected = 0 + 0.2**2 + 0.4**2 + 0.3**2 + 0
    assert float(distance_to_grid(WEIGHTS, lsq())) == pytest.approx(expected, rel=1e-6)


def test_the_gradient_pulls_weights_inside_the_range_and_no_others():
    (gradient,) = gradients_of(lambda w: distance_to_grid(w, lsq()), [WEIGHTS])
    np.testing.assert_allclose(gradient, [[0, 2 * 0.2, 2 * -0.4, 2 * 0.3, 0]], atol=1e-6)


def test_with_a_scale_per_channel_each_channel_has_its_own_ends():
    # Codes -2 ... 1 at the scales 1 and 4: 3.0 is beyond the end of its own channel only.
    weights = np.array([[3.0, 3.9], [-0.4, -8.5], [-1.8, 1.0]], "float32")
    quantizer = LSQ(bits=2, per_channel=True)
    quantizer.build(weights.shape)
    quantizer.scale.assign([[1.0, 4.0]])
    expected = (0 + 0.4**2 + 0.2**2) + (0.1**2 + 0 + 1.0**2)
    assert float(distance_to_grid(weights, quantizer)) == pytest.approx(expected, rel=1e-5)


def test_float_weights_are_not_pulled():
    quantizer = MinMax(bits=2, has_target_width=True)
    quantizer.build(WEIGHTS.shape)
    quantizer.bits = None
    assert float(distance_to_grid(WEIGHTS, quantizer)) == 0


def test_the_strength_rises_along_half_a_cosine_and_stays():
    damping = OscillationDamping(strength=0.4, steps=8)
    found = [float(damping.strength_at(step)) for step in (0, 2, 4, 8, 100)]
    expected = [0, 0.2 * (1 - np.sqrt(0.5)), 0.2, 0.4, 0.4]
    np.testing.assert_allclose(found, expected, atol=1e-7)


# ---- in training -----------------------------------------------------------------------------


def expected_distance(model):
    """Returns the sum over the kernels; the first and the last have a scale per column."""
    total = 0.0
    for name in NAMES:
        kernel = np.asarray(model.get_layer(name).layer.kernel.value, "float64")
        largest = np.abs(kernel).max(axis=0 if name in ("first", "last") else None)
        scale = largest / (127 if name in ("first", "last") else 3)
        values = np.round(kernel / scale) * scale
        axis = 0 if name in ("first", "last") else None
        clipped = np.clip(kernel, values.min(axis=axis), values.max(axis=axis))
        total += ((values - clipped) ** 2).sum()
    return total


def standing(model=None, damping=None, **arguments):
    """Returns a model that training leaves as it is: the learning rate is 0."""
    model = quantized_model() if model is None else model
    if damping is not None:
        model.damping = damping
    return compiled(model, optimizer=keras.optimizers.SGD(0.0), **arguments)


def history(model, epochs=3):
    x, y = data()
    return model.fit(x, y, batch_size=len(x), epochs=epochs, shuffle=False, verbose=0).history


def test_the_minimized_loss_has_the_damping_of_its_step():
    model = standing(damping=OscillationDamping(strength=0.5, steps=2))
    logs = history(model)
    added = np.subtract(logs["loss"], np.add(logs["task_loss"], logs["distillation_loss"]))
    expected = expected_distance(model) * 0.5 * np.array([0, 0.5, 1])
    np.testing.assert_allclose(added, expected, atol=1e-5)


def test_neither_task_nor_teacher_nor_draws_see_the_damping():
    plain, damped = (
        history(standing(damping=damping))
        for damping in (None, OscillationDamping(strength=0.5, steps=1))
    )
    for name in ("task_loss", "distillation_loss"):
        assert damped[name] == plain[name]


def test_evaluation_has_no_damping():
    plain, damped = standing(), standing(damping=OscillationDamping(strength=9.0, steps=1))
    history(plain), history(damped)
    assert damped.evaluate(*data(), verbose=0) == plain.evaluate(*data(), verbose=0)


def test_frozen_weights_do_not_count():
    model = quantized_model()
    for name in NAMES:
        model.get_layer(name).trainable = False
    # The ranges are frozen with their layers, so that nothing is left to train.
    with pytest.warns(UserWarning, match="no trainable weights"):
        logs = history(standing(model, OscillationDamping(strength=0.5, steps=1)))
    assert logs["loss"] == pytest.approx(np.add(logs["task_loss"], logs["distillation_loss"]))


def test_damped_weights_end_nearer_to_their_values():
    distances = []
    for strength in (None, 1.0):
        model = quantized_model()
        if strength is not None:
            model.damping = OscillationDamping(strength=strength, steps=5)
        compiled(model, optimizer=keras.optimizers.SGD(0.05), jit_compile=False)
        history(model, epochs=20)
        distances.append(expected_distance(model))
    assert distances[1] < 0.5 * distances[0]


def test_the_strength_changes_without_a_trace_and_the_setting_costs_one(monkeypatch):
    seen, original = [], training_step.train_step
    monkeypatch.setattr(
        training_step, "train_step", lambda *args: seen.append(1) or original(*args)
    )
    model = compiled(quantized_model(), jit_compile=False)
    history(model)
    model.damping = OscillationDamping(strength=0.5, steps=4)
    history(model)
    history(model)
    assert len(seen) == 2


def test_damping_that_is_taken_away_leaves_plain_training():
    plain, other = quantized_model(), quantized_model()
    other.damping = OscillationDamping(strength=9.0, steps=1)
    other.damping = None
    for model in (plain, other):
        history(compiled(model))
    for mine, theirs in zip(other.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(mine.value, theirs.value)


# ---- saving ----------------------------------------------------------------------------------


def test_a_loaded_model_trains_on_with_the_strength_of_its_step(tmp_path):
    model = compiled(quantized_model())
    model.damping = OscillationDamping(strength=0.5, steps=6)
    history(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    assert loaded.damping == OscillationDamping(strength=0.5, steps=6)
    assert history(loaded)["loss"] == history(model)["loss"]


def test_settings_of_files_that_know_no_damping_are_read():
    values = TrainingSettings().to_dict()
    del values["damping"]
    assert TrainingSettings.from_dict(values).damping is None


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"strength": 0.0, "steps": 1}, ValueError, "`strength` must be a finite number in \\(0"),
        ({"strength": "high", "steps": 1}, TypeError, "`strength` must be"),
        ({"strength": 1.0, "steps": 0}, ValueError, "`steps` must be a whole number of at least 1"),
    ],
)
def test_arguments_that_are_not_allowed_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        OscillationDamping(**arguments)


def test_a_number_is_no_damping():
    with pytest.raises(TypeError, match="`damping` must be an OscillationDamping or None"):
        quantized_model().damping = 0.1


@pytest.mark.parametrize("name", ["dorefa", "qil"])
def test_quantizers_that_rescale_weights_are_refused(name):
    model = quantized_model(weight_quantizer=name)
    with pytest.raises(ValueError, match="layer 'second' \\(Dense\\).*which rescales them"):
        model.damping = OscillationDamping(strength=0.1, steps=1)


# ---- JAX -------------------------------------------------------------------------------------

# Compiling is most of the time.
JAX = {"KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
ON_JAX = """
import json
import keras, numpy as np
from dense_network import compiled, data, quantized_model
from speq_keras import OscillationDamping

model = quantized_model(calibrate=False)  # the weights bring the ranges
model.set_weights([np.array(w) for w in json.loads(open(__import__("sys").argv[1]).read())])
model.damping = OscillationDamping(strength=0.5, steps=2)
compiled(model, optimizer=keras.optimizers.SGD(0.0), jit_compile=True)
x, y = data()
logs = model.fit(x, y, batch_size=len(x), epochs=3, shuffle=False, verbose=0).history
print(json.dumps([keras.backend.backend(), logs]))
"""


@pytest.mark.tensorflow
def test_on_jax_the_damping_is_the_same(tmp_path):
    pytest.importorskip("jax")
    model = quantized_model()
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps([np.asarray(w).tolist() for w in model.get_weights()]))
    backend, logs = result_of(ON_JAX, weights, **JAX)
    added = np.subtract(logs["loss"], np.add(logs["task_loss"], logs["distillation_loss"]))
    assert backend == "jax"
    np.testing.assert_allclose(
        added, expected_distance(model) * 0.5 * np.array([0, 0.5, 1]), atol=1e-5
    )


# ---- how many weights oscillate --------------------------------------------------------------


def test_a_code_that_turns_back_twice_in_a_row_oscillates(examples_on_the_path):
    from oscillations import follow

    followed = {}
    for code in ([0, 0, 0], [1, 1, 0], [1, 2, 1], [0, 3, 1], [1, 4, 2]):
        follow(followed, "w", np.array(code))
    # The first one turned in the last two steps: 0.01 of each, the older one faded by 0.99.
    np.testing.assert_allclose(followed["w"]["frequency"], [0.01 * 0.99 + 0.01, 0, 0])


def test_codes_of_two_bits_without_a_zero_are_told_apart(examples_on_the_path):
    from oscillations import codes

    assert codes(np.array([-0.9, -0.3, 0.3, 0.9]), 2).tolist() == [-3, -1, 1, 3]
