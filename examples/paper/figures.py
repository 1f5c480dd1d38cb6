"""The paper's figures: `draw_2a`, `draw_2b` and `draw_3`, each from figures that stand beside it.

2a    how often the greedy teacher (Eq. 5) takes 8 bits in each layer, over the training
2b    the softmax outputs of the stochastic path for one image
3     the gradient to the ground-truth logit, by the loss
"""

import itertools

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

GRADIENTS = ("KL, Eq. 7", "dot product, Eq. 9", "cosine")


# Figure 2a.


def combination_losses(model, images, labels):
    """Returns all width combinations (2^L, L) and the cross-entropy of each on a batch (Eq. 5)."""
    widths = [quantizer.width for quantizer in model.training_plan().quantizers]
    target = [float(ops.convert_to_numpy(width.value)) for width in widths]
    combinations = np.array(list(itertools.product(*((bits, 8.0) for bits in target))))
    cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True)
    losses = []
    for combination in combinations:
        drawn = [
            (width, ops.convert_to_tensor(bits, "float32"))
            for width, bits in zip(widths, combination, strict=True)
        ]
        with keras.StatelessScope([*((v, v.value) for v in model.variables), *drawn]):
            outputs = model(images, training=True)
        losses.append(float(cross_entropy(labels, outputs)))
    return combinations, np.array(losses)


class GreedyPicks:
    """An observer that asks, at the end of each piece of training, what the greedy teacher picks.

    Adds to the row of the log: `picked_8_bits`, for each layer how often 8 bits are picked over
    some batches; and `combinations`, how many different combinations are.

    Args:
        batches: A list of (images, labels).
    """

    def __init__(self, batches):
        self.batches = batches

    def __call__(self, model, row, epoch_ends):
        picks = []
        for images, labels in self.batches:
            combinations, losses = combination_losses(model, images, labels)
            picks.append(combinations[losses.argmin()])
        row["picked_8_bits"] = (np.array(picks) == 8).mean(axis=0).tolist()
        row["combinations"] = len({tuple(pick) for pick in picks})


def draw_2a(rows):
    """Draws the rows of a log with `GreedyPicks`: a line per layer."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in rows]
    for layer, shares in enumerate(np.transpose([row["picked_8_bits"] for row in rows]), start=1):
        axes.plot(steps, shares, ".-", label=f"quantizer {layer}")
    axes.set(
        title="8 bits in the best combination (Eq. 5)",
        xlabel="step",
        ylabel="share of batches",
        ylim=(-0.05, 1.05),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


# Figure 2b.


def stochastic_outputs(model, image, draws):
    """Returns the softmax outputs of the stochastic path for one image, a row per draw of widths.

    Moving statistics are used: one image has no others.
    """
    widths = [quantizer.width for quantizer in model.training_plan().quantizers]
    target = ops.stack([ops.convert_to_tensor(width.value) for width in widths])
    rows = []
    for _ in range(draws):
        drawn = model.teacher_precision.candidates(target, model.draw_seed)[0]
        mapping = [(width, drawn[number]) for number, width in enumerate(widths)]
        with keras.StatelessScope([*((v, v.value) for v in model.variables), *mapping]):
            outputs = model(image[None], training=False)
        rows.append(ops.convert_to_numpy(ops.softmax(outputs))[0])
    return np.array(rows)


def draw_2b(outputs, label):
    """Draws `stochastic_outputs`: a group of bars per class, a bar per draw."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    draws, classes = outputs.shape
    for number, row in enumerate(outputs):
        axes.bar(
            np.arange(classes) + (number - (draws - 1) / 2) * 0.8 / draws,
            row,
            0.8 / draws,
            label=f"draw {number + 1}",
        )
    axes.set(
        title=f"One image of class {label}, {draws} draws of the activation widths",
        xlabel="class",
        ylabel="probability",
        xticks=range(classes),
    )
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    return figure


# Figure 3.


def gradients(student, teacher, classes):
    """Returns {loss: gradient to the ground-truth logit}, where the other classes share the rest.

    Args:
        student: q_i, the student's probability of the ground-truth class; any shape.
        teacher: p_i, the teacher's; of a shape that broadcasts against it.
        classes: Number of classes.
    """
    q, p = np.broadcast_arrays(np.asarray(student, float), np.asarray(teacher, float))
    q_rest, p_rest = (1 - q) / (classes - 1), (1 - p) / (classes - 1)
    product = p * q + (classes - 1) * p_rest * q_rest
    lengths = [np.sqrt(a**2 + (classes - 1) * rest**2) for a, rest in ((p, p_rest), (q, q_rest))]
    # 1 − p·q / |p||q|: its derivative to q_j, then through the softmax.
    scale = lengths[0] * lengths[1]
    to_q = -p / scale + product * q / (scale * lengths[1] ** 2)
    to_rest = -p_rest / scale + product * q_rest / (scale * lengths[1] ** 2)
    cosine = q * (to_q - (to_q * q + (classes - 1) * to_rest * q_rest))
    return dict(zip(GRADIENTS, (q - p, -q * (p - product), cosine), strict=True))


def draw_3(classes):
    """Draws the surfaces of `gradients` for a number of classes."""
    axis = np.linspace(0.01, 0.99, 99)
    surfaces = gradients(axis[None, :], axis[:, None], classes)
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 3), surfaces.items(), strict=True):
        largest = np.abs(values).max()
        mesh = axes.pcolormesh(axis, axis, values, cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.contour(axis, axis, values, levels=[0], colors="k", linewidths=1)
        axes.set(
            title=f"{title}, {classes} classes",
            xlabel="student's probability",
            ylabel="teacher's probability",
        )
        figure.colorbar(mesh, ax=axes)
    return figure
