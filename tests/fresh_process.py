"""Runs Python code in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

_TESTS = pathlib.Path(__file__).parent


def run(code, *arguments, **environment):
    """Runs `code`, which finds the package and the tests' modules.

    Returns:
        A `subprocess.CompletedProcess` with text output.
    """
    path = [str(_TESTS.parent), str(_TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **environment,
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def result_of(code, *arguments, **environment):
    """Runs `code` and returns what it printed in its last line, read as JSON.

    Raises:
        RuntimeError: If the process failed.
    """
    process = run(code, *arguments, **environment)
    if process.returncode:
        raise RuntimeError(f"The process failed:\n{process.stderr[-4000:]}")
    return json.loads(process.stdout.splitlines()[-1])
