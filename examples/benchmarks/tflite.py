"""Latency and size of TFLite files: speq_keras against what TensorFlow's own converter makes.

    python examples/benchmarks/tflite.py
    python examples/benchmarks/tflite.py --networks=EfficientNetB0 --activation_quantizer=lsq_plus

Weights are random: time and size do not depend on what they are. The stock converter makes three
files of the float network (float32, dynamic range, int8 after calibration); `export_tflite` makes
one of the settled model per storage and choice of widths. All files of a network take turns on one
thread, and the shortest run of each counts. Time is that of the thread: other programs on the
machine are not in it, nor in that of the export, which is processor time. Prints a Markdown table;
writes `tflite_pact.json` or `tflite_lsq_plus.json`. Files of the stock converter stay in
`--out_dir` and are not made again.
"""

import json
import os
import pathlib
import sys
import time
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of the next imports
import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from ai_edge_litert.interpreter import Interpreter

import cifar_networks
import speq_keras

NETWORKS = ("resnet8", "resnet20", "MobileNetV2", "EfficientNetB0", "MobileNetV3Large", "DarkNet")

FLAGS = flags.FLAGS
flags.DEFINE_list("networks", list(NETWORKS), f"Some of {', '.join(NETWORKS)}.")
flags.DEFINE_integer("w_bits", 3, "Width of the weights, in bits.", 2, 8)
flags.DEFINE_integer("a_bits", 3, "Width of the activations, in bits.", 2, 8)
flags.DEFINE_enum(
    "activation_quantizer",
    "pact",
    speq_keras.quantizers.ACTIVATION_QUANTIZERS,
    "How activations are quantized.",
)
flags.DEFINE_integer("side_px", 224, "Height and width of the images of the large networks.")
flags.DEFINE_integer("rounds", 30, "How often each file gets its turn.", 20)
flags.DEFINE_integer("runs", 2, "Runs in one turn; the shortest counts.", 1)
flags.DEFINE_string("out_dir", "out/benchmarks/tflite", "Folder for the files.")

STOCK_INT8 = "stock int8"
# Name of a file: storage, and which weights have 8 bits. The weights of squeeze-excite blocks have
# w_bits unless somebody says otherwise, the first and the last layer 8 bits.
OURS = {
    "int8": ("int8", "boundary"),
    "int4, SE 8-bit": ("int4", "boundary and squeeze-excite"),
    "int4": ("int4", "boundary"),
    "int4, all w_bits": ("int4", "none"),
    "smallest, all w_bits": ("smallest", "none"),
}


def main(_):
    unknown = sorted(set(FLAGS.networks) - set(NETWORKS))
    if unknown:
        raise SystemExit(f"--networks takes {', '.join(NETWORKS)}. Received: {', '.join(unknown)}.")
    warnings.filterwarnings("ignore", category=UserWarning)  # the converter's, of its own saving
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in FLAGS.networks:
        rows[name] = measure(name, out_dir)
        print(f"\n{markdown_table({name: rows[name]})}\n", flush=True)
    print(f"\n{markdown_table(rows)}")
    path = out_dir / f"tflite_{FLAGS.activation_quantizer}.json"
    temporary = path.with_name(f"{os.getpid()}_{path.name}")
    temporary.write_text(json.dumps(rows, indent=1))
    temporary.replace(path)


def measure(name, out_dir):
    """Returns {name of a file: its row} for one network."""
    keras.utils.set_random_seed(0)
    network = build(name)
    images = np.random.default_rng(0).uniform(0, 255, (8, *network.input_shape[1:]))
    images = images.astype("float32")
    settle_batch_norm(network, images)
    rows = {}
    for label, convert in STOCK.items():
        path = out_dir / f"{name}_{label.replace(' ', '_')}.tflite"
        if not path.exists():
            print(f"{name}: {label}", flush=True)
            path.write_bytes(convert(network, images))
        rows[label] = describe_file(path, network)
    for label, (storage, wide) in OURS.items():
        if "squeeze-excite" in wide and not squeeze_excite_layers(network):
            continue
        print(f"{name}: {label}", flush=True)
        kind = label.replace(", ", "_").replace(" ", "_")
        path = out_dir / f"{name}_{FLAGS.activation_quantizer}_{kind}.tflite"
        model = wrap(network, wide)
        model.calibrate(images, verbose=0)
        model.settle(verbose=0)
        start_s = time.process_time()
        report = model.export_tflite(path, storage=storage)
        cpu_s = time.process_time() - start_s
        rows[label] = {
            **describe_file(path, network),
            "export_s": report.seconds,
            "export_cpu_s": cpu_s,
            "mismatches": report.proof.mismatches,
        }
    times_ms = latencies({label: row["path"] for label, row in rows.items()}, images[:1])
    for label, row in rows.items():
        row["ms"] = times_ms[label]
        row["ratio"] = times_ms[label] / times_ms[STOCK_INT8]
        row["bytes_ratio"] = row["bytes"] / rows[STOCK_INT8]["bytes"]
    return rows


def build(name):
    """Returns a float network with random weights, without a softmax where it can be left out."""
    if name in cifar_networks.NAMES:
        return cifar_networks.build(name)
    if name == "DarkNet":
        return darknet(FLAGS.side_px)
    return getattr(keras.applications, name)(
        weights=None,
        input_shape=(FLAGS.side_px, FLAGS.side_px, 3),
        classifier_activation=None,
    )


def darknet(side_px, filters=(16, 32, 64, 128, 256)):
    """Returns a network like the first half of YOLO's: convolutions and leaky ReLUs."""
    layers = keras.layers
    x = inputs = keras.Input((side_px, side_px, 3))
    x = layers.Rescaling(1 / 255)(x)
    for stage, count in enumerate(filters):
        for strides in (2, 1) if stage else (1,):
            x = layers.Conv2D(count, 3, strides, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
            x = layers.LeakyReLU(negative_slope=0.1)(x)
    return keras.Model(inputs, layers.Dense(1000)(layers.GlobalAveragePooling2D()(x)))


def settle_batch_norm(network, images):
    """Gives BatchNormalization the statistics of some images: with none, signals fade or grow."""
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    network(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def wrap(network, wide):
    """Returns a quantized copy in which the weights of the layers that `wide` names have 8 bits."""
    layers = network.layers
    weighted = [x for x in layers if isinstance(x, keras.layers.Dense | keras.layers.Conv2D)]
    configs = {}
    if "squeeze-excite" in wide:
        config = speq_keras.configs.QuantizeConfig(w_bits=8, a_bits=8)
        configs = dict.fromkeys(squeeze_excite_layers(network), config)
    if wide == "none":
        config = speq_keras.configs.QuantizeConfig(w_bits=FLAGS.w_bits, a_bits=8)
        configs = dict.fromkeys([weighted[0].name, weighted[-1].name], config)
    return speq_keras.wrap(
        network,
        w_bits=FLAGS.w_bits,
        a_bits=FLAGS.a_bits,
        activation_quantizer=FLAGS.activation_quantizer,
        configs=configs,
        seed=0,
    )


def squeeze_excite_layers(network):
    names = (layer.name for layer in network.layers)
    return [name for name in names if name.endswith(("se_reduce", "se_expand"))]


# The stock converter.


def float32(network, images):
    return tf.lite.TFLiteConverter.from_keras_model(network).convert()


def dynamic_range(network, images):
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def int8(network, images):
    """Float at both ends, like `export_tflite`; everything between in int8."""
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


STOCK = {"stock float32": float32, "stock dynamic range": dynamic_range, STOCK_INT8: int8}


# Measurements.


def describe_file(path, network):
    """Returns what can be read off a file: sizes, partitions, names, float tensors inside."""
    content = path.read_bytes()
    parts = speq_keras.export.partitions(content)
    interpreter = Interpreter(model_content=content)
    (signature,) = interpreter.get_signature_list().values()
    ends = {
        detail["index"]
        for detail in (*interpreter.get_input_details(), *interpreter.get_output_details())
    }
    details = interpreter.get_tensor_details()
    names = [tensor.name for tensor in network.inputs], list(network.output_names)
    return {
        "path": str(path),
        "bytes": len(content),
        "partitions": parts.partitions,
        "delegated": parts.delegated,
        "others": parts.others,
        "float_tensors": sum(
            detail["dtype"] is np.float32 and detail["index"] not in ends for detail in details
        ),
        "keeps_names": (list(signature["inputs"]), list(signature["outputs"])) == names,
    }


def latencies(paths, image):
    """Returns the shortest time of each file in milliseconds of its thread."""
    interpreters = {}
    for label, path in paths.items():
        interpreter = Interpreter(model_path=path, num_threads=1)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        interpreter.invoke()
        interpreters[label] = interpreter
    shortest_ns = dict.fromkeys(paths, np.inf)
    for _ in range(FLAGS.rounds):
        for label, interpreter in interpreters.items():
            for _ in range(FLAGS.runs):
                start_ns = time.thread_time_ns()
                interpreter.invoke()
                taken_ns = time.thread_time_ns() - start_ns
                shortest_ns[label] = min(shortest_ns[label], taken_ns)
    return {label: 1e-6 * ns for label, ns in shortest_ns.items()}


def markdown_table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        f"W{FLAGS.w_bits}/A{FLAGS.a_bits}, {FLAGS.activation_quantizer}; one thread, shortest of "
        f"{FLAGS.rounds * FLAGS.runs} runs; ratios to {STOCK_INT8}.",
        "",
        "| network | file | ms | ratio | kB | ratio | XNNPACK partitions | operations outside "
        "| names kept | export, CPU s |",
        "| --- " * 10 + "|",
    ]
    for name, files in rows.items():
        for label, row in files.items():
            others = ", ".join(f"{count} {op}" for op, count in sorted(row["others"].items()))
            cells = (
                name,
                label,
                f"{row['ms']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['bytes'] / 1e3:,.0f}",
                f"{row['bytes_ratio']:.2f}",
                str(row["partitions"]),
                others or "none",
                "yes" if row["keeps_names"] else "no",
                f"{row['export_cpu_s']:.1f}" if "export_cpu_s" in row else "-",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
