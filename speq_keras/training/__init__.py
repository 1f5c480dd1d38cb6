"""The training step: one file per backend, and the code they share."""

import contextlib
import importlib

import keras

_STEPS = {
    "tensorflow": "speq_keras.training.tensorflow",
    "jax": "speq_keras.training.jax",
}


def train_step(model, *args):
    """Runs one training step of `model` on the current backend.

    Raises:
        RuntimeError: If the backend has no training step.
    """
    backend = keras.backend.backend()
    if backend not in _STEPS:
        raise RuntimeError(
            f"Training must run on one of the backends {', '.join(_STEPS)}. Received: "
            f"backend={backend!r}. Set KERAS_BACKEND before keras is imported."
        )
    return importlib.import_module(_STEPS[backend]).train_step(model, *args)


def build_optimizer(model):
    """Creates the optimizer's variables before the first step, as Keras' JAX trainer does.

    TensorFlow retraces a function that creates variables, which is nearly half of the time that the
    first step of a large network takes.
    """
    optimizer, variables = model.optimizer, model.trainable_weights
    if keras.backend.backend() != "tensorflow" or optimizer.built or not variables:
        return
    strategy = getattr(model, "distribute_strategy", None)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        optimizer.build(variables)


def check_strategy(strategy):
    """Raises a RuntimeError if Keras cannot train under a `tf.distribute` strategy (or None)."""
    name = type(strategy).__name__
    if "MultiWorkerMirrored" in name or "CollectiveAllReduce" in name:
        raise RuntimeError(
            "Keras 3 does not train under MultiWorkerMirroredStrategy (keras issue 20585, "
            "github.com/keras-team/keras/issues/20585). Received: strategy="
            f"{name}. Use MirroredStrategy on one machine, or the JAX backend with "
            "keras.distribution on many."
        )
