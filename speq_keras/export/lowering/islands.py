"""Float islands: layers that were left in float, with the runtime's float kernels."""

import keras
import numpy as np

from speq_keras.export.folding import affine as folding_affine
from speq_keras.export.folding.affine import along_axes
from speq_keras.export.folding.carry import carry_of, mean_options, slice_sizes
from speq_keras.export.folding.options import check_no_constants, unsupported
from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.folding.weights import check_weights
from speq_keras.export.lowering.linear import WEIGHTED, plan_of, prepared_input
from speq_keras.export.tflite.network import Tensor
from speq_keras.graph import Ref
from speq_keras.layers import QuantizedLayer
from speq_keras.operations import Kind, function_name, fused_function, kind_of, name_of

_KERNELS = {
    **{name: name for name in ("relu", "relu6", "tanh", "softmax", "elu", "leaky_relu")},
    "sigmoid": "logistic",
    "hard_silu": "hard_swish",
    "gelu": "gelu",
    "gelu_approximate": "gelu",
}
# Layers and operations that are a function with an option: the function, or None.
_WITH_OPTIONS = {"LeakyReLU": "leaky_relu", "LeakyRelu": "leaky_relu", "ELU": "elu", "Elu": "elu"}
_BINARY = {
    "Add": "add",
    "Subtract": "sub",
    "Multiply": "mul",
    "Divide": "div",
    "TrueDivide": "div",
}
_CARRIES = {
    "reshape": ("reshape", ("shape",)),
    "transpose": ("transpose", ("permutation",)),
    "pad": ("pad", ("paddings",)),
    "mirror_pad": ("mirror_pad", ("paddings", "mode")),
    "max_pool": ("max_pool_2d", ("size", "strides", "padding")),
    "average_pool": ("average_pool_2d", ("size", "strides", "padding")),
}


def cast(builder, step):
    """Floats of whole numbers."""
    x = builder.tensor(step.inputs[0])
    builder.add("cast", [x.name], float_output(builder, step))


def dequantize(builder, step):
    """Codes become floats."""
    x = builder.plain(step.inputs[0])
    builder.add("dequantize", [x.name], float_output(builder, step))


def float_(builder, step):
    """Lowers one node that computes in float."""
    island = _Island(builder, step)
    operation = step.nodes[0].operation
    layer = operation.layer if isinstance(operation, QuantizedLayer) else operation
    x = builder.tensor(step.inputs[0])
    if name_of(layer) in WEIGHTED:
        y = _weighted(island, operation, layer, x)
        function = fused_function(layer)
    else:
        function = _function_of(layer)
        y = x if function is not None else _other(island, layer, x)
    if function == "softmax" and len(step.inputs) == 2:
        y = _masked(island, y, builder.tensor(step.inputs[1]))
    if function is not None:
        y = _function(island, layer, function, y)
    island.finish(y)


def float_output(builder, step):
    """Returns the float tensor of a step's output, made once."""
    if id(step.output) not in builder.tensors:
        shape, dtype = tuple(step.output.shape), step.output.dtype
        tensor = Tensor(name=step.name, shape=shape, dtype=dtype)
        builder.tensors[id(step.output)] = builder.network.add_tensor(tensor)
    return builder.tensors[id(step.output)]


class _Island:
    """Adds float nodes for one step; the last one makes the step's output."""

    def __init__(self, builder, step):
        self.builder, self.step = builder, step

    def emit(self, kind, inputs, made_shape, **options):
        """Adds a node and returns what it makes.

        Args:
            kind: As of a `Node`.
            inputs: Tensors.
            made_shape: The shape that the node makes.
            **options: As of a `Node`.
        """
        name = f"{self.step.name}/{kind}"
        dtype = "float32" if kind == "cast" else self.step.output.dtype
        tensor = Tensor(name=name, shape=tuple(made_shape), dtype=dtype)
        output = self.builder.network.add_tensor(tensor)
        names = [tensor.name for tensor in inputs]
        return self.builder.add(kind, names, output, options=options, layer=self.step.name)

    def constant(self, what, values, dtype="float32"):
        """Adds and returns a constant, named after the step and `what` it is."""
        values = np.asarray(values, dtype)
        tensor = Tensor(
            name=f"{self.step.name}/{what}", shape=values.shape, dtype=dtype, data=values
        )
        return self.builder.network.add_tensor(tensor)

    def finish(self, tensor):
        """Makes the last node write the step's output, with a reshape where ranks differ."""
        output = float_output(self.builder, self.step)
        if tuple(tensor.shape) != tuple(output.shape):
            options = {"shape": output.shape}
            return self.builder.add("reshape", [tensor.name], output, options=options)
        node = self.builder.network.nodes[-1]
        del self.builder.network.tensors[tensor.name]
        node.outputs = [output.name]
        return output


def _weighted(island, operation, layer, x):
    kernel = layer.kernel
    if isinstance(operation, QuantizedLayer):
        check_weights(operation, "kernel")
        kernel = operation.quantizers["kernel"](kernel.value)
    step = island.step
    plan = plan_of(step, layer, keras.ops.convert_to_numpy(kernel))
    x = prepared_input(island.builder, x, layer, plan.rank, step.name)
    if plan.reads is not None:
        x = island.emit("reshape", [x], plan.reads, shape=plan.reads)
    bias = (
        np.zeros(plan.kernel.shape[plan.axis])
        if layer.bias is None
        else keras.ops.convert_to_numpy(layer.bias)
    )
    inputs = [x, island.constant("weights", plan.kernel), island.constant("bias", bias.ravel())]
    shape = step.output.shape if plan.makes is None else plan.makes
    if plan.rank is not None and len(shape) == 3:
        shape = (shape[0], 1, *shape[1:])
    return island.emit(plan.kind, inputs, shape, **plan.options)


def _masked(island, scores, mask):
    """Adds −1e9 to the scores where the mask is 0, as Keras' softmax does."""
    one = island.constant("one", [1])
    kept = island.emit("cast", [mask], mask.shape)
    kept = island.emit("minimum", [island.emit("abs", [kept], mask.shape), one], mask.shape)
    lost = island.emit("sub", [kept, one], mask.shape)
    lost = island.emit("mul", [lost, island.constant("far", [1e9])], mask.shape)
    return island.emit("add", [scores, lost], scores.shape)


def _function_of(layer):
    """Returns the name of the function that a layer without weights computes, or None."""
    name = name_of(layer)
    if name == "Gelu":
        return "gelu_approximate" if layer.approximate else "gelu"
    function = _WITH_OPTIONS.get(name, function_name(layer))
    return None if function == "linear" else function


def _function(island, layer, name, x):
    if name == "silu":
        return island.emit("mul", [x, island.emit("logistic", [x], x.shape)], x.shape)
    if name == "bent_relu":
        return _bent_relu(island, layer, x)
    options = {}
    if name in ("gelu", "gelu_approximate"):
        options["approximate"] = name == "gelu_approximate"
    if name == "leaky_relu":
        options["alpha"] = float(getattr(layer, "negative_slope", 0.2))
    alpha = getattr(layer, "alpha", 1.0) if name == "elu" else 1.0
    if alpha != 1:
        raise unsupported("alpha", alpha, "the float kernel has alpha=1")
    axis = getattr(layer, "axis", -1) if name == "softmax" else -1
    if np.atleast_1d(axis).tolist() not in ([-1], [len(x.shape) - 1]):
        raise unsupported("axis", axis, "kernels know softmax over the last axis")
    return island.emit(_KERNELS[name], [x], x.shape, **options)


def _bent_relu(island, layer, x):
    """ReLU with a cap and a slope; its threshold, where the function jumps, is no kernel's."""
    if layer.threshold:
        raise unsupported("threshold", layer.threshold, "float kernels bend at 0")
    if layer.negative_slope:
        y = island.emit("leaky_relu", [x], x.shape, alpha=float(layer.negative_slope))
    else:
        y = island.emit("relu", [x], x.shape)
    cap = island.constant("max_value", [layer.max_value])
    return island.emit("minimum", [y, cap], x.shape)


def _prelu(island, layer, x):
    """Keeps what is positive, and multiplies the rest by alpha, which broadcasts as in Keras."""
    alpha = keras.ops.convert_to_numpy(layer.alpha)
    return island.emit("prelu", [x, island.constant("alpha", alpha)], x.shape)


def _other(island, layer, x):
    kind = kind_of(layer)
    class_name = name_of(layer)
    if class_name == "LayerNormalization":
        return _layer_normalization(island, layer, x)
    if class_name == "PReLU":
        return _prelu(island, layer, x)
    if class_name in ("BatchNormalization", "Rescaling", "Normalization", "ChannelOperation"):
        is_free = class_name in ("Rescaling", "Normalization")  # to go along any axis
        slope, shift = along_axes(layer) if is_free else folding_affine.of(layer, x.shape)
        slope, shift = np.atleast_1d(slope), np.atleast_1d(shift)
        y = island.emit("mul", [x, island.constant("slope", slope)], x.shape)
        return island.emit("add", [y, island.constant("shift", shift)], x.shape)
    if kind is Kind.CONCAT:
        check_no_constants(island.step.nodes[0])
        inputs = [island.builder.tensor(value) for value in island.step.inputs]
        shape = island.step.output.shape
        axis = layer.axis % len(shape)
        if axis == 0:
            raise unsupported("axis", layer.axis, "it is the batch")
        return island.emit("concatenation", inputs, shape, axis=axis)
    if kind is Kind.MEAN:
        options = mean_options(layer, len(x.shape))
        return island.emit("mean", [x], island.step.output.shape, **options)
    if class_name == "Cast":
        return island.emit("cast", [x], x.shape)
    if class_name == "Square":
        return island.emit("square", [x], x.shape)
    if class_name == "Negative":
        return island.emit("neg", [x], x.shape)
    if class_name in _BINARY:
        return island.emit(_BINARY[class_name], _operands(island), island.step.output.shape)
    return _carry(island, x)


def _operands(island):
    """Returns both operands of an operation; numbers become constants."""
    node = island.step.nodes[0]
    operands = [*node.args, *node.kwargs.values()]
    operands = operands[0] if isinstance(operands[0], list | tuple) else operands
    if len(operands) != 2:
        raise CannotExport(f"kernels take 2 tensors at a time, and it reads {len(operands)}")
    waiting = iter(island.builder.tensor(value) for value in island.step.inputs)
    dtype = island.step.output.dtype
    return [
        next(waiting) if isinstance(x, Ref) else island.constant("operand", np.atleast_1d(x), dtype)
        for x in operands
    ]


def _carry(island, x):
    node, shape = island.step.nodes[0], island.step.output.shape
    kind, options = carry_of(node, x.shape, shape)
    if kind == "slice":
        names = ("begin", "end", "strides")
        kept = {name: options[name] for name in names}
        return island.emit("strided_slice", [x], slice_sizes(options), **kept)
    if "size" in options and len(x.shape) == 3:  # sequences, as images of height one
        x = island.builder.with_height(x, island.step.name)
        ones = {name: (1, *options[name]) for name in ("size", "strides") if name in options}
        options = {**options, **ones}
    if kind in ("resize", "resize_nearest"):
        kernel = "resize_bilinear" if kind == "resize" else "resize_nearest_neighbor"
        shape = (x.shape[0], *options["size"], x.shape[3])
        return island.emit(kernel, [x], shape, size=options["size"], half_pixel_centers=True)
    kernel, names = _CARRIES[kind]
    kept = {name: options[name] for name in names}
    if "size" in kept:
        shape = _pooled_shape(x.shape, kept)
    return island.emit(kernel, [x], shape, **kept)


def _pooled_shape(shape, window):
    """Returns what a pooling kernel makes of images of a shape."""
    rows = zip(shape[1:3], window["size"], window["strides"], strict=True)
    is_same = window["padding"] == "same"
    made = [-(-(n if is_same else n - size + 1) // stride) for n, size, stride in rows]
    return (shape[0], *made, shape[3])


def _layer_normalization(island, layer, x):
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    axes = tuple(axis % len(x.shape) for axis in axes)
    small = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    mean = island.emit("mean", [x], small, axes=axes, keep_dims=True)
    squares = island.emit("squared_difference", [x, mean], x.shape)
    variance = island.emit("mean", [squares], small, axes=axes, keep_dims=True)
    variance = island.emit("add", [variance, island.constant("epsilon", [layer.epsilon])], small)
    factor = island.emit("rsqrt", [variance], small)
    y = island.emit("sub", [x, mean], x.shape)
    y = island.emit("mul", [y, factor], x.shape)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)][min(axes) :]
    if layer.gamma is not None:
        gamma = np.reshape(keras.ops.convert_to_numpy(layer.gamma), shape)
        y = island.emit("mul", [y, island.constant("gamma", gamma)], x.shape)
    if layer.beta is not None:
        beta = np.reshape(keras.ops.convert_to_numpy(layer.beta), shape)
        y = island.emit("add", [y, island.constant("beta", beta)], x.shape)
    return y
