"""Methods that train a larger float teacher together with the quantized student.

    Apprentice    scheme A of Mishra and Marr: the student learns from the teacher's outputs
    CoStudy       the second phase of QKD: both learn from each other

A frozen teacher needs none of this: `wrap(model, distillation=None, teacher=float_model)`. Neither
does SPEQ, whose teacher is the student itself.
"""

import keras
from keras import ops

from speq_keras._checks import check_number, check_speq_model, describe, require_calibrated
from speq_keras.losses import DistillationLoss, check_method, deserialize, serialize
from speq_keras.saving import SafeSaving, compile_from_config

_LOSSES = {
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
}


class CoTraining(SafeSaving, keras.Model):
    """A quantized student and a float teacher under one optimizer; a subclass writes `mix`.

    It has the outputs of both. The compiled loss is the task loss; metrics are the student's. The
    student's own SPEQ settings are not used. After training, continue with `student` and `teacher`.

    Args:
        student: A calibrated `SPEQModel` with one output.
        teacher: A Keras model with the same inputs and the same output shape.
        temperature: T > 0 of the softened outputs.
        distillation: The distance between the outputs: "kl", as in both papers, or as in `wrap`.

    Raises:
        TypeError: If the student is not a `SPEQModel` or the teacher not a Keras model.
        ValueError: If the outputs do not fit together, or another argument is not allowed.
    """

    def __init__(
        self, student, teacher, *, temperature=2.0, distillation="kl", name=None, **kwargs
    ):
        super().__init__(name=name, **kwargs)
        check_speq_model("student", student)
        if not isinstance(teacher, keras.Model):
            raise TypeError(f"`teacher` must be a Keras model. {describe(teacher=teacher)}")
        shapes = [[tuple(x.shape) for x in model.outputs] for model in (student, teacher)]
        if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
            raise ValueError(
                "Student and teacher must have one output each, of the same shape. Received: "
                f"student outputs {shapes[0]}, teacher outputs {shapes[1]}. Take a teacher for "
                "the student's task."
            )
        self.student = student
        self.teacher = teacher
        self.temperature = check_number("temperature", temperature, low=0, low_open=True)
        self.distillation = check_method("distillation", distillation)
        self.distance = DistillationLoss(self.distillation, temperature=self.temperature)
        self.built = True  # both parts are built

    def call(self, inputs, training=None):
        """Returns {"student": its outputs, "teacher": its outputs}."""
        return {
            "student": self.student(inputs, training=training),
            "teacher": self.teacher(inputs, training=training),
        }

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns `mix` of the task losses and the distances; regularizers are added once."""
        student_loss = super().compute_loss(x, y, y_pred["student"], sample_weight, training)
        teacher_loss = self.loss(y, y_pred["teacher"], sample_weight)
        student, teacher = (self._logits(y_pred[name]) for name in ("student", "teacher"))
        to_student = self.distance(ops.stop_gradient(teacher), student, sample_weight)
        to_teacher = self.distance(ops.stop_gradient(student), teacher, sample_weight)
        return self.mix(student_loss, teacher_loss, to_student, to_teacher)

    def mix(self, student_loss, teacher_loss, to_student, to_teacher):
        """Returns the loss.

        Args:
            student_loss: The compiled loss of the student, and all regularizers.
            teacher_loss: The compiled loss of the teacher.
            to_student: T²·D(teacher, student), whose gradient only reaches the student.
            to_teacher: T²·D(student, teacher), whose gradient only reaches the teacher.
        """
        raise NotImplementedError

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred["student"], sample_weight)

    def compile(self, optimizer="rmsprop", loss=None, **kwargs):
        """Compiles as `keras.Model.compile` does, with one loss.

        Raises:
            ValueError: If the loss is not a cross-entropy over classes.
        """
        if isinstance(loss, str) and loss in _LOSSES:
            loss = _LOSSES[loss]()
        if not isinstance(loss, tuple(_LOSSES.values())):
            raise ValueError(
                "`loss` must be CategoricalCrossentropy or SparseCategoricalCrossentropy. "
                f"{describe(loss=loss)}"
            )
        super().compile(optimizer, loss, **kwargs)

    def compile_from_config(self, config):
        """Compiles a loaded model like the saved one."""
        compile_from_config(self, config)

    def make_train_function(self, force=False):
        """Compiles the step as in Keras, if the student is calibrated.

        Raises:
            RuntimeError: If it is not calibrated.
        """
        require_calibrated("student", self.student)  # not earlier: ranges are loaded last
        return super().make_train_function(force)

    def _logits(self, outputs):
        """Returns logits; log p differs from them by a constant, which no softmax depends on."""
        outputs = ops.cast(outputs, "float32")
        return outputs if self.loss.from_logits else ops.log(ops.maximum(outputs, 1e-37))

    def get_config(self):
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "temperature": self.temperature,
            "distillation": serialize(self.distillation),
        }

    @classmethod
    def from_config(cls, config):
        config = {**config, "distillation": deserialize(config.get("distillation", "kl"))}
        for part in ("student", "teacher"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)


@keras.saving.register_keras_serializable(package="speq_keras")
class Apprentice(CoTraining):
    """Scheme A: teacher and student are trained together; the student learns from the teacher.

        L = α · CE(y, p_T) + β · CE(y, p_S) + γ · T² · KL(p_T ‖ p_S)

    The paper's third term is a cross-entropy: it differs by the teacher's entropy, which the
    student cannot change. Its gradient does not reach the teacher. Schemes B and C have a frozen
    teacher: `wrap(distillation=None, teacher=..., speq_weight=0.5)`, for B on the float network,
    for C followed by `set_weights` of a retrained one.

    Args:
        student, teacher: See `CoTraining`.
        temperature: T; the paper has none, which is T = 1.
        teacher_weight, student_weight, distillation_weight: α, β, γ.

    Example:
        >>> import numpy as np, speq_keras
        >>> inputs = keras.Input((4,))
        >>> hidden = keras.layers.Dense(8, activation="relu")(inputs)
        >>> hidden = keras.layers.Dense(8, activation="relu")(hidden)
        >>> teacher = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(hidden))
        >>> x, y = np.random.rand(16, 4), np.random.randint(0, 3, 16)
        >>> student = speq_keras.wrap(teacher, w_bits=2, a_bits=2)
        >>> student.calibrate(x, verbose=0)
        >>> both = Apprentice(student, teacher)
        >>> both.compile("adam", "sparse_categorical_crossentropy")
        >>> history = both.fit(x, y, verbose=0)
        >>> both.student.predict(x, verbose=0).shape
        (16, 3)

    Reference: Mishra and Marr, "Apprentice" (arXiv:1711.05852), Eq. 1 and Section 5.
    """

    def __init__(
        self,
        student,
        teacher,
        *,
        temperature=1.0,
        teacher_weight=1.0,
        student_weight=0.5,
        distillation_weight=0.5,
        **kwargs,
    ):
        super().__init__(student, teacher, temperature=temperature, **kwargs)
        self.teacher_weight = check_number("teacher_weight", teacher_weight, low=0)
        self.student_weight = check_number("student_weight", student_weight, low=0)
        self.distillation_weight = check_number("distillation_weight", distillation_weight, low=0)

    def mix(self, student_loss, teacher_loss, to_student, to_teacher):
        return (
            self.teacher_weight * teacher_loss
            + self.student_weight * student_loss
            + self.distillation_weight * to_student
        )

    def get_config(self):
        return {
            **super().get_config(),
            "teacher_weight": self.teacher_weight,
            "student_weight": self.student_weight,
            "distillation_weight": self.distillation_weight,
        }


@keras.saving.register_keras_serializable(package="speq_keras")
class CoStudy(CoTraining):
    """The second phase of QKD: the teacher learns from its student what quantization can follow.

        L_S = CE(y, p_S) + w · T² · KL(p_T ‖ p_S)
        L_T = CE(y, p_T) + w · T² · KL(p_S ‖ p_T)

    Each loss trains only its own network. The first phase ("self-studying") is plain training,
    `wrap(distillation=None)`; the third ("tutoring") uses this phase's teacher, frozen:
    `wrap(distillation=None, teacher=co_study.teacher)`.

    Args:
        student, teacher, temperature: See `CoTraining`.
        distillation_weight: w.

    Example:
        >>> import numpy as np, speq_keras
        >>> teacher = keras.Sequential([keras.Input((4,))])
        >>> for units, activation in ((8, "relu"), (8, "relu"), (3, "softmax")):
        ...     teacher.add(keras.layers.Dense(units, activation))
        >>> student = speq_keras.wrap(teacher, w_bits=2, a_bits=2)
        >>> student.calibrate(np.random.rand(16, 4), verbose=0)
        >>> both = CoStudy(student, teacher, temperature=4.0)
        >>> both.compile("adam", "sparse_categorical_crossentropy")
        >>> history = both.fit(np.random.rand(16, 4), np.zeros(16), verbose=0)
        >>> sorted(history.history)
        ['loss']

    Reference: Kim et al., "QKD: Quantization-aware Knowledge Distillation" (arXiv:1911.12491),
    Section 3.
    """

    def __init__(self, student, teacher, *, temperature=2.0, distillation_weight=1.0, **kwargs):
        super().__init__(student, teacher, temperature=temperature, **kwargs)
        self.distillation_weight = check_number("distillation_weight", distillation_weight, low=0)

    def mix(self, student_loss, teacher_loss, to_student, to_teacher):
        return student_loss + teacher_loss + self.distillation_weight * (to_student + to_teacher)

    def get_config(self):
        return {**super().get_config(), "distillation_weight": self.distillation_weight}
