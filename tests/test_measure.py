"""`measure.py`: the rule that makes a test slow, and the file that names the slow ones."""

import ast
import pathlib
import re

import pytest
from fresh_process import result_of
from measure import MOST_SECONDS, Clock, is_slow, key_of, read_slow_tests, slow_tests

TESTS = pathlib.Path(__file__).parent

# Seconds that are slept count no processor time: these are burnt.
CODE = """
import functools
import time
import pytest

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

@functools.cache
def network():
    burn(0.4)

@pytest.fixture(scope="module")
def trained():
    burn(0.6)

def test_first(trained):
    network()

@pytest.mark.parametrize("number", [1, 2])
def test_second(trained, number):
    burn(0.2)

def test_third():
    network()
"""
MEASURE = """
import functools, json, pathlib, sys
import measure, pytest
measure.TESTS = pathlib.Path(sys.argv[1]).parent
clock = measure.Clock()
functools.cache = clock.cache
pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", sys.argv[1]], plugins=[clock])
print()
print(json.dumps(clock.costs))
"""


@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    path = tmp_path_factory.mktemp("tests") / "test_burning.py"
    path.write_text(CODE)
    return result_of(MEASURE, path)


@pytest.mark.parametrize(
    ("test", "seconds", "cases"),
    [
        ("test_first", 0.2 + 0.2, 1),  # a third of the fixture, half of the network
        ("test_second", 2 * (0.2 + 0.2), 2),
        ("test_third", 0.2, 1),
    ],
)
def test_what_is_shared_is_divided_among_those_who_use_it(costs, test, seconds, cases):
    measured, number = costs[f"test_burning.py::{test}"]
    assert number == cases
    assert measured == pytest.approx(seconds, abs=0.1)  # pytest's own work takes some


def test_a_test_is_slow_by_the_mean_of_its_cases():
    assert is_slow(1.01 * MOST_SECONDS, 1)
    assert not is_slow(1.01 * MOST_SECONDS, 2)


def test_what_was_not_measured_stays_as_it_was():
    clock = Clock()
    clock.costs = {"test_a.py::f": (9.0, 1), "test_a.py::g": (0.1, 1), "test_a.py::h": (0.0, 1)}
    clock.skipped = {"test_a.py::h"}
    before = {f"test_a.py::{name}": (8.0, 1) for name in "ghi"} | {"test_b.py::f": (7.0, 1)}
    assert slow_tests(clock, before) == {
        "test_a.py::f": (9.0, 1),
        "test_a.py::h": (8.0, 1),
        "test_b.py::f": (7.0, 1),
    }


@pytest.mark.parametrize(
    "node", ["tests/test_ops.py::TestMean::test_x[a/b::c]", "test_ops.py::TestMean::test_x"]
)
def test_a_key_is_file_and_function(node):
    assert key_of(node) == "test_ops.py::TestMean::test_x"


def names_in(source, prefix=""):
    """Yields "function" and "Class::function" of some code."""
    for node in ast.parse(source).body if isinstance(source, str) else source.body:
        if isinstance(node, ast.ClassDef):
            yield from names_in(node, f"{node.name}::")
        elif isinstance(node, ast.FunctionDef):
            yield prefix + node.name


def test_the_slow_tests_exist():
    """A test that was renamed is fast until it is measured again; its old line has to go."""
    known = {
        f"{path.name}::{name}"
        for path in TESTS.glob("test_*.py")
        for name in names_in(path.read_text(encoding="utf-8"))
    }
    assert sorted(set(read_slow_tests()) - known) == []


def test_no_test_is_marked_as_slow_by_hand():
    written = [
        path.name
        for path in TESTS.glob("test_*.py")
        if re.search(r"mark\.slow", path.read_text(encoding="utf-8").replace(r"mark\.slow", ""))
    ]
    assert written == []
