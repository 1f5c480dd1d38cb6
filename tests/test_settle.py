"""`SPEQModel.settle`: afterwards `predict` is the file, and a second call moves nothing."""

import functools
from fractions import Fraction

import keras
import numpy as np
import pytest
from integer_networks import ALL_CODES, codes, run, single
from keras import layers, ops

import speq_keras
from speq_keras.export.settle_scales import Relation, Scales
from speq_keras.export.settle_slopes import LeakyReLU
from speq_keras.export.tflite.runtimes import run_file
from speq_keras.graph import read_graph

IMAGE = (8, 8, 3)
EXAMPLES = 256


def conv(x, filters=6, **kwargs):
    kwargs = {"padding": "same", "use_bias": False, **kwargs}
    x = layers.Conv2D(filters, 3, **kwargs)(x)
    return layers.BatchNormalization()(x)


def residual(x):
    x = layers.ReLU()(conv(x))
    y = conv(layers.ReLU()(conv(x)))
    x = layers.ReLU()(layers.Add()([x, y]))
    return layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Add()([conv(x), x])))


def swish(x):
    x = layers.Activation("swish")(conv(x))
    x = layers.Activation("swish")(conv(x, strides=2))
    return layers.Flatten()(layers.AveragePooling2D(2)(x))


def squeeze_excite(x):
    x = layers.ReLU()(conv(x))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(6, 1, activation="sigmoid")(layers.Conv2D(3, 1, activation="relu")(gate))
    return layers.Flatten()(layers.MaxPooling2D(2)(layers.Multiply()([x, gate])))


def averages(x):
    x = layers.AveragePooling2D(2)(layers.ReLU()(conv(x)))
    x = layers.AveragePooling2D(2, strides=1)(layers.Conv2D(6, 3, padding="same")(x))
    return layers.Flatten()(x)


def without_center(x):
    x = layers.Conv2D(6, 3, padding="same")(x)
    x = layers.ReLU()(layers.BatchNormalization(center=False)(x))
    return layers.Flatten()(x)


def offset_alone(x):
    x = layers.ReLU()(layers.Conv2D(6, 3, use_bias=False)(x))
    x = layers.Rescaling(0.7, offset=0.05)(layers.Conv2D(4, 1, use_bias=False)(x))
    return layers.Flatten()(layers.ReLU()(x))


def rescaled_input(x):
    return residual(layers.Rescaling(1 / 1.7, offset=-0.3)(x))


def normalized_input(x):
    x = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.2, 0.3, 0.1])(x)
    return residual(x)


def adapted_input(x):
    norm = layers.Normalization()
    norm.adapt(np.random.default_rng(5).normal(0.4, [0.5, 0.7, 0.2], (64, *IMAGE)))
    return residual(norm(x))


def leaky(x):
    x = layers.LeakyReLU(negative_slope=0.1)(conv(x))
    y = layers.ReLU(negative_slope=0.25)(conv(x))
    y = layers.LeakyReLU(negative_slope=0.01)(conv(layers.Add()([x, y])))  # 1/256 is too coarse
    return layers.Flatten()(ops.leaky_relu(conv(layers.Concatenate()([x, y]))))


def concatenated(x):
    a, b = layers.ReLU()(conv(x)), layers.ReLU()(conv(x, 4))
    x = layers.ReLU()(conv(layers.Concatenate()([a, b])))
    return layers.GlobalAveragePooling2D()(layers.Concatenate()([a, b, x]))


BODIES = {
    function.__name__: function
    for function in (
        residual,
        swish,
        squeeze_excite,
        averages,
        without_center,
        offset_alone,
        rescaled_input,
        normalized_input,
        adapted_input,
        concatenated,
        leaky,
    )
}


def built(body, bits=3, seed=0, **kwargs):
    """Returns a calibrated model with lively statistics, and inputs."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(IMAGE)
    network = keras.Model(inputs, layers.Dense(5)(body(inputs)))
    kwargs = {"distillation": None, "seed": 0, **kwargs}
    model = speq_keras.wrap(network, bits, bits, **kwargs)
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.2, variable.shape))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.3, 1.5, variable.shape))
    x = rng.uniform(-1, 2, (EXAMPLES, *IMAGE)).astype("float32")
    model.calibrate(x[:64], verbose=0)
    return model, x


def file_outputs(model, x, tmp_path, **kwargs):
    report = model.export_tflite(tmp_path / "m.tflite", data=x[:4], **kwargs)
    return run_file((tmp_path / "m.tflite").read_bytes(), [x])[0], report


def equal_share(model, x, tmp_path, **kwargs):
    """Returns the share of examples all of whose outputs are those of the file."""
    found, report = file_outputs(model, x, tmp_path, **kwargs)
    step = model.activation_quantizers[-1].grid()[0]
    same = np.abs(model.predict(x, verbose=0) - found) < step / 2
    return float(np.mean(np.all(same, axis=-1))), report


@functools.cache
def settled(name, bits):
    kwargs = {"activation_quantizer": "lsq_plus"} if name == "swish" else {}
    model, x = built(BODIES[name], bits, **kwargs)
    model.predict(x[:32], verbose=0)  # what is compiled before has to be compiled anew
    return model, x, model.settle()


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("name", BODIES)
def test_after_settling_predict_is_the_file(name, bits, tmp_path):
    model, x, settlement = settled(name, bits)
    share, report = equal_share(model, x, tmp_path)
    assert not settlement.left
    assert report.proof.settled
    # A sum of 8-bit codes in float32 may fall on the other side of a half: one in 100,000 or fewer.
    assert share >= 0.99


def test_before_settling_it_is_not(tmp_path):
    model, x = built(residual, 8)
    share, report = equal_share(model, x, tmp_path)
    assert not report.proof.settled
    assert share < 0.99


@pytest.mark.parametrize("name", BODIES)
def test_a_second_call_moves_nothing(name):
    model, _, _ = settled(name, 3)
    before = [np.array(w) for w in model.get_weights()]
    again = model.settle()
    assert (again.biases, again.scales, again.slopes) == ({}, {}, {})
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "name", ["residual", "rescaled_input", "normalized_input", "adapted_input", "leaky"]
)
def test_a_settled_model_is_settled_after_loading(name, tmp_path):
    model, x, _ = settled(name, 3)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(x[:8], verbose=0), model.predict(x[:8], verbose=0))
    again = loaded.settle()
    assert (again.biases, again.scales, again.slopes, again.left) == ({}, {}, {}, ())


def test_it_moves_nothing_by_much():
    model, x = built(residual, 8)
    before = model.predict(x, verbose=0)
    weights = {w.path: ops.convert_to_numpy(w) for w in model.weights}
    settlement = model.settle()
    for variable in model.weights:
        if variable.name == "alpha":
            moved = np.asarray(variable.value) / weights[variable.path] - 1
            assert np.max(np.abs(moved)) <= 2.0**-9
    assert max(settlement.biases.values()) < 1
    after = model.predict(x, verbose=0)
    assert np.sqrt(np.mean((after - before) ** 2)) < 0.1 * before.std()


def test_no_sum_of_two_codes_lies_near_a_half():
    model, _, _ = settled("residual", 3)
    graph = read_graph(model)
    quantizers = {node.outputs[0]: node for node in graph.nodes if hasattr(node.operation, "grid")}
    readers = graph.readers()
    sums = [node for node in graph.nodes if isinstance(node.operation, layers.Add)]
    assert len(sums) == 2
    for node in sums:
        (rounded,) = [n for relu in readers[node.outputs[0]] for n in readers[relu.outputs[0]]]
        a, b, total = (
            np.float64(np.float32(n.operation.grid()[0]))
            for n in (*(quantizers[index] for index in node.inputs), rounded)
        )
        codes = np.arange(-128, 256, dtype="float64")
        steps = (a * codes[:, None] + b * codes[None, :]) / total
        # 255 codes with factors of 20 bits, twice: what XNNPACK may be off by.
        assert np.min(np.abs(steps - np.floor(steps) - 0.5)) > 2 * 255 * 2.0**-21


# ---- leaky ReLUs ------------------------------------------------------------------------------


def exact_leaky_codes(ratio, slope, zero_point):
    """Returns the exact results for all codes of an input, in steps of the output."""
    centred = [Fraction(int(code) - zero_point) for code in ALL_CODES]
    return [x * ratio * (slope if x < 0 else 1) for x in centred]


@pytest.mark.parametrize("zero_point", [-128, -1, 0, 40, 127])
@pytest.mark.parametrize(
    ("ratio", "slope"),
    [(1, 0.1), (1, 0.25), (1, 0.5), (1.72, 0.1), (1.3, 0.3), (0.9, 0.2), (1.5, 1.5), (4, 0.05)],
)
def test_one_kernel_computes_a_settled_leaky_relu_exactly(ratio, slope, zero_point):
    layer = layers.LeakyReLU(negative_slope=slope)
    quantizers = {"x": Scale(0.0273 * ratio), "y": Scale(0.0273)}
    assert Scales(quantizers).settle(LeakyReLU(layer, "x", "y"))
    for quantizer, before in ((quantizers["x"], 0.0273 * ratio), (quantizers["y"], 0.0273)):
        assert abs(quantizer.scale / before - 1) < 1 / 500
    assert 0 < abs(layer.negative_slope / slope - 1) < 0.02
    x = codes((256,), quantizers["x"].scale, zero_point)
    y = codes((256,), quantizers["y"].scale, -3, name="y")
    ratio = Fraction(float(x.scale)) / Fraction(float(y.scale))
    slope = Fraction(float(np.float32(layer.negative_slope)))
    expected = exact_leaky_codes(ratio, slope, zero_point)
    # The halves are 1/1024 away by construction, up to the last bits of float32.
    assert min(abs(value % 1 - Fraction(1, 2)) for value in expected) > Fraction(1, 1100)
    expected = np.clip([round(value) - 3 for value in expected], -128, 127)
    network = single("leaky_relu", [x], y, alpha=layer.negative_slope)
    np.testing.assert_array_equal(run(network, ALL_CODES[None])[0], expected)


def test_a_leaky_relu_on_one_grid_moves_its_slope_alone():
    layer = layers.LeakyReLU(negative_slope=0.1)
    scales = Scales({"x": Scale(0.0273)})
    assert scales.settle(LeakyReLU(layer, "x", "x"))
    assert scales.moved == {}
    assert layer.negative_slope == (26 - 2 / 512) / 256  # 26 is twice an odd number
    assert scales.slopes == {layer.name: layer.negative_slope / 0.1}


@pytest.mark.parametrize(
    ("slope", "ratio", "decided"),
    [
        (0.01, 1.0, ()),  # 3/256 is a sixth more
        (0.1, 1.0007, ("x", "y")),  # whose scales have other work
        (0.1, 0.1, ()),  # 26 steps of 256 are too few for scales to move that little
    ],
)
def test_a_leaky_relu_that_would_move_too_far_stays(slope, ratio, decided):
    layer = layers.LeakyReLU(negative_slope=slope)
    quantizers = {"x": Scale(0.0273 * ratio), "y": Scale(0.0273)}
    scales = Scales(quantizers)
    scales.decided |= set(decided)
    assert scales.settle(LeakyReLU(layer, "x", "y"))
    assert layer.negative_slope == slope
    assert (scales.moved, scales.slopes) == ({}, {})


def test_slopes_are_said_to_have_moved():
    model, _, settlement = settled("leaky", 8)
    found = [x for x in model.layers if isinstance(x, layers.LeakyReLU | layers.ReLU)]
    slopes = {layer.name: layer.negative_slope for layer in found}
    (kept,) = slopes.keys() - settlement.slopes.keys()
    assert slopes[kept] == 0.01
    before = {name: slopes[name] / factor for name, factor in settlement.slopes.items()}
    assert sorted(before.values()) == pytest.approx([0.1, 0.2, 0.25])
    assert all(0 < abs(factor - 1) < 0.02 for factor in settlement.slopes.values())
    assert "3 slopes, by up to" in str(settlement)


def test_what_rounds_to_the_same_grid_again_moves_with_it():
    """Calibration gives both quantizers of a function's codes one scale: nothing is to be done."""

    def body(x):
        x = layers.LeakyReLU(negative_slope=1.5, name="steep")(conv(x))
        return layers.Flatten()(conv(x))

    model, _ = built(body, 8)
    first, again = (model.get_layer(f"steep_{name}") for name in ("quantizer", "requantizer"))
    assert first.grid() == again.grid()
    settlement = model.settle()
    assert settlement.scales[first.name] == settlement.scales[again.name] != 1
    assert first.grid() == again.grid()
    assert "mul" not in {node.kind for node in speq_keras.fold(model).network.nodes}


def beside(function):
    """Returns a body: a function of two tensors, on the grid of the first, and that tensor."""

    def body(x):
        a, b = (layers.Conv2D(4, 3, padding="same")(x) for _ in range(2))
        return layers.Flatten()(layers.Concatenate()([a, function(a, b)]))

    return body


# One grid for what is computed and a factor of it: what is left of the ratio has to do.
ON_ITS_OWN_GRID = {
    "a third": lambda a, b: a * (1 / 3),
    "a sum": lambda a, b: a + b,
    "a difference": lambda a, b: b - a,
    "a product": lambda a, b: a * b,
    "a square": lambda a, b: a * a,
    "twice": lambda a, b: a + a,
    "a scaled sum": lambda a, b: a * 0.7 + b,
}


@pytest.mark.parametrize("name", ON_ITS_OWN_GRID)
def test_a_result_on_the_grid_of_what_it_is_made_of_is_settled(name, tmp_path):
    model, x = built(beside(ON_ITS_OWN_GRID[name]), 8)
    settlement = model.settle()
    share, report = equal_share(model, x, tmp_path)
    assert not settlement.left
    assert report.proof.settled
    assert share >= 0.99  # as above


def test_a_square_moves_its_scale_by_a_root():
    """x·x has the ratio s² / t, which has to be p / q with a small odd q afterwards."""
    quantizers = {"x": Scale(0.0273), "y": Scale(0.0917)}
    relation = Relation("square", [(("x", "x"), 1.0)], "y", is_sum=False, largest=128)
    scales = Scales(quantizers)
    scales.decided.add("y")
    assert scales.settle(relation)
    assert quantizers["y"].scale == np.float32(0.0917)
    ratio = float(quantizers["x"].scale) ** 2 / float(quantizers["y"].scale)
    odd = np.arange(1, 2**16, 2)
    # Within what two float32 factors may be off by.
    assert np.min(np.abs(odd * ratio - np.rint(odd * ratio)) / np.maximum(odd * ratio, 1)) < 2e-7


@pytest.mark.parametrize(
    ("inputs", "settled"),
    [
        ([(("x",), 0.5)], False),  # halves, whatever the scale is
        ([(("x",), 1 / 3)], True),
        ([(("x", "half"), 1.0)], False),
        ([(("x", "y"), 1.0)], True),
        ([(("x",), 0.5), (("y",), 1.0)], False),
        ([(("x",), 1.0), (("y",), 1.0)], True),
    ],
)
def test_what_a_common_scale_cannot_settle_is_not_called_settled(inputs, settled):
    quantizers = {"x": Scale(0.0273), "y": Scale(0.0917), "half": Scale(1 / 256, is_free=False)}
    scales = Scales(quantizers)
    relation = Relation("one", inputs, "x", is_sum=False, largest=128)
    assert scales.settle(relation) == settled
    assert quantizers["x"].scale == np.float32(0.0273)
    assert settled or quantizers["y"].scale == np.float32(0.0917)


class Scale:
    """What settling needs of a quantizer."""

    def __init__(self, scale, is_free=True):
        self.scale, self.is_free = np.float32(scale), is_free

    def grid(self):
        return self.scale, -128, 127

    def multiply_scale(self, factor):
        self.scale = np.float32(self.scale * factor) if self.is_free else self.scale
        return self.is_free


@pytest.mark.parametrize("unit", [1.0, 1 / 255, 2 / 255])
def test_pixels_that_were_resized_are_not_halfway_between_two_codes(unit, tmp_path):
    keras.utils.set_random_seed(4)
    x = keras.Input((6, 6, 3))
    y = layers.Conv2D(8, 3, activation="relu")(x)
    network = keras.Model(x, layers.Dense(5)(layers.Flatten()(y)))
    model = speq_keras.wrap(network, 8, 8, distillation=None, seed=0)
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 511, (64, 6, 6, 3)) / 2  # between two others
    x = (np.minimum(pixels, 255) * unit).astype("float32")
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0, 255 * unit
    model.calibrate(x, verbose=0)
    (quantizer,) = [q for q in model.activation_quantizers if "keras_tensor" in q.name]
    quantizer.multiply_scale(unit / quantizer.grid()[0])
    unsettled, _ = equal_share(model, x, tmp_path)
    model.settle()
    share, report = equal_share(model, x, tmp_path)
    assert unit != 1.0 or unsettled < 0.5  # multiples of other units are no halves in float32
    assert share >= 0.99
    assert report.proof.settled
    assert abs(quantizer.grid()[0] / unit - 1) < 1 / 500
    scale = quantizer.grid()[0]
    model.settle()
    assert quantizer.grid()[0] == scale


def test_training_afterwards_unsettles(tmp_path):
    model, x = built(residual)
    model.settle()
    model.compile("sgd", keras.losses.MeanSquaredError())
    model.fit(x[:32], np.ones((32, 5)), verbose=0)
    assert not model.export_tflite(tmp_path / "m.tflite", data=x[:4]).proof.settled
    model.settle()
    assert model.export_tflite(tmp_path / "m.tflite", data=x[:4]).proof.settled


def test_a_model_is_settled_for_one_storage(tmp_path):
    model, x = built(residual, 3)
    model.settle(storage="int4")
    share, report = equal_share(model, x, tmp_path, storage="int4")
    assert report.proof.settled
    assert share >= 0.99


# ---- what cannot be settled --------------------------------------------------------------------


def left_of(body, bits=3, **kwargs):
    model, _ = built(body, bits, **kwargs)
    return model.settle().left


def shared(x):
    layer = layers.Conv2D(3, 3, padding="same", name="twice")
    return layers.Flatten()(layers.ReLU()(layer(layers.ReLU()(layer(x)))))


def island(x):
    return layers.Flatten()(layers.LayerNormalization(name="norm")(layers.ReLU()(conv(x))))


def same_average(x):
    x = layers.AveragePooling2D(3, padding="same", name="pool")(layers.ReLU()(conv(x)))
    return layers.Flatten()(x)


def resized(x):
    return layers.Flatten()(layers.Resizing(11, 5, name="resize")(layers.ReLU()(conv(x))))


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (shared, "twice"),
        (island, "in float"),
        (same_average, "pool"),
        (resized, "resize"),
        (beside(lambda a, b: a * 0.5), "halfway"),
        (beside(lambda a, b: a * -0.5), "halfway"),
        (beside(lambda a, b: ops.silu(a)), "halfway"),
    ],
)
def test_what_cannot_be_settled_is_named(body, word):
    left = left_of(body)
    assert len(left) == 1
    assert word in left[0]


def test_a_bias_of_two_calls_is_said_to_move_in_the_finest_steps():
    model, _ = built(shared, 3)
    layer = model.get_layer("twice").layer
    before = ops.convert_to_numpy(layer.bias)
    settlement = model.settle()
    moved = np.max(np.abs(ops.convert_to_numpy(layer.bias) - before))
    graph = read_graph(model)
    makers = {index: node for node in graph.nodes for index in node.outputs}
    scales = []
    for node in graph.nodes:
        if hasattr(node.operation, "grid"):
            maker = makers.get(node.inputs[0])
            while maker is not None and isinstance(maker.operation, layers.ReLU):
                maker = makers.get(maker.inputs[0])
            if maker is not None and maker.operation.name == "twice":
                scales.append(node.operation.grid()[0])
    assert len(scales) == 2
    assert moved > 0
    # Float32 rounds the bias after it moved.
    np.testing.assert_allclose(settlement.biases["twice"], moved / min(scales), rtol=1e-3)


def test_scales_that_are_all_prescribed_are_named():
    left = left_of(residual, activation_quantizer="dorefa")
    assert left
    assert all("prescribed" in sentence for sentence in left)


def test_mixed_precision_is_named():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        left = left_of(residual)
    finally:
        keras.config.set_dtype_policy("float32")
    assert [sentence for sentence in left if "bfloat16" in sentence]


def test_a_model_without_ranges_is_refused_as_by_export():
    inputs = keras.Input(IMAGE)
    model = speq_keras.wrap(keras.Model(inputs, layers.Dense(5)(residual(inputs))), 3, 3)
    with pytest.raises(RuntimeError, match="must be calibrated"):
        model.settle()


def test_a_refused_model_stays_as_it_is():
    model, _ = built(lambda x: layers.Flatten()(ops.sort(layers.ReLU()(conv(x)), axis=1)))
    before = [np.array(w) for w in model.get_weights()]
    with pytest.raises(ValueError, match="sort"):
        model.settle()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_averages_go_up_at_halves_in_training():
    model, _ = built(averages, 8)
    quantizer = (
        next(q for q in model.activation_quantizers if "average" in q.name)
        if any("average" in q.name for q in model.activation_quantizers)
        else model.activation_quantizers[1]
    )
    scale = np.float32(quantizer.grid()[0])
    halves = (np.arange(0, 120, dtype="float32") + 0.5) * scale
    codes = np.rint(np.asarray(quantizer(halves, halves_up=True)) / scale)
    np.testing.assert_array_equal(codes, np.arange(1, 121))
