"""What may stand in a float island, between DEQUANTIZE and QUANTIZE."""

from speq_keras.export.folding.carry import CARRIES
from speq_keras.export.folding.steps import CannotExport
from speq_keras.layers import QuantizedLayer
from speq_keras.operations import RELU_FUNCTIONS, TABLE_FUNCTIONS, function_name, fused_function

# Classes by name; what copies codes copies floats too.
FLOAT_LAYERS = frozenset(
    "Dense EinsumDense Conv1D Conv2D DepthwiseConv1D DepthwiseConv2D Conv1DTranspose "
    "Conv2DTranspose BatchNormalization Rescaling Normalization LayerNormalization Add Subtract "
    "Multiply Divide TrueDivide Square Negative Concatenate GlobalAveragePooling1D "
    "GlobalAveragePooling2D Cast".split()
)
FLOAT_FUNCTIONS = frozenset(
    "relu relu6 sigmoid tanh softmax silu gelu elu hard_silu leaky_relu".split()
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
        raise CannotExport(f"there is no float kernel for its activation {fused!r}")
    name = function_name(layer)
    if name in RELU_FUNCTIONS | TABLE_FUNCTIONS:
        if name not in FLOAT_FUNCTIONS:
            raise CannotExport(f"there is no float kernel for the function {name!r}")
        return
    class_name = type(layer).__name__
    if class_name not in FLOAT_LAYERS and class_name not in CARRIES:
        raise CannotExport("neither an integer nor a float kernel is known for it")
    if getattr(layer, "data_format", None) == "channels_first":
        raise CannotExport("kernels read channels last")
    if len(node.outputs) != 1:
        raise CannotExport("it has several outputs")


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
    is_cast = type(operation).__name__ == "Cast"
    if dtype == "float32" and any(reads_whole) and not (is_masked or is_cast):
        raise CannotExport("whole numbers have to be cast to floats first")
