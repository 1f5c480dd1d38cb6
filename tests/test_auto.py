"""`distillation="auto"`: SPEQ where there is something to distil, else plain training."""

import warnings

import keras
import numpy as np
import pytest
from dense_network import compiled, data, float_model, quantized_model, values

import speq_keras
from speq_keras import precision
from speq_keras.training import tensorflow as training_step

SAME = "teacher and student have the same widths"
NO_LOGITS = "no output is a softmax or sigmoid"


def said(call):
    """Returns what `call` returns, and the texts of this package's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    texts = [str(each.message) for each in caught if each.category is UserWarning]
    return result, [text for text in texts if "Training is plain" in text]


def fit(model, epochs=1, **kwargs):
    return model.fit(*data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0, **kwargs)


@pytest.fixture
def passes(monkeypatch):
    """Lists what the training step asks of the teacher, once per trace or eager step."""
    seen = []
    original = training_step.teachers

    def counting(*args):
        logits = original(*args)
        seen.append("none" if logits[0] is None else "self")
        return logits

    monkeypatch.setattr(training_step, "teachers", counting)
    return seen


def test_it_is_the_default_and_trains_as_the_cosine_does():
    trained = []
    for kwargs in ({}, {"distillation": "cosine"}):
        model = compiled(quantized_model(float_model(), **kwargs))
        _, texts = said(lambda model=model: fit(model, epochs=2))
        assert not texts
        trained.append(values(model.trainable_variables))
    assert quantized_model().distillation == "auto"
    for path, value in trained[0].items():
        np.testing.assert_array_equal(value, trained[1][path])


def test_equal_widths_train_as_plain_training_does_and_say_so_once(passes):
    trained = []
    for method in ("auto", None):
        keras.utils.set_random_seed(0)
        model = compiled(quantized_model(w_bits=8, a_bits=8, distillation=method))
        _, texts = said(lambda model=model: [fit(model) for _ in range(2)])
        assert [SAME in text for text in texts] == ([True] if method else [])
        trained.append(values(model.trainable_variables))
    for path, value in trained[0].items():
        np.testing.assert_array_equal(value, trained[1][path])
    assert set(passes) == {"none"}


def test_after_the_border_is_crossed_speq_trains(passes):
    model = compiled(quantized_model(w_bits=8, a_bits=8), run_eagerly=False)
    history, _ = said(lambda: fit(model).history)
    assert history["distillation_loss"] == [0.0]
    model.set_bits(activations=3)
    assert fit(model).history["distillation_loss"][0] > 0
    assert passes == ["none", "self"]
    model.set_bits(activations=8)
    said(lambda: fit(model))
    assert passes == ["none", "self", "none"]


def test_a_callback_may_cross_the_border_within_fit(passes):
    model = compiled(quantized_model(w_bits=8, a_bits=8), run_eagerly=False)
    lower = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: epoch == 1 and model.set_bits(activations=2)
    )
    history, _ = said(lambda: fit(model, epochs=3, callbacks=[lower]).history)
    assert history["distillation_loss"][0] == 0
    assert min(history["distillation_loss"][1:]) > 0
    assert passes == ["none", "self"]


def test_widths_that_are_set_back_before_the_next_step_cost_no_trace(passes):
    model = compiled(quantized_model(a_bits=2), run_eagerly=False)

    def evaluate_wide(epoch, logs):
        model.set_bits(activations=8)
        model.evaluate(*data(), verbose=0)
        model.set_bits(activations=2)

    evaluation = keras.callbacks.LambdaCallback(on_epoch_end=evaluate_wide)
    _, texts = said(lambda: fit(model, epochs=3, callbacks=[evaluation]))
    assert passes == ["self"]
    assert not texts


def test_widths_that_were_set_on_a_quantizer_itself_count_at_the_next_fit(passes):
    model = compiled(quantized_model(a_bits=2), run_eagerly=False)
    fit(model)
    for quantizer in model.target_quantizers:
        quantizer.bits = 8
    _, texts = said(lambda: fit(model))
    assert any(SAME in text for text in texts)
    assert passes == ["self", "none"]


def test_without_logits_training_is_plain():
    model = compiled(quantized_model(float_model(head=None)), loss="mse")
    x, _ = data()
    targets = np.zeros((len(x), 4), "float32")
    _, texts = said(lambda: model.fit(x, targets, verbose=0))
    assert any(NO_LOGITS in text for text in texts)
    assert model.training_plan().method is None
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    assert model.training_plan().method == "cosine"


def test_with_float_activations_training_is_plain():
    model = compiled(speq_keras.wrap(float_model(), 3, None))
    _, texts = said(lambda: fit(model))
    assert any("no activation quantizer has the target width" in text for text in texts)


@pytest.mark.parametrize("method", ["cosine", "kl"])
def test_a_method_by_name_that_can_do_nothing_is_an_error(method):
    model = compiled(quantized_model(w_bits=8, a_bits=8, distillation=method))
    before = values(model.variables)
    with pytest.raises(ValueError, match=r"differ in a width.*Received: activations of 8 bits"):
        fit(model)
    for path, value in values(model.variables).items():
        np.testing.assert_array_equal(value, before[path])
    model.set_bits(activations=3)
    assert fit(model).history["distillation_loss"][0] > 0


def test_the_dot_product_of_equal_networks_still_sharpens():
    model = compiled(quantized_model(w_bits=8, a_bits=8, distillation="dot"))
    assert fit(model).history["distillation_loss"][0] > 0


def test_a_student_that_is_its_own_teacher_may_be_asked_for():
    model = compiled(quantized_model(distillation="cosine", quantization_probability=1.0))
    history = fit(model).history
    np.testing.assert_allclose(history["distillation_loss"], 0, atol=1e-6)  # float32 sums


def test_an_external_teacher_trains_where_the_own_one_cannot():
    model = compiled(quantized_model(w_bits=8, a_bits=8, teacher=float_model(seed=9)))
    history, texts = said(lambda: fit(model).history)
    assert any(SAME in text for text in texts)
    assert history["distillation_loss"] == [0.0]
    assert history["teacher_loss"][0] > 0


@pytest.mark.parametrize("method", ["auto", "cosine", None])
def test_a_saved_model_keeps_what_it_says(method, tmp_path):
    quantized_model(distillation=method).save(tmp_path / "m.keras")
    assert keras.saving.load_model(tmp_path / "m.keras").distillation == method


@pytest.mark.parametrize(
    ("rule", "widths", "differs"),
    [
        (precision.Bernoulli(), [8, 8], False),
        (precision.Bernoulli(), [8, 3], True),
        (precision.Bernoulli(), [None], True),
        (precision.Bernoulli(1.0), [3], False),
        (precision.Bernoulli(0.5, teacher_bits=4), [4, 4], False),
        (precision.UniformMix(2, 8), [8], True),
        (precision.UniformMix(8, 8), [8], False),
        (precision.Fixed(8), [8], False),
        (precision.Fixed(8), [2], True),
        (precision.Greedy(6), [6, 6], False),
        (precision.Greedy(6), [6, 2], True),
        (precision.TeacherPrecision(), [8], True),
    ],
)
def test_rules_say_whether_teacher_and_student_may_differ(rule, widths, differs):
    assert rule.may_differ(widths) is differs
