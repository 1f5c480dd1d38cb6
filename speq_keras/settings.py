"""The training settings of a `SPEQModel`: checked, immutable, plain values."""

import dataclasses
import json

import keras

from speq_keras._checks import check_choice, check_number, check_seed, describe
from speq_keras.damping import OscillationDamping
from speq_keras.losses import AUTO, METHODS
from speq_keras.precision import Bernoulli, TeacherPrecision


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a model is trained and where it comes from.

    Args:
        distillation: "auto", "cosine", "dot", "kl" or None.
        temperature: T of Eq. 2, positive.
        teacher_precision: A `TeacherPrecision`.
        speq_weight: λ of Eq. 4; None without an external teacher.
        teacher_distillation: "kl", "cosine" or "dot": the loss against an external teacher.
        seed: Seed of the draws, or None.
        reasons: ((layer name, why it stays float), ...).
        origins: ((layer name, layer of the float model, indices of its weights or None), ...).
        owners: ((activation quantizer, ((layers, any of which freezes its range, layers that do
            only together), ...)), ...), each with an entry for each tensor; see `wrapping.owners`.
        float_config: The float model's config as JSON text, or None.
        damping: An `OscillationDamping`, or None.
        output_names: The output names of the float model: targets, losses and metrics go by them.
    """

    distillation: str | None = AUTO
    temperature: float = 2.0
    teacher_precision: TeacherPrecision = Bernoulli()
    speq_weight: float | None = None
    teacher_distillation: str = "kl"
    seed: int | None = None
    reasons: tuple = ()
    origins: tuple = ()
    owners: tuple = ()
    float_config: str | None = None
    output_names: tuple = ()
    damping: OscillationDamping | None = None

    def __post_init__(self):
        check_choice("distillation", self.distillation, (AUTO, *METHODS, None))
        check_choice("teacher_distillation", self.teacher_distillation, METHODS)
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

    def with_graph(self, graph):
        """Returns the settings with what a `QuantizedGraph` knows of its layers."""
        origins = graph.canonical.origins.items()
        return dataclasses.replace(
            self,
            reasons=tuple(graph.reasons.items()),
            origins=tuple((name, origin.layer, origin.indices) for name, origin in origins),
            owners=tuple(
                (name, tuple(dataclasses.astuple(each) for each in places))
                for name, places in graph.owners.items()
            ),
        )

    def to_json(self):
        """Returns the settings as JSON text."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["teacher_precision"] = keras.saving.serialize_keras_object(self.teacher_precision)
        if self.damping is not None:
            values["damping"] = dataclasses.asdict(self.damping)
        return json.dumps(values)

    @classmethod
    def from_json(cls, text):
        """Makes settings from `to_json`'s text; fields that are missing get their defaults."""
        values = json.loads(text)
        values["teacher_precision"] = keras.saving.deserialize_keras_object(
            values["teacher_precision"]
        )
        for name in ("reasons", "origins"):
            values[name] = tuple(tuple(row) for row in values[name])
        values["owners"] = _as_tuples(values.get("owners", ()))
        values["output_names"] = tuple(values.get("output_names", ()))
        if values.get("damping") is not None:
            values["damping"] = OscillationDamping(**values["damping"])
        return cls(**values)


def _as_tuples(data):
    return tuple(map(_as_tuples, data)) if isinstance(data, list | tuple) else data


def teacher_precision_from(teacher_precision, teacher_bits, quantization_probability):
    """Returns the teacher precision from `wrap`'s three arguments, which exclude each other."""
    if teacher_precision is None:
        return Bernoulli(
            0.5 if quantization_probability is None else quantization_probability,
            8 if teacher_bits is None else teacher_bits,
        )
    if teacher_bits is not None or quantization_probability is not None:
        raise ValueError(
            "`teacher_precision` must not be given together with `teacher_bits` or "
            "`quantization_probability`: it holds them itself. "
            + describe(
                teacher_precision=teacher_precision,
                teacher_bits=teacher_bits,
                quantization_probability=quantization_probability,
            )
        )
    return teacher_precision


def speq_weight_from(speq_weight, teacher):
    """Returns λ of Eq. 4: 0.5 with a teacher unless given, None without one."""
    if teacher is None and speq_weight is not None:
        raise ValueError(
            "`speq_weight` (Eq. 4) weighs SPEQ against an external teacher and needs `teacher`. "
            f"{describe(speq_weight=speq_weight, teacher=teacher)} Pass a float Keras model "
            "as `teacher`."
        )
    return 0.5 if teacher is not None and speq_weight is None else speq_weight
