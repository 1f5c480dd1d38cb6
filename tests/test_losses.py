"""Eq. 2, 3, 4 and 6 to 9 against NumPy in float64: the printed formulas and finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gradients import gradients_of, tensor
from keras import ops

from speq_keras.losses import HEADS, METHODS, DistillationLoss, combine, distillation_loss

pytestmark = pytest.mark.every_backend

TEMPERATURES = [1.0, 2.0, 5.0]
RNG = np.random.default_rng(0)
TEACHER = 3 * RNG.normal(size=(6, 5))
STUDENT = 3 * RNG.normal(size=(6, 5))
# float32 resolves values around 1 to 6e-8, and a loss sums some ten of them; times T².
VALUE_TOLERANCE = 1e-6


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


FORMULAS = {
    "cosine": lambda p, q: 1 - (p / norm(p) * q / norm(q)).sum(-1),
    "dot": lambda p, q: 1 - (p * q).sum(-1),
    "kl": lambda p, q: (p * np.log(p / q)).sum(-1),
}


def norm(p):
    return np.sqrt((p**2).sum(-1, keepdims=True))


def oracle(teacher, student, method, temperature, head="softmax"):
    teacher, student = np.asarray(teacher) / temperature, np.asarray(student) / temperature
    if head == "softmax":
        loss = FORMULAS[method](softmax(teacher), softmax(student))
    else:
        p, q = sigmoid(teacher), sigmoid(student)
        loss = FORMULAS[method](np.stack([p, 1 - p], -1), np.stack([q, 1 - q], -1)).mean(-1)
    return temperature**2 * loss


def computed(teacher, student, method, temperature, head="softmax"):
    loss = distillation_loss(
        tensor(teacher), tensor(student), method=method, temperature=temperature, head=head
    )
    return ops.convert_to_numpy(loss)


def gradient(teacher, student, method, temperature, head="softmax"):
    """Of the losses' sum, to the student's logits."""

    def total(student):
        losses = distillation_loss(
            tensor(teacher), student, method=method, temperature=temperature, head=head
        )
        return ops.sum(losses)

    return gradients_of(total, [student])[0]


def finite_differences(function, z, step=1e-6):
    """Central differences of a sum, in float64: right to about 1e-9."""
    result = np.zeros_like(z)
    for index in np.ndindex(*z.shape):
        moved = np.zeros_like(z)
        moved[index] = step
        result[index] = (function(z + moved).sum() - function(z - moved).sum()) / (2 * step)
    return result


# ---- values and gradients --------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("method", METHODS)
class TestFormulas:
    def test_the_value_is_the_formula(self, method, temperature, head):
        np.testing.assert_allclose(
            computed(TEACHER, STUDENT, method, temperature, head),
            oracle(TEACHER, STUDENT, method, temperature, head),
            rtol=1e-5,  # KL reaches 10, where float32 resolves 1e-6
            atol=VALUE_TOLERANCE * temperature**2,
        )

    def test_the_gradient_is_that_of_finite_differences(self, method, temperature, head):
        expected = finite_differences(
            lambda z: oracle(TEACHER, z, method, temperature, head), STUDENT
        )
        np.testing.assert_allclose(
            gradient(TEACHER, STUDENT, method, temperature, head),
            expected,
            atol=VALUE_TOLERANCE * temperature,
        )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_of_kl_is_eq_7_times_the_temperature(temperature):
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    np.testing.assert_allclose(
        gradient(TEACHER, STUDENT, "kl", temperature),
        temperature * (q - p),
        atol=VALUE_TOLERANCE * temperature,
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_of_dot_is_eq_9_times_the_temperature(temperature):
    p, q = softmax(TEACHER / temperature), softmax(STUDENT / temperature)
    classes = range(p.shape[1])
    printed = np.array(
        [
            [
                -sum(p[n, j] * (q[n, j] * (i == j) - q[n, j] * q[n, i]) for j in classes)
                for i in classes
            ]
            for n in range(len(p))
        ]
    )
    np.testing.assert_allclose(
        gradient(TEACHER, STUDENT, "dot", temperature),
        temperature * printed,
        atol=VALUE_TOLERANCE * temperature,
    )


def test_dot_has_no_gradient_where_the_teacher_is_uniform():  # Eq. 11
    np.testing.assert_allclose(
        gradient(np.zeros((6, 5)), STUDENT, "dot", 2.0), 0, atol=VALUE_TOLERANCE
    )


def test_dot_is_worth_half_a_point_for_two_equal_coins():
    # p = q = (1/2, 1/2): 1 - p·q = 1/2, times T² = 4.
    assert computed([[0.0, 0.0]], [[0.0, 0.0]], "dot", 2.0) == pytest.approx(2.0)


def test_cosine_of_two_coins_by_hand():
    # p = (1/2, 1/2) and q = (3/4, 1/4): cos = (1/2) / (sqrt(1/2) sqrt(10)/4) = 2 / sqrt(5).
    expected = 1 - 2 / np.sqrt(5)
    assert computed([[0, 0]], [[np.log(3), 0]], "cosine", 1.0)[0] == pytest.approx(
        expected, abs=1e-6
    )


def test_kl_of_two_coins_by_hand():
    # p = (1/2, 1/2) and q = (3/4, 1/4): (1/2) log(2/3) + (1/2) log(2) = (1/2) log(4/3).
    expected = np.log(4 / 3) / 2
    assert computed([[0, 0]], [[np.log(3), 0]], "kl", 1.0)[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("method", ["cosine", "kl"])
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_zero_where_student_and_teacher_agree(method, head):
    np.testing.assert_allclose(computed(TEACHER, TEACHER, method, 2.0, head), 0, atol=4e-6)


@pytest.mark.parametrize("method", ["cosine", "kl"])
@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_is_zero_where_student_and_teacher_agree(method, head):
    np.testing.assert_allclose(gradient(TEACHER, TEACHER, method, 2.0, head), 0, atol=2e-6)


def test_the_teacher_is_the_first_argument():
    # KL is not symmetric.
    assert computed(TEACHER, STUDENT, "kl", 1.0)[0] == pytest.approx(
        oracle(TEACHER, STUDENT, "kl", 1.0)[0], rel=1e-5
    )
    assert oracle(TEACHER, STUDENT, "kl", 1.0)[0] != pytest.approx(
        oracle(STUDENT, TEACHER, "kl", 1.0)[0], rel=0.1
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_label_of_a_sigmoid_head_is_a_softmax_of_two_classes(method):
    pairs = np.stack([TEACHER, 0 * TEACHER], -1), np.stack([STUDENT, 0 * STUDENT], -1)
    np.testing.assert_allclose(
        computed(TEACHER, STUDENT, method, 2.0, "sigmoid"),
        computed(*pairs, method, 2.0, "softmax").mean(-1),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("method", METHODS)
def test_adding_a_constant_to_the_logits_changes_nothing(method):
    np.testing.assert_allclose(
        computed(TEACHER + 7, STUDENT - 3, method, 2.0),
        computed(TEACHER, STUDENT, method, 2.0),
        rtol=1e-5,
        atol=4e-6,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_sequence_has_one_loss_per_position(method):
    teacher, student = RNG.normal(size=(2, 3, 4, 5))
    loss = computed(teacher, student, method, 2.0)
    assert loss.shape == (3, 4)
    np.testing.assert_allclose(loss, oracle(teacher, student, method, 2.0), rtol=1e-5, atol=4e-6)


EXTREMES = 1e4 * np.array([[1, -1, 0], [-1, 1, 0], [1, 1, 1], [-1, -1, -1], [0, 0, 1]])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_extreme_logits_give_finite_losses(method, head):
    for student in (EXTREMES, EXTREMES[::-1], np.zeros_like(EXTREMES)):
        assert np.isfinite(computed(EXTREMES, student, method, 1.0, head)).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_extreme_logits_give_finite_gradients(method, head):
    for student in (EXTREMES, EXTREMES[::-1], np.zeros_like(EXTREMES)):
        assert np.isfinite(gradient(EXTREMES, student, method, 1.0, head)).all()


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_logits_are_computed_in_float32(dtype):
    teacher, student = tf.cast(TEACHER, dtype), tf.cast(STUDENT, dtype)
    loss = distillation_loss(teacher, student, method="kl", temperature=2.0)
    assert loss.dtype == tf.float32
    expected = oracle(
        tf.cast(teacher, "float64").numpy(), tf.cast(student, "float64").numpy(), "kl", 2.0
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


# ---- errors ----------------------------------------------------------------------------------


def test_an_unknown_method_is_refused_with_the_known_ones():
    known = ", ".join(map(repr, METHODS))
    with pytest.raises(ValueError, match=rf"`method` must be one of {known}\. .*'cosin'"):
        computed(TEACHER, STUDENT, "cosin", 1.0)


def test_an_unknown_head_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="`head` must be one of 'softmax', 'sigmoid'"):
        computed(TEACHER, STUDENT, "kl", 1.0, head="linear")


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("make", [DistillationLoss, lambda **k: computed(TEACHER, STUDENT, **k)])
def test_a_temperature_that_is_not_positive_is_refused(make, temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be a finite number in \(0, inf\]"):
        make(method="kl", temperature=temperature)


# ---- as a Keras loss -------------------------------------------------------------------------


def loss_object(method="kl", temperature=1.0, head="softmax"):
    return DistillationLoss(method, temperature, head)


def cross_entropy_part(teacher, student, sample_weight=None):
    """Keras' own loss for soft labels, less the labels' entropy, which is KL at T = 1."""
    labels = tf.constant(softmax(teacher), "float32")
    keras_loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    own = tf.constant(teacher, "float32")
    return float(
        keras_loss(labels, student, sample_weight) - keras_loss(labels, own, sample_weight)
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_object_is_the_mean_over_examples(method, head):
    loss = loss_object(method, 3.0, head)(TEACHER, STUDENT)
    expected = oracle(TEACHER, STUDENT, method, 3.0, head).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_loss_object_is_the_mean_over_examples_and_positions():
    teacher, student = RNG.normal(size=(2, 3, 4, 5))
    loss = loss_object("cosine", 2.0)(teacher, student)
    assert float(loss) == pytest.approx(oracle(teacher, student, "cosine", 2.0).mean(), rel=1e-5)


def test_sample_weights_multiply_and_do_not_normalize():
    weights = np.array([0, 1, 2, 0.5, 3, 0])
    loss = loss_object()(TEACHER, STUDENT, weights)
    expected = (weights * oracle(TEACHER, STUDENT, "kl", 1.0)).sum() / len(weights)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("shape", [(3, 4), (3, 1)])
def test_sample_weights_of_sequences_count_as_in_keras_own_cross_entropy(shape):
    teacher, student = RNG.normal(size=(2, 3, 4, 5))
    weights = RNG.uniform(size=shape)
    expected = cross_entropy_part(teacher, tf.constant(student, "float32"), weights)
    assert float(loss_object()(teacher, student, weights)) == pytest.approx(expected, rel=1e-4)


class TestMasks:
    """A mask travels with the logits of a network that begins with Masking."""

    @pytest.fixture(scope="class")
    def logits(self):
        inputs = keras.Input((4, 5))
        network = keras.Model(inputs, keras.layers.Masking(0.0)(inputs))
        z = RNG.normal(size=(3, 4, 5)).astype("float32")
        z[0, 2:] = 0  # masked: two positions of the first, and three of the last example
        z[2, 1:] = 0
        return network(z)

    @pytest.fixture
    def teacher(self):
        return np.random.default_rng(1).normal(size=(3, 4, 5)).astype("float32")

    @pytest.mark.tensorflow
    def test_masked_positions_do_not_count(self, teacher, logits):
        losses = oracle(teacher, logits.numpy(), "kl", 1.0)
        seen = [losses[0, 0], losses[0, 1], *losses[1], losses[2, 0]]
        assert float(loss_object()(teacher, logits)) == pytest.approx(np.mean(seen), rel=1e-5)

    @pytest.mark.tensorflow
    def test_masks_count_as_in_keras_own_cross_entropy(self, teacher, logits):
        # The mask is the logits', so the entropy's part needs it by hand.
        labels = tf.constant(softmax(teacher), "float32")
        keras_loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        entropy = -(softmax(teacher) * np.log(softmax(teacher))).sum(-1)
        mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
        expected = float(keras_loss(labels, logits)) - (entropy * mask).sum() / mask.sum()
        assert float(loss_object()(teacher, logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_object_goes_through_its_config(method):
    loss = DistillationLoss(method, 3.0, "sigmoid", name="mine")
    again = DistillationLoss.from_config(loss.get_config())
    assert again.get_config() == {
        "method": method,
        "temperature": 3.0,
        "head": "sigmoid",
        "name": "mine",
    }


# ---- sums ------------------------------------------------------------------------------------


def test_eq_2_is_a_plain_sum():
    assert combine(1.25, 0.5) == 1.75


@pytest.mark.parametrize(("speq_weight", "expected"), [(0.0, 8.0), (0.25, 6.4375), (1.0, 1.75)])
def test_eq_4_weighs_speq_against_the_external_teacher(speq_weight, expected):
    # weight * (1.25 + 0.5) + (1 - weight) * 8
    assert combine(1.25, 0.5, 8.0, speq_weight=speq_weight) == expected


def test_eq_3_is_kl_times_the_squared_temperature():
    p, q = softmax(TEACHER / 4), softmax(STUDENT / 4)
    expected = 16 * (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(computed(TEACHER, STUDENT, "kl", 4.0), expected, rtol=1e-4)


@pytest.mark.tensorflow
def test_eq_2_with_its_gradient_agrees_with_numpy():
    labels = np.array([0, 1, 2, 3, 4, 0])

    def total(z):
        cross_entropy = -np.log(softmax(z)[np.arange(6), labels]).mean()
        return cross_entropy + oracle(TEACHER, z, "cosine", 2.0).mean()

    student = tf.constant(STUDENT, "float32")
    with tf.GradientTape() as tape:
        tape.watch(student)
        task = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, student)
        loss = combine(task, loss_object("cosine", 2.0)(TEACHER, student))
    assert float(loss) == pytest.approx(total(STUDENT), rel=1e-5)
    np.testing.assert_allclose(
        tape.gradient(loss, student), finite_differences(total, STUDENT), atol=2e-6
    )
