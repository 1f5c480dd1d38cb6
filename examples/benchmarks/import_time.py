"""What `import speq_keras` adds to the import of Keras and TensorFlow.

    python examples/benchmarks/import_time.py
    python examples/benchmarks/import_time.py --runs=21

Every run is a fresh process that imports Keras and TensorFlow first and speq_keras after them, with
warm file caches. Prints both times and their ratio, as medians with their quartiles.
"""

import json
import statistics
import subprocess
import sys

from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("runs", 9, "How many fresh processes are timed.", 2)

CODE = """
import json, time
start = time.perf_counter()
import tensorflow, keras
middle = time.perf_counter()
import speq_keras
print(json.dumps([middle - start, time.perf_counter() - middle]))
"""


def main(_):
    timed_run()  # fills the file caches
    runs = [timed_run() for _ in range(FLAGS.runs)]
    rows = {
        "keras and tensorflow, ms": [1000 * before for before, _ in runs],
        "speq_keras, ms": [1000 * added for _, added in runs],
        "ratio": [added / before for before, added in runs],
    }
    print(f"| import ({FLAGS.runs} runs) | median | quartiles |")
    print("| --- | --- | --- |")
    for name, values in rows.items():
        low, median, high = statistics.quantiles(values, n=4)
        digits = 3 if name == "ratio" else 0
        print(f"| {name} | {median:.{digits}f} | {low:.{digits}f} to {high:.{digits}f} |")


def timed_run():
    """Returns the seconds of the two imports in a fresh process."""
    process = subprocess.run(
        [sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return json.loads(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    app.run(main)
