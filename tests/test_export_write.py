"""The writer: what stands in the file, and that the runtime reads it as it was meant."""

import dataclasses
import re

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from integer_networks import (
    CONV,
    IMAGE,
    bias_for,
    conv,
    dense,
    floating,
    interpreter_of,
    network_of,
    one,
    outputs_of,
    parsed,
    quantized,
    random_codes,
    tensor_named,
    two_inputs,
    weights,
)

from speq_keras.export.tflite.network import Node, Tensor
from speq_keras.export.tflite.packing import pack_codes, unpack_codes
from speq_keras.export.tflite.write import tensor_bytes, write

# ---- the file --------------------------------------------------------------------------------


def test_the_file_identifies_itself_as_tflite():
    assert write(conv())[4:8] == b"TFL3"
    assert parsed(conv()).version == 3


def test_equal_networks_give_equal_bytes():
    assert write(conv()) == write(conv())


def test_the_first_buffer_is_empty():
    assert parsed(conv()).buffers[0].data is None


def test_constants_begin_at_multiples_of_16_bytes():
    network = conv()
    content = write(network)
    for name in ("w", "bias"):
        assert content.find(tensor_bytes(network.tensors[name])) % 16 == 0


def test_metadata_holds_the_networks_strings_and_the_oldest_runtime():
    network = conv()
    network.metadata = {"version": "1.2", "bits": "3"}
    model = parsed(network)
    found = {x.name.decode(): bytes(model.buffers[x.buffer].data) for x in model.metadata}
    oldest = b"2.3.0".ljust(16, b"\0")
    assert found == {"version": b"1.2", "bits": b"3", "min_runtime_version": oldest}


def test_the_oldest_runtime_is_that_of_the_newest_operator():
    model = parsed(dense("int2", inputs=8))
    assert bytes(model.buffers[model.metadata[-1].buffer].data).rstrip(b"\0") == b"2.21.0"


def test_the_signature_has_the_models_own_names():
    signatures = interpreter_of(write(two_inputs("add"))).get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["in_b", "in_x"], "outputs": ["out_y"]}}


def test_the_signature_runner_computes_the_graph():
    content = write(conv())
    runner = interpreter_of(content).get_signature_runner()
    x = random_codes(0, 1, 8, 8, 4)
    np.testing.assert_array_equal(runner(in_x=x)["out_y"], outputs_of(content, x)[0])


# ---- tensors ---------------------------------------------------------------------------------


def test_scales_zero_points_and_axis_stand_in_the_file():
    network = conv()
    model = parsed(network)
    output = tensor_named(model, "y").quantization
    assert (output.scale.tolist(), output.zeroPoint.tolist()) == ([np.float32(0.05)], [3])
    kernel = tensor_named(model, "w").quantization
    np.testing.assert_array_equal(kernel.scale, network.tensors["w"].scale)
    assert kernel.zeroPoint.tolist() == [0] * 6
    assert kernel.quantizedDimension == 0


def test_the_axis_of_depthwise_scales_is_the_last():
    kernel = weights(0, (1, 3, 3, 4), name="w", axis=3)
    network = one("depthwise_conv_2d", quantized("y", IMAGE), kernel, bias_for(kernel))
    network.nodes[0].options = {**CONV, "strides": (1, 1), "multiplier": 1}
    assert tensor_named(parsed(network), "w").quantization.quantizedDimension == 3


def test_a_tensor_without_a_scale_has_no_quantization():
    output = floating("y", IMAGE)
    assert tensor_named(parsed(one("dequantize", output)), "y").quantization is None


def test_zero_points_of_channels_are_laid_down_once():
    def size(channels):
        kernel = weights(0, (channels, 8), name="w")
        first = one(
            "fully_connected",
            quantized("y", (None, channels)),
            kernel,
            bias_for(kernel),
            x=quantized("x", (None, 8)),
        )
        return len(write(first))

    # Per channel: 8 weights, a bias of 4 bytes, two scales of 4 bytes, and one zero point of 8
    # bytes for weights and bias together. Lengths are multiples of 16: nothing is padded.
    assert size(128) - size(64) == 64 * (8 + 4 + 2 * 4 + 8)


def test_equal_constants_share_a_buffer_but_keep_their_scales():
    first, second = weights(0, (4,), name="w"), weights(0, (4,), name="v")
    second.scale = second.scale * np.float32(2)
    nodes = [
        Node(kind="mul", inputs=["x", "w"], outputs=["h"]),
        Node(kind="mul", inputs=["h", "v"], outputs=["y"]),
    ]
    for tensor in (first, second):
        tensor.scale, tensor.axis = tensor.scale[0], None
    model = parsed(
        network_of(
            [quantized("x", IMAGE), first, second, quantized("h", IMAGE), quantized("y", IMAGE)],
            nodes,
        )
    )
    w, v = tensor_named(model, "w"), tensor_named(model, "v")
    assert w.buffer == v.buffer
    assert v.quantization.scale[0] == 2 * w.quantization.scale[0]


def test_a_tensor_of_an_operation_does_not_replace_one_of_the_same_name():
    table = quantized("y/index", (256,), data=random_codes(0, 256))
    network = one("lookup", quantized("y", (None, 4)), table, x=quantized("x", (None, 4)))
    names = [t.name.decode() for t in parsed(network).subgraphs[0].tensors]
    assert sorted(names) == ["x", "y", "y/code", "y/index", "y/index_1", "y/offset"]
    x = random_codes(0, 1, 4)
    np.testing.assert_array_equal(outputs_of(write(network), x)[0], table.data[x.astype(int) + 128])


@pytest.mark.parametrize(
    ("dtype", "value", "sentence"),
    [
        ("int8", 128, "from -128 to 127. Received: name='w', smallest=128, largest=128."),
        ("int4", -9, "from -8 to 7. Received: name='w', smallest=-9, largest=-9."),
        ("int2", 2, "from -2 to 1. Received: name='w', smallest=2, largest=2."),
        ("uint8", -1, "from 0 to 255. Received: name='w', smallest=-1, largest=-1."),
        ("int32", 2**31, f"to {2**31 - 1}. Received: name='w', smallest={2**31}, larg"),
    ],
)
def test_values_that_do_not_fit_their_type_are_refused(dtype, value, sentence):
    tensor = Tensor(name="w", shape=(1,), dtype=dtype, data=np.array([value]))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        tensor_bytes(tensor)


# ---- packed codes ----------------------------------------------------------------------------


def test_the_first_of_two_codes_stands_in_the_low_half_of_the_byte():
    assert pack_codes([1, -2], 4).tolist() == [0xE1]


def test_the_first_of_four_codes_stands_in_the_lowest_two_bits():
    assert pack_codes([1, -2, 0, -1], 2).tolist() == [0b11_00_10_01]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 64])
def test_unpacking_gives_the_codes_back(bits, count):
    values = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count)
    packed = pack_codes(values, bits)
    assert len(packed) == -(-count * bits // 8)
    np.testing.assert_array_equal(unpack_codes(packed, bits, count), values)


@pytest.mark.parametrize("resolver", [OpResolverType.AUTO, OpResolverType.BUILTIN_REF])
@pytest.mark.parametrize("inputs", [8, 9])
@pytest.mark.parametrize("dtype", ["int8", "int4", "int2"])
def test_kernels_read_packed_codes_in_that_order(dtype, inputs, resolver):
    network = dense(dtype, inputs=inputs)
    kernel, bias = network.tensors["w"], network.tensors["bias"].data
    # The identity, row by row, shows every single code: input 1 in one place, 0 elsewhere.
    x = np.eye(inputs, dtype=np.int8) + np.int8(3)
    network.tensors["bias"].data = np.zeros_like(bias)
    network.tensors["x"].scale = np.float32(1)
    kernel.scale = np.ones(6, np.float32)
    network.tensors["bias"].scale = np.ones(6, np.float32)
    network.tensors["y"].scale, network.tensors["y"].zero_point = np.float32(1), 0
    (y,) = outputs_of(write(network), x, resolver=resolver)
    np.testing.assert_array_equal(y, kernel.data.T)


# ---- the batch -------------------------------------------------------------------------------


def test_the_batch_size_stands_in_the_shapes():
    file = parsed(conv(), batch_size=5)
    assert tensor_named(file, "x").shape.tolist() == [5, 8, 8, 4]
    assert [tensor.shapeSignature for tensor in file.subgraphs[0].tensors] == [None] * 4


def test_a_batch_size_of_none_is_one_and_open():
    entry = tensor_named(parsed(conv(), batch_size=None), "x")
    assert entry.shape.tolist() == [1, 8, 8, 4]
    assert entry.shapeSignature.tolist() == [-1, 8, 8, 4]


@pytest.mark.parametrize("batch_size", [1, None])
def test_a_strict_resize_needs_an_open_batch_size(batch_size):
    interpreter = Interpreter(model_content=write(conv(), batch_size=batch_size))
    place = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(place, (3, 8, 8, 4))  # not strict
    if batch_size is None:
        interpreter.resize_tensor_input(place, (2, 8, 8, 4), strict=True)
        interpreter.allocate_tensors()
        return
    with pytest.raises(RuntimeError, match="Strict only allows mutating unknown dimensions"):
        interpreter.resize_tensor_input(place, (2, 8, 8, 4), strict=True)


def test_constants_have_no_open_axis():
    assert tensor_named(parsed(conv(), batch_size=None), "w").shapeSignature is None


def test_a_resized_batch_computes_what_a_written_one_computes():
    # Reshape and slice are those that could hold on to the old batch size.
    nodes = [
        Node(kind="conv_2d", inputs=["x", "w", "bias"], outputs=["h"], options=CONV),
        Node(
            kind="strided_slice",
            inputs=["h"],
            outputs=["s"],
            options={"begin": (0, 1, 0, 0), "end": (None, 7, None, 4), "strides": (1, 2, 1, 1)},
        ),
        Node(kind="reshape", inputs=["s"], outputs=["y"], options={"shape": (None, 48)}),
    ]
    kernel = weights(0, (6, 3, 3, 4), name="w")
    network = network_of(
        [
            *(quantized("x", IMAGE), kernel, bias_for(kernel)),
            *(quantized("h", (None, 8, 4, 6)), quantized("s", (None, 3, 4, 4))),
            quantized("y", (None, 48)),
        ],
        nodes,
    )
    x = random_codes(0, 3, 8, 8, 4)
    (resized,) = outputs_of(write(network, batch_size=1), x)
    assert resized.shape == (3, 48)
    np.testing.assert_array_equal(resized, outputs_of(write(network, batch_size=3), x)[0])


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"`batch_size`.* Received: batch_size={batch_size}."):
        write(conv(), batch_size=batch_size)


# ---- outputs ---------------------------------------------------------------------------------


def chain():
    nodes = [
        Node(kind="logistic", inputs=["x"], outputs=["h"]),
        Node(kind="mul", inputs=["x", "h"], outputs=["y"]),
    ]
    hidden = quantized("h", IMAGE, scale=1 / 256, zero_point=-128)
    return network_of([quantized("x", IMAGE), hidden, quantized("y", IMAGE)], nodes)


def test_extra_outputs_follow_the_networks_own():
    x = random_codes(0, 1, 8, 8, 4)
    y, h = outputs_of(write(chain(), extra_outputs=["h"]), x)
    np.testing.assert_array_equal(y, outputs_of(write(chain()), x)[0])
    # 256 / (1 + e^-x), rounded, minus 128: one half of a code off at most, on ties.
    real = 256 / (1 + np.exp(-np.float32(0.05) * (x.astype(np.float64) - 3)))
    assert np.abs(h - np.clip(real - 128, -128, 127)).max() <= 0.5 + 1e-3


def test_extra_outputs_are_not_in_the_signature():
    content = write(chain(), extra_outputs=["h"])
    assert interpreter_of(content).get_signature_list()["serving_default"]["outputs"] == ["out_y"]


def test_an_extra_output_that_is_an_output_is_not_added_again():
    graph = parsed(chain(), extra_outputs=["y", "h", "h"]).subgraphs[0]
    assert [graph.tensors[i].name for i in graph.outputs] == [b"y", b"h"]


def test_an_unknown_extra_output_is_refused():
    with pytest.raises(ValueError, match="must be a tensor of the network. Received: name='z'."):
        write(chain(), extra_outputs=["z"])


def test_an_unknown_kind_of_node_is_refused():
    network = conv()
    network.nodes[0] = dataclasses.replace(network.nodes[0], kind="conv_9d", layer="stem")
    with pytest.raises(ValueError, match="must be one of .*: kind='conv_9d', layer='stem'."):
        write(network)
