"""Ways to compile and to feed data: what Keras offers works, and costs no extra trace."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dense_network import compiled, data, float_model, quantized_model

from speq_keras import precision
from speq_keras.training import tensorflow as training_step

# ---- traces ----------------------------------------------------------------------------------


@pytest.fixture
def traces(monkeypatch):
    """Lists the traces of the training step: its Python code runs once per trace."""
    seen = []
    original = training_step.train_step

    def counting(model, *args):
        seen.append(model.name)
        return original(model, *args)

    monkeypatch.setattr(training_step, "train_step", counting)
    return seen


def test_one_trace_serves_partial_batches_and_all_widths(traces):
    x, y = data(examples=12)
    model = compiled(quantized_model(), run_eagerly=False)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)  # batches of 8 and 4
    for bits in (4, None, 3):
        model.set_bits(weights=bits, activations=bits)
        model.fit(x, y, batch_size=8, verbose=0)
    assert len(traces) == 1


def test_one_trace_serves_evaluation_at_all_widths(monkeypatch):
    x, y = data()
    model = compiled(quantized_model(), run_eagerly=False)
    traces = []
    original = model.compute_loss
    monkeypatch.setattr(
        model, "compute_loss", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs)
    )
    model.evaluate(x, y, verbose=0)
    first = len(traces)
    losses = set()
    for bits in (2, 8, None):
        model.set_bits(weights=bits, activations=bits)
        losses.add(model.evaluate(x, y, verbose=0))
    assert (len(traces), len(losses)) == (first, 3)


def test_changed_setting_costs_one_trace(traces):
    x, y = data()
    model = compiled(quantized_model(), run_eagerly=False)
    model.fit(x, y, epochs=2, verbose=0)
    model.distillation = "kl"
    model.fit(x, y, epochs=2, verbose=0)
    assert len(traces) == 2


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "AdamW with a moving average": lambda: keras.optimizers.AdamW(0.01, use_ema=True),
    "a scaled loss": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_trace_serves_every_optimizer(traces, name):
    x, y = data()
    model = quantized_model()
    compiled(model, optimizer=OPTIMIZERS[name](), metrics=["accuracy"], run_eagerly=False)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert len(traces) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_was_made_before_the_first_step_trains_the_same(name, monkeypatch):
    x, y = data(examples=24)
    trained = []
    for is_made_before in (True, False):
        if not is_made_before:
            monkeypatch.setattr("speq_keras.training.build_optimizer", lambda model: None)
        model = compiled(quantized_model(), optimizer=OPTIMIZERS[name](), run_eagerly=False)
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        trained.append(model.get_weights())
    for mine, theirs in zip(*trained, strict=True):
        np.testing.assert_array_equal(mine, theirs)


# ---- compile ---------------------------------------------------------------------------------


def losses_of(model, epochs=2, **kwargs):
    """Compiles, trains on one batch per epoch, and returns the loss of every epoch."""
    x, y = data()
    compiled(model, **{"run_eagerly": False, **kwargs})
    return model.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def test_compiled_step_computes_what_the_eager_one_does():
    eager, traced = (losses_of(quantized_model(), run_eagerly=run) for run in (True, False))
    assert traced == pytest.approx(eager, rel=1e-5)  # float32 sums in another order


def test_several_steps_per_execution_train_as_single_ones_do():
    x, y = data(examples=16)
    histories = []
    for steps in (1, 2):
        model = compiled(quantized_model(), run_eagerly=False, steps_per_execution=steps)
        history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0).history
        histories.append([history["loss"][0], history["distillation_loss"][0]])
    assert histories[1] == pytest.approx(histories[0], rel=1e-5)


def test_step_under_xla_computes_what_the_eager_one_does():
    rule = precision.Fixed(8)  # random numbers are others under XLA
    eager = losses_of(quantized_model(teacher_precision=rule), run_eagerly=True)
    xla = losses_of(quantized_model(teacher_precision=rule), jit_compile=True)
    # A value next to a tie may fall to the other side.
    assert xla == pytest.approx(eager, rel=1e-3)


def changes(model, optimizer, steps):
    """Returns the norm of the weights' change after each step."""
    x, y = data()
    compiled(model, optimizer=optimizer)
    norms = []
    for _ in range(steps):
        before = [variable.numpy() for variable in model.trainable_weights]
        model.train_on_batch(x, y)
        after = [variable.numpy() for variable in model.trainable_weights]
        norms.append(sum(np.square(a - b).sum() for a, b in zip(after, before, strict=True)) ** 0.5)
    return norms


def test_gradients_are_clipped_where_the_optimizer_says_so():
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=0.01)
    assert changes(quantized_model(), optimizer, 1) == pytest.approx([0.01], rel=1e-3)


def test_gradients_are_accumulated_where_the_optimizer_says_so():
    optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    norms = changes(quantized_model(), optimizer, 2)
    assert norms[0] == 0 < norms[1]


@pytest.fixture
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
def test_loss_falls_in_mixed_precision(policy):
    model = quantized_model(float_model(batch_norm=True))
    losses = losses_of(model, epochs=20, optimizer=keras.optimizers.SGD(0.3))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]


def test_loss_falls_in_single_precision():
    losses = losses_of(quantized_model(), epochs=20, optimizer=keras.optimizers.SGD(0.3))
    assert losses[-1] < 0.8 * losses[0]


# ---- data ------------------------------------------------------------------------------------


class Batches(keras.utils.PyDataset):
    """The data in batches of 8."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return tuple(part[8 * index : 8 * index + 8] for part in data())


SOURCES = {
    "arrays": lambda: {"x": data()[0], "y": data()[1], "batch_size": 8},
    "tf.data": lambda: {"x": tf.data.Dataset.from_tensor_slices(data()).batch(8)},
    "PyDataset": lambda: {"x": Batches()},
    "generator": lambda: {"x": (Batches()[i % 2] for i in range(8)), "steps_per_epoch": 2},
}


@pytest.mark.parametrize("source", ["tf.data", "PyDataset", "generator"])
def test_all_kinds_of_data_train_as_arrays_do(source):
    histories = []
    for kind in ("arrays", source):
        model = compiled(quantized_model(teacher_precision=precision.Fixed(8)))
        arguments = {**SOURCES[kind](), "epochs": 2, "shuffle": False, "verbose": 0}
        histories.append(model.fit(**arguments).history["loss"])
    assert histories[1] == pytest.approx(histories[0], rel=1e-5)


def test_training_on_a_batch_returns_the_losses_in_the_order_of_the_metrics():
    x, y = data()
    model = compiled(quantized_model(), metrics=["accuracy"])
    loss, accuracy, task_loss, distillation_loss = model.train_on_batch(x, y)
    assert loss == pytest.approx(task_loss + distillation_loss, rel=1e-6)
    assert 0 <= accuracy <= 1 < task_loss  # the cross-entropy of 4 classes is near log 4


def test_training_before_compile_is_refused_by_keras():
    x, y = data()
    model = quantized_model(calibrate=False)
    with pytest.raises(ValueError, match="You must call `compile"):
        model.fit(x, y)
    assert not model.is_calibrated


def test_callbacks_see_all_losses_of_every_batch():
    x, y = data()
    seen = []

    class Spy(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(set(logs))

    compiled(quantized_model()).fit(x, y, batch_size=8, callbacks=[Spy()], verbose=0)
    assert seen == [{"loss", "task_loss", "distillation_loss"}] * 2


def test_callbacks_can_stop_training_by_a_loss_of_ours():
    x, y = data()
    model = compiled(quantized_model(), optimizer=keras.optimizers.SGD(0.0))
    stop = keras.callbacks.EarlyStopping(monitor="task_loss", mode="min", patience=1)
    history = model.fit(x, y, epochs=9, shuffle=False, callbacks=[stop], verbose=0).history
    assert len(history["loss"]) == 2
