"""Layers and operations that copy codes, or average them on their own grid, as data.

Every function takes `(operation, node, shape)`, where `shape` is the input's shape, batch first,
and returns `(kind, options)` of the equivalent operation in the file (`tflite.operations.OPS`).
Floats and integers are copied in the same way.
"""

import keras
import numpy as np
from keras import layers

from speq_keras.export.folding.options import unsupported
from speq_keras.export.folding.steps import NO_KERNEL, CannotExport
from speq_keras.graph import Ref, refs_in
from speq_keras.operations import TRAINING_ONLY, function_name, name_of


def copying_of(node, shape):
    """Returns `(kind, options)` of a node that copies or averages codes.

    Raises:
        CannotExport: If no kernel does the same as the node.
    """
    row = COPYING.get(name_of(node.operation))
    if row is None:
        raise CannotExport(NO_KERNEL)
    return row(node.operation, node, shape)


def changes_nothing(operation):
    """Whether a layer passes its input on at inference."""
    return function_name(operation) == "linear" or name_of(operation) in _IDENTITIES


def _reshape(operation, node, shape):
    return "reshape", {}  # to the node's output shape


def _permute(operation, node, shape):
    return "transpose", {"permutation": (0, *operation.dims)}


def _transpose(operation, node, shape):
    axes = operation.axes
    axes = range(len(shape))[::-1] if axes is None else axes
    return _checked_transpose(tuple(axis % len(shape) for axis in axes))


def _swap(operation, node, shape):
    axes = list(range(len(shape)))
    one, other = operation.axis1, operation.axis2
    axes[one], axes[other] = axes[other], axes[one]
    return _checked_transpose(tuple(axes))


def _move(operation, node, shape):
    order = np.moveaxis(np.empty(range(1, len(shape) + 1)), operation.source, operation.destination)
    return _checked_transpose(tuple(size - 1 for size in order.shape))


def _checked_transpose(permutation):
    if permutation[0] != 0:
        raise CannotExport("the batch has to stay the first axis")
    return "transpose", {"permutation": permutation}


def _crop(operation, node, shape):
    cropping = [pair if isinstance(pair, tuple) else (pair,) * 2 for pair in _tuple(operation)]
    rank = len(shape)
    begin = [0] * rank
    end = list(shape)
    for axis, (before, after) in enumerate(cropping, 1):
        begin[axis], end[axis] = before, shape[axis] - after
    return "strided_slice", {"begin": tuple(begin), "end": tuple(end), "strides": (1,) * rank}


def _tuple(operation):
    cropping = operation.cropping
    return [tuple(cropping)] if isinstance(cropping[0], int) else list(cropping)


def _get_item(operation, node, shape):
    key = node.args[1] if len(node.args) > 1 else node.kwargs["key"]
    key = list(key) if isinstance(key, list | tuple) else [key]
    if any(k is None for k in key):
        raise CannotExport("an index that adds axes has no kernel; use ExpandDims")
    if not all(isinstance(k, slice | int | np.integer) or k is Ellipsis for k in key):
        raise CannotExport("its index is not a number or a slice")
    if Ellipsis in key:
        place = key.index(Ellipsis)
        key[place : place + 1] = [slice(None)] * (len(shape) - len(key) + 1)
    key += [slice(None)] * (len(shape) - len(key))
    begin, end, strides = [], [], []
    for axis, (k, size) in enumerate(zip(key, shape, strict=True)):
        if axis == 0:
            if k != slice(None):
                raise CannotExport("the batch cannot be sliced")
            first, last, stride = 0, None, 1
        elif isinstance(k, slice):
            first, last, stride = k.indices(size)
            if stride < 1:
                raise CannotExport("slices must go forward")
        else:
            first, last, stride = k % size, k % size + 1, 1
        begin.append(first)
        end.append(last)
        strides.append(stride)
    return "strided_slice", {"begin": tuple(begin), "end": tuple(end), "strides": tuple(strides)}


def slice_sizes(options):
    """Returns the sizes that a "strided_slice" leaves, per axis; None if an axis is open."""
    ends = zip(options["begin"], options["end"], options["strides"], strict=True)
    return [None if end is None else -(-(end - begin) // stride) for begin, end, stride in ends]


def _depth_to_space(operation, node, shape):
    return "depth_to_space", {"block_size": operation.block_size}


def _zero_padding(operation, node, shape):
    padding = operation.padding
    pairs = [padding] if isinstance(padding[0], int) else padding
    return "pad", {"paddings": ((0, 0), *(tuple(pair) for pair in pairs), (0, 0))}


def _pad(operation, node, shape):
    constant = node.kwargs.get("constant_values", node.args[1] if len(node.args) > 1 else None)
    pairs = [tuple(int(n) for n in pair) for pair in operation.pad_width]
    pairs = pairs * len(shape) if len(pairs) == 1 else pairs
    if pairs[0] != (0, 0):
        raise CannotExport("the batch cannot be padded")
    if any(n < 0 for pair in pairs for n in pair):
        raise unsupported("pad_width", operation.pad_width, "it cuts")
    if operation.mode == "constant" and not constant:
        return "pad", {"paddings": tuple(pairs)}
    if operation.mode == "constant":
        if refs_in(constant) or np.size(constant) != 1:
            raise CannotExport("it pads with something other than one number")
        return "pad_constant", {"paddings": tuple(pairs), "constant": float(constant)}
    if operation.mode not in ("reflect", "symmetric"):
        raise unsupported("mode", operation.mode)
    inside = 1 if operation.mode == "reflect" else 0
    for size, pair in zip(shape[1:], pairs[1:], strict=True):
        if max(pair) > size - inside:
            raise unsupported("pad_width", operation.pad_width, "it is wider than the image")
    return "mirror_pad", {"paddings": tuple(pairs), "mode": operation.mode}


def _pool(kind):
    def row(operation, node, shape):
        rank = len(shape) - 2
        size = _sizes(operation.pool_size, rank)
        strides = _sizes(operation.strides, rank) if operation.strides is not None else size
        name = kind if rank < 3 else kind.replace("2d", "3d")
        return name, {"size": size, "strides": strides, "padding": operation.padding}

    return row


def _sizes(value, rank):
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _global_pool(kind):
    def row(operation, node, shape):
        size = tuple(shape[1:-1])
        if len(size) > 2:
            raise CannotExport("pooling in three dimensions has no kernel")
        return kind, {"size": size, "strides": size, "padding": "valid"}

    return row


def reduction_options(operation, rank, what):
    """Returns the options of an operation that reduces axes of a tensor of `rank` axes.

    Args:
        operation: A global pooling, or an operation with `axis` and `keepdims`.
        rank: Number of axes.
        what: Name of the result, for the error.

    Raises:
        CannotExport: If the batch is among the axes.
    """
    if isinstance(operation, layers.Layer):  # a global pooling
        axes = tuple(range(1, rank - 1))
    else:
        axes = tuple(sorted(axes_of(operation.axis, rank)))
    if 0 in axes:
        raise CannotExport(f"{what} over the batch has no kernel")
    return {"axes": axes, "keep_dims": bool(operation.keepdims)}


def _up_sampling(operation, node, shape):
    factors = _sizes(operation.size, len(shape) - 2)
    size = tuple(n * f for n, f in zip(shape[1:-1], factors, strict=True))
    interpolation = getattr(operation, "interpolation", "nearest")
    return _resize(interpolation, size)


def _up_sampling_3d(operation, node, shape):
    factors = _sizes(operation.size, 3)
    places = {}
    for axis, factor in enumerate(factors, 1):
        places[axis] = np.repeat(np.arange(shape[axis]), factor).tolist()
    return _gather(places)


def _gather(places, reads=None):
    """Returns a gather of the values at constant positions of some axes: {axis: positions}.

    `reads` is the shape in which the input is read, if different from its own.
    """
    if 0 in places:
        raise CannotExport("the batch has to stay as it is")
    if not places:
        return "reshape", {}  # it names no axis
    return "gather", {"places": {axis: tuple(x) for axis, x in places.items()}, "reads": reads}


def axes_of(axis, rank):
    """Returns the axes that an operation names, counted from 0; None means all of them."""
    if axis is None:
        return tuple(range(rank))
    return tuple(int(a) % rank for a in np.atleast_1d(axis))


def _flip(operation, node, shape):
    axes = axes_of(operation.axis, len(shape))
    return _gather({axis: range(shape[axis] or 0)[::-1] for axis in axes})


def _roll(operation, node, shape):
    axes = axes_of(operation.axis, len(shape))
    shifts = np.broadcast_to(operation.shift, len(axes))
    places: dict = {}
    for axis, shift in zip(axes, shifts, strict=True):  # one axis may be named twice
        size = shape[axis] or 1
        places[axis] = [(n - int(shift)) % size for n in places.get(axis, range(size))]
    return _gather(places)


def _repeat(operation, node, shape):
    if operation.axis is None:
        raise CannotExport("it must repeat along one axis: without one, it repeats the batch")
    axis = operation.axis % len(shape)
    if isinstance(operation.repeats, int) and 0 < axis < len(shape) - 1:
        size = list(shape)
        size[axis] *= operation.repeats
        return _resize("nearest", tuple(size[1:-1]))
    return _gather({axis: np.repeat(np.arange(shape[axis] or 1), operation.repeats).tolist()})


def _repeat_vector(operation, node, shape):
    return _gather({1: [0] * operation.n}, reads=(shape[0], 1, shape[1]))


def _tile(operation, node, shape):
    repeats = tuple(np.atleast_1d(operation.repeats).tolist())
    repeats = (1,) * (len(shape) - len(repeats)) + repeats
    if len(repeats) > len(shape):
        raise unsupported("repeats", operation.repeats, "it must name no more axes than there are")
    rows = enumerate(zip(shape, repeats, strict=True))
    return _gather({axis: [*range(size or 1)] * n for axis, (size, n) in rows if n != 1})


def _take(operation, node, shape):
    given = {**dict(zip(("x", "indices"), node.args, strict=False)), **node.kwargs}
    indices = given["indices"]
    if operation.axis is None or not isinstance(given["x"], Ref) or refs_in(indices):
        raise CannotExport("it must take constant places of one axis")
    axis, places = operation.axis % len(shape), np.asarray(keras.ops.convert_to_numpy(indices))
    if places.ndim > 1:
        raise CannotExport("its places must be a number or a vector")
    size = shape[axis] or 1
    return _gather({axis: [int(n) % size for n in np.atleast_1d(places)]})


def _extreme(kind, what):
    def row(operation, node, shape):
        return kind, reduction_options(operation, len(shape), what)

    return row


def _resizing(operation, node, shape):
    for option in ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias"):
        if getattr(operation, option):
            raise unsupported(option, True)
    size = getattr(operation, "size", None) or (operation.height, operation.width)
    return _resize(operation.interpolation, tuple(size))


def _resize(interpolation, size):
    if interpolation == "nearest":
        return "resize_nearest_neighbor", {"size": size, "half_pixel_centers": True}
    if interpolation == "bilinear":
        return "resize_bilinear", {"size": size, "half_pixel_centers": True}
    raise unsupported("interpolation", interpolation)


_IDENTITIES = frozenset(
    (*TRAINING_ONLY, "ConvertToTensor", "Identity", "MaskedOutput", "StopGradient")
)
_MAX, _GLOBAL_MAX = _pool("max_pool_2d"), _global_pool("max_pool_2d")
_AVERAGE = _pool("average_pool_2d")

# By Keras' class name.
COPYING = {
    **dict.fromkeys("Reshape Flatten Squeeze ExpandDims Ravel".split(), _reshape),
    **dict.fromkeys("MaxPooling1D MaxPooling2D MaxPooling3D MaxPool".split(), _MAX),
    **dict.fromkeys(
        "AveragePooling1D AveragePooling2D AveragePooling3D AveragePool".split(), _AVERAGE
    ),
    **dict.fromkeys("GlobalMaxPooling1D GlobalMaxPooling2D".split(), _GLOBAL_MAX),
    **dict.fromkeys("ZeroPadding1D ZeroPadding2D ZeroPadding3D".split(), _zero_padding),
    **dict.fromkeys("Cropping1D Cropping2D Cropping3D".split(), _crop),
    **dict.fromkeys("UpSampling1D UpSampling2D".split(), _up_sampling),
    "UpSampling3D": _up_sampling_3d,
    "Permute": _permute,
    "Transpose": _transpose,
    "Swapaxes": _swap,
    "Moveaxis": _move,
    "DepthToSpace": _depth_to_space,
    "Flip": _flip,
    "GetItem": _get_item,
    "GlobalMaxPooling3D": _extreme("reduce_max", "a maximum"),
    "Max": _extreme("reduce_max", "a maximum"),
    "Min": _extreme("reduce_min", "a minimum"),
    "Pad": _pad,
    "Repeat": _repeat,
    "RepeatVector": _repeat_vector,
    "Roll": _roll,
    "Take": _take,
    "Tile": _tile,
    "Resize": _resizing,
    "Resizing": _resizing,
}
