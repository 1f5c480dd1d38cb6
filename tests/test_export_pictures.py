"""An export as a web page, and as node data that Google's Model Explorer reads."""

import dataclasses
import importlib.util
import json
import math

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from fresh_process import result_of
from keras import layers
from web_page import Page

import speq_keras

WRONG = "#f0a09a"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).uniform(-1, 2, (24, 10, 10, 3)).astype("float32")


@pytest.fixture(scope="module")
def exported(images, tmp_path_factory):
    """A report, and the file: 8 bits at both ends, 3 and 2 between; a shared layer, a float one."""
    keras.utils.set_random_seed(2)
    x = keras.Input((10, 10, 3), name="image")
    y = layers.Conv2D(8, 3, use_bias=False, name="first")(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    shared = layers.Conv2D(8, 3, padding="same", activation="relu", name="shared")
    y = shared(shared(y))
    y = layers.Dense(6, activation="relu", name="float")(y)
    y = layers.DepthwiseConv2D(3, activation="relu", name="depth")(y)
    y = layers.Dense(5, name="label")(layers.GlobalAveragePooling2D()(y))
    network = keras.Model(x, y, name="small")
    model = speq_keras.wrap(network, w_bits=3, a_bits=2, skip="float", distillation=None)
    model.calibrate(images, training=True, verbose=0)
    path = tmp_path_factory.mktemp("pictures") / "m.tflite"
    return model.export_tflite(path, data=images), path


@pytest.fixture(scope="module")
def stored(exported, images):
    """{tensor name: its values on all examples}, of a file all of whose tensors are outputs."""
    model = schema.ModelT.InitFromPackedBuf(exported[1].read_bytes(), 0)
    (graph,) = model.subgraphs
    graph.outputs = [number for node in graph.operators for number in node.outputs]
    model.signatureDefs = None  # names the outputs that the file had
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(model_content=bytes(builder.Output()), num_threads=1)
    interpreter.allocate_tensors()
    place = interpreter.get_input_details()[0]["index"]
    numbers = [tensor["index"] for tensor in interpreter.get_output_details()]
    computed = []
    for image in images:
        interpreter.set_tensor(place, image[None])
        interpreter.invoke()
        computed.append([interpreter.get_tensor(number) for number in numbers])
    names = [graph.tensors[number].name.decode() for number in graph.outputs]
    found = dict(zip(names, map(np.stack, zip(*computed, strict=True)), strict=True))
    for tensor in graph.tensors:  # constants of one byte
        if (data := model.buffers[tensor.buffer].data) is not None:
            found[tensor.name.decode()] = np.array(data, "uint8").view("int8")
    return found


@pytest.fixture(scope="module")
def node_data(exported, tmp_path_factory):
    """[deviations, codes, bits]: the three files."""
    paths = exported[0].to_model_explorer(tmp_path_factory.mktemp("data") / "x.json")
    assert [path.name for path in paths] == ["x.json", "x_codes.json", "x_bits.json"]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def values(data):
    return {name: result["value"] for name, result in data["results"].items()}


def codes_in_use(row, stored):
    """How many codes the weights of a layer have, as the file has them."""
    if row.name == "depth":  # a channel of even codes alone is stored times another number there
        return 7  # -3 to 3
    return len(np.unique(stored[row.tensor]))


# ---- Model Explorer --------------------------------------------------------------------------


def test_the_deviations_are_those_of_the_proof(exported, node_data):
    expected = {
        row.name: row.deviation for row in exported[0].proof.tensors if row.deviation is not None
    }
    assert len(expected) >= 8
    assert values(node_data[0]) == expected


def test_the_codes_in_use_are_those_that_the_file_computes(exported, node_data, stored):
    rows = [row.name for row in exported[0].proof.tensors]
    found = values(node_data[1])
    assert {name: found[name] for name in rows} == {
        name: len(np.unique(stored[name])) for name in rows
    }


def test_the_weights_in_use_are_those_in_the_file(exported, node_data, stored):
    rows = exported[0].weights
    assert [row.name for row in rows] == ["first", "shared", "shared", "depth", "label"]
    found = values(node_data[1])
    for row in rows:
        assert found[row.tensor] == codes_in_use(row, stored)
    assert len({row.tensor for row in rows}) == 5


def test_the_bits_are_those_that_were_trained(exported, node_data):
    found = values(node_data[2])
    assert [found[row.tensor] for row in exported[0].weights] == [8, 3, 3, 3, 8]
    levels = {row.name: row.codes for row in exported[0].proof.tensors}
    assert {4: 2, 256: 8}.items() == {(codes, found[name]) for name, codes in levels.items()}


def test_each_file_says_what_its_numbers_are(node_data):
    assert [data["name"] for data in node_data] == ["deviation, steps", "codes in use", "bits"]


def test_what_differs_from_the_trained_network_is_red(exported, node_data, tmp_path):
    report, _ = exported
    assert WRONG not in json.dumps(node_data)
    first, second, *others = report.proof.tensors
    rows = (
        dataclasses.replace(first, outside=3, deviation=math.nan),
        dataclasses.replace(second, mismatches=1),
        *others,
    )
    changed = dataclasses.replace(report, proof=dataclasses.replace(report.proof, tensors=rows))
    path, *_ = changed.to_model_explorer(tmp_path / "x.json")
    results = json.loads(path.read_text())["results"]
    red = [name for name, result in results.items() if result["bgColor"] == WRONG]
    assert red == [first.name, second.name]
    assert results[first.name]["value"] == 255  # JSON has no NaN; codes are never further apart


@pytest.fixture(scope="module")
def sequences():
    """A quantized model of other layers: sequences, float islands, tables, two outputs."""
    x = keras.Input((16, 3), name="x")
    y = layers.Conv1D(8, 3, padding="causal", activation="relu", name="causal")(x)
    y = layers.LayerNormalization()(y)
    y = layers.Conv1D(8, 1, activation="relu", name="pointwise")(y)
    y = layers.Conv1DTranspose(4, 2, strides=2, name="up")(y)
    y = layers.EinsumDense("abc,cd->abd", (32, 4), activation="swish", name="einsum")(y)
    outputs = [layers.Dense(3, name="last")(layers.Flatten()(y)), layers.GlobalMaxPooling1D()(y)]
    model = speq_keras.wrap(keras.Model(x, outputs), 3, 3, distillation=None)
    data = np.random.default_rng(0).normal(size=(16, 16, 3)).astype("float32")
    model.calibrate(data, training=True, verbose=0)
    return model


@pytest.mark.parametrize(
    "settings",
    [{}, {"storage": "int4", "io": "int8"}, {"storage": "smallest"}, {"batch_size": None}],
    ids=str,
)
def test_every_number_belongs_to_a_tensor_of_the_file(sequences, settings, tmp_path):
    report = sequences.export_tflite(tmp_path / "m.tflite", **settings)
    file = schema.ModelT.InitFromPackedBuf((tmp_path / "m.tflite").read_bytes(), 0)
    names = {tensor.name.decode() for tensor in file.subgraphs[0].tensors}
    for path in report.to_model_explorer(tmp_path / "x.json"):
        data = json.loads(path.read_text())
        assert len(data["results"]) >= 8
        assert data["results"].keys() <= names
    layers_of_weights = [row.name for row in report.weights]
    assert layers_of_weights == ["causal", "pointwise", "up", "einsum", "last"]


READER = """
import json, sys
from dacite import from_dict
from model_explorer.builtin_tflite_flatbuffer_adapter import BuiltinTfliteFlatbufferAdapter
from model_explorer.config import ModelExplorerConfig
from model_explorer.node_data_builder import GraphNodeData

model, *paths = sys.argv[1:]
config = ModelExplorerConfig().add_model_from_path(model)
graphs = BuiltinTfliteFlatbufferAdapter().convert(model, {})["graphCollections"][0].graphs
(graph,) = graphs
# As the page of Model Explorer does it: by the name of an output tensor.
nodes = {
    attribute["value"]: node["label"]
    for node in graph["nodes"]
    for output in node["outputsMetadata"]
    for attribute in output["attrs"]
    if attribute["key"] == "tensor_name"
}
found = []
for path in paths:
    config.add_node_data_from_path(path)
    with open(path) as file:
        data = from_dict(GraphNodeData, json.load(file))
    again = json.loads(data.to_json_string())
    found.append([data.name, {key: nodes.get(key) for key in data.results}, again["results"]])
print(json.dumps(found))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("model_explorer") is None,
    reason="ai-edge-model-explorer is not installed: pip install '.[model_explorer]'",
)
def test_model_explorer_finds_the_node_of_every_number(exported, node_data, tmp_path):
    report, model = exported
    paths = report.to_model_explorer(tmp_path / "x.json")
    found = result_of(READER, model, *paths)
    assert [name for name, _, _ in found] == [data["name"] for data in node_data]
    assert [results for _, _, results in found] == [data["results"] for data in node_data]
    kinds = {row.name: row.kind for row in report.proof.tensors}
    kinds |= {row.tensor: "pseudo_const" for row in report.weights}
    for _, labels, _ in found:
        assert labels == {key: kinds[key] for key in labels}


def test_node_data_need_their_suffix(exported, tmp_path):
    with pytest.raises(ValueError, match=r"`path` must be a file that ends in \.json"):
        exported[0].to_model_explorer(tmp_path / "x.txt")


def test_no_file_is_written_where_one_of_three_cannot_be(exported, tmp_path):
    (tmp_path / "x_bits.json").mkdir()
    with pytest.raises(ValueError, match=r"x_bits.json'. This is a folder"):
        exported[0].to_model_explorer(tmp_path / "x.json")
    assert [path.name for path in tmp_path.iterdir()] == ["x_bits.json"]


# ---- the page --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(exported):
    return Page(exported[0].to_html())


def test_a_page_closes_what_it_opens_and_loads_nothing(exported, page):
    assert (page.open, page.loads) == ([], [])
    text = exported[0].to_html()
    assert not [word for word in ("http", "url(", "@import", "<script", "<link") if word in text]


def test_the_tensors_have_bits_codes_and_deviation(exported, page, stored):
    header, *rows = page.tables[0]
    assert header[:5] == ["codes", "made by", "bits", "grid", "used"]
    assert [row[0] for row in rows] == [row.name for row in exported[0].proof.tensors]
    for name, kind, bits, grid, used, *_, deviation in rows:
        row = next(row for row in exported[0].proof.tensors if row.name == name)
        assert (kind, int(grid)) == (row.kind, 2 ** int(bits))
        assert int(used) == len(np.unique(stored[name]))
        assert deviation == ("" if row.deviation is None else f"{row.deviation:.4f}")


def test_the_weights_have_bits_codes_and_bytes(exported, page, stored):
    _, *rows = page.tables[1]
    for row, (name, dtype, bits, used, *_) in zip(exported[0].weights, rows, strict=True):
        assert (name, dtype) == (row.name, "int8")
        assert int(bits) == (8 if name in ("first", "label") else 3)
        assert int(used) == codes_in_use(row, stored)


def test_bars_are_shares_of_what_is_possible(exported, page):
    for number, row in enumerate(exported[0].proof.tensors, start=1):
        assert page.shares[0, number, 2] == (100.0 if row.codes == 256 else 25.0)
        assert page.shares[0, number, 4] == round(100 * row.used / row.codes, 1)
        if row.deviation is not None:
            assert page.shares[0, number, 7] == round(100 * row.deviation / row.allowed, 1)
    # By hand: kernels of 3·3·3·8, 3·3·8·8 and 6·5 codes, a byte each.
    assert page.shares[1, 1, 6] == round(100 * 216 / 576, 1)
    assert page.shares[1, 2, 6] == 100.0
    assert page.shares[1, 5, 6] == round(100 * 30 / 576, 1)


def test_the_page_has_the_figures_of_the_proof(exported):
    report, path = exported
    text = report.to_html()
    assert "<h1>Export of m.tflite</h1>" in text
    assert f"<dd>{path.stat().st_size / 1000:,.1f} kB<" in text
    assert f"<dd>{report.proof.rounded:,} of {report.proof.rounded:,}<" in text
    assert all(note in text.replace("&#x27;", "'") for note in report.notes)


def test_a_page_says_that_the_file_is_not_the_network(exported):
    report, _ = exported
    first, *others = report.proof.tensors
    rows = (dataclasses.replace(first, outside=3), *others)
    changed = dataclasses.replace(report, proof=dataclasses.replace(report.proof, tensors=rows))
    assert "<h1>Export of m.tflite: NOT the trained network</h1>" in changed.to_html()


def test_names_are_escaped(exported):
    report, _ = exported
    first, *others = report.proof.tensors
    rows = (dataclasses.replace(first, name="<b>&"), *others)
    changed = dataclasses.replace(report, proof=dataclasses.replace(report.proof, tensors=rows))
    assert Page(changed.to_html()).tables[0][1][0] == "<b>&"
    assert "<b>" not in changed.to_html()


def test_a_page_is_written_to_a_path(exported, tmp_path):
    text = exported[0].to_html(tmp_path / "m.html")
    assert (tmp_path / "m.html").read_text(encoding="utf-8") == text
    with pytest.raises(ValueError, match=r"`path` must be a file that ends in \.html"):
        exported[0].to_html(tmp_path / "m.txt")
