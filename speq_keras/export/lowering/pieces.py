"""Slices: several that together make up the whole tensor become one operation."""

from speq_keras.export.folding.copying import slice_sizes

# The maximum number of pieces into which XNNPACK splits a tensor.
_PIECES = (2, 3, 4)
# From this number of positions on, unpacking an axis is worth an operation that XNNPACK lacks.
_PLACES = 5


def strided_slice(builder, step):
    """Codes are copied; an axis removed by an index is dropped by a reshape.

    Consecutive slices of equal size become one SPLIT, and all positions of an axis one UNPACK: the
    gates and the inputs of a recurrent layer's steps.
    """
    if id(step.output) in builder.tensors:  # made together with another slice
        return builder.tensor_for(step)
    x = builder.tensor(step.inputs[0])
    family = _family(builder, step, x)
    lost_axes = len(x.shape) - len(step.output.shape)
    is_split = lost_axes == 0 and len(family) in _PIECES
    if is_split or (lost_axes == 1 and len(family) >= _PLACES):
        outputs = [builder.tensor_for(piece) for piece in family]
        kind, options = "split" if is_split else "unpack", {"count": len(family)}
        options["axis"] = _axis(step, x)
        return builder.add(kind, [x.name], *outputs, options=options, layer=step.name)
    shape = (x.shape[0], *slice_sizes(step.options)[1:])
    return builder.emit(step, "strided_slice", [x.name], step.options, shape=shape)


def _family(builder, step, x):
    """Returns the slices of a tensor of codes, in order, if they divide it into equal pieces."""
    found = builder.slices.get(id(step.inputs[0]), []) if not step.is_float else []
    axis = _axis(step, x)
    if axis is None or any(_axis(piece, x) != axis for piece in found):
        return []
    found = sorted(found, key=lambda piece: piece.options["begin"][axis])
    ends = [(piece.options["begin"][axis], piece.options["end"][axis]) for piece in found]
    size, ranks = x.shape[axis], {len(piece.output.shape) for piece in found}
    count = len(ends)
    whole = [(size * n // count, size * (n + 1) // count) for n in range(count)]
    return found if ends == whole and len(ranks) == 1 and size % count == 0 else []


def _axis(step, x):
    """Returns the only axis that a slice cuts, with a stride of 1, or None."""
    options = step.options
    rows = zip(x.shape, options["begin"], options["end"], strict=True)
    cut = [axis for axis, (size, *ends) in enumerate(rows) if axis and ends != [0, size]]
    return cut[0] if len(cut) == 1 and set(options["strides"]) == {1} else None
