"""The training step on TensorFlow."""

import concurrent.futures
import logging
import warnings

import keras
import tensorflow as tf
from keras import tree

from speq_keras.training.step import student, teachers, track


def train_step(model, data):
    """Runs one step on a batch and returns the metrics."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    with tf.init_scope():  # the plan is made once, in code that cannot be traced
        model.training_plan()
    make_metrics(model, x, y, sample_weight)
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


def make_metrics(model, x, y, sample_weight):
    """Creates the metrics that Keras would create within the first step.

    A `tf.function` that creates variables is traced twice, which is a third of the time that the
    first step of a large network takes. Here they are created outside of it, on zeros.
    """
    exist = len(model.outputs) == 1 and all(metric.variables for metric in model.metrics)
    if exist or not tf.inside_function() or tf.distribute.has_strategy():
        return
    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # a new thread has no graph
        made = thread.submit(run_on_zeros, model, x, y, sample_weight)
    if made.exception() is not None:  # a metric that rejects zeros is created by the step
        logging.getLogger(__name__).debug("The step is traced twice: %s", made.exception())


def run_on_zeros(model, x, y, sample_weight):
    """Computes the loss and metrics of one example of zeros; metrics keep their values."""

    def zeros(tensor):
        if tensor is None:
            return None
        return tf.zeros([1, *(size or 1 for size in tensor.shape[1:])], tensor.dtype)

    x, y, sample_weight, outputs = tree.map_structure(zeros, (x, y, sample_weight, model.output))
    before = [(variable, variable.numpy()) for variable in model.metrics_variables]
    model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight)
    model.compute_metrics(x, y, outputs, sample_weight)
    model.reset_metrics()
    for variable, value in before:
        variable.assign(value)
