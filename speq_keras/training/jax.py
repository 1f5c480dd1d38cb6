"""The training step on JAX: the same as on TensorFlow, as a function of the variables' values."""

import jax
import keras

from speq_keras.training.step import student, teachers, track


def train_step(model, state, data):
    """Runs one step on a batch.

    Args:
        model: The `SPEQModel`.
        state: Values of (trainable, non-trainable, optimizer's, metrics') variables.
        data: `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        `(metrics, state)`.
    """
    trainable, non_trainable, optimizer_state, metrics_state = state
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

    def scaled_loss(trainable):
        # The scope supplies everything the step reads and collects everything it updates.
        mapping = [
            *zip(model.trainable_variables, trainable, strict=True),
            *zip(model.non_trainable_variables, non_trainable, strict=True),
            *zip(model.metrics_variables, metrics_state, strict=True),
            *zip(model.optimizer.variables, optimizer_state, strict=True),
        ]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            teacher_logits = teachers(model, x, y, sample_weight)
            outputs, parts = student(model, x, y, sample_weight, teacher_logits)
            scaled = model.optimizer.scale_loss(parts["loss"])
        updated = [
            [scope.get_current_value(variable) for variable in variables]
            for variables in (model.non_trainable_variables, model.metrics_variables)
        ]
        return scaled, (outputs, parts, *updated)

    gradient = jax.grad(scaled_loss, has_aux=True)
    gradients, (outputs, parts, non_trainable, metrics_state) = gradient(trainable)
    trainable, optimizer_state = model.optimizer.stateless_apply(
        optimizer_state, gradients, trainable
    )
    with _scope(model.metrics_variables, metrics_state) as scope:
        track(model, parts, x)
        logs = model.compute_metrics(x, y, outputs, sample_weight)
    metrics_state = [scope.get_current_value(variable) for variable in model.metrics_variables]
    return logs, (trainable, non_trainable, optimizer_state, metrics_state)


def _scope(variables, values):
    return keras.StatelessScope(list(zip(variables, values, strict=True)))
