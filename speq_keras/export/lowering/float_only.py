"""What float islands alone compute: slopes and shifts along any axes, and normalizations."""

import keras
import numpy as np

from speq_keras.export.lowering.functions import activated


def affine(builder, step):
    """Slope and shift, and a clipping."""
    x = builder.tensor(step.inputs[0])
    for slope, shift in step.affines:
        slope = builder.constant(f"{step.name}/slope", slope)
        x = builder.make(step, "mul", [x.name, slope.name], x.shape)
        shift = builder.constant(f"{step.name}/shift", shift)
        x = builder.make(step, "add", [x.name, shift.name], x.shape)
    if step.activation != "none":
        x = activated(builder, step, step.layer, step.activation, x)
    return builder.finish(step, x)


def layer_normalization(builder, step):
    """Layer normalization over any axes, in the operations that it is made of."""
    x, layer = builder.tensor(step.inputs[0]), step.layer
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    axes = tuple(axis % len(x.shape) for axis in axes)
    small = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    mean_options = {"axes": axes, "keep_dims": True}

    def made(kind, *inputs, shape=x.shape, options=None):
        return builder.make(step, kind, [tensor.name for tensor in inputs], shape, options)

    def constant(what, values):
        return builder.constant(f"{step.name}/{what}", values)

    mean = made("mean", x, shape=small, options=mean_options)
    squares = made("squared_difference", x, mean)
    variance = made("mean", squares, shape=small, options=mean_options)
    variance = made("add", variance, constant("epsilon", [layer.epsilon]), shape=small)
    factor = made("rsqrt", variance, shape=small)
    y = made("mul", made("sub", x, mean), factor)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)][min(axes) :]
    if layer.gamma is not None:
        gamma = np.reshape(keras.ops.convert_to_numpy(layer.gamma), shape)
        y = made("mul", y, constant("gamma", gamma))
    if layer.beta is not None:
        beta = np.reshape(keras.ops.convert_to_numpy(layer.beta), shape)
        y = made("add", y, constant("beta", beta))
    return builder.finish(step, y)
