"""`wrap(skip=..., configs=...)`: who says what about which layer."""

import copy

import pytest
from keras import layers
from wrapped_networks import (
    chain,
    conv,
    nested,
    quantizers_in,
    reads,
    separable,
    weights_in,
    wrapped,
)

import speq_keras
from speq_keras import QuantizeConfig
from speq_keras.quantizers import PACT, MinMax


def quantized_names(model):
    return [name.split(".kernel")[0] for name in weights_in(model)]


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ("second", ["first", "third", "last"]),
        (["second", "third"], ["first", "last"]),
        ("s*", ["first", "third", "last"]),
        ("*ir*", ["second", "last"]),
        (("[st]*",), ["first", "last"]),
    ],
)
def test_skip_takes_names_and_patterns(skip, left):
    assert quantized_names(wrapped(chain, skip=skip)) == left


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ("outer.inner.dense", ["first", "outer.dense", "last"]),
        ("outer.*", ["first", "last"]),
        ("dense", ["first", "last"]),
    ],
)
def test_skip_names_layers_of_nested_models(skip, left):
    assert quantized_names(speq_keras.wrap(nested(), 2, 2, skip=skip)) == left


def test_configs_take_a_name():
    model = wrapped(chain, configs={"second": QuantizeConfig(w_bits=4)})
    assert weights_in(model)["second.kernel"] == "MinMax 4 per channel"


def test_configs_take_a_pattern():
    model = wrapped(chain, configs={"[st]*d": QuantizeConfig(w_bits=4)})
    found = weights_in(model)
    assert found["second.kernel"] == found["third.kernel"] == "MinMax 4 per channel"


def test_configs_take_a_class():
    model = wrapped(chain, configs={layers.Dense: QuantizeConfig(w_bits=4)})
    assert weights_in(model)["last.kernel"] == "MinMax 4 per channel"


def test_the_first_config_that_matches_wins():
    model = wrapped(
        chain,
        configs={"second": QuantizeConfig(w_bits=4), layers.Conv2D: QuantizeConfig(w_bits=6)},
    )
    found = weights_in(model)
    assert [found["second.kernel"][:8], found["third.kernel"][:8]] == ["MinMax 4", "MinMax 6"]


def test_configs_name_layers_of_nested_models():
    model = speq_keras.wrap(nested(), 2, 2, configs={"outer.dense": QuantizeConfig(w_bits=4)})
    found = weights_in(model)
    assert found["outer.dense.kernel"] == "MinMax 4 per channel"
    assert found["outer.inner.dense.kernel"] == "SAWB 2*"


@pytest.mark.parametrize("key", ["second", layers.SeparableConv2D])
def test_a_config_of_a_separable_convolution_is_that_of_both_parts(key):
    found = weights_in(wrapped(separable, configs={key: QuantizeConfig(w_bits=4)}))
    assert found["second_depthwise.kernel"] == found["second.kernel"] == "MinMax 4 per channel"


def test_a_fixed_input_width_is_not_drawn():
    model = wrapped(chain, configs={"second": QuantizeConfig(a_bits=4)})
    assert quantizers_in(model)["first_relu_quantizer"] == "first_relu: PACT u4"


def test_a_float_input_width_leaves_the_tensor_alone():
    model = wrapped(chain, configs={"second": QuantizeConfig(a_bits=None)})
    assert reads(model, "second") == ["first_relu"]


def test_float_weights_by_config_keep_their_input_quantizer():
    model = wrapped(chain, configs={"second": QuantizeConfig(w_bits=None)})
    assert "second.kernel" not in weights_in(model)
    assert reads(model, "second") == ["first_relu_quantizer"]


def test_a_width_by_config_holds_where_wrap_leaves_the_weights_float():
    model = wrapped(chain, w_bits=None, configs={"second": QuantizeConfig(w_bits=4)})
    assert weights_in(model) == {"second.kernel": "MinMax 4 per channel"}


def test_a_config_can_give_an_outer_layer_the_target_width():
    model = wrapped(chain, configs={"last": QuantizeConfig(w_bits=2, weight_quantizer=MinMax())})
    assert weights_in(model)["last.kernel"] == "MinMax 2"


def test_quantizers_by_name_and_by_object_are_used():
    model = wrapped(
        chain,
        weight_quantizer=MinMax(per_channel=True),
        activation_quantizer="lsq_plus",
        configs={"third": QuantizeConfig(weight_quantizer="lsq", activation_quantizer="pact")},
    )
    assert weights_in(model)["second.kernel"] == "MinMax 2* per channel"
    assert weights_in(model)["third.kernel"] == "LSQ 2*"
    assert quantizers_in(model)["first_relu_quantizer"] == "first_relu: LSQPlus u2*"
    assert quantizers_in(model)["second_relu_quantizer"] == "second_relu: PACT u2*"


def test_readers_with_equal_configs_share_one_quantizer():
    def body(x):
        x = conv(x, "first", activation="relu")
        return conv(layers.Add()([conv(x, "a"), conv(x, "b")]), "last")

    config = QuantizeConfig(activation_quantizer="lsq_plus")
    model = wrapped(body, configs={"a": config, "b": copy.copy(config)})
    assert quantizers_in(model)["first_relu_quantizer"] == "first_relu: LSQPlus u2*"


def test_readers_with_unequal_configs_have_a_quantizer_each():
    def body(x):
        x = conv(x, "first", activation="relu")
        return conv(layers.Add()([conv(x, "a"), conv(x, "b")]), "last")

    model = wrapped(body, configs={"a": QuantizeConfig(a_bits=4)})
    found = quantizers_in(model)
    assert found["first_relu_quantizer"] == "first_relu: PACT u8"
    assert found["first_relu_requantizer"] == "first_relu_quantizer: PACT u4"
    assert found["first_relu_requantizer_1"] == "first_relu_quantizer: PACT u2*"


def test_the_quantizer_object_given_to_wrap_stays_unbuilt():
    prototype = PACT(weight_decay=1e-3)
    wrapped(chain, activation_quantizer=prototype)
    assert not prototype.built
