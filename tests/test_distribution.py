"""Training under `tf.distribute`: two logical CPU devices compute what one does."""

import numpy as np
import pytest
from dense_network import compiled, data, quantized_model
from fresh_process import result_of, run

# Arguments: number of devices, whether there is BatchNormalization and dropout.
TRAINING = """
import contextlib, json, sys
import tensorflow as tf

devices, with_state = int(sys.argv[1]), sys.argv[2] == "state"
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)

import keras
from dense_network import data, float_model, quantized_model, values
from speq_keras import precision
from speq_keras.training import tensorflow as training_step

drawn, traces = [], []
original = training_step.train_step
training_step.train_step = lambda *args: traces.append(1) or original(*args)

class Spy(precision.Bernoulli):
    def candidates(self, target_bits, seed):
        rows = super().candidates(target_bits, seed)
        tf.py_function(lambda row: drawn.append(row.numpy().tolist()), [rows[0]], [])
        return rows

state = {"batch_norm": True, "dropout": 0.2} if with_state else {}
epochs = 15 if with_state else 2
strategy = contextlib.nullcontext()
if devices > 1:
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)])
    assert strategy.num_replicas_in_sync == devices
    strategy = strategy.scope()
x, y = data(examples=32)
with strategy:
    teacher = float_model(seed=9)
    model = quantized_model(float_model(**state), teacher_precision=Spy(), teacher=teacher)
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
history = model.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history
evaluation = model.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
weights = {path: value.tolist() for path, value in values(model.trainable_weights).items()}
results = {"history": history, "evaluation": evaluation, "weights": weights, "drawn": drawn}
results["traces"] = len(traces)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def one_device():
    return result_of(TRAINING, 1, "plain")


@pytest.fixture(scope="module")
def two_devices():
    return result_of(TRAINING, 2, "plain")


@pytest.mark.parametrize(
    "name", ["loss", "task_loss", "distillation_loss", "teacher_loss", "accuracy"]
)
def test_losses_on_two_devices_are_those_on_one(one_device, two_devices, name):
    # float32 sums in another order; T² = 4 times in the distillation losses.
    expected = pytest.approx(one_device["history"][name], rel=1e-4, abs=2e-6)
    assert two_devices["history"][name] == expected


def test_evaluation_on_two_devices_is_that_on_one(one_device, two_devices):
    assert two_devices["evaluation"] == pytest.approx(one_device["evaluation"], rel=1e-5)


def test_weights_trained_on_two_devices_are_those_trained_on_one(one_device, two_devices):
    assert set(one_device["weights"]) == set(two_devices["weights"])
    for path, expected in one_device["weights"].items():
        # Adam's first steps have the learning rate 0.01 as their size whatever the gradient.
        np.testing.assert_allclose(two_devices["weights"][path], expected, atol=1e-5, err_msg=path)


def test_all_devices_use_one_draw(one_device, two_devices):
    steps = [two_devices["drawn"][i : i + 2] for i in range(0, len(two_devices["drawn"]), 2)]
    assert all(first == second for first, second in steps)
    assert [first for first, _ in steps] == one_device["drawn"]


def test_the_step_is_traced_once_for_every_device(one_device, two_devices):
    assert (one_device["traces"], two_devices["traces"]) == (1, 2)


def test_batch_norm_and_dropout_train_on_two_devices():
    result = result_of(TRAINING, 2, "state")
    losses = [value for values in result["history"].values() for value in values]
    assert np.isfinite(losses).all()
    assert result["history"]["task_loss"][-1] < result["history"]["task_loss"][0]


MULTI_WORKER = """
import tensorflow as tf
from dense_network import compiled, data, quantized_model

x, y = data()
with tf.distribute.MultiWorkerMirroredStrategy().scope():
    model = quantized_model()
    compiled(model, run_eagerly=False)
model.fit(x, y, verbose=0)
"""


def test_multi_worker_strategy_names_the_keras_issue():
    process = run(MULTI_WORKER)
    assert process.returncode == 1
    assert "RuntimeError: Keras 3 does not train under MultiWorkerMirrored" in process.stderr
    assert "keras issue 20585" in process.stderr


def test_training_under_a_multi_worker_strategy_is_refused_by_its_class(monkeypatch):
    strategy = type("CollectiveAllReduceStrategy", (), {})()
    x, y = data()
    model = compiled(quantized_model())
    monkeypatch.setattr(model, "_distribute_strategy", strategy)
    with pytest.raises(RuntimeError, match=r"20585.*strategy=CollectiveAllReduceStrategy"):
        model.fit(x, y)
