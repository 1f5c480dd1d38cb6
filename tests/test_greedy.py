"""The greedy teacher (Eq. 5): the best of all width combinations, found again in NumPy."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import speq_keras
from speq_keras import precision
from speq_keras.training import step

QUANTIZERS = 5


def float_model():
    keras.utils.set_random_seed(3)
    wide = keras.initializers.RandomNormal(stddev=0.6)
    x = inputs = keras.Input((5,), name="x")
    for number in range(QUANTIZERS + 1):
        x = layers.Dense(
            6, "relu", kernel_initializer=wide, bias_initializer=wide, name=f"d{number}"
        )(x)
    x = layers.Dense(3, "softmax", kernel_initializer=wide, name=f"d{QUANTIZERS + 1}")(x)
    return keras.Model(inputs, x)


def numpy_logits(weights, x, a_bits):
    """Runs the wrapped network; "d1" to "d5" have 3-bit weights and read `a_bits`."""
    low, high = weights["x_quantizer/range_low"], weights["x_quantizer/range_high"]
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    x = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    last = QUANTIZERS + 1
    for number, bits in enumerate((*a_bits, 8, 8)):
        kernel = weights[f"d{number}/kernel"]
        ends = number in (0, last)
        scale = np.abs(kernel).max(axis=0) / 127 if ends else np.abs(kernel).max() / 3
        x = x @ (np.round(kernel / scale) * scale) + weights[f"d{number}/bias"]
        if number == last:
            scale = weights[f"d{number}_quantizer/alpha"] / 128
            x = np.clip(np.round(x / scale), -128, 127) * scale
        else:
            scale = weights[f"d{number}_relu_quantizer/alpha"] / (2**bits - 1)
            x = np.clip(np.round(x / scale), 0, 2**bits - 1) * scale
    return x


def cross_entropy(logits, y):
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(y)), y].mean()


def numpy_losses(model, x, y):
    """Returns {widths: task loss} of all 32 combinations."""
    weights = {v.path: v.numpy().astype("float64") for v in model.variables}
    return {
        bits: cross_entropy(numpy_logits(weights, x, bits), y)
        for bits in itertools.product((2, 8), repeat=QUANTIZERS)
    }


def batch(seed):
    random = np.random.default_rng(seed)
    return random.normal(size=(24, 5)).astype("float32"), random.integers(0, 3, 24)


@pytest.fixture(scope="module")
def steps():
    """Trains six steps; returns for each the picked path's loss, and all losses in NumPy."""
    model = speq_keras.wrap(
        float_model(), 3, 2, weight_quantizer="minmax", teacher_precision=precision.Greedy()
    )
    model.calibrate(batch(0)[0], verbose=0)
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    picked = []
    original = step.self_teacher_logits

    def spy(*args):
        logits = original(*args)
        tf.py_function(lambda values: picked.append(values.numpy()), logits, [])
        return logits

    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "self_teacher_logits", spy)
        for seed in range(6):
            x, y = batch(seed)
            losses = numpy_losses(model, x, y)
            model.train_on_batch(x, y)
            rows.append((cross_entropy(picked[-1].astype("float64"), y), losses))
    return rows


def test_picked_path_has_the_least_task_loss_of_all_32(steps):
    for picked, losses in steps:
        assert len(losses) == 32
        assert picked == pytest.approx(min(losses.values()), abs=1e-5)


def test_best_combination_changes_from_step_to_step(steps):
    assert len({min(losses, key=losses.get) for _, losses in steps}) >= 2
