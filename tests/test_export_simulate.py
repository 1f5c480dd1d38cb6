"""`simulate` against the file in LiteRT, and what else it and the runtimes promise."""

import importlib.util
import weakref
from functools import partial

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

from speq_keras.export.tflite import moving
from speq_keras.export.tflite import simulate as simulation
from speq_keras.export.tflite.exact_sums import exact_product
from speq_keras.export.tflite.network import IntegerNetwork, Node
from speq_keras.export.tflite.operations import OPS, compute
from speq_keras.export.tflite.runtimes import RUNTIMES, missing_reason, partitions, run_file
from speq_keras.export.tflite.simulate import evaluate, predict, simulate
from speq_keras.export.tflite.windows import output_sizes
from speq_keras.export.tflite.write import write

# ---- random single operations ----------------------------------------------------------------


def size(rng, low, high):
    return tuple(int(number) for number in rng.integers(low, high, 2))


def zero_point(rng):
    return int(rng.integers(-128, 128))


def scale(rng):
    """Every third scale is a power of two, for ties."""
    return 2.0 ** rng.integers(-6, 0) if rng.random() < 0.3 else np.exp(rng.uniform(-5, -2))


def activation(rng):
    return str(rng.choice(["none", "relu", "relu6", "relu_n1_to_1"]))


def padding(rng):
    return str(rng.choice(["same", "valid"]))


def finished(rng, kind, x, filters, shape, array, **options):
    """A product of `x` and `filters` whose output scale fits the sums."""
    step = x.scale * filters.scale.mean() * np.exp(rng.uniform(3, 6))
    output = codes(shape, step, zero_point(rng), name="y")
    offsets = bias(rng, x, filters)
    return single(kind, [x, filters, offsets], output, activation(rng), **options), [array]


def narrow(rng, filters, dtype):
    """Gives weights fewer bits."""
    if dtype != "int8":
        low, high = {"int4": (-7, 7), "int2": (-2, 1)}[dtype]
        filters.data = rng.integers(low, high + 1, filters.data.shape).astype(np.int8)
        filters.dtype = dtype


def convolution(rng, dtype="int8", *, grouped=False, depthwise=False):
    groups = int(rng.integers(2, 4)) if grouped else 1
    depth, image, kernel = int(rng.integers(1, 6)), size(rng, 5, 11), size(rng, 1, 5)
    strides = (int(rng.integers(1, 3)),) * 2 if depthwise else size(rng, 1, 3)
    dilations = (1, 1) if max(strides) > 1 else size(rng, 1, 3)
    options = {"strides": strides, "dilations": dilations, "padding": padding(rng)}
    sizes, _ = output_sizes(image, kernel, *options.values())
    if min(sizes) < 1:
        options["padding"] = "same"
        sizes = output_sizes(image, kernel, *options.values())[0]
    if depthwise:
        options["multiplier"] = int(rng.integers(1, 5))
        count = depth * options["multiplier"]
        filters = weights(rng, (1, *kernel, count), axis=3)
    else:
        count = groups * int(rng.integers(1, 6))
        filters = weights(rng, (count, *kernel, depth), axis=0, step=int(rng.choice([1, 42])))
    narrow(rng, filters, dtype)
    x = codes((*image, depth * groups), scale(rng), zero_point(rng))
    array = random_codes(rng, 3, *image, depth * groups)
    kind = "depthwise_conv_2d" if depthwise else "conv_2d"
    return finished(rng, kind, x, filters, (*sizes, count), array, **options)


def fully_connected(rng, dtype="int8"):
    leading = [(), (5,), (2, 3)][rng.integers(3)]
    channels, count = size(rng, 1, 60)
    filters = weights(rng, (count, channels), axis=0)
    narrow(rng, filters, dtype)
    x = codes((*leading, channels), scale(rng), zero_point(rng))
    array = random_codes(rng, 5, *leading, channels)
    options = {"keep_num_dims": bool(leading)}
    return finished(rng, "fully_connected", x, filters, (*leading, count), array, **options)


def batch_matmul(rng, is_centred):
    leading = [(), (5,), (2, 3)][rng.integers(3)]
    rows, summed, columns = (int(n) for n in rng.integers(1, 40, 3))
    shapes = (*leading, rows, summed), (*leading, summed, columns)
    x, y = (
        codes(shape, scale(rng), 0 if is_centred and name == "y" else zero_point(rng), name=name)
        for name, shape in zip("xy", shapes, strict=True)
    )
    step = x.scale * y.scale * np.sqrt(summed) * float(rng.choice([1, 64, 64, 256, 300]))
    output = codes((*leading, rows, columns), step, zero_point(rng), name="z")
    arrays = [random_codes(rng, 3, *shape) for shape in shapes]
    return single("batch_matmul", [x, y], output), arrays


def transpose_conv(rng):
    image, (depth, count) = size(rng, 3, 7), size(rng, 1, 12)
    kernel, strides, pad = size(rng, 1, 5), size(rng, 1, 4), padding(rng)
    result = tuple(
        image[i] * strides[i] + (max(kernel[i] - strides[i], 0) if pad == "valid" else 0)
        for i in range(2)
    )
    filters = weights(rng, (count, *kernel, depth), axis=0)
    x = codes((*image, depth), scale(rng), zero_point(rng))
    array = random_codes(rng, 2, *image, depth)
    options = {"strides": strides, "padding": pad, "output_size": result}
    return finished(rng, "transpose_conv", x, filters, (*result, count), array, **options)


def pair(rng, kind):
    grids = np.meshgrid(ALL_CODES, ALL_CODES)
    scales = [scale(rng), scale(rng)]
    step = scales[0] * scales[1] * 100 if kind == "mul" else max(scales) * rng.choice([0.5, 0.9, 2])
    a, b, output = (
        codes((65536,), value, zero_point(rng), name=name)
        for name, value in zip("aby", (*scales, step), strict=True)
    )
    arrays = [grid.reshape(1, -1) for grid in grids]
    return single(kind, [a, b], output, activation(rng)), arrays


def larger_or_smaller(rng, kind):
    """Of codes on one grid."""
    arrays = [grid.reshape(1, -1) for grid in np.meshgrid(ALL_CODES, ALL_CODES)]
    step, zero = scale(rng), zero_point(rng)
    a, b, output = (codes((65536,), step, zero, name=name) for name in "aby")
    return single(kind, [a, b], output), arrays


def with_constant(rng, kind):
    shape = [(1, 1, 1, 7), (7,), (1,), (1, 5, 4, 1)][rng.integers(4)]
    other = constant("other", random_codes(rng, *shape), scale(rng), zero_point(rng))
    x = codes((5, 4, 7), scale(rng), zero_point(rng))
    output = codes((5, 4, 7), max(x.scale, other.scale), zero_point(rng), name="y")
    return single(kind, [x, other], output, activation(rng)), [random_codes(rng, 3, 5, 4, 7)]


def pooling(rng, kind):
    image, window, strides, pad = size(rng, 4, 10), size(rng, 1, 4), size(rng, 1, 4), padding(rng)
    sizes, _ = output_sizes(image, window, strides, (1, 1), pad)
    encoding = scale(rng), zero_point(rng)
    x, output = codes((*image, 5), *encoding), codes((*sizes, 5), *encoding, name="y")
    options = {"size": window, "strides": strides, "padding": pad}
    array = random_codes(rng, 3, *image, 5)
    return single(kind, [x], output, activation(rng), **options), [array]


def mean(rng):
    image, axes = size(rng, 1, 15), [(1, 2), (1,), (2,), (3,), (1, 2, 3)][rng.integers(5)]
    array = random_codes(rng, 3, 1, 1, 64) // 2 + random_codes(rng, 3, *image, 64) // 8
    result = array.sum(axis=axes, keepdims=True).shape[1:]
    steps = [int(rng.integers(1, 12)) / 64 for _ in range(2)]
    x = codes((*image, 64), steps[0], zero_point(rng))
    output = codes(result, steps[1], zero_point(rng), name="y")
    return single("mean", [x], output, axes=axes, keep_dims=True), [array]


def resize(rng, kind):
    image, result, encoding = size(rng, 1, 9), size(rng, 1, 20), (scale(rng), zero_point(rng))
    x, output = codes((*image, 8), *encoding), codes((*result, 8), *encoding, name="y")
    options = {"size": result, "half_pixel_centers": bool(rng.random() < 0.5)}
    return single(kind, [x], output, **options), [random_codes(rng, 2, *image, 8)]


def function(rng, kind, step=None, offset=None, **options):
    x = codes((256,), scale(rng), zero_point(rng))
    step = x.scale * rng.choice([0.5, 0.9, 1, 2]) if step is None else step
    offset = zero_point(rng) if offset is None else offset
    return single(kind, [x], codes((256,), step, offset, name="y"), **options), [ALL_CODES[None]]


def leaky_relu(rng):
    slopes = [0.01, 0.1, 0.25, 0.3, 1.5]
    return function(rng, "leaky_relu", alpha=float(rng.choice(slopes)))


def softmax(rng):
    count = int(rng.integers(2, 200))
    x, output = codes((count,), scale(rng), 5), codes((count,), 1 / 256, -128, name="y")
    return single("softmax", [x], output), [random_codes(rng, 30, count)]


def quantize(rng):
    output = codes((4096,), scale(rng), zero_point(rng), name="y")
    x = rng.normal(0, 100 * output.scale, (1, 4096)).astype(np.float32)
    x[:, ::8] = (rng.integers(-300, 300, 512) + 0.5) * output.scale
    return single("quantize", [tensor("x", (None, 4096), dtype="float32")], output), [x]


def requantize(rng):
    x, output = (codes((256,), scale(rng), zero_point(rng), name=name) for name in "xy")
    return single("quantize", [x], output), [ALL_CODES[None]]


def dequantize(rng):
    output = tensor("y", (None, 256), dtype="float32")
    return single("dequantize", [codes((256,), scale(rng), 9)], output), [ALL_CODES[None]]


def concatenation(rng):
    arrays = [random_codes(rng, 2, 3, 4, 1 + i) for i in range(int(rng.integers(2, 8)))]
    inputs = [codes(array.shape[1:], 0.1, 3, name=f"x{i}") for i, array in enumerate(arrays)]
    output = codes((3, 4, sum(array.shape[3] for array in arrays)), 0.1, 3, name="y")
    return single("concatenation", inputs, output, axis=3), arrays


def move(rng, kind, result, **options):
    x, output = codes((6, 5, 4), 0.1, 17), codes(result, 0.1, 17, name="y")
    return single(kind, [x], output, **options), [random_codes(rng, 2, 6, 5, 4)]


def gather(rng):
    table = constant("table", random_codes(rng, 30, 8), 0.1)
    places = tensor("places", (None, 12), dtype="int32")
    output = codes((12, 8), 0.1, name="y")
    return single("gather", [table, places], output), [rng.integers(0, 30, (5, 12), dtype="int32")]


def lookup(rng):
    table = constant("table", random_codes(rng, 256), 0.1)
    output = codes((256,), 0.1, name="y")
    return single("lookup", [codes((256,), 0.1), table], output), [ALL_CODES[None]]


def extreme(rng, kind):
    image, axes = size(rng, 1, 9), [(1, 2), (1,), (3,), (2, 3)][rng.integers(4)]
    keep = bool(rng.integers(2))
    array = random_codes(rng, 3, *image, 5)
    encoding = scale(rng), zero_point(rng)
    shape = array.max(axis=axes, keepdims=keep).shape[1:]
    x, output = codes((*image, 5), *encoding), codes(shape, *encoding, name="y")
    return single(kind, [x], output, axes=axes, keep_dims=keep), [array]


CASES = {
    "conv_2d": convolution,
    "conv_2d grouped": partial(convolution, grouped=True),
    "conv_2d int4": partial(convolution, dtype="int4"),
    "conv_2d int4 grouped": partial(convolution, dtype="int4", grouped=True),
    "depthwise_conv_2d": partial(convolution, depthwise=True),
    "depthwise_conv_2d int4": partial(convolution, dtype="int4", depthwise=True),
    "fully_connected": fully_connected,
    "fully_connected int4": partial(fully_connected, dtype="int4"),
    "fully_connected int2": partial(fully_connected, dtype="int2"),
    "batch_matmul": partial(batch_matmul, is_centred=True),
    "batch_matmul off centre": partial(batch_matmul, is_centred=False),
    "transpose_conv": transpose_conv,
    "add": partial(pair, kind="add"),
    "sub": partial(pair, kind="sub"),
    "mul": partial(pair, kind="mul"),
    "maximum": partial(larger_or_smaller, kind="maximum"),
    "minimum": partial(larger_or_smaller, kind="minimum"),
    "add constant": partial(with_constant, kind="add"),
    "sub constant": partial(with_constant, kind="sub"),
    "mul constant": partial(with_constant, kind="mul"),
    "average_pool_2d": partial(pooling, kind="average_pool_2d"),
    "max_pool_2d": partial(pooling, kind="max_pool_2d"),
    "mean": mean,
    "reduce_max": partial(extreme, kind="reduce_max"),
    "reduce_min": partial(extreme, kind="reduce_min"),
    "resize_nearest_neighbor": partial(resize, kind="resize_nearest_neighbor"),
    "resize_bilinear": partial(resize, kind="resize_bilinear"),
    "logistic": partial(function, kind="logistic", step=1 / 256, offset=-128),
    "tanh": partial(function, kind="tanh", step=1 / 128, offset=0),
    "elu": partial(function, kind="elu", step=0.043, offset=-90),
    "gelu": partial(function, kind="gelu", step=0.037, offset=-110),
    "leaky_relu": leaky_relu,
    "softmax": softmax,
    "quantize": quantize,
    "quantize codes": requantize,
    "dequantize": dequantize,
    "concatenation": concatenation,
    "reshape": partial(move, kind="reshape", result=(30, 4), shape=(None, 30, 4)),
    "transpose": partial(move, kind="transpose", result=(4, 6, 5), permutation=(0, 3, 1, 2)),
    "pad": partial(move, kind="pad", result=(9, 8, 4), paddings=[(0, 0), (1, 2), (0, 3), (0, 0)]),
    **{
        f"mirror_pad {mode}": partial(
            move,
            kind="mirror_pad",
            result=(9, 8, 4),
            paddings=[(0, 0), (1, 2), (0, 3), (0, 0)],
            mode=mode,
        )
        for mode in ("reflect", "symmetric")
    },
    "strided_slice": partial(
        move,
        kind="strided_slice",
        result=(5, 3, 4),
        begin=[0, 1, 0, 0],
        end=[None, 6, 5, 4],
        strides=[1, 1, 2, 1],
    ),
    "gather": gather,
    "lookup": lookup,
}
# What XNNPACK leaves to a builtin kernel, always or for some options.
BUILTIN = {
    "gelu",
    "maximum",
    "minimum",
    "mirror_pad reflect",
    "mirror_pad symmetric",
    "conv_2d int4",
    "conv_2d int4 grouped",
    "depthwise_conv_2d int4",
    "fully_connected int4",
    "fully_connected int2",
    "batch_matmul off centre",
    "transpose_conv",
    "average_pool_2d",
    "max_pool_2d",
    "resize_nearest_neighbor",
    "softmax",
    "concatenation",
    "strided_slice",
    "gather",
    "lookup",
}


@pytest.mark.parametrize("name", CASES)
def test_simulate_gives_the_codes_of_the_file(name):
    rng = np.random.default_rng(20)
    for _ in range(12):
        network, arrays = CASES[name](rng)
        got = run(network, *arrays)
        (expected,) = simulate(network, arrays)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected, err_msg=str(network.nodes[0]))


def test_a_transposed_convolution_with_gaps_rounds_twice():
    # Padding "same" and a filter smaller than the stride: a builtin kernel, which takes vectors of
    # 8 channels and the rest in different ways. Scales that are powers of two make ties.
    rng = np.random.default_rng(28)
    x, output = codes((4, 5, 2), 1 / 16, 3), codes((8, 15, 19), 1 / 8, 0, name="y")
    filters = weights(rng, (19, 1, 2, 2), axis=0)
    filters.scale[:] = 1 / 64
    offsets = bias(rng, x, filters, 100)
    options = {"strides": (2, 3), "padding": "same", "output_size": (8, 15)}
    network = single("transpose_conv", [x, filters, offsets], output, **options)
    array = random_codes(rng, 4, 4, 5, 2)
    assert partitions(write(network)).others == {"TRANSPOSE_CONV": 1}
    np.testing.assert_array_equal(run(network, array), simulate(network, array)[0])


@pytest.mark.parametrize("count", [10, 400, 5000])
def test_sums_are_exact_beyond_what_float32_holds(count):
    rng = np.random.default_rng(29)
    x = rng.integers(200, 256, (3, count)).astype(np.int16)
    matrix = rng.integers(100, 128, (count, 4)).astype(np.int8)
    expected = x.astype(np.int64) @ matrix.astype(np.int64)
    np.testing.assert_array_equal(exact_product(x, matrix), expected)


def test_every_kind_of_node_has_a_case():
    kinds = {kind for kind, op in OPS.items() if op.integer}
    assert {name.split()[0] for name in CASES} >= kinds - set(moving.OPS)  # test_export_moving.py


@pytest.mark.parametrize("name", sorted(set(CASES) - BUILTIN))
def test_xnnpack_takes_everything_but_the_known_builtins(name):
    rng = np.random.default_rng(21)
    for _ in range(4):
        network, _ = CASES[name](rng)
        found = partitions(write(network))
        assert (found.partitions, found.others) == (1, {}), network.nodes[0]


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "quantize", "leaky_relu"])
def test_xnnpack_takes_the_ratios_of_scales_that_the_limits_say(kind):
    limits = OPS[kind].limits
    low, high = limits.low, limits.high
    for ratio, inside in ((low, True), (low * 0.99, False), (high * 0.99, True), (high * 2, False)):
        x, output = codes((8,), ratio, 3), codes((8,), 1.0, 5, name="y")
        inputs = [x]
        if kind in ("add", "sub"):
            inputs.append(codes((8,), ratio, 4, name="b"))
        if kind == "mul":
            inputs.append(codes((8,), 1.0, 4, name="b"))
        network = single(kind, inputs, output, **({"alpha": 1.0} if kind == "leaky_relu" else {}))
        ratios = limits.ratios_of(network.nodes[0], network.tensors)
        assert all(low <= ratio < high for ratio in ratios) == inside, ratio
        assert (partitions(write(network)).num_others == 0) == inside, ratio


def test_a_convolution_beyond_the_limits_does_not_load():
    rng = np.random.default_rng(22)
    filters = weights(rng, (2, 3), axis=0)
    x, output = codes((3,), 1.0), codes((2,), 1.0, name="y")
    for factor, inside in ((255.0, True), (256.0, False)):
        filters.scale = np.full(2, factor, np.float32)
        network = single("fully_connected", [x, filters, None], output, keep_num_dims=False)
        limits = OPS["fully_connected"].limits
        assert (OPS["fully_connected"].problem(network.nodes[0], network.tensors) == "") == inside
        assert limits.ratios_of(network.nodes[0], network.tensors).tolist() == [factor, factor]
        if inside:
            run(network, np.zeros((1, 3), np.int8))
        else:
            with pytest.raises(RuntimeError, match="default runtime of LiteRT cannot load"):
                run(network, np.zeros((1, 3), np.int8))


# ---- networks of several nodes ---------------------------------------------------------------


def small_network():
    """Two branches of a quantized image, added, averaged and classified."""
    rng = np.random.default_rng(23)
    network = IntegerNetwork(name="small")
    step = network.add_tensor
    step(tensor("image", (None, 6, 6, 3), dtype="float32"))
    x = step(codes((6, 6, 3), 0.02, 0))
    step(codes((6, 6, 4), 0.11, -128, name="left"))
    step(codes((6, 6, 4), 0.13, 3, name="right"))
    step(codes((6, 6, 4), 0.17, -5, name="sum"))
    features = step(codes((4,), 0.05, -5, name="features"))
    step(codes((5,), 0.07, 0, name="logits"))
    step(tensor("scores", (None, 5), dtype="float32"))
    options = {"strides": (1, 1), "dilations": (1, 1), "padding": "same"}
    network.nodes.append(Node(kind="quantize", inputs=["image"], outputs=["x"]))
    for name, kernel, fused in (("left", 3, "relu"), ("right", 1, "none")):
        filters = weights(rng, (4, kernel, kernel, 3), axis=0)
        names = [step(entry).name for entry in (filters, bias(rng, x, filters))]
        network.nodes.append(
            Node(
                kind="conv_2d",
                inputs=["x", *names],
                outputs=[name],
                activation=fused,
                options=options,
            )
        )
    filters = weights(rng, (5, 4), axis=0)
    names = [step(entry).name for entry in (filters, bias(rng, features, filters))]
    network.nodes += [
        Node(kind="add", inputs=["left", "right"], outputs=["sum"]),
        Node(
            kind="mean",
            inputs=["sum"],
            outputs=["features"],
            options={"axes": (1, 2), "keep_dims": False},
        ),
        Node(
            kind="fully_connected",
            inputs=["features", *names],
            outputs=["logits"],
            options={"keep_num_dims": False},
        ),
        Node(kind="dequantize", inputs=["logits"], outputs=["scores"]),
    ]
    network.inputs, network.input_names = ["image"], ["image"]
    network.outputs, network.output_names = ["scores"], ["classes"]
    return network


def images(number=11):
    return np.random.default_rng(24).normal(0, 1, (number, 6, 6, 3)).astype(np.float32)


def test_all_tensors_of_a_network_equal_those_of_the_file():
    network, x = small_network(), images()
    names = [node.output for node in network.nodes]
    (scores,), kept = simulate(network, x, keep="all")
    assert list(kept) == names
    arrays = run_file(write(network, extra_outputs=names[:-1]), x)
    np.testing.assert_array_equal(arrays[0], scores)
    for name, array in zip(names[:-1], arrays[1:], strict=True):
        np.testing.assert_array_equal(array, kept[name], err_msg=name)
        assert len(np.unique(array)) > 5


def test_the_size_of_batches_does_not_change_the_result(monkeypatch):
    network, x = small_network(), images()
    whole = simulate(network, x, keep=["sum", "image"])
    monkeypatch.setattr(simulation, "BATCH_BYTES", 1)
    pieces = simulate(network, x, keep=["sum", "image"])
    np.testing.assert_array_equal(whole[0][0], pieces[0][0])
    for name in ("sum", "image"):
        np.testing.assert_array_equal(whole[1][name], pieces[1][name])


def test_tensors_without_readers_are_freed(monkeypatch):
    network, made, alive = small_network(), {}, {}

    def watch(node, arrays, tensors, **kwargs):
        alive[node.output] = [name for name, reference in made.items() if reference() is not None]
        result = compute(node, arrays, tensors, **kwargs)
        made[node.output] = weakref.ref(result)
        return result

    monkeypatch.setattr(simulation, "compute", watch)
    simulate(network, images())
    assert alive["right"] == ["x", "left"]
    assert alive["sum"] == ["left", "right"]
    assert alive["features"] == ["sum"]


def test_no_examples_give_empty_outputs():
    (scores,) = simulate(small_network(), images(0))
    assert scores.shape == (0, 5)


def test_inputs_may_be_named_listed_or_alone():
    network, x = small_network(), images()
    expected = simulate(network, x)[0]
    np.testing.assert_array_equal(simulate(network, {"image": x})[0], expected)
    np.testing.assert_array_equal(simulate(network, [x])[0], expected)
    np.testing.assert_array_equal(simulate(network, x.astype(np.float64))[0], expected)


def test_predict_takes_batches_too():
    network, x = small_network(), images()
    expected = predict(network, x)
    assert expected.shape == (11, 5)
    np.testing.assert_array_equal(predict(network, iter([x[:4], x[4:]])), expected)


def test_accuracy_counts_the_right_classes():
    network, x = small_network(), images()
    y = predict(network, x).argmax(axis=1)
    y[:3] = (y[:3] + 1) % 5
    assert evaluate(network, x, y) == 8 / 11
    assert evaluate(network, x, y[:, None]) == 8 / 11
    assert evaluate(network, x, np.eye(5)[y]) == 8 / 11
    assert evaluate(network, ((x[i::2], y[i::2], None) for i in range(2))) == 8 / 11


def test_accuracy_reads_a_py_dataset_to_its_end():
    import keras

    network, x = small_network(), images()
    y = predict(network, x).argmax(axis=1)
    y[:3] = (y[:3] + 1) % 5

    class Batches(keras.utils.PyDataset):
        num_batches = 2

        def __getitem__(self, index):
            return x[index::2], y[index::2]

    assert evaluate(network, Batches()) == 8 / 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([images(), images()],), "`inputs` must be 1 arrays"),
        (({"picture": images()},), r"The keys of `inputs` must be \['image'\]"),
        ((images()[:, :5],), r"Input 'image' must have the shape \(None, 6, 6, 3\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate(small_network(), *arguments)


def test_an_integer_input_takes_its_own_type_only():
    network, (codes_,) = function(np.random.default_rng(0), "tanh")
    with pytest.raises(
        ValueError, match="Input 'in_x' must hold int8 codes. Received: dtype='float32'"
    ):
        simulate(network, codes_.astype(np.float32))


def test_an_unknown_tensor_cannot_be_kept():
    with pytest.raises(ValueError, match="`keep` must name tensors .* Received: name='suma'"):
        simulate(small_network(), images(), keep=["suma"])


def test_an_unknown_kind_is_named_with_its_layer():
    network, arrays = function(np.random.default_rng(0), "tanh")
    network.nodes[0].kind, network.nodes[0].layer = "celu", "block_1"
    with pytest.raises(NotImplementedError, match="kind='celu', layer='block_1'"):
        simulate(network, arrays)


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="`x` must hold at least one example"):
        evaluate(small_network(), iter([]))


# ---- float islands ---------------------------------------------------------------------------

FLOAT_KINDS = "logistic tanh elu relu relu6 hard_swish rsqrt square neg abs"
FLOAT_FUNCTIONS = {
    **dict.fromkeys(FLOAT_KINDS.split(), {}),
    "softmax": {},
    "gelu": {"approximate": False},
    "leaky_relu": {"alpha": 0.2},
    "mean": {"axes": (1, 2), "keep_dims": True},
    "average_pool_2d": {"size": (2, 2), "strides": (2, 2), "padding": "same"},
    "max_pool_2d": {"size": (2, 2), "strides": (2, 2), "padding": "same"},
    "resize_bilinear": {"size": (7, 9), "half_pixel_centers": True},
    "transpose": {"permutation": (0, 3, 1, 2)},
    "pad": {"paddings": [(0, 0), (1, 0), (0, 1), (0, 0)]},
}


@pytest.mark.parametrize("kind", FLOAT_FUNCTIONS)
def test_a_float_node_is_as_near_to_the_file_as_float32_goes(kind):
    x = np.random.default_rng(25).uniform(0.1, 4, (2, 3, 5, 4)).astype(np.float32)
    if kind != "rsqrt":
        x -= 2
    entry = tensor("x", (None, 3, 5, 4), dtype="float32")
    network = single(kind, [entry], tensor("y", (None,), dtype="float32"), **FLOAT_FUNCTIONS[kind])
    (expected,) = simulate(network, x)
    network.tensors["y"].shape = (None, *expected.shape[1:])
    np.testing.assert_allclose(run(network, x), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", "add sub mul div minimum squared_difference".split())
def test_a_float_pair_is_as_near_to_the_file_as_float32_goes(kind):
    a, b = np.random.default_rng(26).uniform(1, 4, (2, 2, 3, 4)).astype(np.float32)
    entries = [tensor(name, (None, 3, 4), dtype="float32") for name in "aby"]
    network = single(kind, entries[:2], entries[2])
    np.testing.assert_allclose(run(network, a, b), simulate(network, [a, b])[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["conv_2d", "depthwise_conv_2d", "fully_connected"])
def test_a_float_product_is_as_near_to_the_file_as_float32_goes(kind):
    network, (x,) = CASES[kind](np.random.default_rng(27))
    for entry in network.tensors.values():
        entry.dtype, entry.scale, entry.axis = "float32", None, None
        if entry.is_constant:
            entry.data = entry.data.astype(np.float32) / 128
    x = x.astype(np.float32) / 128
    np.testing.assert_allclose(run(network, x), simulate(network, x)[0], rtol=1e-4, atol=1e-4)


# ---- runtimes --------------------------------------------------------------------------------


def test_a_file_of_any_batch_size_runs_any_number_of_examples():
    network, x = small_network(), images()
    expected = run_file(write(network), x)[0]
    np.testing.assert_array_equal(run_file(write(network, batch_size=4), x)[0], expected)


# "compiled" knows no extra outputs: see test_compiled_model.
@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "compiled"])
def test_every_runtime_is_within_one_code_of_the_default_one(runtime):
    if missing_reason(runtime):
        pytest.skip(missing_reason(runtime))
    network, x = small_network(), images()
    content = write(network, extra_outputs=["sum"])
    expected, got = run_file(content, x)[1], run_file(content, x, runtime=runtime)[1]
    assert np.abs(got.astype(int) - expected).max() <= 1
    assert (got == expected).mean() > 0.99


def test_an_unknown_runtime_is_refused():
    with pytest.raises(ValueError, match="`runtime` must be one of 'default', .* 'micro'"):
        run_file(write(small_network()), images(), runtime="gpu")


def test_a_missing_runtime_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install ai-edge-litert" in missing_reason("builtin")
    with pytest.raises(RuntimeError, match="pip install --pre tflite-micro"):
        run_file(write(small_network()), images(), runtime="micro")


def test_inputs_that_do_not_fit_the_file_are_refused():
    content = write(small_network())
    with pytest.raises(ValueError, match="`inputs` must be 1 arrays"):
        run_file(content, [images(), images()])
    with pytest.raises(ValueError, match="Input 'image' must have shape .* float32"):
        run_file(content, images().astype(np.int8))


def test_bytes_that_are_no_file_are_refused():
    with pytest.raises(RuntimeError, match="The default runtime of LiteRT cannot load this file"):
        run_file(b"nothing" * 100, images())


def test_partitions_are_counted_with_what_stays_outside():
    network = small_network()
    whole = partitions(write(network))
    assert (whole.partitions, whole.num_others) == (1, 0)
    assert whole.delegated["CONV_2D"] == 2
    # A function that XNNPACK does not know, in the middle.
    network.add_tensor(codes((6, 6, 4), 0.17, -5, name="swish"))
    network.nodes.insert(4, Node(kind="hard_swish", inputs=["sum"], outputs=["swish"]))
    network.nodes[5].inputs = ["swish"]
    split = partitions(write(network))
    assert (split.partitions, split.others) == (2, {"HARD_SWISH": 1})
