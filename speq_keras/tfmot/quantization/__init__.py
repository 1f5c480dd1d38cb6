"""tfmot's namespace `tfmot.quantization`, for programs in which only the import changes."""

from speq_keras.tfmot.quantization import keras

__all__ = ["keras"]
