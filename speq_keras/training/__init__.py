"""The training step, one file per backend, and what they share."""

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
