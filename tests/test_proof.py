"""The proof of the proof: breakages in folding, lowering and writing, and what catches them.

Each one is put in at the first, the middle and the last step that it fits, for one channel and for
all. Only the comparison with the trained graph counts here: a broken network and the file that is
written of it agree with each other, so the comparison with the simulation sees nothing.

What changes nothing cannot be caught, and is not put in: a ReLU lost before an 8-bit grid that
begins at 0, where saturation does the same; a hundredth of a scale on a tensor that uses few codes.
"""

import copy
import dataclasses
import functools

import keras
import numpy as np
import pytest
from keras import layers

import speq_keras
from speq_keras.export import session
from speq_keras.export.fold import FoldedModel
from speq_keras.export.lowering import lower
from speq_keras.export.session import prove
from speq_keras.export.tflite.simulate import simulate
from speq_keras.export.tflite.write import write

IMAGE = (13, 13, 3)
EXAMPLES = 12
# First, middle, last.
PLACES = [0, 1, 2]


def convolutional():
    """Convolutions of all kinds, sums, products, poolings, slices: what classifiers are made of."""
    x = inputs = keras.Input(IMAGE)
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Conv2D(6, (3, 2), strides=(1, 2), name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(6, 3, padding="same", dilation_rate=2, name="dilated")(x)
    x = layers.ReLU()(layers.Add()([layers.BatchNormalization()(y), x]))
    x = layers.MaxPooling2D((2, 1))(x)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    a = layers.Conv2D(6, 1)(x)
    b = layers.AveragePooling2D(2, strides=1)(
        layers.Conv2D(5, (2, 3))(layers.Cropping2D(((1, 0), (0, 1)))(x))
    )
    gate = layers.Conv2D(6, 1, activation="sigmoid")(
        layers.GlobalAveragePooling2D(keepdims=True)(a)
    )
    a = layers.Multiply()([a, gate])
    b = layers.Permute((2, 1, 3))(layers.UpSampling2D(2)(b))
    b = layers.Conv2D(4, 1, activation="swish")(b)
    a = layers.Subtract()([layers.Conv2D(4, 1)(a), layers.Conv2D(4, 1, activation="relu")(a)])
    parts = [layers.GlobalAveragePooling2D()(a), layers.GlobalAveragePooling2D()(b)]
    x = layers.Dense(8, activation="relu")(layers.Concatenate()(parts))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x))


def transformer():
    """Attention, embeddings, a float island, one-dimensional convolutions."""
    words = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8)(words)
    x = layers.LayerNormalization()(layers.Conv1D(8, 3, padding="causal")(x))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    x = layers.LayerNormalization()(x)
    y = layers.Dense(8)(layers.Dense(16, activation="gelu")(x))
    x = layers.Rescaling(0.7, offset=0.1)(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling1D()(layers.Reshape((6, 8))(x))
    return keras.Model(words, layers.Dense(4)(x))


NETWORKS = {"convolutional": convolutional, "transformer": transformer}


def trained(name, bits=8):
    """Returns a settled model and inputs, made once for each width."""
    return made_once(name, bits)


@functools.cache
def made_once(name, bits):
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(4)
    model = speq_keras.wrap(NETWORKS[name](), bits, bits, distillation=None, seed=0)
    for variable in model.weights:
        if variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.3, 1.5, variable.shape))
    if model.inputs[0].dtype == "int32":
        x = rng.integers(0, 20, (EXAMPLES, 6)).astype("int32")
    else:
        x = rng.uniform(-1, 2, (EXAMPLES, *IMAGE)).astype("float32")
    model.calibrate(x, verbose=0)
    model.settle()
    return model, x


def lowered(steps):
    network, problems = lower(steps)
    assert problems == []
    return network


def proof_of(name, *, folding=None, lowering=None, writing=None, monkeypatch=None, bits=8):
    """Returns the proof of a network broken in these places."""
    model, x = trained(name, bits)
    folded = speq_keras.fold(model)
    steps = folded.folded
    if folding is not None:
        folding(steps)
    network = lowered(steps)
    if lowering is not None:
        lowering(network)
    written = write
    if writing is not None:
        written = functools.partial(write_broken, writing)
        monkeypatch.setattr(session, "write", written)
    broken = FoldedModel(steps, network, "int8")
    content = written(network, batch_size=EXAMPLES)
    proof, *_ = prove(model, broken, content, [x], batch_size=EXAMPLES)
    return proof


def write_broken(writing, network, **kwargs):
    """Writes a network, and lets `writing` change the file's `ModelT`."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(write(network, **kwargs))
    writing(model, schema)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def is_caught(proof):
    """Whether the comparison with the trained graph alone finds something."""
    codes = any(row.outside or row.problem for row in proof.tensors)
    return codes or any(not row.deviation <= row.allowed for row in proof.outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_unbroken_networks_are_proven(name):
    proof = proof_of(name)
    assert proof.holds, proof.first_failure()
    assert not is_caught(proof)


# ---- where a breakage goes ---------------------------------------------------------------------


def places(found):
    """Returns the first, the middle and the last of a list, each once."""
    return [found[i] for i in sorted({0, len(found) // 2, len(found) - 1})] if found else []


@functools.cache
def liveliest_channels(name):
    """Returns {step: the channel whose codes differ most}: in a dead one no breakage can show."""
    model, x = trained(name)
    folded = speq_keras.fold(model)
    names = [step.name for step in with_weights(folded.folded)]
    _, codes = simulate(folded.network, [x], keep=names)
    found = {}
    for step in names:
        rows = codes[step].reshape(EXAMPLES, -1, codes[step].shape[-1]).astype("int32")
        spread = np.ptp(rows, axis=(0, 1))
        if np.max(spread) > 60:  # a hundredth of it is most of a code
            found[step] = int(np.argmax(spread))
    return found


def chosen(weights, which):
    """Returns the output channels that a breakage changes: one of them, or all."""
    return np.arange(len(weights.scale)) if which == "all" else np.array([which])


def on_channels(codes, weights, which, change):
    """Returns codes with `change` done to those of some output channels."""
    mask = np.zeros(len(weights.scale), bool)
    mask[chosen(weights, which)] = True
    return np.where(weights.per_channel(mask), change(codes), codes)


# Each takes weights, and the number of a channel or "all".


def swapped_channels(weights, which):
    axis = weights.channel_axes[-1] % weights.codes.ndim
    order = np.roll(np.arange(weights.codes.shape[axis]), 1)
    if which != "all":
        other = (which + 1) % len(order)
        order = np.arange(len(order))
        order[[which % len(order), other]] = order[[other, which % len(order)]]
    weights.codes = np.take(weights.codes, order, axis=axis)


def turned_signs(weights, which):
    weights.codes = on_channels(weights.codes, weights, which, np.negative)


def lost_bias(weights, which):
    weights.bias_codes = weights.bias_codes.copy()
    weights.bias_codes[chosen(weights, which)] = 0


def turned_bias(weights, which):
    weights.bias_codes = weights.bias_codes.copy()
    weights.bias_codes[chosen(weights, which)] *= -1


def bias_one_unit_of_the_multiplier_off(weights, which):
    weights.bias_codes = weights.bias_codes.copy()
    step = np.maximum(np.abs(weights.bias_codes) // 20, 8)
    weights.bias_codes[chosen(weights, which)] += step[chosen(weights, which)]


def scale_off_by_a_hundredth(weights, which):
    weights.scale = weights.scale.copy()
    weights.scale[chosen(weights, which)] *= 1.01


def one_code_off(weights, which):
    weights.codes = on_channels(
        weights.codes, weights, which, lambda c: np.where(c < 100, c + 3, c - 3)
    )


def flipped_kernel(weights, which):
    axes = tuple(range(min(2, weights.codes.ndim)))
    weights.codes = np.flip(weights.codes, axes)


WEIGHTS = [
    swapped_channels,
    turned_signs,
    lost_bias,
    turned_bias,
    bias_one_unit_of_the_multiplier_off,
    scale_off_by_a_hundredth,
    one_code_off,
    flipped_kernel,
]


def with_weights(steps, kinds=("linear", "affine")):
    return [s for s in steps.steps if s.weights is not None and s.kind in kinds]


@pytest.mark.parametrize("which", ["one", "all"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("breakage", WEIGHTS, ids=lambda f: f.__name__)
def test_wrong_weights_are_caught(breakage, name, place, which):
    def folding(steps):
        live = liveliest_channels(name)
        found = [s for s in with_weights(steps, ("linear",)) if s.name in live]
        if breakage is flipped_kernel:
            found = [s for s in found if min(s.weights.codes.shape[:2]) > 1]
        if "bias" in breakage.__name__:
            found = [s for s in found if abs(s.weights.bias_codes[live[s.name]]) > 40]
        step = places(found)[min(place, len(places(found)) - 1)]
        channels = "all" if which == "all" else live[step.name] % len(step.weights.scale)
        step.weights = copy.copy(step.weights)
        before = (step.weights.codes, step.weights.bias_codes, step.weights.scale)
        breakage(step.weights, channels)
        after = (step.weights.codes, step.weights.bias_codes, step.weights.scale)
        assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))

    assert is_caught(proof_of(name, folding=folding))


# ---- steps -------------------------------------------------------------------------------------


def replaced(steps, kinds, place, change):
    """Changes one of the steps of some kinds in place."""
    found = [s for s in steps.steps if s.kind in kinds]
    if change is one_more_relu:  # which does nothing where a grid begins at 0
        found = [s for s in found if s.output.grid.low < 0 and s.activation == "none"]
    change(places(found)[min(place, len(places(found)) - 1)])


def one_more_relu(step):
    assert step.activation == "none"
    step.activation = "relu"


def set_option(**changes):
    def change(step):
        assert any(step.options.get(key) != value for key, value in changes.items())
        step.options = {**step.options, **changes}

    return change


def swapped_inputs(step):
    step.inputs = step.inputs[::-1]


def moved_slice(step):
    begin, end = list(step.options["begin"]), list(step.options["end"])
    begin[1], end[1] = begin[1] - 1, end[1] - 1
    step.options = {**step.options, "begin": tuple(begin), "end": tuple(end)}


def kind(name):
    def change(step):
        step.kind = name

    return change


def another_function(step):
    node = copy.copy(step.nodes[0])
    node.operation = layers.Activation("hard_sigmoid" if "sigmoid" in node.name else "softplus")
    node.args, node.kwargs = node.args[:1], {}
    step.nodes = [node]


def rolled_table(step):
    step.codes = np.roll(step.codes, 1, axis=0)


STEPS = {
    "an activation too many": (("linear",), one_more_relu),
    "an activation too many after a difference": (("subtract",), one_more_relu),
    "operands of a difference swapped": (("subtract",), swapped_inputs),
    "a sum for a difference": (("subtract",), kind("add")),
    "a difference for a sum": (("add",), kind("subtract")),
    "a sum for a product": (("multiply",), kind("add")),
    "parts in another order": (("concatenate",), swapped_inputs),
    "a slice off by one": (("strided_slice",), moved_slice),
    "max pooling for an average": (("average_pool_2d",), kind("max_pool_2d")),
    "an average for max pooling": (("max_pool_2d",), kind("average_pool_2d")),
    "another function": (("table",), another_function),
    "rows of a table off by one": (("embedding",), rolled_table),
    "a transposition forgotten": (("transpose",), set_option(permutation=(0, 1, 2, 3))),
    "a mean over one axis less": (("mean",), None),
    "padding on the other side": (("pad",), set_option(paddings=((0, 0), (1, 0), (1, 0), (0, 0)))),
}


def network_with(kinds):
    """Returns the names of the networks that have a step of these kinds."""
    names = []
    for name in NETWORKS:
        if any(step.kind in kinds for step in speq_keras.fold(trained(name)[0]).folded.steps):
            names.append(name)
    return names


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("breakage", [k for k, (_, change) in STEPS.items() if change])
def test_wrong_steps_are_caught(breakage, place):
    kinds, change = STEPS[breakage]
    names = network_with(kinds)
    assert names
    if "transposition" in breakage:  # in attention the shapes would no longer fit
        names = ["convolutional"]
    for name in names:
        proof = proof_of(name, folding=lambda steps: replaced(steps, kinds, place, change))
        assert is_caught(proof), name


# ---- lowering ----------------------------------------------------------------------------------


def nodes_of(network, *kinds):
    return [node for node in network.nodes if node.kind in kinds]


def scale_off(network, place):
    made = nodes_of(network, "conv_2d", "depthwise_conv_2d", "fully_connected")
    node = places(made)[place]
    weights = network.tensors[node.inputs[1]]
    weights.scale = weights.scale * np.float32(1.01)


def lost_bias_tensor(network, place):
    node = places(nodes_of(network, "conv_2d", "depthwise_conv_2d"))[place]
    bias = network.tensors[node.inputs[2]]
    assert bias.data.any()
    bias.data = np.zeros_like(bias.data)


def other_strides(network, place):
    node = places(nodes_of(network, "conv_2d", "depthwise_conv_2d"))[place]
    weights = network.tensors[node.inputs[1]]
    weights.data = np.flip(weights.data, axis=0 if node.kind == "conv_2d" else 3)


def dropped_activation(network, place):
    # A product with 1 that only rounds again reads nothing negative.
    sums = nodes_of(network, "conv_2d", "depthwise_conv_2d", "fully_connected")
    made = [(node, network.tensors[node.output]) for node in sums]
    narrow = [node for node, tensor in made if tensor.high - tensor.low < 255]
    found = places([node for node in narrow if node.activation == "relu"])
    node = found[min(place, len(found) - 1)]
    node.activation = "none"


def one_more_activation(network, place):
    found = [n for n in nodes_of(network, "conv_2d", "fully_connected") if n.activation == "none"]
    places(found)[place].activation = "relu"


def wrong_dilation(network, place):
    node = next(n for n in network.nodes if n.options.get("dilations", (1, 1)) != (1, 1))
    node.options = {**node.options, "dilations": (1, 1)}


def operands_of_wrong_node(network, place):
    node = places(nodes_of(network, "add", "sub", "mul"))[place]
    node.inputs = [node.inputs[0], node.inputs[0]]


LOWERINGS = [
    scale_off,
    lost_bias_tensor,
    other_strides,
    dropped_activation,
    one_more_activation,
    wrong_dilation,
    operands_of_wrong_node,
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("breakage", LOWERINGS, ids=lambda f: f.__name__)
def test_wrong_operations_are_caught(breakage, place):
    bits = 3 if breakage is dropped_activation else 8  # 8-bit codes saturate at 0 all the same
    proof = proof_of("convolutional", bits=bits, lowering=lambda net: breakage(net, place))
    assert is_caught(proof)


ISLANDS = {
    "add": "sub",
    "sub": "add",
    "mul": "add",
    "mean": None,
    "squared_difference": "mul",
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("before", [kind for kind, after in ISLANDS.items() if after])
def test_a_wrong_operation_in_a_float_island_is_caught(before, place):
    def lowering(network):
        found = [
            n for n in nodes_of(network, before) if network.tensors[n.output].dtype == "float32"
        ]
        # A small ε is added to a variance: nothing that could be seen.
        found = [n for n in found if all(network.tensors[x].shape != (1,) for x in n.inputs)]
        places(found)[min(place, len(places(found)) - 1)].kind = ISLANDS[before]

    assert is_caught(proof_of("transformer", lowering=lowering))


@pytest.mark.parametrize("place", PLACES)
def test_a_float_constant_off_by_a_hundredth_is_caught(place):
    def lowering(network):
        found = [
            t
            for t in network.tensors.values()
            if t.dtype == "float32" and t.data is not None and t.data.size > 1
        ]
        tensor = places(found)[min(place, len(places(found)) - 1)]
        tensor.data = np.where(tensor.data == 0, 0.01, tensor.data * 1.05).astype("float32")

    assert is_caught(proof_of("transformer", lowering=lowering))


# ---- writing -----------------------------------------------------------------------------------


def operations_of(model, schema, *names):
    """Returns the file's operations of some kinds, in order."""
    kinds = {getattr(schema.BuiltinOperator, name) for name in names}
    codes = [code.builtinCode for code in model.operatorCodes]
    return [op for op in model.subgraphs[0].operators if codes[op.opcodeIndex] in kinds]


def operands_of(model, schema, number):
    """Returns the weights (1) or biases (2) of all convolutions and dense layers."""
    found = operations_of(model, schema, "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return [model.subgraphs[0].tensors[op.inputs[number]] for op in found]


def reversed_weights(model, schema, place):
    buffer = model.buffers[places(operands_of(model, schema, 1))[place].buffer]
    buffer.data = np.asarray(buffer.data)[::-1].copy()


def bytes_of_biases_turned(model, schema, place):
    buffer = model.buffers[places(operands_of(model, schema, 2))[place].buffer]
    buffer.data = np.asarray(buffer.data).view("<i4").byteswap().view("uint8").copy()


def one_scale_for_all(model, schema, place):
    found = [t for t in operands_of(model, schema, 1) if np.ptp(t.quantization.scale)]
    tensor = places(found)[place]
    scale = np.array(tensor.quantization.scale)
    tensor.quantization.scale = np.full_like(scale, scale.mean())


def made_by_sums(model, schema):
    """Returns the tensors that convolutions, dense layers, sums and products make."""
    found = operations_of(model, schema, "CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL")
    made = [op.outputs[0] for op in found]
    # Copies and pools demand the scale of what they read; the first sums are read by sums.
    pools = operations_of(model, schema, "MAX_POOL_2D", "AVERAGE_POOL_2D")
    read = {index for op in pools for index in op.inputs}
    return [model.subgraphs[0].tensors[index] for index in made[:5] if index not in read]


def scale_of_a_tensor_off(model, schema, place):
    tensor = places(made_by_sums(model, schema))[place]
    tensor.quantization.scale = np.array(tensor.quantization.scale) * np.float32(1.02)


def zero_point_off(model, schema, place):
    tensor = places(made_by_sums(model, schema))[place]
    tensor.quantization.zeroPoint = np.array(tensor.quantization.zeroPoint) + 1


WRITINGS = [
    reversed_weights,
    bytes_of_biases_turned,
    one_scale_for_all,
    scale_of_a_tensor_off,
    zero_point_off,
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("breakage", WRITINGS, ids=lambda f: f.__name__)
def test_wrong_files_are_caught(breakage, place, monkeypatch):
    proof = proof_of(
        "convolutional",
        writing=lambda model, schema: breakage(model, schema, place),
        monkeypatch=monkeypatch,
    )
    assert is_caught(proof)


# ---- what is compared --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantizer_without_a_tensor_is_a_failure(name):
    def folding(steps):
        found = sorted(steps.places.tensors)
        del steps.places.tensors[found[len(found) // 2]]

    proof = proof_of(name, folding=folding)
    assert "no tensor of the file holds the codes of quantizer" in proof.first_failure()


def test_a_scale_further_off_than_the_nudge_is_a_failure():
    def folding(steps):
        model, _ = trained("convolutional")
        quantizer = model.activation_quantizers[3]
        steps.places.scales[quantizer.name] = np.float32(quantizer.grid()[0] * 1.001)

    proof = proof_of("convolutional", folding=folding)
    assert "its scale is" in proof.first_failure()


def test_the_failure_names_the_layers():
    def folding(steps):
        step = next(s for s in steps.steps if s.nodes and s.nodes[0].name == "dilated")
        step.weights = dataclasses.replace(step.weights, codes=-step.weights.codes)

    assert (
        "after dilated, batch_normalization"
        in proof_of("convolutional", folding=folding).first_failure()
    )


def test_padding_in_float_between_two_widths_is_no_failure(tmp_path):
    """Its own 8-bit quantizer stands between the zeros and the quantizer of the narrow reader."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 7, 2))
    y = layers.Dense(3, name="first")(inputs)
    y = layers.ZeroPadding2D(((0, 1), (2, 1)), name="padding")(y)
    y = layers.Dense(4, name="narrow", bias_initializer="random_normal")(y)
    network = keras.Model(inputs, layers.Dense(2, name="last")(y))
    model = speq_keras.wrap(network, 2, 2, distillation=None, skip=["padding"])
    x = np.random.default_rng(0).random((16, 6, 7, 2)).astype("float32")
    model.calibrate(x, verbose=0)
    names = [layer.name for layer in model.layers]
    assert {"first_quantizer", "padding_quantizer", "padding_requantizer"} <= set(names)
    assert model.export_tflite(tmp_path / "m.tflite", data=x).proof.holds
    assert not model.settle().left
    assert model.export_tflite(tmp_path / "m.tflite", data=x).proof.holds
