"""`inspect`: what a TFLite file holds; and files that are damaged."""

import gzip
import random
import re

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from integer_networks import IMAGE, conv, dense, network_of, one, quantized, two_inputs

from speq_keras.export.tflite.inspect import inspect
from speq_keras.export.tflite.network import Node, Tensor
from speq_keras.export.tflite.reading import read_model
from speq_keras.export.tflite.write import write


def row_of(network, name):
    return next(row for row in inspect(write(network)).tensors if row.name == name)


# ---- tensors ---------------------------------------------------------------------------------


def test_every_tensor_has_a_row():
    rows = inspect(write(conv())).tensors
    assert [row.name for row in rows] == ["x", "w", "bias", "y"]


def test_a_row_names_type_shape_scale_and_zero_point():
    row = row_of(conv(), "x")
    assert (row.type, row.shape, row.zero_point) == ("int8", (1, 8, 8, 4), 3)
    assert row.scale == np.float32(0.05)
    assert not row.is_constant


def test_an_axis_that_may_change_has_no_size():
    rows = inspect(write(conv(), batch_size=None)).tensors
    assert {row.name: row.shape for row in rows}["x"] == (None, 8, 8, 4)


def test_scales_per_channel_are_given_by_the_smallest_and_the_largest():
    network = conv()
    scale = network.tensors["w"].scale
    assert row_of(network, "w").scale == (scale.min(), scale.max())


def test_what_is_not_quantized_has_no_width():
    row = row_of(one("dequantize", Tensor(name="y", shape=IMAGE, dtype="float32")), "y")
    assert (row.type, row.bits, row.scale, row.zero_point) == ("float32", None, None, None)


@pytest.mark.parametrize(("dtype", "size"), [("int8", 48), ("int4", 24), ("int2", 12)])
def test_bytes_are_those_of_the_packed_codes(dtype, size):
    row = row_of(dense(dtype), "w")
    assert (row.type, row.bytes) == (dtype, size)


# ---- bits in use -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "bits"),
    [
        ([5], 1),
        ([-127, 127], 1),
        ([-127, 0, 127], 2),
        ([-126, -42, 42, 126], 2),
        (range(-126, 127, 42), 3),  # -3 ... 3 times 42
        (range(-4, 4), 3),
        (range(-7, 8), 4),
        (range(-127, 128), 8),
    ],
)
def test_a_constants_width_is_that_of_the_codes_that_occur(codes, bits):
    network = dense(inputs=64)
    values = np.resize(np.array(list(codes), np.int8), (6, 64))
    network.tensors["w"].data = values
    row = row_of(network, "w")
    assert (row.codes, row.bits) == (len(codes), bits)


def test_packed_codes_are_counted_one_by_one():
    network = dense("int4")
    network.tensors["w"].data = np.resize(np.array([-7, 0, 7, 7], np.int8), (6, 8))
    assert row_of(network, "w").codes == 3


def activation(zero_point, clip, *, scale=0.05):
    network = conv(activation=clip)
    network.tensors["y"].zero_point = zero_point
    network.tensors["y"].scale = np.float32(scale)
    return network


@pytest.mark.parametrize(
    ("zero_point", "clip", "scale", "bits"),
    [
        (-128, "none", 0.05, 8),
        (-128, "relu", 0.05, 8),
        (127 - 3, "relu", 0.05, 2),  # codes 0 ... 3
        (127 - 7, "relu", 0.05, 3),
        (127 - 15, "relu", 0.05, 4),
        (-128 + 4, "relu_n1_to_1", 1 / 4, 4),  # codes -4 ... 4: nine of them
        (127 - 3, "relu_n1_to_1", 1 / 4, 3),  # codes -4 ... 3
        (0, "relu6", 6 / 7, 3),
    ],
)
def test_an_activations_width_is_that_of_the_range_that_clipping_leaves(
    zero_point, clip, scale, bits
):
    assert row_of(activation(zero_point, clip, scale=scale), "y").bits == bits


def followed_by(kind, *, zero_point=124, **options):
    """Returns a 2-bit convolution and one more node."""
    network = activation(zero_point, "relu")
    shape = (None, 8, 4, 6)
    network.add_tensor(quantized("z", options.pop("output", shape), zero_point=zero_point))
    network.nodes.append(Node(kind=kind, inputs=["y"], outputs=["z"], options=options))
    network.outputs = ["z"]
    return network


POOL = {"size": (2, 2), "strides": (2, 2), "padding": "valid", "output": (None, 4, 2, 6)}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("max_pool_2d", POOL),
        ("average_pool_2d", POOL),
        ("reshape", {"shape": (None, 192), "output": (None, 192)}),
        ("pad", {"paddings": ((0, 0), (1, 1), (0, 0), (0, 0)), "output": (None, 10, 4, 6)}),
    ],
)
def test_operations_that_carry_codes_keep_their_inputs_width(kind, options):
    assert row_of(followed_by(kind, **options), "z").bits == 2


def test_other_operations_do_not():
    assert row_of(followed_by("tanh"), "z").bits == 8


def test_a_concatenation_has_the_width_of_both_inputs_together():
    network = followed_by("concatenation", axis=3)
    network.add_tensor(quantized("b", (None, 8, 4, 6), zero_point=124))
    network.nodes[-1].inputs.append("b")
    network.inputs.append("b")
    network.input_names.append("b")
    assert row_of(network, "z").bits == 8
    network.nodes[-1].inputs = ["y", "y"]
    assert row_of(network, "z").bits == 2


# ---- totals ----------------------------------------------------------------------------------


def test_sizes_are_those_of_the_file_and_of_its_gzip():
    content = write(conv())
    found = inspect(content)
    assert found.bytes == len(content)
    assert found.gzip_bytes == len(gzip.compress(content))


def test_constants_are_summed_by_type():
    # 6 x 3 x 3 x 4 weights, and 6 biases of 4 bytes.
    assert inspect(write(conv())).constant_bytes == {"int32": 24, "int8": 216}


def test_shared_constants_count_once():
    first, second = (quantized(x, (4,), zero_point=0, data=np.arange(4)) for x in "cd")
    nodes = [
        Node(kind="add", inputs=["x", "c"], outputs=["h"]),
        Node(kind="add", inputs=["h", "d"], outputs=["y"]),
    ]
    tensors = [quantized("x", IMAGE), first, second, quantized("h", IMAGE), quantized("y", IMAGE)]
    assert inspect(write(network_of(tensors, nodes))).constant_bytes == {"int8": 4}


def test_operations_are_counted_by_kind():
    table = quantized("t", (256,), data=np.zeros(256, np.int8))
    found = inspect(write(one("lookup", quantized("y", IMAGE), table)))
    assert found.operations == {"ADD": 1, "CAST": 1, "GATHER": 1}


def test_signature_and_metadata_are_shown():
    network = two_inputs("add")
    network.metadata = {"bits": "3"}
    found = inspect(write(network))
    assert found.signatures == {
        "serving_default": {"inputs": {"in_x": "x", "in_b": "b"}, "outputs": {"out_y": "y"}}
    }
    assert found.metadata == {"bits": "3", "min_runtime_version": "2.3.0"}
    assert found.description.startswith("Written by speq_keras ")


def test_it_prints_as_a_table():
    lines = str(inspect(write(conv()))).splitlines()
    assert lines[0].split() == "tensor type shape bits codes scale zero point bytes".split()
    assert lines[2].split()[:10] == "w int8 6 x 3 x 3 x 4 8".split()[:10]
    assert "constants   int32 24, int8 216, everything else" in "\n".join(lines)
    assert "signature   serving_default: in_x -> out_y" in lines
    assert "operations  CONV_2D 1" in lines


def test_to_dict_holds_plain_values():
    import json

    found = inspect(write(conv()))
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["tensors"][1]["name"] == "w"
    assert plain["constant_bytes"] == found.constant_bytes


def test_a_path_is_read_like_its_bytes(tmp_path):
    (tmp_path / "m.tflite").write_bytes(write(conv()))
    assert inspect(tmp_path / "m.tflite") == inspect(str(tmp_path / "m.tflite"))
    assert inspect(tmp_path / "m.tflite") == inspect(write(conv()))


# ---- files of others, and damaged ones -------------------------------------------------------

DAMAGED = "A TFLite file is expected, whole and undamaged. Received: {} bytes. {}"


def refused(content, reason="It is cut off or damaged."):
    sentence = DAMAGED.format(len(content), reason)
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def test_a_file_cut_off_anywhere_is_refused():
    content = write(conv())
    for length in range(8, len(content)):
        with refused(content[:length]):
            inspect(content[:length])


def test_an_empty_file_is_refused():
    with refused(b"", "It is empty."):
        inspect(b"")


@pytest.mark.parametrize("content", [b"x", b"PK\3\4 is a zip", bytes(100), b"TFL3TFL"])
def test_other_files_are_refused(content):
    with refused(content, "It does not carry the identifier TFL3 in bytes 4 to 7."):
        inspect(content)


def test_random_bytes_are_refused():
    source = random.Random(0)
    for _ in range(200):
        content = source.randbytes(4) + b"TFL3" + source.randbytes(source.randrange(3000))
        with refused(content):
            inspect(content)


def test_a_damaged_byte_is_refused_or_does_no_harm():
    content, source = write(conv()), random.Random(0)
    outcomes = set()
    for _ in range(1000):
        damaged = bytearray(content)
        damaged[source.randrange(8, len(content))] = source.randrange(256)
        try:
            outcomes.add(type(inspect(bytes(damaged))).__name__)
        except ValueError as error:
            outcomes.add(str(error))
    assert outcomes == {"Inspection", DAMAGED.format(len(content), "It is cut off or damaged.")}


def repacked(change):
    """Returns a file in which `change` has changed the model."""
    import flatbuffers

    model = schema.ModelT.InitFromPackedBuf(write(conv(activation="relu")))
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_repacking_alone_does_no_damage():
    assert inspect(repacked(lambda model, graph: None)).operations == {"CONV_2D": 1}


def numbers(*values):
    return np.array(values, np.int32)


DAMAGES = {
    "tensor of an operation": lambda m, g: setattr(g.operators[0], "inputs", numbers(0, 1, 4)),
    "output of an operation": lambda m, g: setattr(g.operators[0], "outputs", numbers(-1)),
    "operator code": lambda m, g: setattr(g.operators[0], "opcodeIndex", 1),
    "input of the graph": lambda m, g: setattr(g, "inputs", numbers(9)),
    "buffer": lambda m, g: setattr(g.tensors[1], "buffer", 99),
    "size of a constant": lambda m, g: setattr(g.tensors[1], "shape", numbers(6, 3, 3, 5)),
    "negative size": lambda m, g: setattr(g.tensors[0], "shape", numbers(1, -8, 8, 4)),
    "type": lambda m, g: setattr(g.tensors[0], "type", 99),
    "scales": lambda m, g: setattr(g.tensors[1].quantization, "zeroPoint", np.zeros(5, np.int64)),
    "signature": lambda m, g: setattr(m.signatureDefs[0].inputs[0], "tensorIndex", 4),
    "graph of the signature": lambda m, g: setattr(m.signatureDefs[0], "subgraphIndex", 1),
    "metadata": lambda m, g: setattr(m.metadata[0], "buffer", 99),
    "no graph": lambda m, g: (setattr(m, "subgraphs", []), setattr(m, "signatureDefs", [])),
    "no buffers": lambda m, g: setattr(m, "buffers", []),
    "name": lambda m, g: setattr(g.tensors[0], "name", b"\xff\xfe"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_number_that_points_to_nothing_is_refused(name):
    content = repacked(DAMAGES[name])
    with refused(content):
        inspect(content)


def test_a_name_that_ends_behind_the_file_is_refused():
    content = bytearray(write(conv()))
    place = content.index(b"net\0") - 4  # where its length stands
    assert content[place] == 3
    content[place : place + 4] = (len(content) - place - 3).to_bytes(4, "little")
    with refused(content):
        inspect(bytes(content))


def test_nonsensical_scales_do_no_harm():
    for scale in (0.0, np.nan, np.inf, -1.0):
        content = repacked(
            lambda m, g, scale=scale: setattr(
                g.tensors[3].quantization, "scale", np.array([scale], np.float32)
            )
        )
        assert inspect(content).operations == {"CONV_2D": 1}


def test_a_missing_file_is_refused(tmp_path):
    path = str(tmp_path / "m.tflite")
    sentence = f"A TFLite file is expected. Received: path={path!r}. There is no such file."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        inspect(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Received: path='.*'. This is a folder.$"):
        inspect(tmp_path)


@pytest.mark.parametrize("value", [None, 3, ["m.tflite"]])
def test_what_is_neither_path_nor_bytes_is_a_type_error(value):
    sentence = f"The path of a TFLite file, or its bytes, is expected. Received: path={value!r}."
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        inspect(value)


def test_read_model_returns_content_and_model():
    content, model = read_model(bytearray(write(conv())))
    assert content == write(conv())
    assert [x.name for x in model.subgraphs[0].tensors] == ["x", "w", "bias", "y"]
