"""`import speq_keras.tfmot` changes neither TF_USE_LEGACY_KERAS nor what `tf.keras` is."""

import importlib.util
import json

import pytest
from fresh_process import run

OURS = ("speq_keras", "speq_keras.tfmot")
TFMOT = "tensorflow_model_optimization"
ORDERS = [
    ["speq_keras.tfmot"],
    ["tf.keras", "speq_keras.tfmot"],
    ["keras", "speq_keras", "speq_keras.tfmot"],
    [TFMOT, "speq_keras.tfmot"],
    [TFMOT, "keras", "speq_keras", "speq_keras.tfmot"],
    ["speq_keras.tfmot", TFMOT],
    ["tf.keras", "speq_keras.tfmot", TFMOT],
    ["TF_USE_LEGACY_KERAS=0", "speq_keras.tfmot"],
    ["TF_USE_LEGACY_KERAS=0", "speq_keras.tfmot", TFMOT],
    ["TF_USE_LEGACY_KERAS=1", "speq_keras.tfmot"],
]
CODE = "import sys; sys.argv[1:] = [sys.argv[1]]; import import_orders; import_orders.main()"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec(TFMOT) is None, reason="tfmot is not installed"
)


def without_ours(order):
    return [step for step in order if step not in OURS]


@pytest.fixture(scope="module")
def states():
    orders = [*ORDERS, *(without_ours(order) for order in ORDERS)]
    process = run(
        f"import os; os.environ.pop('TF_USE_LEGACY_KERAS', None); {CODE}", json.dumps(orders)
    )
    assert process.returncode == 0, process.stderr[-2000:]
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("[[")]
    return {tuple(order): state for order, state in lines}


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_tf_keras_and_the_variable_are_what_they_are_without_speq_keras(states, order):
    assert states[tuple(order)] == states[tuple(without_ours(order))]


def test_tfmot_alone_makes_tf_keras_legacy(states):
    assert states[(TFMOT,)] == ["1", "tf_keras"]


def test_another_backend_is_named_in_the_error():
    pytest.importorskip("jax")
    process = run("import speq_keras.tfmot", KERAS_BACKEND="jax")
    assert "ImportError: Keras must have the TensorFlow backend" in process.stderr
    assert "Received: backend='jax'" in process.stderr


HIDDEN = """
import importlib.abc, sys

class Hides(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow_model_optimization":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Hides())
import speq_keras.tfmot
"""


def test_the_error_without_tfmot_says_what_to_install():
    process = run(HIDDEN)
    assert process.returncode == 1
    assert "Install them with `pip install 'speq-keras[tfmot]'`." in process.stderr
