"""Images for training and testing: scikit-learn's digits, CIFAR-10, TFDS data sets, folders.

`load(name, ...)` returns `Images`, whose batches are made by `tf.data` on every backend. A batch is
determined by the seed and the step number alone: a killed run resumes with the same images that it
would have seen. Encoded images are skipped before decoding, so this takes no time, and only the
used part of a JPEG is decoded.
"""

import dataclasses
import pathlib

import numpy as np
import tensorflow as tf

import cifar_data
from cifar_stream import pad_crop_flip

# The second tests on a fifth of the first one's training images, for choosing settings.
DIGITS = ("digits", "digits_validation")
FOLDER_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
TEST_FOLDERS = ("val", "validation", "test")
# Rows and columns that the evaluation crop removes at 224 pixels, as in the evaluation by the
# authors of this family of networks.
CROP_PADDING = 32
# Encoded images to shuffle at a time, in addition to the files: about 1 GB of ImageNet.
SHUFFLED_TOGETHER = 8_192
AUTOTUNE = tf.data.AUTOTUNE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """A data set of images with one label each.

    Args:
        classes: Number of classes.
        train_count, test_count: Numbers of images.
        train: Function `(first, seed)` that returns endless (position, image, label) from position
            `first` on, in a new order for every pass.
        test: Function that returns (image, label) of all test images, in order.
        to_training_image, to_test_image: Functions `(image, seed)` and `(image)` that return
            float32 pixels from 0 to 255, (image_size, image_size, 3).
    """

    classes: int
    train_count: int
    test_count: int
    train: object
    test: object
    to_training_image: object
    to_test_image: object

    def training_batches(self, first_step, *, batch_size, seed, part=0, parts=1):
        """Returns endless batches (images, one-hot labels), starting with step `first_step`.

        Args:
            first_step: Number of a step.
            batch_size: Images per step, over all processes.
            seed: Non-negative integer.
            part: Which part of each batch: each of several processes reads one of them.
            parts: Number of parts.
        """

        def prepare(position, image, label):
            image = self.to_training_image(image, tf.stack([seed, position]))
            return image, tf.one_hot(label, self.classes)

        dataset = self.train(first_step * batch_size, seed)
        if parts > 1:
            dataset = dataset.shard(parts, part)  # before decoding
        dataset = dataset.map(prepare, num_parallel_calls=AUTOTUNE, deterministic=True)
        return dataset.batch(batch_size // parts, drop_remainder=True).prefetch(AUTOTUNE)

    def test_batches(self, *, batch_size, count=None, one_hot=True, part=0, parts=1):
        """Returns batches of the first `count` test images; integer labels if not `one_hot`.

        Several processes get parts of the same size: at most `parts - 1` images are left out.
        """

        def prepare(image, label):
            label = tf.one_hot(label, self.classes) if one_hot else label
            return self.to_test_image(image), label

        count = min(count or self.test_count, self.test_count) // parts * parts
        dataset = self.test().take(count)
        if parts > 1:
            dataset = dataset.shard(parts, part)
        dataset = dataset.map(prepare, num_parallel_calls=AUTOTUNE, deterministic=True)
        return dataset.batch(batch_size // parts).prefetch(AUTOTUNE)

    def first_training_images(self, count):
        """Returns an array of training images, prepared as for testing: for calibration."""
        dataset = self.train(0, 0).map(lambda position, image, label: self.to_test_image(image))
        return np.stack(list(dataset.take(min(count, self.train_count)).as_numpy_iterator()))


def load(
    name,
    *,
    image_size,
    data_dir=None,
    image_folder=None,
    download=False,
    train_examples=None,
    test_examples=None,
    train_splits=("train",),
    augment=True,
):
    """Returns `Images`.

    Args:
        name: "digits", "digits_validation", "cifar10", "cifar100", or a data set of TensorFlow
            Datasets with images and labels.
        image_size: Height and width of the prepared images, in pixels.
        data_dir: Folder of TensorFlow Datasets; for CIFAR also an .npz file.
        image_folder: Folder with `train/` and `val/`, each with a folder per class; overrides
            `name`.
        download: Whether TFDS may download.
        train_examples: Number of images, the first ones; None: all.
        test_examples: Likewise.
        train_splits: TFDS' names of the parts to train on.
        augment: Whether training images are shifted or cropped, and mirrored; otherwise they are
            prepared like test images.

    Raises:
        FileNotFoundError: If there are no such images.
        ValueError: If they do not have the required layout.
    """
    if not augment:
        images = load(
            name,
            image_size=image_size,
            data_dir=data_dir,
            image_folder=image_folder,
            download=download,
            train_examples=train_examples,
            test_examples=test_examples,
            train_splits=train_splits,
        )
        return dataclasses.replace(
            images, to_training_image=lambda image, seed: images.to_test_image(image)
        )
    limits = {"train_examples": train_examples, "test_examples": test_examples}
    if image_folder:
        return from_folder(image_folder, image_size, **limits)
    if name in DIGITS:
        arrays = digits(test_share=0.3)
        if name == "digits_validation":
            arrays = divide(*arrays[:2], test_share=0.2)
        return from_arrays(*arrays, image_size=image_size, mirror=False, **limits)
    if name in ("cifar10", "cifar100"):
        arrays = cifar_data.load(
            data_dir,
            name=name,
            download=download,
            train_examples=train_examples or 50_000,
            test_examples=test_examples or 10_000,
        )
        return from_arrays(*arrays, image_size=image_size, mirror=True, **limits)
    return from_tfds(
        name,
        image_size,
        data_dir=data_dir,
        download=download,
        train_splits=train_splits,
        **limits,
    )


def few_per_class(images, count, *, seed):
    """Returns `images` with `count` training images of each class, the first of an order.

    Raises:
        ValueError: If a class has fewer.
    """
    chosen = {}
    for _, image, label in images.train(0, seed).take(images.train_count):
        of_class = chosen.setdefault(int(label), [])
        if len(of_class) < count:
            of_class.append(image)
    fewest = min(len(chosen.get(label, [])) for label in range(images.classes))
    if fewest < count:
        raise ValueError(
            f"--per_class must be at most the size of each class. Received: {count}, and one class "
            f"has {fewest} training images."
        )
    labels = tf.constant([label for label in chosen for _ in range(count)], "int64")
    kept = tf.stack([image for of_class in chosen.values() for image in of_class])

    return dataclasses.replace(images, train=in_memory(kept, labels), train_count=len(labels))


# Sources.


def digits(*, test_share=0.5):
    """Returns train and test images (uint8, three equal channels) and labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images * (255 / 16)).round().astype("uint8").reshape(-1, 8, 8, 1)
    return divide(np.repeat(images, 3, axis=-1), labels, test_share=test_share)


def divide(images, labels, *, test_share):
    """Returns train images, their labels, test images and their labels: always the same parts."""
    from sklearn.model_selection import train_test_split

    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=test_share, random_state=0, stratify=labels
    )
    return x_train, y_train, x_test, y_test


def from_arrays(
    x_train,
    y_train,
    x_test,
    y_test,
    *,
    image_size,
    mirror,
    train_examples=None,
    test_examples=None,
):
    """Returns `Images` of uint8 arrays, enlarged to `image_size`.

    Training shifts them by up to an eighth of their size and, if `mirror`, mirrors every second
    one.
    """
    x_train, y_train = x_train[:train_examples], y_train[:train_examples]
    x_test, y_test = x_test[:test_examples], y_test[:test_examples]
    images, labels = tf.constant(x_train), tf.constant(y_train, "int64")
    shift = x_train.shape[1] // 8

    def resize(image):
        image = tf.cast(image, "float32")
        if image.shape[0] == image_size:
            return image
        image = tf.image.resize(image, (image_size, image_size), "bilinear")
        return tf.ensure_shape(image, (image_size, image_size, 3))

    return Images(
        classes=int(max(y_train.max(), y_test.max())) + 1,
        train_count=len(x_train),
        test_count=len(x_test),
        train=in_memory(images, labels),
        test=lambda: tf.data.Dataset.from_tensor_slices((x_test, y_test.astype("int64"))),
        to_training_image=lambda image, seed: resize(
            pad_crop_flip(image, seed, shift=shift, mirror=mirror)
        ),
        to_test_image=resize,
    )


def from_folder(folder, image_size, *, train_examples=None, test_examples=None):
    """Returns `Images` of a folder with `train/` and `val/`, each with a folder per class."""
    folder = pathlib.Path(folder).expanduser()
    test_name = next((name for name in TEST_FOLDERS if (folder / name).is_dir()), TEST_FOLDERS[0])
    parts = [folder / "train", folder / test_name]
    for part in parts:
        if not part.is_dir():
            raise FileNotFoundError(
                f"--image_folder must have the folders train/ and val/, each with one folder per "
                f"class. Received: {folder}, which has no {part.name}/."
            )
    names = [sorted(path.name for path in part.iterdir() if path.is_dir()) for part in parts]
    if not names[0] or names[0] != names[1]:
        different = sorted(set(names[0]) ^ set(names[1]))
        raise ValueError(
            "--image_folder must have the same class folders in train/ and "
            f"{test_name}/. Received: {len(names[0])} and {len(names[1])} of them"
            + (f"; only in one: {', '.join(different[:5])}." if different else ".")
        )
    files = []
    for part in parts:
        found = [
            (str(path), number)
            for number, name in enumerate(names[0])
            for path in sorted((part / name).iterdir())
            if path.suffix.lower() in FOLDER_SUFFIXES
        ]
        if not found:
            raise ValueError(
                f"--image_folder must hold images ({', '.join(FOLDER_SUFFIXES)}). Received: "
                f"{part}, which has none in its class folders."
            )
        files.append(found)
    # Sorted by class, they would be cut to the first classes.
    order = np.random.default_rng(0).permutation(len(files[0]))
    train_files = [files[0][i] for i in order][:train_examples]
    test_files = files[1]
    if test_examples:
        order = np.random.default_rng(0).permutation(len(test_files))
        test_files = [test_files[i] for i in order][:test_examples]
    paths, labels = (tf.constant(column) for column in zip(*train_files, strict=True))

    def test():
        columns = [list(column) for column in zip(*test_files, strict=True)]
        return tf.data.Dataset.from_tensor_slices((columns[0], np.array(columns[1], "int64")))

    return Images(
        classes=len(names[0]),
        train_count=len(train_files),
        test_count=len(test_files),
        train=in_memory(paths, tf.cast(labels, "int64")),
        test=test,
        to_training_image=lambda path, seed: crop_of_jpeg(tf.io.read_file(path), seed, image_size),
        to_test_image=lambda path: center_of_jpeg(tf.io.read_file(path), image_size),
    )


def from_tfds(
    name,
    image_size,
    *,
    data_dir,
    download,
    train_splits=("train",),
    train_examples=None,
    test_examples=None,
):
    """Returns `Images` of a TFDS data set, read as record files: nothing is decoded twice."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise FileNotFoundError(
            "--dataset must be digits, cifar10 or a data set of TensorFlow Datasets. "
            f"Received: {name}."
        ) from None
    if download:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise FileNotFoundError(
            f"{name} was not found at {builder.data_path}: pass --data_dir with the folder that "
            f"contains {name}/, or --download if TensorFlow Datasets can fetch it."
        )
    info = builder.info
    # The labels of ImageNet's `test` are secret.
    tests = ("validation",) if name.startswith("imagenet") else ("test", "validation")
    test_split = next((split for split in tests if split in info.splits), None)
    complete = set(train_splits) <= set(info.splits) and test_split not in (None, *train_splits)
    if not complete or not {"image", "label"} <= set(info.features):
        raise ValueError(
            "--dataset must have images, labels, and splits to train and to test on. Received: "
            f"{name} with {', '.join(info.features)}, and {', '.join(info.splits)}."
        )
    skip_decoding = {"image": tfds.decode.SkipDecoding()}
    train_count = sum(info.splits[split].num_examples for split in train_splits)
    train_count = min(train_examples or np.inf, train_count)
    train_files = [str(path) for split in train_splits for path in info.splits[split].filepaths]

    def parse(record):
        example = info.features.deserialize_example(record, decoders=skip_decoding)
        return example["image"], example["label"]

    def train(first, seed):
        files = tf.constant(train_files)

        def one_pass(number):
            names = tf.random.experimental.stateless_shuffle(files, tf.stack([seed, number]))
            if train_examples:
                names = files  # the first examples are in the first files
            records = tf.data.Dataset.from_tensor_slices(names).interleave(
                tf.data.TFRecordDataset,
                cycle_length=1 if train_examples else 16,
                block_length=16,
                num_parallel_calls=AUTOTUNE,
                deterministic=True,
            )
            # `Dataset.shuffle` accepts no seed that is only known inside the pipeline.
            blocks = records.take(train_count).batch(SHUFFLED_TOGETHER).prefetch(1).enumerate()
            return blocks.flat_map(
                lambda block, records: tf.data.Dataset.from_tensor_slices(
                    tf.random.experimental.stateless_shuffle(
                        records, tf.random.fold_in(tf.stack([seed, number]), block)
                    )
                )
            )

        first_pass, skipped = divmod(first, int(train_count))
        records = endless(first_pass).flat_map(one_pass).skip(skipped)
        return tf.data.Dataset.zip(endless(first), records).map(
            lambda position, record: (position, *parse(record))
        )

    return Images(
        classes=info.features["label"].num_classes,
        train_count=int(train_count),
        test_count=min(test_examples or np.inf, info.splits[test_split].num_examples),
        train=train,
        test=lambda: tf.data.TFRecordDataset(
            [str(path) for path in info.splits[test_split].filepaths]
        ).map(parse),
        to_training_image=lambda image, seed: crop_of_jpeg(image, seed, image_size),
        to_test_image=lambda image: center_of_jpeg(image, image_size),
    )


# Order and preparation.


def endless(first):
    """Returns the integers from `first` on."""
    return tf.data.Dataset.range(first, np.iinfo("int64").max)


def in_memory(images, labels):
    """Returns `Images.train` for tensors with one row per training image."""

    def train(first, seed):
        def example(position):
            row = shuffled(position, len(labels), seed)
            return position, images[row], labels[row]

        return endless(first).map(example)

    return train


def shuffled(position, count, seed):
    """Returns the index of the example at a position; every pass has its own order."""
    return tf.random.experimental.index_shuffle(
        position % count, tf.stack([seed, position // count]), count - 1
    )


def crop_of_jpeg(encoded, seed, image_size):
    """Returns a random part of an image (8 to 100 % of it), resized; every second one mirrored.

    Only that part is decoded. The settings are those of Inception's training, which most networks
    for ImageNet adopted.
    """
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed))
    shape = image_shape(encoded)
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros((1, 0, 4)),
        crop_seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], axis=0)
    image = resized(decode_window(encoded, window), image_size)
    return tf.image.stateless_random_flip_left_right(image, flip_seed)


def center_of_jpeg(encoded, image_size):
    """Returns the middle of an image: the largest square, minus a margin of one eighth."""
    height, width = tf.unstack(image_shape(encoded)[:2])
    shorter = tf.cast(tf.minimum(height, width), "float32")
    side = tf.cast(shorter * image_size / (image_size + CROP_PADDING * image_size / 224), "int32")
    window = tf.stack([(height - side + 1) // 2, (width - side + 1) // 2, side, side])
    return resized(decode_window(encoded, window), image_size)


def image_shape(encoded):
    """Returns height, width and channels of an encoded image."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.image.extract_jpeg_shape(encoded),
        lambda: tf.shape(decode_other(encoded)),
    )


def decode_window(encoded, window):
    """Returns the pixels of a window (top, left, height, width) of an encoded image."""
    top, left, height, width = tf.unstack(window)
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.image.decode_and_crop_jpeg(encoded, window, channels=3),
        lambda: decode_other(encoded)[top : top + height, left : left + width],
    )


def decode_other(encoded):
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def resized(image, image_size):
    image = tf.image.resize(image, (image_size, image_size), "bicubic")
    image = tf.clip_by_value(image, 0.0, 255.0)  # bicubic overshoots
    return tf.ensure_shape(image, (image_size, image_size, 3))
