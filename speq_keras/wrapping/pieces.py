"""Operations with several outputs or inputs, made of operations that integer kernels have.

Each function takes `(rewriter, operation, name, args, kwargs)`, appends nodes, and returns their
outputs, or None where the operation has to stay what it is.
"""

import numpy as np
from keras import layers

from speq_keras.graph import Ref
from speq_keras.operations import make_operation


def _split(rewriter, operation, name, args, kwargs):
    """As slices: x[:, :4], x[:, 4:]."""
    shape = _shape_of(rewriter, args)
    axis = None if shape is None else operation.axis % len(shape)
    if axis is None or shape[axis] is None:
        return None
    sections = operation.indices_or_sections
    if isinstance(sections, int | np.integer):
        ends = [shape[axis] * number // sections for number in range(1, sections)]
    else:
        ends = [int(index) for index in sections]
    if ends != sorted(ends) or any(not 0 <= end <= shape[axis] for end in ends):
        return None
    ends = [0, *ends, shape[axis]]
    keys = [slice(begin, end) for begin, end in zip(ends[:-1], ends[1:], strict=True)]
    return _slices(rewriter, name, args[0], axis, keys)


def _unstack(rewriter, operation, name, args, kwargs):
    """As slices: x[:, 0], x[:, 1], ..."""
    shape = _shape_of(rewriter, args)
    axis = None if shape is None else operation.axis % len(shape)
    if axis is None or shape[axis] is None:
        return None
    return _slices(rewriter, name, args[0], axis, range(shape[axis]))


def _stack(rewriter, operation, name, args, kwargs):
    """As a Concatenate of tensors with one more axis."""
    refs = args[0] if args else ()
    if not isinstance(refs, list | tuple) or not all(isinstance(ref, Ref) for ref in refs):
        return None
    tensors = [rewriter.new.tensors[ref.index] for ref in refs]
    if len({tensor.dtype for tensor in tensors}) != 1 or "float" not in tensors[0].dtype:
        return None
    axis = operation.axis % (len(tensors[0].shape) + 1)
    expanded = []
    for ref in refs:
        expand = make_operation("ExpandDims", axis=axis, name=rewriter.names.unique(name))
        expanded += rewriter.call(expand, expand.name, [ref], {})
    joined = rewriter.names.unique(name)
    layer = layers.Concatenate(axis=axis, dtype=tensors[0].dtype, name=joined)
    return rewriter.call(layer, joined, [expanded], {})


def _shape_of(rewriter, args):
    is_tensor = bool(args) and isinstance(args[0], Ref)
    return rewriter.new.tensors[args[0].index].shape if is_tensor else None


def _slices(rewriter, name, ref, axis, keys):
    outputs = []
    for key in keys:
        get = make_operation("GetItem", name=rewriter.names.unique(name))
        key = (*[slice(None)] * axis, key)
        outputs += rewriter.call(get, get.name, [ref, key], {})
    return outputs


PIECES = {"Split": _split, "Unstack": _unstack, "Stack": _stack}
