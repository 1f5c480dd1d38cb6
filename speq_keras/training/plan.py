"""What a training step needs to know about a model, found once before training."""

import dataclasses

import keras

from speq_keras._checks import describe
from speq_keras.graph import deep_graphs
from speq_keras.losses import AUTO, AUTO_METHOD, DISTANCES_TO_ZERO, UnknownLoss
from speq_keras.precision import Bernoulli
from speq_keras.training.heads import find_heads, gives_probabilities


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingPlan:
    """What a training step needs to know about the model.

    Attributes:
        network: A model from the inputs to (outputs, logits of all heads); shares all layers.
        method: The loss against the model's own teacher, by name or as a function, or None.
        has_logits: Whether an output could be distilled.
        heads: The outputs that are distilled.
        quantizers: The activation quantizers whose widths are drawn for the teacher.
        output_count: Number of outputs.
        teacher_gives_logits: For each head, whether the external teacher outputs logits.
    """

    network: keras.Model
    method: object
    has_logits: bool
    heads: tuple
    quantizers: tuple
    output_count: int
    teacher_gives_logits: tuple = ()

    def fits(self, model):
        """Whether the plan still fits the model at its current widths.

        Raises:
            ValueError: If the model cannot train at these widths.
        """
        return method_of(model, self.has_logits)[0] == self.method


def make_plan(model, warn):
    """Makes the `TrainingPlan` of a `SPEQModel` after checking that the model can be trained.

    Args:
        model: The model.
        warn: Called with each warning for the user.

    Raises:
        RuntimeError: If an external teacher or a loss is missing after loading.
        ValueError: If no output can be distilled, or the widths cannot be drawn.
    """
    if model.speq_weight is not None and model.teacher is None:
        raise RuntimeError(
            "This model was trained with an external teacher, which is not saved with it. Set "
            "`model.teacher` to that model, or to None to train without."
        )
    for loss in (model.distillation, model.teacher and model.teacher_distillation):
        if isinstance(loss, UnknownLoss):
            loss()
    heads, others = (), []
    if model.distillation is not None or model.teacher is not None:
        heads, others = find_heads(model)
    has_logits = bool(heads)
    method, why = method_of(model, has_logits)
    if why:
        warn(why)
    if not heads and (method or model.teacher):
        raise ValueError(
            "At least one output must be a softmax or sigmoid, or have a cross-entropy with "
            f"from_logits=True. Received: outputs {others}. Pass distillation=None and no teacher "
            "to train without distillation."
        )
    if method is None and model.teacher is None:
        heads, others = (), []
    if others:
        warn(f"Outputs {others} have no logits and are trained without distillation.")
    quantizers = tuple(model.target_quantizers) if method is not None else ()
    if quantizers:
        model.teacher_precision.check(len(quantizers))
    gives_logits = ()
    if model.teacher is not None:
        gives_logits = tuple(not p for p in gives_probabilities(model.teacher, heads))
    with deep_graphs():
        network = keras.Model(model.input, [model.output, [head.logits for head in heads]])
    return TrainingPlan(
        network, method, has_logits, tuple(heads), quantizers, len(model.outputs), gives_logits
    )


def method_of(model, has_logits):
    """Chooses the loss by which a model learns from its own teacher.

    Args:
        model: A `SPEQModel`.
        has_logits: Whether an output can be distilled.

    Returns:
        `(method, why)`: a loss or None, and why "auto" became None (else "").

    Raises:
        ValueError: If an explicitly requested method cannot have any effect.
    """
    asked = model.distillation
    if asked is None:
        return None, ""
    widths = [quantizer.bits for quantizer in model.target_quantizers]
    differ = bool(widths) and model.teacher_precision.may_differ(widths)
    if asked == AUTO:
        return (AUTO_METHOD, "") if has_logits and differ else (None, _why_none(model, has_logits))
    check_drawable(asked, widths)
    if not differ and asked in DISTANCES_TO_ZERO and not _is_control(model.teacher_precision):
        raise ValueError(
            "Teacher and student must be able to differ in a width: else the loss between them is "
            f"zero. {_widths_received(model)} Lower the width of the activations with "
            "`set_bits`, or set model.distillation = None."
        )
    return asked, ""


def check_drawable(method, quantizers):
    """Raises a ValueError if a method was requested but the teacher has no width to draw.

    method: As in `wrap(distillation=...)`.
        quantizers: Those that follow the target width.
        quantizers: Those that have the target width.
    """
    if not quantizers and method not in (AUTO, None):
        raise ValueError(
            "SPEQ draws the widths of the activation quantizers that have the target width, and "
            f"this model has none. {describe(distillation=method)} Set model.distillation = None."
        )


def _is_control(teacher_precision):
    """Whether u = 1 was requested explicitly: the student is its own teacher."""
    is_bernoulli = isinstance(teacher_precision, Bernoulli)
    return is_bernoulli and teacher_precision.quantization_probability == 1


def _why_none(model, has_logits):
    if not has_logits:
        return (
            "Training is plain, without distillation: no output is a softmax or sigmoid, or has a "
            "cross-entropy with from_logits=True."
        )
    if not model.target_quantizers:
        return (
            "Training is plain, without distillation: no activation quantizer has the target "
            f"width. {describe(distillation=model.distillation)} The first and last layers have a "
            "fixed one."
        )
    return (
        "Training is plain, without distillation: teacher and student have the same widths. "
        f"{_widths_received(model)}"
    )


def _widths_received(model):
    widths = sorted({str(q.bits) for q in model.target_quantizers})
    return (
        f"Received: activations of {', '.join(widths)} bits, "
        f"teacher_precision={model.teacher_precision!r}."
    )
