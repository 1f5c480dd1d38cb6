"""How long a training step takes: float, plain quantization-aware training (QAT), SPEQ and KD.

    python examples/benchmarks/train_step.py
    python examples/benchmarks/train_step.py --models=efficientnet --side=64 --batch_size=32

KD is QAT with a float teacher of the same size, which is what SPEQ makes unnecessary. "float" is
the network as Keras has it, "float fused" with TensorFlow's fused BatchNormalization, which the
quantized ones have by themselves. All take turns in one process, a few steps each, round after
round; the ratios are formed within a round, so that a machine that slows down for a while slows
both sides. Prints a Markdown table of ratios with their quartiles, and of first steps, which are
traced, in processor time; writes them and all step times to `train_step.json`. With
--keras_batch_norm, QAT and SPEQ with Keras' own BatchNormalization have their turns, too.
"""

import json
import os
import pathlib
import platform
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of the next imports
import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
import step_times
import tensorflow as tf
from absl import app, flags

import cifar_networks
import speq_keras
import training_run

FLAGS = flags.FLAGS
flags.DEFINE_list("models", ["resnet8", "resnet20"], "The networks to measure.")
flags.DEFINE_integer("w_bits", 2, "Width of the weights, in bits.", 2, 8)
flags.DEFINE_integer("a_bits", 2, "Width of the activations, in bits.", 2, 8)
flags.DEFINE_integer("side", 32, "Side of the images of the efficientnet, in pixels.", 32)
flags.DEFINE_integer("batch_size", 128, "Images per step.", 1)
flags.DEFINE_integer("rounds", 15, "How often each method gets its turn.", 2)
flags.DEFINE_integer("steps", 4, "Measured steps in one turn.", 1)
flags.DEFINE_boolean("keras_batch_norm", False, "Whether to measure it without the kernel, too.")
flags.DEFINE_string("out_dir", "out/benchmarks", "Folder for train_step.json.")

RATIOS = (
    ("QAT", "float"),
    ("SPEQ", "float"),
    ("QAT", "float fused"),
    ("SPEQ", "float fused"),
    ("SPEQ", "QAT"),
    ("KD", "QAT"),
)
KERAS_RATIOS = (
    ("float fused", "float"),
    ("QAT", "QAT, Keras' BN"),
    ("SPEQ", "SPEQ, Keras' BN"),
    ("QAT, Keras' BN", "float"),
    ("SPEQ, Keras' BN", "QAT, Keras' BN"),
)


def main(_):
    unknown = sorted(set(FLAGS.models) - set(cifar_networks.NAMES))
    if unknown:
        known = ", ".join(cifar_networks.NAMES)
        raise SystemExit(f"--models takes {known}. Received: {', '.join(unknown)}.")
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    first_steps_s, step_times_s = {}, {}
    for name in FLAGS.models:
        first_steps_s[name], step_times_s[name] = measure(name)
    table = ratio_table(step_times_s, RATIOS)
    if FLAGS.keras_batch_norm:
        table += f"\n\n{ratio_table(step_times_s, KERAS_RATIOS)}"
    table += f"\n\n{first_step_table(first_steps_s)}"
    print(f"\n{table}")
    result = {
        "flags": {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(__name__)},
        "machine": {"cpu_count": os.cpu_count(), "processor": platform.machine()},
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        "table": table,
        "first_steps_s": first_steps_s,
        "step_times_s": step_times_s,
    }
    training_run.write_file(
        out_dir / "train_step.json", lambda path: path.write_text(json.dumps(result, indent=1))
    )


def measure(name):
    """Measures the training step of one network.

    Returns:
        `({method: processor time of the first step in seconds}, {method: one list of step times in
        seconds per round})`.
    """
    # One batch, kept in memory and fed again and again: loading and augmentation cost nothing here.
    # Random images do, as the time of a step does not depend on what they show.
    generator = np.random.default_rng(0)
    network = build_network(name)
    shape = (FLAGS.batch_size, *network.input_shape[1:])
    images = generator.integers(0, 256, shape).astype("float32")
    labels = generator.integers(0, cifar_networks.CLASSES, FLAGS.batch_size)
    batches = tf.data.Dataset.from_tensors((tf.constant(images), tf.constant(labels))).repeat()

    models = build_models(name, network, images)
    clock = step_times.step_clock(keras)

    def take_turn(model):
        # The first step of a turn finds the caches full of another model: it is not measured.
        model.fit(
            batches, steps_per_epoch=FLAGS.steps + 1, shuffle=False, verbose=0, callbacks=[clock]
        )
        return clock.step_times_s[1:]

    first_s = {}
    for method, model in models.items():
        print(f"{name}: compiling {method}", flush=True)
        start_s = time.process_time()
        model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)
        first_s[method] = time.process_time() - start_s
    times_s = {method: [] for method in models}
    for number in range(FLAGS.rounds):
        # Each round starts with another method: none always follows the same one.
        order = np.roll(list(models), number)
        for method in order:
            times_s[str(method)].append(take_turn(models[method]))
        medians = ", ".join(f"{m} {1e3 * np.median(times_s[m][-1]):.0f} ms" for m in models)
        print(f"{name}: round {number + 1} of {FLAGS.rounds}: {medians}", flush=True)
    return first_s, times_s


def build_network(name):
    """Returns a float network with random weights, the same each time."""
    keras.utils.set_random_seed(0)
    if name == "efficientnet":
        return cifar_networks.efficientnet(FLAGS.side)
    return cifar_networks.build(name)


def build_models(name, network, images):
    """Returns the compiled models by their method; all start from the same random weights."""

    def wrap(**arguments):
        model = speq_keras.wrap(
            network, w_bits=FLAGS.w_bits, a_bits=FLAGS.a_bits, seed=0, **arguments
        )
        model.calibrate(images, verbose=0)
        return model

    teacher = keras.models.clone_model(network)
    teacher.set_weights(network.get_weights())
    models = {
        "float": network,
        "float fused": with_fused_batch_norm(network),
        "QAT": wrap(distillation=None),
        "SPEQ": wrap(distillation="cosine"),
        "KD": wrap(distillation=None, teacher=teacher),
    }
    if FLAGS.keras_batch_norm:
        models["QAT, Keras' BN"] = wrap(distillation=None, fused_batch_norm=False)
        models["SPEQ, Keras' BN"] = wrap(distillation="cosine", fused_batch_norm=False)
    for model in models.values():
        model.compile(
            keras.optimizers.SGD(1e-3, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(
                from_logits=cifar_networks.FROM_LOGITS[name]
            ),
        )
    return models


def with_fused_batch_norm(network):
    """Returns a copy of a float network."""

    def copy_of(layer):
        is_norm = type(layer) is keras.layers.BatchNormalization
        kind = speq_keras.BatchNormalization if is_norm else type(layer)
        return kind.from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=copy_of)
    copy.set_weights(network.get_weights())
    return copy


def ratio_table(step_times_s, ratios):
    """Returns a Markdown table: float step times, and ratios of the medians within each round.

    Args:
        step_times_s: {network: {method: one list of step times in seconds per round}}.
        ratios: Pairs of methods, (numerator, denominator).
    """
    lines = [
        f"W{FLAGS.w_bits}/A{FLAGS.a_bits}, batch size {FLAGS.batch_size}, {os.cpu_count()} CPU "
        f"cores; median (lower to upper quartile) of {FLAGS.rounds} rounds of {FLAGS.steps} steps.",
        "",
        f"| network | float, ms | {' | '.join(f'{a} / {b}' for a, b in ratios)} |",
        "| --- " * (len(ratios) + 2) + "|",
    ]
    for name, times_s in step_times_s.items():
        cells = [step_times.milliseconds(times_s["float"])]
        cells += [step_times.ratio(times_s[a], times_s[b]) for a, b in ratios]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def first_step_table(first_steps_s):
    """Returns a Markdown table: the float network's own first step, and the others' ratios to it.

    Args:
        first_steps_s: {network: {method: seconds}}.
    """
    methods = [method for method in next(iter(first_steps_s.values())) if method != "float"]
    lines = [
        f"| network | first step in float, s | {' | '.join(f'{m} / float' for m in methods)} |",
        "| --- " * (len(methods) + 2) + "|",
    ]
    for name, times_s in first_steps_s.items():
        ratios = [f"{times_s[method] / times_s['float']:.2f}" for method in methods]
        lines.append(f"| {name} | {times_s['float']:.1f} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
