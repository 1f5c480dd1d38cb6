"""Recurrent layers in the file: unrolled, exact, settled, and small where constants repeat."""

import functools

import keras
import numpy as np
import pytest
from integer_networks import operators_of, outputs_of, quantized, random_codes, single
from keras import layers

import speq_keras
from speq_keras.export.tflite.network import Node
from speq_keras.export.tflite.simulate import simulate
from speq_keras.export.tflite.write import write
from speq_keras.recurrent import broken_steps, read_unrolled
from speq_keras.recurrent import layer as layer_module

pytestmark = pytest.mark.tensorflow

STEPS, NUMBERS, UNITS = 6, 3, 4
KINDS = {
    "LSTM": lambda: layers.LSTM(UNITS, name="memory"),
    "LSTM, all outputs, backwards": lambda: layers.LSTM(
        UNITS, return_sequences=True, go_backwards=True, name="memory"
    ),
    "LSTM with ReLU": lambda: layers.LSTM(UNITS, activation="relu", name="memory"),
    "GRU": lambda: layers.GRU(UNITS, name="memory"),
    "GRU, all outputs": lambda: layers.GRU(UNITS, return_sequences=True, name="memory"),
    "GRU without bias": lambda: layers.GRU(UNITS, use_bias=False, name="memory"),
    "GRU, reset before": lambda: layers.GRU(UNITS, reset_after=False, name="memory"),
    "SimpleRNN": lambda: layers.SimpleRNN(UNITS, name="memory"),
    "SimpleRNN with hard sigmoid": lambda: layers.SimpleRNN(
        UNITS, activation="hard_sigmoid", name="memory"
    ),
    "RNN of a GRUCell": lambda: layers.RNN(layers.GRUCell(UNITS), name="memory"),
    "both directions": lambda: layers.Bidirectional(
        layers.GRU(UNITS, return_sequences=True, name="gru"), name="both"
    ),
    "sum of both directions": lambda: layers.Bidirectional(
        layers.LSTM(UNITS, name="lstm"), merge_mode="sum", name="both"
    ),
}


def sequences(count=40, seed=0):
    return np.random.default_rng(seed).normal(size=(count, STEPS, NUMBERS)).astype("float32")


def states_read(x):
    """What a layer returns beside its output is read, too."""
    x, h, c = layers.LSTM(UNITS, return_sequences=True, return_state=True, name="memory")(x)
    return layers.Concatenate()([layers.Flatten()(x), h, c])


def one_layer(make):
    def body(x):
        x = make()(x)
        return layers.Flatten(name="flat")(x) if len(x.shape) > 2 else x

    return body


BODIES = {name: one_layer(make) for name, make in KINDS.items()} | {"states read": states_read}


def wrapped(body, w_bits=4, a_bits=8):
    inputs = keras.Input((STEPS, NUMBERS), name="x")
    x = layers.Dense(NUMBERS, activation="relu", name="first")(inputs)
    x = layers.Dense(5, activation="relu", name="hidden")(body(x))
    network = keras.Model(inputs, layers.Dense(3, name="last")(x))
    rng = np.random.default_rng(2)
    network.set_weights([rng.normal(size=w.shape, scale=0.6) for w in network.get_weights()])
    model = speq_keras.wrap(network, w_bits, a_bits)
    model.calibrate(sequences(), verbose=0)
    return model


@functools.cache
def exported(name, folder, a_bits=8):
    """A settled model, its report, its file and the `fold` of it."""
    model = wrapped(BODIES[name], a_bits=a_bits)
    model.settle()
    path = folder / f"{abs(hash((name, a_bits)))}.tflite"
    report = model.export_tflite(path, data=sequences())
    return model, report, path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("name", BODIES)
def test_the_file_is_the_trained_layer(name, folder):
    _, report, _ = exported(name, folder)
    assert report.proof.holds
    # Every rounding of every step was compared with the trained graph.
    assert report.proof.rounded > 40 * STEPS * UNITS * 4


@pytest.mark.parametrize("name", BODIES)
def test_litert_computes_what_the_folded_network_computes(name, folder):
    model, _, content = exported(name, folder)
    (found,) = outputs_of(content, sequences(seed=1))
    np.testing.assert_array_equal(found, speq_keras.fold(model).predict(sequences(seed=1)))


@pytest.mark.parametrize("name", BODIES)
def test_a_settled_model_predicts_what_its_file_computes(name, folder):
    model, _, content = exported(name, folder)
    (found,) = outputs_of(content, sequences(seed=1))
    predicted = model.predict(sequences(seed=1), verbose=0)
    # The loop of training and the file: the same codes, in floats that are added once more.
    np.testing.assert_allclose(found, predicted, atol=1e-5)


def test_narrow_inputs_of_the_layer_are_exact_too(folder):
    _, report, _ = exported("GRU", folder, a_bits=3)
    assert report.proof.holds


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("keeps_axis", [True, False], ids=["pieces", "places"])
def test_slices_that_are_the_whole_tensor_are_exact_however_many(count, keeps_axis):
    inputs = keras.Input((count, 4))
    x = layers.Dense(4, name="first")(inputs)
    cut = [x[:, n : n + 1, :] if keeps_axis else x[:, n] for n in range(count)]
    y = layers.Flatten()(cut[0])
    for piece in cut[1:]:
        y = layers.Add()([layers.Flatten()(piece), y])
    model = speq_keras.wrap(keras.Model(inputs, layers.Dense(2)(y)), 8, 8, distillation=None)
    arrays = np.random.default_rng(0).normal(size=(16, count, 4)).astype("float32")
    model.calibrate(arrays, verbose=0)
    folded = speq_keras.fold(model)
    (found,) = outputs_of(write(folded.network), arrays)
    np.testing.assert_array_equal(found, folded.predict(arrays))


def test_the_proof_notices_a_layer_that_computes_something_else(folder, monkeypatch):
    model = wrapped(BODIES["LSTM"])
    monkeypatch.setattr(layer_module._Tensors, "sum", lambda self, a, b: a - b)
    with pytest.raises(RuntimeError, match="its steps do not compute what the trained layer"):
        model.export_tflite(folder / "broken.tflite")


def test_the_report_says_what_is_unrolled(folder):
    _, report, _ = exported("both directions", folder)
    unrolled = [note for note in report.notes if note.startswith("Unrolled")]
    assert unrolled == [
        "Unrolled into separate steps that share constants: both.forward_gru, both.backward_gru."
    ]


def test_steps_that_are_right_are_not_called_broken():
    assert broken_steps(read_unrolled(wrapped(BODIES["GRU"]))) == []


def test_nodes_are_named_after_layer_step_and_role():
    names = {node.name for node in read_unrolled(wrapped(BODIES["LSTM"])).nodes}
    assert {"memory.0.cells", "memory.5.states", "memory.inputs.input_sums"} <= names


def test_a_refused_step_is_refused_under_the_name_of_the_layer():
    model = wrapped(one_layer(lambda: layers.SimpleRNN(UNITS, activation="elu", name="memory")))
    assert "memory" in model.plan().file.layers
    assert not [name for name in model.plan().file.layers if name.startswith("memory.")]


@pytest.mark.parametrize(
    ("kind", "role", "has_islands"),
    [
        ("GRU", "resets", True),  # its sums are too far from what is added to them
        ("GRU", "input_sums", True),  # what reads it rounds it again
        ("LSTM", "added", True),
        ("SimpleRNN", "gate_sums", False),  # small codes on a wide grid are all zero
    ],
)
def test_a_step_whose_ranges_no_kernel_takes_is_an_island(kind, role, has_islands, tmp_path):
    model = wrapped(one_layer(lambda: getattr(layers, kind)(UNITS, name="memory")))
    quantizer = model.get_layer("memory").activation_quantizers[role]
    quantizer.alpha.assign(1e6 * quantizer.alpha)
    model.settle()
    report = model.export_tflite(tmp_path / "m.tflite", data=sequences())
    assert report.proof.holds
    notes = [note for note in report.notes if note.startswith("There is no integer kernel")]
    assert bool(notes) == has_islands
    assert all(f"'memory' ({kind}): its" in note for note in notes)
    (found,) = outputs_of((tmp_path / "m.tflite").read_bytes(), sequences())
    predicted = model.predict(sequences(), verbose=0)
    np.testing.assert_allclose(found, predicted, atol=1e-5)


def test_a_bias_that_all_steps_share_moves_once():
    model = wrapped(BODIES["GRU"])
    bias = model.get_layer("memory").layer.cell.bias
    before = keras.ops.convert_to_numpy(bias)
    model.settle()
    again = keras.ops.convert_to_numpy(bias)
    assert 0 < np.abs(again - before).max() < 1e-2
    model.settle()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(bias), again, atol=1e-6)


# ---- what is in the file ---------------------------------------------------------------------


def counts(content):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    names = [name for name, *_ in operators_of(model)]
    return model, {name: names.count(name) for name in names}


def test_inputs_of_all_steps_are_one_unpack_and_gates_one_split(folder):
    _, found = counts(exported("LSTM", folder)[2])
    assert found["UNPACK"] == 1
    assert found["SPLIT"] == STEPS - 1  # the first step forgets nothing: it reads two gates
    # Beside the three dense layers: of all inputs at once, and of every state but zeros.
    assert found["FULLY_CONNECTED"] == 3 + 1 + STEPS - 1
    assert found["LOGISTIC"] == STEPS  # the three gates together
    assert found["TANH"] == 2 * STEPS


def test_constants_stand_in_the_file_once(folder):
    model, _ = counts(exported("LSTM", folder)[2])
    (graph,) = model.subgraphs
    constants = [t for t in graph.tensors if model.buffers[t.buffer].data is not None]
    shapes = [tuple(t.shape) for t in constants]
    assert shapes.count((4 * UNITS, UNITS)) == 1  # the recurrent kernel


def test_a_second_step_adds_no_constants():
    def size_of(steps):
        inputs = keras.Input((steps, NUMBERS))
        model = speq_keras.wrap(keras.Model(inputs, layers.Dense(2)(layers.LSTM(64)(inputs))), 8, 8)
        return model.plan().file.bytes["int8"]

    # 64 * 256 weights; the limit is what 12 operations and 15 tensors take.
    assert size_of(7) - size_of(6) < 1500


# ---- SPLIT and UNPACK ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "axis", "count"), [("split", 2, 3), ("unpack", 1, 5)])
def test_a_kernel_with_several_outputs_is_simulated_bit_for_bit(kind, axis, count):
    x = quantized("x", (None, 5, 6))
    shape = (None, 5, 2) if kind == "split" else (None, 6)
    outputs = [quantized(f"y{number}", shape) for number in range(count)]
    network = single(kind, [x], outputs[0], axis=axis, count=count)
    for output in outputs[1:]:
        network.add_tensor(output)
    network.nodes[0] = Node(
        kind=kind,
        inputs=["x"],
        outputs=[output.name for output in outputs],
        options={"axis": axis, "count": count},
    )
    network.outputs = [output.name for output in outputs]
    network.output_names = list(network.outputs)
    codes = random_codes(0, 4, 5, 6)
    found = outputs_of(write(network, batch_size=4), codes)
    for a, b in zip(found, simulate(network, [codes]), strict=True):
        np.testing.assert_array_equal(a, b)
    pieces = np.split(codes, count, axis=axis)
    for a, b in zip(found, pieces, strict=True):
        np.testing.assert_array_equal(a, b.reshape(a.shape))
