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

import functools
import json
import logging
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of the next imports
import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
import paired_splits
import step_times
from absl import app, flags
from ai_edge_litert.interpreter import Interpreter

import speq_keras
from program_flags import own_flags
from training_run import write_file

FLAGS = flags.FLAGS
flags.DEFINE_list("layers", ["LSTM", "GRU"], "Recurrent layers of Keras.")
flags.DEFINE_integer("rounds", 8, "Turns of each network when steps are measured.", 2)
flags.adopt_module_key_flags(paired_splits)

RECIPE = paired_splits.Recipe()


def main(_):
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # many models are compiled, all wanted
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    runs = [run(layer, int(seed)) for layer in FLAGS.layers for seed in FLAGS.seeds]
    costs = [cost(layer, out_dir) for layer in FLAGS.layers]
    rows = [row for rows in runs for row in rows]
    tables = f"{paired_splits.accuracy_table(rows, 'layer')}\n\n{cost_table(costs)}"
    print(f"\n{tables}")
    results = {"flags": own_flags(__name__), "tables": tables, "runs": runs, "costs": costs}
    path = out_dir / "recurrent.json"
    write_file(path, lambda path: path.write_text(json.dumps(results, indent=1)))


def run(layer, seed):
    """Returns a row per width of the weights, for one split."""
    path = pathlib.Path(FLAGS.out_dir) / "recurrent.tflite"
    make_network = functools.partial(network_of, layer, (8, 8), features=16)
    return paired_splits.run(make_network, seed, RECIPE, path, layer=layer)


def network_of(layer, shape, units=32, features=None):
    """Returns a float network: perhaps Dense(features), the recurrent layer, Dense(10)."""
    inputs = x = keras.Input(shape)
    if features:
        x = keras.layers.Dense(features, activation="relu")(x)
    x = getattr(keras.layers, layer)(units, name="recurrent")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


# ---- cost ------------------------------------------------------------------------------------


def cost(layer, out_dir, steps=28, numbers=28):
    """Returns what one network costs: quantizers, steps, first calls, bytes, latency."""
    random = np.random.default_rng(0)
    sequences = random.standard_normal((8 * RECIPE.batch_size, steps, numbers)).astype("float32")
    labels = random.integers(0, 10, len(sequences))
    network = network_of(layer, (steps, numbers))
    model = speq_keras.wrap(network, 4, 8, distillation=None)
    model.calibrate(sequences[:64], verbose=0)
    clock, times, first = step_times.step_clock(keras), {"float": [], "quantized": []}, {}
    models = {"float": network, "quantized": model}
    few = sequences[: RECIPE.batch_size], labels[: RECIPE.batch_size]
    for name, each in models.items():
        first[name] = paired_splits.train(each, few, RECIPE.rate, RECIPE, epochs=1)
    for _ in range(FLAGS.rounds):
        for name, each in models.items():
            each.fit(sequences, labels, batch_size=RECIPE.batch_size, verbose=0, callbacks=[clock])
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
