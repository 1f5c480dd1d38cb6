"""CIFAR-10: pretrain in float, retrain quantized, then SPEQ, then integer TFLite files.

    python examples/cifar.py --short --download              # minutes on two cores
    python examples/cifar.py --model=resnet20 --weights=resnet20.npz --stages=retrain,train
    python examples/cifar.py --weights=resnet8.keras --stages=retrain --table1

Three stages, each starting where the previous one ended: `pretrain` (float), `retrain` (plain
quantization-aware training, QAT) and `train`, in which every method of `--method` continues from
the same retrained network for the same number of steps: `qat` (more QAT, the control), `speq`, `kd`
(QAT with a float teacher) and `speq_kd` (both). The results of the last stage are exported, proven
to be the trained network, and run on the test images in LiteRT. Prints one table; writes
`results.json`, `curves.png`, the trained models and the TFLite files.

Useful flags: `--model`, `--w_bits`, `--a_bits`, `--activation_quantizer`, `--epochs`,
`--checkpoint_dir` (a killed run resumes where it was), `--seed` several times (mean and deviation),
`--table1` (the paper's Table 1). Setting `KERAS_BACKEND=jax` trains on JAX, with the images on the
device and many steps per call; there `--num_processes`, `--process_id` and `--coordinator` train in
several processes, which see the same batches as one process. The test images decide nothing: no
training stops early and no checkpoint is selected by test accuracy.
"""

import json

import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

import cifar_data
import cifar_networks
import devices
import speq_keras
import training_run
from curve_axis import show_differences
from program_flags import (
    ACTIVATION_QUANTIZERS,
    DISTILLATIONS,
    STORAGES,
    WIDTHS,
    bits,
    check_file,
    check_processes,
    check_words,
    own_flags,
    set_defaults,
)

FLAGS = flags.FLAGS
STAGES = ("pretrain", "retrain", "train")
METHODS = ("qat", "speq", "kd", "speq_kd")
TEACHER_PRECISIONS = {
    "bernoulli": speq_keras.precision.Bernoulli(0.5),
    "mix": speq_keras.precision.UniformMix(2, 8),
    "fixed": speq_keras.precision.Fixed(8),
    "greedy": speq_keras.precision.Greedy(),
}

flags.DEFINE_enum("model", "resnet8", cifar_networks.NAMES, "The network.")
flags.DEFINE_enum("w_bits", "2", WIDTHS, "Width of the weights, in bits.")
flags.DEFINE_enum("a_bits", "2", WIDTHS, "Width of the activations, in bits.")
flags.DEFINE_enum(
    "activation_quantizer",
    "pact",
    ACTIVATION_QUANTIZERS,
    "How activations are quantized; lsq_plus shifts the codes of swish.",
)
flags.DEFINE_list("stages", list(STAGES), "The stages to run: some of pretrain, retrain, train.")
flags.DEFINE_list("method", "qat,speq", "Compared in stage train: qat, speq, kd, speq_kd.")
flags.DEFINE_enum("distillation", "cosine", DISTILLATIONS, "The loss of speq, speq_kd.")
flags.DEFINE_enum("teacher_precision", "bernoulli", TEACHER_PRECISIONS, "SPEQ's draw of widths.")
flags.DEFINE_bool("table1", False, "Also train (--retrain_epochs) and print the paper's Table 1.")

flags.DEFINE_string("weights", None, "Float weights to start from: .keras, .weights.h5, .h5, .npz.")
flags.DEFINE_enum("teacher_model", "resnet20", cifar_networks.NAMES, "Float teacher for kd.")
flags.DEFINE_string("teacher_weights", None, "Weights of the float teacher.")

flags.DEFINE_integer("pretrain_epochs", 100, "Epochs of the pretrain stage.", 1)
flags.DEFINE_integer("retrain_epochs", 60, "Epochs of the retrain stage.", 1)
flags.DEFINE_integer("epochs", 60, "Epochs of each method of the train stage.", 1)
flags.DEFINE_integer("steps", None, "Steps per epoch; default one pass over the images.", 1)
flags.DEFINE_integer("batch_size", 128, "Images per step.", 1)
flags.DEFINE_enum("optimizer", "sgd", ("sgd", "adam"), "SGD has Nesterov momentum 0.9.")
flags.DEFINE_float("pretrain_learning_rate", 0.1, "Learning rate at the start of pretrain.", 0.0)
flags.DEFINE_float("learning_rate", 0.02, "Learning rate at the start of the other stages.", 0.0)
flags.DEFINE_integer("train_examples", 50_000, "Use the first N training images.", 1, 50_000)
flags.DEFINE_integer("test_examples", 10_000, "Use the first N test images.", 1, 10_000)
flags.DEFINE_integer("probe_examples", 1_000, "Test images to compare precisions on.", 1)
flags.DEFINE_multi_integer("seed", [0], "If repeated, the table has mean ± deviation.")
flags.DEFINE_bool("short", False, "A trial run: few images and epochs, unless set by flags.")

flags.DEFINE_enum("storage", "int8", STORAGES, "How the TFLite file stores weights.")
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder that contains cifar10/, default ~/tensorflow_datasets; or an .npz file with x_train, "
    "y_train, x_test, y_test, which needs no TensorFlow.",
)
flags.DEFINE_bool("download", False, "Download CIFAR-10 (170 MB) to --data_dir if not there.")
flags.DEFINE_string("checkpoint_dir", None, "A killed run that is restarted resumes from here.")
flags.DEFINE_integer("num_processes", 1, "Processes that train together, on JAX.", 1)
flags.DEFINE_integer("process_id", 0, "Index of this process; the first writes the files.", 0)
flags.DEFINE_string("coordinator", "127.0.0.1:12345", "Address and port of the first process.")
flags.DEFINE_string("out_dir", "out/cifar", "Folder for the files this program writes.")

SHORT_RUN = {
    "pretrain_epochs": 6,
    "retrain_epochs": 3,
    "epochs": 3,
    "train_examples": 2_500,
    "test_examples": 500,
}
# The flags that do not change the results of a completed stage.
FREE_FLAGS = (
    *("method", "table1", "seed", "short"),
    *("storage", "data_dir", "download", "checkpoint_dir", "out_dir"),
    *("num_processes", "process_id", "coordinator"),
)


def main(_):
    training_run.silence_notices()
    if FLAGS.short:
        set_defaults(SHORT_RUN)
    check_flags()
    if FLAGS.num_processes > 1:
        devices.join_processes(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    out_dir = training_run.make_folder(FLAGS.out_dir)
    binding = {name: value for name, value in own_flags(__name__).items() if name not in FREE_FLAGS}
    checkpoint_dir = training_run.checkpoint_folder(FLAGS.checkpoint_dir, out_dir, binding)
    data = cifar_data.load_or_exit(
        FLAGS.data_dir,
        download=FLAGS.download,
        train_examples=FLAGS.train_examples,
        test_examples=FLAGS.test_examples,
    )

    results = {"flags": own_flags(__name__), "stages": [], "table1": []}
    for seed in FLAGS.seed:
        experiment = Experiment(data, seed, out_dir, checkpoint_dir)
        experiment.run()
        if FLAGS.table1:
            results["table1"] += experiment.run_table1()
        results["stages"] += experiment.results

    print(f"\n{results_table(results['stages'])}")
    if FLAGS.table1:
        print(f"\n{table1(results['table1'])}")
    training_run.write_file(
        out_dir / "results.json", lambda path: path.write_text(json.dumps(results, indent=1))
    )
    training_run.write_file(out_dir / "curves.png", curves(results["stages"]).savefig)
    print(f"\nWrote results.json, curves.png, models and TFLite files to {out_dir}")


# Flags.


def check_flags():
    """Ends the program with one sentence if flags are inconsistent or a file is missing."""
    check_words("stages", STAGES)
    check_words("method", METHODS)
    check_processes()
    needs_teacher = any(uses_float_teacher(method) for method in trained_methods())
    if needs_teacher and not FLAGS.teacher_weights:
        raise SystemExit("The methods kd and speq_kd need a float teacher: pass --teacher_weights.")
    if FLAGS.table1 and "float" in (FLAGS.w_bits, FLAGS.a_bits):
        raise SystemExit("--table1 needs a width in bits for both --w_bits and --a_bits.")
    if not FLAGS.weights and "pretrain" not in FLAGS.stages:
        raise SystemExit("Without the pretrain stage a float network is needed: pass --weights.")
    for name in ("weights", "teacher_weights"):
        check_file(name)


def training_stream():
    """Returns the class that makes the batches: on JAX they are made on the device itself."""
    # Each needs the packages of its own backend.
    if keras.backend.backend() == "jax":
        import cifar_device

        return cifar_device.DeviceStream
    import cifar_stream

    return cifar_stream.TrainingStream


def own_part(array):
    """Returns this process' part of data that all processes evaluate together."""
    return array[FLAGS.process_id :: FLAGS.num_processes]


def trained_methods():
    return FLAGS.method if "train" in FLAGS.stages else []


def uses_float_teacher(method):
    return method in ("kd", "speq_kd")


# Stages.


class Experiment:
    """The float network and all its stages for one seed; `results` has a dict for each stage."""

    def __init__(self, data, seed, out_dir, checkpoint_dir):
        self.x_train, self.y_train, x_test, y_test = data
        self.x_test, self.y_test = x_test.astype("float32"), y_test
        self.seed = seed
        self.out_dir = out_dir
        self.folder = checkpoint_dir / f"seed{seed}"
        self.log = training_run.Log(self.folder / "log.jsonl")
        self.steps_per_epoch = FLAGS.steps or max(1, len(self.x_train) // FLAGS.batch_size)
        self.epochs_done = 0
        self.results = []
        keras.utils.set_random_seed(seed)
        self.network = cifar_networks.build(FLAGS.model)
        if FLAGS.weights:
            cifar_networks.load_weights(self.network, FLAGS.weights)

    def run(self):
        """Runs the stages of `--stages`."""
        if "pretrain" in FLAGS.stages:
            self.fit(self.network, "pretrain", FLAGS.pretrain_epochs, FLAGS.pretrain_learning_rate)
            self.epochs_done += FLAGS.pretrain_epochs
        else:
            self.results.append({"seed": self.seed, "stage": "float, as given", "epochs": []})
            self.compile(self.network, learning_rate=0.0, steps=1)
            self.results[-1]["test_accuracy"] = self.accuracy(self.network)
        widths = {"w_bits": bits(FLAGS.w_bits), "a_bits": bits(FLAGS.a_bits)}
        retrained = None
        if "retrain" in FLAGS.stages:
            retrained = self.wrap(**widths, distillation=None)
            if self.seed == FLAGS.seed[0]:
                print(retrained.plan())
            self.fit(
                retrained,
                "retrain",
                FLAGS.retrain_epochs,
                FLAGS.learning_rate,
                a_bits=widths["a_bits"],
            )
            self.epochs_done += FLAGS.retrain_epochs
            if "train" not in FLAGS.stages:
                self.export(retrained)
        for method in trained_methods():
            model = self.wrap(**widths, **method_arguments(method))
            if retrained is not None:
                model.set_weights(retrained.get_weights())
            self.fit(model, method, FLAGS.epochs, FLAGS.learning_rate, a_bits=widths["a_bits"])
            self.export(model)

    def run_table1(self):
        """Trains with float weights, then with float activations; evaluates both at other widths.

        Returns:
            One dict per network: its name, and its test accuracy by evaluation width.
        """
        rows = []
        for name, w_bits, a_bits, side in (
            (f"Wfloat_A{FLAGS.a_bits}", None, bits(FLAGS.a_bits), "activations"),
            (f"W{FLAGS.w_bits}_Afloat", bits(FLAGS.w_bits), None, "weights"),
        ):
            model = self.wrap(w_bits=w_bits, a_bits=a_bits, distillation=None)
            self.fit(model, name, FLAGS.retrain_epochs, FLAGS.learning_rate, a_bits=a_bits)
            accuracies = {}
            for width in (2, 4, 8, None):
                model.set_bits(**{side: width})
                accuracies[str(width or "float")] = self.accuracy(model)
            rows.append({"seed": self.seed, "trained": name, "accuracies": accuracies})
        return rows

    def wrap(self, **arguments):
        """Returns a calibrated quantized copy of the float network."""
        model = speq_keras.wrap(
            self.network,
            activation_quantizer=FLAGS.activation_quantizer,
            seed=self.seed,
            **arguments,
        )
        model.calibrate(self.x_train[:512].astype("float32"), verbose=0)
        return model

    def fit(self, model, stage, epochs, learning_rate, *, a_bits=None):
        """Trains `model`, saves it, and appends the outcome to `results`.

        With `--checkpoint_dir`, a stage that was killed resumes from its last epoch, and a stage
        that was completed is only loaded.
        """
        print(
            f"\nSeed {self.seed}, {stage}: {epochs} epochs of {self.steps_per_epoch} steps",
            flush=True,
        )
        stream = training_stream()(
            self.x_train,
            self.y_train,
            seed=self.seed,
            batch_size=FLAGS.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            # All methods of the train stage see the same images.
            first_step=self.epochs_done * self.steps_per_epoch,
        )
        callbacks = []
        if a_bits and FLAGS.num_processes == 1:
            probe = slice(FLAGS.probe_examples)
            callbacks.append(
                speq_keras.callbacks.PrecisionReport(
                    (self.x_test[probe], self.y_test[probe]),
                    batch_size=500,
                    teacher_precision=speq_keras.precision.Fixed(8),
                )
            )
        self.compile(model, learning_rate=learning_rate, steps=epochs * self.steps_per_epoch)
        stream.attach(model)
        training_run.fit(
            model,
            stage,
            stream.batches,
            (own_part(self.x_test), own_part(self.y_test)),
            epochs=epochs,
            steps_per_epoch=self.steps_per_epoch,
            checkpoint_steps=None,
            batch_size=FLAGS.batch_size,
            folder=self.folder / stage,
            log=self.log,
            steps_per_call=stream.steps_per_call,
            test_batch_size=500 // FLAGS.num_processes,
            callbacks=callbacks,
        )
        rows = [row for row in self.log.rows if row["stage"] == stage]
        self.results.append(
            {
                "seed": self.seed,
                "stage": stage,
                "test_accuracy": rows[-1]["val_accuracy"],
                "epochs": rows,
            }
        )
        training_run.write_file(self.out_dir / f"seed{self.seed}_{stage}.keras", model.save)

    def export(self, model):
        """Writes the network of the last result as a TFLite file, and adds the file's accuracy.

        The model is settled first, so its predictions equal the file's; the export proves it.
        """
        if "float" in (FLAGS.w_bits, FLAGS.a_bits):
            return  # there are no integers
        result = self.results[-1]
        print(f"\n{model.settle(storage=FLAGS.storage)}", flush=True)
        batches = (
            (self.x_test[start : start + 500], self.y_test[start : start + 500])
            for start in range(0, len(self.x_test), 500)
        )
        report = model.export_tflite(
            self.out_dir / f"seed{self.seed}_{result['stage']}.tflite",
            storage=FLAGS.storage,
            data=batches,
        )
        print(f"\n{head(report)}", flush=True)
        result["litert_accuracy"] = report.accuracy.file
        result["tflite_bytes"] = report.bytes

    def compile(self, model, *, learning_rate, steps):
        """Compiles `model` with a learning rate that falls to zero along a cosine."""
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        if FLAGS.optimizer == "adam":
            optimizer = keras.optimizers.Adam(schedule)
        else:
            optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=ends_in_logits()),
            metrics=["accuracy"],
        )

    def accuracy(self, model):
        """Returns the test accuracy of a compiled model."""
        logs = model.evaluate(
            own_part(self.x_test),
            own_part(self.y_test),
            batch_size=500 // FLAGS.num_processes,
            verbose=0,
            return_dict=True,
        )
        return logs["accuracy"]


def head(report):
    """Returns the first lines of an export's report: all but its two tables."""
    return str(report).split("\n\n")[0]


def ends_in_logits():
    return cifar_networks.FROM_LOGITS[FLAGS.model]


def method_arguments(method):
    """Returns the arguments of `speq_keras.wrap` that distinguish the train stage's methods."""
    arguments = {"distillation": None}
    if method in ("speq", "speq_kd"):
        arguments = {
            "distillation": FLAGS.distillation,
            "teacher_precision": TEACHER_PRECISIONS[FLAGS.teacher_precision],
        }
    if uses_float_teacher(method):
        teacher = cifar_networks.build(FLAGS.teacher_model)
        cifar_networks.load_weights(teacher, FLAGS.teacher_weights)
        arguments["teacher"] = teacher
    return arguments


# Results.


def group_by_stage(results):
    """Returns the results of all seeds by the name of their stage, in the order of training."""
    groups = {}
    for result in results:
        groups.setdefault(result["stage"], []).append(result)
    return groups


def describe(values, *, digits=2):
    """Returns mean and standard deviation; the mean alone of one value; "-" of none."""
    if not values:
        return "-"
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def seconds(result):
    """Returns the training time of a stage, without validation and probes."""
    return sum(row["seconds"] for row in result["epochs"])


def results_table(results):
    """Returns one Markdown row per stage: means over the seeds, figures of the last epoch."""
    lines = [
        f"{FLAGS.model}, W{FLAGS.w_bits}/A{FLAGS.a_bits}, seeds {FLAGS.seed}, "
        f"{FLAGS.train_examples} training and {FLAGS.test_examples} test images; teacher, distance "
        f"and agreement on {min(FLAGS.probe_examples, FLAGS.test_examples)} of these.",
        "",
        "| stage | test, % | in LiteRT, % | 8-bit teacher, % | distance | agreement, % | steps "
        "| seconds | steps/s, last epoch |",
        "| --- " * 9 + "|",
    ]
    for stage, group in group_by_stage(results).items():
        last_epochs = [result["epochs"][-1] for result in group if result["epochs"]]

        def last(name, *, unit=1, digits=2, rows=last_epochs):
            return describe([row[name] / unit for row in rows if name in row], digits=digits)

        cells = (
            stage,
            describe([100 * result["test_accuracy"] for result in group]),
            describe([100 * r["litert_accuracy"] for r in group if "litert_accuracy" in r]),
            last("teacher_accuracy", unit=0.01),
            last("distance", digits=4),
            last("agreement", unit=0.01),
            last("step", digits=0, rows=last_epochs[:1]),
            describe([seconds(result) for result in group], digits=0),
            last("steps_per_s", digits=1),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table1(rows):
    """Returns Table 1 in Markdown: test accuracy in % at widths that were not trained."""
    widths = list(rows[0]["accuracies"])
    lines = [
        f"| trained | {' | '.join(f'evaluated at {width}' for width in widths)} |",
        "| --- " * (len(widths) + 1) + "|",
    ]
    for trained in dict.fromkeys(row["trained"] for row in rows):
        group = [row["accuracies"] for row in rows if row["trained"] == trained]
        cells = [describe([100 * accuracies[width] for accuracies in group]) for width in widths]
        lines.append(f"| {trained} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(results):
    """Returns a figure with a line per stage: accuracies, distance, agreement over the epochs."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = {
        "val_accuracy": "test accuracy",
        "teacher_accuracy": "accuracy at 8-bit activations",
        "distance": "distance between the outputs at target width and 8 bits",
        "agreement": "agreement between them",
    }
    drawn = dict(zip(panels, figure.subplots(2, 2).flat, strict=True))
    for (name, title), axes in zip(panels.items(), drawn.values(), strict=True):
        for number, (stage, group) in enumerate(group_by_stage(results).items()):
            lines = [[row[name] for row in result["epochs"] if name in row] for result in group]
            if lines[0]:
                mean = np.mean(lines, axis=0)
                epochs = np.arange(1, len(mean) + 1)
                # A stage has the same colour in all panels.
                axes.plot(epochs, mean, f"C{number}.-", label=stage)
        axes.set(title=title, xlabel="epoch of the stage")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    show_differences([drawn["val_accuracy"], drawn["teacher_accuracy"]], least=0.02)
    return figure


if __name__ == "__main__":
    app.run(main)
