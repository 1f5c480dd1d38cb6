"""An operation in the words of the TFLite schema, as plain data, and what emitters make it of."""

import dataclasses

import numpy as np

from speq_keras.export.tflite.network import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation in the schema's own words.

    Attributes:
        operator: Name in the schema's `BuiltinOperator`.
        inputs, outputs: Tensor names, "" for an input that is absent, or a `Tensor` that is not in
            the network and exists for this operation only.
        options_type: Name in the schema's `BuiltinOptions`, or None.
        options: {field of that options table: value}. Enumerations by name: "SAME", "RELU".
        version: Of the operator: the oldest one whose kernels compute this right.
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


def without_absent_end(inputs):
    """Returns `inputs` without the absent ones at the end."""
    while inputs and inputs[-1] == "":
        inputs = inputs[:-1]
    return inputs


def constant_of(node, what, values):
    """Returns an int32 constant for `node`: a shape, axes, paddings."""
    values = np.asarray(values, np.int32)
    name = f"{node.output}/{what}"
    return Tensor(name=name, shape=values.shape, dtype="int32", data=values)


def version_of(node, tensors, *, quantized=2):
    """Returns 1 for float32, and `quantized` for the versions that brought 8 bits."""
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
