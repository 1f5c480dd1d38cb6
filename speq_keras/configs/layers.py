"""The weighted layers of Keras: which variables are weights, and where their channels are."""

import sys

from keras import layers

from speq_keras.configs.quantize_config import QuantizeConfig
from speq_keras.ops import einsum_axes
from speq_keras.own_weights import Weight

_LAST = QuantizeConfig(weights=("kernel",), channel_axes=(-1,))
# (height, width, channels, multiplier): each pair of the last two is an output channel.
_DEPTHWISE = QuantizeConfig(weights=("kernel",), channel_axes=(-2, -1))
# Rows are looked up whole, so the table has one scale.
_TABLE = QuantizeConfig(weights=("embeddings",), channel_axes=())
# The products with the inputs and with the state; see `speq_keras.recurrent`.
_RECURRENT = QuantizeConfig(weights=("cell.kernel", "cell.recurrent_kernel"), channel_axes=(-1,))
_CELLS = (layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell)
# (height, width, outputs, inputs)
_TRANSPOSED = QuantizeConfig(weights=("kernel",), channel_axes=(-2,))


def _einsum_dense(layer):
    """The channels are the kernel's axes that appear in the output: "abc,cde->abde" has d and e."""
    _, kernel, output = einsum_axes(layer.equation)
    letters = kernel.replace("...", "")
    axes = tuple(axis for axis, letter in enumerate(letters) if letter in output)
    return QuantizeConfig(weights=("kernel",), channel_axes=axes)


def _of_cell(layer):
    """An RNN around one of Keras' cells has the weights of the cell."""
    return _RECURRENT if type(layer.cell) in _CELLS else None


REGISTRY = {
    layers.Conv1D: _LAST,
    layers.Conv2D: _LAST,
    layers.Conv3D: _LAST,
    layers.Dense: _LAST,
    layers.DepthwiseConv1D: _DEPTHWISE,
    layers.DepthwiseConv2D: _DEPTHWISE,
    layers.Conv1DTranspose: _TRANSPOSED,
    layers.Conv2DTranspose: _TRANSPOSED,
    # `wrap` splits these into a depthwise and a 1×1 convolution: the tensor between is quantized.
    layers.SeparableConv1D: QuantizeConfig(weights=("depthwise_kernel", "pointwise_kernel")),
    layers.SeparableConv2D: QuantizeConfig(weights=("depthwise_kernel", "pointwise_kernel")),
    layers.EinsumDense: _einsum_dense,
    layers.Embedding: _TABLE,
    layers.LSTM: _RECURRENT,
    layers.GRU: _RECURRENT,
    layers.SimpleRNN: _RECURRENT,
    layers.RNN: _of_cell,
    # Like PositionEmbedding below: an 8-bit table, and inputs are not read.
    Weight: QuantizeConfig(weights=("weight",), channel_axes=(), w_bits=8, a_bits=None),
}
if hasattr(layers, "ReversibleEmbedding"):  # not in the oldest supported Keras
    REGISTRY[layers.ReversibleEmbedding] = _TABLE


# Optional packages: module, class, config.
_ELSEWHERE = (
    (
        "keras_hub.layers",
        "PositionEmbedding",
        # Rows of an 8-bit table; only the shape of its input is used.
        QuantizeConfig(weights=("position_embeddings",), channel_axes=(), w_bits=8, a_bits=None),
    ),
)


def registered_config(layer):
    """Returns the config of exactly this layer's class, or None.

    A subclass may use its weights differently, so it does not inherit the config.

    Example:
        >>> registered_config(layers.Dense(4)).weights
        ('kernel',)
    """
    config = REGISTRY.get(type(layer)) or _config_elsewhere(type(layer))
    return config(layer) if callable(config) else config


def _config_elsewhere(cls):
    for module, name, config in _ELSEWHERE:
        if getattr(sys.modules.get(module), name, None) is cls:
            return config
    return None
