"""Measures what the tests cost, and writes `slow.txt`: those that the fast stage leaves out.

    python tests/measure.py                     # all tests: most of an hour on an idle machine
    python tests/measure.py tests/test_ops.py   # these files; the lines of other files stay

The rule: a test is slow if its cases take more than `MOST_SECONDS` of processor time on average.
Processes that it starts count. What a shared fixture takes, or a cached function of the tests, is
divided among those that use it. A test that was never measured is fast, as is one that was renamed;
what is skipped on this machine stays as it was. Processor time depends little on what else runs.
"""

import collections
import contextlib
import functools
import os
import pathlib
import sys

import pytest

MOST_SECONDS = 4.0
TESTS = pathlib.Path(__file__).parent
SLOW_TESTS = TESTS / "slow.txt"
HEADER = f"""\
# Written by measure.py: tests that take more than {MOST_SECONDS:g} s of processor time per case.
# Seconds in all cases (0.0: not measured since it was marked), number of cases, test.
"""
_cache = functools.cache  # while Keras and others see their own


def key_of(node_id):
    """Returns file and function of a test, without its parameters.

    Example:
        >>> key_of("tests/test_ops.py::TestMean::test_rounds[int8-4]")
        'test_ops.py::TestMean::test_rounds'
    """
    return node_id.partition("[")[0].rpartition("/")[2]


def read_slow_tests(path=SLOW_TESTS):
    """Returns {key: (processor seconds of all cases, number of cases)} of the slow tests."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [line.split() for line in lines if not line.startswith("#")]
    return {key: (float(seconds), int(cases)) for seconds, cases, key in rows}


def is_slow(seconds, cases):
    """Whether a test is slow that takes so many seconds in all its cases."""
    return seconds > MOST_SECONDS * cases


def processor_seconds():
    """Returns the processor time of this process and of the ended ones that it has started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Clock:
    """A pytest plugin that adds up the processor time of tests.

    Attributes:
        costs: {key of a test: (seconds of all its cases, number of cases)}, at the end.
        skipped: Keys of tests of which a case was skipped: what they cost was not seen.
    """

    def __init__(self):
        self.costs = {}
        self.skipped = set()
        self._cases = collections.defaultdict(list)  # {key: [seconds of a case alone]}
        self._shared = collections.Counter()  # {what several tests use: its seconds}
        self._users = collections.defaultdict(list)  # {what several tests use: [key of a case]}
        self._inside = [0.0]  # seconds of what is shared within that which is measured now
        self._now = None

    @contextlib.contextmanager
    def _measured(self, add):
        """Calls `add` with the seconds that the block takes itself."""
        self._inside.append(0.0)
        start = processor_seconds()
        try:
            yield
        finally:
            add(processor_seconds() - start - self._inside.pop())

    @contextlib.contextmanager
    def _apart(self, what):
        """Counts the block for `what`, and not for the test that happens to run it."""
        start = processor_seconds()
        try:
            with self._measured(lambda seconds: self._shared.update({what: seconds})):
                yield
        finally:
            self._inside[-1] += processor_seconds() - start

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        self._now = key_of(item.nodeid)
        with self._measured(self._cases[self._now].append):
            yield
        for name in getattr(item, "fixturenames", ()):
            self._users[name, None].append(self._now)  # wherever it is
            self._users[name, item.path.name].append(self._now)

    def pytest_runtest_logreport(self, report):
        if report.skipped:
            self.skipped.add(key_of(report.nodeid))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            yield
            return
        file = fixturedef.baseid.rpartition("/")[2].partition("::")[0]
        with self._apart((fixturedef.argname, file if file.startswith("test_") else None)):
            yield

    def cache(self, function):
        """Stands for `functools.cache` in the tests: the first caller does not bear the cost."""
        if pathlib.Path(function.__code__.co_filename).parent != TESTS:
            return _cache(function)

        @_cache
        def first(*args, **kwargs):
            with self._apart((function, args)):
                return function(*args, **kwargs)

        @functools.wraps(function)
        def cached(*args, **kwargs):
            self._users[function, args].append(self._now)
            return first(*args, **kwargs)

        return cached

    def pytest_sessionfinish(self):
        seconds = collections.Counter({key: sum(times) for key, times in self._cases.items()})
        for what, cost in self._shared.items():
            users = self._users[what]
            for key in users:
                seconds[key] += cost / len(users)
        self.costs = {key: (seconds[key], len(times)) for key, times in self._cases.items()}


def warm_up():
    """Does once what only the first test of a process pays for."""
    import keras
    import numpy as np

    import speq_keras

    images = np.zeros((2, 8, 8, 3), "float32")
    layers = [keras.layers.Conv2D(2, 3), keras.layers.ReLU(), keras.layers.Flatten()]
    network = keras.Sequential([keras.Input((8, 8, 3)), *layers, keras.layers.Dense(2)])
    model = speq_keras.wrap(network, 4, 4)
    model.calibrate(images + 1, verbose=0)
    model.compile("adam", "mse")
    model.fit(images, np.zeros((2, 2)), verbose=0)
    speq_keras.fold(model).predict(images)


def main(arguments):
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warm_up()
    clock = Clock()
    functools.cache = clock.cache
    files = [argument for argument in arguments if not argument.startswith("-")]
    status = pytest.main(
        ["-q", "-m", "not long", *arguments, *([] if files else [str(TESTS)])], plugins=[clock]
    )
    rows = sorted(slow_tests(clock, read_slow_tests()).items())
    lines = [f"{seconds:7.1f} {cases:4} {key}\n" for key, (seconds, cases) in rows]
    SLOW_TESTS.write_text(HEADER + "".join(lines))
    report(clock.costs)
    return status


def slow_tests(clock, before):
    """Returns the slow tests: those that were measured, and of `before` what was not."""
    files = {key.partition("::")[0] for key in clock.costs}
    kept = {
        key: cost
        for key, cost in before.items()
        if key.partition("::")[0] not in files or key in clock.skipped
    }
    return {**kept, **{key: cost for key, cost in clock.costs.items() if is_slow(*cost)}}


def report(costs):
    """Prints the sums, and the fast tests that take longest."""
    fast = {key: cost for key, cost in costs.items() if not is_slow(*cost)}
    for name, part in (("fast", fast), ("all", costs)):
        seconds, cases = (sum(column) for column in zip((0.0, 0), *part.values(), strict=True))
        print(f"{name}: {seconds:.0f} s of processor time, {cases} cases of {len(part)} tests")
    for key in sorted(fast, key=lambda key: -fast[key][0])[:40]:
        seconds, cases = fast[key]
        print(f"{seconds:7.1f} s {cases:4} cases  {key}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
