"""Inputs and expected codes for a test on the device itself, with the program that compares."""

import io
import pathlib
import re

import numpy as np

from speq_keras.export.tflite.runtimes import run_file

_RUNNER = pathlib.Path(__file__).parent / "runner.py"


def self_test_files(model_path, path, content, inputs):
    """Returns [(path, bytes)] of the self test: an .npz file and a runner next to it.

    Args:
        model_path: Path of the .tflite file.
        path: Path of the .npz file.
        content: Bytes of the .tflite file.
        inputs: Arrays in the type of the file's inputs, batch first.
    """
    outputs = run_file(content, inputs)
    arrays = {f"input_{i}": array for i, array in enumerate(inputs)}
    arrays.update({f"output_{i}": array for i, array in enumerate(outputs)})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    program = _program(model=pathlib.Path(model_path).name, data=path.name)
    return [(path, buffer.getvalue()), (runner_path(path), program.encode("utf-8"))]


def runner_path(path):
    """Returns the path of the comparing program, next to the .npz file at `path`."""
    return path.with_name(f"{path.stem}_runner.py")


def _program(model, data):
    """Returns the source of the runner, with the names of the two files as string literals."""
    # `ascii` also handles names that are not text. Both names are replaced in one pass: one of them
    # may contain the other's placeholder.
    literals = {'"MODEL.tflite"': ascii(model), '"SELF_TEST.npz"': ascii(data)}
    places = "|".join(re.escape(place) for place in literals)
    program = _RUNNER.read_text(encoding="utf-8")
    return re.sub(places, lambda found: literals[found[0]], program)
