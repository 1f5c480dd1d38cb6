"""Random networks: each equals itself wrapped, saved and exported, or is refused in a sentence."""

import numpy as np
import pytest
import random_checks
import random_networks
from random_checks import Result, check, check_network
from random_drawing import Network, draw

# Few seconds each; by what they hold, not by what they find.
# Not the slowest; a change of the vocabulary changes what they are.
SEEDS = [0, 1, 7, 11, 14, 15, 22, 23, 25, 27, 30, 31, 35, 39, 41, 53]
MORE_SEEDS = [range(first, first + 10) for first in range(1000, 1100, 10)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_is_its_file_or_is_refused(seed):
    result = check(seed)
    assert not result.is_fault, f"\n{result}"


@pytest.mark.parametrize("seeds", MORE_SEEDS, ids=lambda seeds: f"from_{seeds[0]}")
def test_more_random_networks_are_their_files_or_are_refused(seeds):
    faults = [str(result) for result in map(check, seeds) if result.is_fault]
    assert not faults, "\n\n".join(["", *faults])


def test_a_seed_is_the_same_network_always():
    assert str(draw(4)) == str(draw(4))
    assert str(draw(4)) != str(draw(5))


def _swapped(y):
    return y[..., ::-1]


BROKEN_FILES = {
    "two channels swapped": _swapped,
    "a scale off by 10 %": lambda y: 1.1 * y,
    "an offset of a tenth of the deviation": lambda y: y + 0.1 * y.std(),
    "an activation lost": lambda y: np.maximum(y, np.median(y)),
    "one channel of zeros": lambda y: y * (np.arange(y.shape[-1]) > 0),
    "one example of another": lambda y: np.concatenate([y[:-1], y[:1]]),
}


NETWORK = Network(
    seed=1,
    lines=[
        "x0 = keras.Input((8, 7, 3), dtype='float32', name='in0')",
        "x1 = layers.Conv2D(5, 3, padding='same', dilation_rate=(1, 2), name='n1')(x0)",
        "x2 = layers.BatchNormalization(name='n2')(x1)",
        "x3 = layers.LeakyReLU(name='n3')(x2)",
        "x4 = layers.Add(name='n4')([x3, layers.Conv2D(5, 3, padding='same', name='n5')(x3)])",
        "x5 = layers.Flatten(name='n6')(x4)",
        "x6 = layers.Dense(6, name='n7')(x5)",
        "network = keras.Model([x0], [x6])",
    ],
    odd=[],
    data={"scale": 1.0, "shift": 0.0},
    wrap={"w_bits": 8, "a_bits": 8, "distillation": None, "seed": 0},
    export={"storage": "int8", "io": "float32", "softmax": True, "batch_size": 1},
    settles=False,
)


def test_a_file_as_it_was_written_is_right():
    assert check_network(NETWORK).status == "exported"


@pytest.mark.parametrize("broken", BROKEN_FILES)
def test_a_broken_file_is_wrong(broken, monkeypatch):
    run = random_checks.run_file
    change = BROKEN_FILES[broken]
    monkeypatch.setattr(random_checks, "run_file", lambda *a: [change(y) for y in run(*a)])
    result = check_network(NETWORK)
    assert (result.status, result.step) == ("wrong", "file")


def test_a_file_with_a_code_off_by_one_here_and_there_is_right():
    rng = np.random.default_rng(0)
    trained = rng.integers(-128, 128, (24, 6)) * 0.1
    noise = [trained + 0.1 * (rng.random((24, 6)) < 0.1) for _ in range(4)]
    file = trained - 0.1 * (rng.random((24, 6)) < 0.1)
    random_checks.compare_output(0, trained, file, noise)


def test_the_command_says_what_it_found(tmp_path, monkeypatch, capsys):
    found = {
        0: Result(0, "exported", "file", "", ""),
        1: Result(1, "refused", "export", "... with 'n1' (GRU): no kernel. Replace", ""),
        2: Result(2, "refused", "export", "... with 'n2' (GRU): no kernel. Replace", ""),
    }
    monkeypatch.setattr(random_networks, "check", found.get)
    path = tmp_path / "results.jsonl"
    random_networks.work([0, 1, 2], path)
    assert random_networks.read_results(path) == found
    assert random_networks.print_summary(list(found.values())) == 0
    printed = capsys.readouterr().out
    assert "2  GRU: no kernel" in printed
    assert "3 networks: 1 exported, 2 refused, 0 wrong, 0 foreign" in printed


@pytest.mark.parametrize("status", ["wrong", "foreign"])
def test_the_command_fails_where_a_network_does(status, capsys):
    assert random_networks.print_summary([Result(7, status, "file", "off by 2", "lines")]) == 1
    assert f"seed 7: {status} at file: off by 2" in capsys.readouterr().out


def test_half_a_line_of_a_killed_run_is_done_again(tmp_path):
    path = tmp_path / "results.jsonl"
    random_networks.append(path, Result(0, "exported", "file", "", ""))
    path.write_text(path.read_text() + '{"seed": 1, "sta')
    assert list(random_networks.read_results(path)) == [0]
