"""CIFAR-10 or CIFAR-100 in memory, from TensorFlow Datasets or from an .npz file."""

import pathlib

import numpy as np

ARRAYS = ("x_train", "y_train", "x_test", "y_test")


def load(data_dir, *, download, train_examples, test_examples, name="cifar10"):
    """Loads training and test images, the first of each part.

    Args:
        data_dir: Folder of TensorFlow Datasets, or None for its default; or an .npz file with the
            arrays x_train, y_train, x_test and y_test, which needs no TensorFlow.
        download: Whether to download it (170 MB) if it is not there.
        train_examples: Number of training images, up to 50,000.
        test_examples: Number of test images, up to 10,000.
        name: "cifar10" or "cifar100".

    Returns:
        Training images (uint8) and labels, test images and labels: four arrays.

    Raises:
        FileNotFoundError: If the data set is missing and `download` is False.
    """
    if data_dir and pathlib.Path(data_dir).suffix == ".npz":
        return load_npz(data_dir, train_examples, test_examples)
    import tensorflow_datasets as tfds  # needs TensorFlow, on every backend

    builder = tfds.builder(name, data_dir=data_dir)
    if download:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise FileNotFoundError(
            f"{name} was not found at {builder.data_path}: pass --data_dir with the folder that "
            f"contains {name}/, or --download to fetch it (170 MB)."
        )
    splits = [f"train[:{train_examples}]", f"test[:{test_examples}]"]
    train, test = tfds.as_numpy(builder.as_dataset(split=splits, batch_size=-1))
    return train["image"], train["label"], test["image"], test["label"]


def load_npz(path, train_examples, test_examples):
    """Returns the four arrays of an .npz file, cut to these numbers of images."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"--data_dir names no file. Received: {path}")
    with np.load(path) as arrays:
        missing = [name for name in ARRAYS if name not in arrays]
        if missing:
            raise FileNotFoundError(
                f"{path} must hold the arrays {', '.join(ARRAYS)}. Missing: {', '.join(missing)}."
            )
        x_train, y_train, x_test, y_test = (arrays[name] for name in ARRAYS)
    train, test = slice(train_examples), slice(test_examples)
    return x_train[train], y_train.ravel()[train], x_test[test], y_test.ravel()[test]


def load_or_exit(data_dir, **arguments):
    """Like `load`, but ends the program with one sentence if the data set is missing."""
    try:
        return load(data_dir, **arguments)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
