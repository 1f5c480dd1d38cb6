"""Turns operations on a tensor and a user layer's weight into layers with that weight."""

import dataclasses
import functools
from typing import Any

import keras
from keras import layers, ops

from speq_keras.graph import Ref
from speq_keras.operations import ARITHMETIC, name_of, operation_classes
from speq_keras.own_weights import ChannelOperation, Weight

_OPTIONS = ("strides", "padding", "dilation_rate")
# Layers of one and two dimensions, by the name of the operation.
_CONVOLUTIONS = {
    "conv": (layers.Conv1D, layers.Conv2D),
    "depthwise_conv": (layers.DepthwiseConv1D, layers.DepthwiseConv2D),
}


@functools.cache
def _convolution_classes():
    # In Keras 3.15, the symbolic result of `ops.conv_transpose` cannot be run.
    calls = (lambda x: ops.conv(x, x), lambda x: ops.depthwise_conv(x, x))
    return dict(zip(operation_classes(calls), _CONVOLUTIONS, strict=True))


def is_convolution(operation):
    """Whether this is the operation of `ops.conv` or `ops.depthwise_conv`."""
    return type(operation) in _convolution_classes()


@dataclasses.dataclass(frozen=True)
class Reader:
    """The only node that reads a `Weight`'s output.

    Attributes:
        weight: The node of the `Weight`.
        operation: "matmul", one of `_CONVOLUTIONS`, or as in `ChannelOperation`.
        weight_first: Whether the weight is the first operand.
        tensor: The `Ref` of the other operand.
        options: For a convolution: ((name, value), ...).
    """

    weight: Any
    operation: str
    weight_first: bool
    tensor: Ref
    options: tuple = ()

    def layer(self, name):
        """Returns a built layer that computes the same, with its own weight."""
        weight = self.weight.operation
        common = {"dtype": weight.dtype_policy, "trainable": weight.trainable, "name": name}
        if self.operation == "matmul" or self.operation in _CONVOLUTIONS:
            layer, inputs = self._product(common)
            layer.build((None, *[None] * (len(weight.shape) - 2), inputs))
            return layer
        return ChannelOperation(
            weight.shape,
            self.operation,
            self.weight_first,
            weight_regularizer=weight.weight_regularizer,
            weight_constraint=weight.weight_constraint,
            **common,
        )

    def _product(self, common):
        """Returns a layer that multiplies by the weight, and the number of channels it reads."""
        weight = self.weight.operation
        *size, inputs, units = weight.shape
        kernel = "depthwise" if self.operation == "depthwise_conv" else "kernel"
        common = common | dict(self.options)
        common |= {
            "use_bias": False,
            f"{kernel}_regularizer": weight.weight_regularizer,
            f"{kernel}_constraint": weight.weight_constraint,
        }
        if self.operation == "matmul":
            return layers.Dense(units, **common), inputs
        make = _CONVOLUTIONS[self.operation][len(size) - 1]
        if self.operation == "depthwise_conv":
            return make(size, depth_multiplier=units, **common), inputs
        return make(units, size, **common), inputs


def find_readers(graph, is_float):
    """Returns {id(node): `Reader`} of the operations that become layers.

    A weight with several readers stays a tensor.

    Args:
        graph: A `Graph`.
        is_float: Function of a node: True if it must not become another layer.
    """
    weights = [node for node in graph.nodes if type(node.operation) is Weight]
    readers = graph.readers()
    found, ways = {}, {}
    for weight in weights:
        (index,) = weight.outputs
        reader = None
        if len(readers[index]) == 1 and index not in graph.output_indices:
            (node,) = readers[index]
            if not is_float(weight) and not is_float(node):
                reader = _reader(graph, weight, node)
        key = reader and (reader.operation, reader.weight_first, reader.options)
        ways.setdefault(id(weight.operation), set()).add(key)
        if reader is not None:
            found[id(node)] = reader
    return {
        node: reader
        for node, reader in found.items()
        if len(ways[id(reader.weight.operation)]) == 1
    }


def _reader(graph, weight, node):
    """Returns the `Reader` of `weight`'s output, or None if it stays an operation."""
    name = name_of(node.operation)
    operands = [*node.args, *node.kwargs.values()]
    is_layer = isinstance(node.operation, layers.Layer)
    if is_layer or len(operands) != 2 or not all(isinstance(x, Ref) for x in operands):
        return None
    weight_first = operands[0].index in weight.outputs
    ref = operands[1 if weight_first else 0]
    tensor, made = graph.tensors[ref.index], graph.tensors[node.outputs[0]]
    by_weight = tensor.producer is not None and type(tensor.producer.operation) is Weight
    if by_weight or tensor.dtype != weight.operation.compute_dtype or ref.index in graph.masked:
        return None  # a layer would pass on a mask
    shape = tuple(weight.operation.shape)
    if is_convolution(node.operation):
        return None if weight_first else _conv_reader(weight, node.operation, ref, tensor)
    if name == "Matmul":
        is_dense = len(shape) == 2 and len(tensor.shape) >= 2 and not weight_first
        return Reader(weight, "matmul", False, ref) if is_dense else None
    divides_by_tensor = weight_first and name in ("Divide", "TrueDivide")
    is_per_channel = all(size == 1 for size in shape[:-1]) and made.shape == tensor.shape
    if name not in ARITHMETIC or divides_by_tensor or not is_per_channel:
        return None
    return Reader(weight, ARITHMETIC[name], weight_first, ref)


def _conv_reader(weight, operation, ref, tensor):
    """Returns the `Reader` of a convolution, or None if no layer computes the same."""
    name = _convolution_classes()[type(operation)]
    *size, inputs, _ = weight.operation.shape
    is_last = (operation.data_format or keras.config.image_data_format()) == "channels_last"
    is_known = is_last and operation.padding in ("valid", "same")
    if not is_known or len(size) not in (1, 2) or tensor.shape[-1] != inputs:
        return None  # grouped or three-dimensional
    options = []
    for option in _OPTIONS:
        value = getattr(operation, option)
        options.append((option, tuple(value) if isinstance(value, list | tuple) else value))
    return Reader(weight, name, False, ref, tuple(options))
