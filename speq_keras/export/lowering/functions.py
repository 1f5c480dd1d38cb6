"""Functions of one value: a kernel or a table for codes, float kernels for floats."""

import math

import keras
import numpy as np

from speq_keras.export.folding.options import unsupported
from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.tflite.network import Tensor
from speq_keras.graph import Ref, map_refs
from speq_keras.operations import OTHER, function_name, name_of

# Functions whose kernel rounds the exact value to a grid that it prescribes.
_PRESCRIBED = {"sigmoid": "logistic", "tanh": "tanh", "softmax": "softmax"}
# Functions with a float kernel, besides those that are built of several.
_FLOAT_KERNELS = {
    **{name: name for name in ("relu", "relu6", "tanh", "softmax", "elu", "leaky_relu")},
    "sigmoid": "logistic",
    "hard_silu": "hard_swish",
    "gelu": "gelu",
    "gelu_approximate": "gelu",
    "exponential": "exp",
    **{name: name for name in ("log", "sqrt", "rsqrt")},
}
# Layers and operations whose function `function_name` does not tell: by Keras' name of the class.
_BY_CLASS = {
    **dict.fromkeys(("LeakyReLU", "LeakyRelu"), "leaky_relu"),
    **dict.fromkeys(("ELU", "Elu"), "elu"),
    "Exp": "exponential",
    "Log": "log",
    "Sqrt": "sqrt",
    "Rsqrt": "rsqrt",
}


def function_of(operation):
    """Returns the name of the function that a layer or operation computes, or None."""
    name = name_of(operation)
    if name == "Gelu":
        return "gelu_approximate" if operation.approximate else "gelu"
    function = _BY_CLASS.get(name, function_name(operation))
    return None if function == "linear" else function


def _check_axis(name, operation, rank):
    axis = getattr(operation, "axis", -1) if name == "softmax" else -1
    if np.atleast_1d(axis).tolist() not in ([-1], [rank - 1]):
        raise unsupported("axis", axis, "kernels know softmax over the last axis")


def table(builder, step):
    """A function of codes: the kernel of that name, or its 256 values written down."""
    if step.is_float:
        return float_function(builder, step)
    x, operation = builder.at_trained_scale(step.inputs[0]), step.layer
    name = function_name(operation)
    _check_axis(name, operation, len(x.shape))
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
    stored = step.output.grid.round(values).reshape(-1) + output.zero_point
    data = builder.network.add_tensor(
        Tensor(
            name=f"{step.name}/table",
            shape=stored.shape,
            scale=output.scale,
            zero_point=output.zero_point,
            data=stored.astype("int8"),
        )
    )
    return builder.emit(step, "lookup", [x.name, data.name])


def _values_of(step, values, channels):
    """Returns the function's values: a vector, or a row per channel where channels differ."""
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
    if constants:  # a number for every channel
        if any((math.prod(shape), shape[-1]) != (channels, channels) for shape in constants):
            raise CannotExport("its constant must be one number, or one per channel")
        values = np.repeat(values[:, None], channels, axis=1)
    args, kwargs = map_refs((node.args, node.kwargs), lambda _: keras.ops.convert_to_tensor(values))
    made = keras.ops.convert_to_numpy(operation(*args, **kwargs)).astype("float64")
    return made if values.ndim == 1 else made.reshape(256, channels).T


# ---- in float --------------------------------------------------------------------------------


def float_function(builder, step):
    """A function of floats; softmax may have a mask."""
    y, layer = builder.tensor(step.inputs[0]), step.layer
    if name_of(layer) == "PReLU":
        alpha = keras.ops.convert_to_numpy(layer.alpha)  # it broadcasts as in Keras
        alpha = builder.constant(f"{step.name}/alpha", alpha)
        return builder.emit(step, "prelu", [y.name, alpha.name])
    name = function_of(layer)
    if len(step.inputs) == 2:
        y = _masked(builder, step, y, builder.tensor(step.inputs[1]))
    return builder.finish(step, activated(builder, step, layer, name, y))


def activated(builder, step, layer, name, x):
    """Adds the float nodes of a function with its layer's options; returns what they make."""
    if name == "silu":
        gate = builder.make(step, "logistic", [x.name], x.shape)
        return builder.make(step, "mul", [x.name, gate.name], x.shape)
    if name == "bent_relu":
        return _bent_relu(builder, step, layer, x)
    if name is None:
        raise CannotExport("there is no float kernel for it")
    if name not in _FLOAT_KERNELS:
        raise CannotExport(f"there is no float kernel for its {_shown(layer, name)}")
    options = {}
    if name in ("gelu", "gelu_approximate"):
        options["approximate"] = name == "gelu_approximate"
    if name == "leaky_relu":
        options["alpha"] = float(getattr(layer, "negative_slope", 0.2))
    alpha = getattr(layer, "alpha", 1.0) if name == "elu" else 1.0
    if alpha != 1:
        raise unsupported("alpha", alpha, "the float kernel has alpha=1")
    _check_axis(name, layer, len(x.shape))
    return builder.make(step, _FLOAT_KERNELS[name], [x.name], x.shape, options)


def _shown(layer, function):
    """Returns what is said of an activation function."""
    if function != OTHER:
        return f"activation function {function!r}"
    function = layer.activation
    name = getattr(function, "__name__", type(function).__name__)
    return f"activation function {name!r} of {getattr(function, '__module__', 'no module')}"


def _bent_relu(builder, step, layer, x):
    """ReLU with a cap and a slope; its threshold, where the function jumps, is no kernel's."""
    if layer.threshold:
        raise unsupported("threshold", layer.threshold, "float kernels bend at 0")
    if layer.negative_slope:
        options = {"alpha": float(layer.negative_slope)}
        y = builder.make(step, "leaky_relu", [x.name], x.shape, options)
    else:
        y = builder.make(step, "relu", [x.name], x.shape)
    cap = builder.constant(f"{step.name}/max_value", [layer.max_value])
    return builder.make(step, "minimum", [y.name, cap.name], x.shape)


def _masked(builder, step, scores, mask):
    """Adds −1e9 to the scores where the mask is 0, as Keras' softmax does."""

    def made(kind, *inputs):
        names = [tensor.name for tensor in inputs]
        return builder.make(step, kind, names, mask.shape)

    one = builder.constant(f"{step.name}/one", [1])
    kept = made("minimum", made("abs", made("cast", mask)), one)
    lost = made("sub", kept, one)
    lost = made("mul", lost, builder.constant(f"{step.name}/far", [1e9]))
    return builder.make(step, "add", [scores.name, lost.name], scores.shape)
