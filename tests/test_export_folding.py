"""Folding: the whole numbers behind weights and biases, and what BatchNormalization makes of them.

Expected values are worked again in float64 from Keras' own variables.
"""

import keras
import numpy as np
import pytest
from exact_arithmetic import TFLiteFile, same_padding
from keras import layers
from trained_graph import compare

import speq_keras
from speq_keras import quantizers
from speq_keras.export.folding import Grid, Weights
from speq_keras.export.folding.weights import NotOnGridError, codes_of, finish
from speq_keras.export.reference import run_steps

pytestmark = pytest.mark.every_backend

# float32 products: a few units in the last place of the largest value.
CLOSE = 1e-6

# ---- codes of weights --------------------------------------------------------------------------

QUANTIZERS = {
    name: cls
    for name, cls in vars(quantizers).items()
    if isinstance(cls, type)
    and issubclass(cls, quantizers.WeightQuantizer)
    and cls is not quantizers.WeightQuantizer
}


def quantized(cls, bits, per_channel, seed=0):
    """Returns quantized weights of 3×3 kernels, channels of very different sizes."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 1, (3, 3, 8, 6)) * np.geomspace(0.02, 3, 6)
    quantizer = cls(bits=bits, per_channel=per_channel, channel_axes=(-1,))
    variable = keras.Variable(weights.astype("float32"))
    quantizer.build(variable.shape)
    quantizer.start_from(variable)
    return keras.ops.convert_to_numpy(quantizer(variable.value))


def off_every_grid(name, bits):
    """DoReFa's 2^b values have no zero: odd multiples of one step, up to 255 at 8 bits."""
    return name == "DoReFa" and bits == 8


CASES = [
    (name, bits, per_channel)
    for name in QUANTIZERS
    for bits in range(2, 9)
    for per_channel in (False, True)
    if not off_every_grid(name, bits)
]


@pytest.mark.parametrize(("name", "bits", "per_channel"), CASES)
def test_codes_times_their_step_are_the_quantized_weights(name, bits, per_channel):
    values = quantized(QUANTIZERS[name], bits, per_channel)
    codes, scale = codes_of(values, (-1,) if per_channel else ())
    largest = np.abs(values).max(axis=(0, 1, 2) if per_channel else None)
    assert np.all(np.abs(codes * scale - values) <= CLOSE * largest)


@pytest.mark.parametrize(("name", "bits", "per_channel"), CASES)
def test_codes_are_whole_numbers_that_fit_8_bits(name, bits, per_channel):
    codes, _ = codes_of(
        quantized(QUANTIZERS[name], bits, per_channel), (-1,) if per_channel else ()
    )
    assert codes.dtype == np.int32
    # LSQ has one more code below zero; SAWB's and DoReFa's grids without zero have odd codes only.
    assert np.abs(codes).max() <= (2**bits - 1 if name in ("SAWB", "DoReFa") else 2 ** (bits - 1))
    assert np.abs(codes).max() <= 127 or name == "LSQ"


def test_four_values_of_sawb_without_zero_are_plus_minus_1_and_3():
    codes, _ = codes_of(quantized(quantizers.SAWB, 2, False), ())
    assert np.unique(codes).tolist() == [-3, -1, 1, 3]


def test_the_largest_step_is_found():
    codes, scale = codes_of(np.float32([[-2.0, 0.0], [4.0, 2.0]]), ())
    assert codes.tolist() == [[-1, 0], [2, 1]]
    assert scale.tolist() == [2.0]


def test_a_channel_of_zeros_has_codes_of_zero():
    codes, scale = codes_of(np.float32([[0.0, 0.5], [0.0, -0.5]]), (-1,))
    assert codes.tolist() == [[0, 1], [0, -1]]
    assert np.all(scale > 0)


def test_channel_axes_in_front_come_back_in_place():
    values = np.float32([[0.5, -0.25, 0.0], [3.0, 1.0, 2.0]])
    codes, scale = codes_of(values, (0,))
    assert codes.tolist() == [[2, -1, 0], [3, 1, 2]]
    np.testing.assert_allclose(scale, [0.25, 1.0])


def test_weights_on_no_grid_are_refused():
    with pytest.raises(NotOnGridError):
        codes_of(np.random.default_rng(0).normal(size=(5, 40)).astype("float32"), (-1,))


def test_dorefa_in_8_bits_needs_codes_beyond_127():
    with pytest.raises(NotOnGridError):
        codes_of(quantized(quantizers.DoReFa, 8, False), ())


# ---- biases and multipliers --------------------------------------------------------------------


def finished(codes, scale, bias, *, input_scale=0.1, grid=None, container="int8"):
    codes = np.asarray(codes, "int32")
    count = codes.shape[-1]
    weights = Weights(
        codes,
        np.broadcast_to(np.asarray(scale, "float64"), (count,)).copy(),
        np.broadcast_to(np.asarray(bias, "float64"), (count,)).copy(),
        (-1,),
        container=container,
        input_scale=input_scale,
    )
    notes = []
    finish(weights, grid or Grid(np.float32(0.5), 0, 7), notes, "layer")
    return weights, notes


def test_codes_are_multiplied_to_fill_8_bits():
    weights, _ = finished([[3, 1, 127, -100], [-2, 0, 5, 1]], 1.0, 0.0)
    assert weights.multiplier.tolist() == [42, 127, 1, 1]  # 127 // 3, 127 // 1, ...


@pytest.mark.parametrize(
    ("container", "codes", "multiplier"),
    [
        ("int4", [[3, 1, -4, 7], [-2, 0, 1, 0]], [2, 7, 2, 1]),  # -8 ... 7
        ("int2", [[1, -2, -1, 0], [-1, 0, 1, 0]], [1, 1, 1, 1]),  # -2 ... 1
    ],
)
def test_codes_are_multiplied_to_fill_narrow_containers(container, codes, multiplier):
    weights, _ = finished(codes, 1.0, 0.0, container=container)
    assert weights.multiplier.tolist() == multiplier


def test_a_bias_is_a_multiple_of_input_scale_times_weight_scale():
    weights, _ = finished([[3], [-1]], 0.02, 0.777)
    unit = 0.1 * 0.02 / 42
    assert weights.bias_codes.tolist() == [round(0.777 / unit)]
    assert abs(weights.rounded_bias[0] - 0.777) <= unit / 2


def test_the_bias_and_all_sums_stay_within_32_bits():
    codes = np.ones((4000, 3))
    weights, _ = finished(codes, [1e-9, 1e-6, 1.0], [50.0, -50.0, 1e9])
    assert 1 < weights.multiplier[1] < 127  # with 127, the bias alone were 5.7e9
    sums = np.sum(np.abs(codes), axis=0) * 255 * weights.multiplier + np.abs(weights.bias_codes)
    assert np.all(sums < 2**31)


def test_a_huge_bias_still_saturates_the_output():
    weights, _ = finished([[3], [-1]], 0.02, 1e12)
    least = weights.rounded_bias - np.sum(np.abs(weights.values)) * 0.1 * 255
    assert least[0] > 7 * 0.5


def test_a_channel_too_small_for_its_bias_is_written_as_its_bias_and_noted():
    weights, notes = finished([[3, 3], [-1, 2]], [1e-13, 0.02], [1.4, 0.3])
    assert weights.codes.tolist() == [[0, 3], [0, 2]]
    assert abs(weights.rounded_bias[0] - 1.4) < 0.5 * 2.0**-12
    assert len(notes) == 1
    assert notes[0].startswith("layer: 1 channels are almost constant")


def test_a_channel_of_zeros_keeps_its_bias_and_is_not_noted():
    weights, notes = finished([[0], [0]], 1.0, -0.8)
    assert abs(weights.rounded_bias[0] + 0.8) < 0.5 * 2.0**-12
    assert notes == []


# ---- BatchNormalization ------------------------------------------------------------------------

INPUT = (7, 6, 3)


def normalization(rng, **kwargs):
    return layers.BatchNormalization(name="norm", **kwargs)


def set_statistics(model, rng, gamma=None):
    layer = next(x for x in model.layers if isinstance(x, layers.BatchNormalization))
    count = layer.moving_mean.shape
    layer.moving_mean.assign(rng.normal(0, 0.3, count))
    layer.moving_variance.assign(rng.uniform(0.2, 2, count))
    if layer.center:
        layer.beta.assign(rng.normal(0, 0.5, count))
    if layer.scale:
        layer.gamma.assign(np.resize(gamma, count) if gamma else rng.uniform(0.5, 1.5, count))
    return layer


def built(function, gamma=None, w_bits=3, **kwargs):
    """Returns a calibrated model around `function` of 4 features, its BatchNormalization, data."""
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(2)
    x = keras.Input(INPUT)
    y = function(layers.Conv2D(4, 3, activation="relu", name="first")(x))
    outputs = layers.Conv2D(2, 1, name="last")(y)
    model = speq_keras.wrap(keras.Model(x, outputs), w_bits, 3, seed=0, **kwargs)
    norm = set_statistics(model, rng, gamma)
    for layer in model.layers:
        bias = getattr(getattr(layer, "layer", layer), "bias", None)
        if bias is not None:
            bias.assign(rng.normal(0, 0.2, bias.shape))
    data = rng.uniform(-1, 2, (8, *INPUT)).astype("float32")
    model.calibrate(data, verbose=0)
    return model, norm, data


def step_of(folded, layer):
    """Returns the step that computes a layer."""
    (step,) = [s for s in folded.folded.steps if any(n.name == layer for n in s.nodes)]
    return step


def slope_and_shift(norm):
    """y = γ·(x − μ) / √(σ² + ε) + β, as slope and shift."""
    values = {v.name: np.asarray(v.value, "float64") for v in norm.weights}
    slope = values.get("gamma", 1.0) / np.sqrt(values["moving_variance"] + norm.epsilon)
    return slope, values.get("beta", 0.0) - values["moving_mean"] * slope


KINDS = {
    "with a bias": lambda x: layers.Conv2D(5, 3, name="conv")(x),
    "without a bias": lambda x: layers.Conv2D(5, 3, use_bias=False, name="conv")(x),
    "depthwise": lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2, name="conv")(x),
    "transposed": lambda x: layers.Conv2DTranspose(5, 3, name="conv")(x),
    "dense": lambda x: layers.Dense(5, name="conv")(x),
}


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_normalization_behind_a_layer_multiplies_weights_and_bias(kind, options):
    model, norm, _ = built(
        lambda x: layers.ReLU()(layers.BatchNormalization(name="norm", **options)(KINDS[kind](x)))
    )
    layer = model.get_layer("conv")
    slope, shift = slope_and_shift(norm)
    (quantizer,) = layer.quantizers.values()
    weights = np.asarray(quantizer(layer.variable("kernel").value), "float64")
    bias = np.asarray(layer.layer.bias.value, "float64") if layer.layer.use_bias else 0.0
    if kind == "depthwise":
        expected = weights * slope.reshape(weights.shape[-2:])
    elif kind == "transposed":
        expected = weights * slope[:, None]
    else:
        expected = weights * slope
    found = step_of(speq_keras.fold(model), "conv").weights
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=CLOSE * largest)
    np.testing.assert_allclose(found.bias, bias * slope + shift, rtol=CLOSE, atol=CLOSE)


def test_a_negative_gamma_turns_codes_around_and_leaves_scales_positive():
    model, _, _ = built(
        lambda x: layers.BatchNormalization(name="norm")(KINDS["with a bias"](x)),
        gamma=[1.0, -1.0],
    )
    layer = model.get_layer("conv")
    plain, _ = codes_of(np.asarray(layer.quantizers["kernel"](layer.variable("kernel").value)), ())
    found = step_of(speq_keras.fold(model), "conv").weights
    assert np.all(found.scale > 0)
    assert np.array_equal(found.codes, plain * [1, -1, 1, -1, 1])


def exported(model, data, tmp_path, **kwargs):
    """Exports and returns the largest excess over what rounding allows, and the report."""
    report = model.export_tflite(tmp_path / "m.tflite", data=data, batch_size=len(data), **kwargs)
    file = TFLiteFile((tmp_path / "m.tflite").read_bytes())
    compared, _ = compare(model, speq_keras.fold(model), file, file.run_all(data), [data])
    assert len(compared) >= 3
    return max(c.largest - c.allowed for c in compared.values()), report


ORDERS = {
    "conv, norm, relu": lambda x: layers.ReLU()(
        layers.BatchNormalization()(KINDS["with a bias"](x))
    ),
    "conv, relu, norm": lambda x: layers.BatchNormalization()(
        layers.ReLU()(KINDS["with a bias"](x))
    ),
    "norm, relu, conv": lambda x: KINDS["with a bias"](
        layers.ReLU()(layers.BatchNormalization()(x))
    ),
    "norm, conv": lambda x: KINDS["with a bias"](layers.BatchNormalization()(x)),
    "conv, norm, norm": lambda x: layers.BatchNormalization()(
        layers.Rescaling(0.7, offset=0.1)(KINDS["with a bias"](x))
    ),
    "conv, norm, relu6": lambda x: layers.ReLU(6)(
        layers.BatchNormalization()(KINDS["with a bias"](x))
    ),
}


def read_elsewhere(x):
    y = layers.Conv2D(4, 1, name="conv")(x)
    return layers.Add()([layers.ReLU()(layers.BatchNormalization()(y)), y])


ORDERS["conv read elsewhere"] = read_elsewhere


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_layers_is_computed_as_trained(order, tmp_path):
    model, _, data = built(ORDERS[order])
    excess, _ = exported(model, data, tmp_path)
    assert excess <= 0


# γ = 10^-6 with σ ≈ 1 and β = 0.5: the channel is β and nothing else.
@pytest.mark.parametrize("gamma", [[-1.0, 1.0], [0.0, 1.0], [1e-6, 1.0], [1e-12, 1.0], [0.0]])
@pytest.mark.parametrize("order", ["conv, norm, relu", "norm, relu, conv"])
def test_negative_tiny_and_zero_gammas_are_computed_as_trained(order, gamma, tmp_path):
    model, _, data = built(ORDERS[order], gamma=gamma)
    excess, _ = exported(model, data, tmp_path)
    assert excess <= 0


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_other_weight_widths_are_computed_as_trained(bits, tmp_path):
    model, _, data = built(ORDERS["conv, norm, relu"], w_bits=bits)
    excess, _ = exported(model, data, tmp_path)
    assert excess <= 0


# ---- padding -----------------------------------------------------------------------------------


def padded_model(size, kernel, stride, pads, dilation=1):
    keras.utils.set_random_seed(1)
    x = keras.Input((size, size, 2))
    y = layers.Conv2D(3, 1, activation="relu", name="first")(x)
    y = layers.ZeroPadding2D((pads, pads), name="pad")(y)
    y = layers.DepthwiseConv2D(kernel, stride, dilation_rate=dilation, name="conv")(y)
    outputs = layers.Conv2D(2, 1, name="last")(y)
    model = speq_keras.wrap(keras.Model(x, outputs), 3, 3, seed=0)
    rng = np.random.default_rng(0)
    data = rng.uniform(-1, 2, (4, size, size, 2)).astype("float32")
    model.calibrate(data, verbose=0)
    return model, data


def kinds(model):
    return [node.kind for node in speq_keras.fold(model).network.nodes]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_padding_that_same_would_do_is_left_to_the_convolution(size, kernel, stride):
    model, _ = padded_model(size, kernel, stride, same_padding(size, kernel, stride))
    assert "pad" not in kinds(model)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
def test_padding_that_same_would_not_do_is_written(size, stride):
    before, after = same_padding(size, 3, stride)
    others = [(before + 1, after), (before, after + 1), (after + 1, before + 1)]
    others += [(after, before)] if before != after else []
    for pads in others:
        model, _ = padded_model(size, 3, stride, pads)
        assert "pad" in kinds(model)


def test_dilated_padding_is_left_to_the_convolution():
    model, _ = padded_model(9, 3, 1, same_padding(9, 3, 1, 2), dilation=2)
    assert "pad" not in kinds(model)


def test_a_narrower_reader_requantizes_first_and_pads_itself():
    keras.utils.set_random_seed(1)
    x = keras.Input((8, 8, 2))
    y = layers.Conv2D(4, 1, activation="relu", name="first")(x)
    wide = layers.Conv2D(4, 3, strides=2, padding="same", name="wide")(layers.Add()([y, y]))
    narrow = layers.Conv2D(4, 3, strides=2, name="narrow")(layers.ZeroPadding2D(((0, 1),) * 2)(y))
    outputs = layers.Conv2D(2, 1, name="last")(layers.Add()([wide, narrow]))
    model = speq_keras.wrap(keras.Model(x, outputs), 3, 3, seed=0)
    model.calibrate(np.random.default_rng(0).random((4, 8, 8, 2), "float32"), verbose=0)
    assert "mul" in kinds(model)
    assert "pad" not in kinds(model)


@pytest.mark.parametrize("pads", [(0, 1), (1, 0), (1, 1), (2, 0)])
def test_padded_models_are_computed_as_trained(pads, tmp_path):
    model, data = padded_model(8, 3, 2, pads)
    excess, _ = exported(model, data, tmp_path)
    assert excess <= 0


@pytest.mark.tensorflow
def test_tensorflow_pads_as_the_arithmetic_of_these_tests_says():
    for size in (6, 7, 8, 9):
        for kernel in (1, 2, 3, 5):
            for stride in (1, 2, 3):
                before, after = same_padding(size, kernel, stride)
                x = np.random.default_rng(0).normal(size=(1, size, 1)).astype("float32")
                weights = np.random.default_rng(1).normal(size=(kernel, 1, 1)).astype("float32")
                same = keras.ops.conv(x, weights, stride, "same")
                valid = keras.ops.conv(
                    np.pad(x, ((0, 0), (before, after), (0, 0))), weights, stride, "valid"
                )
                np.testing.assert_allclose(same, valid, rtol=0, atol=1e-5)


# ---- the folded network in float ---------------------------------------------------------------


def test_a_million_results_are_rounded_to_their_nearest_codes():
    keras.utils.set_random_seed(3)
    x = keras.Input((64,))
    y = layers.Dense(64, name="first")(x)
    model = speq_keras.wrap(keras.Model(x, layers.Dense(4)(y)), w_bits=8, a_bits=8)
    data = np.random.default_rng(4).normal(0, 1, (16_384, 64)).astype("float32")
    model.calibrate(data[:512], verbose=0)
    folded = speq_keras.fold(model)
    step = step_of(folded, "first")
    _, found = run_steps(folded.folded, [data], keep=True)

    source, grid = step.inputs[0].grid, step.output.grid
    codes = np.rint(data / np.float64(source.scale)).clip(source.low, source.high)
    unit = np.float64(source.scale) * step.weights.scale
    exact = codes @ step.weights.codes.astype("float64") * unit + step.weights.rounded_bias
    wanted = np.rint(exact / np.float64(grid.scale)).clip(grid.low, grid.high)
    np.testing.assert_array_equal(np.rint(found[step.name] / grid.scale), wanted)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_network_trained_in_mixed_precision_is_exported(policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    try:
        model, _, data = built(ORDERS["conv, norm, relu"])
    finally:
        keras.config.set_dtype_policy("float32")
    # The training graph rounds to 16 bits between its nodes: the folded network is the reference.
    report = model.export_tflite(tmp_path / "m.tflite", data=data)
    assert report.proof.mismatches == report.proof.outside == 0
    trained = [wrapper.layer for wrapper in model.layers if hasattr(wrapper, "layer")]
    assert {layer.compute_dtype for layer in trained} == {policy.removeprefix("mixed_")}
