"""tfmot's namespace `tfmot.quantization`, for programs that only change the import."""

from speq_keras.tfmot.quantization import keras

__all__ = ["keras"]
