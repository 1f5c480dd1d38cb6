"""Lowers the folded network to the operations of a file: one row for every kind of step."""

from speq_keras.export.folding.steps import NO_KERNEL, CannotExport, Problem
from speq_keras.export.lowering import (
    float_linear,
    float_only,
    functions,
    linear,
    operations,
    pieces,
)
from speq_keras.export.lowering.build import Builder
from speq_keras.export.tflite.operations import OPS

# All other kinds copy or average codes: `operations.copied`.
ROWS = {
    "quantize": Builder.quantize,
    "dequantize": operations.one_to_one("dequantize"),
    "cast": operations.one_to_one("cast"),
    "requantize": lambda builder, step: linear.slope(builder, step, 1.0),
    "linear": linear.linear,
    "affine": linear.affine,
    "matmul": operations.matmul,
    "add": operations.pair("add"),
    "subtract": operations.pair("sub"),
    "multiply": operations.pair("mul"),
    "divide": operations.pair("div"),
    "power": operations.pair("pow"),
    "maximum": operations.pair("maximum"),
    "minimum": operations.pair("minimum"),
    "table": functions.table,
    "mean": operations.mean,
    "average_pool_2d": operations.average_pool,
    "max_pool_2d": operations.max_pool,
    "max_pool_3d": operations.pool_3d,
    "average_pool_3d": operations.pool_3d,
    "concatenate": operations.concatenate,
    "reshape": operations.reshape,
    "strided_slice": pieces.strided_slice,
    "gather": operations.gather,
    "embedding": operations.embedding,
    "constant": operations.constant,
    "refused": Builder.tensor_for,
    # Float only; by Keras' class name.
    "Cast": float_only.cast,
    "LayerNormalization": float_only.layer_normalization,
    "RMSNormalization": float_only.rms_normalization,
    "RMSNorm": float_only.rms_normalization,
    "GroupNormalization": float_only.group_normalization,
    "UnitNormalization": float_only.unit_normalization,
    "Normalize": float_only.normalize,
    **{name: float_only.reduction(name) for name in float_only.REDUCTIONS},
    "Argmax": float_only.arg_max,
    "Cumsum": float_linear.cumulative_sum,
    "Resizing": float_linear.resize,
    "Resize": float_linear.resize,
    "UpSampling2D": float_linear.resize,
    "Where": float_only.where,
    "Masking": float_only.masking,
    "GlobalAveragePooling1D": float_only.masked_mean,
    "Equal": float_only.comparison("equal"),
    "NotEqual": float_only.comparison("not_equal"),
    "Less": float_only.comparison("less"),
    "LessEqual": float_only.comparison("less_equal"),
    "Greater": float_only.comparison("greater"),
    "GreaterEqual": float_only.comparison("greater_equal"),
    "LogicalAnd": float_only.logical("and"),
    "LogicalOr": float_only.logical("or"),
    "LogicalNot": float_only.logical("not"),
}


def lower(folded, *, io="float32"):
    """Lowers a `FoldedNetwork` to operations.

    Args:
        folded: The network.
        io: "float32": QUANTIZE and DEQUANTIZE at the inputs and outputs; "int8" or "uint8":
            neither.

    Returns:
        `(network, problems)`: the `IntegerNetwork`, and a `Problem` for every step that cannot be
        computed. If there is any, here or in `folded`, the network is not usable.
    """
    builder = Builder(folded, io)
    problems = []
    for value in folded.inputs:
        builder.input(value)
    for step in folded.steps:
        try:
            _row(step.kind)(builder, step)
        except CannotExport as error:
            problems.append(_problem(step, error))
            builder.tensor_for(step)  # so that the others can be checked
    for value in folded.outputs:
        builder.output(value)
    return builder.network, problems


def _row(kind):
    """Returns the function that adds the operations of a kind of steps."""
    if kind not in ROWS and kind not in OPS:
        raise CannotExport(NO_KERNEL)
    return ROWS.get(kind, operations.copied)


def _problem(step, error):
    """Returns the `Problem` of a step that raised a `CannotExport`."""
    if step.nodes:
        return Problem.at(step.nodes[0], error)
    return Problem(step.name, step.kind, str(error), error.by_ranges)
