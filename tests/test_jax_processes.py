"""One model on several devices and in several processes, on JAX under `keras.distribution`."""

import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

import speq_keras  # noqa: F401  registers the classes of saved models

pytest.importorskip("jax")

PROGRAM = """
import json, os, sys
processes, process, devices, port, with_state, folder = json.loads(sys.argv[1])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
import jax
if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
import keras
import numpy as np
if processes > 1:
    keras.distribution.initialize(f"127.0.0.1:{port}", processes, process)
if processes * devices > 1:
    all_devices = keras.distribution.list_devices()
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=all_devices, auto_shard_dataset=False)
    )
import speq_keras

keras.utils.set_random_seed(0)
layers = keras.layers
inputs = keras.Input((6, 6, 3))
x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
if with_state:
    x = layers.Dropout(0.2)(layers.BatchNormalization()(x))
x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
x = layers.GlobalAveragePooling2D()(x)
float_model = keras.Model(inputs, layers.Dense(4, activation="softmax")(x))
model = speq_keras.wrap(float_model, 3, 3)
random = np.random.default_rng(0)
images = random.random((64, 6, 6, 3)).astype("float32")
labels = random.integers(0, 4, 64)
# The others' data must not count.
model.calibrate(images[: 16 + 4 * process], verbose=0)

def part(array):
    batches = array.reshape(4, processes, 16 // processes, *array.shape[1:])
    return batches[:, process].reshape(-1, *array.shape[1:])

callbacks = []
if processes > 1:
    own = slice(8 * process, None)  # the first one's data have to count
    pictures = os.path.join(folder, f"pictures_{process}")
    callbacks = [
        speq_keras.callbacks.PrecisionReport((images[own], labels[own])),
        speq_keras.callbacks.ActivationSnapshot(images[own], pictures),
    ]
model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
history = model.fit(
    part(images),
    part(labels),
    batch_size=16 // processes,
    epochs=2,
    shuffle=False,
    verbose=0,
    callbacks=callbacks,
).history
model.reestimate_batch_norm(images[:16])
for name, save in (("keras", model.save), ("weights.h5", model.save_weights)):
    save(os.path.join(folder, f"{process}.{name}"))
path = os.path.join(folder, f"{process}.tflite")
report = model.export_tflite(path)
print(json.dumps({
    "history": history,
    "weights": [np.asarray(w).ravel().tolist() for w in model.get_weights()],
    "draws": np.asarray(model.draw_seed.state.value).tolist(),
    "proof_holds": report.proof.holds,
    "wrote_file": os.path.exists(path),
    "saved": sorted(n for n in os.listdir(folder) if n.startswith(str(process))),
    "folder": folder,
}))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(folder, processes=1, devices=1, with_state=False):
    """Returns what every process printed."""
    port = free_port()
    environment = {**os.environ, "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                PROGRAM,
                json.dumps([processes, number, devices, port, with_state, str(folder)]),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=500) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, error) in zip(running, outputs, strict=True):
        assert process.returncode == 0, error[-2000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone"))[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return run(tmp_path_factory.mktemp("pair"), processes=2)


def assert_equal_weights(ours, theirs):
    for mine, other in zip(ours["weights"], theirs["weights"], strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_two_processes_end_with_the_weights_of_one(alone, pair):
    for result in pair:
        assert_equal_weights(result, alone)


def test_two_processes_report_the_losses_of_one(alone, pair):
    for result in pair:
        for name, values in alone["history"].items():
            np.testing.assert_allclose(result["history"][name], values, atol=1e-5)


def test_all_processes_use_one_draw(pair):
    assert pair[0]["draws"] == pair[1]["draws"]


def test_only_the_first_process_writes_the_file(pair):
    assert [result["wrote_file"] for result in pair] == [True, False]
    assert all(result["proof_holds"] for result in pair)


def test_only_the_first_process_saves_models_and_weights(pair):
    assert pair[0]["saved"] == ["0.keras", "0.tflite", "0.weights.h5"]
    assert pair[1]["saved"] == []
    saved = keras.saving.load_model(os.path.join(pair[0]["folder"], "0.keras"), compile=False)
    for mine, other in zip(saved.get_weights(), pair[0]["weights"], strict=True):
        np.testing.assert_array_equal(mine.ravel(), np.float32(other))


def test_callbacks_write_in_the_first_process_and_report_its_figures_in_all(pair):
    names = sorted(name for name in os.listdir(pair[0]["folder"]) if name.startswith("pictures"))
    assert names == ["pictures_0"]
    for name in ("student_accuracy", "teacher_accuracy", "agreement", "distance"):
        assert pair[0]["history"][name] == pair[1]["history"][name]


def test_two_devices_end_with_the_weights_of_one(alone, tmp_path):
    assert_equal_weights(run(tmp_path, devices=2)[0], alone)


def test_two_processes_train_with_batch_normalization_and_dropout(tmp_path):
    first, second = run(tmp_path, processes=2, with_state=True)
    assert_equal_weights(first, second)
    assert first["history"]["distillation_loss"][0] > 0
