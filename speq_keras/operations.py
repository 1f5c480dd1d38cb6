"""What an integer kernel does with a tensor: one kind for every layer and operation.

    kind         reads                            makes
    -----------  -------------------------------  -------------------------------------------------
    WEIGHTED     the layer's input width          an accumulator: rounded once, behind what fuses
    MATMUL       the target width; 8 bits of      an accumulator (attention)
                 a softmax
    AFFINE       an accumulator that nobody else  an accumulator (BatchNormalization folds into the
                 reads, else 8 bits               convolution before it)
    RELU         an accumulator that nobody else  an accumulator (fused clipping)
                 reads, else 8 bits
    ELEMENTWISE  8 bits                           an accumulator (Add, ... can fuse a ReLU)
    CARRY        codes                            the same codes (max pooling, reshape, pad, ...)
    SAME_GRID    codes                            new values, the same grid (average pooling)
    CONCAT       codes of one grid                the same codes
    MEAN         8 bits                           8 bits on a grid of its own
    TABLE        8 bits                           8 bits, by table (sigmoid, tanh, GELU, ...)
    QUANTIZER    anything                         codes: a quantizer that was already there
    FLOAT        floats                           floats: everything unknown

Layers are told apart by class, operations (whose classes Keras keeps private) by class name.
"""

import enum

import keras
from keras import layers

from speq_keras import fused_batch_norm
from speq_keras.layers import QuantizedLayer
from speq_keras.quantizers import ActivationQuantizer

Kind = enum.Enum(
    "Kind",
    "WEIGHTED MATMUL AFFINE RELU ELEMENTWISE CARRY SAME_GRID CONCAT MEAN TABLE QUANTIZER FLOAT",
)

# Layers that do something in training only. MixUp and CutMix, which need labels, cannot be in a
# graph; RandomCrop cuts in inference, too.
TRAINING_ONLY = (
    "ActivityRegularization AlphaDropout AugMix Dropout GaussianDropout GaussianNoise RandAugment "
    "RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast "
    "RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue "
    "RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation "
    "RandomSharpness RandomShear RandomTranslation RandomZoom SpatialDropout1D SpatialDropout2D "
    "SpatialDropout3D"
).split()
_LAYERS = {
    Kind.AFFINE: "BatchNormalization Rescaling Normalization",
    Kind.ELEMENTWISE: "Add Subtract Multiply Average Maximum Minimum",
    Kind.CARRY: "MaxPooling1D MaxPooling2D MaxPooling3D GlobalMaxPooling1D GlobalMaxPooling2D "
    "GlobalMaxPooling3D Reshape Flatten Permute RepeatVector Cropping1D Cropping2D Cropping3D "
    "ZeroPadding1D ZeroPadding2D ZeroPadding3D UpSampling1D UpSampling3D Identity",
    Kind.SAME_GRID: "AveragePooling1D AveragePooling2D AveragePooling3D",
    Kind.CONCAT: "Concatenate",
    Kind.MEAN: "GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D",
    Kind.TABLE: "LeakyReLU PReLU ELU Softmax",
}
_LAYER_KINDS = {
    getattr(layers, name): kind for kind, names in _LAYERS.items() for name in names.split()
}
_LAYER_KINDS.update((getattr(layers, name), Kind.CARRY) for name in TRAINING_ONLY)
_LAYER_KINDS[fused_batch_norm.BatchNormalization] = Kind.AFFINE
_OPERATIONS = {
    Kind.MATMUL: "Matmul",
    Kind.RELU: "Relu Relu6",
    Kind.ELEMENTWISE: "Add Subtract Multiply Divide TrueDivide Negative Square Absolute Abs "
    "Maximum Minimum",
    Kind.CARRY: "Reshape Transpose GetItem Squeeze ExpandDims Ravel Repeat Flip Split Max MaxPool "
    "BroadcastTo Moveaxis Swapaxes Identity",
    Kind.SAME_GRID: "AveragePool",
    Kind.CONCAT: "Concatenate Stack",
    Kind.MEAN: "Mean",
    Kind.TABLE: "Sigmoid Tanh Softmax Gelu Elu Selu Softplus HardSigmoid HardSilu LeakyRelu Silu",
}
_OPERATION_KINDS = {name: kind for kind, names in _OPERATIONS.items() for name in names.split()}

# Activation functions by their `__name__`.
RELU_FUNCTIONS = {"relu", "relu6"}
TABLE_FUNCTIONS = {
    *("sigmoid", "tanh", "softmax", "gelu", "gelu_approximate", "elu", "selu"),
    *("softplus", "hard_sigmoid", "hard_silu", "leaky_relu", "silu"),
}
_CALLS_THAT_END_IN_ACTIVATION = {
    layer.call
    for layer in (
        layers.Conv1D,
        layers.Conv2D,
        layers.Conv3D,
        layers.Conv1DTranspose,
        layers.Conv2DTranspose,
        layers.Conv3DTranspose,
        layers.Dense,
        layers.DepthwiseConv1D,
        layers.DepthwiseConv2D,
        layers.EinsumDense,
        layers.SeparableConv1D,
        layers.SeparableConv2D,
    )
}
# Functions whose values are never negative.
_NONNEGATIVE_FUNCTIONS = RELU_FUNCTIONS | {"sigmoid", "softmax", "softplus", "hard_sigmoid"}
# Functions whose integer kernel demands a certain grid: (low, high) of the 8-bit range.
_FIXED_RANGES = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}


def function_name(operation):
    """Returns the Keras name of the elementwise function that `operation` computes, or None."""
    if isinstance(operation, layers.Activation):
        name = getattr(operation.activation, "__name__", None)
        # In Keras 3, "swish" and "hard_swish" are other names of these two.
        return {"swish": "silu", "hard_swish": "hard_silu"}.get(name, name)
    if isinstance(operation, layers.ReLU):
        plain = not operation.negative_slope and not operation.threshold
        return "relu" if plain else "leaky_relu"
    if isinstance(operation, layers.Softmax):
        return "softmax"
    if isinstance(operation, layers.Layer):
        return None
    name = type(operation).__name__
    return {
        "Relu": "relu",
        "Relu6": "relu6",
        "Sigmoid": "sigmoid",
        "Softmax": "softmax",
        "Softplus": "softplus",
        "HardSigmoid": "hard_sigmoid",
        "Tanh": "tanh",
        "Silu": "silu",
    }.get(name)


def fused_function(operation):
    """Returns the name of the activation function that a layer ends in, or None.

    A subclass counts as long as it computes like its base; an LSTM has its activation inside.
    """
    if getattr(type(operation), "call", None) not in _CALLS_THAT_END_IN_ACTIVATION:
        return None
    name = getattr(operation.activation, "__name__", "linear")
    return None if name == "linear" else name


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
    name = function_name(operation)
    if name in RELU_FUNCTIONS:
        return Kind.RELU
    if name in TABLE_FUNCTIONS:
        return Kind.TABLE
    if name == "linear":
        return Kind.CARRY
    if isinstance(operation, layers.UpSampling2D | layers.Resizing):
        return Kind.CARRY if operation.interpolation == "nearest" else Kind.SAME_GRID
    if isinstance(operation, keras.layers.Layer):
        return _LAYER_KINDS.get(type(operation), Kind.FLOAT)
    if type(operation).__name__ == "Pad":
        return Kind.CARRY if operation.mode == "constant" else Kind.FLOAT
    return _OPERATION_KINDS.get(type(operation).__name__, Kind.FLOAT)


def is_never_negative(operation, kind, inputs_nonnegative):
    """Whether outputs are ≥ 0 for certain, given whether each input is."""
    name = function_name(operation) or fused_function(operation)
    if name is not None:
        return name in _NONNEGATIVE_FUNCTIONS
    if kind in (Kind.CARRY, Kind.SAME_GRID, Kind.CONCAT, Kind.MEAN):
        return all(inputs_nonnegative)
    if kind is Kind.QUANTIZER:
        return not operation.signed
    if kind is Kind.ELEMENTWISE:
        class_name = type(operation).__name__
        if class_name in ("Square", "Absolute", "Abs"):
            return True
        # With a constant as the other operand, its sign decides, and it is not looked at.
        if class_name in ("Add", "Multiply", "Average", "Minimum", "Maximum"):
            return len(inputs_nonnegative) > 1 and all(inputs_nonnegative)
    return False


def fixed_range(operation):
    """Returns the (low, high) that the function's integer kernel demands of its output, or None."""
    return _FIXED_RANGES.get(function_name(operation))


# What a BatchNormalization or a ReLU behind it can be folded into.
AFFINE_FOLDS_INTO = (Kind.WEIGHTED, Kind.AFFINE)
RELU_FOLDS_INTO = (Kind.WEIGHTED, Kind.AFFINE, Kind.ELEMENTWISE)
