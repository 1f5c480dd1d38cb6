"""Training that can be killed: checkpoints, a persistent log, and no half-written files.

A resumed run equals an unbroken one, bit for bit, because a checkpoint contains every variable,
including those of the optimizer and of random seeds, and because the stream of batches is
determined by the step number alone. Keras' `fit` is called once per stage, because at its end it
averages weights for optimizers that do so; Keras' epochs are here the pieces between two
checkpoints.
"""

import json
import logging
import os
import pathlib
import shutil
import signal
import tempfile
import threading
import time

import keras
import numpy as np

from devices import is_first_process


def silence_notices():
    """Silences TensorFlow Datasets' messages per file, and TensorFlow's about many functions."""
    for logger in ("absl", "tensorflow"):
        logging.getLogger(logger).setLevel(logging.ERROR)


def write_file(path, write):
    """Calls `write` with a temporary path and moves the file into place: never half a file.

    With several processes, reading a model takes all of them; the first one's file is kept.
    """
    path = pathlib.Path(path)
    is_first = is_first_process()
    try:
        with tempfile.TemporaryDirectory(
            dir=path.parent if is_first else None, prefix=".part_"
        ) as folder:
            target = pathlib.Path(folder, path.name)
            write(target)
            if is_first:
                os.replace(target, path)
    except OSError as error:
        raise SystemExit(f"{path} could not be written ({error}). The old file stays.") from None


def make_folder(path):
    """Makes a folder and its parents, and returns its path, or ends the program."""
    path = pathlib.Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"The folder {path} could not be made ({error}). Pass another.") from None
    return path


def check_same_flags(path, binding, *, flag="--checkpoint_dir"):
    """Ends the program if the checkpoints were made with other flags: results would be mixed.

    Args:
        path: JSON file next to the checkpoints, written if missing.
        binding: {name: value} of the flags that affect training.
        flag: The flag that names the folder.
    """
    if path.exists():
        earlier = json.loads(path.read_text())
        changed = [
            f"--{name}={earlier.get(name)}"
            for name in binding
            if binding[name] != earlier.get(name)
        ]
        if changed:
            raise SystemExit(
                f"The checkpoints in {path.parent} were made with {' '.join(changed)}. "
                f"Pass the same flags again, or another {flag}."
            )
    make_folder(path.parent)
    write_file(path, lambda temporary: temporary.write_text(json.dumps(binding, indent=1)))


def checkpoint_folder(given, out_dir, binding):
    """Returns the folder of the checkpoints: one to resume from, or an empty one in `out_dir`.

    Args:
        given: `--checkpoint_dir`, or None: an earlier run is not resumed.
        out_dir: Folder of the program's files.
        binding: See `check_same_flags`.
    """
    if given:
        folder = pathlib.Path(given).expanduser()
        check_same_flags(folder / "flags.json", binding)
        return folder
    folder = make_folder(pathlib.Path(out_dir, "checkpoints"))
    for path in (*folder.rglob("*.npz"), *folder.rglob("log.jsonl")):
        path.unlink(missing_ok=True)  # another process may have been faster
    return folder


class Checkpoints:
    """The checkpoints of one stage of training, of which only the newest is kept.

    Args:
        folder: Their folder; created if missing.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def newest(self):
        """Returns (number, path) of the newest checkpoint; (0, None) if there is none."""
        return max(
            ((int(path.stem), path) for path in self.folder.glob("*.npz")), default=(0, None)
        )

    def save(self, model, number):
        """Writes all variables of a compiled model, then deletes the previous checkpoint."""
        values = {name: keras.ops.convert_to_numpy(v) for name, v in state(model).items()}

        def write(path):
            with path.open("wb") as file:
                np.savez(file, **values)

        before = list(self.folder.glob("*.npz"))
        path = self.folder / f"{number:08}.npz"
        write_file(path, write)
        if is_first_process():
            for old in before:
                if old != path:
                    old.unlink()

    def restore(self, model):
        """Restores a compiled model's newest state and returns its number; 0 if there is none."""
        number, path = self.newest()
        if path is None:
            return 0
        variables = state(model)
        with np.load(path) as values:
            if set(values) != set(variables):
                raise SystemExit(
                    f"{path} belongs to another network or optimizer. Pass the flags that it was "
                    "made with, or another --checkpoint_dir."
                )
            for name, variable in variables.items():
                variable.assign(values[name])
        return number

    def check_space(self, model):
        """Ends the program if there is no room for two checkpoints, the newest and the next."""
        variables = state(model).values()
        needed = 2 * sum(keras.ops.convert_to_numpy(variable).nbytes for variable in variables)
        _, path = self.newest()
        free = shutil.disk_usage(self.folder).free + (path.stat().st_size if path else 0)
        if free < needed:
            raise SystemExit(
                f"{self.folder} needs room for two checkpoints, {needed / 1e6:.0f} MB, and has "
                f"{free / 1e6:.0f} MB. Free some, or pass another --checkpoint_dir."
            )


def state(model):
    """Returns {name: variable} of everything that training changes, including random seeds."""
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    # Layer names depend on what else was built before; sizes distinguish most networks.
    return {
        f"{group}:{number}:{'x'.join(map(str, variable.shape))}": variable
        for group, variables in groups.items()
        for number, variable in enumerate(variables)
    }


class Interruption(keras.callbacks.Callback):
    """Ends the program between two steps after SIGTERM, which schedulers send before killing."""

    def __init__(self):
        super().__init__()
        self.asked = False

    def on_train_begin(self, logs=None):
        # Only the main thread receives signals.
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self.ask)

    def ask(self, number, frame):
        self.asked = True

    def on_train_batch_end(self, batch, logs=None):
        if self.asked:
            raise SystemExit("Ended by SIGTERM. The same command resumes from the last checkpoint.")

    def on_train_end(self, logs=None):
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.before)


class Log:
    """A file with one JSON object per line, and its rows that are still valid.

    Args:
        path: The file.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        text = self.path.read_text() if self.path.exists() else ""
        # A line cut off when the program was killed is trained again.
        self.rows = [
            json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"
        ]

    def keep(self, wanted):
        """Drops the rows for which `wanted` is false: those after the last checkpoint."""
        self.rows = [row for row in self.rows if wanted(row)]
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        if is_first_process():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, lambda path: path.write_text(lines))

    def append(self, row):
        self.rows.append(row)
        if is_first_process():
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


class Pieces(keras.callbacks.Callback):
    """At the end of each piece, logs and prints the figures, then writes a checkpoint.

    Args:
        stage: Name of the stage.
        log: A `Log`.
        checkpoints: `Checkpoints`.
        steps: Steps per piece.
        pieces_per_epoch: Pieces in one pass over the training images.
        batch_size: Images per step, over all devices and processes.
        steps_per_call: Steps that `fit` counts as one.
        observers: Functions `(model, row, epoch_ends)`, which may add figures to the row.
    """

    def __init__(
        self,
        stage,
        log,
        checkpoints,
        *,
        steps,
        pieces_per_epoch,
        batch_size,
        steps_per_call=1,
        observers=(),
    ):
        super().__init__()
        self.stage = stage
        self.log = log
        self.checkpoints = checkpoints
        self.steps = steps
        self.pieces_per_epoch = pieces_per_epoch
        self.batch_size = batch_size
        self.steps_per_call = steps_per_call
        self.observers = observers

    def on_train_begin(self, logs=None):
        self.first_piece = True

    def on_epoch_begin(self, epoch, logs=None):
        self.piece_start_s = self.start_s = time.perf_counter()
        self.timed_steps = 0

    def on_train_batch_end(self, batch, logs=None):
        # The value of the last batch remains: the time without validation.
        self.end_s = time.perf_counter()
        if self.first_piece and self.steps > self.steps_per_call:
            self.start_s = self.end_s  # the first step is compiled
            self.first_piece = False
        else:
            self.timed_steps += self.steps_per_call

    def on_epoch_end(self, epoch, logs=None):
        model = self.model
        steps_per_s = self.timed_steps / (self.end_s - self.start_s)
        row = {
            "stage": self.stage,
            "epoch": (epoch + 1) / self.pieces_per_epoch,
            "step": (epoch + 1) * self.steps,
            "learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
            "steps_per_s": steps_per_s,
            "images_per_s": steps_per_s * self.batch_size,
            "seconds": self.end_s - self.piece_start_s,
            **{name: float(value) for name, value in logs.items()},
        }
        for observer in self.observers:
            observer(model, row, (epoch + 1) % self.pieces_per_epoch == 0)
        # The log first: then a piece in a checkpoint is always in the log.
        self.log.append(row)
        if is_first_process():
            print(describe(row), flush=True)
        self.checkpoints.save(model, epoch + 1)


def describe(row):
    """Returns one line for the screen."""
    parts = [f"{row['stage']:8} epoch {row['epoch']:7.2f}  step {row['step']:7}"]
    for name, label, unit, form in (
        ("loss", "loss", 1, ".4f"),
        ("distillation_loss", "distillation", 1, ".4f"),
        ("accuracy", "train", 0.01, ".2f"),
        ("val_accuracy", "test", 0.01, ".2f"),
        ("teacher_accuracy", "teacher", 0.01, ".2f"),
        ("steps_per_s", "steps/s", 1, ".2f"),
        ("images_per_s", "images/s", 1, ".0f"),
    ):
        if name in row:
            parts.append(f"{label} {row[name] / unit:{form}}")
    return "  ".join(parts)


def whole_pieces(steps_per_epoch, checkpoint_steps):
    """Returns (pieces per epoch, steps per piece), with at most `checkpoint_steps` steps each.

    Pieces have the same length, so an epoch may have a few more steps than one pass needs.
    """
    pieces = -(-steps_per_epoch // (checkpoint_steps or steps_per_epoch))
    return pieces, -(-steps_per_epoch // pieces)


def fit(
    model,
    stage,
    batches,
    test_batches,
    *,
    epochs,
    steps_per_epoch,
    checkpoint_steps,
    batch_size,
    folder,
    log,
    steps_per_call=1,
    test_batch_size=None,
    observers=(),
    callbacks=(),
):
    """Trains a compiled model, starting from its newest checkpoint if there is one.

    Args:
        model: A compiled Keras model.
        stage: Name of the stage.
        batches: Function of a step number; returns endless batches from that step on.
        test_batches: Data to validate on at the end of each epoch, or None.
        epochs: Passes over the training images.
        steps_per_epoch: Steps of one pass; see `whole_pieces`.
        checkpoint_steps: Most steps between two checkpoints, or None: one per epoch.
        batch_size: Images per step.
        folder: Folder of the checkpoints.
        log: A `Log`.
        steps_per_call: Steps taken with each of the batches.
        test_batch_size: For `test_batches`, if they are arrays.
        observers: As in `Pieces`.
        callbacks: Further Keras callbacks.
    """
    pieces, steps = whole_pieces(steps_per_epoch, checkpoint_steps)
    checkpoints = Checkpoints(folder)
    checkpoints.check_space(model)
    done = checkpoints.restore(model)
    log.keep(lambda row: row["stage"] != stage or row["step"] <= done * steps)
    if done and is_first_process():
        print(f"{stage}: resumes after step {done * steps}", flush=True)
    if done == epochs * pieces:
        model.optimizer.finalize_variable_values(model.trainable_variables)  # as `fit` does
        return
    model.fit(
        batches(done * steps),
        epochs=epochs * pieces,
        initial_epoch=done,
        steps_per_epoch=steps // steps_per_call,
        shuffle=False,  # the stream is already shuffled
        validation_data=test_batches,
        validation_batch_size=test_batch_size,
        validation_freq=pieces,
        verbose=0,
        callbacks=[
            *callbacks,
            Pieces(
                stage,
                log,
                checkpoints,
                steps=steps,
                pieces_per_epoch=pieces,
                batch_size=batch_size,
                steps_per_call=steps_per_call,
                observers=observers,
            ),
            Interruption(),
        ],
    )
