"""Keras callbacks that show what quantization does while a network trains."""

from speq_keras.callbacks.precision_report import PrecisionReport
from speq_keras.callbacks.snapshot import ActivationSnapshot

__all__ = ["ActivationSnapshot", "PrecisionReport"]
