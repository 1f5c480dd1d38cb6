"""The same files on the runtimes of phones, browsers and microcontrollers: is it the same network?

    python examples/benchmarks/devices.py
    python examples/benchmarks/devices.py --litert_js=FILE.json

Exports six networks with random weights and runs the self test of each (four images) on LiteRT's
classic interpreter, on its `CompiledModel` and on TensorFlow Lite Micro, whose kernels round twice.
Prints a Markdown table: how many of the output values differ from those of the self test; writes
`devices.json`. What LiteRT.js computes in a browser comes from a file, {"resnet8 int8": number of
values that differ, ...}; without one its column is empty. What is not installed has an empty
column, too. ARM CPUs: `tests/run arm`.
"""

import importlib.metadata
import json
import pathlib

import device_networks
import numpy as np
from absl import app, flags
from ai_edge_litert.compiled_model import CompiledModel

from speq_keras.export.runtimes import missing_reason, run_file

FILES = (
    ("resnet8", "int8"),
    ("resnet20", "int8"),
    ("mobilenet_v2", "int4"),
    ("mobilenet_v3", "int8"),
    ("efficientnet", "int4"),
    ("densenet", "int8"),
)

FLAGS = flags.FLAGS
flags.DEFINE_list("networks", [name for name, _ in FILES], "Some of the default.")
flags.DEFINE_string("litert_js", None, "JSON file with what LiteRT.js computes differently.")
flags.DEFINE_string("out_dir", "out/benchmarks/devices", "Folder for the files.")


def main(_):
    known = [name for name, _ in FILES]
    unknown = sorted(set(FLAGS.networks) - set(known))
    if unknown:
        raise SystemExit(f"--networks takes {', '.join(known)}. Received: {', '.join(unknown)}.")
    in_browser = {}
    if FLAGS.litert_js:
        in_browser = json.loads(pathlib.Path(FLAGS.litert_js).read_text())
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name, storage in FILES:
        if name not in FLAGS.networks:
            continue
        label = f"{name} {storage}"
        print(label, flush=True)
        exported = device_networks.export(name, storage, out_dir)
        rows[label] = {**measure(exported), "LiteRT.js": in_browser.get(label)}
    print(f"\n{versions()}\n\n{markdown_table(rows)}")
    (out_dir / "devices.json").write_text(json.dumps(rows, indent=1))


def measure(exported):
    """Returns {runtime: number of output values that differ from the self test's}, and more."""
    arrays = np.load(exported.self_test)
    inputs, expected = arrays["input_0"], arrays["output_0"]
    content = exported.model.read_bytes()
    row = {"kB": len(content) / 1e3, "values": int(expected.size)}
    for runtime, run in RUNTIMES.items():
        got = run(content, inputs)
        row[runtime] = None if got is None else int(np.sum(got != expected))
        if runtime == MICRO and got is not None:
            row["same classes"] = float(np.mean(got.argmax(axis=-1) == expected.argmax(axis=-1)))
    return row


def classic(content, inputs):
    """Returns the outputs of LiteRT's Interpreter."""
    return run_file(content, inputs)[0]


def compiled(content, inputs):
    """Returns the outputs of LiteRT's CompiledModel, image by image."""
    model = CompiledModel.from_buffer(content)
    key, (signature,) = next(iter(model.get_signature_list())), model.get_signature_list().values()
    (output,) = signature["outputs"]
    shape = [int(size) for size in model.get_output_tensor_details(key)[output]["shape"]]
    sources, targets = model.create_input_buffers(0), model.create_output_buffers(0)
    results = []
    for image in inputs:
        sources[0].write(image[None])
        model.run_by_index(0, sources, targets)
        values = targets[0].read(int(np.prod(shape)), np.float32)
        results.append(np.array(values).reshape(shape))
    return np.concatenate(results)


def micro(content, inputs):
    """Returns the outputs of TensorFlow Lite Micro's reference kernels; None: not installed."""
    return None if missing_reason("micro") else run_file(content, inputs, runtime="micro")[0]


MICRO = "tflite-micro"
RUNTIMES = {"Interpreter": classic, "CompiledModel": compiled, MICRO: micro}


def versions():
    """Returns a line with what was run."""
    names = ["ai-edge-litert"] + ([] if missing_reason("micro") else ["tflite-micro"])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def markdown_table(rows):
    """Returns the rows as a Markdown table; an empty cell was not run."""
    columns = ["Interpreter", "CompiledModel", "LiteRT.js", MICRO]
    lines = [
        f"| file | kB | values | {' | '.join(columns)} |",
        "| --- " * (3 + len(columns)) + "|",
    ]
    for label, row in rows.items():
        name, storage = label.split()
        cells = [f"{name} `{storage}`", f"{row['kB']:,.0f}", str(row["values"])]
        cells += ["" if row[column] is None else str(row[column]) for column in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
