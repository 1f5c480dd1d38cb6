"""What long work tells while it runs: short work nothing, `verbose=0` nothing."""

import time

import keras
import numpy as np
import pytest

import speq_keras
from speq_keras import progress


@pytest.fixture
def clock(monkeypatch):
    """Makes half a second of work long."""
    monkeypatch.setattr(progress, "DELAY_S", 0.05)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(6, activation="relu") for _ in range(3)]
    model = speq_keras.wrap(keras.Sequential([keras.Input((6,)), *dense]), 4, 4, distillation=None)
    model.compile(loss="mse")
    model.calibrate(np.random.default_rng(0).random((64, 6)), verbose=0)
    return model


def slow(values, seconds=0.03):
    for value in values:
        time.sleep(seconds)
        yield value


# ---- counted ---------------------------------------------------------------------------------


def test_short_work_shows_no_bar(capsys):
    assert list(progress.counted(range(3), 3, unit="batch", verbose="auto")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_long_work_shows_what_is_done_and_ends_its_line(capsys, clock):
    list(progress.counted(slow(range(4)), 4, unit="batch", verbose="auto"))
    out = capsys.readouterr().out
    assert "4/4" in out
    assert "/batch" in out
    assert "1/4" not in out  # after 0.03 s
    assert out.endswith("\n")


def test_an_unknown_number_ends_its_line_too(capsys):
    list(progress.counted(range(2), None, unit="batch", verbose=1))
    out = capsys.readouterr().out
    assert "2/Unknown" in out
    assert out.endswith("\n")


def test_a_bar_that_an_error_breaks_off_ends_its_line(capsys):
    numbers = progress.counted(range(3), 3, unit="batch", verbose=1)
    with pytest.raises(ZeroDivisionError):
        [1 / (1 - number) for number in numbers]
    numbers.close()  # as when it is collected
    out = capsys.readouterr().out
    assert "1/3" in out
    assert out.endswith("\n")


def test_verbose_0_shows_nothing(capsys, clock):
    list(progress.counted(slow(range(3)), 3, unit="batch", verbose=0))
    with progress.phases("export_tflite", 0) as begin:
        begin("proof")
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


# ---- phases ----------------------------------------------------------------------------------


def test_short_work_tells_no_phase(capsys):
    with progress.phases("settle", "auto") as begin:
        begin("scales")
        begin("biases")
    assert capsys.readouterr() == ("", "")


def test_a_phase_is_told_while_it_lasts_and_those_after_it(capsys, clock):
    with progress.phases("settle", "auto") as begin:
        begin("scales")
        begin("biases")
        time.sleep(0.2)
        assert capsys.readouterr().err == "settle: biases ...\n"
        begin("what is left")
        assert capsys.readouterr().err == "settle: what is left ...\n"
    assert capsys.readouterr().err == "settle: 0.2 s\n"


def test_nothing_is_told_after_the_end(capsys, clock):
    with progress.phases("settle", "auto") as begin:
        begin("scales")
    time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


# ---- the functions that take long ------------------------------------------------------------


def work_of(model, folder):
    """Returns {name: function of verbose}."""
    x = np.random.default_rng(0).random((64, 6)).astype("float32")
    return {
        "calibrate": lambda verbose: model.calibrate(x, verbose=verbose),
        "reestimate_batch_norm": lambda verbose: model.reestimate_batch_norm(x, verbose=verbose),
        "search_bits": lambda verbose: speq_keras.search_bits(
            model, (x, x), size_bytes=300, widths=(2, 4), verbose=verbose
        ),
        "settle": lambda verbose: model.settle(verbose=verbose),
        "export_tflite": lambda verbose: model.export_tflite(folder / "m.tflite", verbose=verbose),
        "export": lambda verbose: model.export(
            folder / "m.tflite", format="litert", verbose=verbose
        ),
    }


TOLD = {
    "calibrate": "2/Unknown",  # 64 examples, 32 a batch
    "reestimate_batch_norm": "2/Unknown",
    "search_bits": "2/2",  # all at 4 bits, and one layer at 2
    "settle": "settle: biases ...",
    "export_tflite": "export_tflite: proof ...",
    "export": "export_tflite: proof ...",
}


@pytest.mark.parametrize("name", TOLD)
def test_progress_is_shown_on_demand_and_not_otherwise(name, model, tmp_path, capsys):
    work = work_of(model, tmp_path)[name]
    for verbose in (0, "auto"):
        work(verbose)
        assert capsys.readouterr().out == ""
    work(1)
    captured = capsys.readouterr()
    assert TOLD[name] in captured.out + captured.err


@pytest.mark.parametrize("name", [name for name in TOLD if name != "export"])
def test_verbose_is_checked(name, model, tmp_path):
    with pytest.raises(ValueError, match=r"`verbose` must be one of .* Received: verbose=3"):
        work_of(model, tmp_path)[name](3)
