"""SPEQ in two minutes on real images: the handwritten digits of scikit-learn, no download.

    python examples/quickstart.py
    python examples/quickstart.py --w_bits=3 --a_bits=3 --seeds=0,1,2,3,4

A small convolutional network goes through the three stages of the paper: it is trained in float
(pretrain), trained further with 2-bit weights and activations (retrain), and then SPEQ and plain
quantization-aware training continue from the same retrained network for the same number of steps.
The SPEQ model of the first seed is exported as an integer TFLite file, proven to be the trained
network, and run on the test images in LiteRT. Prints what is quantized, one table and the result of
the export; writes `results.json`, `curves.png`, `speq.keras` and `speq.tflite`.
"""

import json
import logging
import pathlib
import time

import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
from absl import app, flags
from keras import layers
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import speq_keras
from curve_axis import show_differences
from program_flags import own_flags
from training_run import write_file

FLAGS = flags.FLAGS
flags.DEFINE_integer("w_bits", 2, "Width of the weights, in bits.", 2, 8)
flags.DEFINE_integer("a_bits", 2, "Width of the activations, in bits.", 2, 8)
flags.DEFINE_list("seeds", ["0", "1"], "Each seed is one run of all the stages.")
flags.DEFINE_integer("pretrain_epochs", 25, "Epochs in float.", 1)
flags.DEFINE_integer("retrain_epochs", 10, "Epochs of plain quantized training.", 1)
flags.DEFINE_integer("epochs", 10, "Epochs of SPEQ, and of its plain control.", 1)
flags.DEFINE_integer("batch_size", 64, "Images per training step.", 1)
flags.DEFINE_string("out_dir", "out/quickstart", "Folder for the files this program writes.")

FLOAT, RETRAIN, PLAIN, SPEQ = "float", "retrain", "retrain, continued", "SPEQ"
COLOURS = {FLOAT: "C7", RETRAIN: "C2", PLAIN: "C0", SPEQ: "C1"}


def main(_):
    # TensorFlow warns about many compiled functions: four models per seed, all intended.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    digits = load_data()

    runs = []
    for seed in [int(seed) for seed in FLAGS.seeds]:
        stages, speq_model = run_all_stages(digits, seed, show_plan=not runs)
        if not runs:
            write_file(out_dir / "speq.keras", speq_model.save)
            print(speq_model.settle())  # then `predict` equals the file
            report = speq_model.export_tflite(out_dir / "speq.tflite", data=digits[2:])
        runs.append({"seed": seed, "stages": stages})

    print(results_table(runs))
    print(f"\nExport of the SPEQ model of seed {FLAGS.seeds[0]}:")
    print(str(report).split("\n\n")[0])  # without the tables of weights and codes
    results = {"flags": own_flags(__name__), "runs": runs, "export": report.to_dict()}
    write_file(
        out_dir / "results.json", lambda path: path.write_text(json.dumps(results, indent=1))
    )
    write_file(out_dir / "curves.png", curves(runs).savefig)
    print(f"\nWrote speq.keras, speq.tflite, results.json and curves.png to {out_dir}")


def load_data():
    """Returns train and test images and labels: half of the images each, the same for all seeds."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16  # pixels are 0 to 16
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.5, random_state=0, stratify=labels
    )
    return x_train, y_train, x_test, y_test


def build_network():
    """Returns the float network: an ordinary Keras model, independent of quantization."""
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for filters, strides in ((16, 1), (16, 1), (32, 2), (32, 1)):
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def run_all_stages(digits, seed, *, show_plan):
    """Runs pretrain, retrain and both continuations for one seed.

    Returns:
        A list with one dict of results per stage, and the trained SPEQ model.
    """
    images = digits[0]
    keras.utils.set_random_seed(seed)
    network = build_network()
    stages = [train(network, digits, name=FLOAT, epochs=FLAGS.pretrain_epochs, seed=seed)]

    def wrap(distillation):
        return speq_keras.wrap(
            network,
            w_bits=FLAGS.w_bits,
            a_bits=FLAGS.a_bits,
            distillation=distillation,
            seed=seed,
        )

    retrained = wrap(distillation=None)
    retrained.calibrate(images[:256], verbose=0)
    if show_plan:
        print(retrained.plan())
    stages.append(train(retrained, digits, name=RETRAIN, epochs=FLAGS.retrain_epochs, seed=seed))

    for name, distillation in ((PLAIN, None), (SPEQ, "cosine")):
        model = wrap(distillation)
        model.calibrate(images[:256], verbose=0)
        model.set_weights(retrained.get_weights())
        stages.append(train(model, digits, name=name, epochs=FLAGS.epochs, seed=seed))
    return stages, model


def train(model, digits, *, name, epochs, seed, callbacks=()):
    """Trains `model` and returns its test accuracy, steps, seconds and curves."""
    x_train, y_train, x_test, y_test = digits
    steps = epochs * -(-len(x_train) // FLAGS.batch_size)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    # So that the two continuations see the images in the same order.
    keras.utils.set_random_seed(seed)
    start = time.perf_counter()
    history = model.fit(
        x_train,
        y_train,
        batch_size=FLAGS.batch_size,
        epochs=epochs,
        validation_data=(x_test, y_test),
        validation_batch_size=len(x_test),
        callbacks=list(callbacks),
        verbose=0,
    ).history
    seconds = time.perf_counter() - start
    accuracy = history["val_accuracy"][-1]
    print(
        f"seed {seed}  {name:20} {100 * accuracy:6.2f} %  {steps} steps  {seconds:.1f} s",
        flush=True,
    )
    return {
        "name": name,
        "test_accuracy": accuracy,
        "steps": steps,
        "seconds": seconds,
        "history": history,
    }


def results_table(runs):
    """Returns a Markdown table: a row per stage, mean and standard deviation over the seeds."""
    lines = [
        f"\nW{FLAGS.w_bits}/A{FLAGS.a_bits}, mean and deviation of {len(runs)} seeds\n",
        "| stage | test accuracy, % | steps | seconds, with compilation |",
        "| --- | --- | --- | --- |",
    ]
    for stages in zip(*(run["stages"] for run in runs), strict=True):
        accuracy = spread([100 * stage["test_accuracy"] for stage in stages])
        seconds = np.mean([stage["seconds"] for stage in stages])
        lines.append(f"| {stages[0]['name']} | {accuracy} | {stages[0]['steps']} | {seconds:.1f} |")
    return "\n".join(lines)


def spread(values, digits=2):
    """Returns the mean, and for several values their deviation."""
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def curves(runs):
    """Returns a figure: test accuracy of every stage over its steps, mean over the seeds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (title, names) in zip(
        panels,
        (("From float", (FLOAT, RETRAIN)), ("From the retrained network", (PLAIN, SPEQ))),
        strict=True,
    ):
        for name in names:
            stages = [stage for run in runs for stage in run["stages"] if stage["name"] == name]
            mean = 100 * np.mean([stage["history"]["val_accuracy"] for stage in stages], axis=0)
            steps = np.arange(1, len(mean) + 1) * stages[0]["steps"] / len(mean)
            axes.plot(steps, mean, COLOURS[name], label=name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    panels[0].set_ylabel("test accuracy, %")
    show_differences(panels, least=2)
    return figure


if __name__ == "__main__":
    app.run(main)
