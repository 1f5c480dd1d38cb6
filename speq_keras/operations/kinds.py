"""The `Kind` of a layer or operation: what an integer kernel does with its tensors."""

import numpy as np
from keras import layers

from speq_keras.layers import QuantizedLayer
from speq_keras.operations.functions import name_of_function
from speq_keras.operations.identity import name_of, row_of
from speq_keras.operations.rows import Kind
from speq_keras.quantizers import ActivationQuantizer

# Operations on a tensor and a constant or a weight: {Keras' name: arithmetic}.
ARITHMETIC = {
    "Add": "add",
    "Subtract": "subtract",
    "Multiply": "multiply",
    "Divide": "divide",
    "TrueDivide": "divide",
}
RELU_FUNCTIONS = {"relu", "relu6"}
TABLE_FUNCTIONS = {
    *("sigmoid", "tanh", "softmax", "gelu", "gelu_approximate", "elu", "selu"),
    *("softplus", "hard_sigmoid", "hard_silu", "leaky_relu", "silu", "bent_relu", "mish"),
    *("exponential", "celu", "softsign", "log_sigmoid", "tanh_shrink", "hard_tanh"),
    *("sparse_plus", "squareplus", "hard_shrink", "soft_shrink"),
}
_LAYERS_THAT_END_IN_ACTIVATION = set(
    "Conv1D Conv2D Conv3D Conv1DTranspose Conv2DTranspose Conv3DTranspose Dense DepthwiseConv1D "
    "DepthwiseConv2D EinsumDense SeparableConv1D SeparableConv2D".split()
)
# Functions whose values are never negative.
_NONNEGATIVE_FUNCTIONS = RELU_FUNCTIONS | {
    *("sigmoid", "softmax", "softplus", "hard_sigmoid", "exponential", "sparse_plus"),
    "squareplus",
}
_NONNEGATIVE_OPERATIONS = ("Absolute", "Exp", "Rsqrt", "SparsePlus", "Sqrt", "Square", "Squareplus")
# Functions whose 8-bit range is known, or prescribed by their integer kernel: (low, high).
_FIXED_RANGES = {
    "sigmoid": (0.0, 255 / 256),
    "hard_sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
# The function that a layer or operation computes, regardless of options.
_FUNCTIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Softplus": "softplus",
    "HardSigmoid": "hard_sigmoid",
    "LogSoftmax": "log_softmax",
    "HardSilu": "hard_silu",
    "LeakyReLU": "leaky_relu",
    "LeakyRelu": "leaky_relu",
    "Tanh": "tanh",
    "Silu": "silu",
    "Selu": "selu",
}


def function_name(operation):
    """Returns the Keras name of the elementwise function that `operation` computes, or None.

    It is "other" for an `Activation` with a function that is not Keras' own, and "bent_relu" for a
    ReLU with a cap or threshold that has no kernel.
    """
    name = name_of(operation)
    if name == "Activation":
        return name_of_function(operation.activation)
    if name == "ReLU":
        return _relu_of(operation)
    return _FUNCTIONS.get(name)


def negative_slope(operation):
    """Returns the slope of a leaky ReLU below zero, or None for anything else.

    Example:
        >>> negative_slope(layers.LeakyReLU(0.5)), negative_slope(layers.ReLU())
        (0.5, None)
    """
    if function_name(operation) != "leaky_relu":
        return None
    return float(getattr(operation, "negative_slope", 0.2))  # an Activation has Keras' default


def _relu_of(operation):
    if operation.threshold or (operation.negative_slope and operation.max_value is not None):
        return "bent_relu"
    if operation.negative_slope:
        return "leaky_relu"
    return {None: "relu", 6: "relu6"}.get(operation.max_value, "bent_relu")


def fused_function(operation):
    """Returns the name of the activation function that a layer ends in, or None.

    It is "other" for a function that is not Keras' own, and for a layer used as a function. An LSTM
    applies its activation internally.
    """
    if name_of(operation) not in _LAYERS_THAT_END_IN_ACTIVATION:
        return None
    name = name_of_function(operation.activation)
    return None if name == "linear" else name


def fused_layer(operation):
    """Returns the layer that an operation uses as its activation function, or None.

    Example:
        >>> fused_layer(layers.Dense(4, activation=layers.LeakyReLU(name="leaky"))).name
        'leaky'
    """
    if name_of(operation) not in (*_LAYERS_THAT_END_IN_ACTIVATION, "Activation"):
        return None
    return operation.activation if isinstance(operation.activation, layers.Layer) else None


def build_fused_layers(graph):
    """Builds layers used as activation functions, so that they have weights.

    Keras builds them on their first real call, not with the model.

    Args:
        graph: A `Graph`.
    """
    for node in graph.nodes:
        inner = fused_layer(node.operation)
        if inner is not None and not inner.built:
            inner.build(graph.tensors[node.outputs[0]].shape)


def kind_of(operation, has_config=False):
    """Returns the `Kind` of a layer or operation.

    Args:
        operation: The layer or operation.
        has_config: Whether a quantize config applies to it: then it is WEIGHTED.
    """
    if isinstance(operation, ActivationQuantizer):
        return Kind.QUANTIZER
    if has_config or isinstance(operation, QuantizedLayer):
        return Kind.WEIGHTED
    function = function_name(operation)
    if function in RELU_FUNCTIONS:
        return Kind.RELU
    if function in TABLE_FUNCTIONS:
        return Kind.TABLE
    if function == "linear":
        return Kind.CARRY
    row = row_of(operation)
    if row is None:
        return Kind.FLOAT
    if row.name in ("UpSampling2D", "Resizing", "Resize"):
        return Kind.CARRY if operation.interpolation == "nearest" else Kind.SAME_GRID
    if row.kind is Kind.AFFINE and not _is_per_channel(operation):
        return Kind.FLOAT
    return row.kind


def _is_per_channel(layer):
    """Whether slope and shift vary along the last axis, where integer kernels have scales."""
    if name_of(layer) in ("BatchNormalization", "ChannelOperation"):
        return True  # for the former, the exporter reports which axis it needs
    names = ("scale", "offset") if name_of(layer) == "Rescaling" else ("mean", "variance")
    shapes = [np.shape(getattr(layer, name, 0.0)) for name in names]
    return all(size == 1 for shape in shapes for size in shape[:-1])


def is_never_negative(operation, kind, inputs_nonnegative):
    """Whether outputs are ≥ 0 for certain, given whether each input is."""
    function = function_name(operation) or fused_function(operation)
    if function == "bent_relu":
        return not operation.negative_slope and operation.threshold >= 0
    if function is not None:
        return function in _NONNEGATIVE_FUNCTIONS
    if name_of(operation) in _NONNEGATIVE_OPERATIONS:
        return True
    if kind in (Kind.CARRY, Kind.SAME_GRID, Kind.CONCAT, Kind.MEAN):
        return all(inputs_nonnegative)
    if kind is Kind.QUANTIZER:
        return not operation.signed
    if kind is Kind.ELEMENTWISE:
        name = name_of(operation)
        # If the other operand is a constant, its sign decides; constants are not examined.
        if name in ("Add", "Multiply", "Average", "Minimum", "Maximum"):
            return len(inputs_nonnegative) > 1 and all(inputs_nonnegative)
    return False


def fixed_range(operation):
    """Returns the output range (low, high) that the function's kernel requires, or None."""
    return _FIXED_RANGES.get(function_name(operation))


def takes_logits(operation):
    """Whether an operation is a function of logits: one that `softmax=False` omits at the end."""
    return function_name(operation) in ("softmax", "sigmoid", "tanh")


# Operations that a following BatchNormalization or ReLU can be folded into.
AFFINE_FOLDS_INTO = (Kind.WEIGHTED, Kind.AFFINE)
RELU_FOLDS_INTO = (Kind.WEIGHTED, Kind.AFFINE, Kind.ELEMENTWISE)
