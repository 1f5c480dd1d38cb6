"""Layers made of layers as graphs of those layers: attention, transformer and residual blocks.

A composite layer is taken apart by calling its `call` on symbolic tensors. The result stands for
the layer only if every weight of the layer belongs to a layer of that graph; otherwise, and where
`call` does not run on symbolic tensors or makes another graph in training, the layer stays one
node. So does a layer behind `Embedding(mask_zero=True)` or `Masking`: a mask has to be given as an
argument to be seen.

`ops.dot_product_attention`, which Keras' attention layers call where they have no dropout, is
taken apart, too: into two products and the softmax between them. And `ops.einsum` of two tensors
becomes `ops.matmul` between transpositions, as integer kernels have it.
"""

import functools
import inspect

import keras
from keras import layers, ops, tree

from speq_keras.configs import registered_config
from speq_keras.layers import QuantizedLayer
from speq_keras.ops import einsum_axes
from speq_keras.quantizers import Quantizer

# Of Keras' own layers, only these are taken apart: recurrent layers and their like loop over time.
_KERAS_COMPOSITES = (layers.MultiHeadAttention, layers.GroupQueryAttention)


def is_composite(operation):
    """Whether `expand` may be able to take an operation apart; decided by its class alone."""
    if not isinstance(operation, layers.Layer):
        return type(operation).__name__ in _PARTS
    if isinstance(operation, QuantizedLayer | Quantizer) or registered_config(operation):
        return False
    if isinstance(operation, _KERAS_COMPOSITES):
        return True
    is_of_keras = type(operation).__module__.split(".")[0] == "keras"
    return not is_of_keras and bool(operation.weights) and not isinstance(operation, keras.Model)


def expander(stays_whole):
    """Returns the `expand` of `graph.read_graph`; `stays_whole` is asked with name and layer."""

    def expand_call(name, operation, args, kwargs):
        if not is_composite(operation) or stays_whole(name, operation):
            return None
        return expand(operation, args, kwargs)

    return expand_call


def expand(operation, args, kwargs):
    """Takes a call apart.

    Args:
        operation: A composite layer or operation.
        args: Of the call, with a `keras.KerasTensor` where a tensor goes.
        kwargs: Likewise.

    Returns:
        `(model, tensors)`: a Functional model of the inner layers, and those of the call's tensors
        that its inputs stand for; or None if the layer has to stay one node.
    """
    inputs, tensors = [], []

    def fresh(leaf):
        if not isinstance(leaf, keras.KerasTensor):
            return leaf
        for known, tensor in zip(inputs, tensors, strict=True):
            if tensor is leaf:
                return known
        inputs.append(keras.Input(batch_shape=leaf.shape, dtype=leaf.dtype))
        tensors.append(leaf)
        return inputs[-1]

    args, kwargs = tree.map_structure(fresh, (args, kwargs))
    parts = _PARTS.get(type(operation).__name__)
    call = operation.call if parts is None else functools.partial(parts, operation)
    try:
        model = keras.Model(inputs, call(*args, **kwargs))
        if "training" in inspect.signature(call).parameters and kwargs.get("training") is None:
            in_training = keras.Model(inputs, call(*args, **{**kwargs, "training": True}))
            if _classes_in(in_training) != _classes_in(model):
                return None  # the graph can be only one of them
    except Exception:  # anything: it is code of other people, on tensors it may not know
        return None
    found = {id(variable) for variable in model.weights}
    if isinstance(operation, layers.Layer) and any(id(v) not in found for v in operation.weights):
        return None
    return model, tensors


def _classes_in(model):
    return [type(operation) for operation in model.operations]


def _attention(operation, query, key, value, bias=None, mask=None, scale=None):
    """Eq. 1 of "Attention Is All You Need" in products that can be quantized.

    Args:
        operation: Of `ops.dot_product_attention`.
        query: (batch, targets, heads, size).
        key: (batch, sources, heads, size).
        value: (batch, sources, heads, size).
        bias: Added to the scores, (batch, heads, targets, sources).
        mask: True where a source may be looked at.
        scale: Of the scores, if it is not 1/√size.
    """
    if operation.is_causal or operation.attn_logits_soft_cap is not None:
        raise NotImplementedError
    query = layers.Rescaling(query.shape[-1] ** -0.5 if scale is None else scale)(query)
    scores = _product("bthd,bshd->bhts", query, key)
    if bias is not None:
        scores = ops.add(scores, bias)
    weights = layers.Softmax()(scores, **({} if mask is None else {"mask": mask}))
    return _product("bhts,bshd->bthd", weights, value)


def _einsum(operation, *operands):
    return _product(operation.subscripts, *operands)


def _product(equation, x, y):
    """Returns `ops.einsum(equation, x, y)` as transpositions around one `ops.matmul`."""
    x_axes, y_axes, axes = einsum_axes(equation)
    shared = [a for a in axes if a in x_axes and a in y_axes]
    summed = [a for a in x_axes if a in y_axes and a not in axes]
    rows = [a for a in x_axes if a not in y_axes]
    columns = [a for a in y_axes if a not in x_axes]
    is_matmul = len(summed) == len(rows) == len(columns) == 1
    if not is_matmul or set(axes) != {*shared, *rows, *columns} or "." in equation:
        raise NotImplementedError
    x = _transposed(x, x_axes, [*shared, *rows, *summed])
    y = _transposed(y, y_axes, [*shared, *summed, *columns])
    return _transposed(ops.matmul(x, y), [*shared, *rows, *columns], axes)


def _transposed(x, axes, wanted):
    order = [list(axes).index(axis) for axis in wanted]
    return x if order == sorted(order) else ops.transpose(x, order)


_PARTS: dict = {"DotProductAttention": _attention, "Einsum": _einsum}
