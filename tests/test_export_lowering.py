"""Lowering: fewer than 8 bits in stock int8 kernels, and what stands in the file for each step.

How a stored value is clipped is worked here from the definition of the kernels: the exact value is
clamped by the fused activation, in real numbers of the file, rounded, and saturated to int8.
"""

import keras
import numpy as np
import pytest
from exact_arithmetic import TFLiteFile, distances
from keras import layers
from trained_graph import compare

import speq_keras
from speq_keras.export.folding import Grid
from speq_keras.export.folding.steps import FoldedNetwork, Step, Value
from speq_keras.export.lowering import lower
from speq_keras.export.lowering.encoding import encoding_of, fused_activation
from speq_keras.export.tflite.runtimes import run_file
from speq_keras.export.tflite.write import write

pytestmark = pytest.mark.every_backend

# ---- encodings ---------------------------------------------------------------------------------

STEP = np.float32(0.37)


def grids(bits):
    """Returns all grids of a width that contain zero."""
    levels = 2**bits - 1
    zeros = range(0, levels + 1, max(1, levels // 16))
    return [Grid(STEP, -zero, levels - zero) for zero in zeros]


GRIDS = [grid for bits in range(2, 9) for grid in grids(bits)]
BOUNDS = {"none": (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6), "relu_n1_to_1": (-1, 1)}


def kernel(real, scale, zero_point, activation):
    """Returns what a kernel stores for real values in units of the file's scale."""
    clamped = np.clip(real, *BOUNDS[activation])
    return np.clip(np.rint(clamped / np.float64(scale)) + zero_point, -128, 127)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_kernel_that_clips_as_told_makes_the_codes_of_the_grid(grid):
    encoding = encoding_of(grid)
    fused, after = fused_activation("none", grid)
    assert after is None
    codes = np.arange(-700, 700) / 2 + 0.2  # no ties, far beyond both ends
    # In the file the number is code · scale; what the model means is code · step.
    stored = kernel(codes * np.float64(encoding.scale), encoding.scale, encoding.zero_point, fused)
    expected = np.clip(np.rint(codes), grid.low, grid.high)
    np.testing.assert_array_equal(stored - encoding.zero_point, expected)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_stored_values_fit_8_bits_and_mean_code_times_step(grid):
    encoding = encoding_of(grid)
    assert -128 <= encoding.low <= encoding.high <= 127
    codes = np.arange(grid.low, grid.high + 1)
    stored = codes + encoding.zero_point
    assert (stored[0], stored[-1]) == (encoding.low, encoding.high)
    real = (stored - encoding.zero_point) * np.float64(encoding.scale) * encoding.factor
    np.testing.assert_allclose(real, codes * np.float64(STEP), rtol=1e-6)


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.low == 0], ids=str)
def test_grids_without_negative_codes_keep_their_step_as_scale(grid):
    assert encoding_of(grid).scale == STEP


@pytest.mark.parametrize("grid", [Grid(STEP, 0, 7), Grid(STEP, 0, 255)], ids=str)
def test_relu_costs_nothing_where_no_code_is_negative(grid):
    fused, after = fused_activation("relu", grid)
    assert (fused, after) == ("relu", None)


@pytest.mark.parametrize(
    ("scale", "fused"), [(0.5, "relu"), (6 / 7, "relu"), (0.9, "relu"), (1.0, "relu6")]
)
def test_relu6_is_left_out_where_the_grid_ends_before_6(scale, fused):
    assert fused_activation("relu6", Grid(np.float32(scale), 0, 7)) == (fused, None)


def test_relu_on_a_signed_grid_below_8_bits_takes_a_second_operation():
    assert fused_activation("relu", Grid(STEP, -4, 3)) == ("relu_n1_to_1", "relu")


# ---- models ------------------------------------------------------------------------------------

SHAPE = (6, 6, 3)


def features(x):
    return layers.Conv2D(4, 3, padding="same", name="first")(x)


def built(body, bits=3, quantizer="pact", last=True):
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(2)
    x = keras.Input(SHAPE)
    y = body(features(x))
    y = layers.Dense(3, name="last")(y) if last else y
    model = speq_keras.wrap(keras.Model(x, y), bits, bits, seed=0, activation_quantizer=quantizer)
    for variable in model.weights:
        if variable.name in ("bias", "alpha") and variable.shape:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    data = rng.uniform(-1, 2, (8, *SHAPE)).astype("float32")
    model.calibrate(data, verbose=0)
    return model, data


def nodes_of(model, **kwargs):
    network = speq_keras.fold(model, **kwargs).network
    return [(node.kind, node.activation) for node in network.nodes]


def file_of(model, data, tmp_path, **kwargs):
    model.export_tflite(tmp_path / "m.tflite", data=data, batch_size=len(data), **kwargs)
    return TFLiteFile((tmp_path / "m.tflite").read_bytes())


def check(model, data, tmp_path):
    """The file's codes are the nearest ones to the training graph and to exact arithmetic."""
    file = file_of(model, data, tmp_path)
    values = file.run_all(data)
    compared, _ = compare(model, speq_keras.fold(model), file, values, [data])
    assert len(compared) >= 3
    assert not {n: c.largest for n, c in compared.items() if c.largest > c.allowed}
    assert not {n: d for n, d in distances(file, values).items() if d[0] > d[1]}


MERGES = {
    "Add": lambda x: layers.Add()([layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(x)]),
    "Subtract": lambda x: layers.Subtract()([layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(x)]),
    "Multiply": lambda x: layers.Multiply()([layers.Conv2D(4, 1)(x), layers.Conv2D(4, 1)(x)]),
}


SEQUENCES = {
    "Conv1D": lambda x, name: layers.Conv1D(4, 3, padding="same", name=name)(x),
    "DepthwiseConv1D": lambda x, name: layers.DepthwiseConv1D(3, padding="same", name=name)(x),
    "Conv1DTranspose": lambda x, name: layers.Conv1DTranspose(4, 3, padding="same", name=name)(x),
    "Dense": lambda x, name: layers.Dense(4, name=name)(x),
}


@pytest.mark.parametrize("layer", SEQUENCES)
def test_a_relu_on_a_signed_grid_takes_a_second_operation_in_sequences_too(layer, tmp_path):
    """A ReLU gets a signed grid where it shares that of a Concatenate; kernels add a height."""
    x = keras.Input((16, 4))
    both = [layers.ReLU()(SEQUENCES[layer](x, "one")), SEQUENCES[layer](x, "other")]
    y = layers.Conv1D(4, 3, name="middle")(layers.Concatenate()(both))
    y = layers.Conv1D(3, 3, name="last")(y)
    model = speq_keras.wrap(keras.Model(x, y), 3, 3, distillation=None)
    data = np.random.default_rng(0).normal(size=(8, 16, 4)).astype("float32")
    model.calibrate(data, verbose=0)
    nodes = speq_keras.fold(model).network.nodes
    assert [node.activation for node in nodes if node.kind == "mul"] == ["relu"]
    check(model, data, tmp_path)


@pytest.mark.parametrize("quantizer", ["pact", "lsq_plus"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("merge", MERGES)
def test_a_signed_sum_or_product_below_8_bits_takes_a_second_operation(
    merge, bits, quantizer, tmp_path
):
    body = MERGES[merge]
    model, data = built(
        lambda x: layers.Conv2D(4, 1, name="reader")(body(x)), bits=bits, quantizer=quantizer
    )
    folded = speq_keras.fold(model)
    (step,) = [s for s in folded.folded.steps if s.kind == merge.lower()]
    kinds = [(node.kind, node.activation) for node in folded.network.nodes]
    if bits == 8:
        clips = [(merge.lower()[:3], "none")]
    elif step.output.grid.low == 0:  # LSQ+ may find that negative values pay no code
        clips = [(merge.lower()[:3], "relu")]
    else:
        clips = [(merge.lower()[:3], "none"), ("mul", "relu_n1_to_1")]
    place = kinds.index(clips[0])
    assert kinds[place : place + len(clips)] == clips
    check(model, data, tmp_path)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_narrower_reader_requantizes_by_a_product_with_a_constant(bits, tmp_path):
    def body(x):
        y = layers.Conv2D(4, 1, activation="relu")(x)
        return layers.Add()([layers.Conv2D(4, 1)(y), y])

    model, data = built(body, bits=bits)
    network = speq_keras.fold(model).network
    (node,) = [n for n in network.nodes if n.kind == "mul"]
    constant = network.tensors[node.inputs[1]]
    assert constant.data.tolist() == [127]
    check(model, data, tmp_path)


@pytest.mark.parametrize("function", ["mish", "selu", "softplus", "softsign", "tanh_shrink"])
def test_a_table_holds_the_rounded_function_of_every_code(function):
    model, _ = built(layers.Activation(function))
    network = speq_keras.fold(model).network
    (node,) = [n for n in network.nodes if n.kind == "lookup"]
    source, table = (network.tensors[name] for name in node.inputs)
    output = network.tensors[node.output]
    x = (np.arange(-128, 128) - source.zero_point) * np.float64(source.scale)
    y = np.asarray(getattr(keras.activations, function)(x.astype("float32")), "float64")
    exact = np.clip(y / np.float64(output.scale) + output.zero_point, -128, 127)
    assert np.max(np.abs(table.data - exact)) <= 0.5 + 1e-4


def test_slopes_of_prelu_per_channel_are_tables_one_after_the_other():
    model, _ = built(layers.PReLU(shared_axes=(1, 2), name="prelu"))
    network = speq_keras.fold(model).network
    (node,) = [n for n in network.nodes if n.kind == "lookup"]
    source, table = (network.tensors[name] for name in node.inputs)
    output = network.tensors[node.output]
    x = (np.arange(-128, 128) - source.zero_point) * np.float64(source.scale)
    alpha = np.asarray(model.get_layer("prelu").alpha, "float64").reshape(-1, 1)
    exact = np.where(x > 0, x, alpha * x) / np.float64(output.scale) + output.zero_point
    distance = np.abs(table.data.reshape(4, 256) - np.clip(exact, -128, 127))
    assert np.max(distance) <= 0.5 + 1e-4


def test_average_pooling_is_a_convolution_that_rounds_halves_up(tmp_path):
    model, data = built(lambda x: layers.AveragePooling2D(2)(x))
    network = speq_keras.fold(model).network
    (node,) = [n for n in network.nodes if n.kind == "depthwise_conv_2d"]
    x, weights, bias = (network.tensors[name] for name in node.inputs)
    sums = np.arange(-4 * 128, 4 * 127 + 1)
    factor = np.float64(x.scale) * np.float64(weights.scale[0]) / network.tensors[node.output].scale
    stored = np.rint((127 * sums + bias.data[0]) * factor)
    assert set(np.unique(weights.data)) == {127}
    np.testing.assert_array_equal(stored, np.floor(sums / 4 + 0.5))


# What a mean over all of an image may be: width, unsigned or not, and number of pixels.
IMAGES = [(bits, 0, size) for bits in range(2, 9) for size in ((2, 2), (7, 7), (8, 8))]
IMAGES += [(2, 0, (16, 16)), (4, 0, (16, 16)), (3, 0, (28, 28)), (4, 0, (1, 50))]
IMAGES += [(8, -128, (7, 7)), (3, -4, (7, 7)), (3, -4, (8, 8))]


def pool_over_the_image(bits, low, size, scale, channels=1):
    """A network from images of codes to their averages, int8 at both ends."""
    grid = Grid(np.float32(scale), low, low + 2**bits - 1)
    image = Value("image", (None, *size, channels), None)
    x = Value("x", image.shape, grid)
    output = Value("pool", (None, 1, 1, channels), grid)
    options = {"size": size, "strides": size, "padding": "valid"}
    folded = FoldedNetwork(
        "pool",
        steps=[Step("quantize", [image], x), Step("average_pool_2d", [x], output, options=options)],
        inputs=[image],
        outputs=[output],
        input_names=["image"],
        output_names=["pool"],
    )
    network, problems = lower(folded, io="int8")
    assert problems == []
    return network


@pytest.mark.parametrize(("bits", "low", "size"), IMAGES)
def test_a_pool_over_the_whole_image_sends_every_half_up(bits, low, size):
    grid = Grid(np.float32(1), low, low + 2**bits - 1)
    count, zero_point = int(np.prod(size)), encoding_of(grid).zero_point
    sums = np.arange(count * grid.low, count * grid.high + 1)  # one in every channel
    is_higher = np.arange(count)[:, None] < sums % count  # by one than the other pixels
    codes = (sums // count + is_higher).reshape(1, *size, -1)
    for scale in (0.0173, 1.0, 0.37):
        network = pool_over_the_image(bits, low, size, scale, len(sums))
        (got,) = run_file(write(network), (codes + zero_point).astype("int8"))
        expected = np.floor(sums / count + 0.5)
        np.testing.assert_array_equal(got.reshape(-1).astype(int) - zero_point, expected)


@pytest.mark.parametrize(
    ("bits", "low", "size", "kind"),
    [
        (8, 0, (8, 8), "mean"),
        (2, 0, (2, 2), "mean"),
        (3, -4, (7, 7), "mean"),  # an odd number of codes has no halves
        (3, -4, (8, 8), "depthwise_conv_2d"),  # halves below zero would go down
        (8, 0, (28, 28), "depthwise_conv_2d"),  # float32 is too coarse
    ],
)
def test_it_is_a_mean_where_that_is_exact(bits, low, size, kind):
    network = pool_over_the_image(bits, low, size, 0.0173)
    (maker,) = [n for n in network.nodes if n.kind in ("mean", "depthwise_conv_2d")]
    assert maker.kind == kind


# ---- ends --------------------------------------------------------------------------------------


def classifier(x):
    return layers.Dense(5, activation="softmax", name="classes")(
        layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    )


@pytest.mark.parametrize(("io", "shift"), [("int8", 0), ("uint8", 128)])
def test_integer_ends_hold_the_codes_of_the_float_file(io, shift, tmp_path):
    model, data = built(classifier, last=False)
    plain = file_of(model, data, tmp_path)
    values = plain.run_all(data)
    codes = {  # behind the first operation, before the last
        "input": values[plain.operations[0].outputs[0]],
        "output": values[plain.operations[-1].inputs[0]],
    }
    file = file_of(model, data, tmp_path, io=io)
    (source,), (sink,) = file.inputs, file.outputs
    assert {file.tensors[source].type, file.tensors[sink].type} == {io}
    (found,) = file.run((codes["input"].astype("int16") + shift).astype(io))
    np.testing.assert_array_equal(found.astype("int16") - shift, codes["output"])
    float_scale = plain.tensors[plain.operations[-1].inputs[0]].scale
    assert file.tensors[sink].scale == float_scale


def test_without_softmax_the_outputs_are_the_logits(tmp_path):
    model, data = built(classifier, last=False)
    file = file_of(model, data, tmp_path, softmax=False)
    assert "SOFTMAX" not in [op.name for op in file.operations]
    full = file_of(model, data, tmp_path)
    (softmax,) = [op for op in full.operations if op.name == "SOFTMAX"]
    number = softmax.inputs[0]
    logits = full.tensors[number].real(full.run_all(data)[number])
    np.testing.assert_allclose(file.run(data)[0], logits, rtol=1e-6)


def test_softmax_in_the_middle_stays(tmp_path):
    model, _ = built(lambda x: layers.Softmax()(x))
    assert ("softmax", "none") in nodes_of(model, softmax=False)


@pytest.mark.parametrize("function", [layers.Softmax(), layers.Activation("sigmoid")])
def test_a_softmax_in_float_is_left_out_as_well(function, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(5, activation="relu")(layers.Dense(5, activation="relu")(inputs))
    logits = layers.Dense(4)(x)
    network = keras.Model(inputs, function(logits))
    model = speq_keras.wrap(network, 8, 8, distillation=None, boundary_bits=None)
    data = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    model.calibrate(data, verbose=0)
    (found,) = file_of(model, data, tmp_path, softmax=False).run(data)
    assert found.min() < 0 < found.max()  # no probabilities
    # Float32 sums, and ties that they see on another side: a step of one of five inputs.
    wanted = function.call(keras.ops.convert_to_tensor(found))
    np.testing.assert_allclose(wanted, model.predict(data, verbose=0), atol=0.02)


def test_a_file_of_floats_alone_is_proven_by_its_outputs(tmp_path):
    inputs = keras.Input((6,))
    network = keras.Model(inputs, layers.Dense(4)(layers.Dense(5, activation="relu")(inputs)))
    model = speq_keras.wrap(network, 3, None, distillation=None, boundary_bits=8)
    data = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    (found,) = file_of(model, data, tmp_path).run(data)
    np.testing.assert_allclose(found, model.predict(data, verbose=0), rtol=1e-4, atol=1e-5)


def test_without_a_softmax_a_hard_sigmoid_stays(tmp_path):
    """It is no function of logits, such as softmax, sigmoid and tanh."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    network = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "hard_sigmoid")])
    model = speq_keras.wrap(network, 8, 8, distillation=None, seed=0)
    model.calibrate(x, verbose=0)
    path = tmp_path / "m.tflite"
    model.export_tflite(path, softmax=False)
    (found,) = speq_keras.export.run_file(path.read_bytes(), x)
    np.testing.assert_allclose(found, model.predict(x, verbose=0), atol=1 / 128)  # two codes
