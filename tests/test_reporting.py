"""`plan()` and `report()`: bits, bytes, multiply-accumulates and bit operations, worked by hand."""

import dataclasses
import functools
import itertools
import json
import re

import keras
import numpy as np
import pytest
from keras import layers
from web_page import Page

import speq_keras
from speq_keras import QuantizeConfig
from speq_keras.reporting import Report

pytestmark = pytest.mark.every_backend


def images():
    """Boundaries at 8 bits, and between them a depthwise and a transposed convolution at 2."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="first")(inputs)
    x = layers.ReLU(name="first_relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, 2, padding="same", use_bias=False, name="depth")(x)
    x = layers.ReLU(name="depth_relu")(x)
    x = layers.Conv2DTranspose(2, 2, strides=2, activation="relu", name="up")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="last")(x))


def tokens():
    inputs = keras.Input((5,), dtype="int32", name="tokens")
    x = layers.Embedding(10, 4, name="embed")(inputs)
    x = layers.EinsumDense("abc,cde->abde", (5, 2, 3), activation="relu", name="heads")(x)
    x = layers.EinsumDense("abde,def->abf", (5, 4), activation="relu", name="join")(x)
    shared = layers.Dense(4, activation="relu", name="shared")
    x = layers.LSTM(2, return_sequences=True, name="lstm")(shared(shared(x)))
    return keras.Model(inputs, layers.Dense(3, name="last")(x))


def floats():
    """One layer for every reason to stay float."""
    inputs = keras.Input((8,), name="x")
    x = layers.Dense(4, activation="relu", name="first")(inputs)
    x = layers.Dense(4, activation="relu", name="skipped")(x)
    x = layers.LayerNormalization(name="unknown")(x)
    x = layers.Dense(4, activation="relu", name="second")(x)
    x = layers.Dense(4, activation="relu", name="by_config")(x)
    return keras.Model(inputs, layers.Dense(3, name="last")(x))


def kinds():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.BatchNormalization(name="norm_first")(inputs)
    x = layers.Conv2D(4, 3, activation="relu", padding="same", name="first")(x)
    y = layers.Conv2D(4, 3, activation="tanh", padding="same", name="second")(x)
    y = layers.AveragePooling2D(3, 1, padding="same", name="average")(y)
    x = layers.MaxPooling2D(name="pool")(layers.Concatenate(name="join")([x, y]))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(3, name="last")(x))


@functools.cache
def plan_of(make, w_bits=2, a_bits=2, **arguments):
    arguments = {"distillation": None, **arguments}
    if make is floats:
        config = {"by_config": QuantizeConfig(w_bits=None)}
        arguments = {"skip": "skipped", "configs": config, **arguments}
    return speq_keras.wrap(make(), w_bits, a_bits, **arguments).plan()


# ---- rows ------------------------------------------------------------------------------------

BITS = {  # (weights, inputs)
    (images, "first"): (8, 8),
    (images, "depth"): (2, 2),
    (images, "up"): (2, 2),
    (images, "last"): (8, 8),
    (images, "norm"): (None, None),
    (tokens, "embed"): (8, None),
    (tokens, "heads"): (2, 2),
    (tokens, "shared"): (2, 2),
    (tokens, "lstm"): (2, 2),
    (floats, "skipped"): (None, None),
    (floats, "by_config"): (None, 2),
}
PARAMETERS = {
    (images, "first"): 3 * 3 * 3 * 4,
    (images, "norm"): 4 * 4,
    (images, "depth"): 3 * 3 * 4,
    (images, "up"): 2 * 2 * 2 * 4 + 2,
    (images, "last"): 8 * 8 * 2 * 3 + 3,
    (images, "flat"): 0,
    (tokens, "embed"): 10 * 4,
    (tokens, "heads"): 4 * 2 * 3,
    (tokens, "shared"): 4 * 4 + 4,
    (tokens, "lstm"): 4 * (4 * 2 + 2 * 2 + 2),
}
BYTES = {  # kernels at their widths, the rest in float32
    (images, "first"): 108 * 8 / 8,
    (images, "norm"): 16 * 4,
    (images, "depth"): 36 * 2 / 8,
    (images, "up"): 32 * 2 / 8 + 2 * 4,
    (images, "last"): 384 * 8 / 8 + 3 * 4,
    (tokens, "embed"): 40 * 8 / 8,
    (tokens, "heads"): 24 * 2 / 8,
    (tokens, "shared"): 16 * 2 / 8 + 4 * 4,
    (tokens, "lstm"): 48 * 2 / 8 + 8 * 4,
    (floats, "skipped"): (16 + 4) * 4,
}
MACS = {
    (images, "first"): 8 * 8 * 108,  # positions of the output
    (images, "norm"): None,
    (images, "depth"): 4 * 4 * 36,
    (images, "up"): 4 * 4 * 32,  # positions of the input
    (images, "last"): 384,
    (tokens, "embed"): 0,
    (tokens, "heads"): 5 * 4 * 2 * 3,  # b c d e
    (tokens, "join"): 5 * 2 * 3 * 4,  # b d e f
    (tokens, "shared"): 2 * 5 * 16,  # two calls
    (tokens, "lstm"): 5 * 48,  # every step
    (floats, "skipped"): 16,
}
BIT_OPERATIONS = {
    (images, "first"): 6912 * 8 * 8,
    (images, "depth"): 576 * 2 * 2,
    (images, "last"): 384 * 8 * 8,
    (tokens, "shared"): 160 * 2 * 2,
    (floats, "skipped"): 16 * 32 * 32,
    (floats, "by_config"): 16 * 32 * 2,
}


def by_row(table):
    """Parametrizes a test by the rows of a table."""
    return pytest.mark.parametrize(
        ("make", "layer", "expected"),
        [(make, layer, value) for (make, layer), value in table.items()],
        ids=[f"{make.__name__}-{layer}" for make, layer in table],
    )


@by_row(BITS)
def test_widths_are_those_of_the_quantizers(make, layer, expected):
    row = plan_of(make).row(layer)
    assert (row.w_bits, row.a_bits) == expected


@by_row(PARAMETERS)
def test_parameters_are_counted_once(make, layer, expected):
    assert plan_of(make).row(layer).parameters == expected


@by_row(BYTES)
def test_bytes_are_those_of_packed_weights_and_float32_for_the_rest(make, layer, expected):
    assert plan_of(make).row(layer).bytes == expected


@by_row(MACS)
def test_multiply_accumulates_are_those_of_one_example(make, layer, expected):
    assert plan_of(make).row(layer).macs == expected


@by_row(BIT_OPERATIONS)
def test_bit_operations_are_macs_times_both_widths(make, layer, expected):
    assert plan_of(make).row(layer).bitops == expected


def test_a_skipped_separable_convolution_counts_both_its_kernels():
    inputs = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(5, 3, padding="same", name="separable")(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(layers.Conv2D(4, 1)(x)))
    plan = speq_keras.wrap(model, 2, 2, skip="separable").plan()
    assert plan.row("separable").macs == 8 * 8 * (3 * 3 * 3 + 3 * 5)


def test_groups_divide_the_multiply_accumulates():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, padding="same", groups=2, name="grouped")(inputs)
    plan = speq_keras.wrap(keras.Model(inputs, x), 2, 2).plan()
    assert plan.row("grouped").macs == 8 * 8 * 3 * 3 * (4 // 2) * 6


def test_dense_layers_on_sequences_count_every_position():
    inputs = keras.Input((7, 3))
    plan = speq_keras.wrap(keras.Model(inputs, layers.Dense(2, name="d")(inputs)), 2, 2).plan()
    assert plan.row("d").macs == 7 * 3 * 2


@pytest.mark.parametrize(
    ("equation", "output_shape", "macs"),
    [("abc,cd->abd", (None, 4), 5 * 3 * 4), ("...c,cd->...d", (4,), 5 * 3 * 4)],
)
def test_an_einsum_takes_its_sizes_from_its_input_and_kernel(equation, output_shape, macs):
    inputs = keras.Input((5, 3))
    layer = layers.EinsumDense(equation, output_shape, name="e")
    plan = speq_keras.wrap(keras.Model(inputs, layer(inputs)), 2, 2).plan()
    assert plan.row("e").macs == macs


def test_unknown_shapes_leave_the_multiply_accumulates_open():
    inputs = keras.Input((None, None, 3))
    plan = speq_keras.wrap(keras.Model(inputs, layers.Conv2D(2, 3, name="c")(inputs)), 2, 2).plan()
    assert (plan.row("c").macs, plan.row("c").bitops) == (None, None)


def test_unknown_formulas_leave_the_multiply_accumulates_open():
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, layers.LSTM(2, name="lstm")(inputs))
    config = QuantizeConfig(weights=("cell.kernel",))
    plan = speq_keras.wrap(model, 2, 2, configs={"lstm": config}).plan()
    assert plan.row("lstm").macs is None


def test_set_bits_changes_the_next_plan():
    model = speq_keras.wrap(images(), 2, 2)
    model.set_bits(weights=4, activations=None)
    row = model.plan().row("depth")
    assert (row.w_bits, row.a_bits, row.bitops) == (4, None, 576 * 4 * 32)


# ---- what becomes of a layer -----------------------------------------------------------------

STATUS = {
    (images, "first"): "quantized",
    (images, "norm"): "folds into its input",
    (images, "first_relu"): "folds into its input",
    (images, "flat"): "carries codes",
    (images, "last_softmax"): "8-bit inputs",
    (kinds, "norm_first"): "8-bit inputs",
    (kinds, "second_tanh"): "8-bit inputs",
    (kinds, "average"): "keeps its input's grid",
    (kinds, "join"): "joins codes of one grid",
    (kinds, "pool"): "carries codes",
    (kinds, "mean"): "8-bit inputs",
    (floats, "skipped"): "float: skipped",
    (floats, "unknown"): "float: no quantize config for LayerNormalization",
    (floats, "by_config"): "float: w_bits is None in its config",
}


@by_row(STATUS)
def test_the_status_says_what_becomes_of_a_layer(make, layer, expected):
    assert plan_of(make).row(layer).status == expected


def test_float_layers_are_listed_with_the_reason():
    assert plan_of(floats).float_layers == {
        "skipped": "skipped",
        "unknown": "no quantize config for LayerNormalization",
        "by_config": "w_bits is None in its config",
    }


def test_without_boundary_bits_the_outer_layers_are_listed():
    assert plan_of(images, boundary_bits=None).float_layers == {
        "first": "boundary_bits is None",
        "last": "boundary_bits is None",
    }


def test_without_w_bits_all_weighted_layers_are_listed():
    reasons = plan_of(images, w_bits=None).float_layers
    assert reasons == dict.fromkeys(["first", "depth", "up", "last"], "w_bits is None")


def test_without_a_bits_nothing_claims_to_read_codes():
    plan = plan_of(kinds, a_bits=None)
    assert plan.row("mean").status == "float inputs"


# ---- totals ----------------------------------------------------------------------------------

TOTALS = {
    "parameters": 108 + 16 + 36 + 34 + 387,
    "bytes": 108 + 64 + 9 + 16 + 396,
    "float32_bytes": 581 * 4,
    "size_ratio": 581 * 4 / 593,
    "macs": 6912 + 576 + 512 + 384,
    "bitops": 6912 * 64 + (576 + 512) * 4 + 384 * 64,
    "bitops_ratio": 8384 * 32 * 32 / 471296,
}


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_sums_and_ratios_to_float32(name):
    assert plan_of(images).totals[name] == TOTALS[name]


def test_layers_without_multiply_accumulates_count_in_the_size():
    assert plan_of(tokens).totals["parameters"] == 40 + 24 + 24 + 20 + 56 + 9


# ---- output ----------------------------------------------------------------------------------


def test_a_plan_prints_a_table_of_all_layers():
    lines = [" ".join(line.split()) for line in str(plan_of(images)).splitlines()]
    assert lines[0] == "layer type status in the file W A params kB MMAC GBitOP"
    assert lines[2:11] == [
        "first Conv2D quantized integer 8 MinMax 8 108 0.11 0.007 0.000",
        "norm BatchNormalization folds into its input integer 16 0.06",
        "first_relu ReLU folds into its input integer",
        "depth DepthwiseConv2D quantized integer 2 SAWB 2 36 0.01 0.001 0.000",
        "depth_relu ReLU folds into its input integer",
        "up Conv2DTranspose quantized integer 2 SAWB 2 34 0.02 0.001 0.000",
        "up_relu Activation folds into its input integer",
        "flat Flatten carries codes integer",
        "last Dense quantized integer 8 MinMax 8 387 0.40 0.000 0.000",
    ]


def test_the_columns_of_a_table_are_aligned():
    header, _, row = str(plan_of(images)).splitlines()[:3]
    assert header.index("status") == row.index("quantized")
    assert len(header) == len(row)


def test_a_plan_prints_the_totals():
    assert str(plan_of(images)).splitlines()[13] == (
        "581 parameters, 0.6 kB packed (3.9 times smaller than float32), 0.01 MMAC, 0.000 GBitOP "
        "(18.2 times fewer than float32)"
    )


def test_a_plan_prints_the_reasons_of_float_layers():
    assert "float: no quantize config for LayerNormalization" in str(plan_of(floats))


def test_a_plan_with_unknown_shapes_prints():
    inputs = keras.Input((None, None, 3))
    plan = speq_keras.wrap(keras.Model(inputs, layers.Conv2D(2, 3, name="c")(inputs)), 2, 2).plan()
    assert "MMAC and GBitOP unknown" in str(plan)


@pytest.fixture(scope="module")
def report():
    model = speq_keras.wrap(images(), 2, 2)
    model.get_layer("depth_relu_quantizer").alpha.assign(3.0)
    model.calibrate(np.ones((4, 8, 8, 3), "float32"), verbose=0)
    model.get_layer("first_relu_quantizer").alpha.assign(3.0)
    model.get_layer("last_quantizer").alpha.assign(4.0)
    return model.report()


def range_of(report, name):
    return next(row for row in report.ranges if row.name == name)


def test_a_plan_has_no_ranges():
    assert plan_of(images).ranges == ()


def test_a_report_has_the_range_of_every_activation_quantizer(report):
    assert [row.name for row in report.ranges] == [
        "image_quantizer",
        "first_relu_quantizer",
        "depth_relu_quantizer",
        "up_relu_quantizer",
        "last_quantizer",
    ]


def test_an_unsigned_range_of_two_bits_has_three_steps(report):
    row = range_of(report, "first_relu_quantizer")
    assert (row.scale, row.low_code, row.high_code) == (1.0, 0, 3)


def test_a_signed_range_of_8_bits_has_128_steps_below_zero(report):
    row = range_of(report, "last_quantizer")
    assert (row.scale, row.low_code, row.high_code) == (4.0 / 128, -128, 127)


def test_a_report_says_which_quantizers_the_teacher_draws(report):
    drawn = [row.name for row in report.ranges if row.drawn_by_teacher]
    assert drawn == ["first_relu_quantizer", "depth_relu_quantizer"]


def test_a_report_says_that_ranges_are_calibrated(report):
    assert all(row.calibrated for row in report.ranges)


def test_a_report_prints_the_ranges(report):
    lines = str(report).splitlines()
    (line,) = [line for line in lines if line.startswith("first_relu_quantizer")]
    assert line.split() == ["first_relu_quantizer", "PACT", "yes", "2", "1", "0", "...", "3"]


def test_a_report_of_float_widths_prints():
    model = speq_keras.wrap(images(), 2, 2)
    model.set_bits(weights=None, activations=None)
    assert "float" in str(model.report())


@pytest.mark.parametrize("make", [images, tokens, floats, kinds])
def test_a_plan_survives_json(make):
    values = plan_of(make).to_dict()
    assert json.loads(json.dumps(values)) == values


def test_a_report_survives_json(report):
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_a_dict_has_the_rows_the_ranges_and_the_totals(report):
    assert list(report.to_dict()) == ["title", "model", "rows", "ranges", "totals", "file"]


# ---- as a web page ---------------------------------------------------------------------------


def test_a_page_closes_what_it_opens(report):
    assert Page(report.to_html()).open == []


def test_a_page_loads_nothing(report):
    page = report.to_html()
    assert Page(page).loads == []
    assert not [word for word in ("http", "url(", "@import", "<script", "<link") if word in page]


def text_table(text, number):
    """Returns the cells of a table of a printed report: columns stand two spaces apart."""
    lines = text.split("\n\n")[number].splitlines()
    ends = [0, *(match.end() for match in re.finditer("-+", lines[1]))]
    columns = list(itertools.pairwise(ends))
    return [[line[a:b].strip() for a, b in columns] for line in (lines[0], *lines[2:])]


@pytest.mark.parametrize(("table", "paragraph"), [(0, 0), (1, 2)])
def test_a_page_has_the_cells_of_the_text_in_its_order(report, table, paragraph):
    assert Page(report.to_html()).tables[table] == text_table(str(report), paragraph)


def test_a_page_has_the_totals(report):
    page = report.to_html()
    assert "<dd>581<small>" in page
    assert "<dd>0.6 kB<small>3.9 times smaller than float32<" in page
    assert "<small>18.2 times fewer than float32<" in page


def test_a_page_names_the_model():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(inputs), name="tiny")
    page = speq_keras.wrap(model, 3, 3).plan().to_html()
    assert "<title>Plan of tiny</title>" in page
    assert "<h1>Plan of tiny</h1>" in page


def test_bars_are_shares_of_8_bits_and_of_the_largest_layer(report):
    shares = Page(report.to_html()).shares
    # By hand: rows "depth" (4) and "last" (9); columns W, A, kB, GBitOP.
    assert [shares[0, 4, column] for column in (4, 5)] == [25.0, 25.0]
    assert shares[0, 4, 7] == round(100 * 9 / 396, 1)
    assert shares[0, 4, 9] == round(100 * (576 * 2 * 2) / (6912 * 8 * 8), 1)
    assert shares[0, 9, 7] == 100.0


def test_what_is_not_quantized_has_no_bar_for_its_widths(report):
    assert (0, 2, 4) not in Page(report.to_html()).shares  # BatchNormalization


def test_float_fills_its_cell_in_another_colour():
    page = Page(plan_of(floats).to_html())
    row = next(n for n, cells in enumerate(page.tables[0]) if cells[0] == "skipped")
    assert page.shares[0, row, 4] == 100.0
    assert page.classes[0, row, 4] == "number float"


def test_names_are_escaped():
    row = dataclasses.replace(plan_of(images).rows[1], name="<b>&", status="float: <i>")
    page = Report("plan", (row,), model="a<b>").to_html()
    assert Page(page).tables[0][1][0] == "<b>&"
    assert "<b>" not in page
    assert "<i>" not in page


def test_a_page_of_no_layers_is_a_page():
    assert Page(Report("plan", ()).to_html()).tables[0][0][0] == "layer"


def test_a_page_is_written_to_a_path(tmp_path):
    page = plan_of(images).to_html(tmp_path / "plan.html")
    assert (tmp_path / "plan.html").read_text(encoding="utf-8") == page
    assert [path.name for path in tmp_path.iterdir()] == ["plan.html"]


def test_a_page_needs_its_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must be a file that ends in \.html"):
        plan_of(images).to_html(tmp_path / "plan.txt")


# ---- errors ----------------------------------------------------------------------------------


def test_an_unknown_row_names_the_nearest_one():
    with pytest.raises(ValueError, match=r"`name` must be one of .*name='dept'.*mean 'depth'\?"):
        plan_of(images).row("dept")


@pytest.mark.parametrize("quantizer", ["pact", "lsq_plus"])
def test_a_range_that_diverged_is_reported_as_nan(quantizer):
    inputs = keras.Input((4,))
    x = layers.Dense(4, activation="swish", name="first")(inputs)
    x = layers.Dense(4, activation="swish", name="second")(x)
    float_model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    model = speq_keras.wrap(float_model, 3, 3, activation_quantizer=quantizer)
    model.calibrate(np.ones((4, 4), "float32"), verbose=0)
    for variable in model.trainable_variables:
        variable.assign(variable * float("nan"))
    scales = [row.scale for row in model.report().ranges if row.drawn_by_teacher]
    assert len(scales) == 1
    assert np.isnan(scales).all()
    assert "nan" in str(model.report())
