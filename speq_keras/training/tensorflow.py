"""The training step on TensorFlow."""

import warnings

import keras
import tensorflow as tf

from speq_keras.training.step import student, teachers, track


def train_step(model, data):
    """Runs one step on a batch and returns the metrics."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    teacher_logits = teachers(model, x, y, sample_weight)
    with tf.GradientTape() as tape:
        outputs, parts = student(model, x, y, sample_weight, teacher_logits)
        scaled_loss = model.optimizer.scale_loss(parts["loss"])
    weights = model.trainable_weights
    if weights:
        gradients = tape.gradient(scaled_loss, weights)
        model.optimizer.apply_gradients(zip(gradients, weights, strict=True))
    else:
        warnings.warn("The model has no trainable weights: training changes nothing.", stacklevel=2)
    track(model, parts, x, replicas=tf.distribute.get_strategy().num_replicas_in_sync)
    return model.compute_metrics(x, y, outputs, sample_weight)
