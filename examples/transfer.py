r"""Transfer with few examples: the paper's Table 9 as a program.

    python examples/transfer.py                               # short form, no download, minutes
    python examples/transfer.py --dataset=oxford_flowers102 --data_dir=TFDS_FOLDER --download \
        --float_extractor=RESNET18.keras --extractor=RESNET18_W2A2.keras
    python examples/transfer.py --image_folder=FOLDER --float_extractor=... --extractor=...

A network trained on one task provides the features for another task with few examples: it is frozen
(weights, ranges, statistics), and a new last layer is trained on 5, 10 and 20 images per class.
This compares the float network and its 2-bit form, both with cross-entropy, and the 2-bit form with
SPEQ, whose teacher still draws widths in the frozen part. All three see the same images for the
same number of steps. Prints a table, with the paper's numbers if the settings are the paper's, and
writes `results.json`.

`--float_extractor` is a float model saved with `save`, `--extractor` a SPEQModel made from it; both
end in a layer of class scores, which is replaced. Without them, and without a data set, ResNet-18
is trained on scikit-learn's digits 0 to 4, retrained with 2 bits, and then transferred to the
digits 5 to 9.

Not stated in the paper, and chosen here: Adam, 0.001 with cosine decay, 100 epochs; the new layer
has 8 bits, like every last layer here.
"""

import json
import pathlib

import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
from absl import app, flags
from keras import layers

import image_data
import imagenet_networks
import speq_keras
import training_run
from program_flags import DISTILLATIONS, check_file, own_flags, set_defaults

FLAGS = flags.FLAGS
METHODS = ("float", "2-bit, cross-entropy", "2-bit, SPEQ")
# Accuracy on Flowers-102 in %, ResNet-18 (Boo et al., 2021, Table 9), by images per class.
PAPER = {5: (69.18, 70.67, 71.21), 10: (78.04, 77.99, 78.36), 20: (84.57, 83.91, 85.02)}

flags.DEFINE_string("float_extractor", None, "A float model, saved with `save`.")
flags.DEFINE_string("extractor", None, "The SPEQModel made from it, trained and saved.")
flags.DEFINE_string("dataset", "digits", "digits, or a data set of TensorFlow Datasets.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
flags.DEFINE_string(
    "image_folder", None, "Folder with train/ and val/, a folder per class in each."
)
flags.DEFINE_bool("download", False, "Let TensorFlow Datasets download the data set.")
flags.DEFINE_integer("test_examples", None, "Number of test images; default all.", 1)
flags.DEFINE_list("per_class", ["5", "10", "20"], "Training images of each class.")
flags.DEFINE_integer("epochs", 100, "Passes over these images.", 1)
flags.DEFINE_integer("batch_size", 32, "Images per step.", 1)
flags.DEFINE_float("learning_rate", 0.001, "Adam's initial learning rate.", 0.0)
flags.DEFINE_enum("distillation", "cosine", DISTILLATIONS, "The loss of SPEQ.")
flags.DEFINE_float("temperature", 2.0, "T of Eq. 2.", 0.0)
flags.DEFINE_multi_integer("seed", [0], "If repeated, the table has mean ± deviation.")
flags.DEFINE_string("out_dir", "out/transfer", "Folder for the files this program writes.")

flags.DEFINE_integer("source_epochs", 8, "Short form: epochs in float on the digits 0 to 4.", 1)
flags.DEFINE_integer("retrain_epochs", 8, "Short form: epochs at 2 bits on them.", 1)
SHORT_IMAGE_SIZE = 8
SHORT_RUN = {"per_class": ["5", "20"], "epochs": 20, "learning_rate": 0.01}


def main(_):
    training_run.silence_notices()
    is_short = FLAGS.dataset == "digits" and not FLAGS.image_folder
    if is_short:
        set_defaults(SHORT_RUN)
    check_flags(is_short)
    out_dir = training_run.make_folder(FLAGS.out_dir)
    try:
        if is_short:
            print("This is the short form: from the digits 0 to 4 to the digits 5 to 9.\n")
            extractors = train_extractors()
            images = digits(range(5, 10))
        else:
            extractors = load_extractors()
            images = image_data.load(
                FLAGS.dataset,
                image_size=extractors[0].input_shape[1],
                data_dir=FLAGS.data_dir,
                image_folder=FLAGS.image_folder,
                download=FLAGS.download,
                test_examples=FLAGS.test_examples,
                train_splits=train_splits(),
            )
        accuracies = {
            per_class: [transfer(extractors, images, per_class, seed) for seed in FLAGS.seed]
            for per_class in map(int, FLAGS.per_class)
        }
    except (FileNotFoundError, ValueError) as error:
        if not str(error).startswith("--"):
            raise
        raise SystemExit(str(error)) from None
    print(f"\n{results_table(accuracies, images)}")
    results = {"flags": own_flags(__name__), "accuracies": accuracies, "methods": METHODS}
    training_run.write_file(
        out_dir / "results.json", lambda path: path.write_text(json.dumps(results, indent=1))
    )
    print(f"\nWrote results.json to {out_dir}")


# Flags.


def check_flags(is_short):
    """Ends the program with one sentence if flags are inconsistent."""
    bad = [text for text in FLAGS.per_class if not text.isdigit() or int(text) < 1]
    if bad:
        raise SystemExit(f"--per_class takes whole numbers from 1. Received: {', '.join(bad)}.")
    for name in ("float_extractor", "extractor"):
        path = FLAGS[name].value
        if is_short and path:
            raise SystemExit(
                f"--{name} needs --dataset or --image_folder: the short form has none."
            )
        if not is_short and not path:
            raise SystemExit(f"A data set needs both extractors: pass --{name}.")
        check_file(name, "a .keras file")


def train_splits():
    """Flowers-102 has twenty images per class in two of its parts together."""
    return ("train", "validation") if FLAGS.dataset.startswith("oxford_flowers") else ("train",)


# Extractors.


def load_extractors():
    """Returns the float model and its quantized form."""
    loaded = [
        keras.saving.load_model(pathlib.Path(FLAGS[name].value).expanduser(), compile=False)
        for name in ("float_extractor", "extractor")
    ]
    if isinstance(loaded[0], speq_keras.SPEQModel) or not isinstance(
        loaded[1], speq_keras.SPEQModel
    ):
        kinds = [type(model).__name__ for model in loaded]
        raise SystemExit(
            "--float_extractor takes a float model, --extractor a SPEQModel. "
            f"Received: {kinds[0]} and {kinds[1]}."
        )
    return loaded


def train_extractors():
    """Returns ResNet-18 trained on the digits 0 to 4, in float and then with 2 bits."""
    images = digits(range(5))
    keras.utils.set_random_seed(0)
    network = imagenet_networks.resnet18(image_size=SHORT_IMAGE_SIZE, classes=images.classes)
    imagenet_networks.set_batch_norm_momentum(network, 0.9)  # because there are few steps
    fit(network, images, FLAGS.source_epochs, "float network, digits 0 to 4")
    quantized = speq_keras.wrap(network, w_bits=2, a_bits=2, distillation=None, seed=0)
    quantized.calibrate(images.first_training_images(256), verbose=0)
    fit(quantized, images, FLAGS.retrain_epochs, "2-bit network, digits 0 to 4")
    return network, quantized


def digits(classes):
    """Returns the images of some of the digits, numbered from zero."""
    x_train, y_train, x_test, y_test = image_data.digits()
    of_train, of_test = (np.isin(labels, classes) for labels in (y_train, y_test))
    return image_data.from_arrays(
        x_train[of_train],
        y_train[of_train] - classes[0],
        x_test[of_test],
        y_test[of_test] - classes[0],
        image_size=SHORT_IMAGE_SIZE,
        mirror=False,
    )


# Training.


def transfer(extractors, images, per_class, seed):
    """Trains a new last layer with each of `METHODS`; returns their test accuracies."""
    few = image_data.few_per_class(images, per_class, seed=seed)
    accuracies = []
    for method, extractor in zip(METHODS, (*extractors, extractors[1]), strict=True):
        keras.utils.set_random_seed(seed)
        model = with_new_head(extractor, images.classes)
        if method != "float":
            model = speq_keras.wrap(
                model,
                w_bits=2,
                a_bits=2,
                distillation=FLAGS.distillation if "SPEQ" in method else None,
                temperature=FLAGS.temperature,
                seed=seed,
            )
            model.calibrate(few.first_training_images(256), verbose=0)
        label = f"{per_class} per class, seed {seed}, {method}"
        accuracies.append(fit(model, few, FLAGS.epochs, label, seed=seed))
    return accuracies


def with_new_head(model, classes):
    """Returns a model with the frozen features of `model` and a new last layer."""
    kinds = layers.Dense | speq_keras.QuantizedLayer
    last = next(layer for layer in reversed(model.layers) if isinstance(layer, kinds))
    features = keras.Model(model.input, last.input)
    features.trainable = False
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, layers.Dense(classes, name="new_head")(features(inputs)))


def fit(model, images, epochs, label, *, seed=0):
    """Trains a model and returns its test accuracy."""
    batch_size = min(FLAGS.batch_size, images.train_count)
    steps = images.train_count // batch_size
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(FLAGS.learning_rate, epochs * steps)
        ),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        images.training_batches(0, batch_size=batch_size, seed=seed),
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,  # the stream is already shuffled
        verbose=0,
    )
    logs = model.evaluate(images.test_batches(batch_size=128), verbose=0, return_dict=True)
    print(f"{label}: {epochs * steps} steps, test accuracy {logs['accuracy']:.2%}", flush=True)
    return logs["accuracy"]


# Results.


def results_table(accuracies, images):
    """Returns a Markdown table: a row per number of images, with the paper's if settings match."""
    is_papers = FLAGS.dataset.startswith("oxford_flowers102") and not FLAGS.image_folder
    lines = [
        f"{FLAGS.image_folder or FLAGS.dataset}: {images.test_count} test images, seeds "
        f"{FLAGS.seed}; test accuracy in %{', the paper’s in brackets' if is_papers else ''}",
        "",
        f"| images per class | {' | '.join(METHODS)} |",
        "| --- " * 4 + "|",
    ]
    for per_class, runs in accuracies.items():
        cells = [str(per_class)]
        for number, values in enumerate(zip(*runs, strict=True)):
            values = 100 * np.array(values)
            text = f"{values.mean():.2f}"
            if len(values) > 1:
                text += f" ± {values.std(ddof=1):.2f}"
            if is_papers and per_class in PAPER:
                text += f" ({PAPER[per_class][number]})"
            cells.append(text)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
