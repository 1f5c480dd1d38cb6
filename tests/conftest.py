"""Has to run before anything imports Keras: `pytest` without `tests/run` sees the same settings."""

import collections
import os
import pathlib
import sys

import pytest
from measure import key_of, read_slow_tests

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # whatever ~/.keras/keras.json says
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Marks what was measured as slow, longest files first; skips what is about TensorFlow."""
    addressed = [item.nodeid for item in items if " at 0x" in item.nodeid]
    assert not addressed, f"names that change from process to process: {addressed}"
    slow = read_slow_tests()
    seconds = collections.Counter()
    for key, (cost, _) in slow.items():
        seconds[key.partition("::")[0]] += cost
    # At the end, one of two workers would wait for the other's last file.
    items.sort(key=lambda item: -seconds[item.path.name])
    for item in items:
        if key_of(item.nodeid) in slow:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("tensorflow") and os.environ["KERAS_BACKEND"] != "tensorflow":
            item.add_marker(pytest.mark.skip(reason="is about TensorFlow"))


@pytest.fixture(scope="module")
def examples_on_the_path():
    """Lets a test import the modules that the examples share."""
    folder = str(pathlib.Path(__file__).parent.parent / "examples")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)
