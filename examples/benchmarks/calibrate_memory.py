"""How much memory `calibrate` adds, beside one call of the model on the same images.

    python examples/benchmarks/calibrate_memory.py
    python examples/benchmarks/calibrate_memory.py --network=ResNet50 --side=224 --batch_size=32

Each is measured in a process of its own, as the rise of its largest resident set: a call of the
float network, a call of the quantized one, and `calibrate`. Prints a Markdown table. On Linux.
"""

import resource
import subprocess
import sys

import keras
import numpy as np
from absl import app, flags

import speq_keras

CASES = ("float", "quantized", "calibrate")

FLAGS = flags.FLAGS
flags.DEFINE_string("network", "EfficientNetB0", "Its name in keras.applications.")
flags.DEFINE_integer("side", 224, "Side of the images in pixels.", 32)
flags.DEFINE_integer("batch_size", 32, "Images.", 1)
flags.DEFINE_enum("case", None, CASES, "Measure one case in this process, and print bytes.")


def main(_):
    if not hasattr(keras.applications, FLAGS.network):
        raise SystemExit(
            f"--network takes a name in keras.applications. Received: {FLAGS.network}."
        )
    if FLAGS.case:
        print(added_bytes(FLAGS.case))
        return
    arguments = [f"--{name}={FLAGS[name].value}" for name in ("network", "side", "batch_size")]
    lines = [
        f"{FLAGS.network}, {FLAGS.batch_size} images of {FLAGS.side} pixels.",
        "",
        "| | added memory, GB |",
        "| --- | --- |",
    ]
    for case in CASES:
        process = subprocess.run(
            [sys.executable, __file__, *arguments, f"--case={case}"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        lines.append(f"| {case} | {int(process.stdout.split()[-1]) / 1e9:.2f} |")
    print("\n".join(lines))


def added_bytes(case):
    """Returns by how many bytes one case raises the largest resident set of this process."""
    shape = (FLAGS.side, FLAGS.side, 3)
    network = getattr(keras.applications, FLAGS.network)(weights=None, input_shape=shape)
    model = speq_keras.wrap(network, 4, 4)
    images = np.random.default_rng(0).integers(0, 256, (FLAGS.batch_size, *shape))
    images = images.astype("float32")
    calls = {
        "float": lambda x: network(x, training=False),
        "quantized": lambda x: model(x, training=False),
        "calibrate": lambda x: model.calibrate(x, batch_size=len(x), verbose=0),
    }
    calls[case](images[:1])  # what is made once
    before = largest_bytes()
    calls[case](images)
    return largest_bytes() - before


def largest_bytes():
    """Returns the largest resident set of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    app.run(main)
