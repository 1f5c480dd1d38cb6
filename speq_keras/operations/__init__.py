"""Identifies Keras' layers and operations by their exact class, and what kernels do with them.

    kind         reads                            makes
    -----------  -------------------------------  -------------------------------------------------
    WEIGHTED     the layer's input width          an accumulator: rounded once, after fusing
    MATMUL       the target width; 8 bits of      an accumulator (attention)
                 a softmax
    AFFINE       an accumulator with no other     an accumulator (BatchNormalization folds into the
                 reader, else 8 bits              convolution before it)
    RELU         an accumulator with no other     an accumulator (fused clipping)
                 reader, else 8 bits
    ELEMENTWISE  8 bits                           an accumulator (Add, ... can fuse a ReLU)
    CARRY        codes                            the same codes (max pooling, reshape, pad, ...)
    SAME_GRID    codes                            new values, the same grid (average pooling)
    CONCAT       codes of one grid                the same codes
    MEAN         8 bits                           8 bits, on its own grid
    TABLE        8 bits                           8 bits, by table (sigmoid, tanh, GELU, ...)
    QUANTIZER    anything                         codes: a quantizer that was already there
    FLOAT        floats                           floats: everything unknown

module      does
----------  ---------------------------------------------------------------
rows        the table: kind, honoured options and arguments of every class
identity    which row a layer or operation has, by exact class
functions   which activation function a function is, by identity
kinds       the kind of a layer or operation, and what follows from it
"""

from speq_keras.operations.functions import OTHER, name_of_function
from speq_keras.operations.identity import (
    config_of,
    constructor_of,
    make_operation,
    name_of,
    operation_classes,
    row_of,
)
from speq_keras.operations.kinds import (
    AFFINE_FOLDS_INTO,
    ARITHMETIC,
    RELU_FOLDS_INTO,
    RELU_FUNCTIONS,
    TABLE_FUNCTIONS,
    build_fused_layers,
    fixed_range,
    function_name,
    fused_function,
    fused_layer,
    is_never_negative,
    kind_of,
    negative_slope,
    takes_logits,
)
from speq_keras.operations.rows import (
    LOWEST,
    TRAINING_ENDINGS,
    TRAINING_ONLY,
    TRAINING_OPTIONS,
    Kind,
    Row,
)

__all__ = [
    "AFFINE_FOLDS_INTO",
    "ARITHMETIC",
    "LOWEST",
    "OTHER",
    "RELU_FOLDS_INTO",
    "RELU_FUNCTIONS",
    "TABLE_FUNCTIONS",
    "TRAINING_ENDINGS",
    "TRAINING_ONLY",
    "TRAINING_OPTIONS",
    "Kind",
    "Row",
    "build_fused_layers",
    "config_of",
    "constructor_of",
    "fixed_range",
    "takes_logits",
    "function_name",
    "fused_function",
    "fused_layer",
    "is_never_negative",
    "kind_of",
    "make_operation",
    "name_of",
    "name_of_function",
    "negative_slope",
    "operation_classes",
    "row_of",
]
