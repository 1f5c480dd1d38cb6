"""The folded network in floating point: the second, independent check of an exported file.

Every step is computed by the trained model's own Keras layers and quantizers, with the folded
weights and the rounded bias in place of the trained ones. Nothing of how the file encodes codes,
and none of the integer arithmetic, is in it.
"""

import keras
import numpy as np
from keras import tree

from speq_keras.graph import Ref


def run_steps(folded, inputs, *, keep=False):
    """Computes a `FoldedNetwork` in float32.

    Args:
        folded: The network.
        inputs: List of float arrays, one per input, batch first.
        keep: Whether to return all values in between, too.

    Returns:
        A list of arrays, one per output; with `keep`, `(outputs, {Value name: array})`.
    """
    values = {id(v): np.asarray(x, "float32") for v, x in zip(folded.inputs, inputs, strict=True)}
    named = {}
    for step in folded.steps:
        arrays = [values[id(value)] for value in step.inputs]
        values[id(step.output)] = named[step.output.name] = compute(step, arrays)
    outputs = [values[id(value)] for value in folded.outputs]
    return (outputs, named) if keep else outputs


def compute(step, arrays, *, rounds=True):
    """Returns what one step makes of float inputs: values on the grid of its output.

    With `rounds` False it returns what would have been rounded.
    """
    x = [keras.ops.convert_to_tensor(array) for array in arrays]
    if step.kind == "linear":
        y = _activated(_linear(step, x[0]), step.activation)
    elif step.kind == "affine":
        weights = step.weights
        y = x[0] * weights.values.astype("float32") + weights.rounded_bias.astype("float32")
        y = _activated(y, step.activation)
    elif step.kind in ("quantize", "requantize", "dequantize"):
        y = x[0]
    elif step.kind == "average_pool" and step.activation == "none":
        return _average_pool(step, arrays[0], rounds)
    else:
        y = call(step.nodes[0], x)
        y = _activated(y, step.activation)
    own_grid = rounds and _has_own_grid(step)
    if rounds and step.quantizer is not None and not own_grid:
        y = step.quantizer(y)
    y = keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
    if own_grid:
        y = step.output.grid.round(y) * step.output.grid.scale
    return y


def _has_own_grid(step):
    """Whether the grid of a step's output is not what its trained quantizer, if any, rounds to."""
    if step.quantizer is None:
        return step.kind == "table"  # the end of the model
    return np.float32(step.quantizer.grid()[0]) != step.output.grid.scale  # nudged


def _average_pool(step, array, rounds):
    """Averages codes, not values: their sums are exact, so that halves are halves, and go up.

    One average in four of 2×2 codes is halfway between two codes. In units of the output the last
    bits of the scale would send it up or down, differently on every machine.
    """
    scale = step.output.grid.scale
    codes = np.rint(array / np.float64(scale)).astype("float32")
    y = call(step.nodes[0], [keras.ops.convert_to_tensor(codes)])
    y = keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
    return (np.floor(y + 0.5) if rounds else y) * scale


def _linear(step, x):
    """Calls the trained layer with the folded weights; the rounded bias comes on top."""
    wrapper, weights = step.nodes[0].operation, step.weights
    if "absorbed" in step.options:
        x = call(step.options["absorbed"], [x])
    (attribute,) = wrapper.quantizers
    variable = wrapper.variable(attribute)
    layer = wrapper.layer
    values = [(variable, keras.ops.convert_to_tensor(weights.values.astype("float32")))]
    if getattr(layer, "bias", None) is not None:
        values.append((layer.bias, keras.ops.zeros_like(layer.bias.value)))
    with keras.StatelessScope(values):
        y = layer(x)
    bias = weights.rounded_bias.astype("float32")
    return keras.ops.cast(y, "float32") + bias.reshape(_channel_shape(y.shape, bias.size))


def _channel_shape(shape, channels):
    """Returns the trailing axes of `shape` that together number the channels."""
    sizes, count = [], 1
    for size in reversed(shape):
        sizes.insert(0, size)
        count *= size
        if count == channels:
            break
    return sizes


def call(node, arrays):
    """Calls the layer or operation of a graph node, with `arrays` where its tensors go."""
    waiting = iter(arrays)
    args, kwargs = tree.map_structure(
        lambda leaf: next(waiting) if isinstance(leaf, Ref) else leaf, (node.args, node.kwargs)
    )
    return node.operation(*args, **kwargs)


def _activated(y, activation):
    if activation == "none":
        return y
    return keras.ops.relu(y) if activation == "relu" else keras.ops.relu6(y)
