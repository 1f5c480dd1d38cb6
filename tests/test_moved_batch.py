"""Queries, keys and values cut out of one tensor whose batch was moved away from the first axis."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

TIME, SIZE, HEADS = 5, 8, 2

# What makes three tensors (batch, heads, time, size) of one (batch, time, 3, heads, size).
WAYS = {
    "places": lambda x: [ops.transpose(x, (2, 0, 3, 1, 4))[n] for n in range(3)],
    "unstack": lambda x: ops.unstack(ops.transpose(x, (2, 0, 3, 1, 4)), axis=0),
    "split and squeeze": lambda x: [
        ops.squeeze(part, 0) for part in ops.split(ops.transpose(x, (2, 0, 3, 1, 4)), 3, axis=0)
    ],
    "moveaxis": lambda x: [ops.swapaxes(ops.moveaxis(x, 2, 0)[n], 1, 2) for n in range(3)],
    "swapaxes": lambda x: [ops.transpose(ops.swapaxes(x, 0, 2)[n], (1, 2, 0, 3)) for n in range(3)],
    "further parts": lambda x: [
        ops.transpose(x, (2, 0, 3, 1, 4))[n, :, :, : TIME - 1] for n in range(3)
    ],
}


def attention(x, way):
    """Attention as written with one Dense for queries, keys and values."""
    x = layers.Dense(3 * SIZE, name="qkv")(x)
    x = ops.reshape(x, (-1, TIME, 3, HEADS, SIZE // HEADS))
    query, key, value = way(x)
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) * (SIZE // HEADS) ** -0.5
    x = ops.transpose(ops.matmul(ops.softmax(scores), value), (0, 2, 1, 3))
    return ops.reshape(x, (-1, x.shape[1], SIZE))


def network(way):
    keras.utils.set_random_seed(0)
    x = keras.Input((TIME, 4))
    y = layers.Flatten()(attention(layers.Dense(SIZE, name="first")(x), way))
    return keras.Model(x, layers.Dense(3, name="last")(y))


def data(count=24):
    return np.random.default_rng(count).normal(size=(count, TIME, 4)).astype("float32")


@pytest.mark.parametrize("name", WAYS)
def test_the_file_is_integer_and_what_predict_computes(name, tmp_path):
    model = speq_keras.wrap(network(WAYS[name]), 4, 8)
    model.calibrate(data(), verbose=0)
    model.settle()
    report = model.export_tflite(tmp_path / "m.tflite", data=data())
    assert report.proof.holds
    assert not any("Computed in float" in note for note in report.notes)
    found = speq_keras.fold(model).predict(data(40))
    near = np.isclose(found, model.predict(data(40), verbose=0), atol=1e-5)
    assert np.mean(near) > 0.95  # all but ties of float sums


@pytest.mark.parametrize("name", WAYS)
def test_the_graph_computes_the_same(name):
    model = network(WAYS[name])
    wrapped = speq_keras.wrap(model, 8, None, boundary_bits=None, distillation=None)
    wrapped.set_bits(weights=None)
    wanted = model.predict(data(), verbose=0)
    np.testing.assert_allclose(wrapped.predict(data(), verbose=0), wanted, atol=0.02)


def test_a_moved_batch_that_nobody_moves_back_is_refused_by_name():
    x = keras.Input((TIME, 4))
    y = ops.transpose(layers.Dense(SIZE)(x), (1, 0, 2))
    plan = speq_keras.wrap(keras.Model(x, ops.transpose(y + y, (1, 0, 2))), 4, 8).plan()
    assert "the batch has to stay the first axis" in str(plan)
