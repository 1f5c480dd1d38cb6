"""Functions of one value: a kernel or a table for codes, float kernels for floats."""

import functools
import math

import keras
import numpy as np

from speq_keras.export.folding.options import unsupported
from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.lowering.expression import Floats
from speq_keras.export.lowering.float_functions import activated, function_of, softmax_axes
from speq_keras.export.lowering.functions_without_table import emit_without_table
from speq_keras.export.tflite.network import Tensor
from speq_keras.graph import Ref, map_refs
from speq_keras.operations import name_of

# Functions whose kernel rounds the exact value to a prescribed grid.
_PRESCRIBED = {"sigmoid": "logistic", "tanh": "tanh", "softmax": "softmax"}
_FAR = 1e9
# Functions of all values along an axis.
_PER_AXIS = ("softmax", "log_softmax")


def table(builder, step):
    """A function of codes: the kernel of that name, or a table of its 256 values."""
    if step.is_float:
        return float_function(builder, step)
    x, operation = builder.at_trained_scale(step.inputs[0]), step.layer
    name = function_of(operation)
    if name == "softmax" and softmax_axes(operation, len(x.shape)) != (len(x.shape) - 1,):
        return _softmax_of_other_axes(builder, step, x)
    if name == "log_softmax":
        raise CannotExport("there is no integer kernel for it")
    if name in _PRESCRIBED:
        return builder.emit(step, _PRESCRIBED[name], [x.name])
    codes = np.arange(-128, 128) - x.zero_point
    values = codes.astype("float32") * np.float32(x.trained_scale)
    output = builder.tensor_for(step)
    values = np.nan_to_num(
        _values_of(step, values, x.shape[-1]), nan=0.0, posinf=np.inf, neginf=-np.inf
    )
    if step.activation != "none":
        values = np.clip(values, 0, 6 if step.activation == "relu6" else None)
    rounded = step.output.grid.round(values).reshape(-1)
    if step.activation == "none" and emit_without_table(builder, step, x, rounded):
        return None
    stored = rounded + output.zero_point
    data = builder.constant_of(
        step,
        Tensor(
            name=f"{step.name}/table",
            shape=stored.shape,
            scale=output.scale,
            zero_point=output.zero_point,
            data=stored.astype("int8"),
        ),
    )
    return builder.emit(step, "lookup", [x.name, data.name])


def _softmax_of_other_axes(builder, step, x):
    """Moves axes, takes the softmax of the last one, and moves them back; moving copies codes."""
    order, back, moved, flat = _as_last_axis(step.layer, x.shape)
    output = builder.tensor_for(step)
    made = builder.like(x, f"{step.name}/moved", moved)
    x = builder.add("transpose", [x.name], made, options={"permutation": order})
    if flat != moved:
        x = builder.reshape(x, flat, step.name)
    y = builder.add("softmax", [x.name], builder.like(output, f"{step.name}/softmax", flat))
    if flat != moved:
        y = builder.reshape(y, moved, step.name)
    return builder.emit(step, "transpose", [y.name], {"permutation": back})


def _as_last_axis(operation, shape):
    """Returns how to make the axes of a softmax the last one of a tensor.

    Returns:
        `(axes of a transposition, axes of the inverse one, the shape in between, the same with the
        softmax axes merged into one)`.
    """
    axes = softmax_axes(operation, len(shape))
    order = (*(axis for axis in range(len(shape)) if axis not in axes), *axes)
    moved = tuple(shape[axis] for axis in order)
    flat = (*moved[: -len(axes)], math.prod(moved[-len(axes) :]))
    return order, tuple(np.argsort(order).tolist()), moved, flat


def _values_of(step, values, channels):
    """Returns the function's values: a vector, or a row per channel if channels differ."""
    node, operation = step.nodes[0], step.layer
    if name_of(operation) == "PReLU":
        alpha = keras.ops.convert_to_numpy(operation.alpha)
        if alpha.size != 1 and alpha.size != alpha.shape[-1]:
            shared = operation.shared_axes
            raise unsupported("shared_axes", shared, "share all axes but the last one")
        rows = np.where(values > 0, values, alpha.reshape(-1, 1) * values)
        return rows[0] if len(rows) == 1 else rows
    constants = [np.shape(x) for x in [*node.args, *node.kwargs.values()] if not isinstance(x, Ref)]
    constants = [shape for shape in constants if math.prod(shape) > 1]
    if constants:  # one number per channel
        if any((math.prod(shape), shape[-1]) != (channels, channels) for shape in constants):
            raise CannotExport("its constant must be one number, or one per channel")
        values = np.repeat(values[:, None], channels, axis=1)
    args, kwargs = map_refs((node.args, node.kwargs), lambda _: keras.ops.convert_to_tensor(values))
    made = keras.ops.convert_to_numpy(operation(*args, **kwargs)).astype("float64")
    return made if values.ndim == 1 else made.reshape(256, channels).T


# ---- in float --------------------------------------------------------------------------------


def float_function(builder, step):
    """A function of floats; softmax may have a mask."""
    x, layer = Floats.input(builder, step), step.layer
    if name_of(layer) == "PReLU":
        return x.made("prelu", x.constant(keras.ops.convert_to_numpy(layer.alpha))).finish()
    name = function_of(layer)
    if name not in _PER_AXIS:
        return activated(x, layer, name).finish()
    if len(step.inputs) == 1:
        return along_last_axis(x, name, layer).finish()
    # Like Keras' softmax: a large negative number where the mask is 0.
    mask = Floats.input(builder, step, 1).is_true("not_equal", 0).cast("float32")
    y = along_last_axis(x * mask + (mask - 1) * _FAR, name, layer)
    return (y * mask if _masks_results() else y).finish()


@functools.cache
def _masks_results():
    """Whether masked results are 0 even if everything is masked, as in Keras from 3.13 on."""
    made = keras.layers.Softmax()(np.zeros((1, 2), "float32"), mask=np.zeros((1, 2), bool))
    return not keras.ops.convert_to_numpy(made).any()


def along_last_axis(x, name, operation):
    """Returns softmax or a similar function of `Floats`; other axes are moved to the end for it."""
    order, back, moved, flat = _as_last_axis(operation, x.shape)
    y = x.transpose(order).reshape(flat).made(name).reshape(moved)
    return y.transpose(back)
