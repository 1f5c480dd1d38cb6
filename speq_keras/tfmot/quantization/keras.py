"""tfmot's namespace `tfmot.quantization.keras`: our functions for Keras 3, and tfmot's classes."""

from speq_keras.tfmot.annotate import (
    quantize_annotate_layer,
    quantize_annotate_model,
    quantize_scope,
)
from speq_keras.tfmot.apply import quantize_apply, quantize_model
from speq_keras.tfmot.importing import tfmot as _tfmot

_original = _tfmot.quantization.keras
QuantizeConfig = _original.QuantizeConfig
default_8bit = _original.default_8bit
quantizers = _original.quantizers

__all__ = [
    "QuantizeConfig",
    "default_8bit",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "quantize_scope",
    "quantizers",
]
