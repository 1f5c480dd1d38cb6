"""One record per operation of the file, with everything the exporter knows about it.

    field      contains                                           used by
    ---------  -------------------------------------------------  -----------------------------
    emit       the operators and options of the TFLite schema     write
    integer    the codes that LiteRT's default runtime computes   simulate, the proof
    floating   the same in float32, for float islands             simulate, the proof
    copies     whether all its tensors have one grid              lowering, before writing
    demands    the output grid that its kernel requires           lowering, before writing
    limits     the scale ratios that its kernel accepts           lowering, before writing
    slack      the kernel's rounding error beyond half a step     the proof
    since      the first runtime that has an operator's version   write
    fuses      whether it clips its output                        lowering
    is_spatial, has_bias                                          lowering, the proof, the report

Both kernels are called as `kernel(values, inputs, output, *, activation="none", **options)`, with
the arrays of the inputs (None: absent) and the `Tensor`s with scales and zero points. `emit` is
called as `emit(node, tensors, batch_size)`. A record without all of its fields cannot be made.
"""

import dataclasses
import typing

import numpy as np

from speq_keras.export.tflite.network import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The ratios of scales that a kernel accepts, as probed on ai-edge-litert 2.3.

    Beyond `high` a file with a convolution or a matrix product does not load, and the kernel for a
    product of two tensors overflows 32 bits. Below `low` a builtin kernel is used instead.

    Attributes:
        low, high: Smallest ratio, and the first that is too large.
        ratios: (node, tensors) -> the ratios of input to output scales, a float32 vector.
        says: The message for a ratio that is too large, with a placeholder for it.
    """

    low: float
    high: float
    ratios: typing.Callable
    says: str

    def ratios_of(self, node, tensors):
        """Returns the ratios of a node; empty if it computes in float."""
        ends = tensors[node.inputs[0]], tensors[node.output]
        if any(tensor.scale is None for tensor in ends):
            return np.zeros(0, np.float32)
        return np.atleast_1d(self.ratios(node, tensors))

    def problem(self, node, tensors):
        """Returns which ratio is too large, as a sentence for the user, or ""."""
        largest = np.max(self.ratios_of(node, tensors), initial=0.0)
        return "" if largest < self.high else self.says.format(largest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Op:
    """What is known about one kind of node.

    Attributes:
        emit: Makes the node's `Operation`, or a list of them.
        integer: Kernel for codes; None: not needed, it exists only in float islands.
        floating: Kernel for plain numbers; None: it always reads or makes codes.
        copies: Whether its output has the grid of its input, because it copies or averages codes.
            All others round to the grid of their output.
        demands: (scale, zero point) that the integer kernel requires of its output, or None.
        limits: `Limits` of scales, or None: no limits.
        slack: (node, tensors) -> the kernel's rounding error beyond the nearest code, in output
            steps, or None.
        since: {version of an operator: first TensorFlow that has it}; all others are in
            `write.OLDEST_RUNTIME`.
        fuses: Whether a fused activation can clip its output.
        is_spatial: Whether its kernel works on images, with a height: sequences get one.
        has_bias: Whether it multiplies by weights and adds a bias.
    """

    emit: typing.Callable
    integer: typing.Callable | None
    floating: typing.Callable | None
    copies: bool = False
    demands: tuple | None = None
    limits: Limits | None = None
    slack: typing.Callable | None = None
    since: dict = dataclasses.field(default_factory=dict)
    fuses: bool = False
    is_spatial: bool = False
    has_bias: bool = False

    def __post_init__(self):
        if self.integer is None and self.floating is None:
            raise TypeError("An Op must have a kernel: integer, floating, or both.")

    def problem(self, node, tensors):
        """Returns why its kernel cannot compute a node with these scales, a sentence, or ""."""
        output = tensors[node.output]
        if output.scale is None:
            return ""
        x, grid = tensors[node.inputs[0]], (output.scale, output.zero_point)
        if self.copies and (x.scale, x.zero_point) != grid:
            return "its output must have the grid of its input"
        if self.demands is not None and grid != self.demands:
            return f"its kernel only makes codes of the scale {self.demands[0]:.6g}"
        return "" if self.limits is None else self.limits.problem(node, tensors)


# ---- ratios of scales ------------------------------------------------------------------------


def _scales(node, tensors):
    names = [name for name in (*node.inputs, node.output) if name]
    scales = [tensors[name].scale for name in names]
    return [None if scale is None else np.asarray(scale, np.float32) for scale in scales]


def product_ratio(node, tensors):
    """Returns the scale of the product of the first two inputs over the output's scale."""
    x, y, *_, output = _scales(node, tensors)
    return x * y / output


def input_ratios(node, tensors):
    """Returns the scale of each input over the output's scale."""
    *inputs, output = _scales(node, tensors)
    return np.array([scale / output for scale in inputs], np.float32)


# ---- the schema ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation in the terms of the schema.

    Attributes:
        operator: Name in the schema's `BuiltinOperator`.
        inputs, outputs: Tensor names, "" for an absent input, or a `Tensor` that is not in the
            network and exists only for this operation.
        options_type: Name in the schema's `BuiltinOptions`, or None.
        options: {field of that options table: value}. Enumerations by name: "SAME", "RELU".
        version: Of the operator: the oldest one whose kernels compute this correctly.
    """

    operator: str
    inputs: list
    outputs: list
    options_type: str | None = None
    options: dict = dataclasses.field(default_factory=dict)
    version: int = 1


def operation_of(
    node, operator, options_type=None, *, inputs=None, more_inputs=(), version=1, **options
):
    """Returns an `Operation` that reads `inputs` (those of `node`), and then `more_inputs`."""
    return Operation(
        operator=operator,
        inputs=without_absent_end([*(node.inputs if inputs is None else inputs), *more_inputs]),
        outputs=node.outputs,
        options_type=options_type,
        options=options,
        version=version,
    )


def always(operator, options_type=None, *, quantized=1, fused=False, **options):
    """Returns the emitter of an operator whose options are the same for all nodes.

    `quantized` is its version for 8-bit tensors; `fused`: its options hold the fused activation.
    """

    def emit(node, tensors, batch_size):
        activation = activation_of(node) if fused else {}
        version = version_of(node, tensors, quantized=quantized)
        return operation_of(node, operator, options_type, version=version, **options, **activation)

    return emit


def without_absent_end(inputs):
    """Returns `inputs` without trailing absent ones."""
    while inputs and inputs[-1] == "":
        inputs = inputs[:-1]
    return inputs


def constant_of(node, what, values):
    """Returns an int32 constant for `node`: a shape, axes, paddings."""
    values = np.asarray(values, np.int32)
    name = f"{node.output}/{what}"
    return Tensor(name=name, shape=values.shape, dtype="int32", data=values)


def version_of(node, tensors, *, quantized=2):
    """Returns 1 for float32, and `quantized` for 8 bits, which need a later version."""
    return 1 if tensors[node.inputs[0]].dtype == "float32" else quantized


def activation_of(node):
    """Returns the field of the fused activation."""
    return {"fusedActivationFunction": node.activation.upper()}


def window_of(node):
    """Returns the fields that convolutions and pooling share."""
    height, width = node.options["strides"]
    return {
        "padding": node.options["padding"].upper(),
        "strideH": int(height),
        "strideW": int(width),
        **activation_of(node),
    }


def dilations_of(node):
    """Returns the fields of the dilations."""
    height, width = node.options.get("dilations", (1, 1))
    return {"dilationHFactor": int(height), "dilationWFactor": int(width)}
