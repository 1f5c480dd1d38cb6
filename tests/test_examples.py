"""Every example in its shortest form, as a user runs it: in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(program, *arguments, cwd):
    """Runs an example and returns (exit status, what it printed)."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_quickstart_prints_a_table_and_writes_its_files(tmp_path):
    epochs = [f"--{name}=1" for name in ("pretrain_epochs", "retrain_epochs", "epochs")]
    status, text = run("quickstart.py", "--seeds=0", *epochs, cwd=tmp_path)
    assert status == 0, text
    assert "SPEQ" in text
    files = {path.name for path in (tmp_path / "out" / "quickstart").iterdir()}
    assert files >= {"results.json", "curves.png", "speq.keras"}


# A stand-in for TensorFlow Datasets, which has no CIFAR-10 on a machine without a network: the
# program itself is the real one.
CIFAR_ON_NOISE = """
import sys
sys.path.insert(0, {examples!r})
import numpy as np
import cifar_data
random = np.random.default_rng(0)
def noise(count):
    images = random.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    return images, random.integers(0, 10, count)
cifar_data.load = lambda *args, **kwargs: (*noise(64), *noise(32))
import runpy
sys.argv = ["cifar.py", *{arguments!r}]
runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_cifar_runs_all_stages_and_both_methods(tmp_path):
    arguments = [
        "--pretrain_epochs=1",
        "--retrain_epochs=1",
        "--epochs=1",
        "--steps=1",
        "--batch_size=16",
        "--probe_examples=32",
        f"--out_dir={tmp_path}/out",
    ]
    code = CIFAR_ON_NOISE.format(
        examples=str(EXAMPLES), program=str(EXAMPLES / "cifar.py"), arguments=arguments
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [stage["stage"] for stage in results["stages"]] == ["pretrain", "retrain", "qat", "speq"]


def test_cifar_says_in_one_sentence_that_the_data_folder_is_missing(tmp_path):
    status, text = run("cifar.py", "--short", f"--data_dir={tmp_path}/nowhere", cwd=tmp_path)
    assert status != 0
    assert "Traceback" not in text
    assert "--data_dir" in text
