"""The stage that runs files on emulated ARM CPUs: `tests/run arm`."""

import importlib.metadata
import pathlib

import emulated_arm
import keras
import numpy as np
import pytest
from keras import layers

import speq_keras

# ---- fetching --------------------------------------------------------------------------------


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Makes programs of the only folder where programs are found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(**commands):
        for name, command in commands.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{command}\n")
            path.chmod(0o755)

    return make


def test_without_apt_it_says_what_it_needs(tools, tmp_path):
    tools(dpkg="true")
    with pytest.raises(emulated_arm.CannotRunError, match=r"Ubuntu, .* There is no apt-get here\."):
        emulated_arm.fetch(tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_without_a_network_it_says_what_it_needs_and_leaves_nothing(tools, tmp_path):
    failing = "echo 'W: slow' >&2; echo 'E: Could not resolve deb.debian.org' >&2; exit 100"
    tools(dpkg="echo amd64", apt_get=failing)
    with pytest.raises(emulated_arm.CannotRunError, match="takes a network") as error:
        emulated_arm.fetch(tmp_path / "home")
    end = "`apt-get` ended with status 100: E: Could not resolve deb.debian.org"
    assert str(error.value).endswith(end)
    assert list((tmp_path / "home").iterdir()) == []


def test_the_program_ends_with_status_2_and_the_sentence(tools, tmp_path, capsys):
    tools(dpkg="true")
    assert emulated_arm.main([f"--home={tmp_path}"]) == 2
    assert capsys.readouterr().err.endswith(" There is no apt-get here.\n")


def test_what_was_fetched_before_is_not_fetched_again(tools, tmp_path):
    version = importlib.metadata.version("ai-edge-litert")
    (tmp_path / f"trixie-litert-{version}").mkdir()
    assert emulated_arm.fetch(tmp_path) == tmp_path / f"trixie-litert-{version}"


@pytest.mark.parametrize("flag", ["--networks=resnet8,resnet9", "--cpus=cortex-a53,max,386"])
def test_unknown_names_are_refused(flag, capsys):
    with pytest.raises(SystemExit):
        emulated_arm.main([flag])
    assert f"Received: {flag.split(',')[-1]}.\n" in capsys.readouterr().err


# ---- running, with a script in place of QEMU -------------------------------------------------


def machine_that(folder, command):
    path = folder / "qemu-aarch64"
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return folder


FILES = [("a.tflite", "a.npz"), ("b.tflite", "b.npz")]
SAYS = "echo '40 output values compared, {} differ';"


def test_the_counts_are_those_that_the_runner_prints(tmp_path):
    machine = machine_that(tmp_path, SAYS.format(0) + SAYS.format(7))
    assert list(emulated_arm.run(machine, "max", FILES)) == [(0, 40), (7, 40)]


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (SAYS.format(0), "On max the program ended with status 0 after 1 of 2 files."),
        (f"{SAYS.format(0)} echo why >&2; exit 3", "status 3 after 1 of 2 files. .* word: why$"),
        (SAYS.format(0) * 2 + "kill -SEGV $$", "status -11 after 2 of 2 files."),
    ],
)
def test_a_program_that_ends_early_is_an_error(tmp_path, command, sentence):
    with pytest.raises(emulated_arm.CannotRunError, match=sentence):
        list(emulated_arm.run(machine_that(tmp_path, command), "max", FILES))


ROWS = {
    ("resnet8", "int8"): {"cortex-a53": (0, 40), "max": (0, 40)},
    ("resnet8", "smallest"): {"cortex-a53": (30, 40), "max": (29, 40)},
}


def test_the_table_has_a_row_per_file_and_a_column_per_cpu():
    assert emulated_arm.table(ROWS, ["cortex-a53", "max"]).splitlines() == [
        "| network | storage | values | cortex-a53 | max |",
        "| --- | --- | --- | --- | --- |",
        "| resnet8 | `int8` | 40 | 0 | 0 |",
        "| resnet8 | `smallest` | 40 | 30 | 29 |",
    ]


def test_a_file_differs_in_as_many_values_as_its_report_says():
    shares = {("resnet8", "int8"): 0, ("resnet8", "smallest"): 0.75}
    assert emulated_arm.faults(ROWS, shares) == ["resnet8 smallest"]  # 29 of 40 on one CPU
    rows = {key: {"cortex-a53": counts["cortex-a53"]} for key, counts in ROWS.items()}
    assert emulated_arm.faults(rows, shares) == []
    assert emulated_arm.faults(rows, {**shares, ("resnet8", "int8"): 0.025}) == ["resnet8 int8"]


# ---- an emulated CPU -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine():
    options = emulated_arm._options([])
    version = importlib.metadata.version("ai-edge-litert")
    if not (options.home / f"trixie-litert-{version}").is_dir():
        pytest.skip("`tests/run arm` has not fetched the emulator")
    return emulated_arm.fetch(options.home)


def test_a_changed_value_is_found_on_an_emulated_cpu(machine, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(8, 3, activation="relu")(x)
    y = layers.Dense(5)(layers.GlobalAveragePooling2D()(y))
    model = speq_keras.wrap(keras.Model(x, y), 4, 4, distillation=None)
    data = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    model.calibrate(data, verbose=0)
    path, right, wrong = (tmp_path / name for name in ("m.tflite", "right.npz", "wrong.npz"))
    model.export_tflite(path, data=data, self_test=right)
    arrays = dict(np.load(right))
    arrays["output_0"][2, 3] += 1
    np.savez(wrong, **arrays)
    files = [(path, right), (path, wrong)]
    assert list(emulated_arm.run(machine, "cortex-a53", files)) == [(0, 20), (1, 20)]


def test_the_stage_runs_the_program():
    stages = pathlib.Path(__file__).with_name("run").read_text()
    assert "python tests/emulated_arm.py" in stages
