"""What `plan()` says of the file before training, and what export then does."""

import functools
import re

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras
from speq_keras.__main__ import main
from speq_keras.export.tflite.inspect import inspect

STORAGES = ("int8", "int4", "int2", "smallest")


def images(body=lambda x: x, shape=(8, 8, 3), head=True):
    """A network of three layers with weights, and `body` after the first one."""
    keras.utils.clear_session()  # operations are numbered
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(6, 1, activation="relu", name="middle")(body(x))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    outputs = layers.Dense(3, activation="softmax", name="last")(x) if head else x
    return keras.Model(inputs, outputs, name="net")


def residual(x):
    y = layers.Conv2D(4, 3, padding="same", use_bias=False, name="inner")(x)
    y = layers.ReLU(name="inner_relu")(layers.BatchNormalization(name="norm")(y))
    return layers.Dropout(0.1, name="drop")(layers.Add(name="sum")([x, y]))


def islands(x):
    x = layers.LayerNormalization(name="first_norm")(x)
    x = layers.Conv2D(4, 1, activation="relu", name="between")(x)
    return layers.LayerNormalization(name="second_norm")(x)


def ordered(x):
    return layers.Dropout(0.1, name="drop")(ops.sort(x, axis=1))


def recurrent(x):
    return layers.ConvLSTM1D(4, 1, return_sequences=True, name="memory")(x)


def several(x):
    """Refused three times, one behind the other and beside each other; a float island after all."""
    a, b = ops.sort(x, axis=1), ops.sort(x, axis=2)
    a = layers.Conv2D(4, 1, activation="relu", name="after")(a)
    x = layers.Add(name="sum")([ops.sort(a, axis=2), b])
    return layers.LayerNormalization(name="norm")(x)


def groups_of_rows(x):
    """Folding takes it, and no kernel has it: refused by the lowering."""
    return layers.GroupNormalization(groups=2, axis=1, name="rows")(x)


def refused_twice(x):
    """One layer refused by folding, and one by the lowering."""
    return groups_of_rows(ops.sort(x, axis=1))


def no_float_kernel_at_the_end():
    """Nothing rounds the output, so its activation computes in float, and has no kernel for it."""
    model = images()
    outputs = layers.Dense(2, activation="sparse_sigmoid", name="end")(
        model.get_layer("mean").output
    )
    return keras.Model(model.inputs[0], outputs, name="net")


NETWORKS = {
    "integer": images,
    "residual": lambda: images(residual),
    "islands": lambda: images(islands),
    "refused by folding": lambda: images(ordered),
    "recurrent": lambda: images(recurrent),
    "several": lambda: images(several),
    "refused by lowering": lambda: images(groups_of_rows),
    "refused by both": lambda: images(refused_twice),
    "no float kernel at the end": no_float_kernel_at_the_end,
    "open sizes": lambda: images(shape=(None, None, 3)),
    "islands at the end": lambda: images(head=False),
}
ISLANDS = {"islands": ["first_norm", "second_norm"], "several": ["norm"]}
REFUSED = {
    "refused by folding": {"sort"},
    "recurrent": {"memory"},
    "several": {"sort", "sort_1", "sort_2"},
    "refused by lowering": {"rows"},
    "no float kernel at the end": {"end_sparse_sigmoid"},
    "refused by both": {"sort", "rows"},
}


def wrapped(name, **arguments):
    arguments = {"w_bits": 3, "a_bits": 3, "distillation": None, "seed": 0, **arguments}
    return speq_keras.wrap(NETWORKS[name](), **arguments)


@functools.cache
def plan_of(name):
    """The plan of a network that was never calibrated."""
    return wrapped(name).plan()


def calibrated(model, seed=0):
    x = np.random.default_rng(seed).uniform(0, 1, (8, 8, 8, 3)).astype("float32")
    model.calibrate(x, verbose=0)
    return model


def last_line(plan):
    return str(plan).splitlines()[-1]


def exported(model, path, **arguments):
    """Returns (report, None), or (None, the sentence of the refusal)."""
    try:
        return model.export_tflite(path, **arguments), None
    except ValueError as error:
        return None, str(error)


def refused_by(plan):
    """Returns {layer: (class, reason)} of a plan."""
    return {problem.layer: (problem.type, problem.reason) for problem in plan.file.problems}


def refused_in(sentence):
    """Returns {layer: (class, reason)} of a refusal."""
    listed = sentence.split(" with ", 1)[1].split(". Replace these")[0]
    parts = [re.fullmatch(r"'(.+?)' \((\w+)\): (.+)", part) for part in listed.split("; ")]
    return {part[1]: (part[2], part[3]) for part in parts}


# ---- the verdict and the export ----------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_verdict_is_what_export_does(name, tmp_path):
    model = wrapped(name)
    before = model.plan()
    after = calibrated(model).plan()
    report, sentence = exported(model, tmp_path / "m.tflite")
    assert (before.file.is_calibrated, after.file.is_calibrated) == (False, True)
    for plan in (before, after):
        assert plan.file.is_refused == (report is None)
        if report is not None:
            check_written(plan, report)
        elif name == "open sizes":
            assert last_line(plan) == f"Export refuses this model: {sentence}"
        else:
            check_refused(plan, sentence)


def check_written(plan, report):
    notes = [note for note in report.notes if note.startswith("Computed in float: ")]
    found = notes[0].removeprefix("Computed in float: ").split(". ")[0] if notes else ""
    assert ", ".join(plan.file.islands) == found
    assert last_line(plan).startswith("Export writes this model")
    assert "refused" not in str(plan)


def check_refused(plan, sentence):
    refused = refused_by(plan)
    assert refused == refused_in(sentence)
    for layer, (class_name, reason) in refused.items():
        assert plan.row(layer).in_file == f"refused: {reason}"
        assert f"'{layer}' ({class_name}): {reason}" in last_line(plan)


@pytest.mark.parametrize("name", REFUSED)
def test_all_refused_layers_are_named_at_once(name):
    plan = plan_of(name)
    assert {p.layer for p in plan.file.problems} == REFUSED[name]
    assert all(layer in last_line(plan) for layer in REFUSED[name])


@pytest.mark.parametrize("name", ISLANDS)
def test_float_islands_are_told_layer_by_layer(name):
    plan = plan_of(name)
    rows = [row.name for row in plan.rows if row.in_file == "float island"]
    assert rows == ISLANDS[name]


def test_every_layer_and_operation_has_its_row():
    rows = {row.name: row.in_file for row in plan_of("residual").rows}
    assert rows == {
        **dict.fromkeys(["first", "first_relu", "inner", "norm", "inner_relu", "sum"], "integer"),
        "drop": "left out: it passes its input on",
        **dict.fromkeys(["middle", "middle_relu", "mean", "last", "last_softmax"], "integer"),
    }


def test_zeros_that_a_convolution_adds_itself_are_in_the_file_as_integers():
    def padded(x):
        x = layers.ZeroPadding2D(1, name="zeros")(x)
        return layers.Conv2D(4, 3, activation="relu", name="reader")(x)

    model = speq_keras.wrap(images(padded), 3, 3, distillation=None)
    assert model.plan().row("zeros").in_file == "integer"
    assert "pad" not in {node.kind for node in speq_keras.fold(calibrated(model)).network.nodes}


def test_operations_have_a_row():
    plan = plan_of("several")
    refused = [row.type for row in plan.rows if row.in_file.startswith("refused")]
    assert refused == ["Sort"] * 3


def test_a_layer_that_makes_several_tensors_is_refused_by_name():
    def body(x):
        return layers.Activation("relu", name="both")([x, x])[0]

    plan = speq_keras.wrap(images(body), 3, 3, distillation=None).plan()
    assert refused_by(plan) == {"both": ("Activation", "it has several outputs")}


def test_layers_after_a_refused_one_are_checked():
    rows = {row.name: row.in_file for row in plan_of("several").rows}
    assert rows["after"] == rows["middle"] == rows["last"] == "integer"
    assert rows["norm"] == "float island"


def test_a_layer_read_as_codes_and_as_floats_is_both():
    def body(x):
        y = layers.Conv2D(4, 1, name="read_twice")(x)
        return layers.Add()([layers.LayerNormalization(name="norm")(y), y])

    model = speq_keras.wrap(images(body), 3, 3, distillation=None)
    rows = {row.name: row.in_file for row in model.plan().rows}
    steps = speq_keras.fold(calibrated(model)).folded.steps
    steps = [step for step in steps if "read_twice" in [node.name for node in step.nodes]]
    kinds = {"float" if step.is_float else step.kind for step in steps}
    expected = {
        frozenset(["linear"]): "integer",
        frozenset(["float"]): "float island",
        frozenset(["linear", "float"]): "integer, and float island",
    }
    assert rows["read_twice"] == expected[frozenset(kinds)]


# ---- widths --------------------------------------------------------------------------------------


def test_float_activations_are_the_last_line_of_the_plan(tmp_path):
    model = calibrated(wrapped("islands"))
    model.set_bits(activations=None)
    _, sentence = exported(model, tmp_path / "m.tflite")
    plan = model.plan()
    assert last_line(plan) == f"Export refuses this model: {sentence}"
    assert plan.row("between").in_file == "integer"
    assert plan.row("first_norm").in_file == "float island"


def check_in_float(model, layer, reason, path):
    """A layer that no integer kernel computes is an island: the plan and the file say why."""
    report, _ = exported(model, path)
    in_file = model.plan().row(layer).in_file
    assert in_file.startswith("float island: ")
    assert reason in in_file
    assert any(f"'{layer}'" in note and reason in note for note in report.notes)
    assert report.proof.holds


def test_float_weights_are_in_float_and_said_so(tmp_path):
    model = calibrated(wrapped("integer"))
    model.set_bits(weights=None)
    check_in_float(model, "middle", "are not whole multiples", tmp_path / "m.tflite")


@pytest.mark.parametrize("widths", [{"a_bits": None}, {"w_bits": None}], ids=["a_bits", "w_bits"])
def test_a_side_in_float_is_told_as_export_does_it(widths):
    model = wrapped("integer", **widths)
    plan = model.plan()
    assert not plan.file.is_refused
    note = f"Computed in float: {', '.join(plan.file.islands)}."
    assert any(line.startswith(note) for line in speq_keras.fold(calibrated(model)).notes)


def test_weights_that_diverged_are_the_last_line(tmp_path):
    model = calibrated(wrapped("integer"))
    model.get_layer("first").layer.kernel.assign(np.full((3, 3, 3, 4), np.nan))
    _, sentence = exported(model, tmp_path / "m.tflite")
    assert last_line(model.plan()) == f"Export refuses this model: {sentence}"


def test_a_wrong_quantizer_of_weights_is_told(tmp_path):
    model = calibrated(wrapped("integer", weight_quantizer="dorefa"))
    model.set_bits(weights=8)
    check_in_float(model, "middle", "DoReFa are not whole multiples", tmp_path / "m.tflite")


def test_a_quantizer_without_a_grid_is_refused_by_name(tmp_path, monkeypatch):
    """As of tfmot, of a user's own: its `grid` says so."""
    model = calibrated(wrapped("integer"))
    quantizer = model.get_layer("first_relu_quantizer")

    def grid():
        raise ValueError("Activations must be on a grid that is known.")

    monkeypatch.setattr(quantizer, "grid", grid)
    _, sentence = exported(model, tmp_path / "m.tflite")
    refused = {"first_relu_quantizer": ("PACT", "Activations must be on a grid that is known.")}
    assert refused_by(model.plan()) == refused
    assert f"'first_relu_quantizer' (PACT): {refused['first_relu_quantizer'][1]}" in sentence
    assert next(row for row in model.report().ranges if row.name == quantizer.name).scale is None


# ---- what depends on ranges ------------------------------------------------------------------


def wide_sums(model):
    """Makes the sums of "middle" more than 256 steps of its output wide."""
    kernel = model.get_layer("middle").layer.kernel
    kernel.assign(1e6 * kernel)
    return model


def test_an_island_by_ranges_is_told_once_they_are_set(tmp_path):
    model = wide_sums(calibrated(wrapped("integer")))
    check_in_float(model, "middle", "output steps wide", tmp_path / "m.tflite")


def test_ranges_that_were_never_set_refuse_nothing():
    plan = wide_sums(wrapped("integer")).plan()
    assert not plan.file.is_refused
    assert last_line(plan).endswith("what depends on ranges is checked at export.")


def test_a_storage_alone_may_need_an_island(tmp_path):
    model = calibrated(wrapped("integer"))
    kernel = model.get_layer("middle").layer.kernel

    def islands_with(storage):
        report, _ = exported(model, tmp_path / "m.tflite", storage=storage)
        assert report.proof.holds
        return [note for note in report.notes if note.startswith("There is no integer kernel")]

    for _ in range(40):  # stored codes are smaller in narrow containers, and scales larger
        kernel.assign(2.0 * kernel)
        if islands_with("smallest"):
            break
    assert "'middle' (Conv2D)" in islands_with("smallest")[0]
    assert islands_with("int8") == []
    assert model.plan().file.islands == ()


def test_stand_ins_are_not_equal_by_accident():
    inputs = keras.Input((4,))
    a = layers.Dense(4, activation="relu", name="a")(inputs)
    b = layers.Dense(4, activation="relu", name="b")(inputs)
    x = layers.Dense(2, name="last")(layers.Add(name="sum")([a, b]))
    model = speq_keras.wrap(keras.Model(inputs, x), 8, 8, distillation=None)
    before = model.plan().file.bytes
    model.calibrate(np.random.default_rng(0).normal(size=(64, 4)).astype("float32"), verbose=0)
    # Equal scales would leave steps out: the file has those of the trained network.
    assert model.plan().file.bytes == before


# ---- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["integer", "residual", "islands"])
def test_the_bytes_are_those_of_the_file(name, tmp_path):
    model = calibrated(wrapped(name))
    written = {}
    for storage in STORAGES:
        model.export_tflite(tmp_path / "m.tflite", storage=storage)
        written[storage] = (tmp_path / "m.tflite").stat().st_size
    assert model.plan().file.bytes == written


def test_the_sizes_are_printed_beside_the_packed_ideal():
    plan = calibrated(wrapped("residual")).plan()
    sizes = ", ".join(f"{plan.file.bytes[s] / 1000:,.1f} kB with storage {s}" for s in STORAGES)
    assert str(plan).splitlines()[-2] == f"TFLite file: {sizes}"
    assert f"{plan.totals['bytes'] / 1000:.1f} kB packed" in str(plan)


def test_a_refused_model_has_no_sizes():
    plan = plan_of("several")
    assert plan.file.bytes == {}
    assert "TFLite file" not in str(plan)


def test_the_dry_run_leaves_the_model_as_it_is(tmp_path):
    model = calibrated(wrapped("residual"))
    model.export_tflite(tmp_path / "a.tflite")
    model.plan()
    model.export_tflite(tmp_path / "b.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


# ---- where it is told ------------------------------------------------------------------------


def test_a_dict_has_the_verdict():
    values = plan_of("several").to_dict()
    assert values["file"]["is_refused"]
    assert set(values["file"]["refused"]) == REFUSED["several"]
    assert values["file"]["float_islands"] == ISLANDS["several"]
    assert values["file"]["sentence"] == last_line(plan_of("several"))
    rows = {row["name"]: row["in_file"] for row in values["rows"]}
    assert rows["norm"] == "float island"


def test_a_page_has_the_verdict_and_the_sizes():
    page = calibrated(wrapped("islands")).plan().to_html()
    assert "<p>Export writes this model with float islands: first_norm, second_norm.</p>" in page
    assert '<td class="text">float island</td>' in page
    assert "<dt>TFLite file</dt><dd>" in page
    refused = plan_of("several").to_html()
    assert "<p>Export refuses this model: " in refused
    assert "<dt>TFLite file</dt>" not in refused


def test_a_report_ends_in_the_verdict_too():
    assert last_line(wrapped("several").report()) == last_line(plan_of("several"))


@pytest.mark.parametrize("page", [False, True], ids=["text", "with a page"])
def test_the_command_line_ends_in_the_verdict(page, tmp_path, capsys):
    images(several).save(tmp_path / "float.keras")
    options = ["--html", str(tmp_path / "plan.html")] if page else []
    assert main(["plan", str(tmp_path / "float.keras"), *options]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("Export refuses this model: ")
    assert all(layer in line for layer in REFUSED["several"])


def test_the_command_line_tells_what_is_written(tmp_path, capsys):
    model = calibrated(wrapped("islands"))
    model.save(tmp_path / "m.keras")
    assert main(["plan", str(tmp_path / "m.keras")]) == 0
    size, verdict = capsys.readouterr().out.splitlines()[-2:]
    model.export_tflite(tmp_path / "m.tflite")
    assert size.startswith(f"TFLite file: {inspect(tmp_path / 'm.tflite').bytes / 1000:,.1f} kB ")
    assert verdict == "Export writes this model with float islands: first_norm, second_norm."
