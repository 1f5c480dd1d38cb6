"""The paper's tables, cell by cell: every method from the same checkpoints, with the same steps.

    python examples/paper/run.py --table=2                              # short: minutes, digits
    python examples/paper/run.py --table=2,3 --scale=cpu --data_dir=TFDS_FOLDER --seed=0 --seed=1
    python examples/paper/run.py --table=5 --scale=full --model=ResNet18 --data_dir=TFDS_FOLDER
    python examples/paper/run.py --figure=2a,2b,3

Three stages, as in the paper: a float network; the same retrained with quantizers; then every cell
goes on from the retrained network for the same number of steps, the row `retrain` too, which is the
control. Prints the table with the paper's numbers beside ours. Every stage and cell has a folder in
`--out_dir` with its figures and its last checkpoint: what is finished is not trained again,
and a run that was killed goes on where it was. The test images choose nothing.

`--scale=short` shows that every cell runs, on scikit-learn's digits: its accuracies mean nothing.
`--scale=cpu` is a real comparison on CIFAR-10 with a small network and part of the images, hours on
two cores at most. `--scale=full` has the paper's networks and data sets, for a GPU; the paper does
not print its training lengths: 100 epochs in float and 60 for each stage after it are ours.

Tables 8 (BERT) and 9 (new last layers) run `examples/bert_squad.py` and `examples/transfer.py`.
"""

import dataclasses
import fnmatch
import gc
import json
import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # of the next imports
import quiet_start  # noqa: F401 - before Keras

import figures
import keras
import methods
import networks
import numpy as np
import programs
import tables
from absl import app, flags
from results import table

import image_data
import speq_keras
import training_run
from program_flags import check_file, check_words, own_flags

FLAGS = flags.FLAGS
FIGURES = ("2a", "2b", "3")
FIXED_IMAGES = 256  # on 32 of them chance hides what a few steps do


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the experiments of a scale are.

    Attributes:
        dataset: Data set in place of the paper's, or None: the paper's.
        model: Network in place of the paper's, or None: the paper's.
        image_size: Of small images; those of ImageNet have 224 pixels.
        train_examples: How many training images are used, or None: all.
        batch_size: Images per step.
        pretrain_epochs, retrain_epochs, epochs: Passes of the three stages.
        optimizer: "adam" or "sgd" (Nesterov momentum 0.9).
        pretrain_learning_rate, learning_rate: At the start of float training and of later stages.
    """

    dataset: str | None
    model: str | None
    image_size: int
    train_examples: int | None
    batch_size: int
    pretrain_epochs: int
    retrain_epochs: int
    epochs: int
    optimizer: str
    pretrain_learning_rate: float
    learning_rate: float


SHORT = Scale(
    dataset="digits",
    model=None,
    image_size=32,
    train_examples=512,
    batch_size=32,
    pretrain_epochs=4,
    retrain_epochs=1,
    epochs=2,
    optimizer="adam",
    pretrain_learning_rate=5e-4,  # with 2e-3 VGG16 stays at 34 %
    learning_rate=2e-4,
)
# Rates in float and later, for networks that know the images too soon with those or hardly move.
SHORT_RATES = {
    "AlexNet": (1e-5, 5e-5),
    "ResNet18": (5e-5, 5e-5),
    "ResNet34": (5e-5, 5e-5),
    "ResNet50": (5e-5, 5e-5),
    "EfficientNetB0": (2e-3, 1e-3),
    "EfficientNetB1": (2e-3, 1e-3),
}
CPU = Scale(
    dataset="cifar10",
    model="ResNet8",
    image_size=32,
    train_examples=2_500,
    batch_size=128,
    pretrain_epochs=60,
    retrain_epochs=15,
    epochs=15,
    optimizer="sgd",
    pretrain_learning_rate=0.1,
    learning_rate=0.02,
)
FULL = dataclasses.replace(
    CPU,
    dataset=None,
    model=None,
    train_examples=None,
    pretrain_epochs=100,
    retrain_epochs=60,
    epochs=60,
)
SCALES = {"short": SHORT, "cpu": CPU, "full": FULL}

flags.DEFINE_list("table", None, "The tables to run: some of 1 to 9; default 2.")
flags.DEFINE_list("figure", [], "The figures to draw: some of 2a, 2b, 3.")
flags.DEFINE_enum("scale", "short", SCALES, "How large the experiments are.")
flags.DEFINE_string("model", None, "Network for all cells; with --scale=full: only its cells.")
flags.DEFINE_list(
    "cells", ["*"], "Only rows that match a shell pattern, such as 'SPEQ*', or '4:QKD' of Table 4."
)
flags.DEFINE_multi_integer("seed", [0], "Given several times, the table has mean ± deviation.")
flags.DEFINE_string("float_weights", None, "A .keras file with float weights for --model.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets, or an .npz of cifar10.")
flags.DEFINE_string(
    "image_folder", None, "ImageNet as folder with train/ and val/, a folder per class in each."
)
flags.DEFINE_bool("download", False, "Let TensorFlow Datasets download the data set.")
for _field in dataclasses.fields(Scale):
    if _field.name in ("dataset", "model", "optimizer"):
        continue
    _define = flags.DEFINE_float if "rate" in _field.name else flags.DEFINE_integer
    _define(_field.name, None, "In place of the scale's own, for all cells alike.")
flags.DEFINE_string("out_dir", "out/paper", "Folder for the files this program writes.")


def main(_):
    training_run.silence_notices()
    check_flags()
    numbers = [int(number) for number in chosen_tables()]
    cells = [cell for number in numbers if number in tables.TABLES for cell in chosen_cells(number)]
    if FLAGS.scale == "short":
        print(
            "This is the short form: digits, and a few steps of every stage. It shows that the "
            "cells run;\nits accuracies mean nothing.\n"
        )
    try:
        results = run(cells)
        draw_figures()
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    for number in numbers:
        if number in programs.TABLES:
            programs.TABLES[number]()
            continue
        rows = [cell for cell in cells if cell.table == number]
        print(f"\n{table(number, rows, results, scale=FLAGS.scale)}\n", flush=True)
    out_dir = pathlib.Path(FLAGS.out_dir).expanduser()
    content = {
        "flags": own_flags(__name__),
        "cells": [
            {"cell": dataclasses.asdict(cell), "seed": seed, **figures}
            for cell in cells
            for seed, figures in results[cell].items()
        ],
    }
    training_run.write_file(
        out_dir / f"results_{FLAGS.scale}.json",
        lambda path: path.write_text(json.dumps(content, indent=1)),
    )
    print(f"Wrote checkpoints, figures and results_{FLAGS.scale}.json to {out_dir}")


# Flags.


def check_flags():
    """Ends the program with one sentence if flags do not fit together."""
    check_words("table", [str(number) for number in (*tables.TABLES, *programs.TABLES)])
    check_words("figure", FIGURES)
    if FLAGS.model and FLAGS.model not in networks.NAMES:
        raise SystemExit(f"--model takes {', '.join(networks.NAMES)}. Received: {FLAGS.model}.")
    check_file("float_weights", "a .keras file")
    if FLAGS.float_weights and not (FLAGS.model or scale().model):
        raise SystemExit("--float_weights are those of one network: pass --model too.")
    for number in chosen_tables():
        if int(number) in tables.TABLES and not chosen_cells(int(number)):
            raise SystemExit(
                f"Table {number} has no such cell. Received: --cells={','.join(FLAGS.cells)}, "
                f"--model={FLAGS.model}."
            )


def chosen_tables():
    """Returns the numbers of the tables to run, as text."""
    return FLAGS.table or ([] if FLAGS.figure else ["2"])


def scale(model=None):
    """Returns the scale of a network, with the flags that were given."""
    chosen = SCALES[FLAGS.scale]
    if FLAGS.scale == "short" and model in SHORT_RATES:
        pretrain_rate, rate = SHORT_RATES[model]
        chosen = dataclasses.replace(
            chosen, pretrain_learning_rate=pretrain_rate, learning_rate=rate
        )
    given = {
        field.name: FLAGS[field.name].value
        for field in dataclasses.fields(Scale)
        if field.name in FLAGS and FLAGS[field.name].value is not None
    }
    given.pop("model", None)
    return dataclasses.replace(chosen, **given)


def chosen_cells(number):
    """Returns the cells of a table, with the network and data set of the scale."""
    patterns = [text if ":" in text else f"*:{text}" for text in FLAGS.cells]
    found = [
        cell
        for cell in tables.TABLES[number]
        if any(fnmatch.fnmatch(f"{number}:{cell.row}", pattern) for pattern in patterns)
    ]
    if FLAGS.scale == "full":
        return [cell for cell in found if FLAGS.model in (None, cell.model)]
    model = FLAGS.model or SCALES[FLAGS.scale].model
    replaced = {}
    for cell in found:
        changes = {"dataset": SCALES[FLAGS.scale].dataset}
        if model:
            changes["model"] = model
            changes["teacher"] = cell.teacher and teacher_of(model)
        replaced.setdefault(dataclasses.replace(cell, **changes, paper=None), []).append(cell.paper)
    # Where one network stands for several, no number of the paper stands beside it.
    return [
        dataclasses.replace(cell, paper=papers[0] if len(papers) == 1 else None)
        for cell, papers in replaced.items()
    ]


def teacher_of(model):
    """Returns the network that teaches one which stands in for the paper's."""
    return {"ResNet8": "ResNet20", "FiveLayerCNN": "ResNet8"}.get(model, "ResNet20")


# Experiments.


def run(cells):
    """Runs all cells with all seeds; returns {cell: {seed: figures}}."""
    results = {cell: {} for cell in cells}
    loaded = {}
    for seed in FLAGS.seed:
        for dataset in dict.fromkeys(cell.dataset for cell in cells):
            if dataset not in loaded:
                loaded[dataset] = load_data(dataset)
            laboratory = Laboratory(loaded[dataset], dataset, seed)
            for cell in cells:
                if cell.dataset == dataset:
                    results[cell][seed] = laboratory.run(cell)
    return results


def load_data(dataset):
    folder = FLAGS.image_folder if dataset == "imagenet2012" else None
    return image_data.load(
        dataset,
        image_size=224 if dataset == "imagenet2012" else scale().image_size,
        data_dir=FLAGS.data_dir,
        image_folder=folder,
        download=FLAGS.download,
        train_examples=scale().train_examples,
    )


class Laboratory:
    """One data set and one seed: trains what cells need, each thing once.

    Args:
        data: `image_data.Images`.
        dataset: Its name.
        seed: Of weights, draws and images.
    """

    def __init__(self, data, dataset, seed):
        self.data = data
        self.dataset = dataset
        self.seed = seed
        self.scale = scale()
        self.folder = pathlib.Path(FLAGS.out_dir).expanduser() / FLAGS.scale / f"seed{seed}"
        self.test = data.test_batches(batch_size=256)
        self.first_images = first_training_examples(data, 1_000)
        self.image_size = self.first_images[0].shape[1]
        self.made = {}  # {(model, name): network that several cells begin with}
        self.observers = []  # of cells, see `training_run.Pieces`

    def run(self, cell):
        """Returns the figures of a cell, from its file if it is finished.

        Cells of several tables that train the same share a folder.
        """
        what = [cell.method, *(f"{name}={value}" for name, value in cell.options)]
        what += [cell.teacher] if cell.teacher else []
        self.cell_folder = self.folder / "cells" / slug("_".join([self.name_of(cell), *what]))
        path = self.cell_folder / "figures.json"
        check_settings(self.cell_folder, cell.model)
        if path.exists():
            return json.loads(path.read_text())
        print(f"\nTable {cell.table}, seed {self.seed}: {cell.model}, {cell.widths}, {cell.row}")
        self.forget_others(cell)
        _, figures = methods.train(self, cell)
        write_json(path, figures)
        return figures

    def forget_others(self, cell):
        """Frees the memory of networks that a cell does not begin with; they are in files."""
        models = cell.model, cell.teacher
        self.made = {key: network for key, network in self.made.items() if key[0] in models}
        gc.collect()

    def finished(self, cell):
        """Returns the model of a cell that `run` has finished."""
        model, _ = methods.train(self, cell)  # from its last checkpoint
        return model

    def name_of(self, cell):
        return f"{self.dataset}_{cell.model}_{cell.widths.replace('/', '')}_{cell.quantizer}"

    # What cells begin with.

    def float_network(self, cell, model):
        """Returns the float network of the cell's data set, which is not to be changed."""
        name = f"{self.dataset}_{model}_float"
        if (model, name) not in self.made:
            self.made[model, name] = network = self.build(model)
            if FLAGS.float_weights and model == cell.model:
                loaded = keras.saving.load_model(FLAGS.float_weights, compile=False)
                network.set_weights(loaded.get_weights())
            else:
                self.train(
                    network,
                    model,
                    self.folder / name,
                    epochs=self.scale.pretrain_epochs,
                    learning_rate=scale(model).pretrain_learning_rate,
                    first_step=0,
                )
        return self.made[model, name]

    def build(self, model):
        keras.utils.set_random_seed(self.seed)
        return networks.build(model, image_size=self.image_size, classes=self.data.classes)

    def wrap(self, cell, network, **arguments):
        """Returns a quantized copy of a float network."""
        return speq_keras.wrap(
            network,
            w_bits=cell.w_bits,
            a_bits=cell.a_bits,
            seed=self.seed,
            **tables.QUANTIZERS[cell.quantizer],
            **arguments,
        )

    def calibrated(self, cell, **arguments):
        """Returns a quantized copy of the float network, with ranges from training images."""
        model = self.wrap(cell, self.float_network(cell, cell.model), **arguments)
        # Of EfficientNets as in `efficientnet_imagenet.py`: their moving statistics lag behind.
        training = cell.model in networks.EFFICIENTNETS
        model.calibrate(self.data.first_training_images(256), training=training, verbose=0)
        return model

    def retrained(self, cell):
        """Returns the network after plain quantized training, which is not to be changed."""
        name = f"{self.name_of(cell)}_retrained"
        if (cell.model, name) not in self.made:
            self.made[cell.model, name] = model = self.calibrated(cell, distillation=None)
            self.train(
                model,
                cell.model,
                self.folder / name,
                epochs=self.scale.retrain_epochs,
                learning_rate=scale(cell.model).learning_rate,
                first_step=self.first_step_after("pretrain"),
            )
        return self.made[cell.model, name]

    # What methods do.

    def continue_from_retrained(self, cell, **arguments):
        return self.continue_from(self.retrained(cell), cell, **arguments)

    def continue_from(self, model, cell, *, share=1.0, loss_weight=1.0, **arguments):
        """Trains a copy of a quantized model with a method; the last `share` of a cell's steps."""
        copy = self.wrap(cell, self.build(cell.model), **arguments)
        copy.set_weights(model.get_weights())
        done = round((1 - share) * self.scale.epochs * self.steps_per_epoch)
        figures = self.train(
            copy,
            cell.model,
            self.cell_folder / "last",
            epochs=self.scale.epochs,
            learning_rate=scale(cell.model).learning_rate,
            first_step=self.first_step_after("retrain") + done,
            share=share,
            loss_weight=loss_weight,
        )
        return copy, figures

    def train_from_float(self, cell, **arguments):
        """Trains a quantized copy of the float network for the steps of retraining and the cell."""
        model = self.calibrated(cell, **arguments)
        figures = self.train(
            model,
            cell.model,
            self.cell_folder / "last",
            epochs=self.scale.retrain_epochs + self.scale.epochs,
            learning_rate=scale(cell.model).learning_rate,
            first_step=self.first_step_after("pretrain"),
        )
        return model, figures

    def train_together(self, cell, cls, *, share=1.0, **arguments):
        """Trains a copy of the retrained network with a copy of its teacher.

        Args:
            cell: The cell.
            cls: `speq_keras.Apprentice` or `CoStudy`.
            share: Part of the cell's steps that are taken.
            **arguments: Of `cls`.

        Returns:
            The trained pair, and figures.
        """
        student = self.wrap(cell, self.build(cell.model), distillation=None)
        student.set_weights(self.retrained(cell).get_weights())
        teacher = self.build(cell.teacher)
        teacher.set_weights(self.float_network(cell, cell.teacher).get_weights())
        both = cls(student, teacher, **arguments)
        figures = self.train(
            both,
            cell.model,
            self.cell_folder / "together",
            epochs=self.scale.epochs,
            learning_rate=scale(cell.model).learning_rate,
            first_step=self.first_step_after("retrain"),
            share=share,
        )
        return both, figures

    def first_step_after(self, stage):
        """Returns the number of the step that follows a stage: all methods see the same images."""
        epochs = self.scale.pretrain_epochs
        if stage == "retrain":
            epochs += self.scale.retrain_epochs
        return epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self):
        return max(1, self.data.train_count // self.scale.batch_size)

    def train(
        self, model, name, folder, *, epochs, learning_rate, first_step, share=1.0, loss_weight=1.0
    ):
        """Trains a model, or loads what an earlier call trained; returns its figures.

        Args:
            model: A Keras model.
            name: Of its network, or of the student's.
            folder: Its checkpoints and figures are here.
            epochs: Passes over the training images.
            learning_rate: Falls from here to zero along a cosine.
            first_step: Where in the stream of images the first step begins.
            share: Part of these steps that are taken.
            loss_weight: Factor of the whole loss.
        """
        steps = max(1, round(share * epochs * self.steps_per_epoch))
        pieces, steps_per_piece = training_run.whole_pieces(steps, max(16, -(-steps // 4)))
        compile_model(
            model, self.scale.optimizer, learning_rate, pieces * steps_per_piece, loss_weight
        )
        fixed = [array[:FIXED_IMAGES] for array in self.first_images]
        check_settings(folder, name)
        path = folder / "figures.json"
        before = None if path.exists() else self.loss_on(model, *fixed)
        start = time.perf_counter()
        training_run.fit(
            model,
            folder.name,
            lambda step: self.data.training_batches(
                first_step + step, batch_size=self.scale.batch_size, seed=self.seed
            ),
            None,
            epochs=pieces,
            steps_per_epoch=steps_per_piece,
            checkpoint_steps=None,
            batch_size=self.scale.batch_size,
            folder=folder / "checkpoints",
            log=training_run.Log(folder / "log.jsonl"),
            observers=self.observers if folder.parent == self.cell_folder else (),
        )
        if path.exists():
            return json.loads(path.read_text())
        figures = {
            "steps": pieces * steps_per_piece,
            "seconds": time.perf_counter() - start,
            "test_accuracy": self.test_accuracy(model),
            "train_accuracy": model.evaluate(
                *self.first_images, verbose=0, batch_size=256, return_dict=True
            )["accuracy"],
            "loss_on_a_fixed_batch": [before, self.loss_on(model, *fixed)],
        }
        print(f"{folder.name}: test accuracy {figures['test_accuracy']:.2%}", flush=True)
        write_json(path, figures)
        return figures

    def loss_on(self, model, images, labels):
        """Returns the cross-entropy of the student as in training; nothing is updated.

        Dropout drops the same values before a training and after it.
        """
        loss, losses = keras.losses.CategoricalCrossentropy(from_logits=True), []
        seeds = [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]
        fixed = [(v, keras.ops.full(v.shape, i, v.dtype)) for i, v in enumerate(seeds)]
        size = self.scale.batch_size  # more would not fit: all tensors of a batch are kept
        for start in range(0, len(images), size):
            with keras.StatelessScope(state_mapping=fixed):
                outputs = model(images[start : start + size], training=True)
            outputs = outputs["student"] if isinstance(outputs, dict) else outputs
            losses.append(keras.ops.convert_to_numpy(loss(labels[start : start + size], outputs)))
        return float(np.mean(losses))

    def test_accuracy(self, model):
        """Returns the accuracy of a compiled model on the test images."""
        return model.evaluate(self.test, verbose=0, return_dict=True)["accuracy"]


def first_training_examples(data, count):
    """Returns the first training images and one-hot labels, prepared as for testing."""
    examples = data.train(0, 0).take(min(count, data.train_count))
    images, labels = [], []
    for _, image, label in examples:
        images.append(keras.ops.convert_to_numpy(data.to_test_image(image)))
        labels.append(int(label))
    return np.stack(images), np.eye(data.classes, dtype="float32")[labels]


def compile_model(model, optimizer, learning_rate, steps, loss_weight):
    """Compiles a model with a learning rate that falls to zero along a cosine."""
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    if optimizer == "adam":
        optimizer = keras.optimizers.Adam(schedule)
    else:
        optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=1e-4)
        optimizer.exclude_from_weight_decay(
            var_list=[v for v in model.trainable_variables if len(v.shape) < 2]
        )
    # A weight of the loss weighs the distillation too.
    weights = {} if loss_weight == 1.0 else {"loss_weights": loss_weight}
    model.compile(
        optimizer,
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        **weights,
    )


# Figures.


def draw_figures():
    """Writes the figures of `--figure`, and for 2a the log that it is drawn from."""
    folder = pathlib.Path(FLAGS.out_dir).expanduser()
    for name in FLAGS.figure:
        if name == "3":
            picture = figures.draw_3(classes=10)
        else:
            on = {"table": 2, "dataset": scale().dataset or "cifar10", "method": "speq"}
            laboratory = Laboratory(load_data(on["dataset"]), on["dataset"], FLAGS.seed[0])
            picture = {"2a": greedy_picture, "2b": stochastic_picture}[name](laboratory, on)
        training_run.write_file(folder / f"figure_{name}.png", picture.savefig)
        print(f"Wrote {folder / f'figure_{name}.png'}", flush=True)


def greedy_picture(laboratory, on):
    """Trains the five-layer network with the greedy teacher and draws what that picked."""
    cell = tables.Cell(
        **on, row="greedy", model="FiveLayerCNN", options=tables.options(draw="greedy")
    )
    images, labels = laboratory.first_images
    count = 12 if FLAGS.scale == "short" else 20
    batches = [(images[i : i + 32], labels[i : i + 32]) for i in range(0, 32 * count, 32)]
    laboratory.observers = [figures.GreedyPicks(batches)]
    result = laboratory.run(cell)
    rows = training_run.Log(laboratory.cell_folder / "last" / "log.jsonl").rows
    print(
        f"Greedy: test accuracy {result['test_accuracy']:.2%}; up to "
        f"{max(row['combinations'] for row in rows)} different combinations over "
        f"{len(batches)} batches."
    )
    return figures.draw_2a(rows)


def stochastic_picture(laboratory, on):
    """Draws the outputs of a trained network for the test image it is least sure of."""
    cell = tables.Cell(**on, row="SPEQ", model=FLAGS.model or scale().model or "ResNet20")
    laboratory.run(cell)
    model = laboratory.finished(cell)
    images, labels = next(iter(laboratory.test))
    images, labels = (keras.ops.convert_to_numpy(array) for array in (images, labels))
    sure = keras.ops.convert_to_numpy(keras.ops.softmax(model.predict_on_batch(images))).max(-1)
    hardest = int(sure.argmin())
    outputs = figures.stochastic_outputs(model, images[hardest], draws=5)
    return figures.draw_2b(outputs, int(labels[hardest].argmax()))


# Files.


def check_settings(folder, model):
    """Ends the program if the folder's figures come from another scale."""
    settings = dataclasses.asdict(scale(model)) | {"float_weights": FLAGS.float_weights}
    training_run.check_same_flags(folder / "flags.json", settings, flag="--out_dir")


def slug(text):
    """Returns text that can be the name of a folder."""
    return "".join(c if c.isalnum() or c in "=." else "_" for c in text)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    training_run.write_file(path, lambda target: target.write_text(json.dumps(content, indent=1)))


if __name__ == "__main__":
    app.run(main)
