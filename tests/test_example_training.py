"""`examples/training_run.py`: a run that was killed ends as the unbroken one, and loses nothing."""

import json
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import speq_keras

pytestmark = pytest.mark.usefixtures("examples_on_the_path")

STEPS_PER_EPOCH = 6
CHECKPOINT_STEPS = 3
BATCH = 8


def batches(first_step):
    """Batches that follow from the number of their step."""

    def batch(step):
        seed = tf.stack([tf.constant(7, "int64"), step])
        images = tf.random.stateless_uniform((BATCH, 6, 6, 3), seed)
        labels = tf.random.stateless_uniform((BATCH,), seed, maxval=3, dtype="int32")
        return images, tf.one_hot(labels, 3)

    return tf.data.Dataset.range(first_step, 10**6).map(batch)


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x)))
    return keras.Model(inputs, layers.Dense(3)(x))


def wrapped():
    model = speq_keras.wrap(network(), 3, 3, seed=1)
    model.calibrate(next(iter(batches(0)))[0], verbose=0)
    return model


def run(make, folder, *, ema=False, callbacks=()):
    """Trains for two epochs, from the newest checkpoint on; returns model and log."""
    import training_run

    model = make()
    schedule = keras.optimizers.schedules.CosineDecay(0.05, 2 * STEPS_PER_EPOCH)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, use_ema=ema, ema_momentum=0.8)
    model.compile(
        optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    log = training_run.Log(folder / "log.jsonl")
    swap = [keras.callbacks.SwapEMAWeights()] if ema else []
    training_run.fit(
        model,
        "stage",
        batches,
        batches(10**5).take(2),
        epochs=2,
        steps_per_epoch=STEPS_PER_EPOCH,
        checkpoint_steps=CHECKPOINT_STEPS,
        batch_size=BATCH,
        folder=folder / "stage",
        log=log,
        callbacks=[*swap, *callbacks],
    )
    return model, log


class KillAt(keras.callbacks.Callback):
    """Stands for the end of the process in the middle of a piece."""

    def __init__(self, step, how):
        super().__init__()
        self.step, self.how, self.steps = step, how, 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == self.step:
            self.how()


def kill():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("make", "ema", "step"), [(network, False, 8), (wrapped, False, 2), (wrapped, True, 8)]
)
def test_a_killed_run_ends_with_the_weights_of_the_unbroken_one(tmp_path, make, ema, step):
    expected, expected_log = run(make, tmp_path / "unbroken", ema=ema)
    with pytest.raises(KeyboardInterrupt):
        run(make, tmp_path / "killed", ema=ema, callbacks=[KillAt(step, kill)])
    model, log = run(make, tmp_path / "killed", ema=ema)
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [row["step"] for row in log.rows] == [3, 6, 9, 12]
    for ours, theirs in zip(log.rows, expected_log.rows, strict=True):
        assert ours["loss"] == theirs["loss"]
        assert ours.get("val_loss") == theirs.get("val_loss")


def test_a_finished_stage_is_loaded_and_not_trained_again(tmp_path):
    expected, _ = run(wrapped, tmp_path, ema=True)
    model, log = run(wrapped, tmp_path, ema=True, callbacks=[KillAt(1, kill)])
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(log.rows) == 4


def test_sigterm_ends_the_run_between_two_steps_and_says_how_to_go_on(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match=r"SIGTERM\. The same command resumes"):
            run(network, tmp_path, callbacks=[KillAt(5, lambda: signal.raise_signal(15))])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["00000001.npz"]


def test_a_folder_that_cannot_be_made_ends_the_program_with_a_sentence(tmp_path):
    import training_run

    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file/a could not be made .*Pass another"):
        training_run.check_same_flags(tmp_path / "file" / "a" / "flags.json", {})


def test_a_line_of_the_log_that_was_cut_off_is_dropped(tmp_path):
    import training_run

    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    log = training_run.Log(tmp_path / "log.jsonl")
    assert log.rows == [{"step": 1}, {"step": 2}]
    log.keep(lambda row: row["step"] < 2)
    log.append({"step": 5})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 5]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    import training_run

    model, _ = run(network, tmp_path)
    checkpoints = training_run.Checkpoints(tmp_path / "stage")
    number, path = checkpoints.newest()
    content = path.read_bytes()

    def full(file, **values):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(SystemExit, match=r"could not be written \(.*No space left.*stays"):
        checkpoints.save(model, number + 1)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == content


def test_too_little_room_is_found_before_any_training(tmp_path, monkeypatch):
    import training_run

    usage = training_run.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(training_run.shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    with pytest.raises(SystemExit, match=r"needs room for two checkpoints, .* MB, and has 0 MB"):
        run(network, tmp_path, callbacks=[KillAt(1, kill)])


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run(network, tmp_path)
    with pytest.raises(SystemExit, match="belongs to another network or optimizer"):
        run(wrapped, tmp_path)


def test_other_flags_than_those_of_the_checkpoints_are_named(tmp_path):
    import training_run

    path = tmp_path / "flags.json"
    training_run.check_same_flags(path, {"w_bits": "3", "seed": 0})
    training_run.check_same_flags(path, {"w_bits": "3", "seed": 0})
    with pytest.raises(SystemExit, match=r"were made with --w_bits=3\. Pass the same"):
        training_run.check_same_flags(path, {"w_bits": "4", "seed": 0})


@pytest.mark.parametrize(
    ("steps", "most", "pieces"),
    [
        (390, 130, (3, 130)),
        (101, 30, (4, 26)),
        (7, None, (1, 7)),
        (5, 100, (1, 5)),
        (104, 30, (4, 26)),
    ],
)
def test_an_epoch_is_cut_into_equal_pieces(steps, most, pieces):
    import training_run

    assert training_run.whole_pieces(steps, most) == pieces


def test_a_stream_of_small_images_that_begins_later_goes_on_with_the_same_batches():
    import cifar_stream

    images = np.arange(10 * 8 * 8 * 3).reshape(10, 8, 8, 3) % 256
    stream = cifar_stream.TrainingStream(
        images, np.arange(10), seed=3, batch_size=4, steps_per_epoch=2, first_step=1
    )
    whole = list(stream.batches(0).take(5).as_numpy_iterator())
    later = list(stream.batches(3).take(2).as_numpy_iterator())
    for ours, theirs in zip(later, whole[3:], strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
