"""Every operation alone: the file in LiteRT against exact arithmetic.

The expected codes are worked here with whole numbers and fractions from the definition of each
operation. `simulate` is compared with the file in `test_export_simulate.py`, so that a mistake in
the writer cannot hide behind the same mistake there.
"""

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from integer_networks import (
    ALL_CODES,
    bias,
    codes,
    constant,
    random_codes,
    run,
    single,
    tensor,
    weights,
)

from speq_keras.export.tflite.runtimes import partitions
from speq_keras.export.tflite.simulate import simulate
from speq_keras.export.tflite.write import write

# All pairs of codes, one row each.
LEFT, RIGHT = (grid.reshape(1, -1) for grid in np.meshgrid(ALL_CODES, ALL_CODES, indexing="ij"))


# ---- exact arithmetic, written again ---------------------------------------------------------


def exact(scale):
    return Fraction(float(np.float32(scale)))


@dataclasses.dataclass
class Quotients:
    """Exact quotients of Python's whole numbers, in object arrays: much faster than fractions."""

    above: np.ndarray
    below: np.ndarray

    def __add__(self, other):
        above = self.above * other.below + other.above * self.below
        return Quotients(above, self.below * other.below)

    def rounded(self, ties="even"):
        """Returns the nearest whole numbers."""
        floor, rest = self.above // self.below, 2 * (self.above % self.below)
        tie = rest == self.below
        up = {"even": floor % 2 == 1, "up": True, "away": self.above > 0}[ties]
        return (floor + (rest > self.below) + (tie & up)).astype(np.int64)


def quotients(whole_numbers, factor):
    """Returns whole numbers times a fraction, or times one fraction per channel."""
    factor = np.asarray(factor, object)
    above = np.vectorize(lambda f: Fraction(f).numerator, otypes=[object])(factor)
    below = np.vectorize(lambda f: Fraction(f).denominator, otypes=[object])(factor)
    above = np.asarray(whole_numbers).astype(object) * above
    return Quotients(above, np.broadcast_to(below, above.shape))


def rounded(value, ties="even"):
    """Returns the whole number nearest to a fraction."""
    return int(quotients(np.ones(1, int), value).rounded(ties)[0])


def stored(values, output, *, ties="even", bounds=(-128, 127)):
    """Returns clip(round(value) + zero point) of quotients in units of the output's scale."""
    return np.clip(values.rounded(ties) + output.zero_point, *bounds).astype(np.int8)


def requantization(x, filters, output):
    """Returns s_x·s_w / s_y per channel."""
    return [exact(x.scale) * exact(scale) / exact(output.scale) for scale in filters.scale]


def centred(array, entry):
    return array.astype(np.int64) - entry.zero_point


def same_pads(size, kernel, stride, dilation):
    out = math.ceil(size / stride)
    total = max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return out, total // 2


def slow_convolution(x, filters, strides, dilations, padding):
    """Sums of a grouped convolution by its definition, pixel by pixel.

    `x` is NHWC with the zero point taken off, `filters` OHWI.
    """
    number, *image, channels = x.shape
    count, *kernel, depth = filters.shape
    if padding == "same":
        places = [same_pads(*args) for args in zip(image, kernel, strides, dilations, strict=True)]
    else:
        places = [
            ((image[i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1, 0) for i in range(2)
        ]
    (height, top), (width, left) = places
    sums = np.zeros((number, height, width, count), np.int64)
    per_group = count // (channels // depth)
    for row, column, tap_row, tap_column in itertools.product(
        range(height), range(width), range(kernel[0]), range(kernel[1])
    ):
        y = row * strides[0] - top + tap_row * dilations[0]
        z = column * strides[1] - left + tap_column * dilations[1]
        if not (0 <= y < image[0] and 0 <= z < image[1]):
            continue
        for out in range(count):
            first = out // per_group * depth
            pixel = x[:, y, z, first : first + depth]
            sums[:, row, column, out] += pixel @ filters[out, tap_row, tap_column].astype(np.int64)
    return sums


def rounded_twice(value, multiplier, ties):
    """Returns value · multiplier in the fixed point of the builtin kernels.

    The multiplier has 31 bits; the product is rounded to the fixed point first, and then to a whole
    number.
    """
    fraction, exponent = math.frexp(float(multiplier))
    mantissa = math.floor(fraction * 2**31 + 0.5)
    first = (value * 2 ** max(exponent, 0) * mantissa + 2**30) >> 31
    return rounded(Fraction(first, 2 ** max(-exponent, 0)), ties)


# ---- into and out of integers ----------------------------------------------------------------


@pytest.mark.parametrize("zero_point", [-128, 0, 97])
def test_quantize_rounds_ties_to_even(zero_point):
    output = codes((4096,), 0.125, zero_point, name="y")
    network = single("quantize", [tensor("x", (None, 4096), dtype="float32")], output)
    x = (np.arange(4096, dtype=np.float32) - 2048)[None] / 32  # quarters of a code, halves too
    expected = stored(quotients(np.arange(4096) - 2048, Fraction(1, 4)), output)
    np.testing.assert_array_equal(run(network, x)[0], expected)


def test_dequantize_gives_the_float32_product():
    x = codes((256,), 0.0371, -5)
    network = single("dequantize", [x], tensor("y", (None, 256), dtype="float32"))
    expected = np.float32(x.scale) * (np.arange(256) - 128 + 5).astype(np.float32)
    np.testing.assert_array_equal(run(network, ALL_CODES[None])[0], expected)


def test_a_uint8_input_moves_by_128_codes():
    x = tensor("x", (None, 256), 0.02, 131, dtype="uint8")
    network = single("quantize", [x], codes((256,), 0.02, 3, name="y"))
    np.testing.assert_array_equal(run(network, np.arange(256, dtype=np.uint8)[None])[0], ALL_CODES)


# ---- convolutions and products ---------------------------------------------------------------

CONVOLUTIONS = {
    "1x1": {"kernel": (1, 1)},
    "3x3 same": {"kernel": (3, 3)},
    "3x3 valid": {"kernel": (3, 3), "padding": "valid"},
    "3x3 stride 2": {"kernel": (3, 3), "strides": (2, 2)},
    "3x3 stride 2 valid": {"kernel": (3, 3), "strides": (2, 2), "padding": "valid"},
    "5x2 stride 1x2": {"kernel": (5, 2), "strides": (1, 2)},
    "3x3 dilated": {"kernel": (3, 3), "dilations": (2, 1)},
    "2x2 dilated valid": {"kernel": (2, 2), "dilations": (2, 3), "padding": "valid"},
}
ACTIVATIONS = {
    "none": (None, None),
    "relu": (0, None),
    "relu6": (0, 6),
    "relu_n1_to_1": (-1, 1),
}


def activation_bounds(activation, output):
    """Returns the stored values that a fused activation and int8 leave."""
    low, high = ACTIVATIONS[activation]
    step = exact(output.scale)
    low = -128 if low is None else max(-128, rounded(low / step) + output.zero_point)
    high = 127 if high is None else min(127, rounded(high / step) + output.zero_point)
    return low, high


def convolution(
    rng,
    kernel,
    strides=(1, 1),
    dilations=(1, 1),
    padding="same",
    *,
    groups=1,
    multiplier=None,
    activation="none",
    step=1,
    x_entry=None,
    output=None,
    count=6,
):
    """Returns (network, x, exact sums) of a convolution, depthwise with `multiplier`."""
    channels = 3 * groups
    x_entry = x_entry or codes((7, 6, channels), 0.021, 11)
    options = {"strides": strides, "dilations": dilations, "padding": padding}
    x = random_codes(rng, 2, 7, 6, channels)
    if multiplier:
        filters = weights(rng, (1, *kernel, channels * multiplier), axis=3, step=step)
        options["multiplier"] = multiplier
        grouped = filters.data.reshape(1, *kernel, channels * multiplier).transpose(3, 1, 2, 0)
    else:
        filters = weights(rng, (count, *kernel, 3), axis=0, step=step)
        grouped = filters.data
    offsets = bias(rng, x_entry, filters)
    sums = slow_convolution(centred(x, x_entry), grouped, strides, dilations, padding)
    sums += offsets.data
    output = output or codes(sums.shape[1:], 0.043, -20, name="y")
    output.shape = (None, *sums.shape[1:])
    kind = "depthwise_conv_2d" if multiplier else "conv_2d"
    network = single(kind, [x_entry, filters, offsets], output, activation, **options)
    return network, x, sums


def expected_codes(network, sums, **kwargs):
    node = network.nodes[0]
    x, filters, output = (network.tensors[i] for i in (*node.inputs[:2], node.output))
    bounds = activation_bounds(node.activation, output)
    return stored(
        quotients(sums, requantization(x, filters, output)), output, bounds=bounds, **kwargs
    )


@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_convolution_rounds_its_exact_sum(shape, activation):
    rng = np.random.default_rng(1)
    network, x, sums = convolution(rng, **CONVOLUTIONS[shape], activation=activation)
    np.testing.assert_array_equal(run(network, x), expected_codes(network, sums))


@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_a_grouped_convolution_reads_its_group(shape):
    rng = np.random.default_rng(2)
    network, x, sums = convolution(rng, **CONVOLUTIONS[shape], groups=2)
    np.testing.assert_array_equal(run(network, x), expected_codes(network, sums))


@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize("shape", [name for name in CONVOLUTIONS if "1x2" not in name])
def test_a_depthwise_convolution_reads_its_channel(shape, multiplier):
    rng = np.random.default_rng(3)
    network, x, sums = convolution(rng, **CONVOLUTIONS[shape], multiplier=multiplier)
    np.testing.assert_array_equal(run(network, x), expected_codes(network, sums))


@pytest.mark.parametrize("zero_point", [-128, -3, 0])
def test_a_convolution_rounds_ties_to_even_before_the_zero_point(zero_point):
    x = codes((1, 256, 1), 1.0, 0)
    filters = constant("weights", np.full((1, 1, 1, 1), 1, np.int8), [0.5], axis=0)
    output = codes((1, 256, 1), 1.0, zero_point, name="y")
    options = {"strides": (1, 1), "dilations": (1, 1), "padding": "same"}
    network = single("conv_2d", [x, filters, bias(np.random.default_rng(0), x, filters, 0)], output)
    network.nodes[0].options = options
    expected = stored(quotients(np.arange(-128, 128), Fraction(1, 2)), output)
    np.testing.assert_array_equal(run(network, ALL_CODES.reshape(1, 1, -1, 1)).ravel(), expected)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("multiplier", [None, 1])
def test_unsigned_codes_of_n_bits_saturate_at_both_ends_and_pad_with_zero(bits, multiplier):
    rng = np.random.default_rng(4)
    levels = 2**bits - 1
    encoding = {"scale": 0.31, "zero_point": 127 - levels}
    network, x, _ = convolution(
        rng,
        (3, 3),
        activation="relu",
        step=42,
        multiplier=multiplier,
        x_entry=codes((7, 6, 3), **encoding),
        output=codes((), **encoding, name="y"),
    )
    x = rng.integers(127 - levels, 128, x.shape).astype(np.int8)
    x_entry, filters, offsets, output = network.tensors.values()
    # Small enough that every code occurs.
    filters.scale *= np.float32(0.7)
    offsets.data = offsets.data // 16
    # In the network's own terms: numbers 0 … L, zeros around the image, clipped to 0 … L.
    numbers = x.astype(np.int64) - (127 - levels)
    order = (3, 1, 2, 0) if multiplier else (0, 1, 2, 3)
    kernel = filters.data.transpose(order)
    sums = slow_convolution(numbers, kernel, (1, 1), (1, 1), "same") + offsets.data
    values = quotients(sums, requantization(x_entry, filters, output))
    expected = np.clip(values.rounded(), 0, levels)
    got = run(network, x).astype(np.int64) - (127 - levels)
    np.testing.assert_array_equal(got, expected)
    assert set(got.ravel()) == set(range(levels + 1))


SIGNED = {
    "3 bits, -1 … 6": (-1, 6),
    "3 bits, -4 … 3": (-4, 3),
    "4 bits, -3 … 12": (-3, 12),
    "4 bits, -8 … 7": (-8, 7),
    "4 bits, -13 … 2": (-13, 2),
}


def signed_encoding(low, high):
    """The encoding of codes low … high around RELU_N1_TO_1: one end by it, one by int8."""
    if -low <= high:
        return {"scale": 1 / high, "zero_point": -128 - low}
    return {"scale": 1 / -low, "zero_point": 127 - high}


@pytest.mark.parametrize("ends", SIGNED)
@pytest.mark.parametrize("multiplier", [None, 1])
def test_signed_codes_of_n_bits_saturate_at_both_ends_and_pad_with_zero(ends, multiplier):
    rng = np.random.default_rng(5)
    low, high = SIGNED[ends]
    encoding = signed_encoding(low, high)
    zero_point = encoding["zero_point"]
    network, x, _ = convolution(
        rng,
        (3, 3),
        activation="relu_n1_to_1",
        step=42,
        multiplier=multiplier,
        x_entry=codes((7, 6, 3), **encoding),
        output=codes((), **encoding, name="y"),
    )
    x = rng.integers(zero_point + low, zero_point + high + 1, x.shape).astype(np.int8)
    x_entry, filters, offsets, output = network.tensors.values()
    offsets.data = offsets.data // 8
    order = (3, 1, 2, 0) if multiplier else (0, 1, 2, 3)
    sums = slow_convolution(
        centred(x, x_entry), filters.data.transpose(order), (1, 1), (1, 1), "same"
    )
    values = quotients(sums + offsets.data, requantization(x_entry, filters, output))
    expected = np.clip(values.rounded(), low, high)
    got = run(network, x).astype(np.int64) - zero_point
    np.testing.assert_array_equal(got, expected)
    assert set(got.ravel()) == set(range(low, high + 1))


@pytest.mark.parametrize("ends", SIGNED)
def test_a_product_with_a_constant_saturates_at_both_ends_of_signed_codes(ends):
    low, high = SIGNED[ends]
    output = codes((256,), **signed_encoding(low, high), name="y")
    x = codes((256,), 0.0137, 9)
    one = constant("one", np.array([127], np.int8), 1 / 127)
    network = single("mul", [x, one], output, "relu_n1_to_1")
    factor = exact(x.scale) * exact(one.scale) * 127 / exact(output.scale)
    numbers = quotients(centred(ALL_CODES, x), factor).rounded()
    got = run(network, ALL_CODES[None])[0].astype(np.int64) - output.zero_point
    np.testing.assert_array_equal(got, np.clip(numbers, low, high))


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_fully_connected_layer_rounds_its_exact_sum(leading, activation):
    rng = np.random.default_rng(6)
    x, output = codes((*leading, 24), 0.017, 5), codes((*leading, 9), 0.05, -7, name="y")
    filters = weights(rng, (9, 24), axis=0)
    offsets = bias(rng, x, filters)
    network = single(
        "fully_connected",
        [x, filters, offsets],
        output,
        activation,
        keep_num_dims=bool(leading),
    )
    array = random_codes(rng, 4, *leading, 24)
    sums = centred(array, x) @ filters.data.T.astype(np.int64) + offsets.data
    np.testing.assert_array_equal(run(network, array), expected_codes(network, sums))


def test_a_fully_connected_layer_without_a_bias_adds_none():
    rng = np.random.default_rng(7)
    x, output = codes((24,), 0.017, 5), codes((9,), 0.05, -7, name="y")
    network = single(
        "fully_connected", [x, weights(rng, (9, 24), axis=0), None], output, keep_num_dims=False
    )
    array = random_codes(rng, 4, 24)
    sums = centred(array, x) @ network.tensors["weights"].data.T.astype(np.int64)
    np.testing.assert_array_equal(run(network, array), expected_codes(network, sums))


@pytest.mark.parametrize(
    ("dtype", "channels", "delegated"),
    [("int4", 24, True), ("int4", 23, False), ("int2", 24, True), ("int2", 22, False)],
)
def test_narrow_weights_that_fill_whole_bytes_stay_in_xnnpack(dtype, channels, delegated):
    rng = np.random.default_rng(8)
    x, output = codes((channels,), 0.017, 5), codes((40,), 0.0025, -7, name="y")
    filters = weights(rng, (40, channels), axis=0)
    filters.dtype = dtype
    filters.data = np.clip(filters.data // 16, *{"int4": (-7, 7), "int2": (-2, 1)}[dtype])
    offsets = bias(rng, x, filters, 100)
    network = single("fully_connected", [x, filters, offsets], output, keep_num_dims=False)
    array = random_codes(rng, 50, channels)
    sums = centred(array, x) @ filters.data.T.astype(np.int64) + offsets.data
    if delegated:
        expected = expected_codes(network, sums)
    else:
        factors = requantization(x, filters, output)
        twice = [
            [rounded_twice(v, f, "up") for v, f in zip(row, factors, strict=True)]
            for row in sums.tolist()
        ]
        expected = np.clip(np.array(twice) + output.zero_point, -128, 127)
    assert (partitions(write(network)).num_others == 0) == delegated
    np.testing.assert_array_equal(run(network, array), expected)


@pytest.mark.parametrize("dtype", ["int4", "int8"])
@pytest.mark.parametrize("scale", [0.0025, 1.0])  # with 1.0, every fourth sum is a tie
def test_on_arm_a_convolution_of_narrow_weights_rounds_once_and_ties_go_up(dtype, scale):
    rng = np.random.default_rng(9)
    x, output = codes((5, 6, 8), 0.25 if scale == 1.0 else 0.017, 5), codes((5, 6, 16), scale, -7)
    output.name = "y"
    filters = weights(rng, (16, 1, 1, 8), axis=0)
    filters.dtype, filters.data = dtype, np.clip(filters.data // 16, -2, 2)
    if scale == 1.0:
        filters.scale = np.ones(16, "float32")
    options = {"strides": (1, 1), "dilations": (1, 1), "padding": "valid"}
    network = single("conv_2d", [x, filters, None], output, **options)
    array = random_codes(rng, 3, 5, 6, 8)
    sums = centred(array, x) @ filters.data.reshape(16, 8).T.astype(np.int64)
    if dtype == "int8":
        expected = expected_codes(network, sums)  # as on x86
    else:
        factors = requantization(x, filters, output)
        once = [
            [rounded(v * f, "up") for v, f in zip(row, factors, strict=True)]
            for row in sums.reshape(-1, 16).tolist()
        ]
        expected = np.clip(np.array(once) + output.zero_point, -128, 127).reshape(sums.shape)
    (got,) = simulate(network, array, elsewhere=True)
    np.testing.assert_array_equal(got, expected)
    here = simulate(network, array)[0]
    assert (here != got).any() == (dtype == "int4")
    np.testing.assert_array_equal(here, run(network, array))


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        ((3, 3), (2, 2), "same"),
        ((2, 2), (2, 2), "valid"),
        ((4, 3), (1, 2), "same"),
        ((3, 4), (2, 1), "valid"),
        ((1, 2), (2, 3), "valid"),  # gaps between the filters: only the bias
    ],
)
def test_a_transposed_convolution_adds_a_filter_per_pixel(kernel, strides, padding):
    rng = np.random.default_rng(9)
    size = tuple(
        n * s if padding == "same" else n * s + max(k - s, 0)
        for n, s, k in zip((4, 5), strides, kernel, strict=True)
    )
    x, output = codes((4, 5, 3), 0.02, 14), codes((*size, 4), 0.04, 3, name="y")
    filters = weights(rng, (4, *kernel, 3), axis=0)
    offsets = bias(rng, x, filters)
    network = single(
        "transpose_conv",
        [x, filters, offsets],
        output,
        strides=strides,
        padding=padding,
        output_size=size,
    )
    array = random_codes(rng, 2, 4, 5, 3)
    values = centred(array, x)
    first = [
        same_pads(size[i], kernel[i], strides[i], 1)[1] if padding == "same" else 0
        for i in range(2)
    ]
    sums = np.zeros((2, *size, 4), np.int64) + offsets.data
    for row, column, tap_row, tap_column in itertools.product(*map(range, (4, 5, *kernel))):
        y = row * strides[0] + tap_row - first[0]
        z = column * strides[1] + tap_column - first[1]
        if 0 <= y < size[0] and 0 <= z < size[1]:
            tap = filters.data[:, tap_row, tap_column].astype(np.int64)
            sums[:, y, z] += values[:, row, column] @ tap.T
    assert partitions(write(network)).num_others == 0
    np.testing.assert_array_equal(run(network, array), expected_codes(network, sums))


# ---- sums and products of two tensors --------------------------------------------------------


def pair_network(kind, scales, zero_points, activation="none"):
    a, b, output = (
        codes((65536,), scale, zero_point, name=name)
        for name, scale, zero_point in zip("aby", scales, zero_points, strict=True)
    )
    return single(kind, [a, b], output, activation), a, b, output


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["add", "sub"])
def test_a_sum_of_unrelated_scales_is_the_rounded_exact_sum(kind, activation):
    network, a, b, output = pair_network(kind, (0.0371, 0.0513, 0.0617), (3, -17, 5), activation)
    factors = [exact(entry.scale) / exact(output.scale) for entry in (a, b)]
    if kind == "sub":
        factors[1] = -factors[1]
    values = quotients(centred(LEFT, a), factors[0]) + quotients(centred(RIGHT, b), factors[1])
    expected = stored(values, output, bounds=activation_bounds(activation, output))
    np.testing.assert_array_equal(run(network, LEFT, RIGHT), expected)


@pytest.mark.parametrize("kind", ["add", "sub"])
def test_a_sum_rounds_ties_up(kind):
    network, a, b, output = pair_network(kind, (0.25, 0.5, 1.0), (0, -17, 5))
    sign = -1 if kind == "sub" else 1
    values = quotients(centred(LEFT, a) + sign * 2 * centred(RIGHT, b), Fraction(1, 4))
    expected = stored(values, output, ties="up")
    np.testing.assert_array_equal(run(network, LEFT, RIGHT), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_product_of_unrelated_scales_is_the_rounded_exact_product(activation):
    network, a, b, output = pair_network("mul", (0.0371, 0.0513, 0.0617), (3, -17, 5), activation)
    factor = exact(a.scale) * exact(b.scale) / exact(output.scale)
    expected = stored(
        quotients(centred(LEFT, a) * centred(RIGHT, b), factor),
        output,
        bounds=activation_bounds(activation, output),
    )
    np.testing.assert_array_equal(run(network, LEFT, RIGHT), expected)


def test_a_product_rounds_ties_to_even():
    network, a, b, output = pair_network("mul", (0.25, 0.5, 1.0), (0, -17, 5))
    expected = stored(quotients(centred(LEFT, a) * centred(RIGHT, b), Fraction(1, 8)), output)
    np.testing.assert_array_equal(run(network, LEFT, RIGHT), expected)


@pytest.mark.parametrize("shape", [(1, 1, 1, 6), (6,), (1,), (1, 5, 4, 1)])
@pytest.mark.parametrize("kind", ["add", "sub", "mul"])
def test_a_constant_broadcasts(kind, shape):
    rng = np.random.default_rng(10)
    x, output = codes((5, 4, 6), 0.0371, 3), codes((5, 4, 6), 0.0617, 5, name="y")
    other = constant("other", random_codes(rng, *shape), 0.0513, -17)
    array = random_codes(rng, 2, 5, 4, 6)
    a, b = centred(array, x), np.broadcast_to(centred(other.data, other), array.shape)
    steps = [exact(entry.scale) for entry in (x, other, output)]
    if kind == "mul":
        values = quotients(a * b, steps[0] * steps[1] / steps[2])
    else:
        sign = -1 if kind == "sub" else 1
        values = quotients(a, steps[0] / steps[2]) + quotients(b, sign * steps[1] / steps[2])
    network = single(kind, [x, other], output)
    np.testing.assert_array_equal(run(network, array), stored(values, output))


# ---- pooling and resizing --------------------------------------------------------------------

WINDOWS = [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 2), (1, 3))]


def pooled(array, size, strides, padding):
    """Yields (row, column, values of the window inside the image)."""
    height, width = array.shape[1:3]
    if padding == "same":
        places = [same_pads(array.shape[1 + i], size[i], strides[i], 1) for i in range(2)]
    else:
        places = [((array.shape[1 + i] - size[i]) // strides[i] + 1, 0) for i in range(2)]
    for row, column in itertools.product(range(places[0][0]), range(places[1][0])):
        top, left = row * strides[0] - places[0][1], column * strides[1] - places[1][1]
        window = array[
            :, max(top, 0) : min(top + size[0], height), max(left, 0) : min(left + size[1], width)
        ]
        yield row, column, window.reshape(len(array), -1, array.shape[3]).astype(np.int64)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "strides"), WINDOWS)
@pytest.mark.parametrize("kind", ["average_pool_2d", "max_pool_2d"])
def test_pooling_reads_the_image_and_not_the_padding(kind, size, strides, padding):
    rng = np.random.default_rng(12)
    array = random_codes(rng, 2, 7, 8, 5)
    cells = {}
    for row, column, window in pooled(array, size, strides, padding):
        if kind == "max_pool_2d":
            cells[row, column] = window.max(axis=1)
        else:
            means = quotients(window.sum(axis=1), Fraction(1, window.shape[1]))
            cells[row, column] = means.rounded("away")
    rows, columns = (max(key[i] for key in cells) + 1 for i in range(2))
    expected = np.stack(
        [np.stack([cells[r, c] for c in range(columns)], 1) for r in range(rows)], 1
    )
    x, output = codes((7, 8, 5), 0.03, 4), codes((rows, columns, 5), 0.03, 4, name="y")
    network = single(kind, [x], output, size=size, strides=strides, padding=padding)
    np.testing.assert_array_equal(run(network, array), expected)


@pytest.mark.parametrize("kind", ["average_pool_2d", "max_pool_2d"])
def test_pooling_clamps_to_its_activation(kind):
    array = ALL_CODES.reshape(1, 16, 16, 1)
    x, output = codes((16, 16, 1), 0.07, 4), codes((16, 16, 1), 0.07, 4, name="y")
    options = {"size": (1, 1), "strides": (1, 1), "padding": "valid"}
    network = single(kind, [x], output, "relu6", **options)
    np.testing.assert_array_equal(run(network, array), np.clip(array, 4, 4 + 86))


@pytest.mark.parametrize(("zero_point", "ends"), [(3, (2, 4)), (4, (4, 4))])
def test_xnnpack_rounds_the_bounds_of_an_activation_with_the_zero_point(zero_point, ends):
    # ±1 is ±0.5 codes of scale 2: ties of 3 ± 0.5 and 4 ± 0.5 go to even.
    a, output = codes((256,), 2.0, 0), codes((256,), 2.0, zero_point, name="y")
    b = constant("b", np.zeros(1, np.int8), 2.0)
    network = single("add", [a, b], output, "relu_n1_to_1")
    expected = np.clip(ALL_CODES.astype(int) + zero_point, *ends)
    np.testing.assert_array_equal(run(network, ALL_CODES[None])[0], expected)
    np.testing.assert_array_equal(simulate(network, ALL_CODES[None])[0][0], expected)


def test_builtin_kernels_round_the_bounds_of_an_activation_away_from_zero():
    array = ALL_CODES.reshape(1, 16, 16, 1)
    x, output = codes((16, 16, 1), 2.0, 4), codes((16, 16, 1), 2.0, 4, name="y")
    options = {"size": (1, 1), "strides": (1, 1), "padding": "valid"}
    network = single("average_pool_2d", [x], output, "relu_n1_to_1", **options)
    np.testing.assert_array_equal(run(network, array), np.clip(array, 3, 5))
    np.testing.assert_array_equal(simulate(network, array)[0], np.clip(array, 3, 5))


@pytest.mark.parametrize("keep_dims", [True, False])
@pytest.mark.parametrize("axes", [(1, 2), (1,), (2,), (3,), (1, 2, 3)])
def test_a_mean_is_the_rounded_exact_mean(axes, keep_dims):
    rng = np.random.default_rng(13)
    array = random_codes(rng, 3, 7, 9, 40)
    array = (array // 4 + random_codes(rng, 3, 1, 1, 40) // 2).astype(np.int8)
    x = codes((7, 9, 40), 0.0371, 3)
    sums = centred(array, x).sum(axis=axes, keepdims=keep_dims)
    output = codes(sums.shape[1:], 0.0131, -11, name="y")
    count = array.size // sums.size
    factor = exact(x.scale) / exact(output.scale) / count
    network = single("mean", [x], output, axes=axes, keep_dims=keep_dims)
    expected = stored(quotients(sums, factor), output)
    np.testing.assert_array_equal(run(network, array), expected)


@pytest.mark.parametrize("count", [6, 10, 36, 49, 64])
@pytest.mark.parametrize("ratio", [(1, 1), (3, 1), (3, 2), (7, 5), (1, 4)])
def test_a_mean_at_a_tie_follows_the_float32_sum_of_its_parts(count, ratio):
    # Every sum that `count` codes can have, ties included. The zero point of x comes in as a
    # float32 number, so that which way a tie goes is decided by the rounding of its parts.
    x = codes((count, 1, 256 * count), ratio[0] / 64, -37)
    output = codes((256 * count,), ratio[1] / 64, 21, name="y")
    sums = np.arange(-128 * count, 128 * count)
    sums = np.minimum(sums, 127 * count)
    columns = sums // count + (np.arange(count)[:, None] < sums % count)
    network = single("mean", [x], output, axes=(1, 2), keep_dims=False)
    got = run(network, columns.astype(np.int8).reshape(1, count, 1, -1))[0]
    f = np.float32
    factor = f(f(ratio[0] / 64) / f(ratio[1] / 64)) * f(f(1) / f(count))
    offset = f(f(21) - f(f(-37 * count) * factor))
    parts = [f(f(float(s)) * factor) + offset for s in sums]
    expected = [round(float(part)) for part in parts]  # ties to even
    np.testing.assert_array_equal(got, np.clip(expected, -128, 127))


@pytest.mark.parametrize("half_pixel_centers", [True, False])
@pytest.mark.parametrize("size", [(8, 6), (12, 9), (2, 5)])
def test_nearest_neighbors_are_copied(size, half_pixel_centers):
    rng = np.random.default_rng(14)
    array = random_codes(rng, 2, 4, 3, 5)
    places = []
    for old, new in zip((4, 3), size, strict=True):
        shift = Fraction(1, 2) if half_pixel_centers else 0
        places.append(
            [min(math.floor((i + shift) * Fraction(old, new)), old - 1) for i in range(new)]
        )
    x, output = codes((4, 3, 5), 0.02, 3), codes((*size, 5), 0.02, 3, name="y")
    network = single(
        "resize_nearest_neighbor", [x], output, size=size, half_pixel_centers=half_pixel_centers
    )
    expected = array[:, places[0]][:, :, places[1]]
    np.testing.assert_array_equal(run(network, array), expected)


@pytest.mark.parametrize("half_pixel_centers", [True, False])
@pytest.mark.parametrize("factor", [2, 4])
def test_bilinear_interpolation_rounds_ties_up(factor, half_pixel_centers):
    # Factors that are powers of two: all weights are multiples of 1/2048, as in the kernel.
    rng = np.random.default_rng(15)
    array = random_codes(rng, 2, 5, 4, 6)
    # Positions and weights in units of half an output pixel.
    unit, shift = 2 * factor, int(half_pixel_centers)
    sums = array.astype(np.int64)
    for axis in (1, 2):
        last = array.shape[axis] - 1
        lines = []
        for i in range(factor * (last + 1)):
            place = min(max(2 * i + shift - shift * factor, 0), last * unit)
            low, weight = divmod(place, unit)
            lower, upper = sums.take(low, axis), sums.take(min(low + 1, last), axis)
            lines.append(lower * (unit - weight) + upper * weight)
        sums = np.stack(lines, axis)
    values = quotients(sums, Fraction(1, unit**2))
    size = sums.shape[1:3]
    x, output = codes((5, 4, 6), 0.02, 0), codes((*size, 6), 0.02, 0, name="y")
    network = single(
        "resize_bilinear", [x], output, size=size, half_pixel_centers=half_pixel_centers
    )
    np.testing.assert_array_equal(run(network, array), stored(values, output, ties="up"))


# ---- functions of one code -------------------------------------------------------------------

FUNCTIONS = {
    "logistic": (lambda x: 1 / (1 + math.exp(-x)), 1 / 256, -128, {}),
    "tanh": (math.tanh, 1 / 128, 0, {}),
}


@pytest.mark.parametrize(("scale", "zero_point"), [(0.0371, 3), (0.0117, -90), (0.123, 60)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_one_code_is_the_rounded_function(name, scale, zero_point):
    function, step, offset, options = FUNCTIONS[name]
    x, output = codes((256,), scale, zero_point), codes((256,), step, offset, name="y")
    network = single(name.split()[0], [x], output, **options)
    step = float(np.float32(step))
    reals = [float(np.float32(scale)) * (code - zero_point) for code in range(-128, 128)]
    expected = [round(function(real) / step) + offset for real in reals]
    got = run(network, ALL_CODES[None])[0]
    np.testing.assert_array_equal(got, np.clip(expected, -128, 127))


@pytest.mark.parametrize("alpha", [0.3, 0.2, 0.01])
def test_leaky_relu_multiplies_by_256ths(alpha):
    x, output = codes((256,), 0.0371, 3), codes((256,), 0.0297, -20, name="y")
    ratio = exact(0.0371) / exact(0.0297)
    factors = [rounded(256 * ratio), rounded(256 * ratio * exact(alpha))]
    expected = [
        rounded(Fraction(code * factors[code < 0], 256), "up") - 20 for code in range(-131, 125)
    ]
    got = run(single("leaky_relu", [x], output, alpha=alpha), ALL_CODES[None])[0]
    np.testing.assert_array_equal(got, np.clip(expected, -128, 127))


@pytest.mark.parametrize(("scale", "zero_point"), [(0.0371, 3), (0.0117, -90), (0.123, 60)])
def test_hard_swish_is_within_one_code_of_the_rounded_function(scale, zero_point):
    # The builtin kernel computes in 16 bits: `simulate` knows how, below.
    x, output = codes((256,), scale, zero_point), codes((256,), scale, zero_point, name="y")
    reals = [scale * (code - zero_point) for code in range(-128, 128)]
    exact_codes = [real * min(max(real + 3, 0), 6) / 6 / scale + zero_point for real in reals]
    got = run(single("hard_swish", [x], output), ALL_CODES[None])[0]
    assert np.abs(got - np.clip(exact_codes, -128, 127)).max() < 0.6


def test_softmax_is_the_rounded_softmax():
    rng = np.random.default_rng(16)
    x, output = codes((37,), 0.0913, 12), codes((37,), 1 / 256, -128, name="y")
    array = random_codes(rng, 200, 37)
    powers = np.exp(float(np.float32(0.0913)) * array.astype(np.float64))
    shares = powers / powers.sum(axis=1, keepdims=True)
    expected = np.clip(np.floor(shares * 256 + 0.5) - 128, -128, 127)
    np.testing.assert_array_equal(run(single("softmax", [x], output), array), expected)


def test_a_lookup_returns_the_entry_of_every_code():
    table = np.random.default_rng(17).permutation(ALL_CODES)
    entry = constant("table", table, 0.03, 0)
    network = single("lookup", [codes((256,), 0.02), entry], codes((256,), 0.03, name="y"))
    np.testing.assert_array_equal(run(network, ALL_CODES[None])[0], table)


# ---- moving values ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 6])
def test_concatenation_joins_tensors(count):
    rng = np.random.default_rng(18)
    arrays = [random_codes(rng, 2, 3, 4, 1 + i) for i in range(count)]
    inputs = [codes(array.shape[1:], 0.02, 3, name=f"x{i}") for i, array in enumerate(arrays)]
    joined = np.concatenate(arrays, axis=3)
    network = single("concatenation", inputs, codes(joined.shape[1:], 0.02, 3, name="y"), axis=3)
    np.testing.assert_array_equal(run(network, *arrays), joined)


MOVES = {
    "reshape": ({"shape": (None, 30, 4)}, lambda x: x.reshape(-1, 30, 4)),
    "transpose": ({"permutation": (0, 3, 1, 2)}, lambda x: x.transpose(0, 3, 1, 2)),
    "pad": (
        {"paddings": [(0, 0), (1, 2), (0, 3), (0, 0)]},
        lambda x: np.pad(x, [(0, 0), (1, 2), (0, 3), (0, 0)], constant_values=17),
    ),
    "strided_slice": (
        {"begin": [0, 1, 0, 0], "end": [None, 6, 5, 3], "strides": [1, 1, 2, 1]},
        lambda x: x[:, 1:6, 0:5:2, :3],
    ),
}


@pytest.mark.parametrize("kind", MOVES)
def test_moving_values_keeps_their_codes(kind):
    options, move = MOVES[kind]
    array = random_codes(np.random.default_rng(19), 2, 6, 5, 4)
    expected = move(array)
    x, output = codes((6, 5, 4), 0.02, 17), codes(expected.shape[1:], 0.02, 17, name="y")
    np.testing.assert_array_equal(run(single(kind, [x], output, **options), array), expected)
