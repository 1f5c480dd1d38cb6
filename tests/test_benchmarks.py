"""What the benchmarks of training steps compute and say; no test depends on a measured time."""

import itertools
import json
import pathlib
import subprocess
import sys

import keras
import pytest
from fresh_process import result_of

BENCHMARKS = pathlib.Path(__file__).parent.parent / "examples" / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_the_path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


# ---- step_times ------------------------------------------------------------------------------


def test_a_ratio_is_that_of_the_medians_within_a_round():
    import step_times

    # Medians 4, 3 and 2, 1: ratios 2 and 3.
    assert step_times.ratio([[2, 4, 9], [3, 3, 3]], [[2, 2, 2], [1, 2, 1]]) == "2.50 (2.25 to 2.75)"


def test_a_slow_round_does_not_change_a_ratio():
    import step_times

    slow = step_times.ratio([[20, 40, 90], [3, 3, 3]], [[20, 20, 20], [1, 2, 1]])
    assert slow == step_times.ratio([[2, 4, 9], [3, 3, 3]], [[2, 2, 2], [1, 2, 1]])


def test_milliseconds_are_the_median_of_the_rounds_medians():
    import step_times

    assert step_times.milliseconds([[0.1, 0.2, 0.9], [0.9, 0.9, 0.9], [0.3, 0.3, 8.0]]) == "300"


def test_the_clock_keeps_the_steps_of_the_last_fit(monkeypatch):
    import step_times

    ticks = itertools.accumulate([0, 1, 1, 2, 1, 3])
    monkeypatch.setattr(step_times.time, "perf_counter", lambda: next(ticks))
    clock = step_times.step_clock(keras)
    for steps in (1, 2):
        clock.on_train_begin()
        for step in range(steps):
            clock.on_train_batch_begin(step)
            clock.on_train_batch_end(step, {"loss": 0.5 * steps})
    assert clock.step_times_s == [2, 3]
    assert clock.loss == 1.0


# ---- peers: in processes of their own, because flags belong to the process -------------------

PEERS = f"""
import json, pathlib, subprocess, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import peers
peers.FLAGS(["peers", "--rounds=2", "--w_bits=3", "--a_bits=2"])
"""


def test_a_row_compares_a_method_with_its_float_step_and_with_our_qat():
    code = """
times_s = {("HGQ2", "float"): [[0.1], [0.1]], ("HGQ2", "QAT"): [[0.4], [0.6]],
           ("speq_keras", "float"): [[0.1], [0.1]], ("speq_keras", "QAT"): [[0.2], [0.2]]}
bases = {("HGQ2", "QAT"): "float", ("speq_keras", "QAT"): "float"}
print(json.dumps(peers.peer_table(times_s, bases, {"tfmot": "not installed: no | wheel"})))
"""
    assert result_of(PEERS + code).splitlines()[4:] == [
        "| HGQ2 | trained | QAT | 500 | 100 | 5.00 (4.50 to 5.50) | 2.50 (2.25 to 2.75) |",
        "| speq_keras | W3/A2 | QAT | 200 | 100 | 2.00 (2.00 to 2.00) | 1.00 (1.00 to 1.00) |",
        "| tfmot | not installed: no / wheel | | | | | |",
    ]


def test_a_table_without_our_qat_leaves_its_column_empty():
    code = """
times_s = {("HGQ2", "float"): [[0.1], [0.1]], ("HGQ2", "QAT"): [[0.4], [0.6]]}
print(json.dumps(peers.peer_table(times_s, {("HGQ2", "QAT"): "float"}, {})))
"""
    assert result_of(PEERS + code).splitlines()[-1].endswith("| 5.00 (4.50 to 5.50) |  |")


INSTALL = """
def run(command, **arguments):
    commands.append(command[2])
    status = int(command[2] == failing)
    return subprocess.CompletedProcess(command, status, "", "ERROR: why\\n\\n[notice]")
commands, failing = [], sys.argv[1]
peers.subprocess.run = run
folder = pathlib.Path(sys.argv[2])
folder.mkdir()
try:
    for packages in (("a==1",), ("a==1",), ("a==2",)):
        peers.environment(folder, packages)
except peers.CannotMeasure as error:
    commands.append(str(error))
print(json.dumps(commands))
"""


def test_an_environment_is_made_again_when_its_packages_change(tmp_path):
    commands = result_of(PEERS + INSTALL, "nothing", tmp_path / "new")
    assert commands == ["venv", "pip", "venv", "pip"]


def test_a_package_that_cannot_be_installed_says_why(tmp_path):
    commands = result_of(PEERS + INSTALL, "pip", tmp_path / "new")
    assert commands == ["venv", "pip", "not installed: ERROR: why"]


def test_a_package_that_fails_says_why(tmp_path):
    code = """
try:
    peers.Worker("nobody", sys.executable, pathlib.Path(sys.argv[1]))
except peers.CannotMeasure as error:
    print(json.dumps(str(error)))
"""
    assert result_of(PEERS + code, tmp_path / "log") == "does not run: KeyError: 'nobody'"


@pytest.mark.parametrize("last_command", ["read turn", "true"])
def test_a_process_that_ends_in_a_turn_or_between_turns_says_why(tmp_path, last_command):
    python = tmp_path / "python"
    commands = ["""echo '{"bases": {}}'""", last_command, "echo 'Killed: out of memory' >&2"]
    python.write_text("\n".join(["#!/bin/sh", *commands]))
    python.chmod(0o755)
    code = """
worker = peers.Worker("tfmot", sys.argv[1], pathlib.Path(sys.argv[2]))
if sys.argv[3] == "true":
    worker.process.wait()
try:
    worker.take_turn("QAT")
except peers.CannotMeasure as error:
    worker.stop()
    print(json.dumps(str(error)))
"""
    reason = result_of(PEERS + code, python, tmp_path / "log", last_command)
    assert reason == "does not run: Killed: out of memory"


RUN = """
class Fake:
    def __init__(self, name, python, log):
        self.name, self.losses, self.turns = name, {}, 0
        self.greeting = {"bases": {"QAT": "float"}, "versions": {}}
        self.greeting["parameters"] = 7 if name == different else 5
        running.append(name)

    def take_turn(self, method):
        self.turns += 1
        if self.name == dying and self.turns == 4:  # in the second of its two rounds
            raise peers.CannotMeasure("out of memory")
        turns.append(f"{self.name} {method}")
        return [1.0]

    def stop(self):
        running.remove(self.name)

different, dying = sys.argv[1:3]
turns, running, error = [], [], None
peers.Worker, peers.environment = Fake, lambda folder, packages: "python"
peers.FLAGS.peers, peers.FLAGS.out_dir = ["tfmot", "HGQ2"], sys.argv[3]
try:
    peers.main([])
except SystemExit as exit:
    error = str(exit)
path = pathlib.Path(sys.argv[3], "peers.json")
result = json.loads(path.read_text()) if path.exists() else None
print(json.dumps([turns, running, error, result]))
"""


def test_networks_that_differ_are_refused_before_a_step_and_all_processes_end(tmp_path):
    turns, running, error, result = result_of(PEERS + RUN, "HGQ2", "nobody", tmp_path)
    assert error == (
        "The float networks must be the same. Received: parameters {'tfmot': 5, 'HGQ2': 7}."
    )
    assert (turns, running, result) == ([], [], None)


def test_a_package_that_dies_on_the_way_has_a_reason_and_no_times(tmp_path):
    _, running, error, result = result_of(PEERS + RUN, "nobody", "tfmot", tmp_path)
    assert (running, error) == ([], None)
    assert result["reasons"] == {"tfmot": "out of memory"}
    assert result["step_times_s"] == {"HGQ2: float": [[1.0]] * 2, "HGQ2: QAT": [[1.0]] * 2}


def test_each_round_begins_with_another_method(tmp_path):
    turns, *_ = result_of(PEERS + RUN, "nobody", "nobody", tmp_path)
    methods = ["tfmot float", "tfmot QAT", "HGQ2 float", "HGQ2 QAT"]
    assert turns == [*methods, *methods, methods[-1], *methods[:-1]]


def test_an_unknown_peer_is_refused_in_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "peers.py"), "--peers=tfmot,nobody"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert done.stderr == "--peers takes tfmot, QKeras, HGQ2, speq_keras. Received: nobody.\n"
    assert not list(tmp_path.iterdir())


# ---- the worker ------------------------------------------------------------------------------


def test_peers_train_the_resnet8_of_the_other_examples(examples_on_the_path):
    import peer_worker

    import cifar_networks

    ours = peer_worker.resnet8(keras)
    assert ours.count_params() == cifar_networks.build("resnet8").count_params() == 78_666


def test_our_worker_greets_and_takes_a_turn():
    settings = {"peer": "speq_keras", "w_bits": 2, "a_bits": 2, "batch_size": 2}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "peer_worker.py"), json.dumps(settings)],
        input=json.dumps({"method": "QAT", "steps": 2}) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    greeting, turn = map(json.loads, done.stdout.splitlines())
    assert greeting["bases"] == {
        "QAT": "float",
        "QAT, Keras' BN": "float, Keras' BN",
        "SPEQ": "float",
        "SPEQ, Keras' BN": "float, Keras' BN",
    }
    assert greeting["parameters"] == 78_666
    assert len(turn["step_times_s"]) == 2
    assert turn["loss"] > 0
