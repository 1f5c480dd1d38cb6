"""What quantized recurrent layers keep and cost: an LSTM and a GRU on digits, read row by row.

    python examples/benchmarks/recurrent.py

Accuracy: Dense(16), the recurrent layer with 32 units, Dense(10), on scikit-learn's digits as
sequences of 8 rows. One split of the images per seed; the float network is trained on them and on
shifted copies, then wrapped and fine-tuned, and beside it trained on in float for as long a time.
After `settle` the file is compared with `predict` on shifted and noisy copies of the test images.

Cost: networks of one recurrent layer, 28 steps of 28 numbers, 32 units: the training step beside
the float network's in turns, and what the file takes. Prints two Markdown tables and writes
`recurrent.json`.
"""

import json
import logging
import pathlib
import sys
import time

import keras
import numpy as np
import step_times
from absl import app, flags
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import speq_keras

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of the next imports
from program_flags import own_flags
from training_run import write_file

FLAGS = flags.FLAGS
flags.DEFINE_list("layers", ["LSTM", "GRU"], "Recurrent layers of Keras.")
flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "One split and one network each.")
flags.DEFINE_list("w_bits", ["4", "8"], "Widths of the weights; activations have 8 bits.")
flags.DEFINE_integer("pretrain_epochs", 20, "Epochs in float.", 1)
flags.DEFINE_integer("epochs", 8, "Epochs of fine-tuning.", 1)
flags.DEFINE_integer("noisy_copies", 10, "Shifted and noisy copies of a test image.", 1)
flags.DEFINE_integer("rounds", 8, "Turns of each network when steps are measured.", 2)
flags.DEFINE_string("out_dir", "out/benchmarks", "Folder for recurrent.json.")

BATCH_SIZE = 32
NOISE = 0.05  # standard deviation, of pixels from 0 to 1


def main(_):
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # many models are compiled, all wanted
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    runs = [run(layer, int(seed)) for layer in FLAGS.layers for seed in FLAGS.seeds]
    costs = [cost(layer, out_dir) for layer in FLAGS.layers]
    tables = f"{accuracy_table([row for rows in runs for row in rows])}\n\n{cost_table(costs)}"
    print(f"\n{tables}")
    results = {"flags": own_flags(__name__), "tables": tables, "runs": runs, "costs": costs}
    path = out_dir / "recurrent.json"
    write_file(path, lambda path: path.write_text(json.dumps(results, indent=1)))


# ---- accuracy --------------------------------------------------------------------------------


def shifted(images, random, count, noise=0.0):
    """Returns `count` copies of the images, each moved by up to one pixel, with noise."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    copies = []
    for _ in range(count):
        y, x = random.integers(0, 3, (2, len(images)))
        rows = y[:, None, None] + np.arange(8)[:, None]
        columns = x[:, None, None] + np.arange(8)
        copies.append(padded[np.arange(len(images))[:, None, None], rows, columns])
    copies = np.concatenate(copies)
    return (copies + noise * random.standard_normal(copies.shape)).astype("float32")


def load_split(seed):
    """Returns train and test images with labels, and copies of the test images with theirs."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8).astype("float32")
    parts = train_test_split(images, labels, test_size=0.3, random_state=seed, stratify=labels)
    train, test, train_labels, test_labels = parts
    random = np.random.default_rng(seed)
    more = np.concatenate([train, shifted(train, random, 2)]), np.tile(train_labels, 3)
    count = FLAGS.noisy_copies
    copies = shifted(test, random, count, NOISE), np.tile(test_labels, count)
    return more, (test, test_labels), copies


def network_of(layer, shape, units=32, features=None):
    """Returns a float network: perhaps Dense(features), the recurrent layer, Dense(10)."""
    inputs = x = keras.Input(shape)
    if features:
        x = keras.layers.Dense(features, activation="relu")(x)
    x = getattr(keras.layers, layer)(units, name="recurrent")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


class Stop(keras.callbacks.Callback):
    """Ends training after so many seconds."""

    def __init__(self, seconds):
        super().__init__()
        self.end = time.perf_counter() + seconds

    def on_train_batch_end(self, batch, logs=None):
        if time.perf_counter() > self.end:
            self.model.stop_training = True


def train(model, data, epochs, rate, callbacks=()):
    """Trains a model; returns the seconds that it took."""
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    start = time.perf_counter()
    model.fit(*data, batch_size=BATCH_SIZE, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return time.perf_counter() - start


def percent_right(model, data):
    """Returns the accuracy of a model in percent."""
    images, labels = data
    predicted = model.predict(images, batch_size=256, verbose=0).argmax(-1)
    return 100 * float(np.mean(predicted == labels))


def run(layer, seed):
    """Returns a row per width of the weights, for one split."""
    keras.utils.set_random_seed(seed)
    data, test, copies = load_split(seed)
    network = network_of(layer, (8, 8), features=16)
    train(network, data, FLAGS.pretrain_epochs, 3e-3)
    rows, seconds = [], 0.0
    for w_bits in map(int, FLAGS.w_bits):
        model = speq_keras.wrap(network, w_bits, 8, distillation=None, seed=seed)
        model.calibrate(data[0][:512], verbose=0)
        row = {"layer": layer, "seed": seed, "w_bits": w_bits}
        row["calibrated"] = percent_right(model, test)
        seconds = max(seconds, train(model, data, FLAGS.epochs, 1e-3))
        row |= {"test": percent_right(model, test), "copies": percent_right(model, copies)}
        row["same_before"] = same_class(model, copies[0])
        model.settle()
        row["same"] = same_class(model, copies[0])
        rows.append(row)
    train(network, data, 1000, 1e-3, [Stop(seconds)])
    for row in rows:
        row["float_test"] = percent_right(network, test)
        row["float_copies"] = percent_right(network, copies)
        print(row)
    return rows


def same_class(model, sequences):
    """Returns on what share of sequences, in percent, file and `predict` agree on the class."""
    path = pathlib.Path(FLAGS.out_dir) / "recurrent.tflite"
    model.export_tflite(path)
    outputs = file_outputs(path, sequences)
    predicted = model.predict(sequences, batch_size=256, verbose=0)
    return 100 * float(np.mean(outputs.argmax(-1) == predicted.argmax(-1)))


def file_outputs(path, array):
    """Returns what a file computes on LiteRT."""
    interpreter = Interpreter(str(path))
    (detail,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def accuracy_table(rows):
    """Returns the Markdown table: means over the seeds, with their standard deviations."""
    lines = [
        "| network | splits | float, % | quantized, % | difference | of copies, float | quantized "
        "| difference | same class, % |",
        "| --- " * 9 + "|",
    ]
    for layer in FLAGS.layers:
        for w_bits in map(int, FLAGS.w_bits):
            own = [row for row in rows if (row["layer"], row["w_bits"]) == (layer, w_bits)]
            cells = []
            for part in ("test", "copies"):
                ours, theirs = (np.array([row[k] for row in own]) for k in (part, f"float_{part}"))
                cells += [_spread(theirs), _spread(ours), _spread(ours - theirs)]
            same = [f"{np.mean([row[k] for row in own]):.2f}" for k in ("same_before", "same")]
            cells = [f"{layer} W{w_bits}/A8", str(len(own)), *cells, " → ".join(same)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values):
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=min(1, len(values) - 1)):.2f}"


# ---- cost ------------------------------------------------------------------------------------


def cost(layer, out_dir, steps=28, numbers=28):
    """Returns what one network costs: quantizers, steps, first calls, bytes, latency."""
    random = np.random.default_rng(0)
    sequences = random.standard_normal((8 * BATCH_SIZE, steps, numbers)).astype("float32")
    labels = random.integers(0, 10, len(sequences))
    network = network_of(layer, (steps, numbers))
    model = speq_keras.wrap(network, 4, 8, distillation=None)
    model.calibrate(sequences[:64], verbose=0)
    clock, times, first = step_times.step_clock(keras), {"float": [], "quantized": []}, {}
    models = {"float": network, "quantized": model}
    for name, each in models.items():
        first[name] = train(each, (sequences[:BATCH_SIZE], labels[:BATCH_SIZE]), 1, 1e-3)
    for _ in range(FLAGS.rounds):
        for name, each in models.items():
            each.fit(sequences, labels, batch_size=BATCH_SIZE, verbose=0, callbacks=[clock])
            times[name].append(clock.step_times_s[1:])
    path = out_dir / "recurrent.tflite"
    model.export_tflite(path)
    weights = sum(weight.size for weight in network.get_layer("recurrent").get_weights())
    inside = model.get_layer("recurrent").activation_quantizers
    return {
        "layer": layer,
        "quantizers": len(inside),
        "step": step_times.ratio(times["quantized"], times["float"]),
        "float_ms": step_times.milliseconds(times["float"]),
        "first_s": first,
        "file_bytes": path.stat().st_size,
        "weights": int(weights),
        **_of_file(path),
    }


def _of_file(path):
    """Returns the operations of a file, and its latency for one sequence on one core."""
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    times_s = []
    for _ in range(300):
        start = time.perf_counter()
        interpreter.invoke()
        times_s.append(time.perf_counter() - start)
    return {"latency_us": 1e6 * float(np.median(times_s))}


def cost_table(rows):
    """Returns the Markdown table."""
    lines = [
        "| layer | quantizers | step, of the float one | float step, ms | first call, s: float "
        "| quantized | file, kB | weights | latency, µs |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        first = [f"{row['first_s'][name]:.1f}" for name in ("float", "quantized")]
        cells = [row["layer"], row["quantizers"], row["step"], row["float_ms"], *first]
        cells += [f"{row['file_bytes'] / 1000:.1f}", f"{row['weights']:,}"]
        cells.append(f"{row['latency_us']:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
