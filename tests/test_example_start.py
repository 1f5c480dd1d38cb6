"""`examples/quiet_start.py`: what TensorFlow says as it starts is held back, and nothing else."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# A line of the kind that is held back, and one that a user has to see.
NOTICE, NEWS = "I0000 00:00:1 1 port.cc:153] oneDNN", "E0000 00:00:1 1 disk.cc:1] The disk is full"
PROGRAM = f"""
import os
import sys
sys.modules["speq_keras"] = type(sys)("speq_keras")  # takes seconds, and says nothing
import quiet_start
import tensorflow as tf
tf.zeros(3) + 1
with quiet_start.without_notices():
    os.write(2, b"{NOTICE}\\n{NEWS}\\n")
print(os.environ["TF_CPP_MIN_LOG_LEVEL"])
"""


def start(**environment):
    """Returns what a program that imports `quiet_start` prints, and its standard error."""
    inherited = {name: value for name, value in os.environ.items() if "MIN_LOG_LEVEL" not in name}
    path = os.pathsep.join((str(ROOT), str(ROOT / "examples")))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**inherited, "PYTHONPATH": path, "KERAS_BACKEND": "tensorflow", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


def test_a_program_starts_without_notices_and_keeps_other_lines():
    assert start() == ("2\n", f"{NEWS}\n")


def test_who_sets_the_level_gets_it_and_what_the_libraries_say_at_it():
    level, text = start(TF_CPP_MIN_LOG_LEVEL="0")
    assert level == "0\n"
    assert "cpu_feature_guard" in text  # TensorFlow's line about the instructions of this CPU
