"""The parts of a training step that all backends share: teachers, student, losses.

One step of SPEQ:

    teachers(...)    logits of the stochastic path (Eq. 1) and of an external teacher, as constants
    student(...)     the target path, and the losses of Eq. 2 or 4 on it

The teacher runs first. It reads the seeds that the student will use and does not advance them, so
both see the same dropout masks.
"""

import keras
from keras import ops, tree

from speq_keras.losses import DistillationLoss, combine


def teachers(model, x, y, sample_weight):
    """Returns the logits of the self-teacher and of the external teacher, or None for either.

    No gradient flows into them.
    """
    plan = model.training_plan()
    self_logits = external_logits = None
    if plan.method is not None:
        self_logits = self_teacher_logits(model, plan, x, y, sample_weight)
        self_logits = tree.map_structure(ops.stop_gradient, self_logits)
    if model.teacher is not None:
        external_logits = external_teacher_logits(model, plan, x)
        external_logits = tree.map_structure(ops.stop_gradient, external_logits)
    return self_logits, external_logits


def student(model, x, y, sample_weight, teacher_logits):
    """Runs the target path.

    Returns:
        `(outputs, parts)`: the model's outputs, and {"loss": what is minimized, "task_loss": ...,
        "distillation_loss": ..., with an external teacher "teacher_loss": ...}.
    """
    plan = model.training_plan()
    outputs, logits = plan.network(x, training=True)
    task_loss = model.compute_loss(
        x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True
    )
    self_logits, external_logits = teacher_logits
    distillation, external = 0.0, None
    if self_logits is not None:
        distillation = distill(model, plan.method, self_logits, logits, sample_weight)
    if external_logits is not None:
        method = model.teacher_distillation
        external = distill(model, method, external_logits, logits, sample_weight)
    loss = combine(task_loss, distillation, external, model.speq_weight)
    if model.damping is not None:
        loss = loss + model.damping.loss(model.layers, model.optimizer.iterations)
    parts = {"loss": loss, "task_loss": task_loss, "distillation_loss": distillation}
    if external is not None:
        parts["teacher_loss"] = external
    return outputs, parts


def self_teacher_logits(model, plan, x, y, sample_weight):
    """Returns the logits of the stochastic path (Eq. 1), or of the best of all paths (Eq. 5).

    The pass runs in a stateless scope in which the width variables have the drawn values: it uses
    batch statistics and keeps none of its updates.
    """
    widths = [quantizer.width for quantizer in plan.quantizers]
    target = ops.stack([ops.convert_to_tensor(width.value) for width in widths])
    candidates = model.teacher_precision.candidates(target, model.draw_seed)

    def run(bits, with_loss):
        drawn = [(width, bits[i]) for i, width in enumerate(widths)]
        # All variables: an inner scope does not see the values of an outer one.
        mapping = [*((variable, variable.value) for variable in model.variables), *drawn]
        with keras.StatelessScope(mapping, collect_losses=True):
            outputs, logits = plan.network(x, training=True)
            if not with_loss:
                return logits
            loss = model.compute_loss(
                x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True
            )
        return ops.cast(loss, "float32"), logits

    if candidates.shape[0] == 1:
        return run(candidates[0], with_loss=False)

    def body(row, best_loss, best_logits):
        loss, logits = run(candidates[row], with_loss=True)
        better = loss < best_loss
        keep = tree.map_structure(lambda new, old: ops.where(better, new, old), logits, best_logits)
        return row + 1, ops.minimum(loss, best_loss), keep

    first_loss, first_logits = run(candidates[0], with_loss=True)
    _, _, logits = ops.while_loop(
        lambda row, *_: row < candidates.shape[0], body, (1, first_loss, first_logits)
    )
    return logits


def external_teacher_logits(model, plan, x):
    """Returns the external teacher's logits, in inference mode (Eq. 3).

    A final softmax or sigmoid is undone: log p differs from the logits by a constant, which does
    not affect the softmax at temperature T.
    """
    outputs = tree.flatten(model.teacher(x, training=False))
    return [
        to_logits(ops.cast(outputs[head.index], "float32"), head, are_logits)
        for head, are_logits in zip(plan.heads, plan.teacher_gives_logits, strict=True)
    ]


def to_logits(outputs, head, are_logits):
    """Returns logits for a head's outputs, which may be probabilities."""
    if are_logits:
        return outputs
    tiny = 1e-37
    if head.kind == "softmax":
        return ops.log(ops.maximum(outputs, tiny))
    return ops.log(ops.maximum(outputs, tiny)) - ops.log(ops.maximum(1.0 - outputs, tiny))


def distill(model, method, teacher_logits, student_logits, sample_weight):
    """Returns the distillation loss (Eq. 2, second term; Eq. 3), summed over the heads."""
    plan = model.training_plan()
    weights = per_output(sample_weight, plan.output_count)
    total = 0.0
    for head, teacher, logits in zip(plan.heads, teacher_logits, student_logits, strict=True):
        loss = DistillationLoss(method, model.temperature, head.kind)
        total = total + head.weight * loss(teacher, logits, weights[head.index])
    return total


def per_output(sample_weight, count):
    """Returns one sample weight per output."""
    flat = tree.flatten(sample_weight)
    return flat * count if len(flat) == 1 else flat


def track(model, parts, x, replicas=1):
    """Updates the loss metrics: means over examples, comparable on any number of replicas."""
    batch = ops.shape(next(part for part in tree.flatten(x) if part is not None))[0]
    for metric in model.metrics:
        if metric.name in parts:
            # Keras divides losses by the number of replicas so that summed gradients are means.
            metric.update_state(parts[metric.name] * float(replicas), sample_weight=batch)
