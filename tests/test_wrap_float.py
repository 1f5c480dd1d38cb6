"""`wrap` without rounding: the quantized network computes the float network."""

import keras
import pytest
from keras import layers, ops
from wrapped_networks import (
    RNG,
    assert_computes_like,
    average_pooling,
    chain,
    concatenations,
    conv,
    nested,
    network,
    residual,
    separable,
    squeeze_excite,
    two_ends,
    weights_in,
    with_random_statistics,
    wrapped,
)

import speq_keras
from speq_keras import QuantizeConfig

BODIES = {
    "chain": chain,
    "residual": residual,
    "squeeze-excite": squeeze_excite,
    "average pooling": average_pooling,
    "concatenations": concatenations,
    "separable": separable,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_without_rounding_the_wrapped_network_computes_the_float_network(body):
    assert_computes_like(with_random_statistics(network(body)))


FUNCTIONS = ["relu", "relu6", "swish", "gelu", "tanh", "elu", "hard_swish", "softplus", "softmax"]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_without_rounding_a_fused_function_computes_the_same(function):
    assert_computes_like(network(lambda x: conv(conv(conv(x, "a", activation=function), "b"), "c")))


def test_without_rounding_several_inputs_and_outputs_compute_the_same():
    assert_computes_like(two_ends())


def recurrent(x):
    x = layers.Embedding(10, 4, mask_zero=True, name="embed")(x)
    x = layers.LSTM(4, name="lstm")(x)
    x = layers.Dense(4, activation="relu", name="middle")(x)
    return layers.Dense(2, name="last")(layers.Dense(4, activation="relu", name="third")(x))


def test_without_rounding_a_recurrent_network_with_masks_computes_the_same():
    assert_computes_like(network(recurrent, (5,), "int32"))


def attention(x):
    x = layers.Embedding(10, 4, name="embed")(x)
    y = layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    x = layers.LayerNormalization(name="norm")(layers.Add(name="sum")([x, y]))
    x = layers.Dense(8, activation="gelu", name="middle")(x)
    return layers.Dense(2, name="last")(layers.GlobalAveragePooling1D(name="mean")(x))


def test_without_rounding_attention_computes_the_same():
    assert_computes_like(network(attention, (5,), "int32"))


def test_without_rounding_plain_operations_compute_the_same():
    def body(x):
        x = ops.relu(conv(x, "first"))
        y = ops.pad(x[:, ::2, ::2], [[0, 0], [1, 1], [1, 1], [0, 0]])
        y = ops.silu(conv(y, "second")) * 2.0 + 1.0
        y = 1.0 - conv(y, "third")
        return layers.Dense(2, name="last")(ops.mean(y, axis=(1, 2)))

    assert_computes_like(network(body))


def test_without_rounding_nested_models_compute_the_same():
    assert_computes_like(nested())


def test_without_rounding_a_functional_subclass_computes_the_same():
    class Backbone(keras.Model):
        def __init__(self, units, **kwargs):
            inputs = keras.Input((4,))
            x = layers.Dense(units, activation="relu", name="first")(inputs)
            x = layers.Dense(units, activation="relu", name="second")(x)
            super().__init__(inputs=inputs, outputs=layers.Dense(2, name="last")(x), **kwargs)
            self.units = units

    assert_computes_like(Backbone(4))


def test_without_rounding_a_lambda_computes_the_same():
    scale = 3.0
    model = network(
        lambda x: conv(conv(layers.Lambda(lambda t: ops.relu(t) * scale)(conv(x, "a")), "b"), "c")
    )
    assert_computes_like(model)


def test_without_rounding_a_function_of_ones_own_computes_the_same():
    def leaky(x):
        return ops.maximum(x, 0.1 * x)

    def body(x):
        x = layers.Activation(leaky)(conv(x, "a", activation=leaky))
        return conv(conv(x, "b"), "c")

    assert_computes_like(network(body))


def adapted():
    """A network that normalizes its inputs by statistics of data that it has seen."""
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(RNG.normal(5.0, 3.0, (100, 4)).astype("float32"))
    inputs = keras.Input((4,))
    x = layers.Dense(4, activation="relu", name="first")(normalization(inputs))
    return keras.Model(inputs, layers.Dense(2, name="last")(layers.Dense(4, name="second")(x)))


def test_without_rounding_an_adapted_normalization_computes_the_same():
    assert_computes_like(adapted())


def test_a_layer_with_several_inputs_is_quantized_by_a_config():
    def body(x):
        x = layers.Embedding(10, 4, mask_zero=True, name="embed")(x)
        y = layers.MultiHeadAttention(2, 2, name="by_position")(x, x)
        y = layers.MultiHeadAttention(2, 2, name="by_name")(query=y, value=x)
        y = layers.Dense(4, activation="relu", name="middle")(y)
        return layers.Dense(2, name="last")(layers.GlobalAveragePooling1D(name="mean")(y))

    names = ("query_dense.kernel", "value_dense.kernel")
    config = {layers.MultiHeadAttention: QuantizeConfig(weights=names)}
    float_model = network(body, (5,), "int32")
    found = weights_in(speq_keras.wrap(float_model, 2, 2, configs=config))
    assert (
        found["by_name.query_dense.kernel"] == found["by_position.value_dense.kernel"] == "SAWB 2*"
    )
    assert_computes_like(float_model, configs=config)


def test_a_recurrent_layer_keeps_its_activation_inside():
    model = wrapped(recurrent, (5,), "int32")
    assert model.get_layer("lstm").activation is keras.activations.tanh
    assert not any(layer.name.startswith("lstm_tanh") for layer in model.layers)
