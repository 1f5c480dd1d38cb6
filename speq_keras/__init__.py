"""speq_keras: quantization-aware training for Keras 3, by stochastic precision self-distillation.

    model = speq_keras.wrap(keras_model, w_bits=3, a_bits=3)   # the same graph, with quantizers
    model.calibrate(batches)                                   # ranges from a few batches
    model.compile(...); model.fit(...)                         # SPEQ training
    model.save("m.keras")                                      # and keras.saving.load_model
    model.export_tflite("m.tflite")                            # the integers, proven

The parts, from the bottom up: `ops` (tensor functions), `losses` (Eq. 2-8, and custom ones),
`precision` (how the teacher's widths are drawn), `quantizers`, `configs` (what to quantize in each
layer), `layers`, `wrapping` (float graph to quantized graph), `export` (trained graph to integers
and TFLite), `quantized_model` (what a SPEQModel is), `training` and `model` (how SPEQ trains it),
`co_training` (methods that train the teacher too), `callbacks` (what quantization does, epoch by
epoch).

Beyond the paper: `damping` (against oscillating weights), `progressive` (widths that fall during
training), `bit_search` (a width per layer, within a budget).
"""

from speq_keras import callbacks, configs, export, losses, precision, quantizers
from speq_keras._version import __version__
from speq_keras.bit_search import BitSearch, search_bits
from speq_keras.co_training import Apprentice, CoStudy
from speq_keras.configs import QuantizeConfig
from speq_keras.damping import OscillationDamping
from speq_keras.entry import wrap
from speq_keras.export.fold import fold
from speq_keras.fused_batch_norm import BatchNormalization
from speq_keras.layers import QuantizedLayer
from speq_keras.model import SPEQModel
from speq_keras.progressive import LowerWidths

__all__ = [
    "Apprentice",
    "BatchNormalization",
    "BitSearch",
    "CoStudy",
    "LowerWidths",
    "OscillationDamping",
    "QuantizeConfig",
    "QuantizedLayer",
    "SPEQModel",
    "__version__",
    "callbacks",
    "configs",
    "export",
    "fold",
    "losses",
    "precision",
    "quantizers",
    "search_bits",
    "wrap",
]
