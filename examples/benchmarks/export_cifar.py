"""Trained CIFAR-10 networks as integer TFLite files: is the file the network that was trained?

    python examples/benchmarks/export_cifar.py --model_dir=FLOAT
    python examples/benchmarks/export_cifar.py --model_dir=FLOAT --only='resnet20_w3*' --steps=500

FLOAT is a folder with float weights by the names of the networks: resnet8.keras, resnet20.npz, ...
(`examples/cifar.py --stages=pretrain` trains them). Each network is trained on with quantizers for
a few steps, exported, and compared on the test images with its simulation in Python, with the
folded network in float arithmetic, and with the training graph. Prints a Markdown table; rows are
added to `export_cifar.json` as they come. Trained networks stay in `--out_dir` and are not trained
again.
"""

import fnmatch
import json
import os
import pathlib
import sys
import time

import keras
import numpy as np
from absl import app, flags

import speq_keras
from speq_keras.export.proof import prove
from speq_keras.export.runtimes import run_file

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # the folder of the next imports
import cifar_data
import cifar_networks
import cifar_stream

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
flags.DEFINE_enum("storage", "int8", ("int8", "int4", "smallest"), "Storage of the weights.")
flags.DEFINE_integer("seed", 0, "Seed of the training.")
flags.DEFINE_string("data_dir", None, "Folder that holds cifar10/; default ~/tensorflow_datasets.")
flags.DEFINE_bool("download", False, "Download CIFAR-10 (170 MB) to --data_dir if not there.")
flags.DEFINE_string("out_dir", "out/benchmarks/export_cifar", "Folder for files and networks.")

PROOF_BATCH = 100  # images whose tensors are in memory together


def main(_):
    cases = [case for case in CASES if fnmatch.fnmatch(case_name(*case), FLAGS.only)]
    if not cases:
        known = ", ".join(case_name(*case) for case in CASES)
        raise SystemExit(f"--only matches no case. Received: {FLAGS.only}. Known: {known}.")
    if not FLAGS.model_dir:
        raise SystemExit("Float weights are needed: pass --model_dir.")
    try:
        data = cifar_data.load(
            FLAGS.data_dir,
            download=FLAGS.download,
            train_examples=50_000,
            test_examples=FLAGS.test_examples,
        )
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
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
    found = sorted(pathlib.Path(FLAGS.model_dir).glob(f"{name}.*"))
    if not found:
        raise SystemExit(f"--model_dir has no weights of {name}. Received: {FLAGS.model_dir}")
    images, labels = data[:2]
    keras.utils.set_random_seed(FLAGS.seed)
    network = cifar_networks.build(name)
    cifar_networks.load_weights(network, found[0])
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
    model.fit(stream.dataset, shuffle=False, verbose=2)
    model.save(path)
    return model


def compare(model, data, path):
    """Exports a network and compares the file with everything it could differ from.

    Returns:
        Its row: a dict of numbers.
    """
    images, labels = data[2].astype("float32"), data[3]
    report = model.export_tflite(path, storage=FLAGS.storage, data=images[:32])
    content = path.read_bytes()
    folded = speq_keras.fold(model, storage=FLAGS.storage)

    proof_images = images[: FLAGS.proof_examples]
    start_s = time.perf_counter()
    simulated = folded.predict(proof_images)
    simulate_s = time.perf_counter() - start_s
    file = run_file(content, images)[0]
    in_float = in_batches(folded.predict_float, images)
    trained = in_batches(lambda x: keras.ops.convert_to_numpy(model.predict_on_batch(x)), images)

    compared = mismatches = outside = 0
    deviation = 0.0
    for start in range(0, len(proof_images), PROOF_BATCH):
        batch = proof_images[start : start + PROOF_BATCH]
        proof = prove(folded.steps, folded.network, content, [batch])
        compared += proof.compared
        mismatches += proof.mismatches
        outside += proof.outside
        deviation = max(deviation, proof.deviation)

    def accuracy(outputs):
        return float(np.mean(outputs.argmax(-1) == labels))

    different = file.argmax(-1) != in_float.argmax(-1)
    return {
        "test_examples": len(images),
        "trained": accuracy(trained),
        "folded_float": accuracy(in_float),
        "file": accuracy(file),
        "equal_simulation": float(np.mean(np.all(file[: len(simulated)] == simulated, axis=-1))),
        "equal_float": float(np.mean(np.all(np.isclose(file, in_float, rtol=1e-5), axis=-1))),
        "agreement_float": float(1 - np.mean(different)),
        "agreement_trained": float(np.mean(file.argmax(-1) == trained.argmax(-1))),
        # Where file and float do not agree: how far the two classes are apart in the file.
        "steps_apart": steps_apart(file[different], in_float[different]),
        "proof_examples": len(proof_images),
        "codes_compared": compared,
        "codes_different": mismatches,
        "codes_outside": outside,
        "deviation_steps": deviation,
        "simulate_s": simulate_s,
        "export_s": report.seconds,
        "bytes": report.bytes,
        "gzip_bytes": report.gzip_bytes,
        "partitions": report.partitions.partitions,
        "others": report.partitions.others,
        "notes": list(report.notes),
    }


def in_batches(function, images, size=250):
    return np.concatenate([function(images[i : i + size]) for i in range(0, len(images), size)])


def steps_apart(file, in_float):
    """Returns the distances of the file's top class from the class that float prefers, in steps."""
    if not len(file):
        return []
    values = np.unique(file)
    step = np.diff(values).min() if len(values) > 1 else 1.0
    rows = np.arange(len(file))
    distances = file.max(axis=-1) - file[rows, in_float.argmax(-1)]
    return sorted(int(n) for n in np.rint(distances / step))


def markdown_table(rows):
    """Returns the rows as a Markdown table."""
    lines = [
        f"{FLAGS.steps} steps of {FLAGS.batch_size} images, storage {FLAGS.storage}, "
        f"{FLAGS.test_examples} test images; file = simulation and its time on the first "
        f"{FLAGS.proof_examples}.",
        "",
        "| network | training graph, % | folded float, % | file, % | file = simulation: codes "
        "| images | top-1 as folded float, % | XNNPACK partitions | kB | simulation, s |",
        "| --- " * 10 + "|",
    ]
    for name, row in rows.items():
        same = row["codes_compared"] - row["codes_different"]
        cells = (
            name,
            f"{row['trained']:.2%}"[:-1],
            f"{row['folded_float']:.2%}"[:-1],
            f"{row['file']:.2%}"[:-1],
            f"{same:,} of {row['codes_compared']:,}",
            f"{row['equal_simulation']:.2%}",
            f"{row['agreement_float']:.2%}"[:-1],
            f"{row['partitions']} + {sum(row['others'].values())} outside",
            f"{row['bytes'] / 1e3:.1f}",
            f"{row['simulate_s']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
