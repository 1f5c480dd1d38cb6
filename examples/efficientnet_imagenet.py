r"""EfficientNet with 3-bit weights and activations: the paper's Table 6 as a program.

    python examples/efficientnet_imagenet.py                 # short form, no download, minutes
    python examples/efficientnet_imagenet.py --dataset=imagenet2012 --data_dir=TFDS_FOLDER \
        --weights=imagenet --checkpoint_dir=checkpoints
    python examples/efficientnet_imagenet.py --image_folder=FOLDER --weights=imagenet

Stages, each starting where the previous one ended: `pretrain` (float), `retrain` (plain
quantization-aware training), `speq`, and on request `control`: plain training that continues from
the retrained network for as many steps as `speq`. The result is exported as an integer TFLite file,
proven to be the trained network, and compared with it on test images. Prints one table; writes
`results.json`, `curves.png`, the trained models, the file, a log with one JSON object per line, and
TensorBoard events to `--out_dir`.

Without arguments it trains EfficientNet-B0 on scikit-learn's digits, enlarged to 48 pixels, for a
few epochs per stage and with its own settings (`SHORT_RUN`), and tests on 540 images. Settings are
chosen on `--dataset=digits_validation`. With `--checkpoint_dir` a killed run resumes from its last
checkpoint and ends with the same weights as an unbroken one. SIGTERM ends it between two steps.

The paper states the widths (W3/A3; first and last layer 8 bits), u = 0.5 between the target width
and 8 bits, the cosine loss, a float-pretrained EfficientNet-B0, and that it is retrained and then
trained with SPEQ. Departures, and details that it does not state: learning rates, epochs and
schedules (here 60 epochs each, SGD with Nesterov momentum 0.9, 0.02, cosine, decoupled weight
decay); the temperature (2); the activation quantizer is PACT there and lsq_plus here, because
values after a swish are signed; ranges are calibrated with batch statistics, as used in quantized
training; squeeze-excite blocks read 8-bit activations; the float weights are Keras' own (77.1 %,
there 76.7 %).
"""

import json
import time

import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
from absl import app, flags

import devices
import efficientnet_results
import image_data
import imagenet_networks
import observers
import speq_keras
import training_run
from devices import is_first_process
from program_flags import (
    ACTIVATION_QUANTIZERS,
    DISTILLATIONS,
    STORAGES,
    WEIGHT_QUANTIZERS,
    WIDTHS,
    bits,
    check_file,
    check_processes,
    check_words,
    own_flags,
    set_defaults,
)

FLAGS = flags.FLAGS
STAGES = ("pretrain", "retrain", "control", "speq")

flags.DEFINE_enum("model", "EfficientNetB0", imagenet_networks.EFFICIENTNETS, "The network.")
flags.DEFINE_integer("image_size", 224, "Height and width of the images, in pixels.", 32)
flags.DEFINE_string("weights", None, "Float weights: imagenet (Keras downloads them), or a file.")
flags.DEFINE_list(
    "stages",
    None,
    "Some of pretrain, retrain, control, speq; default pretrain,retrain,speq, or retrain,speq with "
    "--weights.",
)

flags.DEFINE_string(
    "dataset",
    "digits",
    "digits, digits_validation (for choosing settings: part of digits' training images), "
    "cifar10, cifar100, or a data set of TensorFlow Datasets.",
)
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets, or an .npz of cifar10.")
flags.DEFINE_string(
    "image_folder", None, "Folder with train/ and val/, a folder per class in each."
)
flags.DEFINE_bool("download", False, "Let TensorFlow Datasets download the data set.")
flags.DEFINE_integer("train_examples", None, "Number of training images; default all.", 1)
flags.DEFINE_integer("test_examples", None, "Number of test images; default all.", 1)

flags.DEFINE_enum("w_bits", "3", WIDTHS, "Width of the weights, in bits.")
flags.DEFINE_enum("a_bits", "3", WIDTHS, "Width of the activations, in bits.")
flags.DEFINE_enum("boundary_bits", "8", WIDTHS, "Width of the first and last layers.")
flags.DEFINE_enum(
    "squeeze_excite_w_bits", None, WIDTHS, "Width of squeeze-excite weights; default --w_bits."
)
flags.DEFINE_enum("weight_quantizer", "sawb", WEIGHT_QUANTIZERS, "For weights.")
flags.DEFINE_enum("activation_quantizer", "lsq_plus", ACTIVATION_QUANTIZERS, "For activations.")
flags.DEFINE_enum("distillation", "cosine", DISTILLATIONS, "The loss of SPEQ.")
flags.DEFINE_float("temperature", 2.0, "T of Eq. 2.", 0.0)
flags.DEFINE_float("u", 0.5, "Probability of the target width in the teacher (Eq. 1).", 0, 1)
flags.DEFINE_integer("teacher_bits", 8, "n_H of Eq. 1, in bits.", 2, 8)
flags.DEFINE_enum(
    "teacher", None, imagenet_networks.EFFICIENTNETS, "An additional, larger float teacher (Eq. 3)."
)
flags.DEFINE_string("teacher_weights", "imagenet", "Weights of the larger teacher, as --weights.")
flags.DEFINE_float("speq_weight", 0.5, "λ of Eq. 4, with --teacher.", 0, 1)

for _stage in ("pretrain", "retrain", "speq"):
    flags.DEFINE_integer(f"{_stage}_epochs", 60, f"Epochs of {_stage}.", 1)
    flags.DEFINE_float(
        f"{_stage}_learning_rate", 0.1 if _stage == "pretrain" else 0.02, "Highest rate.", 0.0
    )
    flags.DEFINE_enum(
        f"{_stage}_schedule", "cosine", ("cosine", "exponential", "constant"), "Its course."
    )
    flags.DEFINE_enum(
        f"{_stage}_optimizer", "sgd", ("sgd", "adamw", "rmsprop"), "SGD has Nesterov momentum 0.9."
    )
    flags.DEFINE_float(
        f"{_stage}_weight_decay", 1e-4, "Decoupled; only on kernels, times the learning rate.", 0.0
    )
flags.DEFINE_float("warmup_epochs", 0.0, "Epochs in which the learning rate rises from zero.", 0.0)
flags.DEFINE_float(
    "batch_norm_momentum", None, "Of the moving statistics; 0.99 needs some 500 steps.", 0.0, 1.0
)
flags.DEFINE_float(
    "dropout", None, "Rate of dropout and stochastic depth; default the network's own.", 0, 1
)
flags.DEFINE_bool("augment", None, "Shift or crop and mirror training images; default yes.")
flags.DEFINE_float("label_smoothing", 0.0, "Share of the label spread over all classes.", 0.0, 1.0)
flags.DEFINE_float("ema", 0.0, "Momentum of averaged weights, such as 0.9999; 0: none.", 0.0, 1.0)
flags.DEFINE_integer("batch_size", 128, "Images per step, over all devices and processes.", 1)
flags.DEFINE_integer("calibration_examples", 512, "Training images that set the ranges.", 1)
flags.DEFINE_integer("seed", 0, "Seed of weights, draws, images.", 0)

flags.DEFINE_enum(
    "precision", "float32", ("float32", "mixed_float16", "mixed_bfloat16"), "Keras' dtype policy."
)
flags.DEFINE_enum("strategy", "none", ("none", "mirrored"), "mirrored: all devices of a machine.")
flags.DEFINE_integer(
    "logical_devices", None, "Split one CPU into this many devices, to try --strategy.", 1
)
flags.DEFINE_integer("num_processes", 1, "Processes that train together, on JAX.", 1)
flags.DEFINE_integer("process_id", 0, "Index of this process; the first writes the files.", 0)
flags.DEFINE_string("coordinator", "127.0.0.1:12345", "Address and port of the first process.")

flags.DEFINE_string("checkpoint_dir", None, "A killed run that is restarted resumes from here.")
flags.DEFINE_integer("checkpoint_steps", None, "Most steps between two; default one per epoch.", 1)
flags.DEFINE_integer("probe_examples", 1_000, "Test images to evaluate student and teacher on.", 1)
flags.DEFINE_integer("export_examples", 1_000, "Test images to compare the file on.", 1)
flags.DEFINE_enum("storage", "int4", STORAGES, "How the file stores weights.")
flags.DEFINE_bool("tensorboard", True, "Write TensorBoard events to --out_dir.")
flags.DEFINE_string("out_dir", "out/efficientnet", "Folder for the files this program writes.")

SHORT_RUN = {
    "image_size": 48,  # at 32 the last maps are 1×1, and 3-bit noise does not average out
    "batch_size": 32,
    "pretrain_epochs": 5,
    "pretrain_optimizer": "adamw",
    "pretrain_learning_rate": 0.003,
    "retrain_epochs": 4,
    "retrain_optimizer": "adamw",
    "retrain_learning_rate": 0.002,
    "speq_epochs": 3,
    "speq_optimizer": "adamw",
    "speq_learning_rate": 0.001,
    "batch_norm_momentum": 0.9,
    "dropout": 0.0,
    "augment": False,
    "calibration_examples": 128,
    "probe_examples": 128,
    "tensorboard": False,  # its plots of all activations take longer than training
}
# The flags that do not change the contents of a checkpoint.
FREE_FLAGS = (
    *("stages", "data_dir", "image_folder", "download", "storage", "export_examples"),
    *("probe_examples", "tensorboard", "checkpoint_dir", "out_dir", "strategy"),
    *("logical_devices", "num_processes", "process_id", "coordinator"),
)


def main(_):
    training_run.silence_notices()
    is_short = FLAGS.dataset in image_data.DIGITS and not FLAGS.image_folder
    if is_short:
        set_defaults(SHORT_RUN)
    check_flags()
    if FLAGS.logical_devices:
        devices.divide_cpu(FLAGS.logical_devices)
    if FLAGS.num_processes > 1:
        devices.join_processes(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    out_dir = training_run.make_folder(FLAGS.out_dir)
    binding = {name: value for name, value in own_flags(__name__).items() if name not in FREE_FLAGS}
    checkpoint_dir = training_run.checkpoint_folder(FLAGS.checkpoint_dir, out_dir, binding)
    if is_short and is_first_process():
        print("This is the short form: digits of 8×8 pixels, enlarged, and few epochs.\n")
    keras.mixed_precision.set_global_policy(FLAGS.precision)
    try:
        data = image_data.load(
            FLAGS.dataset,
            image_size=FLAGS.image_size,
            data_dir=FLAGS.data_dir,
            image_folder=FLAGS.image_folder,
            download=FLAGS.download,
            train_examples=FLAGS.train_examples,
            test_examples=FLAGS.test_examples,
            augment=FLAGS.augment is not False,
        )
        with devices.scope("none" if FLAGS.num_processes > 1 else FLAGS.strategy):
            experiment = Experiment(data, out_dir, checkpoint_dir)
            experiment.run()
    except (FileNotFoundError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith(("--", "/", "`")):
            raise
        raise SystemExit(str(error)) from None

    if is_first_process():
        report(experiment, out_dir)
    if experiment.export_error:
        raise SystemExit(experiment.export_error)


# Flags.


def check_flags():
    """Ends the program with one sentence if flags are inconsistent."""
    check_words("stages", STAGES)
    if not FLAGS.weights and "pretrain" not in stages():
        raise SystemExit("Without the pretrain stage a float network is needed: pass --weights.")
    if {"speq", "control"} & set(stages()) and "retrain" not in stages():
        raise SystemExit("The stages speq and control start from a retrained network: add retrain.")
    for name in ("weights", "teacher_weights"):
        check_file(name, "imagenet or a file", words=("imagenet",))
    check_processes()
    if FLAGS.strategy == "mirrored" and keras.backend.backend() == "torch":
        raise SystemExit(
            "--strategy=mirrored needs the TensorFlow or JAX backend. Received: torch."
        )
    if FLAGS.batch_size % FLAGS.num_processes:
        raise SystemExit(
            "--batch_size must be a multiple of --num_processes. Received: "
            f"{FLAGS.batch_size} and {FLAGS.num_processes}."
        )


def stages():
    """Returns the stages to run, in order."""
    default = ("retrain", "speq") if FLAGS.weights else ("pretrain", "retrain", "speq")
    return [stage for stage in STAGES if stage in (FLAGS.stages or default)]


# Stages.


class Experiment:
    """The float network and all stages; `results` has a dict for each."""

    def __init__(self, data, out_dir, checkpoint_dir):
        self.data = data
        self.out_dir = out_dir
        self.checkpoint_dir = checkpoint_dir
        self.results = []
        self.export = self.export_error = None
        self.steps_before = self.packed_bytes = 0
        self.part = {"part": FLAGS.process_id, "parts": FLAGS.num_processes}
        self.pieces_per_epoch, steps = training_run.whole_pieces(
            max(1, data.train_count // FLAGS.batch_size), FLAGS.checkpoint_steps
        )
        self.steps_per_epoch = self.pieces_per_epoch * steps
        self.test_batches = data.test_batches(batch_size=FLAGS.batch_size, **self.part)
        self.log = training_run.Log(checkpoint_dir / "log.jsonl")
        keras.utils.set_random_seed(FLAGS.seed)
        self.network = self.load_network(FLAGS.model, FLAGS.weights)
        if FLAGS.batch_norm_momentum is not None:
            imagenet_networks.set_batch_norm_momentum(self.network, FLAGS.batch_norm_momentum)
        if FLAGS.dropout is not None:
            imagenet_networks.set_dropout_rate(self.network, FLAGS.dropout)
        self.teacher = None
        if FLAGS.teacher and FLAGS.teacher_weights == "imagenet" and data.classes != 1000:
            raise ValueError(
                "--teacher_weights must be a file unless the data has the 1,000 classes of "
                f"ImageNet: a teacher has to know them. Received: {data.classes} classes."
            )
        if FLAGS.teacher:
            self.teacher = self.load_network(FLAGS.teacher, FLAGS.teacher_weights)

    def load_network(self, name, weights):
        return imagenet_networks.efficientnet(
            name, image_size=FLAGS.image_size, classes=self.data.classes, weights=weights
        )

    def run(self):
        """Runs the stages, and exports the result of the last one."""
        if "pretrain" in stages():
            self.train(self.network, "pretrain", "pretrain")
        else:
            self.compile(self.network, "pretrain", epochs=1)
            logs = self.network.evaluate(self.test_batches, verbose=0, return_dict=True)
            self.add_result("float, as given", self.network, logs, seconds=0.0, steps=0)
        if "retrain" not in stages():
            return
        model = retrained = self.wrap(distillation=None)
        retrained.calibrate(
            self.data.first_training_images(FLAGS.calibration_examples),
            batch_size=min(FLAGS.batch_size, 64),
            training=True,  # as in quantized training: moving statistics lag
            verbose=0,
        )
        plan = retrained.plan()  # takes seconds; training does not change sizes
        self.packed_bytes = plan.totals["bytes"]
        if is_first_process():
            self.show_plan(plan)
        self.train(retrained, "retrain", "retrain")
        before = self.steps_before
        for stage in stages()[stages().index("retrain") + 1 :]:
            self.steps_before = before  # both see the same images
            model = self.wrap(distillation=FLAGS.distillation if stage == "speq" else None)
            model.set_weights(retrained.get_weights())
            self.train(model, stage, "speq")
        if "float" in (FLAGS.w_bits, FLAGS.a_bits, FLAGS.boundary_bits):
            return  # there are no integers
        try:
            self.export_last(model)
        except (ValueError, RuntimeError) as error:
            self.export_error = f"No TFLite file was written: {error}"

    def show_plan(self, plan):
        """Writes the plan, a row per layer, to a file, and prints its summary."""
        table, summary = str(plan).split("\n\n", 1)
        path = self.out_dir / "plan.txt"
        training_run.write_file(path, lambda temporary: temporary.write_text(f"{plan}\n"))
        print(f"{summary}\n{path} lists the {len(table.splitlines()) - 2} layers.\n", flush=True)

    def wrap(self, distillation):
        """Returns a quantized copy of the float network."""
        arguments = {"distillation": None}
        if distillation:
            arguments = {
                "distillation": distillation,
                "temperature": FLAGS.temperature,
                "quantization_probability": FLAGS.u,
                "teacher_bits": FLAGS.teacher_bits,
            }
            if self.teacher is not None:
                arguments |= {"teacher": self.teacher, "speq_weight": FLAGS.speq_weight}
        configs = None
        if FLAGS.squeeze_excite_w_bits:
            config = speq_keras.QuantizeConfig(w_bits=bits(FLAGS.squeeze_excite_w_bits), a_bits=8)
            configs = {"*_se_reduce": config, "*_se_expand": config}
        return speq_keras.wrap(
            self.network,
            w_bits=bits(FLAGS.w_bits),
            a_bits=bits(FLAGS.a_bits),
            boundary_bits=bits(FLAGS.boundary_bits),
            weight_quantizer=FLAGS.weight_quantizer,
            activation_quantizer=FLAGS.activation_quantizer,
            configs=configs,
            seed=FLAGS.seed,
            **arguments,
        )

    def train(self, model, stage, settings):
        """Trains `model` with the flags of `settings`, saves it and adds its result."""
        epochs = FLAGS[f"{settings}_epochs"].value
        self.compile(model, settings, epochs)
        first_step = self.steps_before

        def batches(step):
            return self.data.training_batches(
                first_step + step, batch_size=FLAGS.batch_size, seed=FLAGS.seed, **self.part
            )

        start = time.perf_counter()
        training_run.fit(
            model,
            stage,
            batches,
            self.test_batches,
            epochs=epochs,
            steps_per_epoch=self.steps_per_epoch,
            checkpoint_steps=FLAGS.checkpoint_steps,
            batch_size=FLAGS.batch_size,
            folder=self.checkpoint_dir / stage,
            log=self.log,
            observers=self.observers(model, stage),
            callbacks=self.callbacks(model, stage),
        )
        # Not `int`: under a strategy a variable has one value per device.
        steps = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
        *_, last = (row for row in self.log.rows if row["stage"] == stage)
        logs = {name: last[f"val_{name}"] for name in ("accuracy", "loss")}
        self.add_result(stage, model, logs, seconds=time.perf_counter() - start, steps=steps)
        self.steps_before += steps
        training_run.write_file(self.out_dir / f"{stage}.keras", model.save)

    def compile(self, model, settings, epochs):
        """Compiles `model` with the optimizer and learning rates of one stage."""
        rate, decay = (
            FLAGS[f"{settings}_learning_rate"].value,
            FLAGS[f"{settings}_weight_decay"].value,
        )
        steps = epochs * self.steps_per_epoch
        optimizer = {
            "sgd": lambda **common: keras.optimizers.SGD(momentum=0.9, nesterov=True, **common),
            "adamw": keras.optimizers.AdamW,
            "rmsprop": lambda **common: keras.optimizers.RMSprop(
                rho=0.9, momentum=0.9, epsilon=1e-3, **common
            ),
        }[FLAGS[f"{settings}_optimizer"].value](
            learning_rate=schedule(
                FLAGS[f"{settings}_schedule"].value, rate, steps, self.steps_per_epoch
            ),
            weight_decay=decay or None,
            use_ema=bool(FLAGS.ema),
            ema_momentum=FLAGS.ema or 0.99,
        )
        if decay:
            # No weight decay for BatchNormalization, biases and clipping levels.
            optimizer.exclude_from_weight_decay(
                var_list=[v for v in model.trainable_variables if len(v.shape) < 2]
            )
        model.compile(
            optimizer,
            keras.losses.CategoricalCrossentropy(
                from_logits=True, label_smoothing=FLAGS.label_smoothing
            ),
            metrics=[keras.metrics.CategoricalAccuracy("accuracy")],  # now: no second trace
        )

    def callbacks(self, model, stage):
        """Returns the Keras callbacks of a stage."""
        found = [keras.callbacks.SwapEMAWeights()] if FLAGS.ema else []
        if FLAGS.tensorboard and isinstance(model, speq_keras.SPEQModel):
            images, _ = next(iter(self.data.test_batches(batch_size=8, count=8)))
            folder = self.out_dir / "tensorboard" / stage
            snapshot = speq_keras.callbacks.ActivationSnapshot(
                images, folder, every=self.pieces_per_epoch, tensorboard=True
            )
            found.append(snapshot)
        return found

    def observers(self, model, stage):
        """Returns the functions that add figures at the end of each piece."""
        found = []
        if isinstance(model, speq_keras.SPEQModel):
            probe = self.data.test_batches(
                batch_size=FLAGS.batch_size, count=FLAGS.probe_examples, **self.part
            )
            found.append(observers.ReadAtBothWidths(probe, bits(FLAGS.a_bits)))
        if FLAGS.tensorboard and is_first_process():
            folder = self.out_dir / "tensorboard" / stage
            found.append(observers.TensorBoard(folder, alone=FLAGS.num_processes == 1))
        return found

    def add_result(self, stage, model, logs, *, seconds, steps):
        is_quantized = isinstance(model, speq_keras.SPEQModel)
        self.results.append(
            {
                "stage": stage,
                "test_accuracy": logs["accuracy"],
                "test_loss": logs["loss"],
                "steps": steps,
                "seconds": seconds,
                "bytes": self.packed_bytes if is_quantized else 4 * model.count_params(),
            }
        )
        if is_first_process():
            print(f"{stage}: test accuracy {logs['accuracy']:.2%}\n", flush=True)

    def export_last(self, model):
        """Settles the last stage's model, writes its TFLite file, and compares both on test images.

        The export itself proves that the file computes the trained network, or fails.
        """
        path = self.out_dir / "efficientnet.tflite"
        count = min(FLAGS.export_examples, self.data.test_count)
        batches = list(
            self.data.test_batches(batch_size=64, count=count, one_hot=False).as_numpy_iterator()
        )
        trained = self.accuracy_and_classes(model, count, batches)
        settlement = model.settle(storage=FLAGS.storage)
        proof = model.export_tflite(path, storage=FLAGS.storage, data=batches[0][0][:32])
        settled = self.accuracy_and_classes(model, count, batches)
        if not is_first_process():
            return
        print(f"{settlement}\n{str(proof).split(chr(10) * 2)[0]}\n", flush=True)
        content = path.read_bytes()
        file = classes(lambda images: speq_keras.export.run_file(content, images)[0], batches)
        labels = np.concatenate([labels for _, labels in batches])
        self.export = {
            "examples": count,
            "trained": trained[0],
            "settled": settled[0],
            "file": float(np.mean(file == labels)),
            "file_as_settled": share_equal(file, settled[1]),
            "file_as_trained": share_equal(file, trained[1]),
            "bytes": proof.bytes,
            "proof": {
                "compared": proof.proof.compared,
                "mismatches": proof.proof.mismatches,
                "rounded": proof.proof.rounded,
                "outside": proof.proof.outside,
            },
        }

    def accuracy_and_classes(self, model, count, batches):
        """Returns the accuracy on the first test images, and the class assigned to each of them.

        With several processes, each evaluates its part: the classes are then None.
        """
        part = self.data.test_batches(batch_size=FLAGS.batch_size, count=count, **self.part)
        accuracy = model.evaluate(part, verbose=0, return_dict=True)["accuracy"]
        alone = FLAGS.num_processes == 1
        return accuracy, classes(model.predict_on_batch, batches) if alone else None


def classes(predict, batches):
    """Returns the class that `predict` assigns to every image."""
    outputs = [predict(images) for images, _ in batches]
    return np.concatenate([output.argmax(axis=-1) for output in outputs])


def share_equal(ours, theirs):
    """Returns the share of images with the same class from two networks; None if unknown."""
    return None if theirs is None else float(np.mean(ours == theirs))


def schedule(name, rate, steps, steps_per_epoch):
    """Returns a learning rate schedule over these steps, after `--warmup_epochs`."""
    warmup = int(FLAGS.warmup_epochs * steps_per_epoch)
    schedules = keras.optimizers.schedules
    if name == "cosine":
        if warmup:
            return schedules.CosineDecay(
                0.0, max(1, steps - warmup), warmup_target=rate, warmup_steps=warmup
            )
        return schedules.CosineDecay(rate, steps)
    if name == "exponential":
        # As EfficientNet was trained: 0.97 every 2.4 epochs.
        return schedules.ExponentialDecay(rate, int(2.4 * steps_per_epoch) or 1, 0.97)
    return rate


# Results.


def report(experiment, out_dir):
    """Prints the table and writes the results."""
    print(efficientnet_results.table(experiment))
    results = {
        "flags": own_flags(__name__),
        "stages": experiment.results,
        "export": experiment.export,
        "log": experiment.log.rows,
    }
    training_run.write_file(
        out_dir / "results.json", lambda path: path.write_text(json.dumps(results, indent=1))
    )
    if experiment.log.rows:
        training_run.write_file(
            out_dir / "curves.png", efficientnet_results.curves(experiment.log.rows).savefig
        )
    written = ["results", "models", "plan.txt", "curves.png"]
    written += ["TensorBoard's events"] if FLAGS.tensorboard else []
    print(f"\nWrote {', '.join(written)} to {out_dir}")


if __name__ == "__main__":
    app.run(main)
