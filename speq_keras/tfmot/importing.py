"""The only import of tensorflow-model-optimization, without its side effects.

On import, the package sets TF_USE_LEGACY_KERAS=1 and reads the version of `tf.keras`, which makes
`tf.keras` tf_keras from then on. Here it gets tf_keras without that: afterwards `tf.keras` and the
variable are what they were before, unresolved if `tf.keras` was never used.

A program that later imports tensorflow_model_optimization itself expects those effects: its import
statement gets the same modules, and applies the effects.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import sys
from typing import Any

import keras

_PACKAGE = "tensorflow_model_optimization"
_VARIABLE = "TF_USE_LEGACY_KERAS"

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "Keras must have the TensorFlow backend for speq_keras.tfmot. Received: "
        f"backend={keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow before keras is "
        "imported."
    )

import tensorflow as tf  # noqa: E402  # not on other backends


class _LaterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Provides the package to later imports of it, with the effects of its own import."""

    def __init__(self, module):
        self.module, self.spec = module, module.__spec__

    def find_spec(self, fullname, path=None, target=None):
        return importlib.util.spec_from_loader(_PACKAGE, self) if fullname == _PACKAGE else None

    def create_module(self, spec):
        return self.module

    def exec_module(self, module):
        sys.meta_path.remove(self)
        module.__spec__ = self.spec
        os.environ[_VARIABLE] = "1"
        getattr(tf.keras, "version", None)  # like the package: this resolves tf.keras


@contextlib.contextmanager
def _keras_2():
    """Makes `tf.keras` tf_keras, and restores the state."""
    places = {
        tf: "tf_keras.api._v2.keras",
        tf.compat.v2: "tf_keras.api._v2.keras",
        tf.compat.v1: "tf_keras.api._v1.keras",
    }
    variable = os.environ.get(_VARIABLE)
    before = {module: vars(module)["keras"] for module in places}
    try:
        for module, name in places.items():
            module.keras = importlib.import_module(name)
        yield
    finally:
        for module, value in before.items():
            module.keras = value
        if variable is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = variable


def _import():
    if _PACKAGE in sys.modules:
        return importlib.import_module(_PACKAGE)
    try:
        with _keras_2():
            package = importlib.import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        raise ImportError(
            "The packages tensorflow-model-optimization and tf_keras must be installed for "
            f"speq_keras.tfmot. Received: {error}. Install them with "
            "`pip install 'speq-keras[tfmot]'`."
        ) from error
    # The modules inside stay in place, so that classes are the same for everyone.
    del sys.modules[_PACKAGE]
    sys.meta_path.insert(0, _LaterImport(package))
    return package


tfmot: Any = _import()
tf_keras: Any = importlib.import_module("tf_keras")
