"""Layers made of layers: what they are taken apart into, and attention worked again in NumPy."""

import keras
import numpy as np
import pytest
from gradients import gradients_of
from keras import layers, ops

import speq_keras
from speq_keras.configs import registered_config
from speq_keras.graph import read_graph
from speq_keras.wrapping.composite import Expander, is_composite

TIME, SIZE = 6, 8


def take_apart(model):
    return read_graph(model, Expander(lambda name, layer: False))


@keras.saving.register_keras_serializable(package="tests")
class Block(layers.Layer):
    """A residual block whose inner layers have automatic names."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization()
        self.wide = layers.Dense(2 * SIZE, activation="relu")
        self.narrow = layers.Dense(SIZE)

    def build(self, shape):
        self.norm.build(shape)
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], 2 * SIZE))

    def call(self, x, training=None):
        return x + self.narrow(self.wide(self.norm(x)))


@keras.saving.register_keras_serializable(package="tests")
class OwnWeight(Block):
    def build(self, shape):
        super().build(shape)
        self.factor = self.add_weight(shape=(SIZE,), initializer="ones", name="factor")

    def call(self, x):
        return super().call(x) * ops.exp(self.factor)


@keras.saving.register_keras_serializable(package="tests")
class Trains(Block):
    """Another graph in training."""

    def call(self, x, training=None):
        return super().call(x) if training else super().call(x) * 0.5


@keras.saving.register_keras_serializable(package="tests")
class Decides(Block):
    def compute_output_shape(self, shape):
        return shape

    def call(self, x):
        return super().call(x) if float(ops.sum(x)) >= 0 else x


def around(layer, *more):
    """A model with a layer between two others; `more`: functions of its input for further ones."""
    keras.utils.set_random_seed(0)
    x = keras.Input((TIME, SIZE), name="x")
    y = layers.Dense(SIZE, name="first")(x)
    y = layer(y, *(function(y) for function in more))
    return keras.Model(x, layers.Dense(3, name="last")(y))


def attention(**kwargs):
    return layers.MultiHeadAttention(2, 4, name="mha", **kwargs)


def data(count=16):
    return np.random.default_rng(1).normal(size=(count, TIME, SIZE)).astype("float32")


def names(graph):
    return [node.name for node in graph.nodes]


# ---- taking apart ------------------------------------------------------------------------------


def test_a_block_becomes_its_layers():
    assert names(take_apart(around(Block(name="block")))) == [
        "first",
        "block.layer_normalization",
        "block.dense",
        "block.dense_1",
        "block.add",
        "last",
    ]


def test_names_inside_do_not_depend_on_what_was_made_before():
    first, second = (names(take_apart(around(Block(name="block")))) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("cls", [OwnWeight, Trains, Decides])
def test_a_layer_with_weights_or_decisions_of_its_own_stays_whole(cls):
    assert names(take_apart(around(cls(name="block")))) == ["first", "block", "last"]


def test_a_layer_behind_a_mask_reads_it_as_a_tensor():
    x = keras.Input((TIME,), dtype="int32")
    y = layers.Embedding(10, SIZE, mask_zero=True, name="table")(x)
    found = names(take_apart(keras.Model(x, attention()(y, y))))
    assert {"table", "table_mask.not_equal", "mha.query", "mha.softmax"} <= set(found)
    assert "mha" not in found


def test_causal_attention_adds_its_mask_to_the_scores():
    graph = take_apart(around(lambda y: attention()(y, y, use_causal_mask=True)))
    found = [type(node.operation).__name__ for node in graph.nodes]
    assert found.count("Matmul") == 2
    assert "DotProductAttention" not in found


EQUATIONS = {
    "bthd,bshd->bhts": 1,
    "bhts,bshd->bthd": 1,
    "btk,bsk->bts": 1,
    "bti,bsi->bsti": 1,
    "bti,bti->bt": 1,
    "bhtk,bsdk->bhdst": 1,
    "bti,bt->bi": 1,
    "bti,bsk->btk": 0,  # a sum of one alone
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_of_two_tensors_becomes_one_matrix_product(equation):
    sizes = {"b": None, "t": 3, "s": 4, "h": 2, "d": 5, "k": 6, "i": 7}
    shapes = [[sizes[a] for a in axes] for axes in equation.split("->")[0].split(",")]
    inputs = [keras.Input(batch_shape=shape) for shape in shapes]
    model = keras.Model(inputs, ops.einsum(equation, *inputs))
    graph = take_apart(model)
    assert [type(n.operation).__name__ for n in graph.nodes].count("Matmul") == EQUATIONS[equation]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=[size or 2 for size in shape]).astype("float32") for shape in shapes]
    values = dict(zip(graph.input_indices, arrays, strict=True))
    for node in graph.nodes:
        args = [values[ref.index] if hasattr(ref, "index") else ref for ref in node.args]
        values[node.outputs[0]] = node.operation(*args, **node.kwargs)
    found = values[graph.output_indices[0]]
    np.testing.assert_allclose(found, np.einsum(equation, *arrays), rtol=1e-4, atol=1e-5)


def test_recurrent_layers_stay_whole():
    assert names(take_apart(around(layers.LSTM(4, name="lstm")))) == ["first", "lstm", "last"]


LAYERS = {
    "block": (lambda: Block(name="block"),),
    "attention": (attention, lambda y: y),
    "attention with dropout": (lambda: attention(dropout=0.1), lambda y: y),
    "attention with key, value and output sizes": (
        lambda: attention(value_dim=3, output_shape=5),
        lambda y: y,
        lambda y: layers.Dense(7)(y),
    ),
    "masked attention": (
        lambda: lambda y, z, m: attention()(y, z, attention_mask=m),
        lambda y: y,
        lambda y: ops.greater(y[:, :, :TIME], -0.5),
    ),
    "grouped queries": (lambda: layers.GroupQueryAttention(4, 4, 2, name="gqa"), lambda y: y),
}


@pytest.mark.parametrize("name", LAYERS)
def test_in_float_a_wrapped_model_computes_what_the_layer_computes(name):
    make, *more = LAYERS[name]
    model = around(make(), *more)
    wrapped = speq_keras.wrap(model, a_bits=None, boundary_bits=None, distillation=None)
    inside = [row for row in wrapped.plan().rows if "." in row.name and row.w_bits is not None]
    assert len(inside) >= 2
    wrapped.set_bits(weights=None)
    np.testing.assert_allclose(wrapped(data()), model(data()), rtol=2e-5, atol=2e-5)


def test_float_model_and_saved_model_have_the_weights_of_the_block(tmp_path):
    model = around(Block(name="block"))
    wrapped = speq_keras.wrap(model, 3, 3)
    wrapped.calibrate(data(), verbose=0)
    np.testing.assert_array_equal(wrapped.float_model()(data()), model(data()))
    wrapped.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(data()), wrapped.predict(data()))
    np.testing.assert_array_equal(loaded.float_model()(data()), model(data()))


def test_skipping_a_block_leaves_it_whole():
    model = around(Block(name="block"))
    wrapped = speq_keras.wrap(model, skip="block")
    assert isinstance(wrapped.get_layer("block"), Block)
    np.testing.assert_array_equal(wrapped.float_model()(data()), model(data()))


def test_a_config_that_names_weights_of_a_block_leaves_it_whole():
    config = speq_keras.QuantizeConfig(weights=("wide.kernel",), channel_axes=(-1,))
    wrapped = speq_keras.wrap(around(Block(name="block")), configs={Block: config})
    assert wrapped.plan().row("block").w_bits == 3


# ---- quantized attention in NumPy --------------------------------------------------------------


def on_levels(x, alpha, bits):
    """PACT with a sign: codes −2^(b−1) ... 2^(b−1) − 1, of which the lowest is −α."""
    scale = alpha / 2 ** (bits - 1)
    return np.clip(np.rint(x / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def min_max(weights, bits):
    """Whole multiples of max|w| / (2^(b−1) − 1)."""
    scale = np.abs(weights).max() / (2 ** (bits - 1) - 1)
    return np.rint(weights / scale) * scale


def inside(x, alpha, bits):
    """Where the gradient of PACT passes: between the lowest and the highest level."""
    codes = x / alpha * 2 ** (bits - 1)
    return (codes >= -(2 ** (bits - 1))) & (codes <= 2 ** (bits - 1) - 1)


def on_levels_by_name(model, bits):
    """Returns a function that rounds as a PACT quantizer of the model should, by its name."""
    quantizers = {quantizer.name: quantizer for quantizer in model.activation_quantizers}

    def rounded(name, x, bits=bits):
        return on_levels(x, float(np.asarray(quantizers[f"{name}_quantizer"].alpha)), bits)

    return rounded


def attention_in_numpy(model, x, bits, rounded, keeps=None):
    """Vaswani et al. (2017), Section 3.2, on what leaves the layer `first`."""
    x = rounded("first", x)

    def projected(name, equation, x):
        layer = model.get_layer(f"mha.{name}").layer
        return np.einsum(equation, x, min_max(np.asarray(layer.kernel), bits)) + np.asarray(
            layer.bias
        )

    query = projected("query", "bts,shd->bthd", x) / np.sqrt(4)
    query = rounded("mha.rescaling", query)
    key = rounded("mha.key", projected("key", "bts,shd->bthd", x))
    value = rounded("mha.value", projected("value", "bts,shd->bthd", x))
    scores = rounded("mha.matmul", np.einsum("bthd,buhd->bhtu", query, key), 8)
    if keeps is not None:
        scores = np.where(keeps[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    weights = np.rint(weights * 256).clip(0, 255) / 256
    mixed = rounded("mha.matmul_1", np.einsum("bhtu,buhd->bthd", weights, value))
    return projected("attention_output", "bthd,hds->bts", mixed)


def quantized_attention(*more, **kwargs):
    model = speq_keras.wrap(
        around(attention(**kwargs), lambda y: y), 3, 3, weight_quantizer="minmax", distillation=None
    )
    model.calibrate(data(), verbose=0)
    ends = [model.get_layer(name).output for name in ("first", "mha.attention_output")]
    return model, keras.Model(model.input, ends)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_quantized_attention_is_what_numpy_makes_of_it(bits):
    model, ends = quantized_attention()
    model.set_bits(weights=bits, activations=bits)
    first, found = (ops.convert_to_numpy(y) for y in ends(data()))
    expected = attention_in_numpy(model, first, bits, on_levels_by_name(model, bits))
    # Where float32 sends a half to the other side, one step of one code.
    assert np.mean(np.abs(found - expected) < 1e-4) > 0.99
    assert np.std(expected) > 0.1


def test_dropout_takes_keras_other_path_to_the_same_attention():
    (plain, ends), (dropped, dropped_ends) = (
        quantized_attention(**kwargs) for kwargs in ({}, {"dropout": 0.2})
    )
    # In front of the scores one path has a Rescaling, the other the product with a number.
    values = {v.path.replace("rescaling", "multiply"): v for v in plain.trainable_variables}
    for variable in dropped.trainable_variables:
        variable.assign(values.pop(variable.path))
    assert not values
    for one, other in zip(ends(data()), dropped_ends(data()), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_exported_file_computes_the_attention_that_was_trained(tmp_path):
    model, _ = quantized_attention()
    report = model.export_tflite(tmp_path / "m.tflite", data=data())
    assert report.proof.mismatches == report.proof.outside == 0
    kinds = [row.kind for row in report.proof.tensors]
    assert kinds.count("batch_matmul") == 2


def mask():
    keeps = np.arange(TIME)[None] < np.arange(1, TIME + 1)[:, None]
    return np.repeat(keeps[None], len(data()), axis=0)


def test_masked_places_get_no_weight():
    x, m = keras.Input((TIME, SIZE), name="x"), keras.Input((TIME, TIME), dtype="bool", name="m")
    keras.utils.set_random_seed(0)
    y = layers.Dense(SIZE, name="first")(x)
    y = layers.MultiHeadAttention(2, 4, name="mha")(y, y, attention_mask=m)
    model = keras.Model({"x": x, "m": m}, layers.Dense(3, name="last")(y))
    model = speq_keras.wrap(model, 3, 3, weight_quantizer="minmax", distillation=None)
    inputs = {"x": data(), "m": mask()}
    model.calibrate(inputs, verbose=0)
    ends = [model.get_layer(name).output for name in ("first", "mha.attention_output")]
    first, found = (ops.convert_to_numpy(y) for y in keras.Model(model.input, ends)(inputs))
    expected = attention_in_numpy(model, first, 3, on_levels_by_name(model, 3), keeps=mask())
    assert np.mean(np.abs(found - expected) < 1e-4) > 0.99


# ---- its gradient ------------------------------------------------------------------------------


def gradients_in_numpy(model, x, upstream, bits):
    """The derivatives to the kernels, backwards through Section 3.2; rounding is the identity."""
    quantizers = {quantizer.name: quantizer for quantizer in model.activation_quantizers}

    def rounded(name, x, bits=bits):
        alpha = float(np.asarray(quantizers[f"{name}_quantizer"].alpha))
        return on_levels(x, alpha, bits), inside(x, alpha, bits)

    def kernel(name):
        return np.asarray(model.get_layer(f"mha.{name}").layer.kernel)

    def projected(name):
        bias = np.asarray(model.get_layer(f"mha.{name}").layer.bias)
        return np.einsum("bts,shd->bthd", x, min_max(kernel(name), bits)) + bias

    x, _ = rounded("first", x)
    query, query_passes = rounded("mha.rescaling", projected("query") / np.sqrt(4))
    key, key_passes = rounded("mha.key", projected("key"))
    value, value_passes = rounded("mha.value", projected("value"))
    scores, scores_pass = rounded("mha.matmul", np.einsum("bthd,buhd->bhtu", query, key), 8)
    exact = np.exp(scores - scores.max(-1, keepdims=True))
    exact /= exact.sum(-1, keepdims=True)
    weights = np.rint(exact * 256).clip(0, 255) / 256
    mixed, mixed_passes = rounded("mha.matmul_1", np.einsum("bhtu,buhd->bthd", weights, value))

    of_output = np.einsum("bthd,bts->hds", mixed, upstream)
    of_mixed = np.einsum("bts,hds->bthd", upstream, min_max(kernel("attention_output"), bits))
    of_mixed *= mixed_passes
    of_value = np.einsum("bhtu,bthd->buhd", weights, of_mixed) * value_passes
    of_weights = np.einsum("bthd,buhd->bhtu", of_mixed, value) * (exact <= 255 / 256)
    of_scores = exact * (of_weights - (of_weights * exact).sum(-1, keepdims=True)) * scores_pass
    of_key = np.einsum("bhtu,bthd->buhd", of_scores, query) * key_passes
    of_query = np.einsum("bhtu,buhd->bthd", of_scores, key) * query_passes / np.sqrt(4)
    through = [np.einsum("bts,bthd->shd", x, y) for y in (of_query, of_key, of_value)]
    return dict(
        zip(("query", "key", "value", "attention_output"), [*through, of_output], strict=True)
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_reach_every_projection_through_a_long_sequence(bits):
    length = 384  # at 1/384 the weights are below the distance of the codes, 1/256
    keras.utils.set_random_seed(0)
    x = keras.Input((length, SIZE), name="x")
    y = layers.Dense(SIZE, name="first")(x)
    y = layers.Dense(3, name="last")(attention()(y, y))
    model = speq_keras.wrap(
        keras.Model(x, y), bits, bits, weight_quantizer="minmax", distillation=None
    )
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(2, length, SIZE)).astype("float32")
    model.calibrate(inputs, verbose=0)
    first, out = (model.get_layer(name).output for name in ("first", "mha.attention_output"))
    ends = keras.Model(model.input, [first, out])
    upstream = rng.normal(size=(2, length, SIZE)).astype("float32")
    names = ("query", "key", "value", "attention_output")
    kernels = [model.get_layer(f"mha.{name}").layer.kernel for name in names]
    _, *found = gradients_of(lambda x: ops.sum(ends(x)[1] * upstream), [inputs], variables=kernels)
    expected = gradients_in_numpy(model, ops.convert_to_numpy(ends(inputs)[0]), upstream, bits)
    for name, gradient in zip(names, found, strict=True):
        # Where float32 sends a half to the other side, one step of one code of 384.
        np.testing.assert_allclose(
            gradient, expected[name], atol=0.02 * np.abs(expected[name]).max(), err_msg=name
        )
        assert np.abs(expected[name]).max() > 1e-3


# ---- told by its class, not by its name ------------------------------------------------------


def of_the_name(name, base, module):
    """A class with the name of one of another package, in a module of that package."""
    return type(name, (base,), {"__module__": module})


@pytest.mark.parametrize("name", ["Einsum", "DotProductAttention"])
def test_an_operation_of_another_class_with_a_known_name_is_not_taken_apart(name):
    assert not is_composite(of_the_name(name, keras.Operation, "keras.mine")())


def einsum(x):
    return ops.einsum("abcd,abed->abce", x, x)


def product_attention(x):
    return ops.dot_product_attention(x, x, x)


@pytest.mark.parametrize("call", [einsum, product_attention])
def test_the_operations_of_keras_are_taken_apart(call):
    x = keras.Input(batch_shape=(2, 3, 4, 5))
    assert any(map(is_composite, keras.Model(x, call(x)).operations))


def test_a_layer_of_another_class_with_a_known_name_has_no_config():
    layer = of_the_name("PositionEmbedding", layers.Layer, "keras_hub.mine")()
    assert registered_config(layer) is None
