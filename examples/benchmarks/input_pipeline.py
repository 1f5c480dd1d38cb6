"""Images per second of the input pipeline alone, against what a training step needs.

    python examples/benchmarks/input_pipeline.py
    python examples/benchmarks/input_pipeline.py --dataset=imagenet2012 --data_dir=TFDS_FOLDER

Without a data set it writes JPEGs of smoothed noise in the usual size of ImageNet's, 500 × 375, to
a temporary folder. Training batches are prepared as `efficientnet_imagenet.py` does it, where only
the random part of a JPEG is decoded, and for comparison with the whole image decoded first. What
has to be fed is a training step of the network, in float, quantized, and with SPEQ, measured on one
fixed batch. All take turns in every round, because machines are noisy; printed are medians.
"""

import json
import pathlib
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import image_data
import imagenet_networks
import speq_keras
import training_run

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "A data set of TensorFlow Datasets with encoded images.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
flags.DEFINE_string(
    "image_folder", None, "Folder with train/ and val/, a folder per class in each."
)
flags.DEFINE_enum("model", "EfficientNetB0", imagenet_networks.EFFICIENTNETS, "The network.")
flags.DEFINE_integer("image_size", 224, "Height and width of the prepared images, in pixels.", 32)
flags.DEFINE_integer("batch_size", 16, "Images per step.", 1)
flags.DEFINE_integer("batches", 8, "Batches per round of the pipeline.", 1)
flags.DEFINE_integer("steps", 2, "Steps per round of each kind of training.", 1)
flags.DEFINE_integer("rounds", 5, "How often each takes its turn.", 1)
flags.DEFINE_string("out_dir", "out/benchmarks", "Folder for input_pipeline.json.")

ONE_OP, WHOLE = "decode and crop in one", "decode whole, then crop"


def main(_):
    training_run.silence_notices()
    with tempfile.TemporaryDirectory() as folder:
        try:
            images = image_data.load(
                FLAGS.dataset or "",
                image_size=FLAGS.image_size,
                data_dir=FLAGS.data_dir,
                image_folder=FLAGS.image_folder or (None if FLAGS.dataset else noise(folder)),
            )
        except (FileNotFoundError, ValueError) as error:
            raise SystemExit(str(error)) from None
        rates = measure({**pipelines(images), **training_steps(images)})
    print(table(rates))
    out_dir = pathlib.Path(FLAGS.out_dir).expanduser()
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / "input_pipeline.json"
    training_run.write_file(path, lambda temporary: temporary.write_text(json.dumps(rates)))


def noise(folder):
    """Writes JPEGs in folders of classes, and returns the folder."""
    random = np.random.default_rng(0)
    for part, count in (("train", 32), ("val", 2)):
        for name in ("a", "b"):
            path = pathlib.Path(folder, part, name)
            path.mkdir(parents=True)
            for number in range(count):
                coarse = random.uniform(0, 255, (24, 32, 3))
                image = tf.image.resize(coarse, (375, 500), "bicubic")
                image = image + random.normal(0, 8, (375, 500, 3))  # the files have 80 to 100 kB
                image = tf.cast(tf.clip_by_value(image, 0, 255), "uint8")
                (path / f"{number}.jpg").write_bytes(tf.io.encode_jpeg(image, quality=90).numpy())
    return folder


def pipelines(images):
    """Returns {name: function that makes batches and returns images per second}."""

    def runner():
        dataset = images.training_batches(0, batch_size=FLAGS.batch_size, seed=0)

        def run():
            batches = iter(dataset)  # a new one: nothing was made in the turns of the others
            next(batches)
            start_s = time.perf_counter()
            for _ in range(FLAGS.batches):
                next(batches)
            return FLAGS.batches * FLAGS.batch_size / (time.perf_counter() - start_s)

        return run

    in_one = runner()
    decode_window = image_data.decode_window
    # The same pipeline, traced once more with another way to decode.
    image_data.decode_window = lambda encoded, window: tf.slice(
        image_data.decode_other(encoded),
        tf.concat([window[:2], [0]], 0),
        tf.concat([window[2:], [3]], 0),
    )
    try:
        whole = runner()
    finally:
        image_data.decode_window = decode_window
    return {ONE_OP: in_one, WHOLE: whole}


def training_steps(images):
    """Returns {name: function that trains and returns images per second}."""
    pixels, labels = next(iter(images.training_batches(0, batch_size=FLAGS.batch_size, seed=0)))
    network = imagenet_networks.efficientnet(
        FLAGS.model, image_size=FLAGS.image_size, classes=images.classes
    )
    steps = {}
    for name, distillation in (("float", None), ("quantized", None), ("SPEQ", "cosine")):
        model = network
        if name != "float":
            model = speq_keras.wrap(
                network, 3, 3, activation_quantizer="lsq_plus", distillation=distillation, seed=0
            )
            model.calibrate(pixels, verbose=0)
        model.compile(
            keras.optimizers.SGD(1e-4), keras.losses.CategoricalCrossentropy(from_logits=True)
        )
        model.train_on_batch(pixels, labels)

        def run(model=model):
            start_s = time.perf_counter()
            for _ in range(FLAGS.steps):
                model.train_on_batch(pixels, labels)
            return FLAGS.steps * FLAGS.batch_size / (time.perf_counter() - start_s)

        steps[f"training step, {name}"] = run
    return steps


def measure(runs):
    """Returns {name: images per second in each round}."""
    rates = {name: [] for name in runs}
    for _ in range(FLAGS.rounds):
        for name, run in runs.items():
            rates[name].append(run())
    return rates


def table(rates):
    """Returns a Markdown table: medians, and the share of the pipeline's time that a step needs."""
    supply = np.array(rates[ONE_OP])
    lines = [
        f"{FLAGS.model}, {FLAGS.image_size} pixels, batches of {FLAGS.batch_size}, "
        f"{FLAGS.rounds} rounds, {keras.backend.backend()}",
        "",
        "| | images/s | ratio to the pipeline |",
        "| --- | --- | --- |",
    ]
    for name, values in rates.items():
        ratio = np.median(np.array(values) / supply)
        lines.append(f"| {name} | {np.median(values):.1f} | {ratio:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
