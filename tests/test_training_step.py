"""One training step: its gradient, its losses, and what it leaves alone."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from dense_network import (
    Rounding,
    compiled,
    cross_entropy,
    data,
    distance,
    float_model,
    logits,
    quantized_model,
    values,
)

from speq_keras import precision
from speq_keras.quantizers import PACT
from speq_keras.training import step
from speq_keras.training import tensorflow as training_step

METHODS = ["cosine", "dot", "kl"]


def float64(arrays):
    return {path: array.astype("float64") for path, array in arrays.items()}


def step_gradient(model, x, y):
    """Returns {path: gradient} of one step: what SGD with learning rate 1 subtracts."""
    compiled(model, optimizer=keras.optimizers.SGD(1.0))
    before = values(model.trainable_weights)
    model.train_on_batch(x, y)
    after = values(model.trainable_weights)
    return {path: before[path] - after[path] for path in before}


def finite_difference_gradient(loss, weights, paths, width=1e-6):
    """Returns {path: gradient} of `loss(weights)` by central differences."""
    gradient = {}
    for path in paths:
        gradient[path] = np.zeros(weights[path].shape)
        for index in np.ndindex(weights[path].shape):
            ends = []
            for sign in (1, -1):
                moved = weights[path].copy()
                moved[index] += sign * width
                ends.append(loss({**weights, path: moved}))
            gradient[path][index] = (ends[0] - ends[1]) / (2 * width)
    return gradient


def clipping_model(**kwargs):
    """A model with an 8-bit teacher whose clipping levels all clip something."""
    model = quantized_model(teacher_precision=precision.Fixed(8), **kwargs)
    for quantizer in model.activation_quantizers:
        if isinstance(quantizer, PACT):
            quantizer.alpha.assign(0.7 * quantizer.alpha)
    return model


def expected_gradient(model, x, y, method):
    """The gradient of Eq. 2 with an 8-bit teacher, whose outputs are constants."""
    weights = float64(values(model.variables))
    teacher = logits(x, weights, (8, 8))
    rounding = Rounding()
    logits(x, weights, (2, 2), rounding=rounding)

    def loss(moved):
        student = logits(x, moved, (2, 2), rounding=rounding.again())
        return cross_entropy(student, y) + distance(teacher, student, method).mean()

    paths = [variable.path for variable in model.trainable_weights]
    return finite_difference_gradient(loss, weights, paths)


def largest_difference(gradient, expected):
    return max(np.abs(gradient[path] - expected[path]).max() for path in expected)


# ---- the gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_gradient_of_a_step_is_that_of_the_loss_with_a_constant_teacher(method):
    x, y = data()
    model = clipping_model(distillation=method)
    expected = expected_gradient(model, x, y, method)
    gradient = step_gradient(model, x, y)
    # float32 weights near 1 are known to 1e-7 each; gradients here reach 1.
    assert largest_difference(gradient, expected) < 2e-6


def step_with_the_teacher_inside_the_tape(model, data):
    """`train_step` without `stop_gradient`, and with the teacher where the tape sees it."""
    x, y, _ = data
    plan = model.training_plan()
    with tf.GradientTape() as tape:
        teacher = step.self_teacher_logits(model, plan, x, y, None)
        outputs, student = plan.network(x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs)
        loss += step.distill(model, model.distillation, teacher, student, None)
    weights = model.trainable_weights
    model.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
    return {"loss": loss}


@pytest.mark.parametrize("method", METHODS)
def test_gradient_through_the_teacher_is_another_one(method, monkeypatch):
    x, y = data()
    model = clipping_model(distillation=method)
    expected = expected_gradient(model, x, y, method)
    monkeypatch.setattr(training_step, "train_step", step_with_the_teacher_inside_the_tape)
    gradient = step_gradient(model, x, y)
    assert largest_difference(gradient, expected) > 2e-3  # a thousand times the tolerance above


# ---- the teacher's widths --------------------------------------------------------------------


@pytest.fixture
def widths_seen(monkeypatch):
    """Records (quantizer name, width) of every rounding in an eager step."""
    seen = []
    original = PACT.round_to_grid

    def spy(quantizer, x, bits, *args):
        seen.append((quantizer.name, int(bits)))
        return original(quantizer, x, bits, *args)

    monkeypatch.setattr(PACT, "round_to_grid", spy)
    return seen


def test_teacher_runs_at_its_width_and_the_student_at_the_target_width(widths_seen):
    x, y = data()
    model = compiled(quantized_model(teacher_precision=precision.Fixed(7)))
    model.train_on_batch(x, y)
    seen = [width for name, width in widths_seen if name == "first_relu_quantizer"]
    assert seen == [7, 2]


def test_quantizers_of_a_fixed_width_keep_it_under_the_teacher(widths_seen):
    x, y = data()
    model = compiled(quantized_model(teacher_precision=precision.Fixed(7)))
    model.train_on_batch(x, y)
    fixed = {"third_relu_quantizer", "last_quantizer"}
    assert [width for name, width in widths_seen if name in fixed] == [8, 8, 8, 8]


def test_rule_sees_the_target_widths_of_the_drawn_quantizers_only():
    seen = []

    class Spy(precision.Fixed):
        def candidates(self, target_bits, seed):
            seen.append(target_bits.numpy().tolist())
            return super().candidates(target_bits, seed)

    x, y = data()
    compiled(quantized_model(teacher_precision=Spy(8))).train_on_batch(x, y)
    assert seen == [[2.0, 2.0]]


def test_draws_change_from_step_to_step_inside_a_compiled_function():
    drawn = []

    class Spy(precision.Bernoulli):
        def candidates(self, target_bits, seed):
            rows = super().candidates(target_bits, seed)
            tf.py_function(lambda row: drawn.append(tuple(row.numpy())), [rows[0]], [])
            return rows

    x, y = data(examples=24)
    model = compiled(quantized_model(teacher_precision=Spy()), run_eagerly=False)
    model.fit(x, y, batch_size=1, verbose=0)
    assert len(set(drawn)) == 4  # all combinations of two widths: by chance fewer once in 250 runs


def test_same_seed_gives_the_same_draws():
    x, y = data()
    untrained = float_model()
    runs = []
    for _ in range(2):
        model = compiled(quantized_model(untrained, seed=11))
        runs.append([model.train_on_batch(x, y, return_dict=True)["loss"] for _ in range(6)])
    assert runs[0] == runs[1]


# ---- the losses ------------------------------------------------------------------------------


def numpy_logits(model, x):
    """Returns the logits of the student and of an 8-bit teacher."""
    weights = float64(values(model.variables))
    return logits(x, weights, (2, 2)), logits(x, weights, (8, 8))


@pytest.mark.parametrize("method", METHODS)
def test_distillation_loss_of_a_step_is_that_of_numpy(method):
    x, y = data()
    model = quantized_model(
        distillation=method, temperature=3.0, teacher_precision=precision.Fixed(8)
    )
    student, teacher = numpy_logits(model, x)
    logs = compiled(model).train_on_batch(x, y, return_dict=True)
    expected = distance(teacher, student, method, temperature=3.0).mean()
    # Both read float32 probabilities, T² = 9 times.
    assert logs["distillation_loss"] == pytest.approx(expected, abs=5e-6)


def test_loss_is_the_sum_of_task_loss_and_distillation_loss():
    x, y = data()
    logs = compiled(quantized_model()).train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["task_loss"] + logs["distillation_loss"], rel=1e-6)


def test_task_loss_is_the_cross_entropy_of_the_student():
    x, y = data()
    model = quantized_model()
    student, _ = numpy_logits(model, x)
    logs = compiled(model).train_on_batch(x, y, return_dict=True)
    assert logs["task_loss"] == pytest.approx(cross_entropy(student, y), rel=1e-6)


def external_teacher(head):
    return float_model(seed=9, head=head)


def external_logits(teacher, x):
    """Returns what the teacher's last layer computes before its softmax."""
    last = teacher.get_layer("last")
    features = keras.Model(teacher.input, teacher.get_layer("third").output)(x)
    return features.numpy().astype("float64") @ last.kernel.numpy() + last.bias.numpy()


@pytest.mark.parametrize("head", ["softmax", None])
@pytest.mark.parametrize("method", [None, *METHODS])
def test_external_teacher_is_followed_by_the_logits(head, method):
    x, y = data()
    teacher = external_teacher(head)
    arguments = {"teacher_distillation": method} if method else {}
    model = quantized_model(teacher=teacher, **arguments)
    student, _ = numpy_logits(model, x)
    logs = compiled(model).train_on_batch(x, y, return_dict=True)
    expected = distance(external_logits(teacher, x), student, method or "kl").mean()
    assert logs["teacher_loss"] == pytest.approx(expected, rel=1e-5)


def test_external_teacher_is_weighted_as_in_equation_4():
    x, y = data()
    model = quantized_model(teacher=external_teacher("softmax"), speq_weight=0.3)
    logs = compiled(model).train_on_batch(x, y, return_dict=True)
    speq = logs["task_loss"] + logs["distillation_loss"]
    assert logs["loss"] == pytest.approx(0.3 * speq + 0.7 * logs["teacher_loss"], rel=1e-6)


def test_external_teacher_is_no_part_of_the_model():
    model = quantized_model()
    with_teacher = quantized_model(teacher=external_teacher("softmax"))
    assert len(with_teacher.variables) == len(model.variables)


def test_external_teacher_runs_in_inference_mode():
    x, y = data()
    teacher = float_model(seed=9, batch_norm=True, dropout=0.5)
    before = values(teacher.variables)
    compiled(quantized_model(teacher=teacher)).train_on_batch(x, y)
    after = values(teacher.variables)
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_external_teacher_can_be_a_subclassed_model():
    class Teacher(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = external_teacher("softmax")

        def call(self, x):
            return self.inner(x)

    x, y = data()
    losses = []
    for teacher in (Teacher(), external_teacher("softmax")):
        model = compiled(quantized_model(teacher=teacher))
        losses.append(model.train_on_batch(x, y, return_dict=True)["teacher_loss"])
    assert losses[0] == losses[1]


def test_external_teacher_alone_trains_without_a_teacher_of_its_own():
    x, y = data()
    model = quantized_model(teacher=external_teacher("softmax"), distillation=None)
    logs = compiled(model).train_on_batch(x, y, return_dict=True)
    assert logs["loss"] == pytest.approx(0.5 * logs["task_loss"] + 0.5 * logs["teacher_loss"])


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("distillation", "kl", ("kl", 2.0, 8)),
        ("temperature", 1.0, ("cosine", 1.0, 8)),
        ("teacher_precision", precision.Fixed(4), ("cosine", 2.0, 4)),
    ],
)
def test_setting_changed_after_training_changes_the_loss_that_trains(setting, value, expected):
    x, y = data()
    model = quantized_model(teacher_precision=precision.Fixed(8))
    compiled(model, optimizer=keras.optimizers.SGD(0.0), run_eagerly=False)
    model.fit(x, y, batch_size=16, verbose=0)
    setattr(model, setting, value)
    history = model.fit(x, y, batch_size=16, verbose=0).history
    method, temperature, width = expected
    weights = float64(values(model.variables))
    student, teacher = (logits(x, weights, (bits, bits)) for bits in (2, width))
    mean = distance(teacher, student, method, temperature).mean()
    assert history["distillation_loss"][0] == pytest.approx(mean, abs=2e-6)


def test_distillation_set_to_none_after_training_trains_plainly():
    x, y = data()
    model = compiled(quantized_model())
    model.fit(x, y, verbose=0)
    model.distillation = None
    assert model.fit(x, y, verbose=0).history["distillation_loss"] == [0.0]


def test_teacher_set_after_training_is_followed():
    x, y = data()
    model = compiled(quantized_model())
    model.train_on_batch(x, y)
    model.teacher = external_teacher("softmax")
    assert model.train_on_batch(x, y, return_dict=True)["teacher_loss"] > 0


# ---- history and evaluation ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({}, {"loss", "task_loss", "distillation_loss", "accuracy"}),
        ({"distillation": None}, {"loss", "task_loss", "distillation_loss", "accuracy"}),
        (
            {"teacher": float_model()},
            {"loss", "task_loss", "distillation_loss", "teacher_loss", "accuracy"},
        ),
    ],
)
def test_history_has_the_losses_and_the_metrics(arguments, names):
    x, y = data()
    model = compiled(quantized_model(**arguments), metrics=["accuracy"])
    assert set(model.fit(x, y, verbose=0).history) == names


def test_history_has_the_mean_over_the_examples_of_an_epoch():
    x, y = data()
    model = quantized_model(teacher_precision=precision.Fixed(8))
    compiled(model, optimizer=keras.optimizers.SGD(0.0))
    history = model.fit(x, y, batch_size=10, verbose=0).history
    student, teacher = numpy_logits(model, x)
    assert history["task_loss"][0] == pytest.approx(cross_entropy(student, y), rel=1e-6)
    assert history["distillation_loss"][0] == pytest.approx(
        distance(teacher, student, "cosine").mean(), abs=2e-6
    )


def test_evaluation_has_the_task_loss_and_the_metrics_only():
    x, y = data()
    model = compiled(quantized_model(), metrics=["accuracy"])
    assert set(model.evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "accuracy"}


def test_evaluation_loss_is_the_cross_entropy():
    x, y = data()
    model = compiled(quantized_model())
    student, _ = numpy_logits(model, x)
    result = model.evaluate(x, y, batch_size=5, verbose=0)
    assert result == pytest.approx(cross_entropy(student, y), rel=1e-6)


def test_validation_adds_loss_and_metrics_to_the_history():
    x, y = data()
    model = compiled(quantized_model(), metrics=["accuracy"])
    history = model.fit(x, y, validation_data=(x, y), verbose=0).history
    assert {name for name in history if name.startswith("val_")} == {"val_loss", "val_accuracy"}


# ---- what a step leaves alone ----------------------------------------------------------------


def trained_once(**kwargs):
    """Returns the variables after one step of a network with BatchNormalization and dropout."""
    x, y = data()
    model = quantized_model(float_model(batch_norm=True, dropout=0.5), **kwargs)
    compiled(model).train_on_batch(x, y)
    return values(model.variables)


RULES = {"Bernoulli": precision.Bernoulli(), "Greedy": precision.Greedy(), "plain": None}


@functools.cache
def states_after_a_step(rule):
    """Returns {name: value} of the state of BatchNormalization and dropout."""
    x, y = data()
    arguments = {"teacher_precision": RULES[rule]} if RULES[rule] else {"distillation": None}
    model = compiled(quantized_model(float_model(batch_norm=True, dropout=0.5), **arguments))
    model.train_on_batch(x, y)
    layers = [model.get_layer(name) for name in ("norm", "dropout")]
    return {variable.name: variable.numpy() for layer in layers for variable in layer.variables}


@pytest.mark.parametrize("rule", ["Bernoulli", "Greedy"])
@pytest.mark.parametrize("name", ["moving_mean", "moving_variance", "seed_generator_state"])
def test_state_after_a_step_is_that_of_plain_training(rule, name):
    expected = states_after_a_step("plain")[name]
    np.testing.assert_array_equal(states_after_a_step(rule)[name], expected)


def test_teacher_uses_the_statistics_of_the_batch():
    x, y = data()
    losses = []
    for mean in (0.0, 1000.0):
        model = quantized_model(float_model(batch_norm=True))
        model.get_layer("norm").moving_mean.assign(np.full(8, mean))
        logs = compiled(model).train_on_batch(x, y, return_dict=True)
        losses.append(logs["distillation_loss"])
    assert losses[0] == losses[1] > 0


def test_student_and_teacher_see_the_same_dropout_mask():
    x, y = data()
    # A teacher at the student's own widths, which u = 1 is, differs from it by the mask alone.
    model = quantized_model(
        float_model(dropout=0.5), distillation="cosine", quantization_probability=1.0
    )
    logs = compiled(model).train_on_batch(x, y, return_dict=True)
    assert logs["distillation_loss"] == pytest.approx(0, abs=1e-6)


def test_dropout_masks_change_from_step_to_step():
    x, y = data()
    model = quantized_model(float_model(dropout=0.5), distillation=None)
    compiled(model, optimizer=keras.optimizers.SGD(0.0))
    assert model.train_on_batch(x, y) != model.train_on_batch(x, y)


def test_frozen_model_says_that_training_changes_nothing():
    x, y = data()
    model = quantized_model()
    model.trainable = False
    before = values(model.weights)
    compiled(model)
    with pytest.warns(UserWarning, match="no trainable weights"):
        model.train_on_batch(x, y)
    after = values(model.weights)
    assert all(np.array_equal(before[path], after[path]) for path in before)


def test_training_without_distillation_is_plain_keras_training_bit_for_bit():
    x, y = data(examples=20)
    weights = []
    for plain in (False, True):
        model = quantized_model(float_model(batch_norm=True, dropout=0.5), distillation=None)
        if plain:
            model = keras.Model(model.input, model.output)
        compiled(model, optimizer=keras.optimizers.Adam(0.01))
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append([variable.numpy() for variable in model.weights])
    for mine, theirs in zip(*weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


class ZerosAreRefused(keras.metrics.MeanMetricWrapper):
    """A metric that fails on labels which are all zero, and that is made on first use."""

    def __init__(self, **kwargs):
        super().__init__(self.check, **kwargs)

    @staticmethod
    def check(y_true, y_pred):
        if tf.executing_eagerly() and not np.any(y_true):
            raise ValueError("no zeros")
        return tf.cast(y_true, "float32")


def two_output_model():
    network = float_model()
    outputs = {"a": network.output, "b": keras.layers.Softmax(name="b")(network.output)}
    return quantized_model(keras.Model(network.input, outputs))


@pytest.mark.parametrize("outputs", [1, 2])
def test_step_is_traced_once_though_keras_makes_metrics_on_first_use(outputs, monkeypatch):
    traces = []
    teachers = training_step.teachers
    monkeypatch.setattr(training_step, "teachers", lambda *a: traces.append(1) or teachers(*a))
    x, y = data()
    model = quantized_model() if outputs == 1 else two_output_model()
    labels, metrics = y, ["accuracy"]
    if outputs == 2:
        labels, metrics = {"a": y, "b": y}, {"a": ["accuracy"], "b": ["accuracy"]}
    compiled(model, metrics=metrics, jit_compile=False)
    logs = model.train_on_batch(x, labels, return_dict=True)
    assert len(traces) == 1
    names = compiled(model, metrics=metrics).train_on_batch(x, labels, return_dict=True).keys()
    assert logs.keys() == names


def test_metrics_keep_what_they_have_counted_when_a_step_is_traced_again():
    x, y = data(examples=20)
    model = compiled(two_output_model(), metrics={"a": ["accuracy"], "b": []}, jit_compile=False)
    step = tf.function(model.train_step, autograph=False)  # as in a training loop of one's own
    for part in (slice(12), slice(12, 20)):
        step((x[part], {"a": y[part], "b": y[part]}))
    counts = [float(v.value) for v in model.metrics_variables if v.path.endswith("count")]
    assert len(counts) >= 5  # loss, its two parts, one per output, accuracy
    assert set(counts) == {20.0}


def test_metric_that_takes_no_zeros_is_made_by_the_step():
    x, y = data()
    model = compiled(quantized_model(), metrics=[ZerosAreRefused(name="m")], jit_compile=False)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["m"] == pytest.approx(np.mean(y))
