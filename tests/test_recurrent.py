"""Recurrent layers: what a step computes, in training, in float, saved, frozen and refused."""

import functools
import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras
from speq_keras.configs import QuantizeConfig
from speq_keras.layers import activation_quantizers
from speq_keras.quantizers import MinMax
from speq_keras.recurrent import PRODUCTS, QuantizedRecurrent, roles_of
from speq_keras.recurrent.making import quantized_recurrent

pytestmark = pytest.mark.every_backend

STEPS, NUMBERS, UNITS = 5, 3, 4
KINDS = {
    "LSTM": lambda **more: layers.LSTM(UNITS, **more),
    "GRU": lambda **more: layers.GRU(UNITS, **more),
    "GRU, reset before": lambda **more: layers.GRU(UNITS, reset_after=False, **more),
    "SimpleRNN": lambda **more: layers.SimpleRNN(UNITS, **more),
}
OPTIONS = {
    "last": {},
    "all": {"return_sequences": True},
    "backwards": {"return_sequences": True, "go_backwards": True},
    "without bias": {"use_bias": False},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def sequences(count=6, seed=0):
    return np.random.default_rng(seed).normal(size=(count, STEPS, NUMBERS)).astype("float32")


def with_weights(layer, seed=1):
    layer.build((None, STEPS, NUMBERS))
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=w.shape, scale=0.7) for w in layer.weights])
    return layer


def quantized(layer, bits=8):
    """The layer, every range of it set to 1 ... 4 in no simple ratio."""
    made = quantized_recurrent(layer, {name: MinMax(bits=bits) for name in PRODUCTS})
    made.build((None, STEPS, NUMBERS))
    for number, quantizer in enumerate(activation_quantizers(made)):
        if hasattr(quantizer, "alpha"):
            quantizer.alpha.assign(2.0 + np.pi**number % 1)
    return made


def in_numpy(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


# ---- the formula, written again --------------------------------------------------------------


class Formulas:
    """The steps of `recurrent.formulas` in float64, from what is known of the product alone."""

    def __init__(self, layer):
        self.layer, self.cell = layer, layer.layer.cell
        self.w, self.u = (
            in_numpy(layer.quantizers[name](layer.variable(name).value)) for name in PRODUCTS
        )
        bias = self.cell.bias
        self.b = np.zeros((2, self.w.shape[1]))
        if bias is not None:
            self.b[: in_numpy(bias).size // self.w.shape[1]] = in_numpy(bias)

    def round(self, role, x):
        scale, low, high = self.layer.activation_quantizers[role].grid()
        return np.clip(np.rint(x / scale), low, high) * scale

    def sigmoid(self, x):
        return self.round("gates", 1 / (1 + np.exp(-x)))

    def lstm(self, x, h, c):
        i, f, g, o = np.split(self.sums(self.inputs(x), h @ self.u), 4, axis=-1)
        i, f, o = (self.sigmoid(gate) for gate in (i, f, o))
        g = self.round("candidates", np.tanh(g))
        c = self.round("cells", self.round("kept", f * c) + self.round("added", i * g))
        return self.round("states", o * self.round("candidates", np.tanh(c))), c

    def sums(self, inputs, products):
        return self.round("gate_sums", inputs + self.round("recurrent_sums", products))

    def inputs(self, x):
        return self.round("input_sums", x @ self.w + self.b[0])

    def gru(self, x, h, _):
        n = 2 * UNITS
        after = self.cell.reset_after
        bias = np.where(np.arange(3 * UNITS) < n, self.b[0] + self.b[1], self.b[0])
        inputs = self.round("input_sums", x @ self.w + bias)
        z, r = np.split(self.sigmoid(self.sums(inputs[:, :n], h @ self.u[:, :n])), 2, axis=-1)
        if after:
            inner = self.round("recurrent_sums", h @ self.u[:, n:] + self.b[1, n:])
            inner = self.round("resets", r * inner)
        else:
            inner = self.round("recurrent_sums", self.round("resets", r * h) @ self.u[:, n:])
        sums = self.round("candidate_sums", inputs[:, n:] + inner)
        g = self.round("candidates", np.tanh(sums))
        move = self.round("moves", z * self.round("differences", h - g))
        return self.round("states", g + move), h

    def simple(self, x, h, _):
        return self.round("states", np.tanh(self.sums(self.inputs(x), h @ self.u))), h

    def __call__(self, x):
        step = {"LSTMCell": self.lstm, "GRUCell": self.gru, "SimpleRNNCell": self.simple}
        step = step[type(self.cell).__name__]
        h = c = np.zeros((len(x), UNITS))
        outputs = []
        order = range(STEPS)[::-1] if self.layer.layer.go_backwards else range(STEPS)
        for number in order:
            h, c = step(x[:, number].astype("float64"), h, c)
            outputs.append(h)
        return np.stack(outputs, axis=1) if self.layer.layer.return_sequences else h


@EVERY_KIND
@EVERY_OPTION
def test_a_layer_computes_the_formula(kind, options):
    layer = quantized(with_weights(KINDS[kind](**options)), bits=4)
    found, wanted = in_numpy(layer(sequences())), Formulas(layer)(sequences())
    # Float32: no value here lies so near to a half that it goes to the other side.
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def float_values(layer, x):
    """What the layer computes while it is observed, and all widths are float."""
    for quantizer in activation_quantizers(layer):
        quantizer.observer = lambda quantizer, values: None
    return in_numpy(layer(x))


@EVERY_KIND
@EVERY_OPTION
def test_without_rounding_it_is_the_layer(kind, options):
    plain = with_weights(KINDS[kind](**options))
    wanted = in_numpy(plain(sequences()))
    found = float_values(quantized(plain, bits=None), sequences())
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("cell", [layers.LSTMCell, layers.GRUCell, layers.SimpleRNNCell])
def test_an_rnn_around_a_cell_is_the_layer_of_that_name(cell):
    plain = with_weights(layers.RNN(cell(UNITS, activation="relu"), return_state=True))
    wanted, *states = plain(sequences())
    layer = quantized(plain, bits=None)
    for quantizer in activation_quantizers(layer):
        quantizer.observer = lambda quantizer, values: None
    found, *mine = layer(sequences())
    for a, b in zip([found, *mine], [wanted, *states], strict=True):
        np.testing.assert_allclose(in_numpy(a), in_numpy(b), atol=1e-5)


@EVERY_KIND
def test_the_loop_of_training_computes_what_is_observed_step_by_step(kind):
    layer = quantized(with_weights(KINDS[kind](return_sequences=True)))
    loop = in_numpy(layer(sequences()))
    for quantizer in activation_quantizers(layer):
        quantizer.observer = lambda quantizer, values: quantizer.quantized(values)
    np.testing.assert_array_equal(in_numpy(layer(sequences())), loop)


@pytest.mark.parametrize(("kind", "count"), [("LSTM", 9), ("GRU", 10), ("SimpleRNN", 4)])
def test_one_quantizer_per_role_is_shared_by_all_steps(kind, count):
    assert len(activation_quantizers(quantized(with_weights(KINDS[kind]())))) == count


def test_a_layer_needs_a_quantizer_for_every_role():
    lstm = layers.LSTM(2)
    weights = {name: MinMax() for name in PRODUCTS}
    with pytest.raises(ValueError, match="one for each of input_sums, recurrent_sums"):
        QuantizedRecurrent(lstm, weights, {})
    with pytest.raises(ValueError, match="one for each of cell.kernel, cell.recurrent_kernel"):
        QuantizedRecurrent(lstm, {"cell.kernel": MinMax()}, dict.fromkeys(roles_of(lstm)))


# ---- wrapped ---------------------------------------------------------------------------------


def network(layer, before=False):
    inputs = keras.Input((STEPS, NUMBERS))
    x = layers.Dense(NUMBERS, activation="relu", name="first")(inputs) if before else inputs
    x = layer(x)
    x = layers.Flatten(name="flat")(x) if len(x.shape) > 2 else x
    x = layers.Dense(5, activation="relu", name="hidden")(x) if before else x
    model = keras.Model(inputs, layers.Dense(2, activation="softmax", name="last")(x))
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=w.shape, scale=0.7) for w in model.get_weights()])
    return model


def wrapped(layer, w_bits=4, a_bits=8, *, before=False, **arguments):
    model = speq_keras.wrap(network(layer, before), w_bits, a_bits, **arguments)
    model.calibrate(sequences(32), verbose=0)
    return model


def fit(model, epochs=1):
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    targets = np.random.default_rng(4).integers(0, 2, 32)
    return model.fit(sequences(32), targets, batch_size=16, epochs=epochs, verbose=0).history


@functools.cache
def trained(kind):
    model = wrapped(KINDS[kind](name="memory"), before=True, a_bits=4, seed=0)
    before = {v.path: in_numpy(v) for v in model.trainable_variables}
    losses = fit(model)["loss"]
    moved = {
        v.path: not np.array_equal(in_numpy(v), before[v.path]) for v in model.trainable_variables
    }
    return model, losses, moved


@EVERY_KIND
def test_training_moves_the_weights(kind):
    _, losses, moved = trained(kind)
    assert np.isfinite(losses).all()
    memory = {path: value for path, value in moved.items() if "_cell/" in path}
    assert len(memory) == 3
    assert all(memory.values())


@EVERY_KIND
def test_training_moves_the_range_of_every_role_that_values_leave(kind):
    inputs = keras.Input((STEPS, NUMBERS))
    layer = quantized(with_weights(KINDS[kind]()))
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    start, still = model.get_weights(), []
    for role, quantizer in layer.activation_quantizers.items():
        if not hasattr(quantizer, "alpha"):
            continue  # the grid is prescribed
        model.set_weights(start)
        quantizer.alpha.assign(0.05)
        model.train_on_batch(sequences(), np.ones((6, UNITS)))
        if in_numpy(quantizer.alpha) == np.float32(0.05):
            still.append(role)
    assert still == []


@EVERY_KIND
def test_a_saved_model_predicts_the_same(kind, tmp_path):
    model, *_ = trained(kind)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        again.predict(sequences(), verbose=0), model.predict(sequences(), verbose=0)
    )
    assert [q.name for q in again.activation_quantizers] == [
        q.name for q in model.activation_quantizers
    ]


def test_the_float_model_has_the_trained_weights():
    model, *_ = trained("GRU")
    memory = model.float_model().get_layer("memory")
    for mine, theirs in zip(
        memory.get_weights(), model.get_layer("memory").layer.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_calibration_sets_the_ranges_of_all_steps():
    model = wrapped(layers.LSTM(UNITS, name="memory"))
    assert model.is_calibrated
    alpha = float(in_numpy(model.get_layer("memory").activation_quantizers["cells"].alpha))
    assert alpha != 6.0  # what it starts from


def test_ranges_of_a_frozen_layer_stay():
    model = wrapped(layers.LSTM(UNITS, name="memory"), distillation=None)
    model.get_layer("memory").trainable = False
    before = [in_numpy(v) for v in model.get_layer("memory").variables]
    fit(model)
    for a, b in zip(before, model.get_layer("memory").variables, strict=True):
        np.testing.assert_array_equal(a, in_numpy(b))


def test_dropout_drops_in_training_alone():
    layer = quantized(with_weights(layers.GRU(UNITS, dropout=0.5, recurrent_dropout=0.5, seed=0)))
    x = sequences()
    np.testing.assert_array_equal(in_numpy(layer(x)), in_numpy(layer(x)))
    one, other = in_numpy(layer(x, training=True)), in_numpy(layer(x, training=True))
    assert not np.array_equal(one, other)


def test_losses_of_regularizers_are_kept():
    model = wrapped(layers.LSTM(UNITS, recurrent_regularizer="l2", activity_regularizer="l2"))
    model(sequences())
    assert len(model.losses) == len(model.float_model().losses) + 1  # of the outputs, after a call


def test_the_width_of_weights_can_be_set():
    model = wrapped(layers.LSTM(UNITS, name="memory"), before=True)
    model.set_bits(weights=2)
    row = model.plan().row("memory")
    assert (row.w_bits, row.a_bits) == (2, 8)


def test_only_what_a_layer_reads_has_the_target_width():
    model = wrapped(layers.LSTM(UNITS, name="memory"), 4, 3, before=True)
    inside = model.get_layer("memory").activation_quantizers.values()
    assert {(q.bits, q.has_target_width) for q in inside} == {(8, False)}
    assert [q.name for q in model.target_quantizers] == [
        "first_relu_quantizer",
        "memory_requantizer",
    ]


def test_eight_bits_of_the_states_are_not_rounded_again():
    model = wrapped(layers.LSTM(UNITS, name="memory"))
    names = [q.name for q in model.activation_quantizers]
    assert [name for name in names if "memory" not in name] == [names[0], names[-1]]


def test_without_activations_the_layer_itself_has_quantized_weights():
    model = speq_keras.wrap(network(layers.LSTM(UNITS, name="memory"), True), 4, None)
    assert type(model.get_layer("memory")) is speq_keras.QuantizedLayer


def test_one_of_two_kernels_does_not_make_an_integer_layer():
    config = QuantizeConfig(weights=("cell.kernel",))
    model = wrapped(layers.LSTM(UNITS, name="memory"), configs={"memory": config})
    assert "refused" in model.plan().row("memory").in_file


# ---- bidirectional ---------------------------------------------------------------------------


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave"])
def test_both_directions_of_a_bidirectional_layer_are_quantized(merge_mode):
    layer = layers.Bidirectional(layers.GRU(UNITS, name="gru"), merge_mode=merge_mode, name="both")
    plan = wrapped(layer).plan()
    quantized_rows = {row.name for row in plan.rows if row.status == "quantized"}
    assert {"both.forward_gru", "both.backward_gru"} <= quantized_rows
    assert not plan.file.is_refused


# ---- refused ---------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
def sine(x):
    return ops.sin(x)


def masked(x):
    return layers.LSTM(UNITS, name="memory")(layers.Masking()(x))


def given_state(x):
    return layers.LSTM(UNITS, name="memory")(x, initial_state=[x[:, 0, :1] * np.ones(UNITS)] * 2)


REFUSED = {
    "unknown length": (
        lambda x: layers.LSTM(UNITS, name="memory")(x),
        (None, None, NUMBERS),
        "build the model with a fixed length",
    ),
    "too long": (
        lambda x: layers.LSTM(UNITS, name="memory")(x),
        (None, 129, NUMBERS),
        "at most 128",
    ),
    "stateful": (
        lambda x: layers.LSTM(UNITS, stateful=True, name="memory")(x),
        (2, STEPS, NUMBERS),
        "stateful=False",
    ),
    "masked": (masked, (None, STEPS, NUMBERS), "without Masking"),
    "initial state": (given_state, (None, STEPS, NUMBERS), "start from zeros"),
    "unknown function": (
        lambda x: layers.LSTM(UNITS, activation=sine, name="memory")(x),
        (None, STEPS, NUMBERS),
        "its activation .* is not one of Keras",
    ),
    "stacked cells": (
        lambda x: layers.RNN([layers.LSTMCell(3), layers.LSTMCell(4)], name="memory")(x),
        (None, STEPS, NUMBERS),
        "stack layers",
    ),
}


@pytest.mark.parametrize(("body", "shape", "why"), REFUSED.values(), ids=REFUSED)
def test_a_plan_says_why_a_layer_stays_in_float_and_the_way_out(body, shape, why):
    inputs = keras.Input(batch_shape=shape)
    x = body(inputs)
    plan = speq_keras.wrap(keras.Model(inputs, layers.Dense(2)(x)), 4, 8).plan()
    assert re.search(why, plan.float_layers["memory"])


def test_what_reads_the_states_reads_their_codes():
    assert wrapped(layers.LSTM(UNITS)).plan().row("last").a_bits == 8


def test_the_plan_counts_every_step():
    row = wrapped(layers.GRU(UNITS, name="memory")).plan().row("memory")
    assert row.macs == STEPS * (NUMBERS + UNITS) * 3 * UNITS
    assert row.parameters == (NUMBERS + UNITS + 2) * 3 * UNITS


@pytest.mark.tensorflow
def test_a_sequence_of_one_step_is_calibrated_and_exported(tmp_path):
    """No product with a state is in it, so some quantizers see nothing."""
    inputs = keras.Input((1, 3))
    network = keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(inputs)))
    model = speq_keras.wrap(network, 8, 8, distillation=None)
    x = np.random.default_rng(0).normal(size=(8, 1, 3)).astype("float32")
    model.calibrate(x, verbose=0)
    assert model.export_tflite(tmp_path / "m.tflite", data=x).proof.holds
