"""Runs a TFLite file on this device and compares its outputs with the expected ones.

Usage: python RUNNER.py [MODEL.tflite [SELF_TEST.npz]]

Needs NumPy and one of ai-edge-litert, tflite-runtime, tensorflow. Exits with status 0 if all
outputs are equal, bit for bit.
"""

import pathlib
import sys

import numpy as np


def interpreter_class():
    """Returns the Interpreter of the first installed runtime."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            from tensorflow.lite import Interpreter
    return Interpreter


def main(model="MODEL.tflite", data="SELF_TEST.npz"):
    """Runs all examples and returns the number of output values that differ."""
    here = pathlib.Path(__file__).parent
    arrays = np.load(here / data)
    # Passes the content, not the path: the runtimes only accept names that are text.
    interpreter = interpreter_class()(model_content=(here / model).read_bytes())
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    batch_size = inputs[0]["shape"][0]
    wrong = compared = 0
    for start in range(0, len(arrays["input_0"]) // batch_size * batch_size, batch_size):
        part = slice(start, start + batch_size)
        for i, detail in enumerate(inputs):
            interpreter.set_tensor(detail["index"], arrays[f"input_{i}"][part])
        interpreter.invoke()
        for i, detail in enumerate(outputs):
            expected = arrays[f"output_{i}"][part]
            wrong += int(np.sum(interpreter.get_tensor(detail["index"]) != expected))
            compared += expected.size
    print(f"{compared} output values compared, {wrong} differ")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])))
