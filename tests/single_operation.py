"""Integer networks of one node, for the tests of the export."""

import numpy as np

from speq_keras.export.tflite.network import IntegerNetwork, Node, Tensor
from speq_keras.export.tflite.runtimes import run_file
from speq_keras.export.tflite.write import write

ALL_CODES = np.arange(-128, 128).astype(np.int8)


def tensor(name, shape, scale=None, zero_point=0, **fields):
    """Returns a tensor whose scales are float32, as in a folded network."""
    scale = None if scale is None else np.asarray(scale, np.float32)[()]
    return Tensor(name=name, shape=shape, scale=scale, zero_point=zero_point, **fields)


def codes(shape, scale, zero_point=0, name="x"):
    return tensor(name, (None, *shape), scale, zero_point)


def constant(name, data, scale, zero_point=0, axis=None, dtype="int8"):
    return tensor(name, data.shape, scale, zero_point, data=data, axis=axis, dtype=dtype)


def single(kind, inputs, output, activation="none", **options):
    """Returns a network of one node; `None` among the inputs is an absent bias."""
    network = IntegerNetwork(name=kind)
    for entry in (*filter(None, inputs), output):
        network.add_tensor(entry)
    network.inputs = [entry.name for entry in inputs if entry and not entry.is_constant]
    network.input_names = list(network.inputs)
    network.outputs = network.output_names = [output.name]
    names = [entry.name if entry else "" for entry in inputs]
    network.nodes = [
        Node(kind=kind, inputs=names, outputs=[output.name], activation=activation, options=options)
    ]
    return network


def run(network, *arrays):
    """Returns what the file computes on the default runtime."""
    return run_file(write(network, batch_size=len(arrays[0])), list(arrays))[0]


def weights(rng, shape, *, axis, step=1):
    """Returns random weight codes, -127 … 127 in multiples of `step`, with per-channel scales."""
    data = (rng.integers(-127 // step, 127 // step + 1, shape) * step).astype(np.int8)
    scales = rng.uniform(0.004, 0.02, shape[axis]).astype(np.float32)
    return constant("weights", data, scales, axis=axis)


def bias(rng, x, filters, spread=5000):
    data = rng.integers(-spread, spread + 1, filters.scale.shape).astype(np.int32)
    return constant("bias", data, x.scale * filters.scale, axis=0, dtype="int32")


def random_codes(rng, *shape):
    return rng.integers(-128, 128, shape).astype(np.int8)
