"""Runs a file in LiteRT's `CompiledModel`, the interface recommended to apps from LiteRT 2 on.

It runs in a separate process, which starts in a fifth of a second and is reused: `CompiledModel`
loads graphics drivers, writes a dozen lines per file to standard error that no setting turns off,
and a crash would take a training process with it.
"""

import atexit
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np

from speq_keras.export.tflite import compiled_worker

_lock = threading.Lock()
_workers: dict = {}  # by parent process id: forked processes need their own


def run_compiled(content, batches):
    """Runs a file on batches of input arrays; returns a list of outputs for each.

    Args:
        content: The file as bytes.
        batches: Lists of arrays in the order of the file's inputs, with the file's batch size.

    Raises:
        RuntimeError: If `CompiledModel` cannot load or run the file.
    """
    message = {
        "content": np.frombuffer(content, np.uint8),
        "batches": np.array(len(batches)),
        "inputs": np.array(len(batches[0]) if batches else 0),
    }
    for number, arrays in enumerate(batches):
        message.update({f"{number}_{i}": array for i, array in enumerate(arrays)})
    with _lock:
        answer = _ask(message)
    if "error" in answer:
        raise RuntimeError(f"LiteRT's CompiledModel cannot run this file: {answer['error']}")
    outputs = len(answer) // max(len(batches), 1)
    return [[answer[f"{number}_{i}"] for i in range(outputs)] for number in range(len(batches))]


def missing_interpreter():
    """Returns why no process can be started here, or None."""
    if sys.executable and os.access(sys.executable, os.X_OK):
        return None
    return (
        "LiteRT's CompiledModel runs in its own Python process, and sys.executable cannot be run."
    )


def _ask(message):
    worker = _workers.get(os.getpid())
    if worker is None or worker.poll() is not None:
        worker = _workers[os.getpid()] = _start()
    return _exchange(worker, message)


def _exchange(worker, message):
    try:
        compiled_worker.send(worker.stdin, message)
        answer = compiled_worker.receive(worker.stdout)
    except OSError:  # a broken pipe
        answer = None
    if answer is None:
        raise RuntimeError(
            f"LiteRT's CompiledModel crashed on this file, with status {worker.wait()}."
        )
    return answer


def _start():
    # The same packages, but nothing from the current folder.
    paths = [path for path in sys.path if path]
    source = pathlib.Path(compiled_worker.__file__).read_text(encoding="utf-8")
    worker = subprocess.Popen(
        [sys.executable, "-I", "-c", f"import sys\nsys.path[:] = {paths!r}\n{source}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(_stop, worker, os.getpid())
    return worker


def _stop(worker, owner):
    if os.getpid() == owner:
        worker.kill()
        worker.communicate()
