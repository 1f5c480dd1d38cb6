"""Has to run before anything imports Keras: `pytest` without `tests/run` sees the same settings."""

import inspect
import os
import pathlib
import re
import sys

import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # whatever ~/.keras/keras.json says
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# What a test on another backend than TensorFlow cannot say in its own lines.
_TENSORFLOW = re.compile(r"\btf\.|\.numpy\(\)|tensorflow")


# They run first: at the end, one of two workers would wait for them.
_LONGEST_FILES = ("test_paper.py", "test_examples.py", "test_example_squad.py")


def pytest_collection_modifyitems(items):
    """Orders files; on another backend, skips tests that are marked or written for TensorFlow."""
    addressed = [item.nodeid for item in items if " at 0x" in item.nodeid]
    assert not addressed, f"names that change from process to process: {addressed}"
    items.sort(key=lambda item: item.path.name not in _LONGEST_FILES)
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        return
    for item in items:
        written = getattr(item, "cls", None) or getattr(item, "function", None)
        source = inspect.getsource(written) if written else ""
        if item.get_closest_marker("tensorflow") or _TENSORFLOW.search(source):
            item.add_marker(pytest.mark.skip(reason="is about TensorFlow"))


@pytest.fixture(scope="module")
def examples_on_the_path():
    """Lets a test import the modules that the examples share."""
    folder = str(pathlib.Path(__file__).parent.parent / "examples")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
