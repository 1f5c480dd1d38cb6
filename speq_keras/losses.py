"""The distillation losses of the paper: Eq. 2, 3, 4, 6 and 8.

Throughout, p is the teacher, q the student, T the temperature:

    p = softmax(z_teacher / T)        q = softmax(z_student / T)

    name      loss per example                 gradient w.r.t. z_student · T        paper
    --------  -------------------------------  -----------------------------------  ----------
    cosine    1 − p·q / (‖p‖ ‖q‖)              (by the chain rule)                  Eq. 8 *
    dot       1 − p·q                          −Σ_j p_j (q_j δ_ij − q_j q_i)        Eq. 8, 9
    kl        Σ_i p_i log(p_i / q_i)           q_i − p_i                            Eq. 6, 7

* "after the normalization" can be read in two ways, and both exist by name: `cosine` divides by the
L2 norms and is zero where student and teacher agree; `dot` takes the softmax as the normalization,
and only for it Eq. 9 holds. `dot` rewards confident outputs even where both agree.

Reference: Boo, Shin, Choi, Sung, "Stochastic Precision Ensemble: Self-Knowledge Distillation for
Quantized Deep Neural Networks" (AAAI 2021).
"""

import keras
from keras import ops

from speq_keras._checks import check_choice, check_number, describe

METHODS = ("cosine", "dot", "kl")
# Where there is something to distil the method below, else none.
AUTO = "auto"
AUTO_METHOD = "cosine"
HEADS = ("softmax", "sigmoid")


def _log_distributions(logits, temperature, head):
    """Returns log-probabilities with the classes on the last axis.

    A sigmoid head is one two-class distribution per label: (..., labels) becomes (..., labels, 2),
    and softmax((z, 0)) is (sigmoid(z), 1 − sigmoid(z)).
    """
    logits = ops.cast(logits, "float32") / temperature
    if head == "sigmoid":
        logits = ops.stack([logits, ops.zeros_like(logits)], axis=-1)
    return ops.log_softmax(logits, axis=-1)


def _squared_norm(x):
    return ops.sum(ops.square(x), axis=-1)


def _cosine(log_p, log_q):
    p, q = ops.exp(log_p), ops.exp(log_q)
    # Softmax outputs are positive and sum to one, so the norms are at least 1/sqrt(classes).
    return 1.0 - ops.sum(p * q, axis=-1) * ops.rsqrt(_squared_norm(p) * _squared_norm(q))


def _dot(log_p, log_q):
    return 1.0 - ops.sum(ops.exp(log_p) * ops.exp(log_q), axis=-1)


def _kl(log_p, log_q):
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


_DISTANCES = {"cosine": _cosine, "dot": _dot, "kl": _kl}


def distillation_loss(teacher_logits, student_logits, *, method, temperature, head="softmax"):
    """Computes T² · L(p, q) for every example and position (the second term of Eq. 2; Eq. 3).

    Args:
        teacher_logits: Float tensor (..., classes). No gradient is stopped here.
        student_logits: Float tensor of the same shape.
        method: `"cosine"`, `"dot"` or `"kl"`; see the table above.
        temperature: T > 0. The factor T² keeps the gradient's size independent of T.
        head: `"softmax"` over the last axis, or `"sigmoid"`: every entry of the last axis is a
            label of its own, the two-class losses of which are averaged.

    Returns:
        A float32 tensor of shape (...): one loss per example and position.

    Raises:
        ValueError: If `method` or `head` is unknown, `temperature` is not positive, or the shapes
            differ.

    Example:
        >>> z = ops.convert_to_tensor([[2.0, 0.0, 0.0]])
        >>> loss = distillation_loss(z, z, method="cosine", temperature=2.0)
        >>> bool(abs(float(loss[0])) < 1e-6)
        True
    """
    check_choice("method", method, METHODS)
    check_choice("head", head, HEADS)
    temperature = check_number("temperature", temperature, low=0, low_open=True)
    _check_shapes(teacher_logits, student_logits)
    loss = _DISTANCES[method](
        _log_distributions(teacher_logits, temperature, head),
        _log_distributions(student_logits, temperature, head),
    )
    if head == "sigmoid":
        loss = ops.mean(loss, axis=-1)
    return loss * temperature**2


def _check_shapes(teacher_logits, student_logits):
    if not all(hasattr(logits, "shape") for logits in (teacher_logits, student_logits)):
        return
    shapes = [tuple(logits.shape) for logits in (teacher_logits, student_logits)]
    pairs = zip(*shapes, strict=False)
    if len(shapes[0]) != len(shapes[1]) or any(a != b and None not in (a, b) for a, b in pairs):
        raise ValueError(
            "`teacher_logits` and `student_logits` must have the same shape. "
            f"{describe(shapes=shapes)}"
        )


class DistillationLoss(keras.losses.Loss):
    """`distillation_loss` as a Keras loss: `loss(teacher_logits, student_logits, sample_weight)`.

    Keras' own base class does the reduction, so masks, sample weights and the division by the
    number of replicas under `tf.distribute` are those of the task loss.

    Args:
        method, temperature, head: As in `distillation_loss`.

    Example:
        >>> loss = DistillationLoss("dot", temperature=1.0)
        >>> float(loss([[0.0, 0.0]], [[0.0, 0.0]]))  # p = q = (1/2, 1/2)
        0.5
    """

    def __init__(self, method="cosine", temperature=2.0, head="softmax", name="distillation"):
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.method = check_choice("method", method, METHODS)
        self.temperature = check_number("temperature", temperature, low=0, low_open=True)
        self.head = check_choice("head", head, HEADS)

    def call(self, y_true, y_pred):
        return distillation_loss(
            y_true, y_pred, method=self.method, temperature=self.temperature, head=self.head
        )

    def get_config(self):
        return {
            "method": self.method,
            "temperature": self.temperature,
            "head": self.head,
            "name": self.name,
        }


def combine(task_loss, self_distillation_loss, external_teacher_loss=None, speq_weight=None):
    """Adds up Eq. 2, or Eq. 4 where there is an external teacher.

        L_SPEQ = task + self-distillation                       (Eq. 2)
        L      = λ · L_SPEQ + (1 − λ) · external teacher        (Eq. 4)

    Example:
        >>> combine(1.0, 0.5)
        1.5
        >>> combine(1.0, 0.5, 4.0, speq_weight=0.5)
        2.75
    """
    speq = task_loss + self_distillation_loss
    if external_teacher_loss is None:
        return speq
    if speq_weight is None:
        raise TypeError(
            "`speq_weight` must be a number where there is an external teacher. "
            f"{describe(speq_weight=speq_weight)} Pass λ of Eq. 4, such as 0.5."
        )
    return speq_weight * speq + (1.0 - speq_weight) * external_teacher_loss
