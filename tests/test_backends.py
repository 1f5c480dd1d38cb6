"""Files go from one backend to the other, and JAX does without TensorFlow."""

import numpy as np
import pytest
from fresh_process import result_of

pytest.importorskip("jax")

TRAIN = """
import json, os, sys
if os.environ["KERAS_BACKEND"] == "jax":
    sys.modules["tensorflow"] = None  # as where it is not installed: importing it fails
import keras
import numpy as np
import speq_keras

mode, own, other = sys.argv[1:]
images = np.random.default_rng(0).random((16, 6, 6, 3)).astype("float32")
labels = np.arange(16) % 3
keras.utils.set_random_seed(0)
if mode == "save":
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(4, 1, activation="swish")(layers.Dropout(0.1)(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    model = speq_keras.wrap(model, 3, 3, seed=1)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(images, labels, batch_size=8, epochs=2, verbose=0)
    model.save(own + ".keras")
    path = own
else:
    model = keras.saving.load_model(other + ".keras")
    path = own + "_of_other"
outputs = model.predict(images, verbose=0)
iterations = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
report = model.export_tflite(path + ".tflite", data=images)
if mode == "load":
    history = model.fit(images, labels, batch_size=8, epochs=1, verbose=0).history
print(json.dumps({
    "backend": keras.backend.backend(),
    "outputs": outputs.tolist(),
    "iterations": iterations,
    "proven": report.proof.holds and report.proof.compared > 0,
    "file": open(path + ".tflite", "rb").read().hex(),
    "tensorflow": sorted(n for n in sys.modules if n.split(".")[0] == "tensorflow"
                         and sys.modules[n] is not None),
    "trained_on": mode == "save" or bool(np.isfinite(history["loss"]).all()),
}))
"""
BACKENDS = ("tensorflow", "jax")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Returns what each process found, by (backend, mode); each loads the file of the other."""
    folder = tmp_path_factory.mktemp("files")
    return {
        (backend, mode): result_of(
            TRAIN, mode, folder / backend, folder / other, KERAS_BACKEND=backend
        )
        for mode in ("save", "load")
        for backend, other in (BACKENDS, BACKENDS[::-1])
    }


@pytest.mark.parametrize(("saved_on", "loaded_on"), [BACKENDS, BACKENDS[::-1]])
def test_a_file_of_one_backend_is_the_same_network_on_the_other(results, saved_on, loaded_on):
    saved, loaded = results[saved_on, "save"], results[loaded_on, "load"]
    assert loaded["backend"] == loaded_on
    np.testing.assert_allclose(loaded["outputs"], saved["outputs"], atol=1e-5)
    assert loaded["iterations"] == saved["iterations"] == 4
    assert loaded["trained_on"]


@pytest.mark.parametrize(("saved_on", "loaded_on"), [BACKENDS, BACKENDS[::-1]])
def test_both_backends_export_the_same_bytes(results, saved_on, loaded_on):
    assert results[loaded_on, "load"]["file"] == results[saved_on, "save"]["file"]


@pytest.mark.parametrize("mode", ["save", "load"])
def test_jax_trains_saves_loads_and_exports_where_tensorflow_cannot_be_imported(results, mode):
    found = results["jax", mode]
    assert found["proven"]
    assert found["tensorflow"] == []
