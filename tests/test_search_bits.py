"""`search_bits`: the changes of the loss, the choice, its cost, and the files that tell of them."""

import dataclasses
import functools
import itertools
import json

import keras
import numpy as np
import pytest
from dense_network import compiled, cross_entropy, data, float_model, quantized_model
from fresh_process import result_of
from keras import layers

import speq_keras
from speq_keras import search_bits
from speq_keras.bit_search import choose

DATA = data(examples=32)
WIDTHS = (2, 3, 4, 8)


def ready(model=None, **arguments):
    return compiled(quantized_model(model, **{"distillation": None, **arguments}))


@functools.cache
def shared():
    return ready()


@functools.cache
def found():
    return search_bits(shared(), DATA, size_bytes=400)


def size_of(model, bits):
    """Returns what `plan` says with all searched weights at `bits`."""
    before = model.plan().row("second").w_bits
    model.set_bits(weights=bits)
    totals = model.plan().totals
    model.set_bits(weights=before)
    return totals


# ---- the choice ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_of_all(seed):
    random = np.random.default_rng(seed)
    losses = random.normal(0.5, 1.0, (5, 4))  # some widths gain something
    costs = random.integers(1, 40, (5, 1)) * np.array([[2, 3, 4, 8]])
    budget = int(costs.min(axis=1).sum() + random.integers(0, 300))
    best = min(
        losses[range(5), picked].sum()
        for picked in itertools.product(range(4), repeat=5)
        if costs[range(5), picked].sum() <= budget
    )
    found = choose(losses, costs, budget)
    assert costs[range(5), found].sum() <= budget
    assert losses[range(5), found].sum() == pytest.approx(best, abs=1e-12)


def test_the_choice_is_better_than_that_of_the_best_gain_per_cost():
    # Greedy raises the first layer (gain 1 per unit) and has no room left for the second one.
    losses, costs = [[1.5, 0.5], [9.0, 0.1]], [[1, 2], [1, 11]]
    assert choose(losses, costs, 12) == [0, 1]


def test_of_equal_choices_the_cheapest_one_is_taken():
    assert choose([[0.0, 0.0], [1.0, 0.0]], [[2, 4], [2, 4]], 100) == [0, 1]


def test_of_choices_equal_in_both_the_first_one_is_taken():
    assert choose([[1.0, 1.0], [0.5, 0.5]], [[2, 2], [4, 4]], 100) == [0, 0]


def test_a_hundred_layers_are_chosen_exactly_in_seconds():
    random = np.random.default_rng(0)
    sizes = random.integers(100, 100_000, (100, 1))
    losses = random.exponential(1.0, (100, 1)) * np.array([[1.0, 0.3, 0.08, 0.0]])
    costs = sizes * np.array([[2, 3, 4, 8]])
    found = choose(losses, costs, 3 * sizes.sum())
    assert costs[range(100), found].sum() <= 3 * sizes.sum()


# ---- the changes -----------------------------------------------------------------------------


def loss_in_numpy(model, w_bits):
    """Returns the cross-entropy with activations clipped, and the weights of two layers rounded."""
    weights = {v.path: np.asarray(v.value, "float64") for v in model.variables}
    x, y = DATA
    low, high = weights["x_quantizer/range_low"], weights["x_quantizer/range_high"]
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    x = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    for name in ("first", "second", "third", "last"):
        kernel = weights[f"{name}/kernel"]
        levels = 2 ** (w_bits.get(name, 8) - 1) - 1
        step = np.abs(kernel).max(axis=None if name in w_bits else 0) / levels
        x = x @ (np.round(kernel / step) * step) + weights[f"{name}/bias"]
        if name == "last":
            clip = weights["last_quantizer/alpha"]
            x = np.clip(np.round(x / clip * 128), -128, 127) * clip / 128
        else:
            x = np.clip(x, 0, weights[f"{name}_relu_quantizer/alpha"])
            if name == "third":  # is read by the last layer, at 8 bits
                step = weights["third_relu_quantizer/alpha"] / 255
                x = np.round(x / step) * step
    return cross_entropy(x, y)


def test_changes_are_those_of_one_layer_at_a_time():
    model = ready()
    result = search_bits(model, DATA, size_bytes=1e6, widths=WIDTHS)
    base = loss_in_numpy(model, {"second": 8, "third": 8})
    assert result.loss == pytest.approx(base, abs=1e-4)
    for name, other in (("second", "third"), ("third", "second")):
        expected = [loss_in_numpy(model, {name: bits, other: 8}) - base for bits in WIDTHS]
        np.testing.assert_allclose(result.changes[name], expected, atol=2e-4)


def test_a_search_changes_neither_widths_nor_weights():
    model = ready(w_bits=3, a_bits=2)
    before = [np.asarray(w) for w in model.get_weights()]
    search_bits(model, DATA, size_bytes=1e6)
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_search_that_fails_leaves_the_widths_as_they_were():
    model = ready(w_bits=3, a_bits=2)
    with pytest.raises(Exception, match=".+"):
        search_bits(model, (DATA[0], DATA[1][:5]), size_bytes=1e6)
    row = model.plan().row("second")
    assert (row.w_bits, row.a_bits) == (3, 2)


def test_two_searches_find_the_same():
    assert search_bits(ready(), DATA, size_bytes=400).to_dict() == found().to_dict()


def test_a_pipeline_is_searched_as_its_arrays_are():
    import tensorflow as tf

    pipeline = tf.data.Dataset.from_tensor_slices(DATA).batch(32)
    changes = search_bits(ready(), pipeline, size_bytes=400).changes
    assert changes["second"] == pytest.approx(found().changes["second"])


# ---- the cost --------------------------------------------------------------------------------


def images():
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    x = layers.SeparableConv2D(6, 3, padding="same", activation="relu", name="separable")(x)
    inner = keras.Input((8, 8, 6))
    y = layers.Conv2D(6, 1, activation="relu", name="twin")(inner)
    x = keras.Model(inner, y, name="nested")(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depth")(x)
    x = layers.Conv2D(5, 1, activation="relu", name="twin")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="last")(x))


@pytest.fixture(scope="module")
def searched_images():
    """Returns {budget name: (float model, BitSearch)}: budgets between those of 2 and 3 bits."""
    keras.utils.set_random_seed(0)
    model = images()
    wrapped = speq_keras.wrap(model, 3, 3, distillation=None)
    x, y = np.random.default_rng(0).normal(size=(8, 8, 8, 3)), np.arange(8) % 3
    wrapped.calibrate(x, verbose=0)
    compiled(wrapped)
    totals = wrapped.plan().totals
    budgets = {"size_bytes": 0.99 * totals["bytes"], "bit_ops": 0.96 * totals["bitops"]}
    return {
        name: (model, search_bits(wrapped, (x, y), **{name: budget}))
        for name, budget in budgets.items()
    }


@pytest.mark.parametrize(("name", "total"), [("size_bytes", "bytes"), ("bit_ops", "bitops")])
def test_the_cost_is_that_of_the_plan_of_the_model_with_these_configs(searched_images, name, total):
    model, result = searched_images[name]
    again = speq_keras.wrap(model, 3, 3, distillation=None, configs=result.configs)
    assert again.plan().totals[total] == result.cost
    assert result.cost <= result.budget


def test_every_layer_gets_its_own_width_also_where_names_are_alike(searched_images):
    model, result = searched_images["bit_ops"]
    again = speq_keras.wrap(model, 3, 3, distillation=None, configs=result.configs).plan()
    assert set(result.chosen) == {"separable", "nested.twin", "depth", "twin"}
    for name in ("nested.twin", "depth", "twin"):
        assert again.row(name).w_bits == result.chosen[name]
    parts = [row.w_bits for row in again.rows if row.name.startswith("separable") and row.w_bits]
    assert parts == [result.chosen["separable"]] * 2


def test_the_weight_quantizers_stay_those_of_the_model():
    result = search_bits(ready(weight_quantizer="mse"), DATA, size_bytes=1e6)
    again = speq_keras.wrap(float_model(), 3, 2, distillation=None, configs=result.configs)
    assert again.plan().row("second").weight_quantizer == "MSE"


def test_the_chosen_widths_are_fixed():
    again = speq_keras.wrap(float_model(), 3, 2, distillation=None, configs=found().configs)
    with pytest.raises(ValueError, match="none of the weights has"):
        again.set_bits(weights=5)


def test_the_predicted_change_is_the_sum_of_those_of_the_chosen_widths():
    result = dataclasses.replace(
        found(),
        widths=(2, 4),
        changes={"second": [0.5, 0.25], "third": [4.0, 2.0]},
        chosen={"second": 2, "third": 4},
    )
    assert result.predicted_change == 0.5 + 2.0


def test_examples_without_weight_do_not_count():
    x, y = DATA
    weights = np.zeros(len(x))
    weights[3] = 1
    weighted = search_bits(ready(), (x, y, weights), size_bytes=400, batch_size=len(x))
    alone = search_bits(ready(), (x[3:4], y[3:4]), size_bytes=400)
    assert weighted.loss * len(x) == pytest.approx(alone.loss, rel=1e-5)


def test_activations_stay_those_that_the_teacher_draws():
    result = found()
    again = speq_keras.wrap(float_model(), 3, 2, configs=result.configs)
    assert len(again.target_quantizers) == len(quantized_model().target_quantizers)


def test_a_budget_for_all_gives_all_the_widest():
    model = ready()
    result = search_bits(model, DATA, size_bytes=size_of(model, 8)["bytes"])
    assert result.cost <= size_of(model, 8)["bytes"]
    assert result.predicted_change <= 0


def test_the_least_budget_gives_all_the_narrowest():
    model = ready()
    least = size_of(model, 2)["bytes"]
    assert search_bits(model, DATA, size_bytes=least).chosen == {"second": 2, "third": 2}


def test_a_budget_that_cannot_be_met_is_refused_with_the_least_possible():
    model = ready()
    least = size_of(model, 2)["bytes"]
    with pytest.raises(ValueError, match=f"`size_bytes` must be at least {least:,.10g}"):
        search_bits(model, DATA, size_bytes=least - 1)


# ---- what is shown ---------------------------------------------------------------------------


def test_the_table_has_a_row_per_layer_and_the_predicted_cost():
    result = found()
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["second", "third"]
    assert f"size_bytes {result.cost:,.10g} of 400," in lines[5]


def test_the_result_is_plain_values():
    result = found()
    assert json.loads(json.dumps(result.to_dict()))["chosen"] == result.chosen


def test_the_plot_is_a_png_file(tmp_path):
    pytest.importorskip("matplotlib")
    found().plot(tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_plot_without_matplotlib_is_refused_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="not installed. Run `pip install matplotlib`"):
        found().plot(tmp_path / "search.png")


def test_a_plot_must_be_a_png_file(tmp_path):
    with pytest.raises(ValueError, match="ends in .png"):
        found().plot(tmp_path / "search.jpg")


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "Exactly one of `size_bytes` and `bit_ops`"),
        ({"size_bytes": 1, "bit_ops": 1}, ValueError, "Exactly one of `size_bytes` and"),
        ({"bit_ops": -1}, ValueError, "`bit_ops` must be a finite number"),
        ({"size_bytes": 400, "widths": 3}, TypeError, "`widths` must hold at least two"),
        ({"size_bytes": 400, "widths": (3, 3)}, ValueError, "`widths` must hold at least two"),
        ({"size_bytes": 400, "widths": (3, 9)}, ValueError, "whole number from 2 to 8"),
        ({"size_bytes": 400, "data": iter([DATA])}, TypeError, "read many times"),
        ({"size_bytes": 400, "data": DATA[0]}, TypeError, "must be `\\(inputs, targets\\)`"),
        ({"size_bytes": 400, "model": float_model()}, TypeError, "`model` must be a SPEQModel"),
    ],
)
def test_arguments_that_are_not_allowed_are_named(arguments, error, text):
    arguments = {"model": shared(), "data": DATA, **arguments}
    with pytest.raises(error, match=text):
        search_bits(**arguments)


def test_a_model_must_be_compiled():
    with pytest.raises(RuntimeError, match="must be compiled"):
        search_bits(quantized_model(), DATA, size_bytes=400)


def test_a_model_must_be_calibrated():
    with pytest.raises(RuntimeError, match="must be calibrated"):
        search_bits(ready(calibrate=False), DATA, size_bytes=400)


def test_a_model_without_target_widths_is_refused():
    model = ready(w_bits=None, distillation=None)
    with pytest.raises(ValueError, match="whose weights have the target width"):
        search_bits(model, DATA, size_bytes=400)


def test_bit_operations_of_unknown_shapes_are_refused():
    inputs = keras.Input((None, None, 3))
    x = inputs
    for name in ("first", "second", "third"):
        x = layers.Conv2D(4, 3, activation="relu", name=name)(x)
    outputs = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = speq_keras.wrap(keras.Model(inputs, outputs), 3, 3, distillation=None)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    model.calibrate(images, verbose=0)
    with pytest.raises(ValueError, match="layer 'second', whose shapes are not"):
        search_bits(compiled(model), (images, np.zeros(4)), bit_ops=1e9)


# ---- JAX -------------------------------------------------------------------------------------

ON_JAX = """
import json, sys
import keras, numpy as np
from dense_network import compiled, data, quantized_model
from speq_keras import search_bits

model = compiled(quantized_model(distillation=None), jit_compile=True)
model.set_weights([np.array(w) for w in json.loads(open(sys.argv[1]).read())])
result = search_bits(model, data(examples=32), size_bytes=300)
print(json.dumps([keras.backend.backend(), result.to_dict()]))
"""


@pytest.mark.tensorflow
def test_on_jax_the_search_finds_the_same(tmp_path):
    pytest.importorskip("jax")
    model, weights = ready(), tmp_path / "weights.json"
    weights.write_text(json.dumps([np.asarray(w).tolist() for w in model.get_weights()]))
    backend, found = result_of(ON_JAX, weights, KERAS_BACKEND="jax")
    expected = search_bits(model, DATA, size_bytes=300).to_dict()
    assert backend == "jax"
    assert found["chosen"] == expected["chosen"]
    assert found["cost"] == expected["cost"]
    for name, changes in expected["changes"].items():
        np.testing.assert_allclose(found["changes"][name], changes, atol=1e-4)
