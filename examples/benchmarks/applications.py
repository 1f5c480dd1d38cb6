"""Every classifier of `keras.applications`: wrap it, train one step, count what stays in float.

    python examples/benchmarks/applications.py
    python examples/benchmarks/applications.py --only='MobileNet*' --out_dir=/tmp/applications
    python examples/benchmarks/applications.py --export

Each network runs in a process of its own, so that its peak memory is its own and a failure is one
row. Weights are random and images small: time and memory are those of building, wrapping and the
first training step, compilation included. Prints a Markdown table; rows are added to
`applications.json` as they come, and a network that has one there is not run again. With --export
every network is exported as a TFLite file too, on generated inputs, and a second table has what the
proof found.
"""

import json
import os
import pathlib
import resource
import sys
import tempfile
import time

import keras
import network_rows
import numpy as np
from absl import app, flags

import speq_keras

FLAGS = flags.FLAGS
flags.DEFINE_string("only", "*", "Networks to run, as a shell pattern.")
flags.DEFINE_integer("w_bits", 3, "Width of the weights, in bits.", 2, 8)
flags.DEFINE_integer("a_bits", 3, "Width of the activations, in bits.", 2, 8)
flags.DEFINE_integer("side_px", 64, "Height and width of the images, in pixels.", 32)
flags.DEFINE_integer("batch_size", 2, "Images in the training step.", 1)
flags.DEFINE_integer("timeout_s", 1800, "After so many seconds a network is given up.", 1)
flags.DEFINE_bool("cpu_time", False, "Count processor instead of wall seconds: on a busy machine.")
flags.DEFINE_bool("train", True, "Take the training step; --notrain --export only exports.")
flags.DEFINE_bool("export", False, "Export each network to TFLite, with the proof.")
flags.DEFINE_bool("retry", False, "Run networks again whose row is an error.")
flags.DEFINE_string("out_dir", "out/benchmarks", "Folder for applications.json.")
flags.DEFINE_string("run_one", None, "Run this network here and print its row as JSON.")

CLASSES = 10
# Networks that refuse smaller images.
MINIMUM_SIDE_PX = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}
OK = "ok"


def main(_):
    if FLAGS.run_one:
        print(json.dumps(run_one(FLAGS.run_one)))
        return
    names = network_rows.chosen(classifiers(), FLAGS.only)
    path = pathlib.Path(FLAGS.out_dir, "applications.json")
    table = network_rows.collect(names, path, is_done=is_done, run=run_in_a_process)
    print(f"\n{markdown_table(table)}")


def is_done(row):
    """Whether a row of an earlier run is what this one asks for."""
    if row["result"] != OK:
        return not FLAGS.retry
    return "export" in row or not FLAGS.export


def classifiers():
    """Returns the names of the networks in `keras.applications`; modules there are lower case."""
    return sorted(name for name in dir(keras.applications) if name[0].isupper())


def run_in_a_process(name):
    """Runs this program for one network and returns its row, whatever happens there."""
    flags_of_all = ["w_bits", "a_bits", "side_px", "batch_size", "cpu_time", "train", "export"]
    arguments = [f"--{flag}={FLAGS[flag].value}" for flag in flags_of_all]
    return network_rows.run_in_a_process(
        __file__, [f"--run_one={name}", *arguments], FLAGS.timeout_s
    )


def run_one(name):
    """Builds, wraps and trains one network.

    Returns:
        Its row: seconds of each part, peak memory in MB, and how many layers stay in float and why.
    """
    clock = time.process_time if FLAGS.cpu_time else time.perf_counter  # of all threads together
    clock_s = [clock()]

    def lap():
        clock_s.append(clock())
        return round(clock_s[-1] - clock_s[-2], 2)

    keras.utils.set_random_seed(0)
    side_px = max(FLAGS.side_px, MINIMUM_SIDE_PX.get(name, 0))
    shape = (side_px, side_px, 3)
    network = getattr(keras.applications, name)(weights=None, input_shape=shape, classes=CLASSES)
    build_s = lap()
    model = speq_keras.wrap(network, w_bits=FLAGS.w_bits, a_bits=FLAGS.a_bits, seed=0)
    wrap_s = lap()
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (FLAGS.batch_size, *shape)).astype("float32")
    labels = generator.integers(0, CLASSES, FLAGS.batch_size)
    # Random weights have no moving statistics worth the name: use those of the batch.
    model.calibrate(images, training=True, verbose=0)
    calibrate_s = lap()
    loss = 0.0
    if FLAGS.train:
        model.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
        history = model.fit(images, labels, batch_size=FLAGS.batch_size, verbose=0).history
        loss = history["loss"][-1]
    step_s = lap()

    float_layers = model.plan().float_layers
    seconds = round(clock_s[-1] - clock_s[0], 1)
    export = export_row(model, images, lap) if FLAGS.export else {}
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "result": OK if np.isfinite(loss) else f"the loss is {loss}",
        "side_px": side_px,
        "parameters": network.count_params(),
        "layers": len(network.layers),
        "build_s": build_s,
        "wrap_s": wrap_s,
        "calibrate_s": calibrate_s,
        "step_s": step_s,
        "seconds": seconds,
        # In bytes on macOS, in kB elsewhere.
        "peak_memory_mb": round(peak_memory / (1e6 if sys.platform == "darwin" else 1e3)),
        "float_layers": float_layers,
        **export,
    }


def export_row(model, images, lap):
    """Exports a network whose statistics and ranges are made those of `images` first."""
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        model.reestimate_batch_norm(images)
    model.calibrate(images, verbose=0)
    lap()
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = model.export_tflite(f"{folder}/{model.name}.tflite", data=images, strict=False)
        except (ValueError, RuntimeError) as error:
            return {"export": {"result": str(error)}}
    proof = report.proof
    return {
        "export": {
            "result": OK if proof.holds else proof.first_failure(),
            "export_s": lap(),
            "file_bytes": report.bytes,
            "codes": proof.compared,
            "mismatches": proof.mismatches,
            "outside": proof.outside,
            "partitions": report.partitions.partitions,
            "others": report.partitions.others,
        }
    }


def markdown_table(rows):
    """Returns the rows as a Markdown table, and below it why layers stay in float."""
    lines = [
        f"W{FLAGS.w_bits}/A{FLAGS.a_bits}, batch size {FLAGS.batch_size}, "
        f"{os.cpu_count()} CPU cores; {'processor' if FLAGS.cpu_time else 'wall'} time.",
        "",
        "| network | pixels | M params | wrap, s | calibrate, s | first step, s | all, s "
        "| peak, MB | float layers | result |",
        "| --- " * 10 + "|",
    ]
    reasons = {}
    for name, row in rows.items():
        if row["result"] != OK:
            result = row["result"].replace("|", "/")
            lines.append(f"| {name} {'| - ' * 8}| {result} |")
            continue
        for reason in row["float_layers"].values():
            reasons.setdefault(reason, set()).add(name)
        lines.append(
            f"| {name} | {row['side_px']} | {row['parameters'] / 1e6:.1f} | {row['wrap_s']:.1f} "
            f"| {row['calibrate_s']:.1f} | {row['step_s']:.1f} | {row['seconds']:.0f} "
            f"| {row['peak_memory_mb']} | {len(row['float_layers'])} of {row['layers']} | {OK} |"
        )
    if reasons:
        lines += ["", "Layers stay in float because:"]
        lines += [f"- {reason} ({', '.join(sorted(names))})" for reason, names in reasons.items()]
    exports = {name: row["export"] for name, row in rows.items() if "export" in row}
    return "\n".join([*lines, *export_table(exports)])


def export_table(exports):
    """Returns the lines of the table of exports; none without any."""
    if not exports:
        return []
    lines = [
        "",
        "| network | export, s | int8, kB | codes compared | differ from the simulation "
        "| no nearest code | XNNPACK partitions | outside of XNNPACK | result |",
        "| --- " * 9 + "|",
    ]
    for name, row in exports.items():
        result = row["result"].replace("|", "/")
        if "export_s" not in row:
            lines.append(f"| {name} {'| - ' * 7}| {result} |")
            continue
        others = ", ".join(f"{count} {kind}" for kind, count in sorted(row["others"].items()))
        lines.append(
            f"| {name} | {row['export_s']:.1f} | {row['file_bytes'] / 1e3:,.0f} "
            f"| {row['codes']:,} | {row['mismatches']:,} | {row['outside']:,} "
            f"| {row['partitions']} | {others or '-'} | {result} |"
        )
    return lines


if __name__ == "__main__":
    app.run(main)
