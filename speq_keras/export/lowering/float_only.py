"""What float islands alone compute: slopes and shifts along any axes, and normalizations."""

import math

import keras
import numpy as np

from speq_keras.export.folding.options import unsupported
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


class _Chain:
    """The float nodes of one normalization: each makes a tensor of the shape of its first input."""

    def __init__(self, builder, step):
        self.builder, self.step = builder, step

    def made(self, kind, *inputs, shape=None, options=None):
        """Adds a node; returns what it makes."""
        names = [tensor.name for tensor in inputs]
        shape = inputs[0].shape if shape is None else shape
        return self.builder.make(self.step, kind, names, shape, options)

    def constant(self, what, values):
        """Adds and returns a constant of the step."""
        return self.builder.constant(f"{self.step.name}/{what}", values)

    def mean(self, x, axes):
        """Adds a mean over axes, which keep a size of 1."""
        shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
        return self.made("mean", x, shape=shape, options={"axes": axes, "keep_dims": True})

    def standardized(self, x, axes, epsilon):
        """Adds (x − mean) / √(variance + ε)."""
        mean = self.mean(x, axes)
        variance = self.mean(self.made("squared_difference", x, mean), axes)
        variance = self.made("add", variance, self.constant("epsilon", [epsilon]))
        factor = self.made("rsqrt", variance)
        return self.made("mul", self.made("sub", x, mean), factor)

    def scaled(self, y, gamma, beta, shape):
        """Adds γ · y + β, where they are there, in a shape that broadcasts."""
        for kind, what, values in (("mul", "gamma", gamma), ("add", "beta", beta)):
            if values is not None:
                values = np.reshape(keras.ops.convert_to_numpy(values), shape)
                y = self.made(kind, y, self.constant(what, values))
        return y


def _axes_and_shape(layer, shape):
    """Returns the axes that a layer normalizes over, and the shape of its γ and β."""
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    axes = tuple(axis % len(shape) for axis in axes)
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return axes, sizes[min(axes) :]


def layer_normalization(builder, step):
    """Layer normalization over any axes, in the operations that it is made of."""
    x, layer, chain = builder.tensor(step.inputs[0]), step.layer, _Chain(builder, step)
    axes, shape = _axes_and_shape(layer, x.shape)
    y = chain.standardized(x, axes, layer.epsilon)
    return builder.finish(step, chain.scaled(y, layer.gamma, layer.beta, shape))


def rms_normalization(builder, step):
    """Divides by the root of the mean square, and multiplies by the scale."""
    x, layer, chain = builder.tensor(step.inputs[0]), step.layer, _Chain(builder, step)
    axes, shape = _axes_and_shape(layer, x.shape)
    power = chain.mean(chain.made("square", x), axes)
    power = chain.made("add", power, chain.constant("epsilon", [layer.epsilon]))
    y = chain.made("mul", x, chain.made("rsqrt", power))
    return builder.finish(step, chain.scaled(y, layer.scale, None, shape))


def group_normalization(builder, step):
    """Layer normalization of groups of channels, each over all pixels."""
    x, layer, chain = builder.tensor(step.inputs[0]), step.layer, _Chain(builder, step)
    channels = x.shape[-1]
    if layer.axis not in (-1, len(x.shape) - 1):
        raise unsupported("axis", layer.axis, "it must be the last axis")
    groups = (x.shape[0], math.prod(x.shape[1:-1]), layer.groups, channels // layer.groups)
    y = chain.made("reshape", x, shape=groups, options={"shape": groups})
    y = chain.standardized(y, (1, 3), layer.epsilon)
    y = chain.made("reshape", y, shape=x.shape, options={"shape": tuple(x.shape)})
    return builder.finish(step, chain.scaled(y, layer.gamma, layer.beta, (channels,)))


def unit_normalization(builder, step):
    """Divides by the L2 norm; Keras does not multiply by more than 1e12."""
    x, chain = builder.tensor(step.inputs[0]), _Chain(builder, step)
    axes, shape = _axes_and_shape(step.layer, x.shape)
    count = chain.constant("count", [math.prod(shape)])
    total = chain.made("mul", chain.mean(chain.made("square", x), axes), count)
    factor = chain.made("minimum", chain.made("rsqrt", total), chain.constant("most", [1e12]))
    return builder.finish(step, chain.made("mul", x, factor))
