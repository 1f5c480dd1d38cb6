"""Networks for the tests of `wrap`, and what stands in them."""

import functools

import keras
import numpy as np
from keras import layers, ops

import speq_keras
from speq_keras import QuantizedLayer
from speq_keras.graph import read_graph
from speq_keras.quantizers import ActivationQuantizer

RNG = np.random.default_rng(0)


def conv(x, name, filters=4, **arguments):
    return layers.Conv2D(filters, 3, padding="same", name=name, **arguments)(x)


def network(body, shape=(8, 8, 3), dtype="float32"):
    inputs = keras.Input(shape, name="image", dtype=dtype)
    return keras.Model(inputs, body(inputs), name="network")


def wrapped(body, shape=(8, 8, 3), dtype="float32", w_bits=2, a_bits=2, **arguments):
    return speq_keras.wrap(network(body, shape, dtype), w_bits, a_bits, **arguments)


@functools.cache
def standard(body, **arguments):
    """One wrapped network for all tests that only look at it."""
    return wrapped(body, **arguments)


def nodes_of(model):
    """[(operation, name, what it reads)] of a model, in order."""
    graph = read_graph(model)

    def name_of(index):
        tensor = graph.tensors[index]
        return tensor.name if tensor.producer is None else tensor.producer.name

    return [
        (node.operation, node.name, [name_of(index) for index in node.inputs])
        for node in graph.nodes
    ]


def describe(quantizer):
    """For example "PACT u2*": unsigned, 2 bits, and they are the target width."""
    sign = ""
    if isinstance(quantizer, ActivationQuantizer):
        sign = "s" if quantizer.signed else "u"
    target = "*" if quantizer.has_target_width else ""
    return f"{type(quantizer).__name__} {sign}{quantizer.bits}{target}"


def quantizers_in(model):
    """{quantizer: "what it reads: what it is"} of all activation quantizers."""
    read = {}
    for operation, name, inputs in nodes_of(model):
        if isinstance(operation, ActivationQuantizer):
            read.setdefault(name, []).extend(inputs)
    return {
        layer.name: f"{', '.join(read[layer.name])}: {describe(layer)}"
        for layer in model.activation_quantizers
    }


def weights_in(model):
    """{"layer.attribute": quantizer} of all weight quantizers."""
    return {
        f"{layer.name}.{attribute}": describe(quantizer)
        + (" per channel" if quantizer.per_channel else "")
        for layer in model.layers
        if isinstance(layer, QuantizedLayer)
        for attribute, quantizer in layer.quantizers.items()
    }


def reads(model, name):
    """What a layer reads; of several calls the last one."""
    return {node: inputs for _, node, inputs in nodes_of(model)}[name]


def chain(x):
    x = conv(x, "first", use_bias=False)
    x = layers.ReLU(name="first_relu")(layers.BatchNormalization(name="norm")(x))
    x = conv(x, "second", activation="relu")
    x = conv(x, "third", activation="relu")
    return layers.Dense(3, activation="softmax", name="last")(layers.Flatten(name="flat")(x))


def residual(x):
    x = conv(x, "first", activation="relu")
    y = conv(conv(x, "second", activation="relu"), "third")
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, y]))
    return conv(conv(x, "fourth", activation="relu"), "last")


def squeeze_excite(x):
    x = conv(x, "first", activation="relu")
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(2, 1, activation="relu", name="reduce")(gate)
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="expand")(gate)
    return conv(layers.Multiply(name="excite")([x, gate]), "last")


def average_pooling(x):
    x = layers.AveragePooling2D(2, name="average")(conv(x, "first", activation="relu"))
    return conv(conv(x, "second"), "last")


def concatenations(x):
    x = conv(x, "first", activation="relu")
    x = layers.Concatenate(name="join_1")([x, conv(x, "second", activation="relu")])
    x = layers.Concatenate(name="join_2")([x, conv(x, "third", activation="relu")])
    return conv(conv(x, "fourth", activation="relu"), "last")


def two_ends():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    x = layers.Concatenate(name="join")(
        [
            layers.Dense(4, activation="relu", name="left_dense")(left),
            layers.Dense(4, activation="relu", name="right_dense")(right),
        ]
    )
    x = layers.Dense(4, activation="relu", name="middle")(x)
    outputs = {
        "classes": layers.Dense(3, activation="softmax", name="classes")(x),
        "score": layers.Dense(1, name="score")(x),
    }
    return keras.Model({"left": left, "right": right}, outputs)


def separable(x):
    x = layers.SeparableConv2D(4, 3, activation="relu", name="first")(x)
    x = layers.SeparableConv2D(4, 3, activation="relu", name="second")(x)
    return conv(x, "last")


def at_float(model):
    """The same model with its quantizers passed through."""
    model.set_bits(weights=None)
    for quantizer in model.activation_quantizers:
        quantizer.observer = lambda quantizer, x: None
    return model


def assert_computes_like(float_model, **arguments):
    """Without rounding, the wrapped model computes the float model."""
    arguments = {"boundary_bits": None, "distillation": None, **arguments}
    model = at_float(speq_keras.wrap(float_model, 2, 2, **arguments))
    inputs = example_for(float_model)
    for mine, theirs in zip(
        keras.tree.flatten(model(inputs)), keras.tree.flatten(float_model(inputs)), strict=True
    ):
        # Swish and separable convolutions are computed in two steps.
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def values_of(variables):
    # Copies: NumPy would share the memory that the next assignment overwrites.
    return [np.array(ops.convert_to_numpy(variable.value)) for variable in variables]


def example_for(model, count=3):
    def values(x):
        shape = (count, *x.shape[1:])
        return RNG.integers(0, 9, shape) if "int" in x.dtype else RNG.normal(size=shape)

    return keras.tree.map_structure(lambda x: values(x).astype(x.dtype), model.input)


def with_random_statistics(model):
    """BatchNormalization that does something."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([RNG.uniform(0.5, 2.0, w.shape) for w in layer.weights])
    return model


def nested():
    inner = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4, activation="relu", name="dense"),
            layers.BatchNormalization(name="norm"),
        ],
        name="inner",
    )
    outer_in = keras.Input((4,))
    outer = keras.Model(outer_in, layers.Dense(4, name="dense")(inner(outer_in)), name="outer")
    inputs = keras.Input((4,), name="x")
    x = layers.Dense(4, activation="relu", name="first")(inputs)
    x = layers.Add(name="sum")([outer(x), outer(layers.ReLU(name="relu")(x))])
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="last")(x))
