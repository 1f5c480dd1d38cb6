"""What a training step needs to know of a model, found once before training."""

import dataclasses

import keras

from speq_keras.graph import deep_graphs
from speq_keras.training.heads import find_heads, gives_probabilities


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingPlan:
    """What a training step needs to know of the model.

    Attributes:
        network: A model from the inputs to (outputs, logits of all heads); shares all layers.
        heads: The outputs that are distilled.
        quantizers: The activation quantizers whose width the teacher draws.
        output_count: Number of outputs.
        teacher_gives_logits: For every head, whether the external teacher's output are logits.
    """

    network: keras.Model
    heads: tuple
    quantizers: tuple
    output_count: int
    teacher_gives_logits: tuple = ()


def make_plan(model, warn):
    """Makes the `TrainingPlan` of a `SPEQModel`, after checking that it can train as it is set up.

    Args:
        model: The model.
        warn: Called with a sentence that the user should read.

    Raises:
        RuntimeError: If an external teacher is missing after loading.
        ValueError: If no output can be distilled, or the widths cannot be drawn.
    """
    if model.speq_weight is not None and model.teacher is None:
        raise RuntimeError(
            "This model was trained with an external teacher, which is not saved with it. Set "
            "`model.teacher` to that model, or to None to train without."
        )
    heads, others = (), []
    if model.distillation is not None or model.teacher is not None:
        heads, others = find_heads(model)
        if not heads:
            raise ValueError(
                "At least one output must be a softmax or sigmoid, or have a cross-entropy "
                f"with from_logits=True. Received: outputs {others}. Pass distillation=None "
                "and no teacher to train without distillation."
            )
    if others:
        warn(f"Outputs {others} have no logits and are trained without distillation.")
    quantizers = _drawn_quantizers(model) if model.distillation is not None else ()
    gives_logits = ()
    if model.teacher is not None:
        gives_logits = tuple(not p for p in gives_probabilities(model.teacher, heads))
    with deep_graphs():
        network = keras.Model(model.input, [model.output, [head.logits for head in heads]])
    return TrainingPlan(network, tuple(heads), quantizers, len(model.outputs), gives_logits)


def _drawn_quantizers(model):
    quantizers = tuple(model.target_quantizers)
    if not quantizers:
        raise ValueError(
            "SPEQ draws the widths of the activation quantizers that have the target width, and "
            f"this model has none. Received: distillation={model.distillation!r}. Set "
            "model.distillation = None."
        )
    model.teacher_precision.check(len(quantizers))
    return quantizers
