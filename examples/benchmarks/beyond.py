"""What goes beyond the paper, each beside plain training with the same steps, on 1,797 digits.

    python examples/benchmarks/beyond.py

- damping: W2/A2 with `OscillationDamping` of several strengths;
- lowering: W2/A2 with `LowerWidths` from 8 bits down, ranges kept or set again at every width;
- search: W3/A3 with the widths of `search_bits` that fit into what 3 bits everywhere take.

All start from the float network of their seed and see the same images. Prints the search of the
first seed and a Markdown table; writes `beyond.json`, and that search as `beyond.png`.
"""

import json
import logging
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of the next imports
import quiet_start  # noqa: F401 - before Keras

import keras
from absl import app, flags

import quickstart
import speq_keras
from oscillations import OscillationMeter
from program_flags import own_flags, set_defaults
from training_run import write_file

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(quickstart)
set_defaults({"epochs": 24, "seeds": ["0", "1", "2"], "out_dir": "out/benchmarks"})
flags.DEFINE_list("strengths", ["0.001", "0.01", "0.1"], "Strengths of the damping.")
flags.DEFINE_list("lowering_epochs", ["3"], "Epochs with 8, with 4 and with 3 bits each.")


def main(_):
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # many models are compiled, all wanted
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    digits = quickstart.load_data()
    rows = {}
    for number, seed in enumerate(int(seed) for seed in FLAGS.seeds):
        keras.utils.set_random_seed(seed)
        network = quickstart.build_network()
        epochs = FLAGS.pretrain_epochs
        quickstart.train(network, digits, name="float", epochs=epochs, seed=seed)
        search = search_at_equal_size(network, digits, seed)
        if number == 0:
            print(search)
            search.plot(out_dir / "beyond.png")
        for name, arguments in methods(search, digits).items():
            rows.setdefault(name, []).append(run(network, digits, name, seed, **arguments))
    table = results_table(rows)
    print(f"\n{table}")
    results = {"flags": own_flags(__name__), "table": table, "rows": rows}
    write_file(out_dir / "beyond.json", lambda path: path.write_text(json.dumps(results, indent=1)))


def methods(search, digits):
    """Returns {name: arguments of `run`}."""
    low, middle = {"bits": 2}, {"bits": 3}
    named = {"W2/A2": low}
    for strength in FLAGS.strengths:
        named[f"W2/A2, damping {strength}"] = {**low, "strength": float(strength)}
    for count in map(int, FLAGS.lowering_epochs):
        widths = {0: 8, count: 4, 2 * count: 3, 3 * count: 2}
        for ranges, images in (("kept", None), ("set again", digits[0][:256])):
            callback = speq_keras.LowerWidths(widths, calibration_data=images)
            name = f"W2/A2, {count} epochs each of 8, 4, 3 bits, ranges {ranges}"
            named[name] = {**low, "callbacks": [callback]}
    return {**named, "W3/A3": middle, "W3/A3, searched": {**middle, "configs": search.configs}}


def search_at_equal_size(network, digits, seed):
    """Returns the `BitSearch` with the size of 3 bits everywhere as its budget."""
    model = wrapped(network, digits, 3, seed)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return speq_keras.search_bits(
        model, digits[:2], size_bytes=model.plan().totals["bytes"], batch_size=len(digits[0])
    )


def wrapped(network, digits, bits, seed, configs=None):
    model = speq_keras.wrap(network, bits, bits, distillation=None, seed=seed, configs=configs)
    model.calibrate(digits[0][:256], verbose=0)
    return model


def run(network, digits, name, seed, *, bits, strength=None, configs=None, callbacks=()):
    """Trains one method and returns its numbers."""
    model = wrapped(network, digits, bits, seed, configs)
    steps = FLAGS.epochs * -(-len(digits[0]) // FLAGS.batch_size)
    if strength is not None:
        model.damping = speq_keras.OscillationDamping(strength=strength, steps=steps)
    meter = OscillationMeter()
    result = quickstart.train(
        model, digits, name=name, epochs=FLAGS.epochs, seed=seed, callbacks=[*callbacks, meter]
    )
    history = result.pop("history")
    model.reestimate_batch_norm(digits[0], batch_size=FLAGS.batch_size)
    reestimated = model.evaluate(*digits[2:], verbose=0, return_dict=True)
    return {
        **result,
        "seed": seed,
        "test_loss": history["val_loss"][-1],
        "reestimated_accuracy": reestimated["accuracy"],
        "oscillating": meter.share(),
        "kB": model.plan().totals["bytes"] / 1000,
    }


def results_table(rows):
    """Returns a Markdown table: mean and deviation over the seeds."""
    count, steps = len(FLAGS.seeds), next(iter(rows.values()))[0]["steps"]
    lines = [
        f"{steps} steps of {FLAGS.batch_size} digits from the float network, mean ± deviation of "
        f"{count} seeds\n",
        "| training | kB | test, % | more than plain | with BatchNormalization estimated again, % "
        "| test loss | oscillating weights, % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in rows.items():
        for run, plain in zip(runs, rows[name.split(",")[0]], strict=True):
            run["gain"] = run["test_accuracy"] - plain["test_accuracy"]
        cells = [
            spread(runs, *column)
            for column in (
                ("kB", 1, 2),
                ("test_accuracy", 100, 2),
                ("gain", 100, 2),
                ("reestimated_accuracy", 100, 2),
                ("test_loss", 1, 4),
                ("oscillating", 100, 2),
            )
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(runs, field, factor, digits):
    values = [factor * run[field] for run in runs]
    # Some, such as sizes, are the same for all seeds.
    return quickstart.spread(values if len(set(values)) > 1 else values[:1], digits)


if __name__ == "__main__":
    app.run(main)
