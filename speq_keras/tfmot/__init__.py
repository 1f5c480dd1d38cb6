"""tensorflow-model-optimization for Keras 3, and SPEQ for tf_keras models.

Programs for tfmot run on Keras 3 after changing the import:

    import speq_keras.tfmot as tfmot                   # was tensorflow_model_optimization
    q_aware = tfmot.quantization.keras.quantize_model(keras_model)      # a SPEQModel
    q_aware.compile(...); q_aware.fit(...)
    q_aware.export_tflite("m.tflite")                  # replaces TFLiteConverter

Every tensor that tfmot rounds on tf_keras is rounded here, with the same values. A tfmot
`QuantizeConfig` can also be passed to `speq_keras.wrap(configs={"layer": config})`.

    importing    the import of tfmot, without its side effects
    quantizers   tfmot's quantizers on Keras 3
    translate    a tfmot QuantizeConfig and a Keras 3 layer -> quantizers
    layout       which layers tfmot rounds together
    annotate     quantize_annotate_layer, quantize_annotate_model, quantize_scope
    apply        quantize_apply, quantize_model
    legacy       SPEQ on tf_keras; legacy_configs: our quantizers in tfmot's `quantize_apply`

Needs the TensorFlow backend, and `pip install 'speq-keras[tfmot]'`.
"""

from speq_keras.tfmot import quantization
from speq_keras.tfmot.annotate import (
    QuantizeAnnotate,
    quantize_annotate_layer,
    quantize_annotate_model,
    quantize_scope,
)
from speq_keras.tfmot.apply import quantize_apply, quantize_model
from speq_keras.tfmot.legacy import LegacySPEQModel
from speq_keras.tfmot.legacy_configs import SPEQQuantizeConfig, SPEQQuantizer, SPEQScheme

__all__ = [
    "LegacySPEQModel",
    "QuantizeAnnotate",
    "SPEQQuantizeConfig",
    "SPEQQuantizer",
    "SPEQScheme",
    "quantization",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "quantize_scope",
]
