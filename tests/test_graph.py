"""`graph.read_graph`: what is read computes what the model computes; the model is left alone."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops, tree

from speq_keras.graph import Ref, copy_operation, is_functional, read_graph
from speq_keras.graph.running import takes_training
from speq_keras.layers import QuantizedLayer
from speq_keras.operations import make_operation

pytestmark = pytest.mark.every_backend

RNG = np.random.default_rng(0)


def example(*shape):
    return RNG.normal(size=shape).astype("float32")


def names(model):
    return [node.name for node in read_graph(model).nodes]


def wiring(model):
    """{node: [the nodes or inputs that it reads]}; of several calls of a layer the last one."""
    graph = read_graph(model)

    def name_of(index):
        tensor = graph.tensors[index]
        return tensor.name if tensor.producer is None else tensor.producer.name

    return {node.name: [name_of(index) for index in node.inputs] for node in graph.nodes}


def compute(graph, inputs):
    """Runs the nodes of a graph on arrays, with the layers that they hold."""
    values = dict(zip(graph.input_indices, tree.flatten(inputs), strict=True))

    def filled(structure):
        return tree.map_structure(
            lambda leaf: values[leaf.index] if isinstance(leaf, Ref) else leaf, structure
        )

    for node in graph.nodes:
        outputs = node.operation(*filled(node.args), **filled(node.kwargs))
        values.update(zip(node.outputs, tree.flatten(outputs), strict=True))
    return filled(graph.outputs)


def assert_reads_faithfully(model, inputs):
    """The nodes, run one by one, give the model's outputs in the model's structure."""
    mine, theirs = compute(read_graph(model), inputs), model(inputs)
    tree.assert_same_structure(mine, theirs)
    for a, b in zip(tree.flatten(mine), tree.flatten(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def small_functional(name="small", units=3):
    inputs = keras.Input((4,), name=f"{name}_in")
    hidden = layers.Dense(units, name="hidden")(inputs)
    return keras.Model(inputs, layers.ReLU(name="relu")(hidden), name=name)


def small_sequential(name="stack"):
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, name="first"), layers.Dense(4, name="second")],
        name=name,
    )


# ---- plain models ----------------------------------------------------------------------------


def test_a_functional_model_is_read_in_the_order_of_its_computation():
    assert names(small_functional()) == ["hidden", "relu"]


def test_every_node_knows_which_tensors_it_reads():
    assert wiring(small_functional()) == {"hidden": ["small_in"], "relu": ["hidden"]}


def test_shapes_and_dtypes_are_those_of_the_model():
    graph = read_graph(small_functional())
    assert [(t.shape, t.dtype) for t in graph.tensors] == [
        ((None, 4), "float32"),
        ((None, 3), "float32"),
        ((None, 3), "float32"),
    ]


def test_nodes_hold_the_models_own_layers():
    model = small_functional()
    assert [node.operation for node in read_graph(model).nodes] == model.layers[1:]


def test_a_sequential_model_is_read_as_a_chain():
    assert list(wiring(small_sequential())) == ["first", "second"]


def test_a_sequential_model_computes_the_same_when_read():
    assert_reads_faithfully(small_sequential(), example(2, 4))


def test_a_sequential_model_has_one_input_and_no_list_of_them():
    assert read_graph(small_sequential()).inputs == Ref(0)


def test_a_sequential_model_built_by_a_shape_is_read():
    model = keras.Sequential([layers.Dense(3, name="first"), layers.ReLU(name="relu")])
    model.build((None, 4))
    assert names(model) == ["first", "relu"]


def test_a_sequential_model_built_by_a_call_is_read():
    model = keras.Sequential([layers.Dense(3, name="first")])
    model(example(2, 4))
    assert names(model) == ["first"]


def test_a_model_whose_output_is_its_input_too_keeps_that_output():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, [inputs, layers.Dense(2)(inputs)])
    assert_reads_faithfully(model, example(2, 4))


# ---- layers and models used twice ------------------------------------------------------------


def test_a_layer_used_twice_is_one_layer_in_two_nodes():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)))
    assert [node.operation for node in read_graph(model).nodes] == [shared, shared]


def test_a_layer_used_twice_computes_the_same_when_read():
    inputs = keras.Input((4,))
    shared = layers.Dense(4)
    outputs = layers.Subtract()([shared(shared(inputs)), shared(inputs)])
    assert_reads_faithfully(keras.Model(inputs, outputs), example(2, 4))


def test_calls_of_a_layer_outside_the_model_are_not_read():
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    shared(shared(inputs))
    model = keras.Model(inputs, shared(inputs))
    assert_reads_faithfully(model, example(2, 4))


def test_a_node_that_reads_a_tensor_twice_is_its_reader_twice():
    inputs = keras.Input((4,))
    graph = read_graph(keras.Model(inputs, layers.Add(name="add")([inputs, inputs])))
    assert [node.name for node in graph.readers()[graph.input_indices[0]]] == ["add", "add"]


# ---- nested models ---------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [small_functional, small_sequential])
def test_a_nested_model_computes_the_same_when_read(inner):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(inner()(inputs)))
    assert_reads_faithfully(model, example(2, 4))


def test_layers_of_a_nested_model_are_named_outer_dot_inner():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="top")(small_functional("base")(inputs)))
    assert names(model) == ["base.hidden", "base.relu", "top"]


def test_names_grow_with_every_level_of_nesting():
    middle_in = keras.Input((4,))
    middle = keras.Model(middle_in, small_functional("inner")(middle_in), name="middle")
    inputs = keras.Input((4,))
    assert names(keras.Model(inputs, middle(inputs))) == [
        "middle.inner.hidden",
        "middle.inner.relu",
    ]


def test_a_functional_inside_a_sequential_is_flattened():
    model = keras.Sequential(
        [keras.Input((4,)), small_functional("base"), layers.Dense(2, name="top")]
    )
    assert names(model) == ["base.hidden", "base.relu", "top"]


def test_a_functional_inside_a_sequential_computes_the_same_when_read():
    model = keras.Sequential([keras.Input((4,)), small_functional("base"), layers.Dense(2)])
    assert_reads_faithfully(model, example(2, 4))


@pytest.mark.parametrize("inner", [small_functional, small_sequential])
def test_a_nested_model_used_twice_computes_the_same_when_read(inner):
    base = inner()
    left, right = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([left, right], layers.Subtract()([base(left), base(right)]))
    assert_reads_faithfully(model, [example(2, 4), example(2, 4)])


def test_a_nested_model_used_twice_gives_its_layers_twice():
    base = small_functional("base")
    left, right = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([left, right], layers.Add(name="add")([base(left), base(right)]))
    assert names(model) == ["base.hidden", "base.relu", "base.hidden", "base.relu", "add"]


def test_a_nested_model_as_the_output_computes_the_same_when_read():
    base = small_functional("base", units=4)
    inputs = keras.Input((4,))
    assert_reads_faithfully(keras.Model(inputs, [base(inputs), base(base(inputs))]), example(2, 4))


def test_a_nested_model_with_several_inputs_and_outputs_computes_the_same_when_read():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    difference, total = layers.Subtract()([left, right]), layers.Add()([left, right])
    inner = keras.Model({"left": left, "right": right}, {"d": difference, "t": total}, name="inner")
    inputs = keras.Input((4,))
    made = inner({"left": layers.Dense(4)(inputs), "right": inputs})
    assert_reads_faithfully(keras.Model(inputs, [made["t"], made["d"]]), example(2, 4))


@pytest.mark.parametrize("sequential", [True, False])
def test_training_false_given_to_a_nested_model_goes_on_to_its_layers(sequential):
    inner = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5), layers.ReLU()], name="base")
    if not sequential:
        inner = keras.Model(inner.inputs, inner.outputs, name="base")
    inputs = keras.Input((4,))
    graph = read_graph(keras.Model(inputs, inner(inputs, training=False)))
    assert [node.kwargs for node in graph.nodes] == [{"training": False}, {}]


def nested_dropout(training):
    inner_in = keras.Input((4,))
    return keras.Model(inner_in, layers.Dropout(0.5)(inner_in, training=training))


def test_a_nested_model_called_without_training_says_nothing_to_its_layers():
    inputs = keras.Input((4,))
    (node,) = read_graph(keras.Model(inputs, nested_dropout(None)(inputs))).nodes
    assert node.kwargs.get("training") is None


def test_training_given_at_a_layer_of_a_nested_model_is_kept():
    inputs = keras.Input((4,))
    (node,) = read_graph(keras.Model(inputs, nested_dropout(True)(inputs, training=False))).nodes
    assert node.kwargs == {"training": True}


def test_training_given_at_the_layer_is_kept():
    inputs = keras.Input((4,))
    graph = read_graph(keras.Model(inputs, layers.Dropout(0.5)(inputs, training=True)))
    assert graph.nodes[0].kwargs == {"training": True}


# ---- plain operations ------------------------------------------------------------------------

OPERATIONS = {
    "slices": lambda x: x[:, 1:3, ::2],
    "a negative index": lambda x: x[:, -1],
    "an ellipsis": lambda x: x[..., :2],
    "a new axis": lambda x: x[:, None],
    "pads": lambda x: ops.pad(x, [[0, 0], [1, 2], [0, 0]]),
    "x + y": lambda x: x + ops.relu(x),
    "x * 2.0": lambda x: x * 2.0,
    "1 - x": lambda x: 1 - x,
    "-x": lambda x: -x,
    "a constant array": lambda x: ops.add(x, np.arange(4, dtype="float32")),
    "a constant tensor": lambda x: ops.multiply(x, ops.ones((4,))),
    "a tuple of tensors": lambda x: ops.concatenate((x, x[:, :1]), axis=1),
    "several outputs": lambda x: ops.split(x, 2, axis=-1)[1],
    "a mean": lambda x: ops.mean(x, axis=(1, 2)),
    "an einsum": lambda x: ops.einsum("bij,bkj->bik", x, x),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_plain_operations_compute_the_same_when_read(operation):
    inputs = keras.Input((5, 4))
    assert_reads_faithfully(keras.Model(inputs, operation(inputs)), example(2, 5, 4))


def test_a_number_in_an_operation_stays_where_it_stood():
    inputs = keras.Input((4,))
    (node,) = read_graph(keras.Model(inputs, inputs * 2.0)).nodes
    assert node.args == [Ref(0), 2.0]


# ---- structures ------------------------------------------------------------------------------

STRUCTURES = {
    "dict": lambda a, b: ({"b": b, "a": a}, {"sum": a + b, "difference": a - b}),
    "list": lambda a, b: ([a, b], [a + b, a - b]),
    "one input, dict of outputs": lambda a, b: (a, {"x": a * 2.0, "y": a * 3.0}),
    "nested": lambda a, b: ({"pair": [a, b]}, {"out": [a - b, {"deep": a + b}]}),
}


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
def test_structures_of_inputs_and_outputs_are_kept(structure):
    model = keras.Model(*structure(keras.Input((4,), name="a"), keras.Input((4,), name="b")))
    values = iter([example(2, 4), example(2, 4)])
    assert_reads_faithfully(model, tree.map_structure(lambda _: next(values), model.input))


def test_an_integer_input_keeps_its_dtype():
    inputs = keras.Input((4,), dtype="int32")
    graph = read_graph(keras.Model(inputs, layers.Embedding(5, 2)(inputs)))
    assert [tensor.dtype for tensor in graph.tensors] == ["int32", "float32"]


def test_a_fixed_batch_size_is_kept():
    inputs = keras.Input(batch_shape=(8, 4))
    graph = read_graph(keras.Model(inputs, layers.Dense(2)(inputs)))
    assert [tensor.shape for tensor in graph.tensors] == [(8, 4), (8, 2)]


# ---- subclasses of Functional ----------------------------------------------------------------


class Backbone(keras.Model):
    """Made like the models of KerasHub: a constructor with arguments that builds the graph."""

    def __init__(self, units, depth, **kwargs):
        inputs = keras.Input((4,), name="features")
        x = inputs
        for number in range(depth):
            x = layers.Dense(units, activation="relu", name=f"block_{number}")(x)
        super().__init__(inputs=inputs, outputs=x, **kwargs)
        self.units, self.depth = units, depth

    def get_config(self):
        return {"units": self.units, "depth": self.depth, "name": self.name}


class Classifier(keras.Model):
    """Holds a backbone as an attribute and as a nested model of its graph."""

    def __init__(self, backbone, **kwargs):
        self.backbone = backbone
        x = backbone(backbone.input)
        super().__init__(inputs=backbone.input, outputs=layers.Dense(2, name="top")(x), **kwargs)


def test_a_functional_subclass_with_its_own_constructor_is_read():
    assert names(Backbone(3, 2)) == ["block_0", "block_1"]


def test_a_functional_subclass_with_its_own_constructor_computes_the_same_when_read():
    assert_reads_faithfully(Backbone(3, 2), example(2, 4))


def test_a_functional_subclass_inside_another_is_flattened():
    assert names(Classifier(Backbone(3, 1, name="base"))) == ["base.block_0", "top"]


def test_a_functional_subclass_inside_another_computes_the_same_when_read():
    assert_reads_faithfully(Classifier(Backbone(3, 2)), example(2, 4))


# ---- the model is left alone -----------------------------------------------------------------


def description_of(model):
    return json.dumps(model.get_config(), sort_keys=True, default=str)


@pytest.mark.parametrize(
    "make", [small_functional, small_sequential, lambda: Classifier(Backbone(3, 2))]
)
def test_reading_does_not_change_the_model(make):
    model = make()
    before = {layer.name: len(layer._inbound_nodes) for layer in model._flatten_layers()}
    read_graph(model)
    assert {layer.name: len(layer._inbound_nodes) for layer in model._flatten_layers()} == before


def test_reading_does_not_change_the_models_config():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2)(small_functional()(inputs)))
    before = description_of(model)
    read_graph(model)
    assert description_of(model) == before


def test_a_model_is_read_twice_alike():
    model = Classifier(Backbone(3, 2))
    assert wiring(model) == wiring(model)


# ---- which models have a graph ---------------------------------------------------------------


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def called(model):
    model(example(2, 4))
    return model


WITHOUT_GRAPH = {
    "subclassed": Subclassed,
    "subclassed and called": lambda: called(Subclassed()),
    "unbuilt Sequential": lambda: keras.Sequential([layers.Dense(2)]),
    "a layer": lambda: layers.Dense(2),
}


@pytest.mark.parametrize("make", WITHOUT_GRAPH.values(), ids=WITHOUT_GRAPH)
def test_these_have_no_graph_to_read(make):
    assert not is_functional(make())


def test_a_subclassed_model_inside_a_functional_is_one_node():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Subclassed()(inputs))
    assert len(read_graph(model).nodes) == 1


# ---- copies ----------------------------------------------------------------------------------


def test_a_copy_has_the_config_of_the_original():
    layer = layers.Conv2D(4, 3, strides=2, kernel_regularizer="l2", trainable=False)
    assert copy_operation(layer).get_config() == layer.get_config()


def test_a_copy_takes_changes():
    assert (
        copy_operation(layers.Dense(4, activation="relu"), activation="linear").activation.__name__
        == "linear"
    )


def test_a_copy_of_a_plain_operation_is_another_object():
    inputs = keras.Input((4,))
    operation = read_graph(keras.Model(inputs, inputs * 2.0)).nodes[0].operation
    assert copy_operation(operation) is not operation


# ---- in training or not ----------------------------------------------------------------------


class Plain(layers.Wrapper):
    def call(self, inputs):
        return self.layer(inputs)


ASKS = {
    "a layer that asks": (lambda: layers.Dropout(0.5), True),
    "a layer that does not": (lambda: layers.Conv1D(4, 1), False),
    "a wrapper that asks": (lambda: layers.SpectralNormalization(layers.Dense(4)), True),
    "a wrapper that does not": (lambda: Plain(layers.Dropout(0.5)), False),
    "a quantized layer that asks": (lambda: QuantizedLayer(layers.LSTM(4), {}), True),
    "a quantized layer that does not": (lambda: QuantizedLayer(layers.Conv1D(4, 1), {}), False),
    "an operation": (lambda: make_operation("Relu"), False),
}


@pytest.mark.parametrize("case", ASKS)
def test_whether_an_operation_is_told_that_it_computes_as_in_training(case):
    make, asks = ASKS[case]
    assert takes_training(make()) == asks


def test_training_of_a_nested_model_goes_on_to_its_quantized_layers():
    inner = keras.Sequential(
        [keras.Input((3, 4)), QuantizedLayer(layers.LSTM(4, dropout=0.5), {}, name="lstm")]
    )
    inputs = keras.Input((3, 4))
    graph = read_graph(keras.Model(inputs, inner(inputs, training=False)))
    (node,) = [node for node in graph.nodes if node.name.endswith("lstm")]
    assert node.kwargs == {"training": False}
