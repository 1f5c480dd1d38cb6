"""The same numbers in a browser as on the desktop: exported files in LiteRT.js, value for value.

    (cd examples/browser && npm ci)                 # LiteRT.js, once
    python examples/benchmarks/browser.py
    python examples/benchmarks/browser.py --files=resnet8-int8 --build=compat

Exports networks of `device_networks.py`, runs them in a headless Chromium and prints a Markdown
table: how many output values differ from those of LiteRT's Python runtime in a single bit, and how
long a run takes in each.
"""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import sys
import tempfile
import time

import chromium
import device_networks
import numpy as np
from absl import app, flags

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "browser"))
import serve

# The first six have exact kernels; those of "smallest" round twice on x86, and once here.
FILES = (
    "resnet8-int8 resnet20-int8 mobilenet_v2-int4 mobilenet_v3-int8 efficientnet-int4 "
    "densenet-int8 resnet8-smallest"
).split()
# The files of LiteRT.js; "" lets it choose, which is the one with relaxed SIMD in today's browsers.
BUILDS = {"": "", "compat": "litert_wasm_compat_internal.js"}
TURNS, TURN_MS = 5, 100

FLAGS = flags.FLAGS


def main(_):
    reason = missing_reason()
    if reason:
        raise app.UsageError(reason)
    print(f"{about()}\n\n{HEADER}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in compare(FLAGS.files, folder, build=FLAGS.build, turns=TURNS):
            print(as_line(row), flush=True)


def missing_reason():
    """Returns a sentence on what this machine lacks, or None."""
    if not chromium.find():
        return "There is no Chromium: install the package `chromium` of your system."
    if not serve.LITERT.is_dir():
        return "LiteRT.js is not installed: run `npm ci` in examples/browser."
    return None


def compare(files, folder, *, build="", turns=0):
    """Exports networks and yields a dict per file.

    Args:
        files: Names like "resnet8-int8": network and storage.
        folder: Existing folder for the files.
        build: A key of `BUILDS`.
        turns: How often to measure the time; 0: not at all.
    """
    served = {}
    with serve.listening(served) as server, chromium.Chromium(timeout_s=300) as browser:
        browser.open(f"http://127.0.0.1:{server.server_port}/compare.html", until="window.isReady")
        browser.evaluate(f"load({json.dumps(BUILDS[build])})")
        for name in files:
            exported = device_networks.export(*name.rsplit("-", 1), folder)
            data = np.load(exported.self_test)
            inputs = exported.model.with_suffix(".bin")
            data["input_0"].astype("<f4").tofile(inputs)
            served[f"/{name}.tflite"], served[f"/{name}.bin"] = exported.model, inputs
            found = browser.evaluate(f"compute({json.dumps(name)}, {turns}, {TURN_MS})")
            expected = data["output_0"].astype("<f4").view("<u4").ravel()
            yield {
                "name": name,
                "report": exported.report,
                "bytes": exported.model.stat().st_size,
                "values": expected.size,
                "differing": int(np.sum(expected != np.array(found["bits"], "<u4"))),
                "browser_ms": found["ms"],
                "native_ms": native_ms(exported.model, data["input_0"][:1], turns),
            }


def native_ms(path, inputs, turns):
    """Returns how long a run takes in Python's runtime on one thread, or None."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    place = interpreter.get_input_details()[0]["index"]
    means = []
    for _ in range(turns):
        start, runs = time.perf_counter(), 0
        while (now := time.perf_counter()) < start + TURN_MS / 1000 or not runs:
            interpreter.set_tensor(place, inputs)
            interpreter.invoke()
            runs += 1
        means.append(1000 * (now - start) / runs)
    return min(means, default=None)


HEADER = """\
| network | storage | kB | values that differ | ms in the browser | ms natively |
| --- | --- | --- | --- | --- | --- |"""


def as_line(row):
    """Returns the line of the table."""
    network, storage = row["name"].rsplit("-", 1)
    times = " | ".join(f"{row[name]:.3g}" for name in ("browser_ms", "native_ms"))
    differing = f"{row['differing']} of {row['values']}"
    return f"| {network} | `{storage}` | {row['bytes'] / 1000:,.0f} | {differing} | {times} |"


def about():
    """Returns a line on what is compared."""
    lock = json.loads((serve.PAGES / "package-lock.json").read_text(encoding="utf-8"))
    litert_js = lock["packages"]["node_modules/@litertjs/core"]["version"]
    with chromium.Chromium() as browser:
        product = browser.call("Browser.getVersion")["product"]
    desktop = importlib.metadata.version("ai-edge-litert")
    return (
        f"LiteRT.js {litert_js} in {product} against ai-edge-litert {desktop}, {cpu()}, "
        f"{datetime.date.today()}"
    )


def cpu():
    """Returns the name of the processor."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    flags.DEFINE_list("files", FILES, "Networks of device_networks.py, each with its storage.")
    flags.DEFINE_enum("build", "", list(BUILDS), "Of LiteRT.js; empty: the one that it chooses.")
    app.run(main)
