"""Networks of digits in float and with quantizers, fine-tuned on the same splits, in pairs.

    recipe = paired_splits.Recipe()
    rows = paired_splits.run(make_network, seed, recipe, path, network="MLP")
    print(paired_splits.accuracy_table(rows, "network"))

One split of scikit-learn's digits per seed. The float network is trained on its training images and
on shifted copies, then wrapped and fine-tuned, and beside it trained on in float for as long a
time. After `settle`, as before it, the file is compared with `predict` on shifted and noisy copies
of the test images. Defines the flags of the programs that do so.
"""

import collections.abc
import dataclasses
import math
import time

import keras
import numpy as np
from absl import flags
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import speq_keras

FLAGS = flags.FLAGS
flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "One split and one network each.")
flags.DEFINE_list("w_bits", ["4", "8"], "Widths of the weights; activations have 8 bits.")
flags.DEFINE_integer("pretrain_epochs", 20, "Epochs in float.", 1)
flags.DEFINE_integer("epochs", 8, "Epochs of fine-tuning.", 1)
flags.DEFINE_integer("noisy_copies", 10, "Shifted and noisy copies of a test image.", 1)
flags.DEFINE_string("out_dir", "out/benchmarks", "Folder for the JSON file.")

NOISE = 0.05  # standard deviation, of pixels from 0 to 1
NO_END = 1000  # epochs, where time ends the training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How networks are trained, in float and with quantizers.

    Attributes:
        optimizer: Function of a learning rate.
        float_rate, rate: Learning rates of the float network, and of all that is fine-tuned.
        cosine: Whether rates fall towards zero along half a cosine, epoch by epoch.
        batch_size: Images per step.
        shifted_copies: Of each training image, beside it.
    """

    optimizer: collections.abc.Callable = keras.optimizers.Adam
    float_rate: float = 3e-3
    rate: float = 1e-3
    cosine: bool = False
    batch_size: int = 32
    shifted_copies: int = 2


def run(make_network, seed, recipe, path, **first):
    """Trains one split's networks; returns a row per width of the weights.

    Args:
        make_network: Function that returns a float network of arrays of shape (8, 8), whose outputs
            are logits of ten classes.
        seed: Of the split, the weights and the order of the images.
        recipe: A `Recipe`.
        path: Where TFLite files go, each in place of the last.
        **first: What each row begins with.
    """
    keras.utils.set_random_seed(seed)
    data, test, copies = load_split(seed, recipe.shifted_copies)
    network = make_network()
    train(network, data, recipe.float_rate, recipe, epochs=FLAGS.pretrain_epochs)
    rows, seconds = [], 0.0
    for w_bits in map(int, FLAGS.w_bits):
        model = speq_keras.wrap(network, w_bits, 8, distillation=None, seed=seed)
        model.calibrate(data[0][:512], verbose=0)
        row = {**first, "seed": seed, "w_bits": w_bits, "calibrated": percent_right(model, test)}
        took_s = train(model, data, recipe.rate, recipe, epochs=FLAGS.epochs)
        seconds = max(seconds, took_s)
        row |= {"test": percent_right(model, test), "copies": percent_right(model, copies)}
        row["same_before"], row["file_before"] = percent_in_file(model, path, copies)
        model.settle()
        row["same"], row["file"] = percent_in_file(model, path, copies)
        row |= {"settled": percent_right(model, copies), "file_bytes": path.stat().st_size}
        row["islands"] = list(model.plan().file.islands)
        rows.append(row)
    train(network, data, recipe.rate, recipe, seconds=seconds)
    for row in rows:
        row["float_test"] = percent_right(network, test)
        row["float_copies"] = percent_right(network, copies)
        print(row, flush=True)
    return rows


# ---- data ------------------------------------------------------------------------------------


def shifted(images, random, count, noise=0.0):
    """Returns `count` copies of the images, each moved by up to one pixel, with noise."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    copies = []
    for _ in range(count):
        y, x = random.integers(0, 3, (2, len(images)))
        rows = y[:, None, None] + np.arange(8)[:, None]
        columns = x[:, None, None] + np.arange(8)
        copies.append(padded[np.arange(len(images))[:, None, None], rows, columns])
    copies = np.concatenate(copies)
    return (copies + noise * random.standard_normal(copies.shape)).astype("float32")


def load_split(seed, shifted_copies):
    """Returns train and test images with labels, and copies of the test images with theirs."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8).astype("float32")
    parts = train_test_split(images, labels, test_size=0.3, random_state=seed, stratify=labels)
    train, test, train_labels, test_labels = parts
    random = np.random.default_rng(seed)
    more = np.concatenate([train, shifted(train, random, shifted_copies)])
    count = FLAGS.noisy_copies
    copies = shifted(test, random, count, NOISE), np.tile(test_labels, count)
    return (more, np.tile(train_labels, shifted_copies + 1)), (test, test_labels), copies


# ---- training --------------------------------------------------------------------------------


class Stop(keras.callbacks.Callback):
    """Ends training after so many seconds."""

    def __init__(self, seconds):
        super().__init__()
        self.end = time.perf_counter() + seconds

    def on_train_batch_end(self, batch, logs=None):
        if time.perf_counter() > self.end:
            self.model.stop_training = True


class Cosine(keras.callbacks.Callback):
    """Lowers the learning rate along half a cosine, over all epochs or over so many seconds."""

    def __init__(self, rate, seconds=None):
        super().__init__()
        self.rate = rate
        self.seconds = seconds
        self.start = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        done = epoch / self.params["epochs"]
        if self.seconds:
            done = min(1.0, (time.perf_counter() - self.start) / self.seconds)
        self.model.optimizer.learning_rate = self.rate * (1 + math.cos(math.pi * done)) / 2


def train(model, data, rate, recipe, *, epochs=NO_END, seconds=None):
    """Trains a model for so many epochs or seconds; returns the seconds that it took."""
    model.compile(
        recipe.optimizer(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    callbacks = [Cosine(rate, seconds)] if recipe.cosine else []
    callbacks += [Stop(seconds)] if seconds else []
    start = time.perf_counter()
    model.fit(*data, batch_size=recipe.batch_size, epochs=epochs, verbose=0, callbacks=callbacks)
    return time.perf_counter() - start


# ---- what is compared ------------------------------------------------------------------------


def percent_right(model, data):
    """Returns the accuracy of a model in percent."""
    images, labels = data
    return _percent_equal(model.predict(images, batch_size=256, verbose=0), labels)


def percent_in_file(model, path, data):
    """Returns on how many images a model's file says what `predict` says, and what is right."""
    images, labels = data
    model.export_tflite(path)
    outputs = file_outputs(path, images)
    predicted = model.predict(images, batch_size=256, verbose=0)
    return _percent_equal(outputs, predicted.argmax(-1)), _percent_equal(outputs, labels)


def _percent_equal(outputs, classes):
    return 100 * float(np.mean(outputs.argmax(-1) == classes))


def file_outputs(path, array):
    """Returns what a file computes on LiteRT."""
    interpreter = Interpreter(str(path))
    (detail,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


# ---- tables ----------------------------------------------------------------------------------


def by_width(rows, key):
    """Yields (what the first cell of a line says, its rows); `key` has the networks' names."""
    for name in dict.fromkeys(row[key] for row in rows):
        for w_bits in map(int, FLAGS.w_bits):
            own = [row for row in rows if (row[key], row["w_bits"]) == (name, w_bits)]
            yield f"{name} W{w_bits}/A8", own


def accuracy_table(rows, key):
    """Returns the Markdown table: means over the seeds, with their standard deviations.

    Args:
        rows: Of `run`.
        key: Of the networks' names in them.
    """
    lines = [
        "| network | splits | float, % | quantized, % | difference | of copies, float | quantized "
        "| difference | same class, % |",
        "| --- " * 9 + "|",
    ]
    for label, own in by_width(rows, key):
        cells = []
        for part in ("test", "copies"):
            ours, theirs = (values(own, name) for name in (part, f"float_{part}"))
            cells += [spread(theirs), spread(ours), spread(ours - theirs)]
        same = [f"{np.mean(values(own, name)):.2f}" for name in ("same_before", "same")]
        lines.append(f"| {' | '.join([label, str(len(own)), *cells, ' → '.join(same)])} |")
    return "\n".join(lines)


def values(rows, name):
    """Returns one figure of all rows."""
    return np.array([row[name] for row in rows])


def spread(figures):
    """Returns mean and standard deviation as they stand in tables."""
    deviation = np.std(figures, ddof=min(1, len(figures) - 1))
    return f"{np.mean(figures):.2f} ± {deviation:.2f}"
