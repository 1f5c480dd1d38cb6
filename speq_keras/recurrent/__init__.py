"""Recurrent layers with one quantizer per role: a loop in training, unrolled in the file.

module      does
----------  ------------------------------------------------------------
formulas    one step of LSTM, GRU and SimpleRNN, for tensors and for nodes
layer       the layer that is trained
making      which layers can be quantized, and with which quantizers
unrolling   the graph with separate nodes for each step
"""

from speq_keras.recurrent.layer import PRODUCTS, QuantizedRecurrent, roles_of
from speq_keras.recurrent.making import is_recurrent, quantized_recurrent, refusal
from speq_keras.recurrent.unrolling import broken_steps, read_unrolled, take_over_biases

__all__ = [
    "PRODUCTS",
    "QuantizedRecurrent",
    "broken_steps",
    "is_recurrent",
    "quantized_recurrent",
    "read_unrolled",
    "refusal",
    "roles_of",
    "take_over_biases",
]
