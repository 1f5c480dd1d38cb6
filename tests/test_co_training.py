"""Apprentice and QKD's co-studying: teacher and student trained together."""

import keras
import numpy as np
import pytest
from dense_network import cross_entropy, data, float_model, quantized_model, softmax, values

from speq_keras import Apprentice, CoStudy

CLASSES = (Apprentice, CoStudy)


def pair(head="softmax"):
    """A student, and a teacher with other weights; no dropout, no BatchNormalization."""
    return quantized_model(float_model(head=head)), float_model(seed=7, head=head)


def loss_of(head):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=head is None)


def kl(p, q, temperature):
    """T² · mean KL of two distributions softened by T, from unsoftened ones."""
    p, q = (d ** (1 / temperature) for d in (p, q))
    p, q = (d / d.sum(-1, keepdims=True) for d in (p, q))
    return temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=-1))


def distributions(both, x, head):
    """What student and teacher give, in float64."""
    outputs = [model(x, training=True) for model in (both.student, both.teacher)]
    outputs = [keras.ops.convert_to_numpy(y).astype("float64") for y in outputs]
    return [softmax(y) for y in outputs] if head is None else outputs


def nll(p, y):
    return -np.mean(np.log(p[np.arange(len(y)), y]))


def step(both, x, y, loss="sparse_categorical_crossentropy", rate=1.0):
    both.compile(keras.optimizers.SGD(rate), loss, run_eagerly=True)
    return both.train_on_batch(x, y, return_dict=True)["loss"]


@pytest.mark.parametrize("head", ["softmax", None])
def test_the_apprentice_s_loss_is_the_paper_s(head):
    x, y = data()
    both = Apprentice(
        *pair(head),
        temperature=3.0,
        teacher_weight=0.7,
        student_weight=0.4,
        distillation_weight=0.2,
    )
    p_student, p_teacher = distributions(both, x, head)
    expected = 0.7 * nll(p_teacher, y) + 0.4 * nll(p_student, y)
    expected += 0.2 * kl(p_teacher, p_student, 3.0)
    assert step(both, x, y, loss_of(head)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("head", ["softmax", None])
def test_the_loss_of_co_studying_is_qkd_s(head):
    x, y = data()
    both = CoStudy(*pair(head), temperature=3.0, distillation_weight=0.2)
    p_student, p_teacher = distributions(both, x, head)
    expected = nll(p_teacher, y) + nll(p_student, y)
    expected += 0.2 * (kl(p_teacher, p_student, 3.0) + kl(p_student, p_teacher, 3.0))
    assert step(both, x, y, loss_of(head)) == pytest.approx(expected, rel=1e-5)


def change(model, before):
    """Returns {path: what was subtracted} for the trainable weights."""
    after = values(model.trainable_weights)
    return {path: before[path] - after[path] for path in before}


def teacher_gradient(arrays, x, y, p_student, weight, temperature, width=1e-6):
    """Central differences of CE + weight · T² · KL(p_S ‖ p_T) to the teacher's last bias."""
    path = next(path for path in arrays if path.endswith("last/bias"))
    gradient = np.zeros(arrays[path].shape)

    def loss(arrays):
        z = x
        names = [path.split("/")[-2] for path in arrays if path.endswith("kernel")]
        by_name = {"/".join(path.split("/")[-2:]): array for path, array in arrays.items()}
        for name in names:
            z = z @ by_name[f"{name}/kernel"] + by_name[f"{name}/bias"]
            z = np.maximum(z, 0) if name != "last" else z
        p = softmax(z)
        return cross_entropy(z, y) + weight * kl(p_student, p, temperature)

    for index in range(gradient.size):
        ends = []
        for sign in (1, -1):
            moved = arrays[path].copy()
            moved[index] += sign * width
            ends.append(loss({**arrays, path: moved}))
        gradient[index] = (ends[0] - ends[1]) / (2 * width)
    return path, gradient


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_in_co_studying_the_teacher_learns_from_the_student(weight):
    x, y = data()
    both = CoStudy(*pair(), temperature=3.0, distillation_weight=weight)
    p_student, _ = distributions(both, x, "softmax")
    before = values(both.teacher.trainable_weights)
    exact = {path: array.astype("float64") for path, array in before.items()}
    path, expected = teacher_gradient(exact, x.astype("float64"), y, p_student, weight, 3.0)
    step(both, x, y)
    np.testing.assert_allclose(change(both.teacher, before)[path], expected, rtol=1e-3, atol=1e-5)


def test_the_apprentice_s_teacher_learns_from_the_labels_alone():
    x, y = data()
    both = Apprentice(*pair(), distillation_weight=5.0)
    alone = keras.models.clone_model(both.teacher)
    alone.set_weights(both.teacher.get_weights())
    step(both, x, y)
    alone.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", run_eagerly=True)
    alone.train_on_batch(x, y)
    for mine, theirs in zip(both.teacher.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def softened(p, temperature):
    q = p ** (1 / temperature)
    return q / q.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("cls", "arguments"), [(CoStudy, {}), (Apprentice, {"student_weight": 1.0})]
)
def test_the_student_learns_from_the_labels_and_the_teacher(cls, arguments):
    x, y = data()
    both = cls(*pair(), temperature=3.0, distillation_weight=0.5, **arguments)
    p_student, p_teacher = distributions(both, x, "softmax")
    # The gradient to the logits is that to the last bias: CE p − y, T² · KL T · (q − p) (Eq. 7).
    expected = p_student - np.eye(p_student.shape[1])[y]
    expected += 0.5 * 3.0 * (softened(p_student, 3.0) - softened(p_teacher, 3.0))
    before = values(both.student.trainable_weights)
    step(both, x, y)
    found = change(both.student, before)
    path = next(path for path in found if path.endswith("last/bias"))
    np.testing.assert_allclose(found[path], expected.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
def test_fit_lowers_the_loss_and_metrics_are_the_student_s(cls):
    x, y = data(examples=32)
    both = cls(*pair())
    both.compile(keras.optimizers.Adam(0.01), loss_of("softmax"), metrics=["accuracy"])
    history = both.fit(x, y, epochs=20, verbose=0).history
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    logs = both.evaluate(x, y, verbose=0, return_dict=True)
    right = np.mean(both.student.predict(x, verbose=0).argmax(-1) == y)
    assert logs["accuracy"] == pytest.approx(right)


@pytest.mark.parametrize("cls", CLASSES)
def test_goes_through_a_file(cls, tmp_path):
    x, _ = data()
    both = cls(*pair(), temperature=3.0, distillation_weight=0.2)
    both.save(tmp_path / "both.keras")
    again = keras.saving.load_model(tmp_path / "both.keras")
    assert (again.temperature, again.distillation_weight) == (3.0, 0.2)
    for name, outputs in both(x).items():
        np.testing.assert_array_equal(again(x)[name], outputs)


@pytest.mark.parametrize("cls", CLASSES)
def test_training_goes_on_after_loading_as_if_it_had_not_been_saved(cls, tmp_path):
    x, y = data()
    both = cls(*pair())
    both.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    both.train_on_batch(x, y)
    both.save(tmp_path / "both.keras")
    again = keras.saving.load_model(tmp_path / "both.keras")
    assert again.train_on_batch(x, y) == both.train_on_batch(x, y)
    for mine, theirs in zip(both.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_student_that_is_not_quantized_is_refused():
    with pytest.raises(TypeError, match="`student` must be a SPEQModel. Received: student=<Func"):
        Apprentice(float_model(), float_model())


def test_a_teacher_that_is_no_model_is_refused():
    with pytest.raises(TypeError, match="`teacher` must be a Keras model. Received: teacher=3"):
        CoStudy(quantized_model(), 3)


def test_a_teacher_of_other_classes_is_refused():
    inputs = keras.Input(pair()[0].input_shape[1:])
    teacher = keras.Model(inputs, keras.layers.Dense(7)(inputs))
    with pytest.raises(ValueError, match=r"one output each, of the same shape.*\(None, 7\)"):
        CoStudy(quantized_model(), teacher)


def test_a_student_without_ranges_is_refused():
    both = CoStudy(quantized_model(calibrate=False), float_model())
    both.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(RuntimeError, match="Call `student.calibrate"):
        both.fit(*data())


@pytest.mark.parametrize("loss", ["mse", None, keras.losses.MeanSquaredError()])
def test_another_loss_than_a_cross_entropy_is_refused(loss):
    with pytest.raises(ValueError, match="`loss` must be CategoricalCrossentropy or Sparse"):
        CoStudy(*pair()).compile("sgd", loss)


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="`temperature` must be"):
        CoStudy(*pair(), temperature=0.0)
