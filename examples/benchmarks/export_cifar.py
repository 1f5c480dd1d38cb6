"""Trained CIFAR-10 networks as integer TFLite files: is the file the network that was trained?

    python examples/benchmarks/export_cifar.py --model_dir=FLOAT
    python examples/benchmarks/export_cifar.py --model_dir=FLOAT --only='resnet20_w3*' --steps=500

FLOAT is a folder with float weights by the names of the networks: resnet8.keras, resnet20.npz, ...
(`examples/cifar.py --stages=pretrain` trains them). Each network is trained on with quantizers for
a few steps and exported twice, before and after `settle`; both times `predict` and the file are run
on the test images. Every code of the second file is compared with the trained graph and with the
simulation in Python on the first images. Prints a Markdown table; rows are added to
`export_cifar.json` as they come. Trained networks stay in `--out_dir` and are not trained again.
"""

import dataclasses
import fnmatch
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of the next imports
import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
from absl import app, flags

import cifar_data
import cifar_networks
import cifar_stream
import speq_keras

# Network, width of weights and activations in bits, activation quantizer.
CASES = (
    *(("resnet8", bits, "pact") for bits in (2, 3, 4)),
    *(("resnet20", bits, "pact") for bits in (2, 3, 4)),
    *(("swish", bits, "lsq_plus") for bits in (3, 4)),
    ("swish", 4, "pact"),
    *(("dense", bits, "pact") for bits in (3, 4)),
)

FLAGS = flags.FLAGS
flags.DEFINE_string("model_dir", None, "Folder with the float weights of the networks.")
flags.DEFINE_string("only", "*", "Cases to run, as a shell pattern: 'resnet8_w2*'.")
flags.DEFINE_integer("steps", 200, "Steps of quantized training.", 1)
flags.DEFINE_integer("batch_size", 128, "Images per step.", 1)
flags.DEFINE_float("learning_rate", 0.02, "Learning rate at the start; it falls to zero.", 0.0)
flags.DEFINE_integer("test_examples", 10_000, "Compare classes on so many test images.", 1, 10_000)
flags.DEFINE_integer("proof_examples", 1_000, "Compare every code on the first so many.", 1)
flags.DEFINE_enum("storage", "int8", speq_keras.export.STORAGES, "Storage of the weights.")
flags.DEFINE_integer("seed", 0, "Seed of the training.")
flags.DEFINE_string("data_dir", None, "Folder that holds cifar10/; default ~/tensorflow_datasets.")
flags.DEFINE_bool("download", False, "Download CIFAR-10 (170 MB) to --data_dir if not there.")
flags.DEFINE_string("out_dir", "out/benchmarks/export_cifar", "Folder for files and networks.")

PROOF_BATCH = 32  # an export proves itself on so many images
PREDICT_BATCH = 250


def main(_):
    cases = [case for case in CASES if fnmatch.fnmatch(case_name(*case), FLAGS.only)]
    if not cases:
        known = ", ".join(case_name(*case) for case in CASES)
        raise SystemExit(f"--only matches no case. Received: {FLAGS.only}. Known: {known}.")
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
    path = out_dir / "export_cifar.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    for case in cases:
        name = case_name(*case)
        print(f"{name}: {FLAGS.steps} steps", flush=True)
        model = trained_network(*case, data, out_dir / f"{name}.keras")
        rows[name] = compare(model, data, out_dir / f"{name}.tflite")
        print(json.dumps(rows[name]), flush=True)
        temporary = path.with_name(f"{os.getpid()}_{path.name}")
        temporary.write_text(json.dumps(rows, indent=1))
        temporary.replace(path)
    print(f"\n{markdown_table({case_name(*case): rows[case_name(*case)] for case in cases})}")


def case_name(network, bits, activation_quantizer):
    return f"{network}_w{bits}a{bits}_{activation_quantizer}"


def trained_network(name, bits, activation_quantizer, data, path):
    """Returns a network after `--steps` steps of plain quantized training from float weights."""
    if path.exists():
        return keras.saving.load_model(path)
    images, labels = data[:2]
    keras.utils.set_random_seed(FLAGS.seed)
    network = cifar_networks.build_float(name, FLAGS.model_dir)
    model = speq_keras.wrap(
        network,
        w_bits=bits,
        a_bits=bits,
        activation_quantizer=activation_quantizer,
        distillation=None,
        seed=FLAGS.seed,
    )
    model.calibrate(images[:512].astype("float32"), verbose=0)
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, FLAGS.steps),
            momentum=0.9,
            nesterov=True,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=cifar_networks.FROM_LOGITS[name]),
    )
    stream = cifar_stream.TrainingStream(
        images, labels, seed=FLAGS.seed, batch_size=FLAGS.batch_size, steps_per_epoch=FLAGS.steps
    )
    model.fit(stream.batches(0), steps_per_epoch=FLAGS.steps, shuffle=False, verbose=2)
    model.save(path)
    return model


def compare(model, data, path):
    """Exports a network, before and after settling, and compares `predict` with the file.

    Returns:
        Its row: a dict of numbers.
    """
    images, labels = data[2].astype("float32"), data[3]
    before = predict_and_file(model, images, labels, path)
    settlement = model.settle(storage=FLAGS.storage)
    after = predict_and_file(model, images, labels, path)
    folded = speq_keras.fold(model, storage=FLAGS.storage)
    start_s = time.perf_counter()
    folded.predict(images[: FLAGS.proof_examples])
    simulate_s = time.perf_counter() - start_s
    report = model.export_tflite(path, storage=FLAGS.storage, data=images[:32])
    return {
        "test_examples": len(images),
        "before": before,
        "after": after,
        "settlement": dataclasses.asdict(settlement),
        **proof_of(model, images, path),
        "steps_from_ties": steps_from_ties(model, images, path),
        "simulate_s": simulate_s,
        "export_s": report.seconds,
        "bytes": report.bytes,
        "gzip_bytes": report.gzip_bytes,
        "partitions": report.partitions.partitions,
        "others": report.partitions.others,
        "notes": list(report.notes),
    }


def predict_and_file(model, images, labels, path):
    """Returns both accuracies and how often `predict` and the file have the same class."""
    model.export_tflite(path, storage=FLAGS.storage, data=images[:32])
    trained = model.predict(images, batch_size=PREDICT_BATCH, verbose=0).argmax(axis=-1)
    file = speq_keras.export.run_file(path.read_bytes(), images)[0].argmax(axis=-1)
    return {
        "trained": float(np.mean(trained == labels)),
        "file": float(np.mean(file == labels)),
        "agreement": float(np.mean(trained == file)),
        "different": np.flatnonzero(trained != file).tolist(),
    }


def proofs(model, images, path):
    """Yields the proofs of one export after the other, on all images."""
    for start in range(0, len(images), PROOF_BATCH):
        batch = images[start : start + PROOF_BATCH]
        yield model.export_tflite(path, storage=FLAGS.storage, data=batch).proof


def proof_of(model, images, path):
    """Returns what the proof finds on the first images."""
    compared = mismatches = outside = 0
    deviation = 0.0
    for proof in proofs(model, images[: FLAGS.proof_examples], path):
        compared += proof.compared
        mismatches += proof.mismatches
        outside += proof.outside
        deviation = max(deviation, proof.deviation)
    return {
        "codes_compared": compared,
        "codes_different": mismatches,
        "codes_outside": outside,
        "deviation_steps": deviation,
    }


def steps_from_ties(model, images, path):
    """Returns how far codes of images with another class in the file are from ties, at most.

    A code that `predict` has otherwise lies further than half a step from what it rounds, if only
    by the last bits of float32.
    """
    trained = model.predict(images, batch_size=PREDICT_BATCH, verbose=0).argmax(axis=-1)
    file = speq_keras.export.run_file(path.read_bytes(), images)[0].argmax(axis=-1)
    different = images[trained != file]
    return max((proof.deviation - 0.5 for proof in proofs(model, different, path)), default=0.0)


def markdown_table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        f"{FLAGS.steps} steps of {FLAGS.batch_size} images, storage {FLAGS.storage}, "
        f"{FLAGS.test_examples} test images, `predict` in batches of {PREDICT_BATCH}; codes as "
        f"simulated, and from ties, on the first {FLAGS.proof_examples}.",
        "",
        "| network | predict, % | settled, % | file, % | same class before, % | settled, % "
        "| codes as simulated | biases moved, steps | scales moved, % | kB |",
        "| --- " * 10 + "|",
    ]
    for name, row in rows.items():
        same = row["codes_compared"] - row["codes_different"]
        biases = max(row["settlement"]["biases"].values(), default=0)
        scales = max((abs(x - 1) for x in row["settlement"]["scales"].values()), default=0)
        cells = (
            name,
            f"{row['before']['trained']:.2%}"[:-1],
            f"{row['after']['trained']:.2%}"[:-1],
            f"{row['after']['file']:.2%}"[:-1],
            f"{row['before']['agreement']:.2%}"[:-1],
            f"{row['after']['agreement']:.2%}"[:-1],
            f"{same:,} of {row['codes_compared']:,}",
            f"{biases:.3f}",
            f"{scales:.3%}"[:-1],
            f"{row['bytes'] / 1e3:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
