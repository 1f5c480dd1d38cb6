"""What may stand in a float island, between DEQUANTIZE and QUANTIZE."""

from speq_keras.export.folding.carry import CARRIES
from speq_keras.export.folding.steps import CannotExport
from speq_keras.layers import QuantizedLayer
from speq_keras.operations import OTHER, function_name, fused_function, name_of

# By Keras' name of the class; what copies codes copies floats too.
FLOAT_LAYERS = frozenset(
    "Dense EinsumDense Conv1D Conv2D DepthwiseConv1D DepthwiseConv2D Conv1DTranspose "
    "Conv2DTranspose BatchNormalization Rescaling Normalization LayerNormalization Add Subtract "
    "Multiply Divide TrueDivide Square Negative Concatenate Cast ChannelOperation "
    "GlobalAveragePooling1D GlobalAveragePooling2D LeakyReLU PReLU ELU Elu Gelu LeakyRelu".split()
)
FLOAT_FUNCTIONS = frozenset(
    "relu relu6 sigmoid tanh softmax silu gelu gelu_approximate elu hard_silu leaky_relu "
    "bent_relu".split()
)


def check_float(node):
    """Checks that a node can be written with float kernels.

    Raises:
        CannotExport: If it cannot.
    """
    operation = node.operation
    layer = operation.layer if isinstance(operation, QuantizedLayer) else operation
    fused = fused_function(layer)
    if fused is not None and fused not in FLOAT_FUNCTIONS:
        raise CannotExport(f"there is no float kernel for its {_shown(layer, fused)}")
    function = function_name(layer)
    if function not in (None, "linear"):
        if function not in FLOAT_FUNCTIONS:
            raise CannotExport(f"there is no float kernel for its {_shown(layer, function)}")
        return
    name = name_of(layer)
    if name not in FLOAT_LAYERS and name not in CARRIES:
        raise CannotExport("neither an integer nor a float kernel is known for it")
    if len(node.outputs) != 1:
        raise CannotExport("it has several outputs")


def _shown(layer, function):
    """Returns what is said of an activation function."""
    if function != OTHER:
        return f"activation function {function!r}"
    function = layer.activation
    name = getattr(function, "__name__", type(function).__name__)
    return f"activation function {name!r} of {getattr(function, '__module__', 'no module')}"


def check_whole_numbers(operation, values, dtype):
    """Checks that whole numbers become floats, or floats whole numbers, only where kernels do so.

    Args:
        operation: Of a node.
        values: The `Value`s that it reads, without grids.
        dtype: Of what it makes: "float32" or "int32".

    Raises:
        CannotExport: If a kernel would read another type than it knows.
    """
    reads_whole = [value.is_whole for value in values]
    if dtype == "int32" and any(value.dtype == "float32" for value in values):
        raise CannotExport("whole numbers are not made of floats")
    is_masked = reads_whole == [False, True] and function_name(operation) == "softmax"
    is_cast = name_of(operation) == "Cast"
    if dtype == "float32" and any(reads_whole) and not (is_masked or is_cast):
        raise CannotExport("whole numbers have to be cast to floats first")
