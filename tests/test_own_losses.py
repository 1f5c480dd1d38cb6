"""Distillation losses of one's own: what they are given, what is made of it, and where it is kept.

Expected values are computed with NumPy. Nothing here depends on the backend.
"""

import keras
import numpy as np
import pytest
from dense_network import (
    compiled,
    cross_entropy,
    data,
    float_model,
    logits,
    quantized_model,
    softmax,
    values,
)
from keras import ops

from speq_keras import Apprentice, CoStudy, losses, precision
from speq_keras.losses import DistillationLoss, UnknownLoss, distillation_loss

pytestmark = pytest.mark.every_backend

T = 3.0
TEACHER = np.array([[2.0, -1.0, 0.5], [0.0, 0.3, -4.0]], "float32")
STUDENT = np.array([[1.0, 0.0, 0.5], [-2.0, 3.0, 0.1]], "float32")


@keras.saving.register_keras_serializable(package="test_own_losses")
def hellinger(p, q):
    return 1.0 - ops.sum(ops.sqrt(p * q), axis=-1)


def unregistered(p, q):
    return 1.0 - ops.sum(ops.sqrt(p * q), axis=-1)


@keras.saving.register_keras_serializable(package="test_own_losses")
class Power:
    """Σ p |p − q|^power, a loss with an argument."""

    def __init__(self, power):
        self.power = power

    def __call__(self, p, q):
        return ops.sum(p * ops.abs(p - q) ** self.power, axis=-1)

    def get_config(self):
        return {"power": self.power}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Other tests know no more names than the package has."""
    losses.register_distillation("hellinger_by_name", unregistered)
    yield
    del losses._REGISTERED["hellinger_by_name"]


def of_numpy(teacher, student, temperature=T):
    """T² · Hellinger's distance, for every example."""
    p, q = softmax(np.float64(teacher) / temperature), softmax(np.float64(student) / temperature)
    return temperature**2 * (1 - np.sqrt(p * q).sum(axis=-1))


def computed(method, **kwargs):
    loss = distillation_loss(
        ops.convert_to_tensor(TEACHER),
        ops.convert_to_tensor(STUDENT),
        method=method,
        temperature=T,
        **kwargs,
    )
    return ops.convert_to_numpy(loss)


# ---- values ----------------------------------------------------------------------------------

WAYS = {
    "a function": unregistered,
    "a registered function": hellinger,
    "a name": "hellinger_by_name",
    "a name of Keras' registry": "test_own_losses>hellinger",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_of_ones_own_is_given_softened_probabilities_and_multiplied_by_t_squared(way):
    # Probabilities are near 1/3; float32 knows them to 1e-7, and T² is 9.
    np.testing.assert_allclose(computed(WAYS[way]), of_numpy(TEACHER, STUDENT), atol=3e-6)


def test_the_teacher_is_the_first_argument():
    p = softmax(np.float64(TEACHER) / T)
    found = computed(lambda p, q: p[..., 0])
    np.testing.assert_allclose(found, T**2 * p[..., 0], rtol=1e-6)


def test_labels_of_a_sigmoid_are_distributions_over_two_classes():
    p, q = (1 / (1 + np.exp(-np.float64(z) / T)) for z in (TEACHER, STUDENT))
    each = 1 - np.sqrt(p * q) - np.sqrt((1 - p) * (1 - q))
    found = computed(hellinger, head="sigmoid")
    np.testing.assert_allclose(found, T**2 * each.mean(axis=-1), atol=3e-6)


@pytest.mark.parametrize("loss", [keras.losses.kl_divergence, keras.losses.KLDivergence()])
def test_losses_of_keras_are_taken(loss):
    p, q = (softmax(np.float64(z) / T) for z in (TEACHER, STUDENT))
    expected = T**2 * (p * np.log(p / q)).sum(axis=-1)
    np.testing.assert_allclose(computed(loss), expected, rtol=1e-5)


def test_an_object_with_arguments_is_taken():
    p, q = (softmax(np.float64(z) / T) for z in (TEACHER, STUDENT))
    expected = T**2 * (p * np.abs(p - q) ** 3).sum(axis=-1)
    np.testing.assert_allclose(computed(Power(3)), expected, rtol=1e-4)


@pytest.mark.parametrize("loss", [hellinger, unregistered, "hellinger_by_name", Power(2)])
def test_a_keras_loss_with_it_goes_through_a_config(loss):
    again = DistillationLoss.from_config(DistillationLoss(loss, T).get_config())
    if loss is unregistered:  # registered here by name, and known by that
        assert again.method == "hellinger_by_name"
    arguments = ops.convert_to_tensor(TEACHER), ops.convert_to_tensor(STUDENT)
    assert float(again(*arguments)) == float(DistillationLoss(loss, T)(*arguments))


# ---- training --------------------------------------------------------------------------------


def both_logits(model, x):
    """Logits of the student and of an 8-bit teacher, by NumPy."""
    weights = {path: array.astype("float64") for path, array in values(model.variables).items()}
    return logits(x, weights, (2, 2)), logits(x, weights, (8, 8))


def step(model, x, y, **kwargs):
    # Compiled: on JAX nothing else works, and on TensorFlow it is what `fit` runs.
    compiled(model, jit_compile=False, **kwargs)
    return model.train_on_batch(x, y, return_dict=True)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_has_the_loss_against_the_models_own_teacher(way):
    x, y = data()
    model = quantized_model(
        distillation=WAYS[way], temperature=T, teacher_precision=precision.Fixed(8)
    )
    student, teacher = both_logits(model, x)
    expected = of_numpy(teacher, student).mean()
    # Float32 probabilities, times T² = 9.
    assert step(model, x, y)["distillation_loss"] == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_step_has_the_loss_against_an_external_teacher(way):
    x, y = data()
    teacher = float_model(seed=9, head=None)
    model = quantized_model(teacher=teacher, teacher_distillation=WAYS[way], temperature=T)
    student, _ = both_logits(model, x)
    theirs = ops.convert_to_numpy(teacher(x))
    found = step(model, x, y)["teacher_loss"]
    assert found == pytest.approx(of_numpy(theirs, student).mean(), abs=5e-6)


def test_the_gradient_of_a_step_is_that_of_the_student_alone():
    x, y = data()
    model = quantized_model(
        distillation=hellinger, teacher_precision=precision.Fixed(8), temperature=T
    )
    student, teacher = both_logits(model, x)
    expected = []
    for direction in 1e-6 * np.eye(student.shape[-1]):  # of the biases that make the logits
        ends = [
            cross_entropy(student + d, y) + of_numpy(teacher, student + d).mean()
            for d in (direction, -direction)
        ]
        expected.append((ends[0] - ends[1]) / 2e-6)
    bias = model.get_layer("last").layer.bias
    before = ops.convert_to_numpy(bias)
    logs = step(model, x, y, optimizer=keras.optimizers.SGD(1.0))
    # Float32 biases, of a gradient of up to 1.
    np.testing.assert_allclose(before - ops.convert_to_numpy(bias), expected, atol=2e-6)
    assert logs["loss"] == pytest.approx(logs["task_loss"] + logs["distillation_loss"], rel=1e-6)


@pytest.mark.parametrize("cls", [Apprentice, CoStudy])
def test_a_trained_teacher_is_followed_by_it(cls):
    x, y = data()
    student, teacher = quantized_model(), float_model(seed=9)
    both = cls(student, teacher, temperature=T, distillation=hellinger)
    p, q = (ops.convert_to_numpy(model(x)) for model in (teacher, student))
    apart = of_numpy(np.log(p), np.log(q)).mean()
    both.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    found = both.compute_loss(x, y, both(x))
    student_loss, teacher_loss = (-np.log(z[np.arange(len(y)), y]).mean() for z in (q, p))
    expected = both.mix(student_loss, teacher_loss, apart, apart)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert cls.from_config(both.get_config()).distillation is hellinger


# ---- setting ---------------------------------------------------------------------------------


def test_losses_are_set_after_training_has_begun():
    x, y = data()
    model = quantized_model(teacher_precision=precision.Fixed(8), temperature=T)
    step(model, x, y, optimizer=keras.optimizers.SGD(0.0))
    student, teacher = both_logits(model, x)
    model.distillation = hellinger
    found = model.train_on_batch(x, y, return_dict=True)["distillation_loss"]
    assert found == pytest.approx(of_numpy(teacher, student).mean(), abs=5e-6)
    model.temperature = 1.5
    found = model.train_on_batch(x, y, return_dict=True)["distillation_loss"]
    assert found == pytest.approx(of_numpy(teacher, student, 1.5).mean(), abs=5e-6)


def test_the_loss_against_an_external_teacher_and_its_weight_are_set():
    x, y = data()
    teacher = float_model(seed=9, head=None)
    model = quantized_model(teacher=teacher, temperature=T)
    step(model, x, y, optimizer=keras.optimizers.SGD(0.0))
    student, _ = both_logits(model, x)
    model.teacher_distillation, model.speq_weight = hellinger, 0.25
    logs = model.train_on_batch(x, y, return_dict=True)
    theirs = ops.convert_to_numpy(teacher(x))
    assert logs["teacher_loss"] == pytest.approx(of_numpy(theirs, student).mean(), abs=5e-6)
    speq = logs["task_loss"] + logs["distillation_loss"]
    assert logs["loss"] == pytest.approx(0.25 * speq + 0.75 * logs["teacher_loss"], rel=1e-6)


WRONG = {
    "distillation": ["cosin", 3, lambda p: p, keras.losses.KLDivergence, "speq_keras>PACT"],
    "teacher_distillation": ["auto", None, "cosin", lambda p: p],
    "temperature": [0, -1.0, "2"],
    "speq_weight": [1.5, -0.1, "half"],
    "teacher_precision": [8, "bernoulli"],
}
WRONG = [(name, value) for name, wrong in WRONG.items() for value in wrong]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_wrap_refuses_is_refused_when_it_is_set_and_nothing_changes(number):
    name, value = WRONG[number]
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be") as in_wrap:
        quantized_model(teacher=float_model(), calibrate=False, **{name: value})
    model = quantized_model(teacher=float_model(), calibrate=False)
    before = model.settings
    with pytest.raises(in_wrap.type) as when_set:
        setattr(model, name, value)
    assert str(when_set.value) == str(in_wrap.value)
    assert model.settings == before


def test_a_weight_without_an_external_teacher_is_refused_when_it_is_set():
    with pytest.raises(ValueError, match="needs `teacher`. Received: speq_weight=0.5, teacher=No"):
        quantized_model(calibrate=False).speq_weight = 0.5


def test_a_method_is_refused_where_there_are_no_widths_to_draw():
    model = quantized_model(a_bits=None, distillation=None, calibrate=False)
    with pytest.raises(ValueError, match="and this model has none. Received: distillation=<func"):
        model.distillation = hellinger


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss", [lambda p, q: ops.sum(p * q), lambda p, q: p * q, lambda p, q: 0.0]
)
def test_another_shape_than_one_value_per_example_is_refused(loss):
    with pytest.raises(ValueError, match="must return one value per example and position, as ker"):
        computed(loss)


@pytest.mark.parametrize("name", ["cosine", "auto", "hellinger_by_name"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(ValueError, match=f"`name` must be new. Received: name='{name}'. Taken: a"):
        losses.register_distillation(name, hellinger)


@pytest.mark.parametrize("function", [3, keras.losses.KLDivergence, lambda p: p])
def test_what_is_no_function_of_two_tensors_is_not_registered(function):
    with pytest.raises(TypeError, match="`function` must be a function of the probabilities of"):
        losses.register_distillation("never", function)
    assert "never" not in losses._REGISTERED


def test_a_name_that_nobody_registered_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="'auto', 'cosine', .*'hellinger_by_name'.*None. Received"):
        quantized_model(distillation="hellinger_by_nam", calibrate=False)


# ---- clones and files ------------------------------------------------------------------------


def saved(tmp_path, **kwargs):
    model = quantized_model(calibrate=False, **kwargs)
    model.save(tmp_path / "m.keras")
    return model


def loaded(tmp_path, **kwargs):
    return keras.saving.load_model(tmp_path / "m.keras", **kwargs)


@pytest.mark.parametrize(
    "loss", [hellinger, "hellinger_by_name", WAYS["a name of Keras' registry"], Power(2)]
)
@pytest.mark.parametrize("name", ["distillation", "teacher_distillation"])
def test_a_registered_loss_goes_through_a_file(name, loss, tmp_path):
    saved(tmp_path, **{name: loss})
    found = getattr(loaded(tmp_path), name)
    assert found.power == 2 if isinstance(loss, Power) else found == loss


def test_losses_of_keras_go_through_a_file(tmp_path):
    as_object = keras.losses.KLDivergence()
    saved(tmp_path, distillation=keras.losses.kl_divergence, teacher_distillation=as_object)
    found = loaded(tmp_path)
    assert found.distillation is keras.losses.kl_divergence
    assert found.teacher_distillation.get_config() == as_object.get_config()


@pytest.mark.parametrize("loss", [lambda p, q: ops.sum(p * q, axis=-1), hellinger, "kl"])
def test_a_clone_keeps_the_very_function(loss):
    model = quantized_model(calibrate=False, distillation=loss)
    assert keras.models.clone_model(model).distillation is loss


def cosine(p, q):
    return ops.sum(p - q, axis=-1)


def test_a_function_that_is_not_registered_is_said_to_be_saved_by_its_name(tmp_path):
    with pytest.warns(UserWarning, match="only the name of a loss.*distillation=<functio"):
        saved(tmp_path, distillation=cosine)
    assert loaded(tmp_path, custom_objects={"cosine": cosine}).distillation is cosine


@pytest.fixture
def unknown(tmp_path):
    """A loaded model with a loss that nobody knows; it is not taken for Keras' or ours."""
    with pytest.warns(UserWarning, match="name of a loss"):
        saved(tmp_path, distillation=cosine)
    return loaded(tmp_path)


def test_a_loss_that_is_not_known_stands_in_nobodys_way_but_trainings(unknown):
    x, y = data()
    assert isinstance(unknown.distillation, UnknownLoss)
    unknown.calibrate(x, verbose=0)
    compiled(unknown, jit_compile=False).evaluate(x, y, verbose=0)
    with pytest.raises(RuntimeError, match="must be known when it is trained. Rec.*loss='cosine'"):
        unknown.training_plan()
    unknown.distillation = "kl"
    unknown.fit(x, y, verbose=0)


def test_a_loss_that_is_not_known_is_saved_again(unknown, tmp_path):
    unknown.save(tmp_path / "m.keras")
    assert loaded(tmp_path, custom_objects={"cosine": cosine}).distillation is cosine


def test_a_name_that_is_registered_no_more_is_an_unknown_loss(tmp_path, monkeypatch):
    saved(tmp_path, distillation="hellinger_by_name")
    monkeypatch.setattr(losses, "_REGISTERED", {})
    assert loaded(tmp_path).distillation == UnknownLoss("hellinger_by_name", "hellinger_by_name")
