"""Inputs and expected codes for the proof on the device itself, with the program that compares."""

import io
import pathlib

import numpy as np

from speq_keras.export.runtimes import run_file

_RUNNER = pathlib.Path(__file__).parent / "runner.py"


def self_test_files(model_path, path, content, inputs):
    """Returns [(path, bytes)] of the self test: an .npz file and a runner beside it.

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
    runner = path.with_name(f"{path.stem}_runner.py")
    program = _RUNNER.read_text(encoding="utf-8")
    program = program.replace("MODEL.tflite", pathlib.Path(model_path).name)
    program = program.replace("SELF_TEST.npz", path.name)
    return [(path, buffer.getvalue()), (runner, program.encode("utf-8"))]
