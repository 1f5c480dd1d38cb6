"""The benchmark that runs the same files on several runtimes: what it counts and prints."""

import pathlib

from fresh_process import result_of

from speq_keras.export.tflite.runtimes import missing_reason

BENCHMARKS = pathlib.Path(__file__).parent.parent / "examples" / "benchmarks"

# In a process of its own: flags belong to the process.
DEVICES = f"""
import json, pathlib, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import devices
"""


def test_an_empty_cell_was_not_run_and_no_was_refused():
    code = """
row = {"kB": 92.7, "values": 40, "Interpreter": 0, "CompiledModel": 0, "LiteRT.js": None}
print(json.dumps(devices.markdown_table({"resnet8-int8": {**row, "tflite-micro": -1}})))
"""
    assert result_of(DEVICES + code).splitlines() == [
        "| file | kB | values | Interpreter | CompiledModel | LiteRT.js | tflite-micro |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| resnet8 `int8` | 93 | 40 | 0 | 0 |  | no |",
    ]


def test_the_values_that_differ_are_counted_on_each_runtime(tmp_path):
    code = """
import numpy as np
exported = devices.device_networks.export("u_net", "int8", pathlib.Path(sys.argv[1]))
arrays = dict(np.load(exported.self_test))
arrays["output_0"][1, 2, 3, :3] += 1
np.savez(exported.self_test, **arrays)
devices.missing_reason = lambda runtime: "not installed" if runtime == "micro" else None
print(json.dumps(devices.measure(exported)))
"""
    row = result_of(DEVICES + code, tmp_path)
    assert (row["Interpreter"], row["CompiledModel"], row["tflite-micro"]) == (3, 3, None)
    assert row["values"] == 4 * 32 * 32 * 4


def test_what_a_browser_computed_is_read_from_its_file(tmp_path):
    (tmp_path / "browser.md").write_text(
        "LiteRT.js 2 in Chromium\n\n| network | storage | kB | values that differ | ms |\n| --- |\n"
        "| resnet20 | `int8` | 292 | 3 of 40 | 1 | 0.1 |\n"
        "| resnet8 | `int8` | 92 | 17 of 40 | 0.5 | 0.1 |\n"
        "| resnet8 | `smallest` | 55 | 30 of 40 | 0.5 | 0.1 |\n"
    )
    code = """
devices.FLAGS(["devices", "--files=resnet8-int8", f"--browser={sys.argv[1]}/browser.md"])
devices.FLAGS.out_dir = sys.argv[1]
devices.main([])
print(json.dumps(json.loads(pathlib.Path(sys.argv[1], "devices.json").read_text())))
"""
    row = result_of(DEVICES + code, tmp_path)["resnet8-int8"]
    assert row["LiteRT.js"] == 17
    assert (row["Interpreter"], row["CompiledModel"]) == (0, 0)
    # Micro rounds twice.
    assert row["tflite-micro"] is None if missing_reason("micro") else row["tflite-micro"] < 40


def test_an_unknown_network_is_refused_in_one_sentence():
    code = """
devices.FLAGS(["devices", "--files=resnet8-int8,resnet9-int8"])
try:
    devices.main([])
except SystemExit as error:
    print(json.dumps(str(error)))
"""
    assert result_of(DEVICES + code).endswith(". Received: resnet9-int8.")


def test_a_self_test_that_would_pass_anywhere_is_refused(tmp_path):
    code = """
import keras
layers, networks = keras.layers, devices.device_networks

def build():
    inputs = keras.Input((8, 8, 3))
    features = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(inputs))
    biased = layers.Dense(10, kernel_initializer="zeros", bias_initializer="normal")
    return keras.Model(inputs, biased(features))

networks.NETWORKS["flat"] = (build, 4, 4, "pact")
try:
    networks.export("flat", "int8", pathlib.Path(sys.argv[1]))
except RuntimeError as error:
    print(json.dumps(str(error)))
"""
    assert result_of(DEVICES + code, tmp_path).startswith("The self test of 'flat' shows nothing")
