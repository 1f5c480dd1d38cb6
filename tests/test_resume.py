"""Training that is interrupted ends where training without a break does, bit for bit."""

import keras
import numpy as np
import pytest
from dense_network import compiled, data, float_model, quantized_model
from fresh_process import run

# Arguments: folder of the backup, file for the weights, seed, step after which the process dies.
TRAINING = """
import os, sys
import keras, numpy as np
from dense_network import data, float_model, quantized_model, values

backup, weights, seed, last_step = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

class Dies(keras.callbacks.Callback):
    steps = 0
    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == last_step:
            os._exit(17)

x, y = data(examples=24)
model = quantized_model(
    float_model(seed=seed, batch_norm=True, dropout=0.5, dropout_seed=seed), seed=seed
)
model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
callbacks = [keras.callbacks.BackupAndRestore(backup), Dies()]
model.fit(x, y, batch_size=8, epochs=4, shuffle=False, callbacks=callbacks, verbose=0)
np.savez(weights, **{path.replace("/", "|"): v for path, v in values(model.weights).items()})
"""


def test_training_killed_in_mid_epoch_and_resumed_is_the_unbroken_one(tmp_path):
    unbroken, resumed = tmp_path / "unbroken.npz", tmp_path / "resumed.npz"
    whole = run(TRAINING, tmp_path / "a", unbroken, 1, -1)
    # Epochs have 3 steps: this one dies in the middle of the third epoch.
    killed = run(TRAINING, tmp_path / "b", resumed, 1, 8)
    # Another seed: weights, dropout masks and draws can only come from the backup.
    again = run(TRAINING, tmp_path / "b", resumed, 2, -1)
    codes = [process.returncode for process in (whole, killed, again)]
    assert codes == [0, 17, 0], again.stderr[-2000:]
    expected, found = np.load(unbroken), np.load(resumed)
    assert set(expected) == set(found)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def model_in_training():
    model = quantized_model(float_model(batch_norm=True, dropout=0.5))
    return compiled(model, optimizer=keras.optimizers.Adam(0.01))


def train(model):
    x, y = data()
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)


def assert_equal_state(model, expected):
    for mine, theirs in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(mine.value, theirs.value, err_msg=theirs.path)


def test_training_goes_on_after_loading_as_if_nothing_had_been(tmp_path):
    model = model_in_training()
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    train(model)
    train(loaded)
    assert_equal_state(loaded, model)


def test_weights_file_holds_optimizer_draws_and_dropout_seeds(tmp_path):
    model = model_in_training()
    train(model)
    model.save_weights(tmp_path / "model.weights.h5")
    other = model_in_training()
    train(other)
    train(other)
    other.load_weights(tmp_path / "model.weights.h5")
    train(model)
    train(other)
    assert_equal_state(other, model)


def test_loss_weights_are_loaded(tmp_path):
    model = compiled(quantized_model(), loss_weights=0.25)
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").loss_weights == 0.25


def test_external_teacher_is_asked_for_after_loading(tmp_path):
    x, y = data()
    model = compiled(quantized_model(teacher=float_model(seed=9)))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    with pytest.raises(RuntimeError, match="external teacher.*Set `model.teacher`"):
        loaded.fit(x, y)


def test_external_teacher_set_after_loading_trains_on(tmp_path):
    model = compiled(quantized_model(teacher=float_model(seed=9)))
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    loaded.teacher = float_model(seed=9)
    train(model)
    train(loaded)
    assert_equal_state(loaded, model)
