"""Which widths for which goal: accuracy, bytes and latency, beside other ways to an int8 file.

    python examples/benchmarks/settings.py --model_dir=FLOAT
    python examples/benchmarks/settings.py --model_dir=FLOAT --networks=resnet20 --steps=200

FLOAT is a folder with float weights by the names of the networks: resnet8.keras, resnet20.npz
(`examples/cifar.py --stages=pretrain` trains them). Every setting starts from these weights and
takes the same number of steps with the same images, optimizer and learning rates: float training,
whose network the stock converter turns into an int8 file after training (PTQ), tfmot's 8 bits
(ResNet-8 only), and ours. Every file is run on all test images. Prints a Markdown table per
network; rows are added to `settings_NETWORK.json` as they come, and not measured again.
"""

import functools
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of the next imports
import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from ai_edge_litert.interpreter import Interpreter

import cifar_data
import cifar_networks
import cifar_stream
import speq_keras
from training_run import write_file

FLAGS = flags.FLAGS
flags.DEFINE_string("model_dir", None, "Folder with the float weights of the networks.")
flags.DEFINE_list("networks", ["resnet8", "resnet20"], "Networks of cifar_networks.py.")
flags.DEFINE_list("settings", [], "The settings to train; all if not given.")
flags.DEFINE_multi_integer("seed", [0, 1, 2], "Seeds of the training, one flag each.")
flags.DEFINE_integer("steps", 390, "Steps of training of each setting.", 1)
flags.DEFINE_integer("batch_size", 128, "Images per step.", 1)
flags.DEFINE_float("learning_rate", 0.02, "Learning rate at the start; it falls to zero.", 0.0)
flags.DEFINE_integer("test_examples", 10_000, "Use the first so many test images.", 1, 10_000)
flags.DEFINE_integer("rounds", 200, "Rounds of latency measurements.", 1)
flags.DEFINE_string("data_dir", None, "Folder that holds cifar10/; default ~/tensorflow_datasets.")
flags.DEFINE_bool("download", False, "Download CIFAR-10 (170 MB) to --data_dir if not there.")
flags.DEFINE_string("out_dir", "out/benchmarks/settings", "Folder for files and rows.")

# Name of a setting: widths of weights and activations, and the distillation.
OURS = {
    "W8/A8": (8, 8, None),
    "W4/A8": (4, 8, None),
    "W3/A8": (3, 8, None),
    "W4/A4": (4, 4, None),
    "W4/A4, SPEQ": (4, 4, "cosine"),
    "W3/A3": (3, 3, None),
    "W3/A3, SPEQ": (3, 3, "cosine"),
    "W2/A2": (2, 2, None),
    "W2/A2, SPEQ": (2, 2, "cosine"),
}
FLOAT, STOCK, TFMOT = "float", "stock PTQ", "tfmot QAT"
SETTINGS = (FLOAT, TFMOT, *OURS)
CALIBRATION_EXAMPLES = 512


def main(_):
    settings = FLAGS.settings or SETTINGS
    for flag, names, known in (
        ("networks", FLAGS.networks, cifar_networks.NAMES),
        ("settings", settings, SETTINGS),
    ):
        if unknown := sorted(set(names) - set(known)):
            raise SystemExit(f"--{flag} takes {', '.join(known)}. Received: {', '.join(unknown)}.")
    if not FLAGS.model_dir:
        raise SystemExit("Float weights are needed: pass --model_dir.")
    data = cifar_data.load_or_exit(
        FLAGS.data_dir,
        download=FLAGS.download,
        train_examples=50_000,
        test_examples=FLAGS.test_examples,
    )
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name in FLAGS.networks:
        rows = measure(name, settings, data, out_dir)
        print(f"\n{markdown_table(name, rows, out_dir)}\n", flush=True)


def measure(name, settings, data, out_dir):
    """Returns {setting: {seed: row}} of one network."""
    path = out_dir / f"settings_{name}.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    for seed in FLAGS.seed:
        for setting in settings:
            if setting == TFMOT and name != "resnet8":
                continue
            if str(seed) in rows.get(setting, {}):
                continue
            start_s = time.process_time()
            for label, row in train(name, setting, seed, data, out_dir).items():
                rows.setdefault(label, {})[str(seed)] = row
                print(f"{name}, seed {seed}, {label}: {row}", flush=True)
            print(f"  {time.process_time() - start_s:.0f} s of processor time", flush=True)
            write_file(path, lambda temporary: temporary.write_text(json.dumps(rows, indent=1)))
    return rows


def train(name, setting, seed, data, out_dir):
    """Trains a network with one setting and exports it.

    Returns:
        {label: row} with "test", the accuracy of `predict` in percent, "file", that of the TFLite
        file, and its "bytes"; two rows of the float network, one of its stock int8 file.
    """
    keras.utils.set_random_seed(seed)
    path = out_dir / file_name(name, setting, seed)
    images, test = data[0], (data[2].astype("float32"), data[3])
    calibration = images[:CALIBRATION_EXAMPLES].astype("float32")
    if setting == TFMOT:
        model = tfmot_resnet8(calibration)
        fit(model, name, seed, data, kit=tf_keras())
        return {setting: {"test": accuracy(model, test), **write(path, convert(model), test)}}
    network = cifar_networks.build_float(name, FLAGS.model_dir)
    if setting == FLOAT:
        fit(network, name, seed, data)
        stock = out_dir / file_name(name, STOCK, seed)
        return {
            FLOAT: {"test": accuracy(network, test), **write(path, convert(network), test)},
            STOCK: write(stock, convert(network, calibration), test),
        }
    w_bits, a_bits, distillation = OURS[setting]
    model = speq_keras.wrap(network, w_bits, a_bits, distillation=distillation, seed=seed)
    model.calibrate(calibration, verbose=0)
    fit(model, name, seed, data)
    row = {"test": accuracy(model, test)}
    if a_bits < 8:
        model.set_bits(activations=8)
        row["at_a8"] = accuracy(model, test)
        model.set_bits(activations=a_bits)
    model.settle()
    settled = model.predict(test[0], batch_size=250, verbose=0).argmax(-1)
    model.export_tflite(path)
    classes = run(path.read_bytes(), test[0])
    row |= {"file": percent(classes == test[1]), "same": percent(classes == settled)}
    row["bytes"] = path.stat().st_size
    smallest = path.with_suffix(".smallest.tflite")
    model.settle(storage="smallest")
    model.export_tflite(smallest, storage="smallest")
    return {setting: row | {"smallest": smallest.stat().st_size}}


def fit(model, name, seed, data, kit=keras):
    """Trains a model; `kit` is the Keras that it is of."""
    rate = kit.optimizers.schedules.CosineDecay(FLAGS.learning_rate, FLAGS.steps)
    from_logits = cifar_networks.FROM_LOGITS[name] or kit is not keras
    model.compile(
        kit.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        kit.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
    )
    stream = cifar_stream.TrainingStream(
        *data[:2], seed=seed, batch_size=FLAGS.batch_size, steps_per_epoch=FLAGS.steps
    )
    model.fit(stream.batches(0), steps_per_epoch=FLAGS.steps, shuffle=False, verbose=0)


def accuracy(model, test):
    images, labels = test
    return percent(model.predict(images, batch_size=250, verbose=0).argmax(-1) == labels)


def percent(is_right):
    return 100 * float(np.mean(is_right))


# ---- other packages --------------------------------------------------------------------------


def tf_keras():
    """Returns tf_keras, which tensorflow-model-optimization is for."""
    import tf_keras as kit

    return kit


def tfmot_resnet8(calibration):
    """Returns ResNet-8 with tfmot's 8 bits; its ranges have seen the calibration images."""
    import tensorflow_model_optimization as tfmot
    from peer_worker import resnet8

    kit = tf_keras()
    regularizer = kit.regularizers.L2(1e-4)
    conv = functools.partial(kit.layers.Conv2D, kernel_regularizer=regularizer)
    network, ours = resnet8(kit, conv=conv), cifar_networks.build_float("resnet8", FLAGS.model_dir)
    names = {"conv": "conv", "dense": "linear", "shortcut2": "block2.shortcut"}
    names["shortcut3"] = "block3.shortcut"
    names |= {f"conv{block}_{n}": f"block{block}.conv{n}" for block in (1, 2, 3) for n in (1, 2)}
    for theirs, own in names.items():
        network.get_layer(theirs).set_weights(ours.get_layer(own).get_weights())
    for theirs, own in zip(batch_norms(network), batch_norms(ours), strict=True):
        theirs.set_weights(own.get_weights())
    model = tfmot.quantization.keras.quantize_model(network)
    see_ranges(model, calibration)
    return model


def batch_norms(network):
    """Returns the BatchNormalization layers; each needs the one before, so the order is one."""
    return [layer for layer in network.layers if type(layer).__name__ == "BatchNormalization"]


def see_ranges(model, images, *, steps=3000, batch_size=32):
    """Moves tfmot's ranges, which begin at ±6 and move by a thousandth per step, to the images'."""
    call = tf.function(lambda x: model(x, training=True))
    for step in range(steps):
        start = step * batch_size % len(images)
        call(images[start : start + batch_size])


def convert(model, calibration=None):
    """Returns the stock converter's file: int8 where the model or images have its ranges."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if calibration is not None or not isinstance(model, keras.Model):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if calibration is not None:
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


# ---- files -----------------------------------------------------------------------------------


def file_name(name, setting, seed):
    return f"{name}_{setting.replace('/', '').replace(', ', '_').replace(' ', '_')}_{seed}.tflite"


def write(path, content, test):
    """Writes a file; returns its accuracy and its size."""
    path.write_bytes(content)
    images, labels = test
    return {"file": percent(run(content, images) == labels), "bytes": len(content)}


def run(content, images):
    """Returns the classes that a file computes."""
    return speq_keras.export.run_file(content, images)[0].argmax(-1)


def latencies_us(paths):
    """Returns the shortest time of each file on one thread; turns are interleaved."""
    interpreters = []
    for path in paths:
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
        interpreters.append(interpreter)
    shortest_ns = np.full(len(paths), np.inf)
    for _ in range(FLAGS.rounds):
        for index, interpreter in enumerate(interpreters):
            for _ in range(5):
                start_ns = time.thread_time_ns()
                interpreter.invoke()
                shortest_ns[index] = min(shortest_ns[index], time.thread_time_ns() - start_ns)
    return shortest_ns / 1e3


def markdown_table(name, rows, out_dir):
    """Returns the table of a network: mean and standard deviation over the seeds."""
    paths = [out_dir / file_name(name, setting, min(map(int, rows[setting]))) for setting in rows]
    times_us = dict(zip(rows, latencies_us(paths), strict=True))
    lines = [
        f"{name}: {FLAGS.steps} steps of {FLAGS.batch_size} images for each setting, seeds "
        f"{', '.join(map(str, FLAGS.seed))}, {FLAGS.test_examples} test images.",
        "",
        "| setting | trained, % | evaluated at A8, % | its file, % | same class, % | kB "
        "| `smallest`, kB | latency, µs |",
        "| --- " * 8 + "|",
    ]
    for setting, by_seed in rows.items():
        own = list(by_seed.values())
        cells = [spread(own, key) for key in ("test", "at_a8", "file", "same")]
        sizes = [np.mean([row.get(key, np.nan) for row in own]) for key in ("bytes", "smallest")]
        cells += ["" if np.isnan(size) else f"{size / 1e3:.0f}" for size in sizes]
        lines.append(f"| {' | '.join([setting, *cells, f'{times_us[setting]:.0f}'])} |")
    return "\n".join(lines)


def spread(rows, key):
    """Returns mean ± standard deviation, or an empty cell."""
    if key not in rows[0]:
        return ""
    values = [row[key] for row in rows]
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=min(1, len(values) - 1)):.2f}"


if __name__ == "__main__":
    app.run(main)
