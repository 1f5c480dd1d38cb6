"""Simulates the integer network in Python: the codes of LiteRT's default runtime, without it."""

import math

import numpy as np

from speq_keras._checks import describe
from speq_keras.data import Inputs, class_numbers, read
from speq_keras.export.tflite.network import CODES
from speq_keras.export.tflite.operations import compute

# The batch size keeps the largest node's tensors, in 4-byte numbers, below this: small enough for
# caches, which is several times faster than a large batch.
BATCH_BYTES = 16 * 2**20


def simulate(network, inputs, *, keep=(), elsewhere=False):
    """Computes every node of an integer network, bit for bit as LiteRT's default runtime does.

    Args:
        network: `network.IntegerNetwork`.
        inputs: An array, a list of arrays in the order of `network.inputs`, or a dict by the names
            in `network.input_names`. First axis: any number of examples. Data for a float32 input
            is converted; an integer input accepts only its own type.
        keep: Names of tensors to return too, or "all" for every tensor that a node writes.
        elsewhere: Whether to compute as on ARM and in browsers. Kernels of `storage="smallest"`
            round differently there than on x86; all others compute the same codes.

    Returns:
        A list of arrays, one per name in `network.outputs`. With `keep` a pair: that list, and a
        dict {tensor name: array}.

    Raises:
        ValueError: If the inputs do not fit the network, or `keep` names an unknown tensor.
    """
    arrays = _check_inputs(network, inputs)
    names = _check_keep(network, keep)
    number, batch_size = len(arrays[0]), _batch_size(network)
    kept: dict = {name: [] for name in dict.fromkeys([*network.outputs, *names])}
    # An empty input still runs once, for the shapes of the empty outputs.
    for start in range(0, max(number, 1), batch_size):
        batch = [array[start : start + batch_size] for array in arrays]
        for name, array in _run(network, batch, kept, elsewhere).items():
            kept[name].append(array)
    results = {name: np.concatenate(parts) for name, parts in kept.items()}
    outputs = [results[name] for name in network.outputs]
    return (outputs, {name: results[name] for name in names}) if keep else outputs


def predict(network, x, *, steps=None, keys=()):
    """Returns the outputs for `x`: one array, or a list if the network has several outputs.

    Args:
        network: `network.IntegerNetwork`.
        x: Data of any kind, see `data`.
        steps: Number of batches; None: all.
        keys: The keys of the trained model's input dict, in the order of the inputs.
    """
    batches = read(x, _inputs_of(network, keys), name="inputs", steps=steps)
    return joined([simulate(network, batch.x) for batch in batches])


def joined(batches):
    """Returns the outputs of all batches, each a list: one array, or a list of several.

    Raises:
        ValueError: If there is no batch.
    """
    if not batches:
        raise ValueError(
            "`inputs` must hold at least one batch. Received: an empty data set. Pass inputs."
        )
    outputs = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    return outputs[0] if len(outputs) == 1 else outputs


def evaluate(network, x, y=None, *, steps=None, keys=()):
    """Returns the top-1 accuracy of the network's first output, between 0 and 1.

    Args:
        network: `network.IntegerNetwork`.
        x: Inputs, with `y`; or without `y`, data of any kind that has labels, see `data`. Sample
            weights are ignored.
        y: Classes as integers, or one-hot.
        steps: Number of batches; None: all.
        keys: See `predict`.

    Raises:
        ValueError: If there is no example, or labels are missing or do not fit.
    """
    data = x if y is None else (x, y)
    right = number = 0
    for batch in read(data, _inputs_of(network, keys), name="x", steps=steps, labels=True):
        if batch.y is None:
            raise ValueError(
                "`x` must hold (inputs, labels) if `y` is not given. Received: inputs without "
                "labels."
            )
        outputs = np.asarray(simulate(network, batch.x)[0])
        labels = class_numbers(batch.y, outputs.shape, name="x" if y is None else "y")
        right += int((outputs.argmax(axis=-1) == labels).sum())
        number += labels.size
    if not number:
        raise ValueError("`x` must hold at least one example. Received: none. Pass some.")
    return right / number


def _inputs_of(network, keys):
    tensors = [network.tensors[name] for name in network.inputs]
    return Inputs(
        names=tuple(network.input_names),
        shapes=tuple(tuple(tensor.shape)[1:] for tensor in tensors),
        # Codes are not converted: anything else is an error.
        dtypes=tuple(None if tensor.dtype in CODES else tensor.dtype for tensor in tensors),
        keys=tuple(keys),
    )


def _run(network, batch, kept, elsewhere):
    """Returns {name: array} of the tensors in `kept` for one batch."""
    values = dict(zip(network.inputs, batch, strict=True))
    readers = {}
    for index, node in enumerate(network.nodes):
        readers.update(dict.fromkeys(node.inputs, index))
    for index, node in enumerate(network.nodes):
        arrays = [_value(network, values, name) for name in node.inputs]
        made = compute(node, arrays, network.tensors, elsewhere=elsewhere)
        values.update(by_name(node, made))
        for name in {*node.inputs, *node.outputs}:
            # Tensors that are no longer needed free their memory.
            if readers.get(name, index) <= index and name not in kept:
                values.pop(name, None)
    return {name: values[name] for name in kept}


def by_name(node, made):
    """Returns {name of an output: array} for the result of `compute` on a node."""
    return dict(zip(node.outputs, made if isinstance(made, list) else [made], strict=True))


def _value(network, values, name):
    if not name:
        return None
    return network.tensors[name].data if name not in values else values[name]


def _batch_size(network):
    sizes = {
        name: math.prod(size or 1 for size in tensor.shape)
        for name, tensor in network.tensors.items()
        if not tensor.is_constant
    }
    largest = max(
        (
            sum(sizes.get(name, 0) for name in {*node.inputs, *node.outputs})
            for node in network.nodes
        ),
        default=1,
    )
    return max(1, BATCH_BYTES // (4 * largest))


def _check_inputs(network, inputs):
    names = network.input_names
    if isinstance(inputs, dict):
        if set(inputs) != set(names):
            raise ValueError(f"The keys of `inputs` must be {names}. {describe(keys=list(inputs))}")
        inputs = [inputs[name] for name in names]
    elif not isinstance(inputs, list | tuple):
        inputs = [inputs]
    if len(inputs) != len(names):
        raise ValueError(
            f"`inputs` must be {len(names)} arrays, for {', '.join(map(repr, names))}. "
            + describe(number_of_arrays=len(inputs))
        )
    arrays = []
    for name, tensor_name, array in zip(names, network.inputs, inputs, strict=True):
        tensor = network.tensors[tensor_name]
        array = np.asarray(array)
        expected = tuple(tensor.shape)
        fits = array.ndim == len(expected) and all(
            size in (None, got) for size, got in zip(expected, array.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"Input {name!r} must have the shape {expected}. {describe(shape=array.shape)}"
            )
        if tensor.dtype in CODES and array.dtype != tensor.dtype:
            raise ValueError(
                f"Input {name!r} must hold {tensor.dtype} codes. {describe(dtype=array.dtype.name)}"
                " Quantize with the input tensor's scale and zero point."
            )
        arrays.append(array.astype(tensor.dtype, copy=False))
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(
            "All `inputs` must hold the same number of examples. "
            + describe(numbers=[len(array) for array in arrays])
        )
    return arrays


def _check_keep(network, keep):
    if isinstance(keep, str) and keep == "all":
        return [name for node in network.nodes for name in node.outputs]
    known = {*network.inputs, *(name for node in network.nodes for name in node.outputs)}
    for name in keep:
        if name not in known:
            raise ValueError(
                f"`keep` must name tensors that are inputs or that a node writes. "
                f"{describe(name=name)} `network.nodes` holds all names."
            )
    return list(keep)
