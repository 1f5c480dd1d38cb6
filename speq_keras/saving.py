"""`save` and `save_weights` as in Keras, but not in place: existing files stay intact."""

import functools
import os
import pathlib
import warnings

import keras

from speq_keras.files import check_folder, check_path
from speq_keras.processes import discarded, is_first_process, path_to_write, process_count

# What Keras takes for remote paths, besides those with "://".
_REMOTE = ("/cns", "/cfs", "/gcs", "/hdfs", "/readahead", "/placer", "/tfhub")


class SafeSaving:
    """Keeps the files of a Keras model complete at every moment, even if saved by a callback.

    It precedes the Keras model in the list of bases, and is not a model itself: Keras changes the
    bases of a Functional model's classes, so they could serve no other model.

    `keras.saving.save_model(model, path)`, the function, is Keras' own and writes in place.
    """

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Saves the model to a new file, which then replaces an existing one.

        If the process is killed or the disk is full, either the old or the new file remains. A
        folder (`zipped=False`) is replaced file by file at the end. Remote paths (`hf://`, `gs://`,
        ...) are left to Keras. With several processes, all must call this, and the first one
        writes.

        Args:
            filepath: Path that ends in .keras, or in .h5 or .hdf5 for Keras' legacy format; with
                `zipped=False`, of a folder. A link to a file is followed.
            overwrite: Whether to replace an existing file without asking.
            zipped: As in `keras.Model.save`.
            **kwargs: As in `keras.Model.save`.

        Raises:
            ValueError: If nothing can be written to `filepath`; before any work is done.
            OSError: If the disk is full or fails; nothing is left behind.
        """
        write = functools.partial(super().save, zipped=zipped, **kwargs)
        path = _local(filepath)
        is_folder = zipped is not None and not zipped
        if path is not None:
            path = _path_of_model(path, is_folder)
        _write(path, filepath, write, overwrite)

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """Saves the weights to a new file, which then replaces an existing one.

        Like `save`. Of several files (`max_shard_size`) the .weights.json is replaced last.

        Args:
            filepath: Path that ends in .weights.h5, or with `max_shard_size` in .weights.json.
            overwrite: Whether to replace an existing file without asking.
            max_shard_size: Size of the largest file in GB, or None: a single file.

        Raises:
            ValueError: If nothing can be written to `filepath`; before any work is done.
            OSError: If the disk is full or fails; nothing is left behind.

        Example:
            >>> import keras, os, speq_keras, tempfile
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save_weights(f"{folder}/m.weights.h5")
            ...     os.listdir(folder)
            ['m.weights.h5']
        """
        write = functools.partial(super().save_weights, max_shard_size=max_shard_size)
        path = _local(filepath)
        if path is not None:
            path = _path_of_weights(path, max_shard_size is not None)
        _write(path, filepath, write, overwrite)


def compile_from_config(model, config):
    """Compiles a loaded model: Keras skips classes that define their own `compile`."""
    model.compile(**keras.saving.deserialize_keras_object(config))
    if model.optimizer is not None and model.built:
        model.optimizer.build(model.trainable_variables)


def _write(path, filepath, write, overwrite):
    """Lets Keras write to a different path than the one that it is meant for.

    Args:
        path: Checked local path; None: Keras gets `filepath`, and reports any problem.
        filepath: What the user passed.
        write: Keras' method, called as `write(target, overwrite=...)`.
        overwrite: Whether to skip asking.
    """
    first = is_first_process()
    if path is None:
        if first or not isinstance(filepath, str | os.PathLike):
            write(filepath, overwrite=overwrite)
            return
        with discarded(filepath) as target:
            write(target, overwrite=overwrite)
        return
    stays = first and not overwrite and path.exists() and not _may_replace(filepath)
    if stays and process_count() == 1:
        return
    # The other processes continue, and need the first one to read the variables.
    with (discarded if stays else path_to_write)(path) as target:
        write(target, overwrite=True)


def _local(filepath):
    """Returns the path of a local file as text; None for everything else."""
    if isinstance(filepath, os.PathLike):
        filepath = os.fspath(filepath)
    if not isinstance(filepath, str) or "://" in filepath:
        return None
    # If mounted, such a folder is an ordinary one.
    if filepath.startswith(_REMOTE) and not os.path.isdir(os.path.dirname(filepath)):
        return None
    return filepath


def _path_of_model(text, is_folder):
    """Returns the path that `save` writes, checked; None for a name that Keras refuses."""
    is_keras, is_legacy = text.endswith(".keras"), text.endswith((".h5", ".hdf5"))
    if is_keras if is_folder else not (is_keras or is_legacy):
        return None
    if not is_first_process():
        return pathlib.Path(text)
    if is_folder:
        path = check_folder(text, name="filepath")
    else:
        path = check_path(text, name="filepath", suffix=None, in_new_folder=is_legacy)
    if is_folder or is_legacy:  # Keras creates the folders for these
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _path_of_weights(text, sharded):
    """Returns the path that `save_weights` writes, checked; None for a name that Keras refuses."""
    if not text.endswith(("weights.h5", "weights.json") if sharded else ".weights.h5"):
        return None
    path = pathlib.Path(text)
    if sharded and path.suffix != ".json":
        path = path.with_suffix(".json")
        warnings.warn(
            "Saving sharded weights requires `*.json` as the extension. The original path: "
            f"{text} will be renamed to {path}.",
            stacklevel=3,
        )
    if not is_first_process():
        return path
    check_path(path, name="filepath", suffix=None)
    if sharded:
        check_path(path.with_name(_first_shard(path)), name="filepath", suffix=None)
    return path


def _first_shard(path):
    """Returns Keras' name for the first of several weight files."""
    return f"{path.stem.replace('.weights', '')}_00000.weights.h5"


def _may_replace(filepath):
    """Asks, like Keras, whether a file may be replaced."""
    reply = input(f"[WARNING] {filepath} already exists - overwrite? [y/n]").strip().lower()
    while reply not in ("y", "n"):
        reply = input('Enter "y" (overwrite) or "n" (cancel).').strip().lower()
    if reply == "y":
        print("[TIP] Next time specify overwrite=True!")
    return reply == "y"
