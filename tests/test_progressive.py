"""`LowerWidths`: which width an epoch has, what happens to ranges, and what is refused."""

import keras
import numpy as np
import pytest
from dense_network import compiled, data, float_model, quantized_model
from fresh_process import result_of

from speq_keras import LowerWidths
from speq_keras.training import tensorflow as training_step

# Where the widths begin at 8 bits.
pytestmark = pytest.mark.filterwarnings("ignore:Training is plain, without distillation")


def inner_widths(model):
    """Returns (bits of the weights of "second", bits of the activations that it reads)."""
    row = model.plan().row("second")
    return row.w_bits, row.a_bits


class Widths(keras.callbacks.Callback):
    """Lists the widths of every epoch, and those of the first layer."""

    def __init__(self):
        super().__init__()
        self.seen, self.first = [], set()

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(inner_widths(self.model))
        self.first.add(self.model.plan().row("first").w_bits)


def fit(model, *callbacks, epochs=4, initial_epoch=0):
    x, y = data()
    model.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        initial_epoch=initial_epoch,
        shuffle=False,
        callbacks=list(callbacks),
        verbose=0,
    )


def widths_of_epochs(callback, **arguments):
    model, seen = compiled(quantized_model(w_bits=2, a_bits=2)), Widths()
    fit(model, callback, seen, **arguments)
    return seen


# ---- widths ----------------------------------------------------------------------------------


def test_each_width_lasts_until_the_next_one_and_the_last_one_to_the_end():
    seen = widths_of_epochs(LowerWidths({0: 8, 1: 4, 3: 2}), epochs=5).seen
    assert seen == [(8, 8), (4, 4), (4, 4), (2, 2), (2, 2)]


def test_the_order_of_the_dict_does_not_count():
    assert widths_of_epochs(LowerWidths({2: 2, 0: 8}), epochs=3).seen == [(8, 8), (8, 8), (2, 2)]


def test_one_side_can_be_lowered_alone():
    seen = widths_of_epochs(LowerWidths({0: 8, 1: 2}, weights=False), epochs=2).seen
    assert seen == [(2, 8), (2, 2)]
    seen = widths_of_epochs(LowerWidths({0: 8, 1: 2}, activations=False), epochs=2).seen
    assert seen == [(8, 2), (2, 2)]


def test_a_side_that_has_the_width_already_holds_up_none_that_has_not():
    model, seen = compiled(quantized_model(w_bits=8, a_bits=2)), Widths()
    fit(model, LowerWidths({0: 8, 1: 2}), seen, epochs=2)
    assert seen.seen == [(8, 8), (2, 2)]


def test_layers_of_a_fixed_width_keep_it():
    assert widths_of_epochs(LowerWidths({0: 4, 1: 2}), epochs=2).first == {8}


def test_an_initial_epoch_has_the_width_of_that_epoch():
    assert widths_of_epochs(LowerWidths({0: 8, 1: 4, 3: 2}), initial_epoch=2).seen == [
        (4, 4),
        (2, 2),
    ]


@pytest.mark.parametrize(("first", "traces"), [(7, 1), (8, 2)])
def test_lowering_costs_no_trace_but_where_distillation_begins(first, traces, monkeypatch):
    seen, original = [], training_step.train_step
    monkeypatch.setattr(
        training_step, "train_step", lambda *args: seen.append(1) or original(*args)
    )
    fit(compiled(quantized_model(), jit_compile=False), LowerWidths({0: first, 1: 4, 2: 3}))
    assert len(seen) == traces


@pytest.mark.parametrize("calibration_data", [None, data()[0]])
def test_training_resumed_from_a_file_is_the_unbroken_one(tmp_path, calibration_data):
    callback = LowerWidths({0: 8, 1: 4, 2: 2}, calibration_data=calibration_data)
    whole, broken = (
        compiled(
            quantized_model(float_model(batch_norm=True)), optimizer=keras.optimizers.Adam(0.01)
        )
        for _ in range(2)
    )
    fit(whole, callback)
    fit(broken, LowerWidths({0: 8, 1: 4}, calibration_data=calibration_data), epochs=2)
    broken.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    fit(loaded, callback, initial_epoch=2)
    assert inner_widths(loaded) == (2, 2)
    for mine, theirs in zip(loaded.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(mine.value, theirs.value, err_msg=theirs.path)


# ---- ranges ----------------------------------------------------------------------------------


def clips(model):
    return [float(q.alpha.value) for q in model.target_quantizers]


def test_ranges_stay_those_of_the_last_width():
    model = compiled(quantized_model(a_bits=2), optimizer=keras.optimizers.SGD(0.0))
    before = clips(model)
    fit(model, LowerWidths({0: 8, 1: 2}), epochs=2)
    assert clips(model) == before


@pytest.mark.parametrize(("epochs", "bits"), [(2, 4), (3, 2)])
def test_with_data_the_ranges_are_those_that_calibration_finds_for_the_width(epochs, bits):
    model, other = (quantized_model(float_model(batch_norm=True)) for _ in range(2))
    widths = {epoch: bits for epoch, bits in {0: 8, 1: 4, 2: 2}.items() if epoch < epochs}
    compiled(model, optimizer=keras.optimizers.SGD(0.0))
    fit(model, LowerWidths(widths, calibration_data=data()[0]), epochs=epochs)
    other.set_bits(weights=bits, activations=bits)
    other.calibrate(data()[0], training=True, verbose=0)
    np.testing.assert_allclose(clips(model), clips(other), rtol=1e-6)


class Batches(list):
    """Batches that count how often they are gone through."""

    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


@pytest.mark.parametrize(("activations", "times"), [(True, 2), (False, 0)])
def test_data_is_gone_through_once_for_each_width_of_activations(activations, times):
    batches = Batches([data()[0]])
    model = compiled(quantized_model(a_bits=2))
    fit(model, LowerWidths({0: 8, 2: 4}, activations=activations, calibration_data=batches))
    assert batches.times == times


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "error", "text"),
    [
        ([8, 4, 2], TypeError, "must be a dict from epochs"),
        ({}, ValueError, "epochs, which begin at 0"),
        ({1: 8, 2: 4}, ValueError, "epochs, which begin at 0"),
        ({0: 4, 2: 8}, ValueError, "each below the one before"),
        ({0: 4, 2: 4}, ValueError, "each below the one before"),
        ({0: 16, 2: 4}, ValueError, "`widths` must be a whole number from 2 to 8"),
        ({0: 8, 2: None}, TypeError, "`widths` must be a whole number from 2 to 8"),
        ({0: 8, 1.5: 4}, TypeError, "epoch=1.5"),
    ],
)
def test_widths_that_are_not_allowed_are_refused(widths, error, text):
    with pytest.raises(error, match=text):
        LowerWidths(widths)


def test_one_side_must_be_lowered():
    with pytest.raises(ValueError, match="At least one of `weights` and `activations`"):
        LowerWidths({0: 8}, weights=False, activations=False)


def test_data_that_can_be_gone_through_only_once_is_refused():
    with pytest.raises(TypeError, match="`calibration_data` must be .* many times"):
        LowerWidths({0: 8, 1: 2}, calibration_data=iter([data()[0]]))


def test_training_that_ends_too_soon_is_refused_before_it_begins():
    model = compiled(quantized_model())
    before = [np.asarray(w) for w in model.get_weights()]
    with pytest.raises(ValueError, match="epochs=4. Train for at least 5 epochs"):
        fit(model, LowerWidths({0: 8, 4: 2}))
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_float_model_is_refused():
    with pytest.raises(
        TypeError, match="`model` of LowerWidths must be a SPEQModel. Received: model=<Func"
    ):
        fit(compiled(float_model()), LowerWidths({0: 8, 1: 2}))


def test_activations_that_are_float_cannot_be_lowered():
    model = compiled(quantized_model(a_bits=None, distillation=None, w_bits=2))
    with pytest.raises(ValueError, match="`activations` can only be set if a quantizer has"):
        fit(model, LowerWidths({0: 8, 1: 2}))


# ---- JAX -------------------------------------------------------------------------------------

ON_JAX = """
import json
import keras, numpy as np
from dense_network import compiled, data, quantized_model
from speq_keras import LowerWidths

x, y = data()
model = compiled(quantized_model(), optimizer=keras.optimizers.SGD(0.0), jit_compile=True)
rows = []
for epochs in (1, 2, 3):
    callback = LowerWidths({e: b for e, b in {0: 8, 1: 4, 2: 2}.items() if e < epochs},
                           calibration_data=x)
    first = epochs - 1
    model.fit(x, y, epochs=epochs, initial_epoch=first, callbacks=[callback], verbose=0)
    rows.append([[q.bits for q in model.target_quantizers],
                 [float(np.asarray(q.alpha.value)) for q in model.target_quantizers]])
print(json.dumps([keras.backend.backend(), rows]))
"""


@pytest.mark.tensorflow
def test_on_jax_widths_fall_and_ranges_are_set_again():
    pytest.importorskip("jax")
    backend, rows = result_of(ON_JAX, KERAS_BACKEND="jax")
    assert backend == "jax"
    assert [row[0] for row in rows] == [[8, 8], [4, 4], [2, 2]]
    sums = [sum(row[1]) for row in rows]
    assert sums == sorted(sums, reverse=True)
    assert len(set(sums)) == 3
