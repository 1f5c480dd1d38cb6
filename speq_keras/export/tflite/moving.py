"""Operations that move values without computing, for integers and floats alike."""

import numpy as np

from speq_keras.export.tflite.network import Tensor, batches
from speq_keras.export.tflite.record import Op, activation_of, constant_of, operation_of, version_of


def concatenation(values, inputs, output, *, axis, activation="none"):
    """Joins tensors of one grid; more than 5 use a builtin kernel."""
    return np.concatenate(values, axis=axis)


def gather(values, inputs, output, *, axis=0):
    """Slices of the first input along an axis, at the positions in the second input."""
    return values[0].take(values[1], axis)


def reshape(values, inputs, output, *, shape):
    """Reshapes every example; None is the batch, -n is n times the batch."""
    return values[0].reshape([-1 if batches(size) else size for size in shape])


def transpose(values, inputs, output, *, permutation):
    """Permutes the axes."""
    return np.ascontiguousarray(values[0].transpose(permutation))


def depth_to_space(values, inputs, output, *, block_size):
    """Rearranges the channels of a pixel into a block of pixels, row by row."""
    (x,) = values
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, block_size, block_size, channels // block_size**2)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, height * block_size, width * block_size, -1)


def pad(values, inputs, output, *, paddings):
    """Pads with zeros, stored as the zero point: (before, after) for each axis."""
    value = inputs[0].zero_point if inputs[0].scale is not None else 0
    return np.pad(values[0], [tuple(pair) for pair in paddings], constant_values=value)


def pad_constant(values, inputs, output, *, paddings, constant):
    """Pads with a number; codes are padded with the lowest code, whatever the number."""
    value = np.float32(constant) if inputs[0].scale is None else np.iinfo(values[0].dtype).min
    pairs = [tuple(pair) for pair in paddings]
    return np.pad(values[0], pairs, constant_values=value).astype(values[0].dtype)


def mirror_pad(values, inputs, output, *, paddings, mode):
    """Pads with the mirror image: "reflect" without its edge, "symmetric" with it.

    Uses a builtin kernel.
    """
    return np.pad(values[0], [tuple(pair) for pair in paddings], mode=mode)


def strided_slice(values, inputs, output, *, begin, end, strides):
    """Slices; 0, None, 1 keeps the batch. With strides, a builtin kernel."""
    slices = tuple(slice(*limits) for limits in zip(begin, end, strides, strict=True))
    return np.ascontiguousarray(values[0][slices])


def split(values, inputs, output, *, axis, count):
    """Cuts a tensor into equal pieces along an axis; returns a list."""
    return [np.ascontiguousarray(piece) for piece in np.split(values[0], count, axis=axis)]


def unpack(values, inputs, output, *, axis, count):
    """Splits an axis into a list of its positions. A builtin kernel."""
    return [np.ascontiguousarray(values[0].take(place, axis)) for place in range(count)]


# ---- emitters ---------------------------------------------------------------------------------


def _emit_concatenation(node, tensors, batch_size):
    options = {"axis": int(node.options["axis"]), **activation_of(node)}
    version = version_of(node, tensors)
    return operation_of(node, "CONCATENATION", "ConcatenationOptions", version=version, **options)


def _emit_gather(node, tensors, batch_size):
    axis = int(node.options.get("axis", 0))
    return operation_of(
        node, "GATHER", "GatherOptions", version=version_of(node, tensors), axis=axis
    )


def _emit_reshape(node, tensors, batch_size):
    # -1 rather than the batch size, so that the batch can be resized.
    shape = np.array([-1 if batches(size) else size for size in node.options["shape"]], np.int32)
    target = [constant_of(node, "shape", shape)]
    return operation_of(node, "RESHAPE", "ReshapeOptions", more_inputs=target, newShape=shape)


def _emit_transpose(node, tensors, batch_size):
    rank = len(tensors[node.inputs[0]].shape)
    order = [constant_of(node, "permutation", node.options["permutation"])]
    version = {5: 4, 6: 6}.get(rank, version_of(node, tensors))
    return operation_of(node, "TRANSPOSE", "TransposeOptions", more_inputs=order, version=version)


def _emit_depth_to_space(node, tensors, batch_size):
    size, version = int(node.options["block_size"]), version_of(node, tensors)
    return operation_of(
        node, "DEPTH_TO_SPACE", "DepthToSpaceOptions", version=version, blockSize=size
    )


def _emit_pad(node, tensors, batch_size):
    rank = len(tensors[node.inputs[0]].shape)
    paddings = [constant_of(node, "paddings", node.options["paddings"])]
    version = 4 if rank > 4 else version_of(node, tensors)
    return operation_of(node, "PAD", "PadOptions", more_inputs=paddings, version=version)


def _emit_pad_constant(node, tensors, batch_size):
    x = tensors[node.inputs[0]]
    value = np.array([node.options["constant"] if x.scale is None else np.iinfo(x.dtype).min])
    constant = Tensor(
        name=f"{node.output}/constant",
        shape=(1,),
        dtype=x.dtype,
        scale=x.scale,
        zero_point=x.zero_point,
        data=value.astype(x.dtype),
    )
    return operation_of(
        node,
        "PADV2",
        "PadV2Options",
        more_inputs=[constant_of(node, "paddings", node.options["paddings"]), constant],
        version=version_of(node, tensors),
    )


def _emit_mirror_pad(node, tensors, batch_size):
    paddings = [constant_of(node, "paddings", node.options["paddings"])]
    version = version_of(node, tensors)
    mode = node.options["mode"].upper()
    return operation_of(
        node, "MIRROR_PAD", "MirrorPadOptions", more_inputs=paddings, version=version, mode=mode
    )


def _emit_strided_slice(node, tensors, batch_size):
    end = node.options["end"]
    limits = {
        "begin": node.options["begin"],
        "end": [0 if stop is None else stop for stop in end],
        "strides": node.options["strides"],
    }
    return operation_of(
        node,
        "STRIDED_SLICE",
        "StridedSliceOptions",
        more_inputs=[constant_of(node, what, values) for what, values in limits.items()],
        version=4 if len(end) > 4 else version_of(node, tensors),
        endMask=sum(1 << axis for axis, stop in enumerate(end) if stop is None),
    )


def _emit_split(node, tensors, batch_size):
    inputs = [constant_of(node, "axis", [node.options["axis"]]), *node.inputs]
    count, version = int(node.options["count"]), version_of(node, tensors)
    return operation_of(
        node, "SPLIT", "SplitOptions", inputs=inputs, version=version, numSplits=count
    )


def _emit_unpack(node, tensors, batch_size):
    axis, count = (int(node.options[name]) for name in ("axis", "count"))
    version = version_of(node, tensors)
    return operation_of(node, "UNPACK", "UnpackOptions", version=version, axis=axis, num=count)


# ---- records ---------------------------------------------------------------------------------


def _copies(emit, kernel, since=None):
    """Returns the record of an operation that copies codes, floats and integers alike."""
    return Op(emit=emit, integer=kernel, floating=kernel, copies=True, since=since or {})


OPS = {
    "concatenation": _copies(_emit_concatenation, concatenation),
    "depth_to_space": _copies(_emit_depth_to_space, depth_to_space, {2: (2, 5, 0)}),
    "gather": _copies(_emit_gather, gather),
    "reshape": _copies(_emit_reshape, reshape),
    "transpose": _copies(_emit_transpose, transpose, {6: (2, 12, 0)}),
    "pad": _copies(_emit_pad, pad, {4: (2, 6, 0)}),
    "pad_constant": _copies(_emit_pad_constant, pad_constant),
    "mirror_pad": _copies(_emit_mirror_pad, mirror_pad),
    "split": _copies(_emit_split, split),
    "unpack": _copies(_emit_unpack, unpack),
    "strided_slice": _copies(_emit_strided_slice, strided_slice),
}
