"""The training step on TensorFlow."""

import keras
import tensorflow as tf
from keras import ops, tree

from speq_keras.losses import DistillationLoss, combine


def train_step(model, data):
    """Runs one step of SPEQ (Eq. 1, 2, and 3, 4 with an external teacher), or of plain training.

    The teacher goes first: it reads the seeds that the student will use, and leaves them as they
    are, so both see the same dropout masks.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    plan = model.training_plan()
    teacher_logits = external_logits = None
    if model.distillation is not None:
        teacher_logits = tf.nest.map_structure(
            tf.stop_gradient, self_teacher_logits(model, plan, x, y, sample_weight)
        )
    if model.teacher is not None:
        external_logits = tf.nest.map_structure(
            tf.stop_gradient, external_teacher_logits(model, plan, x)
        )

    with tf.GradientTape() as tape:
        outputs, logits = plan.network(x, training=True)
        task_loss = model.compute_loss(
            x=x, y=y, y_pred=outputs, sample_weight=sample_weight, training=True
        )
        distillation, external = 0.0, None
        if teacher_logits is not None:
            distillation = distill(model, model.distillation, teacher_logits, logits, sample_weight)
        if external_logits is not None:
            external = distill(model, "kl", external_logits, logits, sample_weight)
        loss = combine(task_loss, distillation, external, model.speq_weight)
        scaled_loss = model.optimizer.scale_loss(loss)

    weights = model.trainable_weights
    model.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, weights), weights, strict=True))
    parts = {"loss": loss, "task_loss": task_loss, "distillation_loss": distillation}
    if external is not None:
        parts["teacher_loss"] = external
    track(model, parts, x)
    return model.compute_metrics(x, y, outputs, sample_weight)


def self_teacher_logits(model, plan, x, y, sample_weight):
    """Returns the logits of the stochastic path (Eq. 1), or of the best of all paths (Eq. 5).

    The pass runs under a stateless scope in which the width variables have the drawn values: it
    uses batch statistics, and nothing that it updates is kept.
    """
    widths = [quantizer.width for quantizer in plan.quantizers]
    target = ops.stack([ops.convert_to_tensor(width.value) for width in widths])
    candidates = model.teacher_precision.candidates(target, model.draw_seed)

    def run(bits, with_loss):
        mapping = [(width, bits[i]) for i, width in enumerate(widths)]
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

    A softmax or sigmoid at its end is undone: log p differs from the logits by a constant, which
    the softmax at temperature T does not see.
    """
    outputs = tree.flatten(model.teacher(x, training=False))
    return [
        to_logits(ops.cast(outputs[head.index], "float32"), head, plan.teacher_gives_logits[i])
        for i, head in enumerate(plan.heads)
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
    for head, teacher, student in zip(plan.heads, teacher_logits, student_logits, strict=True):
        loss = DistillationLoss(method, model.temperature, head.kind)
        total = total + head.weight * loss(teacher, student, weights[head.index])
    return total


def per_output(sample_weight, count):
    """Returns one sample weight per output."""
    flat = tree.flatten(sample_weight)
    return flat * count if len(flat) == 1 else flat


def track(model, parts, x):
    """Updates the loss metrics: means over examples, comparable on any number of replicas."""
    batch = tf.shape(next(part for part in tree.flatten(x) if part is not None))[0]
    # Keras divides losses by the number of replicas so that summed gradients are means.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    for metric in model.metrics:
        if metric.name in parts:
            metric.update_state(parts[metric.name] * float(replicas), sample_weight=batch)
