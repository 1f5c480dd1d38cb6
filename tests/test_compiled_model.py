"""Files in LiteRT's CompiledModel, in a process of its own; the proof counts what differs."""

import os
import signal
import sys

import numpy as np
import pytest
from dense_network import quantized_model
from integer_networks import conv, outputs_of, random_codes, two_inputs

from speq_keras.export.tflite import compiled_model, runtimes
from speq_keras.export.tflite.runtimes import run_file
from speq_keras.export.tflite.write import write


@pytest.fixture
def worker():
    """The process that runs files, once it has run one."""
    run_file(write(conv()), random_codes(0, 1, 8, 8, 4), runtime="compiled")
    return compiled_model._workers[os.getpid()]


def test_a_file_computes_what_it_computes_in_the_interpreter():
    x = random_codes(0, 5, 8, 8, 4)
    (got,) = run_file(write(conv(), batch_size=2), x, runtime="compiled")
    np.testing.assert_array_equal(got, outputs_of(write(conv(), batch_size=5), x)[0])


def test_two_inputs_keep_their_order():
    network = two_inputs("sub")
    x, y = random_codes(1, 3, 8, 8, 4), random_codes(2, 3, 8, 8, 4)
    (got,) = run_file(write(network), [x, y], runtime="compiled")
    np.testing.assert_array_equal(got, run_file(write(network), [x, y])[0])
    assert (got != run_file(write(network), [y, x])[0]).any()


def test_one_process_runs_file_after_file(worker):
    run_file(write(conv(activation="relu")), random_codes(0, 1, 8, 8, 4), runtime="compiled")
    assert compiled_model._workers[os.getpid()] is worker


def test_a_crash_is_an_error_and_the_next_file_runs(worker):
    worker.send_signal(signal.SIGKILL)
    x = random_codes(0, 1, 8, 8, 4)
    with pytest.raises(RuntimeError, match="CompiledModel crashed on this file, with status -9"):
        compiled_model._exchange(worker, {"content": np.zeros(1, np.uint8)})
    (got,) = run_file(write(conv()), x, runtime="compiled")
    np.testing.assert_array_equal(got, run_file(write(conv()), x)[0])


def test_a_file_that_it_cannot_load_is_an_error():
    with pytest.raises(RuntimeError, match="CompiledModel cannot run this file: "):
        compiled_model.run_compiled(b"TFL3" * 8, [[random_codes(0, 1, 8, 8, 4)]])


def test_it_prints_nothing(capfd):
    run_file(write(conv()), random_codes(0, 1, 8, 8, 4), runtime="compiled")
    printed = capfd.readouterr()
    assert "CompiledModel" not in printed.err
    assert "Accelerator" not in printed.err


def test_modules_of_the_current_folder_are_not_its(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise ImportError('of the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setattr(compiled_model, "_workers", {})
    run_file(write(conv()), random_codes(0, 1, 8, 8, 4), runtime="compiled")


def exported(tmp_path, **kwargs):
    return quantized_model().export_tflite(tmp_path / "m.tflite", **kwargs)


def test_the_proof_runs_both_and_says_so(tmp_path):
    report = exported(tmp_path)
    assert report.proof.runtimes == ("default", "compiled")
    assert "run in LiteRT's interpreter and in its CompiledModel" in str(report)
    assert report.to_dict()["proof"]["runtimes"] == ["default", "compiled"]


def test_a_value_that_differs_there_breaks_the_proof(tmp_path, monkeypatch):
    def broken(content, batches):
        results = compiled_model.run_compiled(content, batches)
        results[0][0][0, 0] += 1
        return results

    monkeypatch.setattr(runtimes, "run_compiled", broken)
    with pytest.raises(RuntimeError, match="[1-4] values of output 'last' differ between two ways"):
        exported(tmp_path)
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize("executable", ["", "/no/python"])
def test_where_no_process_can_be_started_the_report_says_so(executable, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", executable)
    report = exported(tmp_path)
    assert report.proof.holds
    assert report.proof.runtimes == ("default",)
    assert "in LiteRT's interpreter only" in str(report)
    with pytest.raises(RuntimeError, match="sys.executable cannot be run"):
        exported(tmp_path, runtimes=["compiled"])
