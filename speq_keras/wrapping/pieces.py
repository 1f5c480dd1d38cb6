"""Expresses operations with several outputs or inputs by operations with integer kernels.

Each function takes `(rewriter, operation, name, args, kwargs)`, appends nodes, and returns their
outputs, or None if the operation has to stay as it is.
"""

import numpy as np
from keras import layers

from speq_keras.graph import Ref
from speq_keras.operations import LOWEST, make_operation, name_of
from speq_keras.ops import einsum_axes


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


def _get_item(rewriter, operation, name, args, kwargs):
    """x[:, None, 0] as x[:, 0] and an expand_dims for each added axis."""
    key = args[1] if len(args) == 2 else None
    key = (key,) if isinstance(key, int) else key
    if not isinstance(key, list | tuple) or not key or key[0] is None:
        return None
    if not all(part is None or isinstance(part, int | slice) for part in key):
        return None
    if None not in key:
        return _cut(rewriter, name, args[0], key) if _moved(rewriter, args[0]) else None
    rest = tuple(part for part in key if part is not None)
    refs = [args[0]]
    if any(part != slice(None) for part in rest):
        refs = _cut(rewriter, name, args[0], rest)
    for axis, part in enumerate([part for part in key if not isinstance(part, int)]):
        if part is None:
            refs = _appended(rewriter, "ExpandDims", name, refs[0], axis=axis)
    return refs


def _squeeze(rewriter, operation, name, args, kwargs):
    """Removes a first axis that a transposition moved there, at its old position."""
    moved = _moved(rewriter, args[0]) if args and isinstance(args[0], Ref) else None
    if moved is None or operation.axis not in (0, (0,), [0]):
        return None
    source, (first, *others) = moved
    (ref,) = _appended(rewriter, "Squeeze", name, source, axis=first)
    return _without(rewriter, name, ref, first, others)


def _transpose(rewriter, operation, name, args, kwargs):
    """Merges a transposition with the one before it."""
    moved = _moved(rewriter, args[0]) if args and isinstance(args[0], Ref) else None
    if moved is None:
        return None
    source, before = moved
    axes = [before[axis] for axis in _axes_of(operation, len(before))]
    return rewriter.transposed(source, axes, name)


def _cut(rewriter, name, ref, key):
    """Appends x[key], before a transposition that moved the batch away from the first axis."""
    moved = _moved(rewriter, ref)
    if moved is None:
        return _appended(rewriter, "GetItem", name, ref, key=tuple(key))
    source, (first, *others) = moved
    cut, *rest = key
    (ref,) = _cut(rewriter, name, source, (*[slice(None)] * first, cut))
    if isinstance(cut, int):
        refs = _without(rewriter, name, ref, first, others)
    else:
        refs = _appended(rewriter, "Transpose", name, ref, axes=[first, *others])
        rest = [slice(None), *rest] if rest else []
    return _cut(rewriter, name, refs[0], rest) if rest else refs


def _moved(rewriter, ref):
    """Returns `(source, axes)` of the transposition that put another axis before the batch."""
    tensor = rewriter.new.tensors[ref.index]
    node = tensor.producer
    if node is None or name_of(node.operation) not in _MOVES:
        return None
    axes = _axes_of(node.operation, len(tensor.shape))
    return (node.args[0], axes) if axes[0] != 0 else None


def _axes_of(operation, rank):
    """Returns the axes of the transposition that is equivalent to one of `_MOVES`."""
    numbered = np.empty((*range(rank),))  # axes of different sizes, without any elements
    return list(_MOVES[name_of(operation)](numbered, operation).shape)


def _without(rewriter, name, ref, first, others):
    """Appends the transposition that remains after its first axis is removed."""
    return rewriter.transposed(ref, [axis - (axis > first) for axis in others], name)


def _appended(rewriter, kind, name, ref, key=None, **options):
    """Appends an operation on a tensor, given by Keras' name; returns its outputs."""
    operation = make_operation(kind, **options, name=rewriter.names.unique(name))
    args = [ref] if key is None else [ref, key]
    return rewriter.call(operation, operation.name, args, {})


def _extreme(layer_class):
    """A maximum or minimum of two tensors: the layer, whose inputs share a grid."""

    def piece(rewriter, operation, name, args, kwargs):
        operands = [*args, *kwargs.values()]
        if len(operands) != 2 or not all(isinstance(operand, Ref) for operand in operands):
            return None
        dtypes = {rewriter.new.tensors[ref.index].dtype for ref in operands}
        if len(dtypes) != 1 or "float" not in next(iter(dtypes)):
            return None
        name = rewriter.names.unique(name)
        layer = layer_class(dtype=next(iter(dtypes)), name=name)
        return rewriter.call(layer, name, [operands], {})

    return piece


def _pad(rewriter, operation, name, args, kwargs):
    """Pads x − c with zeros and adds c: zero is on every grid, c is not.

    A value far below all codes is padding for a maximum and is kept.
    """
    given = [*args[1:], *kwargs.values()]
    constant = given[0] if len(given) == 1 and isinstance(given[0], int | float) else None
    ref = args[0] if args else None
    is_float = isinstance(ref, Ref) and "float" in rewriter.new.tensors[ref.index].dtype
    if not constant or not is_float or operation.mode != "constant" or constant < LOWEST:
        return None
    dtype = rewriter.new.tensors[ref.index].dtype
    for offset in (-constant, constant):
        fresh = rewriter.names.unique(f"{name}_rescaling")
        layer = layers.Rescaling(1.0, offset=offset, dtype=dtype, name=fresh)
        (ref,) = rewriter.call(layer, fresh, [ref], {})
        if offset == -constant:
            fresh = rewriter.names.unique(name)
            options = {"pad_width": operation.pad_width, "mode": operation.mode}
            pad = make_operation("Pad", **options, name=fresh)
            (ref,) = rewriter.call(pad, fresh, [ref], {})
    return [ref]


def dense_order(graph, layer, args):
    """Returns how to turn an EinsumDense into one over the last axes, as kernels need it.

    Args:
        graph: The `Graph` of the `Ref`s in `args`.
        layer: A layer.
        args: Of its call.

    Returns:
        `(axes of a transposition before it, new options, axes of one after it)`, or None if it
        already is one, cannot become one, or is another layer.
    """
    if name_of(layer) != "EinsumDense" or "." in layer.equation or not args:
        return None
    inputs, kernel, output = einsum_axes(layer.equation)
    summed = [a for a in kernel if a in inputs and a not in output]
    made = [a for a in kernel if a not in inputs]
    kept = [a for a in inputs if a in output and a not in kernel]
    is_dense = len(summed) + len(made) == len(kernel) and len(summed) + len(kept) == len(inputs)
    if not (is_dense and summed and made) or output[0] != inputs[0] or kept[:1] != [inputs[0]]:
        return None
    reads, makes = "".join([*kept, *summed]), "".join([*kept, *made])
    if (reads, makes) == (inputs, output) or not set(layer.bias_axes or "") <= set(made):
        return None
    sizes = {
        **dict(zip(inputs, graph.tensors[args[0].index].shape, strict=True)),
        **dict(zip(kernel, layer.kernel.shape, strict=True)),
    }
    options = {
        "equation": f"{reads},{kernel}->{makes}",
        "output_shape": [sizes[axis] for axis in makes[1:]],
        "reads": tuple(sizes[axis] for axis in reads),
    }
    return [inputs.index(a) for a in reads], options, [makes.index(a) for a in output]


def _shape_of(rewriter, args):
    is_tensor = bool(args) and isinstance(args[0], Ref)
    return rewriter.new.tensors[args[0].index].shape if is_tensor else None


def _slices(rewriter, name, ref, axis, keys):
    outputs = []
    for key in keys:
        outputs += _cut(rewriter, name, ref, (*[slice(None)] * axis, key))
    return outputs


# Operations that permute axes: a function of an array and the operation, by Keras' name.
_MOVES = {
    "Transpose": lambda x, operation: np.transpose(x, operation.axes),
    "Swapaxes": lambda x, operation: np.swapaxes(x, operation.axis1, operation.axis2),
    "Moveaxis": lambda x, operation: np.moveaxis(x, operation.source, operation.destination),
}
PIECES = {
    "Split": _split,
    "Unstack": _unstack,
    "Stack": _stack,
    "GetItem": _get_item,
    "Squeeze": _squeeze,
    **dict.fromkeys(_MOVES, _transpose),
    "Pad": _pad,
    "Maximum": _extreme(layers.Maximum),
    "Minimum": _extreme(layers.Minimum),
}
