"""The distillation losses of the paper: Eq. 2, 3, 4, 6 and 8.

Throughout, p is the teacher, q the student, T the temperature:

    p = softmax(z_teacher / T)        q = softmax(z_student / T)

    name      loss per example                 gradient w.r.t. z_student · T        paper
    --------  -------------------------------  -----------------------------------  ----------
    cosine    1 − p·q / (‖p‖ ‖q‖)              (by the chain rule)                  Eq. 8 *
    dot       1 − p·q                          −Σ_j p_j (q_j δ_ij − q_j q_i)        Eq. 8, 9
    kl        Σ_i p_i log(p_i / q_i)           q_i − p_i                            Eq. 6, 7

* "after the normalization" can be read in two ways, and both are available: `cosine` divides by the
L2 norms and is zero where student and teacher agree; `dot` takes the softmax as the normalization,
and Eq. 9 holds only for it. `dot` rewards confident outputs even where both agree.

A custom loss is a function `loss(p, q)`, passed directly or by name: `register_distillation`.

Reference: Boo, Shin, Choi, Sung, "Stochastic Precision Ensemble: Self-Knowledge Distillation for
Quantized Deep Neural Networks" (AAAI 2021).
"""

import contextlib
import dataclasses
import inspect

import keras
from keras import ops

from speq_keras._checks import check_choice, check_name, check_number, describe

# Resolves to the method below if there is something to distil, otherwise to None.
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
METHODS = tuple(_DISTANCES)
# Zero, with a gradient of zero, where teacher and student agree.
DISTANCES_TO_ZERO = ("cosine", "kl")
_REGISTERED: dict = {}  # name: a user's function


# ---- custom losses -------------------------------------------------------------------------------


def register_distillation(name, function):
    """Registers a custom distillation loss under `name`, for `wrap` and for saved models.

        loss(p, q) -> values

    It takes the same arguments as Keras' losses, such as `keras.losses.kl_divergence`, which can be
    used as it is: the probabilities of teacher and student, softened at temperature T, as float32
    tensors (..., classes) that sum to one over the last axis. It returns one value per example and
    position, a tensor (...). The factor T², sample weights and the mean over the batch are applied
    afterwards. Each label of a sigmoid output is a distribution over two classes: (..., labels, 2).

    The function runs in the compiled training step: write it with `keras.ops`.
    `wrap(distillation=function)` works without registering a name. A saved model then contains the
    name given to `keras.saving.register_keras_serializable`, or the function's own name, which
    `keras.saving.load_model(path, custom_objects={...})` has to know.

    Args:
        name: A new name.
        function: The function, or a callable object such as a `keras.losses.Loss`.

    Raises:
        TypeError: If `function` is not a function of two arguments, or `name` not a string.
        ValueError: If the name is taken.

    Example:
        >>> def hellinger(p, q):
        ...     return 1.0 - ops.sum(ops.sqrt(p * q), axis=-1)
        >>> register_distillation("hellinger_example", hellinger)
        >>> z = ops.convert_to_tensor([[2.0, 0.0, 0.0]])
        >>> loss = distillation_loss(z, -z, method="hellinger_example", temperature=2.0)
        >>> round(float(loss[0]), 4)  # T² · (1 − Σ √(p q))
        0.4099
    """
    check_name("name", name)
    _check_function("function", function)
    taken = (AUTO, *METHODS, *_REGISTERED)
    if name in taken:
        raise ValueError(f"`name` must be new. {describe(name=name)} Taken: {', '.join(taken)}.")
    _REGISTERED[name] = function


@dataclasses.dataclass(frozen=True)
class UnknownLoss:
    """Stands in for a loss that a file names but this process does not know.

    Everything except training works without it, and the model can be saved again.

    Attributes:
        name: The name.
        saved: What the file contains.

    Example:
        >>> deserialize("a name of another process").name
        'a name of another process'
    """

    name: str
    saved: str | dict

    def __call__(self, p=None, q=None):
        """Raises a RuntimeError that says what to do."""
        raise RuntimeError(
            "The distillation loss of a model must be known when it is trained. "
            f"{describe(loss=self.name)} Before loading, register it, or pass "
            f"custom_objects={{{self.name!r}: ...}} to load_model; or set another one: "
            "`model.distillation`, `model.teacher_distillation`."
        )


def check_method(name, method, *, choices=()):
    """Returns `method` after checking that it is a loss (by name or a function) or a choice.

    Example:
        >>> check_method("distillation", "auto", choices=(AUTO, None))
        'auto'
    """
    function = _registered(method) if isinstance(method, str) else method
    if not callable(function):
        return check_choice(name, method, (*choices[:1], *METHODS, *_REGISTERED, *choices[1:]))
    _check_function(name, function)
    return method


def _registered(name):
    """Returns the function registered under a name, here or with Keras, or None."""
    function = _REGISTERED.get(name) or keras.saving.get_registered_object(name)
    return None if isinstance(function, type) else function


def _check_function(name, function):
    """Raises a TypeError if it cannot be called with two tensors."""
    try:
        if isinstance(function, type):
            raise TypeError("it is a class")
        with contextlib.suppress(ValueError):  # built-in functions may have no signature
            inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"`{name}` must be a function of the probabilities of teacher and student, such as "
            f"keras.losses.kl_divergence. {describe(**{name: function})} Here {error}."
        ) from error


def serialize(method):
    """Returns what is saved for a method: a name, or for an unnamed function a dict as below.

    Example:
        >>> serialize(keras.losses.kl_divergence)
        {'function': 'kl_divergence', 'is_of_keras': True}
    """
    if method is None or isinstance(method, str):
        return method
    if isinstance(method, UnknownLoss):
        return method.saved
    for name, function in _REGISTERED.items():
        if function is method:
            return name
    if hasattr(method, "get_config"):
        return keras.saving.serialize_keras_object(method)
    name = type(method).__name__
    if inspect.isroutine(method):
        name = keras.saving.get_registered_name(method)
    return {"function": name, "is_of_keras": getattr(keras.losses, name, None) is method}


def deserialize(saved):
    """Returns the method that `serialize` was given, or an `UnknownLoss`.

    Example:
        >>> deserialize(serialize(keras.losses.kl_divergence)) is keras.losses.kl_divergence
        True
    """
    if saved in (None, AUTO, *METHODS):
        return saved
    if isinstance(saved, str):
        return saved if callable(_registered(saved)) else UnknownLoss(saved, saved)
    if "function" in saved:
        name = saved["function"]
        known = vars(keras.losses) if saved["is_of_keras"] else None
        found = keras.saving.get_registered_object(name, module_objects=known)
        return found if callable(found) else UnknownLoss(name, saved)
    try:
        return keras.saving.deserialize_keras_object(saved)
    except (TypeError, ValueError):  # Keras does not know such a class
        return UnknownLoss(saved["class_name"], saved)


def is_registered(method):
    """Whether a method can be loaded from a file in a process that registers the same functions.

    Example:
        >>> is_registered("kl"), is_registered(lambda p, q: ops.sum(p * q, axis=-1))
        (True, False)
    """
    found = deserialize(serialize(method))
    return found == method or (hasattr(method, "get_config") and type(found) is type(method))


def _distance_of(method):
    """Returns a method's loss as a function of log-probabilities."""
    if isinstance(method, str):
        if method in _DISTANCES:
            return _DISTANCES[method]
        method = _registered(method)
    # What a `Loss` computes per example; calling it would average.
    function = method.call if isinstance(method, keras.losses.Loss) else method

    def distance(log_p, log_q):
        p, q = ops.exp(log_p), ops.exp(log_q)
        values = function(p, q)
        if not _fit(shape := getattr(values, "shape", ()), p.shape[:-1]):
            raise ValueError(
                "A distillation loss must return one value per example and position, as "
                "keras.losses.kl_divergence does. "
                f"{describe(loss=method, returned=tuple(shape), probabilities=tuple(p.shape))} "
                "Sum or average over the last axis alone."
            )
        return ops.cast(values, "float32")

    return distance


# ---- the loss ----------------------------------------------------------------------------------


def distillation_loss(teacher_logits, student_logits, *, method, temperature, head="softmax"):
    """Computes T² · L(p, q) for every example and position (the second term of Eq. 2; Eq. 3).

    Args:
        teacher_logits: Float tensor (..., classes). No gradient is stopped here.
        student_logits: Float tensor of the same shape.
        method: `"cosine"`, `"dot"` or `"kl"` (see the table above), or a function or registered
            name, see `register_distillation`.
        temperature: T > 0. The factor T² keeps the gradient's size independent of T.
        head: `"softmax"` over the last axis, or `"sigmoid"`: each entry of the last axis is a
            separate label, and its two-class losses are averaged.

    Returns:
        A float32 tensor of shape (...): one loss per example and position.

    Raises:
        TypeError: If `method` is not a function of two arguments.
        ValueError: If `method` or `head` is unknown, `temperature` is not positive, the shapes
            differ, or a function returns anything but one value per example and position.

    Example:
        >>> z = ops.convert_to_tensor([[2.0, 0.0, 0.0]])
        >>> loss = distillation_loss(z, z, method="cosine", temperature=2.0)
        >>> bool(abs(float(loss[0])) < 1e-6)
        True
    """
    check_method("method", method)
    check_choice("head", head, HEADS)
    temperature = check_number("temperature", temperature, low=0, low_open=True)
    _check_shapes(teacher_logits, student_logits)
    loss = _distance_of(method)(
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
    if not _fit(*shapes):
        raise ValueError(
            "`teacher_logits` and `student_logits` must have the same shape. "
            f"{describe(shapes=shapes)}"
        )


def _fit(shape, other):
    """Whether two shapes, which may have unknown sizes, can be equal."""
    return len(shape) == len(other) and all(
        a == b or None in (a, b) for a, b in zip(shape, other, strict=True)
    )


class DistillationLoss(keras.losses.Loss):
    """`distillation_loss` as a Keras loss: `loss(teacher_logits, student_logits, sample_weight)`.

    Keras' base class does the reduction, so masks, sample weights and the division by the number of
    replicas under `tf.distribute` are the same as for the task loss.

    Args:
        method, temperature, head: As in `distillation_loss`.

    Example:
        >>> loss = DistillationLoss("dot", temperature=1.0)
        >>> float(loss([[0.0, 0.0]], [[0.0, 0.0]]))  # p = q = (1/2, 1/2)
        0.5
    """

    def __init__(self, method="cosine", temperature=2.0, head="softmax", name="distillation"):
        super().__init__(name=name, reduction="sum_over_batch_size", dtype="float32")
        self.method = check_method("method", method)
        self.temperature = check_number("temperature", temperature, low=0, low_open=True)
        self.head = check_choice("head", head, HEADS)

    def call(self, y_true, y_pred):
        """Returns `distillation_loss` of the logits of teacher and student."""
        return distillation_loss(
            y_true, y_pred, method=self.method, temperature=self.temperature, head=self.head
        )

    def get_config(self):
        """Returns the constructor's arguments."""
        return {
            "method": serialize(self.method),
            "temperature": self.temperature,
            "head": self.head,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        """Makes the loss from the values of `get_config`."""
        return cls(**{**config, "method": deserialize(config["method"])})


def combine(task_loss, self_distillation_loss, external_teacher_loss=None, speq_weight=None):
    """Adds up Eq. 2, or Eq. 4 if there is an external teacher.

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
            "`speq_weight` must be a number when there is an external teacher. "
            f"{describe(speq_weight=speq_weight)} Pass λ of Eq. 4, such as 0.5."
        )
    return speq_weight * speq + (1.0 - speq_weight) * external_teacher_loss
