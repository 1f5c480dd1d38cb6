"""The same step on JAX as on TensorFlow; each backend in a process of its own."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("jax")

STEP = """
import json, sys
import numpy as np
import keras
import speq_keras
from speq_keras import precision

layers = keras.layers
random = np.random.RandomState(0)
inputs = keras.Input((6, 6, 3))
x = layers.Conv2D(4, 3, padding="same", use_bias=False, kernel_regularizer="l2")(inputs)
x = layers.BatchNormalization()(x)
x = layers.ReLU()(x)
x = layers.Conv2D(4, 3, padding="same", activation="swish")(x)
x = layers.GlobalAveragePooling2D()(x)
float_model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
float_model.set_weights([
    w + 0.3 * random.randn(*w.shape).astype("float32") if w.ndim > 1 else w
    for w in [0 * w if w.ndim > 1 else w for w in float_model.get_weights()]
])
images = random.rand(8, 6, 6, 3).astype("float32")
labels = random.randint(0, 3, 8)
precisions = {"fixed": precision.Fixed(8), "greedy": precision.Greedy()}
results = {"backend": keras.backend.backend()}
for name, teacher_precision in precisions.items():
    model = speq_keras.wrap(
        float_model, 3, 3, teacher=float_model, teacher_precision=teacher_precision
    )
    model.calibrate(images, verbose=0)
    results[name + " forward"] = np.asarray(model.predict(images, verbose=0)).tolist()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    history = model.fit(images, labels, batch_size=8, epochs=1, shuffle=False, verbose=0).history
    results[name + " losses"] = [history[key][0] for key in sorted(history)]
    results[name + " keys"] = sorted(history)
    results[name + " weights"] = [np.asarray(w).ravel().tolist() for w in model.get_weights()]
results["float model"] = float(np.abs(float_model.predict(images, verbose=0)).sum())
print(json.dumps(results))
"""


def run_on(backend):
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results():
    return run_on("tensorflow"), run_on("jax")


def test_each_backend_is_the_one_asked_for(results):
    assert [result["backend"] for result in results] == ["tensorflow", "jax"]


@pytest.mark.parametrize("teacher", ["fixed", "greedy"])
def test_forward_pass_agrees_between_backends(results, teacher):
    ours, theirs = (np.array(result[f"{teacher} forward"]) for result in results)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("teacher", ["fixed", "greedy"])
def test_losses_of_a_step_agree_between_backends(results, teacher):
    ours, theirs = (result[f"{teacher} losses"] for result in results)
    assert results[0][f"{teacher} keys"] == results[1][f"{teacher} keys"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("teacher", ["fixed", "greedy"])
def test_weights_after_a_step_agree_between_backends(results, teacher):
    ours, theirs = (result[f"{teacher} weights"] for result in results)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_the_float_model_survives_training_of_its_copy(results):
    # Eight softmax vectors; JAX would have deleted buffers that both models share.
    for result in results:
        assert result["float model"] == pytest.approx(8, abs=1e-4)
