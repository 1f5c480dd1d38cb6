"""tfmot."""

from speq_keras.tfmot import quantization
from speq_keras.tfmot.annotate import (
    quantize_annotate_layer,
    quantize_annotate_model,
    quantize_scope,
)
from speq_keras.tfmot.apply import quantize_apply, quantize_model
