"""Computes a graph node by node, freeing each tensor after its last use."""

import inspect

import keras
from keras import tree

from speq_keras.graph.nodes import map_refs
from speq_keras.layers import QuantizedLayer


def run(nodes, values, keep=(), *, call):
    """Computes nodes in order.

    A Keras model keeps all of its tensors until its call returns, which takes gigabytes in large
    networks.

    Args:
        nodes: The nodes, in execution order.
        values: {tensor number: value} for the tensors that no node makes; modified, and those of
            `keep` are added.
        keep: Numbers of the tensors to keep.
        call: Function of a node and `values` that returns its outputs, a list.
    """
    last = {index: node for node in nodes for index in node.inputs}
    for node in nodes:
        outputs = call(node, values)
        for index, value in zip(node.outputs, outputs, strict=True):
            if index in last or index in keep:
                values[index] = value
        for index in node.inputs:
            if last[index] is node and index not in keep:
                values.pop(index, None)


def call_node(node, values, *, training):
    """Calls the layer or operation of a node; returns its outputs, a list.

    Args:
        node: The `Node`.
        values: {number of a tensor: tensor or array}.
        training: Whether layers with a `training` argument run in training mode, regardless of the
            node.
    """
    args, kwargs = map_refs(
        (node.args, node.kwargs), lambda index: keras.ops.convert_to_tensor(values[index])
    )
    if takes_training(node.operation):
        kwargs = {**kwargs, "training": training}
    return tree.flatten(node.operation(*args, **kwargs))


def takes_training(operation):
    """Whether a layer, quantized or not, has a `training` argument."""
    # A QuantizedLayer hands all arguments on; other wrappers have their own signature.
    inner = operation.layer if isinstance(operation, QuantizedLayer) else operation
    return "training" in inspect.signature(inner.call).parameters
