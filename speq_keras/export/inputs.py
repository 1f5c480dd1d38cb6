"""Random inputs for the proof that fill the trained ranges, and their form for a file."""

import numpy as np

from speq_keras.export.tflite.network import CODES

GENERATED_EXAMPLES = 4


def generate_inputs(folded, seed=0):
    """Returns `GENERATED_EXAMPLES` random examples for a `FoldedNetwork`, one array per input.

    They fill the trained ranges of the inputs and the tables, and are of different kinds: noise,
    levels, ramps, sparse values. With noise alone, the means of all examples would be equal, and
    layers after them would show a single code.
    """
    rng = np.random.default_rng(seed)
    readers = {id(step.inputs[0]): step for step in folded.steps if step.inputs}
    return [_array(rng, value, readers.get(id(value)), seed) for value in folded.inputs]


def _array(rng, value, reader, seed):
    shape = (GENERATED_EXAMPLES, *value.shape[1:])
    if value.dtype == "int32":  # positions in a table, or a mask
        is_table = reader is not None and reader.kind == "embedding"
        if value.whole and not is_table:
            return rng.integers(value.whole[0], value.whole[1] + 1, shape, dtype="int32")
        rows = len(reader.codes) if is_table else 2
        return rng.integers(0, rows, shape, dtype="int32")
    low, high = -3.0, 3.0  # the range of a float layer is unknown
    if reader is not None and reader.kind == "quantize":
        grid = reader.output.grid
        low, high = grid.low * np.float64(grid.scale), grid.high * np.float64(grid.scale)
    kinds = [_KINDS[(seed * GENERATED_EXAMPLES + i) % len(_KINDS)] for i in range(shape[0])]
    shares = np.stack([np.broadcast_to(kind(rng, shape[1:]), shape[1:]) for kind in kinds])
    values = low + np.clip(shares, 0, 1) * (high - low)
    return (np.rint(values) if value.whole else values).astype("float32")


# Each returns numbers from 0 to 1, fractions of a range, in a shape that broadcasts to `shape`.


def _noise(rng, shape):
    return rng.uniform(size=shape)


def _level(rng, shape):
    return rng.uniform() + rng.uniform(-0.1, 0.1, size=shape)


def _ramps(rng, shape):
    share = rng.uniform(size=shape[-1:])
    for axis, size in enumerate(shape):
        ramp = np.linspace(0, rng.uniform(-1, 1), size)
        share = share + ramp.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return share


def _sparse(rng, shape):
    return np.where(rng.uniform(size=shape) < 0.1, rng.uniform(size=shape), rng.uniform())


def _normal(rng, shape):
    return rng.normal(0.5, 0.2, size=shape)


_KINDS = (_noise, _ramps, _level, _sparse, _normal)


def as_network_inputs(folded, network, arrays):
    """Returns float inputs in the type of the network's inputs: codes if it reads codes."""
    readers = {id(step.inputs[0]): step for step in folded.steps if step.kind == "quantize"}
    converted = []
    for value, name, array in zip(folded.inputs, network.inputs, arrays, strict=True):
        tensor = network.tensors[name]
        if tensor.dtype in CODES:
            codes = readers[id(value)].output.grid.round(array)
            array = (codes + tensor.zero_point).astype(tensor.dtype)
        elif tensor.dtype == "float32":
            array = np.asarray(array, "float32")  # also from integers
        converted.append(np.asarray(array))
    return converted
