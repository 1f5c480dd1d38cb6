"""The same files on the runtimes of phones, browsers and microcontrollers: is it the same network?

    python examples/benchmarks/devices.py
    python examples/benchmarks/devices.py --browser=FILE

Exports six networks with random weights and runs the self test of each (four images) on LiteRT's
classic interpreter, on its `CompiledModel` and on TensorFlow Lite Micro, whose kernels round twice.
Prints a Markdown table: how many of the output values differ from those of the self test; writes
`devices.json`. The column of LiteRT.js is what `browser.py` found, from a file with the table that
it prints. A cell is empty without that file, and where a runtime is not installed; "no": the
runtime does not take the file. ARM CPUs: `tests/run arm`.
"""

import importlib.metadata
import json
import pathlib
import re

import device_networks
import numpy as np
from absl import app, flags

from speq_keras.export import STORAGES, missing_reason, run_file

FILES = (
    "resnet8-int8",
    "resnet20-int8",
    "mobilenet_v2-int4",
    "mobilenet_v3-int8",
    "efficientnet-int4",
    "densenet-int8",
)
# Columns, and what `run_file` calls them.
RUNTIMES = {"Interpreter": "default", "CompiledModel": "compiled", "tflite-micro": "micro"}

FLAGS = flags.FLAGS
flags.DEFINE_list("files", list(FILES), "Networks of device_networks.py, each with its storage.")
flags.DEFINE_string("browser", None, "File with the table that browser.py prints.")
flags.DEFINE_string("out_dir", "out/benchmarks/devices", "Folder for the files.")


def main(_):
    known = [f"{name}-{storage}" for name in device_networks.NETWORKS for storage in STORAGES]
    unknown = sorted(set(FLAGS.files) - set(known))
    if unknown:
        raise SystemExit(f"--files takes {', '.join(known)}. Received: {', '.join(unknown)}.")
    in_browser = read_table(FLAGS.browser) if FLAGS.browser else {}
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    rows = {}
    for label in FLAGS.files:
        name, storage = label.split("-")
        print(label, flush=True)
        exported = device_networks.export(name, storage, out_dir)
        rows[label] = {**measure(exported), "LiteRT.js": in_browser.get(label)}
    print(f"\n{versions()}\n\n{markdown_table(rows)}")
    (out_dir / "devices.json").write_text(json.dumps(rows, indent=1))


def read_table(path):
    """Returns {"resnet8-int8": number of values that differ} of the table in a file."""
    text = pathlib.Path(path).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| `(\w+)` \|.*?\| (\d+) of \d+ \|", text, re.MULTILINE)
    return {f"{name}-{storage}": int(differing) for name, storage, differing in rows}


def measure(exported):
    """Returns {runtime: number of output values that differ from the self test's}, and more.

    None: the runtime is not installed. -1: it does not take the file.
    """
    arrays = np.load(exported.self_test)
    inputs, expected = arrays["input_0"], arrays["output_0"]
    content = exported.model.read_bytes()
    row = {"kB": len(content) / 1e3, "values": int(expected.size)}
    for column, runtime in RUNTIMES.items():
        row[column] = None
        if missing_reason(runtime) is None:
            try:
                got = run_file(content, inputs, runtime=runtime)[0]
            except RuntimeError as error:
                print(f"{column}: {error}", flush=True)
                row[column] = -1
                continue
            row[column] = int(np.sum(got != expected))
    return row


def versions():
    """Returns a line with what was run."""
    names = ["ai-edge-litert"] + ([] if missing_reason("micro") else ["tflite-micro"])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def markdown_table(rows):
    """Returns the rows as a Markdown table; an empty cell was not run, "no" was refused."""
    columns = ["Interpreter", "CompiledModel", "LiteRT.js", "tflite-micro"]
    lines = [
        f"| file | kB | values | {' | '.join(columns)} |",
        "| --- " * (3 + len(columns)) + "|",
    ]
    for label, row in rows.items():
        name, storage = label.split("-")
        cells = [f"{name} `{storage}`", f"{row['kB']:,.0f}", str(row["values"])]
        cells += [{None: "", -1: "no"}.get(row[column], str(row[column])) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
