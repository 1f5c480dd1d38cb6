"""`examples/image_data.py`: order, parts and preparation of images, on files made here."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.usefixtures("examples_on_the_path")


def picture(number, height=40, width=60):
    """A picture with a colour that follows from its number."""
    image = np.zeros((height, width, 3), "uint8")
    image[..., number % 3] = 60 + 20 * number
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes with three training pictures and one test picture each; one is a PNG."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 3), ("val", 1)):
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                image = picture(3 * i + number)
                path = root / part / name / f"{i}.jpg"
                data = tf.io.encode_jpeg(image, quality=100)
                if i == 1:
                    path, data = path.with_suffix(".png"), tf.io.encode_png(image)
                path.write_bytes(data.numpy())
    return root


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A data set in the layout of TensorFlow Datasets, ten training and four test pictures."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("tfds")

    class Pictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = root  # a test file is no package, in which TFDS looks for descriptions

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=5),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self.pictures(10), "test": self.pictures(4)}

        def pictures(self, count):
            for number in range(count):
                yield number, {"image": picture(number), "label": number % 5}

        def _generate_examples(self):
            raise NotImplementedError

    Pictures(data_dir=str(root)).download_and_prepare()
    return root


@pytest.fixture(params=["digits", "folder", "tfds"])
def images(request, folder, tfds_dir):
    import image_data

    if request.param == "digits":
        return image_data.load("digits", image_size=32, train_examples=10)
    if request.param == "folder":
        return image_data.load("digits", image_size=32, image_folder=folder)
    return image_data.load("pictures", image_size=32, data_dir=str(tfds_dir))


def take(images, first_step, count, **arguments):
    stream = images.training_batches(first_step, seed=3, **{"batch_size": 4, **arguments})
    return list(stream.take(count).as_numpy_iterator())


def assert_equal_batches(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_stream_that_begins_later_goes_on_with_the_same_batches(images):
    unbroken = take(images, 0, 8)
    for first in (1, 3, 6):
        assert_equal_batches(take(images, first, 8 - first), unbroken[first:])


def test_every_pass_has_all_images_once_in_an_order_of_its_own(images):
    examples = images.train(0, 3).take(2 * images.train_count)
    seen = [(tf.io.serialize_tensor(image).numpy(), int(label)) for _, image, label in examples]
    first, second = seen[: images.train_count], seen[images.train_count :]
    assert len(set(first)) == images.train_count
    assert set(first) == set(second)
    assert first != second


def test_another_seed_gives_another_order(images):
    ours = [int(label) for _, _, label in images.train(0, 3).take(images.train_count)]
    others = [
        [int(label) for _, _, label in images.train(0, seed).take(images.train_count)]
        for seed in range(4, 8)
    ]
    assert any(ours != other for other in others)


def test_two_processes_read_the_batches_of_one(images):
    whole = take(images, 1, 4)
    parts = [take(images, 1, 4, part=part, parts=2) for part in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(batch[0][0::2], first[0])
        np.testing.assert_array_equal(batch[0][1::2], second[0])


def test_batches_are_pixels_and_one_hot_labels(images):
    pixels, labels = take(images, 0, 1)[0]
    assert pixels.shape == (4, 32, 32, 3)
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() < pixels.max() <= 255
    assert labels.shape == (4, images.classes)
    np.testing.assert_array_equal(labels.sum(axis=1), 1)


def test_test_batches_have_all_test_images_in_their_order(images):
    batches = list(images.test_batches(batch_size=3, one_hot=False).as_numpy_iterator())
    labels = np.concatenate([labels for _, labels in batches])
    assert len(labels) == images.test_count
    expected = [int(label) for _, label in images.test()]
    np.testing.assert_array_equal(labels, expected)


def test_the_evaluation_crop_is_the_middle_of_the_image():
    import image_data

    # 112 × 168: at 56 pixels the largest square less a margin of 8 / 64 has 98 pixels.
    image = np.zeros((112, 168, 3), "uint8")
    image[7:105, 35:133] = 200
    middle = image_data.center_of_jpeg(tf.io.encode_png(image), 56)
    np.testing.assert_allclose(middle, 200, atol=0.5)
    image[6, 34] = image[105, 133] = 255  # outside
    np.testing.assert_allclose(
        image_data.center_of_jpeg(tf.io.encode_png(image), 56), 200, atol=0.5
    )
    image[8, 36] = 0  # inside
    assert image_data.center_of_jpeg(tf.io.encode_png(image), 56).numpy().min() < 190


def test_the_training_crop_is_a_part_of_the_image_with_the_stated_area():
    import image_data

    ramp = np.repeat(np.arange(256, dtype="uint8")[None, :, None], 256, axis=0).repeat(3, axis=2)
    encoded = tf.io.encode_png(ramp)
    widths, mirrored = [], 0
    for number in range(60):
        seed = tf.constant([5, number], "int64")
        row = image_data.crop_of_jpeg(encoded, seed, 64).numpy()[32, :, 0]
        widths.append(abs(row[-1] - row[0]))
        mirrored += row[-1] < row[0]
    # Areas of 8 to 100 % at aspect ratios of 3/4 to 4/3 have widths of 24 to 100 %.
    assert 0.2 * 256 < min(widths) < 0.5 * 256
    assert max(widths) > 0.8 * 256
    assert 15 < mirrored < 45


def test_digits_are_shifted_by_one_of_their_pixels_and_never_mirrored():
    import image_data

    images = image_data.load("digits", image_size=8, train_examples=1)
    original = images.first_training_images(1)[0, ..., 0]
    padded = np.pad(original, 1)
    shifted = [padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    seen = set()
    for pixels, _ in take(images, 0, 40, batch_size=1):
        places = [n for n, s in enumerate(shifted) if np.array_equal(s, pixels[0, ..., 0])]
        assert places
        seen.update(places)
    assert len(seen) >= 8


def test_calibration_sees_training_images_without_augmentation(folder):
    import image_data

    images = image_data.load("digits", image_size=32, image_folder=folder)
    seen = images.first_training_images(100)
    assert seen.shape == (6, 32, 32, 3)
    # Every picture has one colour; the largest channel tells which it is.
    colours = sorted(int(round(float(image.max()))) for image in seen)
    expected = sorted(60 + 20 * (3 * i + n) for i in range(3) for n in range(2))
    np.testing.assert_allclose(colours, expected, atol=3)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: None, r"must have the folders train/ and val/.*has no train/"),
        (lambda root: (root / "train" / "cat").mkdir(parents=True), r"has no val/"),
        (
            lambda root: [
                (root / part).mkdir(parents=True)
                for part in ("train/cat", "train/dog", "val/cat", "val/cow")
            ],
            r"same class folders.*only in one: cow, dog",
        ),
        (
            lambda root: [(root / part).mkdir(parents=True) for part in ("train/cat", "val/cat")],
            r"must hold images.*train, which has none",
        ),
    ],
)
def test_a_folder_with_another_layout_is_described(tmp_path, make, sentence):
    import image_data

    make(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=f"--image_folder.*{sentence}"):
        image_data.load("digits", image_size=32, image_folder=tmp_path)


def test_a_data_set_that_is_not_there_is_named(tmp_path):
    import image_data

    with pytest.raises(FileNotFoundError, match="imagenet2012 was not found at .*--data_dir"):
        image_data.load("imagenet2012", image_size=32, data_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="--dataset must be.*Received: no_such_set"):
        image_data.load("no_such_set", image_size=32, data_dir=str(tmp_path))


def test_missing_and_foreign_weights_files_are_named(tmp_path):
    import imagenet_networks

    build = imagenet_networks.resnet18(image_size=32, classes=3)
    with pytest.raises(FileNotFoundError, match=r"no weights file .*nowhere\.keras"):
        imagenet_networks.load_weights(build, tmp_path / "nowhere.keras")
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match="does not hold the weights of resnet18 with 3 classes"):
        imagenet_networks.load_weights(build, tmp_path / "other.weights.h5")


def test_without_augmentation_training_images_are_the_test_images_of_the_same_digits():
    import image_data

    plain = image_data.load("digits", image_size=32, augment=False)
    expected = {int(position): image for position, image, _ in plain.train(0, 3).take(8)}
    ((pixels, _),) = plain.training_batches(0, batch_size=8, seed=3).take(1).as_numpy_iterator()
    for position, image in expected.items():
        np.testing.assert_array_equal(pixels[position], plain.to_test_image(image))
    shifted = image_data.load("digits", image_size=32)
    ((others, _),) = shifted.training_batches(0, batch_size=8, seed=3).take(1).as_numpy_iterator()
    assert (pixels != others).any()


def test_settings_are_chosen_on_digits_that_nobody_tests_on():
    import image_data

    def multiset(dataset, position):
        return collections.Counter(row[position].numpy().tobytes() for row in dataset)

    final, chosen_on = (
        image_data.load(name, image_size=32) for name in ("digits", "digits_validation")
    )
    assert (final.train_count, final.test_count) == (1257, 540)
    assert (chosen_on.train_count, chosen_on.test_count) == (1005, 252)
    whole = multiset(final.train(0, 0).take(1257), 1)
    parts = multiset(chosen_on.train(0, 0).take(1005), 1) + multiset(chosen_on.test(), 0)
    assert parts == whole
