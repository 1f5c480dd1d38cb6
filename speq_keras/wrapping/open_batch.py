"""Makes the batch size open again where a graph contains it as a number.

A layer that reads `ops.shape(x)[0]` is taken apart with `STAND_IN` examples, and the effect of that
number is undone: in a reshape it becomes -1, and a tensor that was repeated for each example (a
class token, `ops.zeros((batch, 1, n))`) is added to zeros derived from a tensor with a batch.
"""

import functools

import keras
import numpy as np
from keras import layers, ops, tree

from speq_keras.graph import map_refs, read_graph
from speq_keras.operations import name_of
from speq_keras.wrapping.composite_check import STAND_IN
from speq_keras.wrapping.image_parts import CannotExpand

# Operations that repeat, by Keras' name, and the attribute with the count.
_REPEATS = {"BroadcastTo": "shape", "Tile": "repeats", "Repeat": "repeats"}


def is_read(model):
    """Whether the open batch size, None, is an argument of an operation in a graph."""
    names = {"Reshape": "newshape", **_REPEATS}
    operations = [o for o in model.operations if not isinstance(o, layers.Layer)]
    found = [getattr(o, names[name_of(o)]) for o in operations if name_of(o) in names]
    return any(size is None for size in tree.flatten(found))


def left_open(model):
    """Returns a graph traced with `STAND_IN` examples as a graph for any number of them."""
    graph = read_graph(model)
    if any(_is_repeated(node, graph) or _batch_arrays(node) for node in graph.nodes):
        model = _rebuilt(model, graph)
    for reshape, shape in _reshapes(model):
        _open(reshape, shape)
    return model


# ---- tensors repeated for each example -------------------------------------------------------


def _rebuilt(model, graph):
    """Returns the same graph, with sums in place of tensors repeated for each example."""
    values = dict(zip(graph.input_indices, model.inputs, strict=True))
    for node in graph.nodes:
        args, kwargs = map_refs((node.args, node.kwargs), values.__getitem__)
        if _is_repeated(node, graph):
            made = _for_every_example(values, args[0], graph.tensors[node.outputs[0]].shape)
        else:
            arrays = {
                id(x): _for_every_example(values, _row_of(x), x.shape) for x in _batch_arrays(node)
            }
            args, kwargs = tree.map_structure(
                lambda leaf, arrays=arrays: arrays.get(id(leaf), leaf), (args, kwargs)
            )
            made = node.operation(*args, **kwargs)
        values.update(zip(node.outputs, tree.flatten(made), strict=True))
    return keras.Model(model.inputs, map_refs(graph.outputs, values.__getitem__))


def _is_repeated(node, graph):
    """Whether an operation repeats a tensor without batch `STAND_IN` times along the first axis."""
    if name_of(node.operation) not in _REPEATS or len(node.inputs) != 1:
        return False
    read, made = (graph.tensors[index].shape for index in (*node.inputs, *node.outputs))
    return made[:1] == (STAND_IN,) and (len(read) < len(made) or read[0] == 1)


def _batch_arrays(node):
    """Returns the arrays among the arguments of a node that have a row for each example."""
    leaves = tree.flatten((node.args, node.kwargs))
    return [x for x in leaves if tuple(getattr(x, "shape", ()))[:1] == (STAND_IN,)]


def _row_of(array):
    """Returns the row that all examples of an array share; one number if all are equal."""
    row = ops.convert_to_numpy(array[:1])
    return row.flat[0] if np.all(row == row.flat[0]) else row


def _for_every_example(values, row, shape):
    """Returns `row` plus zeros with a batch, like the tensor of that `shape`.

    Args:
        values: {number: tensor} of the results so far; the last suitable one is multiplied by zero.
        row: A tensor, an array or a number, the same for all examples.
        shape: The shape of the repeated tensor.
    """
    candidates = [x for x in values.values() if x.shape[:1] == (STAND_IN,) and len(x.shape) > 1]
    fits = [x for x in candidates if "float" in x.dtype and x.shape[-1] == shape[-1]]
    if not candidates:
        raise CannotExpand("it repeats a tensor for every example of one number each")
    x = (fits or [x for x in candidates if "float" in x.dtype] or candidates)[-1]
    x = x[(slice(None), *[slice(1)] * (len(x.shape) - 2))]
    x = x if x.shape[-1] == shape[-1] else ops.repeat(x[..., :1], shape[-1], axis=-1)
    x = ops.reshape(x, (-1, *[1] * (len(shape) - 2), shape[-1]))
    for axis, size in enumerate(shape[1:-1], 1):
        x = x if size == 1 else ops.repeat(x, size, axis=axis)
    return ops.cast(x, str(row.dtype)) * 0 + row


# ---- reshapes --------------------------------------------------------------------------------


def _reshapes(model):
    """Returns [(operation, new shape)] for the calls of `ops.reshape` in a graph."""
    operations = [o for o in model.operations if not isinstance(o, layers.Layer)]
    found = [operation for operation in operations if name_of(operation) == "Reshape"]
    return [(o, o.newshape) for o in found if isinstance(o.newshape, list | tuple)]


def _open(reshape, shape):
    """Replaces the batch size that `ops.shape(x)[0]` put into a reshape by -1.

    A shape can hold only one -1, so an existing one becomes the size that it stood for.
    """
    if not shape or shape[0] is None or shape[0] <= 0 or shape[0] % STAND_IN:
        return
    made = reshape.output.shape[1:]
    rest = [size if old == -1 else old for old, size in zip(shape[1:], made, strict=True)]
    if None not in rest:
        reshape.newshape = (-1, *rest)
        # Copies are made from the config, in which Keras recorded the given shape.
        reshape.get_config = functools.partial(dict, newshape=reshape.newshape, name=reshape.name)
