"""How a `SPEQModel` is trained: checked, immutable, plain values."""

import dataclasses
import json

import keras

from speq_keras._checks import check_number, check_seed, describe
from speq_keras.damping import OscillationDamping
from speq_keras.losses import AUTO, check_method, deserialize, serialize
from speq_keras.precision import Bernoulli, TeacherPrecision
from speq_keras.provenance import Provenance


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained.

    Args:
        distillation: "auto", None, or a loss: "cosine", "dot", "kl", or a custom one.
        temperature: T of Eq. 2, positive.
        teacher_precision: A `TeacherPrecision`.
        speq_weight: λ of Eq. 4; None without an external teacher.
        teacher_distillation: The loss against an external teacher.
        seed: Seed of the draws, or None.
        damping: An `OscillationDamping`, or None.
    """

    distillation: object = AUTO
    temperature: float = 2.0
    teacher_precision: TeacherPrecision = Bernoulli()
    speq_weight: float | None = None
    teacher_distillation: object = "kl"
    seed: int | None = None
    damping: OscillationDamping | None = None

    def __post_init__(self):
        check_method("distillation", self.distillation, choices=(AUTO, None))
        check_method("teacher_distillation", self.teacher_distillation)
        check_number("temperature", self.temperature, low=0, low_open=True)
        if self.speq_weight is not None:
            check_number("speq_weight", self.speq_weight, low=0, high=1)
        check_seed(self.seed)
        if not isinstance(self.teacher_precision, TeacherPrecision):
            raise TypeError(
                "`teacher_precision` must be a TeacherPrecision: precision.Bernoulli(), "
                "UniformMix(), Fixed() or Greedy(). "
                f"{describe(teacher_precision=self.teacher_precision)}"
            )

    def to_dict(self):
        """Returns values that JSON can represent."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("distillation", "teacher_distillation"):
            values[name] = serialize(values[name])
        values["teacher_precision"] = keras.saving.serialize_keras_object(self.teacher_precision)
        if self.damping is not None:
            values["damping"] = dataclasses.asdict(self.damping)
        return values

    @classmethod
    def from_dict(cls, values):
        """Makes settings from `to_dict`'s values, ignoring others; missing ones get defaults."""
        names = {field.name for field in dataclasses.fields(cls)}
        found = {name: values[name] for name in names & values.keys()}
        for name in ("distillation", "teacher_distillation"):
            if name in found:
                found[name] = deserialize(found[name])
        precision = found.get("teacher_precision")
        if precision is not None:
            found["teacher_precision"] = keras.saving.deserialize_keras_object(precision)
        if found.get("damping") is not None:
            found["damping"] = OscillationDamping(**found["damping"])
        return cls(**found)


class SettingsText(str):
    """Training settings and provenance: as JSON text for files, and as objects for clones.

    Keras only copies a layer's config. `clone_model` passes on the object itself, including
    functions that no file could hold; after loading it is plain text.
    """

    settings: TrainingSettings
    provenance: Provenance

    @classmethod
    def of(cls, settings, provenance):
        """Makes the text, which contains the fields of both."""
        text = cls(json.dumps({**settings.to_dict(), **provenance.to_dict()}))
        text.settings, text.provenance = settings, provenance
        return text

    @classmethod
    def read(cls, text):
        """Returns `(training settings, provenance)` of a text, or the defaults for None."""
        if isinstance(text, cls):
            return text.settings, text.provenance
        values = {} if text is None else json.loads(text)
        return TrainingSettings.from_dict(values), Provenance.from_dict(values)


def teacher_precision_from(teacher_precision, teacher_bits, quantization_probability):
    """Returns the teacher precision from `wrap`'s three mutually exclusive arguments."""
    if teacher_precision is None:
        return Bernoulli(
            0.5 if quantization_probability is None else quantization_probability,
            8 if teacher_bits is None else teacher_bits,
        )
    if teacher_bits is not None or quantization_probability is not None:
        raise ValueError(
            "`teacher_precision` must not be given together with `teacher_bits` or "
            "`quantization_probability`: it contains them. "
            + describe(
                teacher_precision=teacher_precision,
                teacher_bits=teacher_bits,
                quantization_probability=quantization_probability,
            )
        )
    return teacher_precision


def speq_weight_from(speq_weight, teacher):
    """Returns λ of Eq. 4: by default 0.5 with a teacher, None without one."""
    if teacher is None and speq_weight is not None:
        raise ValueError(
            "`speq_weight` (Eq. 4) weighs SPEQ against an external teacher and needs `teacher`. "
            f"{describe(speq_weight=speq_weight, teacher=teacher)} Pass a float Keras model "
            "as `teacher`."
        )
    return 0.5 if teacher is not None and speq_weight is None else speq_weight
