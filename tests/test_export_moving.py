"""Operations that copy codes: one row for each, and all that has to be true of it.

A row is what Keras is called with, the record's options, and the same in NumPy, written again.
"""

import dataclasses
import typing

import keras
import numpy as np
import pytest
from integer_networks import codes, random_codes, run, single, tensor
from keras import layers, ops

import speq_keras
from speq_keras.export.tflite import moving
from speq_keras.export.tflite.operations import OPS
from speq_keras.export.tflite.simulate import simulate

pytestmark = pytest.mark.tensorflow
SHAPE = (6, 8, 4)


@dataclasses.dataclass
class Case:
    """One operation on images of `SHAPE`.

    Attributes:
        keras: (x) -> the same in Keras.
        numpy: (array) -> the same in NumPy.
        options: Those of the node in the file.
    """

    keras: typing.Callable
    numpy: typing.Callable
    options: dict


def blocks_to_pixels(x):
    """Out of 4 channels 2×2 pixels of one, row by row."""
    y = np.zeros((len(x), 12, 16, 1), x.dtype)
    for row, column in np.ndindex(2, 2):
        y[:, row::2, column::2, 0] = x[..., 2 * row + column]
    return y


def _lowest(x):
    return -np.inf if x.dtype == "float32" else np.iinfo(x.dtype).min


_WIDER = [(0, 0), (1, 2), (0, 3), (0, 0)]
CASES = {
    "concatenation": Case(
        lambda x: layers.Concatenate(axis=2)([x, x]),
        lambda x: np.concatenate([x, x], axis=2),
        {"axis": 2},
    ),
    "reshape": Case(
        layers.Reshape((48, 4)),
        lambda x: x.reshape(len(x), 48, 4),
        {"shape": (None, 48, 4)},
    ),
    "transpose": Case(
        layers.Permute((2, 1, 3)),
        lambda x: x.swapaxes(1, 2),
        {"permutation": (0, 2, 1, 3)},
    ),
    "pad": Case(
        layers.ZeroPadding2D(((1, 2), (0, 3))),
        # Nothing but what is added is 0 here: `stored` says what 0 is.
        lambda x, zero=0: np.stack([np.pad(y, _WIDER[1:], constant_values=zero) for y in x]),
        {"paddings": _WIDER},
    ),
    "pad_constant": Case(
        lambda x: ops.pad(x, _WIDER, constant_values=-np.inf),
        lambda x: np.stack([np.pad(y, _WIDER[1:], constant_values=_lowest(y)) for y in x]),
        {"paddings": _WIDER, "constant": -np.inf},
    ),
    "mirror_pad": Case(
        lambda x: ops.pad(x, _WIDER, mode="reflect"),
        lambda x: x[:, [1, *range(6), 4, 3]][:, :, [*range(8), 6, 5, 4]],
        {"paddings": _WIDER, "mode": "reflect"},
    ),
    "strided_slice": Case(
        lambda x: x[:, 1:6:2, 2:],
        lambda x: np.stack([x[:, 1], x[:, 3], x[:, 5]], axis=1)[:, :, 2:],
        {"begin": (0, 1, 2, 0), "end": (None, 6, 8, 4), "strides": (1, 2, 1, 1)},
    ),
    "depth_to_space": Case(
        lambda x: ops.depth_to_space(x, 2),
        blocks_to_pixels,
        {"block_size": 2},
    ),
}


# What becomes nodes with constants, or several: {name: (kind of a node, Keras, NumPy)}.
OTHERS = {
    "flip": ("gather", lambda x: ops.flip(x, 1), lambda x: x[:, ::-1]),
    "flip of two axes": ("gather", lambda x: ops.flip(x, (1, -1)), lambda x: x[:, ::-1, :, ::-1]),
    "roll": ("gather", lambda x: ops.roll(x, -3, 2), lambda x: x[:, :, [3, 4, 5, 6, 7, 0, 1, 2]]),
    "roll of two axes": (
        "gather",
        lambda x: ops.roll(x, (1, 2), (1, 2)),
        lambda x: x[:, [5, 0, 1, 2, 3, 4]][:, :, [6, 7, 0, 1, 2, 3, 4, 5]],
    ),
    "tile": ("gather", lambda x: ops.tile(x, (1, 2, 1, 1)), lambda x: np.concatenate([x, x], 1)),
    "tile of two axes": (
        "gather",
        lambda x: ops.tile(x, (1, 1, 2, 3)),
        lambda x: np.concatenate([np.concatenate([x, x], 2)] * 3, 3),
    ),
    "tile of nothing": ("reshape", lambda x: ops.tile(x, (1, 1, 1, 1)), lambda x: x),
    "take": ("gather", lambda x: ops.take(x, [4, 0, -1], axis=1), lambda x: x[:, [4, 0, 5]]),
    "take one": ("gather", lambda x: ops.take(x, 2, axis=3), lambda x: x[..., 2]),
    "repeat": (
        "gather",
        lambda x: ops.repeat(x, 2, axis=3),
        lambda x: x[..., [0, 0, 1, 1, 2, 2, 3, 3]],
    ),
    "RepeatVector": (
        "gather",
        lambda x: layers.RepeatVector(3)(layers.Flatten()(x)),
        lambda x: np.stack([x.reshape(len(x), -1)] * 3, 1),
    ),
    "max": ("reduce_max", lambda x: ops.max(x, axis=(1, 2)), lambda x: x.max((1, 2))),
    "max of channels": (
        "reduce_max",
        lambda x: ops.max(x, axis=-1, keepdims=True),
        lambda x: x.max(3, keepdims=True),
    ),
    "min": ("reduce_min", lambda x: ops.min(x, axis=1), lambda x: x.min(1)),
}
NETWORKS = {**{kind: (kind, case.keras, case.numpy) for kind, case in CASES.items()}, **OTHERS}
# Nothing but a maximum may read it.
NETWORKS["pad_constant"] = (
    "pad_constant",
    lambda x: ops.max_pool(ops.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0)], constant_values=-1e9), 2),
    lambda x: np.stack(
        [x[:, rows].max(1).reshape(-1, 4, 2, 4).max(2) for rows in ([0], [1, 2], [3, 4], [5])], 1
    ),
)


def test_every_operation_that_copies_has_a_row():
    assert set(moving.OPS) == {*CASES, "gather", "split", "unpack"}


@pytest.mark.parametrize("name", NETWORKS)
def test_numpy_is_keras(name):
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype("float32")
    _, in_keras, in_numpy = NETWORKS[name]
    np.testing.assert_array_equal(in_keras(x), in_numpy(x))


def check_node(kind, x, made, **ends):
    """Compares file and simulation of a network of one node with what it should make of `x`."""
    inputs = [codes(SHAPE, **ends) if ends else tensor("x", (None, *SHAPE), dtype="float32")]
    if kind == "concatenation":
        inputs.append(dataclasses.replace(inputs[0], name="other"))
    y = dataclasses.replace(inputs[0], name="y", shape=(None, *made.shape[1:]))
    network = single(kind, inputs, y, **CASES[kind].options)
    np.testing.assert_array_equal(run(network, *[x] * len(inputs)), made)
    np.testing.assert_array_equal(simulate(network, [x] * len(inputs))[0], made)


@pytest.mark.parametrize("kind", CASES)
def test_the_file_copies_codes(kind):
    x = random_codes(1, 3, *SHAPE)
    made = CASES[kind].numpy(x, zero=-7) if kind == "pad" else CASES[kind].numpy(x)
    check_node(kind, x, made, scale=0.1, zero_point=-7)


@pytest.mark.parametrize("kind", CASES)
def test_the_file_copies_floats(kind):
    x = np.random.default_rng(2).normal(size=(3, *SHAPE)).astype("float32")
    check_node(kind, x, CASES[kind].numpy(x))


def trained(name, **arguments):
    """Returns a model with the operation among quantized layers, or between two in float."""
    inputs = keras.Input((6, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="before")(inputs)
    x = layers.Activation("tanh", name="island")(x) if arguments else x
    x = NETWORKS[name][1](x)
    x = layers.LayerNormalization(name="norm")(x) if arguments else x
    x = layers.Flatten()(layers.Dense(3, name="after")(x))
    model = speq_keras.wrap(
        keras.Model(inputs, layers.Dense(2)(x)), 3, 3, distillation=None, **arguments
    )
    model.calibrate(np.random.default_rng(3).normal(size=(8, 6, 8, 3)), verbose=0)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_network_is_its_file(name, tmp_path):
    kind, model = NETWORKS[name][0], trained(name)
    assert not model.plan().file.islands
    report = model.export_tflite(tmp_path / "m.tflite")
    network = speq_keras.fold(model).network
    found = [node for node in network.nodes if node.kind == kind]
    assert found
    for node in found:
        ends = [network.tensors[name] for name in (node.inputs[0], node.output)]
        assert (ends[0].scale, ends[0].zero_point) == (ends[1].scale, ends[1].zero_point)
    assert report.proof.holds
    assert report.proof.mismatches == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_float_island_is_its_file(name, tmp_path):
    kind, model = NETWORKS[name][0], trained(name, skip=["island"])
    report = model.export_tflite(tmp_path / "m.tflite")
    network = speq_keras.fold(model).network
    kinds = {
        node.kind
        for node in network.nodes
        if network.tensors[node.output].dtype == "float32" and node.kind != "dequantize"
    }
    assert kind in kinds
    assert report.proof.holds


def test_what_copies_says_so():
    assert all(OPS[kind].copies for kind in moving.OPS)
