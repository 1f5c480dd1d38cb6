"""Draws the README's picture: what `wrap`, training and `export_tflite` do to a network.

    python examples/picture.py

Trains the network of the README's first program, a minute on one core, and draws three panels: the
weights of a layer with their codes, the two paths of a training step, and the outputs of the file
beside those of `predict`. Writes --out.
"""

import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from sklearn.datasets import load_digits

import speq_keras
import training_run

FLAGS = flags.FLAGS
flags.DEFINE_string("out", "examples/picture.png", "The picture.")
flags.DEFINE_integer("bits", 3, "Width of weights and activations, in bits.", 2, 8)
flags.DEFINE_integer("epochs", 20, "Epochs of each of the two trainings.", 1)
flags.DEFINE_integer("seed", 0, "Seed of the training.")

TRAIN_EXAMPLES = 1200
FLOAT, QUANTIZED, TEACHER, INK = "#b4bcc5", "#0b6fa4", "#c8651b", "#2b3238"
TITLE = {"loc": "left", "fontsize": 11, "fontweight": "bold", "color": INK}


def main(_):
    training_run.silence_notices()
    keras.utils.set_random_seed(FLAGS.seed)
    images, labels = load_digits(return_X_y=True)
    network = train_float(images[:TRAIN_EXAMPLES], labels[:TRAIN_EXAMPLES])
    model = speq_keras.wrap(network, FLAGS.bits, FLAGS.bits, seed=FLAGS.seed)
    model.calibrate(images[:TRAIN_EXAMPLES], verbose=0)
    fit(model, images[:TRAIN_EXAMPLES], labels[:TRAIN_EXAMPLES])
    model.settle()
    path = training_run.make_folder("out/picture") / "digits.tflite"
    model.export_tflite(path)
    test = images[TRAIN_EXAMPLES:].astype("float32")
    outputs = model.predict(test, verbose=0), speq_keras.export.run_file(path.read_bytes(), test)[0]

    figure = Figure(figsize=(13, 3.7), dpi=150, facecolor="white")
    panels = figure.subplots(1, 3, gridspec_kw={"wspace": 0.3, "width_ratios": (1, 1.1, 1)})
    draw_weights(panels[0], model.get_layer("conv2d_1"))
    draw_training(panels[1])
    draw_outputs(panels[2], *outputs)
    figure.savefig(FLAGS.out, bbox_inches="tight", pad_inches=0.15)
    print(f"{FLAGS.out}: written")


def train_float(images, labels):
    conv = [keras.layers.Conv2D(filters, 3, activation="relu") for filters in (16, 32)]
    ends = (
        keras.layers.Reshape((8, 8, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(10, "softmax"),
    )
    network = keras.Sequential([ends[0], *conv, *ends[1:]])
    fit(network, images, labels)
    return network


def fit(model, images, labels):
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=FLAGS.epochs, verbose=0)


# ---- panels ----------------------------------------------------------------------------------


def draw_weights(axes, layer):
    """Draws the weights of a layer as training keeps them, and as each pass uses them."""
    kept = keras.ops.convert_to_numpy(layer.variable("kernel")).ravel()
    used = layer.quantizers["kernel"](layer.variable("kernel"))
    values, counts = np.unique(keras.ops.convert_to_numpy(used), return_counts=True)
    heights, _, _ = axes.hist(kept, bins=70, color=FLOAT, label="kept by training: float32")
    shares = counts * heights.max() / counts.max()
    axes.vlines(values, 0, shares, color=QUANTIZED, linewidth=2.5)
    label = f"used by each pass: {len(values)} values"
    axes.plot(values, shares, "o", color=QUANTIZED, label=label)
    axes.set(yticks=[], ylim=(0, 1.45 * heights.max()), xlabel=f"weights of {layer.name}")
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.set_title(f"1  wrap: {FLAGS.bits} bits instead of 32", **TITLE)


def draw_training(axes):
    """Draws the two paths of a training step; the widths are one draw of many."""
    axes.set(xlim=(-0.2, 9.8), ylim=(-0.6, 10))
    axes.axis("off")
    rows = ((7.3, "student", (FLAGS.bits,) * 4), (2.2, "teacher", (FLAGS.bits, 8, 8, FLAGS.bits)))
    for y, name, widths in rows:
        axes.text(0, y + 1.75, name, fontsize=10, fontweight="bold", color=INK)
        for index, bits in enumerate(widths):
            color = QUANTIZED if bits == FLAGS.bits else TEACHER
            place = (1.55 * index, y)
            shape = FancyBboxPatch(place, 1.1, 1.1, boxstyle="round,pad=0.08", color=color, lw=0)
            axes.add_patch(shape)
            axes.text(place[0] + 0.55, y + 0.5, bits, color="white", ha="center", va="center")
        arrow(axes, (6.0, y + 0.55), (7.0, y + 0.55))
        axes.text(7.2, y + 0.55, "softened\noutput", fontsize=9, va="center", color=INK)
    arrow(axes, (8.1, 3.9), (8.1, 6.6))
    axes.text(7.9, 5.25, "second target,\nbeside the labels", fontsize=9, ha="right", va="center")
    note = "same weights; widths of activations\ndrawn per layer in each step"
    axes.text(0, 0.2, note, fontsize=9, color=INK, va="center")
    axes.set_title("2  fit: the network is its own teacher", **TITLE)


def draw_outputs(axes, predicted, of_file):
    """Draws the outputs of the file against those of `predict`."""
    axes.plot([0, 1], [0, 1], color=FLOAT, linewidth=1, zorder=0)
    axes.plot(predicted.ravel(), of_file.ravel(), ".", color=QUANTIZED, markersize=4)
    same = int(np.sum(predicted.argmax(-1) == of_file.argmax(-1)))
    furthest = np.abs(predicted - of_file).max()
    lines = (
        f"{len(predicted)} test images × {predicted.shape[1]} classes",
        f"same class on {same} of {len(predicted)}",
        f"largest difference {furthest:.4f}",
    )
    axes.text(0.03, 0.97, "\n".join(lines), fontsize=9, va="top", transform=axes.transAxes)
    axes.set(xlabel="predict", ylabel="digits.tflite, on LiteRT", xlim=(-0.03, 1.03))
    axes.set_ylim(-0.03, 1.03)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("3  export_tflite: exact integers", **TITLE)


def arrow(axes, start, end):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=INK))


if __name__ == "__main__":
    app.run(main)
