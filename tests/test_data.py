"""Data of every kind: the same result as from plain arrays, an end, and not one batch too many."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from fresh_process import result_of
from keras import layers

import speq_keras
from speq_keras.callbacks import ActivationSnapshot, PrecisionReport
from speq_keras.data import Inputs, class_numbers, inputs_of, packed, peek, read, to_array

EXAMPLES, BATCH, CLASSES = 24, 8, 3
STEPS = EXAMPLES // BATCH


def arrays():
    """Returns the two inputs, whose sizes differ, and class numbers."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(EXAMPLES, 4)), 3 * random.normal(size=(EXAMPLES, 2))
    return a.astype("float32"), b.astype("float32"), random.integers(0, CLASSES, EXAMPLES)


A, B, Y = arrays()
W = np.linspace(0.5, 2.0, EXAMPLES).astype("float32")


def network(inputs):
    x = layers.Concatenate()(inputs) if len(inputs) > 1 else inputs[0]
    x = layers.BatchNormalization(name="norm")(layers.Dense(6)(x))
    x = layers.Dense(6, activation="relu", name="hidden")(layers.ReLU(name="relu")(x))
    return layers.Dense(CLASSES, activation="softmax", name="last")(x)


def wrapped(*sizes, calibrate=True):
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((size,), name=name) for size, name in zip(sizes, "ba", strict=False)]
    model = speq_keras.wrap(keras.Model(inputs, network(inputs)), 3, 3, seed=0)
    if calibrate:
        x = {"b": A, "a": B} if len(sizes) > 1 else A
        model.calibrate(x, batch_size=BATCH, verbose=0)
        model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.fixture(scope="module")
def one():
    return wrapped(4)


@pytest.fixture(scope="module")
def two():
    return wrapped(4, 2)


@pytest.fixture(scope="module")
def folded(one):
    return speq_keras.fold(one)


def slices(*parts):
    """Returns the batches of arrays, as tuples."""
    return [tuple(p[s : s + BATCH] for p in parts) for s in range(0, EXAMPLES, BATCH)]


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class Endless(Batches):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)]


class Indexed:
    """Batches by number, without an end that Python's own loop would find."""

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        return slices(A, Y)[index % STEPS]


class Convertible:
    """Neither an array nor a list; NumPy converts it."""

    def __array__(self, dtype=None, copy=None):
        return A.astype("float64")


class OnDisk:
    """An array that is too large for memory: every slice is counted."""

    def __init__(self):
        self.shape, self.dtype, self.rows = A.shape, A.dtype, 0

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, place):
        self.rows += len(A[place])
        return A[place]


# All with the same examples in the same batches; the labels are not used.
SOURCES = {
    "float64": lambda: A.astype("float64"),
    "tensor": lambda: tf.constant(A),
    "variable": lambda: keras.Variable(A),
    "convertible": Convertible,
    "numbers in lists": lambda: A.tolist(),
    "batches of numbers in lists": lambda: [x.tolist() for (x,) in slices(A)],
    "on a disk": OnDisk,
    "dict": lambda: {"b": A},
    "dict with more in it": lambda: {"b": A, "id": np.array(["text"] * EXAMPLES)},
    "inputs alone in a tuple": lambda: (A,),
    "inputs and labels": lambda: (A, Y),
    "inputs, labels and weights": lambda: (A, Y, W),
    "text as labels": lambda: (A, np.array(["label"] * EXAMPLES)),
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices(A).batch(BATCH),
    "tf.data with labels": lambda: tf.data.Dataset.from_tensor_slices((A, Y)).batch(BATCH),
    "tf.data of dicts": lambda: tf.data.Dataset.from_tensor_slices(({"b": A}, Y)).batch(BATCH),
    "ragged": lambda: [tf.RaggedTensor.from_tensor(x) for (x,) in slices(A)],
    "sparse": lambda: [tf.sparse.from_dense(x) for (x,) in slices(A)],
    "generator": lambda: (batch for batch in slices(A, Y, W)),
    "iterator": lambda: iter(slices(A)),
    "PyDataset": lambda: Batches(slices(A, Y)),
    "indexed": Indexed,
    "list of arrays": lambda: [x for (x,) in slices(A)],
    "list of lists": lambda: [list(batch) for batch in slices(A, Y)],
    "with an empty batch": lambda: [A[:0], *(x for (x,) in slices(A))],
}
# Those that are arrays, not batches.
WHOLE = [*list(SOURCES)[:5], *list(SOURCES)[6:13]]
# Of two inputs, "b" and "a".
SOURCES_OF_TWO = {
    "list": lambda: [A, B],
    "tuple": lambda: (A, B),
    "tuple with labels": lambda: ((A, B), Y),
    "list with labels": lambda: ([A, B], Y, W),
    "dict": lambda: {"a": B, "b": A},
    "list of lists": lambda: [list(batch) for batch in slices(A, B)],
    "list of dicts": lambda: [{"a": b, "b": a} for a, b in slices(A, B)],
    "tf.data of tuples": lambda: tf.data.Dataset.from_tensor_slices((A, B)).batch(BATCH),
    "tf.data with labels": lambda: tf.data.Dataset.from_tensor_slices(((A, B), Y)).batch(BATCH),
    "generator": lambda: (((a, b), y) for a, b, y in slices(A, B, Y)),
    "PyDataset of dicts": lambda: Batches([({"a": b, "b": a}, y) for a, b, y in slices(A, B, Y)]),
}


def values(model, *names):
    return {v.path: np.asarray(v.value).tolist() for v in model.variables if v.name in names}


RANGES = ("alpha", "range_low", "range_high")
STATISTICS = ("moving_mean", "moving_variance")


@pytest.mark.parametrize("source", SOURCES)
def test_ranges_are_those_from_arrays(one, source):
    expected = values(one, *RANGES)
    for quantizer in one.activation_quantizers:
        quantizer.multiply_scale(2.0)
    one.calibrate(SOURCES[source](), batch_size=BATCH, verbose=0)
    assert values(one, *RANGES) == expected


@pytest.mark.parametrize("source", SOURCES_OF_TWO)
def test_ranges_of_several_inputs_are_those_from_arrays_by_name(two, source):
    expected = values(two, *RANGES)
    for quantizer in two.activation_quantizers:
        quantizer.multiply_scale(2.0)
    two.calibrate(SOURCES_OF_TWO[source](), batch_size=BATCH, verbose=0)
    assert values(two, *RANGES) == expected


@pytest.mark.parametrize("source", SOURCES)
def test_statistics_are_those_from_arrays(source):
    model, other = wrapped(4), wrapped(4)
    model.reestimate_batch_norm(SOURCES[source](), batch_size=BATCH)
    other.reestimate_batch_norm(A, batch_size=BATCH)
    assert values(model, *STATISTICS) == values(other, *STATISTICS)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("method", ["predict", "predict_float"])
def test_the_folded_network_predicts_all_kinds(folded, method, source):
    outputs = getattr(folded, method)(SOURCES[source]())
    np.testing.assert_array_equal(outputs, getattr(folded, method)(A))


@pytest.mark.parametrize("source", SOURCES_OF_TWO)
def test_the_folded_network_predicts_several_inputs(two, source):
    folded = speq_keras.fold(two)
    expected = folded.predict({"b": A, "a": B})
    np.testing.assert_array_equal(folded.predict(SOURCES_OF_TWO[source]()), expected)


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_inputs_go_by_the_keys_of_the_dict_that_a_model_was_made_with():
    keras.utils.set_random_seed(0)
    inputs = {"second": keras.Input((4,), name="b"), "first": keras.Input((2,), name="a")}
    model = keras.Model(inputs, network([inputs["second"], inputs["first"]]))
    model = speq_keras.wrap(model, 3, 3, distillation=None)
    model.calibrate({"second": A, "first": B}, verbose=0)
    folded = speq_keras.fold(model)
    expected = folded.predict({"b": A, "a": B})
    np.testing.assert_array_equal(folded.predict({"second": A, "first": B}), expected)


LABELLED = {
    "pair": lambda: (A, Y),
    "triple": lambda: (A, Y, W),
    "one-hot": lambda: (A, np.eye(CLASSES, dtype="float32")[Y]),
    "column": lambda: (A, Y[:, None]),
    "labels in a list": lambda: (A, Y.tolist()),
    "labels of the only output": lambda: (A, [Y]),
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices((A, Y)).batch(BATCH),
    "PyDataset": lambda: Batches(slices(A, Y)),
    "list": lambda: slices(A, Y),
    "list of lists": lambda: [list(batch) for batch in slices(A, Y)],
    "indexed": Indexed,
}
ONCE = {
    "generator": lambda: (batch for batch in slices(A, Y, W)),
    "iterator": lambda: iter(slices(A, Y)),
}


def accuracy(folded):
    return float(np.mean(folded.predict(A).argmax(axis=-1) == Y))


@pytest.mark.parametrize("source", [*LABELLED, *ONCE])
def test_accuracy_is_that_of_arrays(folded, source):
    assert folded.evaluate({**LABELLED, **ONCE}[source]()) == accuracy(folded)


@pytest.mark.parametrize("source", [*LABELLED, *ONCE])
def test_an_export_measures_all_labelled_batches(one, folded, source, tmp_path):
    report = one.export_tflite(tmp_path / "m.tflite", data={**LABELLED, **ONCE}[source]())
    assert report.proof.examples == report.accuracy.examples == EXAMPLES
    assert report.accuracy.folded == report.accuracy.file == accuracy(folded)


@pytest.mark.parametrize("source", ["dict", "tf.data", "generator", "PyDataset", "iterator"])
def test_an_export_proves_with_all_kinds(one, source, tmp_path):
    report = one.export_tflite(tmp_path / "m.tflite", data=SOURCES[source]())
    assert (report.proof.examples, report.proof.generated) == (EXAMPLES, False)


@pytest.mark.parametrize("source", SOURCES_OF_TWO)
def test_an_export_of_several_inputs_proves_with_all_kinds(two, source, tmp_path):
    report = two.export_tflite(tmp_path / "m.tflite", data=SOURCES_OF_TWO[source]())
    assert (report.proof.examples, report.proof.generated) == (EXAMPLES, False)


def test_small_batches_give_the_proof_its_32_examples_too(one, tmp_path):
    data = [x[None] for x in np.concatenate([A, A])]
    assert one.export_tflite(tmp_path / "m.tflite", data=data).proof.examples == 32


@pytest.mark.parametrize("source", LABELLED)
def test_a_precision_report_is_that_of_arrays(one, source):
    expected = PrecisionReport((A, Y, W) if source == "triple" else (A, Y), batch_size=BATCH)
    found = PrecisionReport(LABELLED[source](), batch_size=BATCH)
    assert found.measure(one) == expected.measure(one)


@pytest.mark.parametrize("source", ["pair", "tf.data", "PyDataset", "list", "list of lists"])
def test_a_bit_search_is_that_of_arrays(one, source):
    arguments = {"size_bytes": 1000, "widths": (2, 4), "batch_size": BATCH}
    expected = speq_keras.search_bits(one, (A, Y), **arguments)
    found = speq_keras.search_bits(one, LABELLED[source](), **arguments)
    assert found.loss == pytest.approx(expected.loss)
    assert found.changes == {k: pytest.approx(v) for k, v in expected.changes.items()}


@pytest.mark.parametrize("source", SOURCES)
def test_a_snapshot_is_of_the_arrays_or_of_the_first_batch(one, source, tmp_path):
    snapshot = ActivationSnapshot(SOURCES[source](), tmp_path)
    snapshot.set_model(one)
    is_whole = source in WHOLE
    for _ in range(2):  # what can be read once is read once
        (x,) = snapshot._batch()
        np.testing.assert_array_equal(x, A if is_whole else A[:BATCH])


@pytest.mark.parametrize("source", ["dict", "tf.data with labels", "PyDataset", "list of arrays"])
@pytest.mark.filterwarnings("ignore:Training is plain, without distillation")
def test_widths_are_lowered_with_the_ranges_of_arrays(source):
    found = []
    for data in (A if source == "dict" else slices(A), SOURCES[source]()):
        model = wrapped(4)
        callback = speq_keras.LowerWidths({0: 8, 1: 3}, calibration_data=data)
        model.fit(A, Y, epochs=2, callbacks=[callback], batch_size=EXAMPLES, verbose=0)
        found.append(values(model, *RANGES))
    assert found[0] == found[1]


# ---- the end ---------------------------------------------------------------------------------

ENDLESS = {
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices((A, Y)).batch(BATCH).repeat(),
    "PyDataset": lambda: Endless(slices(A, Y)),
    "cycle": lambda: itertools.cycle(slices(A, Y)),
}


def export(model, path):
    def call(data, steps=None):
        report = model.export_tflite(path / "m.tflite", data=data, steps=steps)
        return report.accuracy

    return call


def readers(model, path):
    """Returns {name: function of (data, steps)} that gives something to compare."""
    folded = speq_keras.fold(model)

    def calibrate(data, steps=None):
        model.calibrate(data, steps=steps, batch_size=BATCH, verbose=0)
        return values(model, *RANGES)

    def reestimate(data, steps=None):
        before = [np.asarray(v.value) for v in model.get_layer("norm").variables]
        model.reestimate_batch_norm(data, steps=steps, batch_size=BATCH)
        found = values(model, *STATISTICS)
        for variable, value in zip(model.get_layer("norm").variables, before, strict=True):
            variable.assign(value)
        return found

    return {
        "calibrate": calibrate,
        "reestimate_batch_norm": reestimate,
        "export_tflite": export(model, path),
        "predict": lambda data, steps=None: folded.predict(data, steps=steps).tolist(),
        "predict_float": lambda data, steps=None: folded.predict_float(data, steps=steps).tolist(),
        "evaluate": lambda data, steps=None: folded.evaluate(data, steps=steps),
        "PrecisionReport": lambda data, steps=None: PrecisionReport(
            data, steps=steps, batch_size=BATCH
        ).measure(model),
        "search_bits": lambda data, steps=None: (
            speq_keras.search_bits(
                model, data, steps=steps, size_bytes=1000, widths=(2, 4), batch_size=BATCH
            ).loss
        ),
    }


READERS = [
    "calibrate",
    "reestimate_batch_norm",
    "export_tflite",
    "predict",
    "predict_float",
    "evaluate",
    "PrecisionReport",
    "search_bits",
]
ONLY_ONCE = {("PrecisionReport", "cycle"), ("search_bits", "cycle")}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("reader", READERS)
def test_data_without_end_needs_steps(one, tmp_path, reader, kind):
    call = readers(one, tmp_path)[reader]
    if (reader, kind) in ONLY_ONCE:
        with pytest.raises(TypeError, match="which can be read many times"):
            call(ENDLESS[kind](), 3)
        return
    name = {"predict": "inputs", "predict_float": "inputs", "evaluate": "x"}.get(reader, "data")
    with pytest.raises(ValueError, match=f"`{name}` must end, or `steps` say .* has no end"):
        call(ENDLESS[kind]())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("reader", READERS)
def test_with_steps_data_without_end_are_their_first_batches(one, tmp_path, reader, kind):
    if (reader, kind) in ONLY_ONCE:
        pytest.skip("it ends with the first time that it is gone through")
    call = readers(one, tmp_path)[reader]
    found, expected = call(ENDLESS[kind](), STEPS), call(slices(A, Y))
    if isinstance(expected, float):  # Keras adds losses up in another order
        expected = pytest.approx(expected, rel=1e-6)
    assert found == expected


def test_lowering_widths_needs_steps_for_data_without_end():
    data = ENDLESS["tf.data"]()
    with pytest.raises(ValueError, match="must end, or `calibration_steps` say"):
        speq_keras.LowerWidths({0: 8, 1: 3}, calibration_data=data)
    callback = speq_keras.LowerWidths({0: 3}, calibration_data=data, calibration_steps=STEPS)
    model, other = wrapped(4), wrapped(4)
    model.set_bits(activations=8)
    callback.set_model(model)
    callback.on_epoch_begin(0)
    other.calibrate(A, batch_size=BATCH, training=True, verbose=0)
    assert values(model, *RANGES) == values(other, *RANGES)


def test_training_begins_on_data_without_end():
    model = wrapped(4, calibrate=False)
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match="not calibrated"):
        model.fit(ENDLESS["tf.data"](), steps_per_epoch=2, verbose=0)
    assert model.is_calibrated


def test_a_py_dataset_without_a_length_is_named():
    class NoLength(keras.utils.PyDataset):
        def __getitem__(self, index):
            return A

    with pytest.raises(TypeError, match="must say how many batches it has. Received: NoLength"):
        wrapped(4).calibrate(NoLength(), verbose=0)


# ---- not one too many ------------------------------------------------------------------------


def counted(batches):
    """Returns a generator, and a list that grows by what it has given."""
    given = []

    def generate():
        for batch in batches:
            given.append(batch)
            yield batch

    return generate(), given


@pytest.mark.parametrize("reader", [name for name in READERS if name not in dict(ONLY_ONCE)])
def test_of_a_generator_no_more_than_steps_is_taken(one, tmp_path, reader):
    generator, given = counted(10 * slices(A, Y))
    readers(one, tmp_path)[reader](generator, 2)
    assert len(given) == 2
    assert len(list(generator)) == 10 * STEPS - 2  # whoever goes on with it finds all the others


def test_a_proof_without_labels_takes_32_examples_from_a_generator(one, tmp_path):
    generator, given = counted(10 * [x for (x,) in slices(A)])
    report = one.export_tflite(tmp_path / "m.tflite", data=generator)
    assert (len(given), report.proof.examples) == (32 // BATCH, 32)


def test_a_snapshot_takes_one_batch_from_a_generator(one, tmp_path):
    generator, given = counted(slices(A))
    snapshot = ActivationSnapshot(generator, tmp_path)
    snapshot.set_model(one)
    for _ in range(2):
        snapshot.on_train_begin()
    assert len(given) == 1


def test_of_an_array_on_a_disk_only_the_steps_are_read(one):
    data = OnDisk()
    one.calibrate(data, batch_size=BATCH, steps=2, verbose=0)
    assert data.rows == 2 * BATCH
    one.calibrate(A, batch_size=BATCH, verbose=0)


def test_of_the_labels_that_nobody_asked_for_none_is_read():
    class Labels:
        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read")

    inputs = Inputs(names=("x",), shapes=((4,),), dtypes=("float32",))
    (batch,) = read((A, Labels()), inputs)
    assert batch.y is None


# ---- the reader ------------------------------------------------------------------------------

X = Inputs(names=("x",), shapes=((4,),), dtypes=("float32",))


def test_batches_have_the_dtypes_of_the_inputs():
    inputs = Inputs(names=("x", "ids"), shapes=((2,), (3,)), dtypes=("float32", "int32"))
    (batch,) = read([np.ones((1, 2), "float64"), np.ones((1, 3), "uint8")], inputs)
    assert [array.dtype for array in batch.x] == ["float32", "int32"]


def test_bfloat16_is_read():
    (array,) = X.arrays(tf.constant([[1.5, 2.0, 3.0, 4.0]], "bfloat16"))
    assert array.tolist() == [[1.5, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("given", "shape"), [((5, 4, 1), (4,)), ((5, 4), (4, 1)), ((5,), (1,)), ((5, 1), ())]
)
def test_a_last_axis_of_one_comes_and_goes_as_in_keras(given, shape):
    inputs = Inputs(names=("x",), shapes=(shape,), dtypes=("float32",))
    model = keras.Model(i := keras.Input(shape), layers.Rescaling(1.0)(i))
    values = np.arange(np.prod(given), dtype="float32").reshape(given)
    (array,) = inputs.arrays(values)
    np.testing.assert_array_equal(array, model(values))


def test_open_sizes_are_open():
    inputs = Inputs(names=("x",), shapes=((None, 2),), dtypes=("float32",))
    assert [batch.x[0].shape for batch in read([np.ones((1, s, 2)) for s in (3, 5)], inputs)] == [
        (1, 3, 2),
        (1, 5, 2),
    ]


def test_labels_and_weights_keep_their_structure():
    data = (A, {"p": Y, "q": [Y, None]}, {"p": W})
    batches = list(read(data, X, batch_size=BATCH, labels=True))
    assert len(batches) == STEPS
    np.testing.assert_array_equal(batches[1].y["p"], Y[BATCH : 2 * BATCH])
    np.testing.assert_array_equal(batches[1].y["q"][0], Y[BATCH : 2 * BATCH])
    assert batches[1].y["q"][1] is None
    np.testing.assert_array_equal(batches[2].sample_weight["p"], W[2 * BATCH :])


def test_what_is_packed_is_what_the_model_takes(two):
    assert [x.shape for x in packed(two, inputs_of(two).arrays({"a": B, "b": A}))] == [
        (EXAMPLES, 4),
        (EXAMPLES, 2),
    ]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_tuple_given_to_fit_is_the_inputs(two, kind):
    first, x = peek(kind([A, B]), inputs_of(two), BATCH)
    np.testing.assert_array_equal(first[1], B[:BATCH])
    assert type(x) is kind


def test_all_arrays_are_checked_before_the_first_batch_is_made():
    data = A.copy()
    data[-1] = np.nan
    with pytest.raises(ValueError, match="`data` must be finite"):
        read(data, X, batch_size=1)
    assert len(list(read(data, X, batch_size=1, steps=EXAMPLES - 1))) == EXAMPLES - 1


@pytest.mark.parametrize(
    ("labels", "shape", "expected"),
    [
        ([2, 0], (2, 3), [2, 0]),
        ([[2], [0]], (2, 3), [2, 0]),
        ([[0, 0, 1], [1, 0, 0]], (2, 3), [2, 0]),
        ([[0, 1], [1, 1]], (2, 2, 3), [[0, 1], [1, 1]]),
        ([[1], [0]], (2, 1), [1, 0]),
    ],
)
def test_class_numbers_come_from_numbers_and_from_one_hot(labels, shape, expected):
    assert class_numbers(np.array(labels), shape).tolist() == expected


@pytest.mark.parametrize("value", [tf.constant([1, 2]), keras.Variable([1.0, 2.0]), [1, 2], (1, 2)])
def test_numbers_become_an_array(value):
    assert to_array(value, "data").tolist() == [1, 2]


# ---- without TensorFlow ----------------------------------------------------------------------

ON_JAX = """
import json, sys
sys.modules["tensorflow"] = None  # not installed: Keras itself would import it
import keras, numpy as np
import speq_keras

x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
dense = [keras.layers.Dense(4) for _ in range(3)]
model = speq_keras.wrap(keras.Sequential([keras.Input((6,)), *dense]), 3, 3, distillation=None)

class Batches(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return x[8 * (index % 2) : 8 * (index % 2) + 8], np.zeros(8)

ranges = []
sources = (x, keras.ops.convert_to_tensor(x), (x, np.zeros(16)), (x[s : s + 8] for s in (0, 8)))
for data in (*sources, Batches()):
    model.calibrate(data, batch_size=8, steps=2, verbose=0)
    ranges.append([float(q.step(8)) for q in model.activation_quantizers])
folded = speq_keras.fold(model)
same = bool((folded.predict(Batches(), steps=2) == folded.predict(x)).all())
equal = all(row == ranges[0] for row in ranges)
print(json.dumps({"equal": equal, "same": same, "tensorflow": bool(sys.modules["tensorflow"])}))
"""


def test_on_jax_all_kinds_are_read_without_tensorflow():
    pytest.importorskip("jax")
    found = result_of(ON_JAX, KERAS_BACKEND="jax")
    assert found == {"equal": True, "same": True, "tensorflow": False}
