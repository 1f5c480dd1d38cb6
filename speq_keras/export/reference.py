"""The folded network in floating point, `FoldedModel.predict_float`: the effect of folding alone.

Every step is computed by the trained model's own Keras layers and quantizers, with the folded
weights and the rounded bias instead of the trained ones. It contains nothing of the file's encoding
of codes, and none of the integer arithmetic.

Sums are taken over integers and scaled in float64. Where float32 in a quantizer cannot tell which
of two codes is nearer, float64 decides. Without that, one code in 100,000 was wrong, and in a deep
network one wrong code in an early layer changes thousands after it.
"""

import math

import keras
import numpy as np

from speq_keras.export.trained import in_float32
from speq_keras.graph import map_refs

# The 8-bit fake-quant op is off by up to 255 · 2^-23 steps.
_NEAR_HALF = 2.0**-12


def run_steps(folded, inputs, *, keep=False):
    """Computes a `FoldedNetwork` in floating point.

    Args:
        folded: The network.
        inputs: List of float arrays, one per input, batch first.
        keep: Whether to return all intermediate values, too.

    Returns:
        A list of arrays, one per output; with `keep`, `(outputs, {Value name: array})`.
    """
    values = {id(v): np.asarray(x, v.dtype) for v, x in zip(folded.inputs, inputs, strict=True)}
    named = {}
    for step in folded.steps:
        arrays = [values[id(value)] for value in step.inputs]
        values[id(step.output)] = named[step.output.name] = compute(step, arrays)
    outputs = [values[id(value)] for value in folded.outputs]
    return (outputs, named) if keep else outputs


def compute(step, arrays, *, rounds=True):
    """Returns the result of one step on float inputs: values on the grid of its output.

    With `rounds` False it returns the values before rounding.
    """
    if step.is_float:
        return _in_float(step, arrays)
    if step.kind == "linear":
        y = _linear(step, arrays[0])
    elif step.kind == "matmul":
        y = _matmul(step, arrays)
    elif step.kind == "affine":
        weights = step.weights
        y = arrays[0] * weights.values + weights.rounded_bias
    elif step.kind == "constant":
        y = step.codes[None] * np.float64(step.output.grid.scale)
    elif step.kind in ("quantize", "requantize", "dequantize", "cast"):
        y = arrays[0].astype("float64")
    elif step.kind == "average_pool_2d" and step.activation == "none":
        return _average_pool(step, arrays[0], rounds)
    else:
        y = _float64(call(step.nodes[0], [keras.ops.convert_to_tensor(a) for a in arrays]))
    y = _activated(y, step.activation)
    return _rounded(step, y) if rounds else y


def _in_float(step, arrays):
    """Calls a layer of a float island, or an operation on integers."""
    if step.output.dtype == "int32":
        return keras.ops.convert_to_numpy(call(step.nodes[0], arrays)).astype("int32")
    if len(arrays) == 2 and step.inputs[1].dtype == "int32":  # the mask of a softmax
        arrays = [arrays[0], arrays[1] != 0]
    y = call(step.nodes[0], [keras.ops.convert_to_tensor(array) for array in arrays])
    return _float64(y).astype("float32")


def _rounded(step, y):
    """Rounds like the trained quantizer, with halves decided in float64."""
    if _has_own_grid(step):
        return _on_grid(step.output.grid, y)
    y32 = y.astype("float32")
    if step.quantizer is None:
        return y32
    grid = step.output.grid
    rounded = np.array(keras.ops.convert_to_numpy(keras.ops.cast(step.quantizer(y32), "float32")))
    steps = y / np.float64(grid.scale)
    steps -= np.floor(steps)
    is_near_half = np.abs(steps - 0.5) < _NEAR_HALF
    rounded[is_near_half] = _on_grid(grid, y[is_near_half])
    return rounded


def _on_grid(grid, y):
    return (grid.round(y) * np.float64(grid.scale)).astype("float32")


def _has_own_grid(step):
    """Whether the grid of a step's output differs from that of its trained quantizer, if any."""
    if step.quantizer is None:
        return step.kind == "table"  # the end of the model
    return np.float32(step.quantizer.grid()[0]) != step.output.grid.scale  # nudged


def _average_pool(step, array, rounds):
    """Averages codes, not values: their sums are exact, so halves are exact and are rounded up.

    One average in four of 2×2 codes is halfway between two codes. In units of the output, the last
    bits of the scale would decide, differently on every machine.
    """
    scale = step.output.grid.scale
    codes = np.rint(array / np.float64(scale)).astype("float32")
    y = call(step.nodes[0], [keras.ops.convert_to_tensor(codes)])
    y = keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
    return (np.floor(y + 0.5) if rounds else y) * scale


def _matmul(step, arrays):
    """Multiplies codes, like `_linear`."""
    scales = [np.float64(value.grid.scale) for value in step.inputs]
    codes = [np.rint(a / s).astype("float32") for a, s in zip(arrays, scales, strict=True)]
    return _float64(call(step.nodes[0], [keras.ops.convert_to_tensor(c) for c in codes])) * (
        scales[0] * scales[1]
    )


def _linear(step, array):
    """Calls the trained layer with codes for weights and input, whose sums are integers."""
    wrapper, weights = step.nodes[0].operation, step.weights
    input_scale = np.float64(step.inputs[0].grid.scale)
    x = keras.ops.convert_to_tensor(np.rint(array / input_scale).astype("float32"))
    if step.absorbed is not None:
        x = call(step.absorbed, [x])
    (attribute,) = wrapper.quantizers
    variable = wrapper.variable(attribute)
    layer = wrapper.layer
    values = [(variable, keras.ops.convert_to_tensor(weights.codes.astype("float32")))]
    if getattr(layer, "bias", None) is not None:
        values.append((layer.bias, keras.ops.zeros_like(layer.bias.value)))
    with keras.StatelessScope(values), in_float32(layer):
        sums = _float64(layer(x))
    shape = channel_shape(sums.shape, weights.rounded_bias.size)
    scale = np.broadcast_to(input_scale * weights.scale, weights.rounded_bias.shape)
    return sums * scale.reshape(shape) + weights.rounded_bias.reshape(shape)


def channel_shape(shape, channels):
    """Returns the trailing axes of `shape` that together number the channels, or None."""
    for axis in reversed(range(len(shape))):
        if math.prod(shape[axis:]) == channels:
            return shape[axis:]
    return None


def call(node, arrays):
    """Calls the layer or operation of a graph node, with `arrays` where its tensors go."""
    waiting = iter(arrays)
    args, kwargs = map_refs((node.args, node.kwargs), lambda _: next(waiting))
    with in_float32(node.operation):
        return node.operation(*args, **kwargs)


def _activated(y, activation):
    return y if activation == "none" else np.clip(y, 0, {"relu": None, "relu6": 6}[activation])


def _float64(y):
    return keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")).astype("float64")
