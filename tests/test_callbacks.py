"""`ActivationSnapshot` and `PrecisionReport`: what they find, what they write, what they leave."""

import importlib.util
import struct

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras
from speq_keras import precision
from speq_keras.callbacks import ActivationSnapshot, PrecisionReport, drawing
from speq_keras.callbacks.observation import observe

CLASSES = 3


def data(examples=24):
    random = np.random.default_rng(0)
    x = random.normal(size=(examples, 5)).astype("float32")
    return x, random.integers(0, CLASSES, examples)


def wrapped(*, head="softmax", a_bits=2, depth=2, **arguments):
    """Returns a calibrated model; its quantizers: x, dense, dense_1, ..., the output's input."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((5,), name="x")
    for number in range(depth):
        x = layers.Dense(8, activation="relu", name=f"dense_{number}")(x)
    x = layers.Dropout(0.3)(x)
    outputs = layers.Dense(CLASSES, activation=head, name="last")(x)
    model = keras.Model(inputs, outputs, name="net")
    model = speq_keras.wrap(model, 3, a_bits, **{"seed": 4, **arguments})
    model.calibrate(data()[0], verbose=0)
    return model


def compiled(model=None, loss="sparse_categorical_crossentropy", **arguments):
    model = model or wrapped()
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], **arguments)
    return model


def fit(model, callbacks, *, epochs=2):
    x, y = data()
    arguments = {"batch_size": 8, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(x, y, callbacks=callbacks, **arguments).history


# ---- training is left alone ------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    model = compiled()
    return fit(model, []), model.get_weights(), random_state(model)


def random_state(model):
    return [ops.convert_to_numpy(v).tolist() for v in model.variables if v.dtype != "float32"]


CALLBACKS = {
    "snapshot": lambda folder: ActivationSnapshot(data()[0], folder),
    # A rule that draws, and never the student's own width.
    "report": lambda folder: PrecisionReport(
        data(), draws=2, teacher_precision=precision.UniformMix(5, 8)
    ),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_training_is_bit_equal_to_training_without_the_callback(name, alone, tmp_path):
    history, weights, state = alone
    model = compiled()
    found = fit(model, [CALLBACKS[name](tmp_path)])
    for mine, theirs in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert {key: found[key] for key in history} == history
    assert random_state(model) == state


@pytest.mark.parametrize("name", CALLBACKS)
def test_an_error_leaves_widths_and_quantizers_as_they_were(name, tmp_path, monkeypatch):
    model = compiled()
    callback = CALLBACKS[name](tmp_path)
    callback.set_model(model)
    before = bits_of(model)

    predict, calls = model.predict, []

    def fail(*arguments, **options):
        calls.append(arguments)
        if name == "report" and len(calls) == 1:  # the student; the teacher is next
            return predict(*arguments, **options)
        raise KeyboardInterrupt

    if name == "snapshot":
        monkeypatch.setattr(model.get_layer("last"), "call", fail)
    else:
        monkeypatch.setattr(model, "predict", fail)
    with pytest.raises(KeyboardInterrupt):
        callback.on_epoch_end(0, {})
    assert bits_of(model) == before
    assert all(q.observer is None for q in model.activation_quantizers)


def bits_of(model):
    return [q.bits for q in model.activation_quantizers]


# ---- what a snapshot sees --------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen():
    """{name: Observation} of a model with known clipping levels, and the values that it read."""
    model = wrapped()
    model.get_layer("dense_0_relu_quantizer").alpha.assign(0.6)
    values = {}

    def keep(quantizer, x):
        values[quantizer.name] = ops.convert_to_numpy(x)
        return quantizer.quantized(x)

    x = data()[0]
    for quantizer in model.activation_quantizers:
        quantizer.observer = keep
    model(x)
    observations = observe(model, x, model.activation_quantizers)
    return {o.name: o for o in observations}, values


def test_every_activation_quantizer_is_seen(seen):
    names = [q.name for q in wrapped().activation_quantizers]
    assert list(seen[0]) == names


def test_codes_are_counted_as_the_student_rounds(seen):
    observation, values = seen[0]["dense_0_relu_quantizer"], seen[1]["dense_0_relu_quantizer"]
    codes = np.floor(np.clip(values, 0, 0.6) / 0.2 + 0.5).ravel()  # alpha 0.6, codes 0 to 3
    expected = [np.count_nonzero(codes == code) for code in range(4)]
    assert observation.counts.tolist() == expected
    assert (observation.low_code, observation.high_code) == (0, 3)
    assert observation.scale == pytest.approx(0.2)


def test_the_values_are_those_before_the_quantizer(seen):
    observation, values = seen[0]["dense_0_relu_quantizer"], seen[1]["dense_0_relu_quantizer"]
    np.testing.assert_array_equal(observation.values, values.ravel())


def test_clipped_values_are_those_beyond_half_a_step(seen):
    observation, values = seen[0]["dense_0_relu_quantizer"], seen[1]["dense_0_relu_quantizer"]
    assert observation.clipped == np.count_nonzero(values > 0.7) > 0


def test_signed_codes_are_counted_from_the_lowest(seen):
    observation, values = seen[0]["last_quantizer"], seen[1]["last_quantizer"]
    assert observation.low_code == -128
    codes = np.rint(values / np.float32(observation.scale)).ravel()
    assert observation.counts[128:].sum() == np.count_nonzero(codes >= 0)
    assert observation.counts.sum() == values.size


def test_a_quantizer_that_several_tensors_share_has_what_it_reads_of_all():
    inputs = keras.Input((5,))
    parts = [layers.Dense(4, activation="relu")(inputs), layers.Dense(6, activation="relu")(inputs)]
    x = layers.Dense(4, activation="relu")(layers.Concatenate()(parts))
    model = speq_keras.wrap(keras.Model(inputs, layers.Dense(2)(x)), 3, 3)
    x = data()[0]
    model.calibrate(x, verbose=0)
    calls = [o.size // len(x) for o in observe(model, x, model.activation_quantizers)]
    assert 4 + 6 in calls


def test_float_widths_have_values_and_no_codes():
    model = wrapped()
    model.set_bits(activations=None)
    (observation,) = observe(model, data()[0], [model.get_layer("dense_0_relu_quantizer")])
    assert (observation.scale, observation.counts.sum()) == (None, 0)
    assert observation.values.size == 24 * 8


def test_values_below_a_signed_range_are_clipped_too():
    model, x = wrapped(), 3 * data()[0]
    quantizer = model.get_layer("x_quantizer")
    (observation,) = observe(model, x, [quantizer])
    moved = np.abs(np.asarray(quantizer(x)) - x) > 0.501 * observation.scale
    assert moved[x < 0].any()
    assert observation.clipped == np.count_nonzero(moved)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_values_that_are_not_finite_are_counted_and_left_out(value):
    model = wrapped()
    bias = model.get_layer("dense_0").layer.bias
    bias.assign(bias + float(value))
    (observation,) = observe(model, data()[0], [model.get_layer("dense_0_relu_quantizer")])
    assert observation.not_finite == observation.size == 24 * 8
    assert observation.values.size == 0


@pytest.mark.parametrize("kind", [list, dict])
def test_a_batch_may_be_a_list_or_a_dict(kind, tmp_path):
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
    inputs = [a, b] if kind is list else {"a": a, "b": b}
    x = layers.Dense(6, activation="relu")(layers.Concatenate()([a, b]))
    x = layers.Dense(6, activation="relu")(x)
    model = speq_keras.wrap(keras.Model(inputs, layers.Dense(2, name="last")(x)), 3, 3)
    x = data()[0]
    batch = [x, 2 * x] if kind is list else {"a": x, "b": 2 * x}
    model.calibrate([batch], verbose=0)
    read = [model.get_layer(f"{name}_quantizer") for name in "ab"]
    for observation, values in zip(observe(model, batch, read), (x, 2 * x), strict=True):
        np.testing.assert_array_equal(np.sort(observation.values), np.sort(values, axis=None))
    callback = ActivationSnapshot(batch, tmp_path)
    callback.set_model(model)
    callback.on_epoch_end(0)
    assert (tmp_path / "epoch_0001.png").exists()


# ---- what a snapshot writes ------------------------------------------------------------------


def snapshot(model, folder, *, epochs=(0,), **arguments):
    callback = ActivationSnapshot(data()[0], folder, **arguments)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch in epochs:
        callback.on_epoch_end(epoch)
    callback.on_train_end()
    return sorted(path.name for path in folder.iterdir())


def size_of(path):
    """Returns width and height of a PNG file, in pixels."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return struct.unpack(">II", content[16:24])


def test_a_picture_is_written_every_so_many_epochs(tmp_path):
    folder = tmp_path / "new" / "pictures"
    found = snapshot(wrapped(), folder, epochs=range(6), every=3, layers="x_*")
    assert found == ["epoch_0003.png", "epoch_0006.png"]


def test_more_than_24_quantizers_take_pages(tmp_path):
    found = snapshot(wrapped(depth=24), tmp_path)
    assert found == ["epoch_0001_01.png", "epoch_0001_02.png"]
    assert size_of(tmp_path / found[0])[1] > size_of(tmp_path / found[1])[1]


def panels(observations):
    """Returns the captions and the (upper, lower) axes of all panels of a page."""
    (figure,) = drawing.pages(list(observations), "Epoch 1")
    pairs = zip(figure.axes[::2], figure.axes[1::2], strict=True)
    return {a.get_title(loc="left").split("\n")[0]: (a, b) for a, b in pairs}


def test_a_panel_has_a_line_for_every_level(seen):
    above, _ = panels(seen[0].values())["dense_0_relu_quantizer"]
    lines = [line.get_xdata()[0] for line in above.lines]
    assert lines == pytest.approx([0, 0.2, 0.4, 0.6])


def test_a_panel_has_a_bar_for_every_code_at_its_level(seen):
    observation = seen[0]["dense_0_relu_quantizer"]
    _, below = panels(seen[0].values())["dense_0_relu_quantizer"]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in below.patches]
    assert centres == pytest.approx([0, 0.2, 0.4, 0.6])
    heights = [bar.get_height() for bar in below.patches]
    assert heights == pytest.approx(observation.counts / observation.counts.sum())


def test_a_panel_tells_width_scale_and_how_many_codes_are_used(seen):
    observation = seen[0]["dense_0_relu_quantizer"]
    above, _ = panels([observation])["dense_0_relu_quantizer"]
    clipped = 100 * observation.clipped / observation.size
    caption = above.get_title(loc="left").split("\n")[1]
    assert caption.startswith("2 bits, scale 0.2, 4 of 4 codes, ")
    assert float(caption.split(", ")[3].split(" %")[0]) == pytest.approx(clipped, abs=0.5)


@pytest.mark.parametrize("bits", [2, 4, 5, 8, None])
def test_every_width_can_be_drawn(bits, tmp_path):
    model = wrapped()
    model.set_bits(activations=bits)
    assert snapshot(model, tmp_path) == ["epoch_0001.png"]


def test_a_network_that_diverged_can_be_drawn(tmp_path):
    model = wrapped()
    for variable in model.trainable_variables:
        variable.assign(variable * float("nan"))
    assert snapshot(model, tmp_path) == ["epoch_0001.png"]


def test_a_clipping_level_that_diverged_has_values_and_no_levels():
    model = wrapped()
    quantizer = model.get_layer("dense_0_relu_quantizer")
    quantizer.alpha.assign(float("nan"))
    (observation,) = observe(model, data()[0], [quantizer])
    assert not observation.has_levels
    assert observation.values.size == 24 * 8


def test_names_choose_quantizers(tmp_path):
    model = wrapped()
    callback = ActivationSnapshot(data()[0], tmp_path, layers=["dense_*", "x_quantizer"])
    callback.set_model(model)
    names = [quantizer.name for quantizer in callback.chosen()]
    assert names == [n for n in (q.name for q in model.activation_quantizers) if "last" not in n]


@pytest.mark.tensorflow
def test_tensorboard_gets_a_bucket_per_code(seen, tmp_path):
    import tensorflow as tf

    model = wrapped()
    model.get_layer("dense_0_relu_quantizer").alpha.assign(0.6)
    names = snapshot(model, tmp_path, epochs=[4], tensorboard=True)
    (events,) = [name for name in names if "tfevents" in name]
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(tmp_path / events)):
        for value in event.summary.value:
            assert event.step == 4
            assert value.metadata.plugin_data.plugin_name == "histograms"
            found[value.tag] = tf.make_ndarray(value.tensor)
    assert set(found) == {f"codes/{name}" for name in seen[0]}
    counts = seen[0]["dense_0_relu_quantizer"].counts
    expected = [[code - 0.5, code + 0.5, counts[code]] for code in range(4)]
    assert found["codes/dense_0_relu_quantizer"].tolist() == expected


# ---- what a report finds ---------------------------------------------------------------------


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def outputs_at(model, x, bits):
    """Returns the outputs with one width for each quantizer of the target width."""
    before = [q.bits for q in model.target_quantizers]
    for quantizer, width in zip(model.target_quantizers, bits, strict=True):
        quantizer.bits = int(width)
    outputs = ops.convert_to_numpy(model(x))
    for quantizer, width in zip(model.target_quantizers, before, strict=True):
        quantizer.bits = width
    return outputs


def expected_figures(p, q, y):
    """p: teacher, q: student; both probabilities."""
    return {
        "student_accuracy": np.mean(q.argmax(-1) == y),
        "teacher_accuracy": np.mean(p.argmax(-1) == y),
        "agreement": np.mean(p.argmax(-1) == q.argmax(-1)),
        "distance": np.mean(np.sqrt(((p - q) ** 2).sum(-1))),
    }


@pytest.fixture(scope="module")
def model():
    """All classes occur, and widths make a difference: neither calibrated nor trained well."""
    model = compiled(wrapped(depth=5))
    for quantizer in model.target_quantizers:
        quantizer.alpha.assign(1.0)
    logits = np.log(ops.convert_to_numpy(model(data()[0])))
    model.get_layer("last").layer.bias.assign(logits.mean() - logits.mean(axis=0))
    return model


def test_a_teacher_of_one_width_is_the_network_at_that_width(model):
    x, y = data()
    count = len(model.target_quantizers)
    student, teacher = (outputs_at(model, x, [bits] * count) for bits in (2, 8))
    y[:18] = teacher.argmax(-1)[:18]
    expected = expected_figures(teacher, student, y)
    found = PrecisionReport((x, y), teacher_precision=precision.Fixed(8), batch_size=10)
    assert found.measure(model) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected.values())) == 4  # none can stand for another one


def test_the_teacher_draws_the_widths_of_training_anew_for_every_batch(model, monkeypatch):
    x, y = data()
    drawn = []
    candidates = precision.Bernoulli.candidates

    def spy(self, target_bits, seed):
        rows = candidates(self, target_bits, seed)
        drawn.append(ops.convert_to_numpy(rows)[0])
        return rows

    monkeypatch.setattr(precision.Bernoulli, "candidates", spy)
    found = PrecisionReport((x, y), batch_size=12, draws=3, seed=7).measure(model)
    drawn = drawn[-6:]  # two batches, three teachers each
    assert {8.0, 2.0} == set(np.ravel(drawn))
    assert len({tuple(row) for row in drawn}) > 1
    student = outputs_at(model, x, [2] * len(drawn[0]))
    figures = []
    for number, row in enumerate(drawn):
        part = slice(0, 12) if number < 3 else slice(12, 24)
        teacher = outputs_at(model, x[part], row)
        figures.append(expected_figures(teacher, student[part], y[part]))
    expected = {name: np.mean([f[name] for f in figures]) for name in figures[0]}
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_draws_are_the_same_in_every_epoch(model):
    report = PrecisionReport(data(), batch_size=6)
    assert report.measure(model) == report.measure(model)


def test_the_seed_chooses_the_draws(model):
    distances = {PrecisionReport(data(), seed=s).measure(model)["distance"] for s in range(4)}
    assert len(distances) > 1


def test_a_model_that_is_trained_without_distillation_is_read_as_the_teacher_it_would_be(model):
    plain = compiled(wrapped(depth=5, distillation=None))
    plain.set_weights(model.get_weights())
    assert PrecisionReport(data()).measure(plain) == PrecisionReport(data()).measure(model)


def test_logits_are_softened_before_they_are_compared(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    logits = compiled(wrapped(depth=5, head=None), loss)
    logits.set_weights(model.get_weights())
    expected = PrecisionReport(data()).measure(model)
    assert PrecisionReport(data()).measure(logits) == pytest.approx(expected, abs=1e-5)


def test_one_hot_labels_are_class_numbers(model):
    x, y = data()
    expected = PrecisionReport((x, y)).measure(model)
    assert PrecisionReport((x, np.eye(CLASSES)[y])).measure(model) == expected
    assert PrecisionReport((x, y[:, None])).measure(model) == expected


def test_sample_weights_weigh(model):
    x, y = data()
    weight = np.repeat([0.0, 2.0], 12)
    expected = PrecisionReport((x[12:], y[12:]), teacher_precision=precision.Fixed()).measure(model)
    found = PrecisionReport((x, y, weight), teacher_precision=precision.Fixed()).measure(model)
    assert found == pytest.approx(expected, abs=1e-6)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        x, y = data()
        return x[12 * index :][:12], y[12 * index :][:12]


@pytest.mark.parametrize("form", ["list", "PyDataset"])
def test_batches_are_read_like_arrays(form, model):
    batches = Batches() if form == "PyDataset" else [Batches()[0], Batches()[1]]
    expected = PrecisionReport(data(), batch_size=12).measure(model)
    assert PrecisionReport(batches).measure(model) == pytest.approx(expected, abs=1e-6)


@pytest.mark.tensorflow
def test_a_tf_data_set_is_read_like_arrays(model):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(data()).batch(12)
    expected = PrecisionReport(data(), batch_size=12).measure(model)
    assert PrecisionReport(batches).measure(model) == pytest.approx(expected, abs=1e-6)


def test_the_figures_are_in_the_history_and_the_log_file(tmp_path):
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(compiled(), [PrecisionReport(data()), log])
    names = ["student_accuracy", "teacher_accuracy", "agreement", "distance"]
    assert all(len(history[name]) == 2 for name in names)
    assert set(names) < set((tmp_path / "log.csv").read_text().splitlines()[0].split(","))


def test_the_last_figures_are_those_of_the_trained_model():
    model = compiled()
    report = PrecisionReport(data())
    history = fit(model, [report])
    assert {name: history[name][-1] for name in report.measure(model)} == report.measure(model)


@pytest.mark.parametrize(("verbose", "lines"), [(0, 0), (1, 1)])
def test_a_line_is_printed_on_request_only(verbose, lines, model, capsys):
    report = PrecisionReport(data(), verbose=verbose)
    report.set_model(model)
    report.on_epoch_end(0, {})
    printed = capsys.readouterr().out
    assert printed.count("Epoch 1: student_accuracy") == lines
    assert bool(printed) == bool(lines)


def two_heads():
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((5,), name="x")
    for _ in range(3):
        x = layers.Dense(8, activation="relu")(x)
    outputs = {
        "animal": layers.Dense(CLASSES, activation="softmax", name="animal")(x),
        "tags": layers.Dense(2, activation="sigmoid", name="tags")(x),
        "size": layers.Dense(1, name="size")(x),
    }
    model = speq_keras.wrap(keras.Model(inputs, outputs), 3, 2)
    model.calibrate(data()[0], verbose=0)
    for quantizer in model.target_quantizers:
        quantizer.alpha.assign(0.5)
    model.compile(
        "sgd",
        {"animal": "sparse_categorical_crossentropy", "tags": "binary_crossentropy", "size": "mse"},
    )
    return model


@pytest.fixture(scope="module")
def figures_of_two_heads():
    x, y = data()
    tags = np.random.default_rng(2).integers(0, 2, (24, 2))
    model = two_heads()
    labels = {"animal": y, "tags": tags, "size": x[:, :1]}
    found = PrecisionReport((x, labels), teacher_precision=precision.Fixed()).measure(model)
    count = len(model.target_quantizers)

    def at(bits):
        model.set_bits(activations=bits)
        outputs = {name: ops.convert_to_numpy(value) for name, value in model(x).items()}
        model.set_bits(activations=2)
        return outputs

    assert count > 0
    return found, at(2), at(8), y, tags


def test_figures_of_several_outputs_have_their_names(figures_of_two_heads):
    found, student, teacher, y, _ = figures_of_two_heads
    expected = expected_figures(teacher["animal"], student["animal"], y)
    for name, value in expected.items():
        assert found[f"animal_{name}"] == pytest.approx(value, abs=1e-5)


def test_every_label_of_a_sigmoid_counts(figures_of_two_heads):
    found, student, teacher, _, tags = figures_of_two_heads
    q, p = student["tags"], teacher["tags"]
    assert found["tags_student_accuracy"] == np.mean((q > 0.5) == tags)
    assert found["tags_teacher_accuracy"] == np.mean((p > 0.5) == tags)
    assert found["tags_agreement"] == np.mean((p > 0.5) == (q > 0.5))
    expected = np.mean(np.sqrt(((p - q) ** 2).sum(-1)))
    assert found["tags_distance"] == pytest.approx(expected, abs=1e-5)


def test_outputs_without_classes_have_no_figures(figures_of_two_heads):
    assert not [name for name in figures_of_two_heads[0] if name.startswith("size")]


# ---- co-training -----------------------------------------------------------------------------


def test_both_look_at_the_student_of_a_co_training(tmp_path):
    teacher = keras.Sequential([keras.Input((5,)), layers.Dense(CLASSES, activation="softmax")])
    model = speq_keras.Apprentice(wrapped(), teacher)
    model.compile("sgd", "sparse_categorical_crossentropy")
    callbacks = [PrecisionReport(data()), ActivationSnapshot(data()[0], tmp_path, layers="last*")]
    history = fit(model, callbacks, epochs=1)
    report = PrecisionReport(data())
    assert history["distance"][0] == report.measure(model.student)["distance"]
    assert (tmp_path / "epoch_0001.png").exists()


# ---- errors ----------------------------------------------------------------------------------

X, Y = data()
BAD_ARGUMENTS = {
    "text": (lambda f: ActivationSnapshot("images", f), TypeError, "data of type str"),
    "no examples": (lambda f: ActivationSnapshot(X[:0], f), ValueError, "no examples. Pass at"),
    "infinite": (lambda f: ActivationSnapshot(X / 0, f), ValueError, "`data` must be finite"),
    "directory": (lambda f: ActivationSnapshot(X, 3), TypeError, "Received: directory=3"),
    "a file": (lambda f: ActivationSnapshot(X, __file__), ValueError, "This is a file"),
    "below a file": (lambda f: ActivationSnapshot(X, f"{__file__}/a"), ValueError, "Create '.*py'"),
    "a long name": (lambda f: ActivationSnapshot(X, "m" * 300), ValueError, "name is too long"),
    "a name with NUL": (
        lambda f: ActivationSnapshot(X, "m\0"),
        ValueError,
        "No file can have this",
    ),
    "no names": (lambda f: ActivationSnapshot(X, f, layers=[]), TypeError, r"layers=\[\]"),
    "numbers": (lambda f: ActivationSnapshot(X, f, layers=[3]), TypeError, r"layers=\[3\]"),
    "every": (lambda f: ActivationSnapshot(X, f, every=0), ValueError, "`every` .*every=0"),
    "inputs alone": (lambda f: PrecisionReport(X), TypeError, "data of type ndarray"),
    "a dict": (lambda f: PrecisionReport({"x": X}), TypeError, "data of type dict"),
    "four parts": (lambda f: PrecisionReport((X, Y, Y, Y)), TypeError, "a tuple of 4"),
    "iterator": (
        lambda f: PrecisionReport(iter([(X, Y)])),
        TypeError,
        "It ends after the first time",
    ),
    "batch size": (lambda f: PrecisionReport((X, Y), batch_size=0), ValueError, "batch_size=0"),
    "draws": (lambda f: PrecisionReport((X, Y), draws=0), ValueError, "draws=0"),
    "seed": (lambda f: PrecisionReport((X, Y), seed=None), ValueError, "seed=None"),
    "rule": (
        lambda f: PrecisionReport((X, Y), teacher_precision=8),
        TypeError,
        "teacher_precision=8",
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_an_argument_is_refused(case, tmp_path):
    make, error, sentence = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=sentence):
        make(tmp_path)


@pytest.mark.parametrize("package", ["matplotlib", "tensorflow"])
def test_a_package_that_is_missing_is_named_with_the_command(package, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(RuntimeError, match=rf"not installed\. Run `pip install {package}`\."):
        ActivationSnapshot(X, tmp_path, tensorboard=True)


def float_model():
    inputs = keras.Input((5,))
    return keras.Model(inputs, layers.Dense(CLASSES, activation="softmax")(inputs))


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_float_model_is_refused_before_training(name, tmp_path):
    model = compiled(float_model())
    with pytest.raises(TypeError, match=r"`model` of \w+ must be a SPEQModel. Received: mod"):
        fit(model, [CALLBACKS[name](tmp_path)])


def test_a_name_that_no_quantizer_has_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"layers='conv\*'. Quantizers: x_quantizer, dense_0_relu"):
        fit(compiled(), [ActivationSnapshot(X, tmp_path, layers="conv*")])


def test_float_activations_have_no_teacher():
    model = compiled(wrapped(a_bits=None, distillation=None))
    with pytest.raises(ValueError, match="this model has none. Received: model='net'"):
        fit(model, [PrecisionReport(data())])


def test_outputs_without_classes_are_refused():
    model = compiled(wrapped(head=None, distillation=None), "mse")
    with pytest.raises(ValueError, match=r"compares classes.*Received: outputs \['last'\]"):
        PrecisionReport(data()).measure(model)


def test_greedy_is_refused():
    model = compiled(wrapped(depth=3, teacher_precision=precision.Greedy()))
    with pytest.raises(ValueError, match=r"teacher_precision=Greedy.*precision.Fixed\(8\)"):
        PrecisionReport(data()).measure(model)


def test_labels_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match=r"labels of output 'last' .*labels of shape \(24, 2\)"):
        PrecisionReport((X, np.zeros((24, 2)))).measure(model)


def test_a_batch_without_labels_is_refused(model):
    with pytest.raises(TypeError, match="`data` must be .* Received: a batch without labels"):
        PrecisionReport([X]).measure(model)


def test_data_of_no_examples_is_refused(model):
    with pytest.raises(ValueError, match="must hold examples. Received: none"):
        PrecisionReport([]).measure(model)
