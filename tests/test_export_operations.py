"""The emitters: options and versions in the file, and what the runtime computes from them."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from integer_networks import (
    CONV,
    IMAGE,
    bias_for,
    conv,
    dense,
    floating,
    network_of,
    one,
    operators_of,
    outputs_of,
    parsed,
    quantized,
    random_codes,
    single,
    transposed,
    two_inputs,
    weights,
)

from speq_keras.export.tflite import moving
from speq_keras.export.tflite.network import Node, Tensor
from speq_keras.export.tflite.operations import OPS
from speq_keras.export.tflite.simulate import simulate
from speq_keras.export.tflite.write import write

# ---- options and versions --------------------------------------------------------------------


def test_a_convolution_has_its_options():
    options = {"strides": (1, 2), "dilations": (3, 4), "padding": "valid"}
    name, _, found = operators_of(parsed(conv(activation="relu_n1_to_1", options=options)))[0]
    assert name == "CONV_2D"
    assert (found.strideH, found.strideW) == (1, 2)
    assert (found.dilationHFactor, found.dilationWFactor) == (3, 4)
    assert found.padding == schema.Padding.VALID
    assert found.fusedActivationFunction == schema.ActivationFunctionType.RELU_N1_TO_1


def test_a_pooling_has_its_options():
    pool = {"size": (2, 3), "strides": (4, 5), "padding": "same"}
    network = one("max_pool_2d", quantized("y", (None, 2, 2, 4)), activation="relu", **pool)
    _, _, found = operators_of(parsed(network))[0]
    assert (found.filterHeight, found.filterWidth) == (2, 3)
    assert (found.strideH, found.strideW) == (4, 5)
    assert found.padding == schema.Padding.SAME
    assert found.fusedActivationFunction == schema.ActivationFunctionType.RELU


def test_an_open_end_of_a_slice_is_a_bit_of_the_mask():
    options = {"begin": (0, 1, 0, 0), "end": (None, 7, None, 4), "strides": (1, 1, 1, 1)}
    network = one("strided_slice", quantized("y", (None, 6, 8, 4)), **options)
    assert operators_of(parsed(network))[0][2].endMask == 0b0101


def test_softmax_has_a_beta_of_1():
    output = quantized("y", (None, 4), scale=1 / 256, zero_point=-128)
    network = one("softmax", output, x=quantized("x", (None, 4)))
    assert operators_of(parsed(network))[0][2].beta == 1.0


def versions(network):
    return {name: version for name, version, _ in operators_of(parsed(network))}


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (conv(), {"CONV_2D": 3}),
        (conv(channels_in=2), {"CONV_2D": 6}),  # grouped
        (conv(dtype="int4"), {"CONV_2D": 7}),
        (dense(), {"FULLY_CONNECTED": 10}),  # per channel
        (dense("int4"), {"FULLY_CONNECTED": 12}),
        (dense("int2"), {"FULLY_CONNECTED": 14}),
        (two_inputs("add"), {"ADD": 2}),
        (two_inputs("add", make=floating), {"ADD": 1}),
        (two_inputs("mul"), {"MUL": 2}),
        (one("dequantize", floating("y", IMAGE)), {"DEQUANTIZE": 2}),
    ],
)
def test_operators_have_the_version_that_brought_their_kernel(network, expected):
    assert versions(network) == expected


def test_codes_that_are_multiplied_by_1_or_more_need_version_3_of_mul():
    network = two_inputs("mul")
    for name, scale in {"x": 0.25, "b": 0.5, "y": 0.125}.items():
        network.tensors[name].scale = np.float32(scale)
    assert versions(network) == {"MUL": 3}


@pytest.mark.parametrize(
    ("bias", "activation", "version"), [(False, "none", 2), (True, "none", 3), (True, "relu", 4)]
)
def test_versions_of_transposed_convolutions(bias, activation, version):
    network = transposed(bias=bias, activation=activation)
    network.nodes[0].inputs += [] if bias else [""]
    assert versions(network) == {"TRANSPOSE_CONV": version}


@pytest.mark.parametrize("kind", ["conv_2d", "depthwise_conv_2d", "fully_connected"])
def test_an_absent_bias_is_a_bias_of_zeros(kind):
    shape = {"conv_2d": (6, 3, 3, 4), "depthwise_conv_2d": (1, 3, 3, 4)}.get(kind, (6, 4))
    kernel = weights(0, shape, name="w", axis=3 if kind == "depthwise_conv_2d" else 0)
    channels = len(kernel.scale)
    options = {**CONV, "strides": (1, 1), "multiplier": 1, "keep_num_dims": True}
    network = one(kind, quantized("y", (None, 8, 8, channels)), kernel, **options)
    network.nodes[0].inputs.append("")
    x = random_codes(0, 1, 8, 8, 4)
    (without,) = outputs_of(write(network), x)
    zeros = bias_for(kernel)
    zeros.data = np.zeros_like(zeros.data)
    network.nodes[0].inputs[2] = network.add_tensor(zeros).name
    np.testing.assert_array_equal(without, outputs_of(write(network), x)[0])


def test_lookup_gives_the_entry_of_the_table_for_every_code():
    table = quantized("table", (256,), data=random_codes(0, 256))
    network = one("lookup", quantized("y", (None, 256)), table, x=quantized("x", (None, 256)))
    x = np.arange(-128, 128, dtype=np.int8)[None]
    np.testing.assert_array_equal(outputs_of(write(network), x)[0][0], table.data)


# ---- what they compute, in float ---------------------------------------------------------------

# {kind: the same by NumPy}. The arithmetic of 8 bits is tested elsewhere, against exact integers.
X = np.random.default_rng(0).uniform(-4, 7, (2, 8, 8, 4)).astype(np.float32)
A = np.abs(X) + np.float32(0.1)
B = np.random.default_rng(1).uniform(0.1, 2, (2, 8, 8, 4)).astype(np.float32)


def float_one(kind, output_shape=IMAGE, /, **options):
    return one(kind, floating("y", output_shape), x=floating("x", IMAGE), **options)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


UNARY = {
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),  # nothing is halfway here
    "log_softmax": lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "logistic": sigmoid,
    "neg": np.negative,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "square": np.square,
    "tanh": np.tanh,
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "squared_difference": lambda a, b: np.square(a - b),
}
COMPARISONS = {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}
POOL = {"size": (2, 2), "strides": (2, 2), "padding": "valid"}
BLOCKS = X.reshape(2, 4, 2, 4, 2, 4)
OTHERS = {
    "average_pool_2d": (float_one("average_pool_2d", (None, 4, 4, 4), **POOL), BLOCKS.mean((2, 4))),
    "max_pool_2d": (float_one("max_pool_2d", (None, 4, 4, 4), **POOL), BLOCKS.max((2, 4))),
    "mean": (float_one("mean", (None, 4), axes=(1, 2), keep_dims=False), X.mean((1, 2))),
    "reduce_max": (float_one("reduce_max", (None, 4), axes=(1, 2), keep_dims=False), X.max((1, 2))),
    "reduce_min": (float_one("reduce_min", (None, 4), axes=(1, 2), keep_dims=False), X.min((1, 2))),
    "sum": (float_one("sum", (None, 4), axes=(1, 2), keep_dims=False), X.sum((1, 2))),
    "reduce_prod": (
        float_one("reduce_prod", (None, 8, 8, 1), axes=(3,), keep_dims=True),
        X[..., :1] * X[..., 1:2] * X[..., 2:3] * X[..., 3:],
    ),
    "reshape": (float_one("reshape", (None, 256), shape=(None, 256)), X.reshape(2, 256)),
    "transpose": (
        float_one("transpose", (None, 4, 8, 8), permutation=(0, 3, 1, 2)),
        X.transpose(0, 3, 1, 2),
    ),
    "pad": (
        float_one("pad", (None, 9, 8, 4), paddings=((0, 0), (1, 0), (0, 0), (0, 0))),
        np.pad(X, ((0, 0), (1, 0), (0, 0), (0, 0))),
    ),
    "mirror_pad": (
        float_one(
            "mirror_pad",
            (None, 10, 10, 4),
            paddings=((0, 0), (2, 0), (1, 1), (0, 0)),
            mode="reflect",
        ),
        # One more by hand: rows 2 and 1 before row 0, columns 1 and 6 around the others.
        X[:, [2, 1, *range(8)]][:, :, [1, *range(8), 6]],
    ),
    "strided_slice": (
        float_one(
            "strided_slice",
            (None, 3, 8, 4),
            begin=(0, 1, 0, 0),
            end=(None, 7, None, 4),
            strides=(1, 2, 1, 1),
        ),
        X[:, 1:7:2],
    ),
    "resize_nearest_neighbor": (
        float_one("resize_nearest_neighbor", (None, 16, 16, 4), size=(16, 16)),
        X.repeat(2, axis=1).repeat(2, axis=2),
    ),
    "resize_bilinear": (float_one("resize_bilinear", (None, 4, 4, 4), size=(4, 4)), X[:, ::2, ::2]),
    "leaky_relu": (float_one("leaky_relu", alpha=0.3), np.where(X > 0, X, 0.3 * X)),
    "gelu": (
        float_one("gelu", approximate=True),
        X * sigmoid(2 * np.sqrt(2 / np.pi) * (X + 0.044715 * X**3)),
    ),
}


def check(found, expected):
    # XNNPACK's float functions are a few float32 roundings away from NumPy's.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", UNARY)
def test_unary_kinds_compute_what_their_name_says(kind):
    x = A if kind in ("log", "rsqrt", "sqrt") else X
    check(outputs_of(write(float_one(kind)), x)[0], UNARY[kind](x))


@pytest.mark.parametrize("kind", BINARY)
def test_binary_kinds_compute_what_their_name_says(kind):
    network = two_inputs(kind, make=floating)
    check(outputs_of(write(network), A, B)[0], BINARY[kind](A, B))


@pytest.mark.parametrize("kind", COMPARISONS)
def test_comparisons_make_ones_and_zeros(kind):
    network = two_inputs(kind, make=floating)
    network.tensors["y"].dtype = "int32"
    other = np.where(B > 1, X, B)  # half of them are equal
    found = outputs_of(write(network), X, other)[0]
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, COMPARISONS[kind](X, other))
    np.testing.assert_array_equal(simulate(network, [X, other])[0], found)


def test_select_takes_the_first_where_the_mask_is_not_zero():
    mask = Tensor(name="m", shape=IMAGE, dtype="int32")
    network = single(
        "select", [mask, floating("x", IMAGE), floating("b", IMAGE)], floating("y", IMAGE)
    )
    chosen = (X > 0).astype(np.int32) * 3
    found = outputs_of(write(network), chosen, X, B)[0]
    np.testing.assert_array_equal(found, np.where(X > 0, X, B))
    np.testing.assert_array_equal(simulate(network, [chosen, X, B])[0], found)


def test_arg_max_is_the_place_of_the_largest():
    network = float_one("arg_max", (None, 8, 4), axis=1)
    network.tensors["y"].dtype = "int32"
    found = outputs_of(write(network), X)[0]
    np.testing.assert_array_equal(found, X.argmax(1))
    np.testing.assert_array_equal(simulate(network, [X])[0], found)


VOLUME = {"strides": (1, 2, 1), "padding": "same"}


def volumes(kind, kernel, output_shape, options):
    """Returns a network of one convolution of volumes, and its constants."""
    rng = np.random.default_rng(3)
    values = {"w": rng.normal(size=kernel), "bias": rng.normal(size=5)}
    constants = [
        Tensor(name=n, shape=v.shape, dtype="float32", data=v.astype(np.float32))
        for n, v in values.items()
    ]
    x = floating("x", (None, 3, 4, 5, 2))
    return single(kind, [x, *constants], floating("y", output_shape), **options), values


@pytest.mark.parametrize("kind", ["conv_3d", "conv_3d_transpose"])
def test_convolutions_of_volumes_are_those_of_keras(kind):
    layer, kernel, size, options = {
        "conv_3d": (keras.layers.Conv3D, (2, 3, 2, 2, 5), (3, 2, 5), VOLUME),
        "conv_3d_transpose": (
            keras.layers.Conv3DTranspose,
            (2, 3, 2, 5, 2),
            (3, 8, 5),
            {**VOLUME, "output_size": (3, 8, 5)},
        ),
    }[kind]
    network, values = volumes(kind, kernel, (None, *size, 5), options)
    layer = layer(5, (2, 3, 2), strides=(1, 2, 1), padding="same")
    layer.build((None, 3, 4, 5, 2))
    layer.set_weights([values["w"], values["bias"]])
    x = np.random.default_rng(4).normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
    # The transposed kernel takes the size of the batch from a constant.
    found = outputs_of(write(network, batch_size=2), x)[0]
    np.testing.assert_allclose(found, layer(x), rtol=1e-4, atol=1e-5)  # sums of 24 products
    np.testing.assert_allclose(simulate(network, [x])[0], found, rtol=1e-4, atol=1e-5)


def test_batch_matmul_multiplies_the_last_two_axes():
    network = two_inputs("batch_matmul", make=floating)
    network.tensors["b"].shape, network.tensors["y"].shape = (None, 8, 4, 8), (None, 8, 8, 8)
    other = B.swapaxes(2, 3)
    check(outputs_of(write(network), A, other)[0], A @ other)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_compute_what_their_name_says(kind):
    network, expected = OTHERS[kind]
    check(outputs_of(write(network), X)[0], expected)


def test_concatenation_joins_along_its_axis():
    network = two_inputs("concatenation", make=floating, axis=3)
    network.tensors["y"].shape = (None, 8, 8, 8)
    np.testing.assert_array_equal(
        outputs_of(write(network), X, B)[0], np.concatenate([X, B], axis=3)
    )


def test_quantize_and_dequantize_are_each_others_inverse():
    nodes = [
        Node(kind="quantize", inputs=["x"], outputs=["h"]),
        Node(kind="dequantize", inputs=["h"], outputs=["y"]),
    ]
    tensors = [floating("x", (None, 3)), quantized("h", (None, 3)), floating("y", (None, 3))]
    x = np.array([[-1.0, 0.0, 0.5]], np.float32)
    np.testing.assert_allclose(outputs_of(write(network_of(tensors, nodes)), x)[0], x, rtol=1e-6)


def test_prelu_has_a_slope_per_channel():
    alpha = Tensor(name="alpha", shape=(4,), dtype="float32", data=np.arange(4, dtype=np.float32))
    network = one("prelu", floating("y", IMAGE), alpha, x=floating("x", IMAGE))
    np.testing.assert_allclose(outputs_of(write(network), -A)[0], -A * np.arange(4), rtol=1e-6)


def test_cast_changes_the_type():
    output = Tensor(name="y", shape=IMAGE, dtype="int32")
    network = one("cast", output, x=floating("x", IMAGE))
    np.testing.assert_array_equal(outputs_of(write(network), X)[0], X.astype(np.int32))


def test_gather_takes_along_its_axis():
    index = Tensor(name="i", shape=(2,), dtype="int32", data=np.array([3, 1], np.int32))
    network = one("gather", floating("y", (None, 8, 8, 2)), index, x=floating("x", IMAGE), axis=3)
    np.testing.assert_array_equal(outputs_of(write(network), X)[0], X[..., [3, 1]])


# ---- what they compute, in integers ------------------------------------------------------------


def exact(accumulators, network):
    """Returns round(accumulator * scale) + zero point, saturated; a tie would have to be even."""
    kernel, output = network.tensors["w"], network.tensors["y"]
    factor = np.float64(0.05) * kernel.scale.astype(np.float64) / np.float64(output.scale)
    return np.clip(np.rint(accumulators * factor) + output.zero_point, -128, 127)


def window_sum(x, kernel, stride_width=1):
    """Returns the accumulators of a SAME 3 x 3 convolution of codes with zero point 3."""
    x = np.pad(x.astype(np.int64) - 3, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1] - 2, x.shape[2] - 2
    windows = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.stack(windows, 3), kernel.reshape(len(kernel), 9, -1).astype(np.int64)


def test_a_convolution_reads_its_filter_as_ohwi():
    network = conv(options={**CONV, "strides": (1, 1)})
    network.tensors["y"].shape = (None, 8, 8, 6)
    x = random_codes(0, 1, 8, 8, 4)
    windows, kernel = window_sum(x, network.tensors["w"].data)
    sums = np.einsum("nhwkc,okc->nhwo", windows, kernel) + network.tensors["bias"].data
    np.testing.assert_array_equal(outputs_of(write(network), x)[0], exact(sums, network))


def test_a_grouped_convolution_reads_a_group_of_channels_per_filter():
    network = conv(channels_in=2, options={**CONV, "strides": (1, 1)})
    network.tensors["y"].shape = (None, 8, 8, 6)
    x = random_codes(0, 1, 8, 8, 4)
    windows, kernel = window_sum(x, network.tensors["w"].data)
    halves = [
        np.einsum("nhwkc,okc->nhwo", windows[..., :2], kernel[:3]),
        np.einsum("nhwkc,okc->nhwo", windows[..., 2:], kernel[3:]),
    ]
    sums = np.concatenate(halves, axis=-1) + network.tensors["bias"].data
    np.testing.assert_array_equal(outputs_of(write(network), x)[0], exact(sums, network))


def test_a_depthwise_convolution_makes_multiplier_outputs_per_channel():
    kernel = weights(0, (1, 3, 3, 8), name="w", axis=3)
    network = one("depthwise_conv_2d", quantized("y", (None, 8, 8, 8)), kernel, bias_for(kernel))
    network.nodes[0].options = {**CONV, "strides": (1, 1), "multiplier": 2}
    x = random_codes(0, 1, 8, 8, 4)
    windows, _ = window_sum(x, kernel.data)
    flat = kernel.data.reshape(9, 8).astype(np.int64)
    sums = np.einsum("nhwkc,kc->nhwc", windows.repeat(2, axis=-1), flat)
    sums += network.tensors["bias"].data
    np.testing.assert_array_equal(outputs_of(write(network), x)[0], exact(sums, network))


@pytest.mark.parametrize("activation", ["none", "relu", "relu_n1_to_1"])
def test_a_transposed_convolution_spreads_its_input(activation):
    network = transposed(activation=activation)
    x = random_codes(0, 1, 8, 8, 4)
    kernel = network.tensors["w"].data.astype(np.int64)
    spread = np.einsum("nhwc,okc->nhwko", x.astype(np.int64) - 3, kernel.reshape(6, 9, 4))
    sums = np.zeros((1, 17, 17, 6), np.int64)
    for k in range(9):
        sums[:, k // 3 : k // 3 + 16 : 2, k % 3 : k % 3 + 16 : 2] += spread[..., k, :]
    # SAME with stride 2: one row and column too many, which fall off at the end.
    sums = sums[:, :16, :16] + network.tensors["bias"].data
    expected = exact(sums, network)
    low, high = {"relu": (3, 127), "relu_n1_to_1": (3 - 20, 3 + 20)}.get(activation, (-128, 127))
    np.testing.assert_array_equal(outputs_of(write(network), x)[0], np.clip(expected, low, high))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "int4", "int2"])
def test_a_dense_layer_multiplies_by_its_codes(dtype, keep):
    network = dense(dtype, keep=keep)
    x = random_codes(0, *((2, 5, 8) if keep else (2, 8)))
    kernel = network.tensors["w"].data.astype(np.int64)
    sums = (x.astype(np.int64) - 3) @ kernel.T + network.tensors["bias"].data
    (y,) = outputs_of(write(network), x)
    np.testing.assert_array_equal(y, exact(sums, network))


def test_every_kind_is_tested_here():
    alone = {"batch_matmul", "cast", "conv_2d", "depthwise_conv_2d", "dequantize"}
    alone |= {"fully_connected", "lookup", "prelu", "quantize", "transpose_conv"}
    alone |= {"arg_max", "conv_3d", "conv_3d_transpose", "select"}
    assert set(OPS) - set(moving.OPS) <= {*UNARY, *BINARY, *COMPARISONS, *OTHERS} | alone
