"""`wrap`: layers of many kinds and of one's own, as layers and as activation functions."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from wrapped_networks import (
    assert_computes_like,
    conv,
    network,
    quantizers_in,
    separable,
    standard,
    weights_in,
    wrapped,
)

import speq_keras
from speq_keras import QuantizeConfig, configs

# ---- layers with weights ----------------------------------------------------------------------


def test_a_separable_convolution_becomes_a_depthwise_and_a_pointwise_one():
    model = standard(separable)
    assert [type(model.get_layer(name).layer) for name in ("second_depthwise", "second")] == [
        layers.DepthwiseConv2D,
        layers.Conv2D,
    ]


def test_both_parts_of_a_separable_convolution_are_quantized():
    found = weights_in(standard(separable))
    assert found["second_depthwise.kernel"] == found["second.kernel"] == "SAWB 2*"


def test_the_tensor_between_the_parts_is_rounded():
    found = quantizers_in(standard(separable))
    assert found["second_depthwise_quantizer"] == "second_depthwise: PACT s2*"


def test_a_skipped_separable_convolution_stays_whole():
    assert isinstance(
        standard(separable, skip="second").get_layer("second"), layers.SeparableConv2D
    )


def test_the_float_config_of_an_embedding_has_one_scale():
    def body(x):
        return layers.Dense(2, name="last")(layers.Embedding(10, 4, name="embed")(x))

    layer = wrapped(body, (5,), "int32").get_layer("embed")
    assert layer.quantizers["embeddings"].reduced_axes(2) == (0, 1)


def test_einsum_dense_has_a_scale_for_every_output_channel():
    def body(x):
        x = layers.EinsumDense("abc,cde->abde", (None, 2, 4), name="heads")(x)
        return layers.EinsumDense("abde,def->abf", (None, 3), name="last")(x)

    model = wrapped(body, (5, 4))
    axes = [model.get_layer(n).quantizers["kernel"].reduced_axes(3) for n in ("heads", "last")]
    assert axes == [(0,), (0, 1)]


OTHER_DIMENSIONS = {
    "1D": ((16, 3), layers.Conv1D(4, 3), layers.DepthwiseConv1D(3, name="middle")),
    "3D": ((6, 6, 6, 2), layers.Conv3D(3, 2), layers.Conv3D(3, 2, name="middle")),
    "transposed 1D": ((16, 3), layers.Conv1D(4, 3), layers.Conv1DTranspose(4, 3, name="middle")),
    "transposed 2D": (
        (8, 8, 3),
        layers.Conv2D(4, 3),
        layers.Conv2DTranspose(4, 3, strides=2, name="middle"),
    ),
    "separable 1D": ((16, 3), layers.Conv1D(4, 3), layers.SeparableConv1D(4, 3, name="middle")),
    "dense on positions": ((5, 3), layers.Dense(4), layers.Dense(4, name="middle")),
}


@pytest.mark.parametrize("case", OTHER_DIMENSIONS.values(), ids=OTHER_DIMENSIONS)
def test_layers_of_other_kinds_are_quantized_to_the_target_width(case):
    shape, first, middle = case

    def body(x):
        return layers.Dense(2, name="last")(middle(layers.ReLU()(first(x))))

    assert weights_in(wrapped(body, shape))["middle.kernel"] == "SAWB 2*"


@pytest.mark.parametrize("case", OTHER_DIMENSIONS.values(), ids=OTHER_DIMENSIONS)
def test_layers_of_other_kinds_compute_what_they_computed(case):
    shape, first, middle = case
    model = network(lambda x: layers.Dense(2)(middle(layers.ReLU()(first(x)))), shape)
    assert_computes_like(model)


# ---- layers of one's own ----------------------------------------------------------------------


class Scaled(layers.Layer):
    """y = x · scale, with a weight per feature."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="scale")

    def call(self, inputs):
        return inputs * self.scale


class Registered(Scaled):
    pass


@keras.saving.register_keras_serializable(package="test_wrapping")
class Bent(Scaled):
    """Reads its weight in a way of which there is no kernel."""

    def call(self, inputs):
        return inputs * ops.exp(self.scale)


class WithoutConfig(layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


class RenamedDense(layers.Dense):
    """Computes like its base class."""


def custom(layer):
    def body(x):
        return conv(conv(layer(conv(x, "first", activation="relu")), "second"), "last")

    return body


def test_a_layer_without_a_config_passes_through_in_float():
    model = wrapped(custom(Bent(name="own")))
    assert type(model.get_layer("own")) is Bent


def test_the_plan_says_why_a_layer_is_float():
    model = wrapped(custom(Bent(name="own")))
    why = "no quantize config for Bent; stays whole: it has weights of its own (scale), and no "
    assert model.plan().float_layers == {"own": f"{why}kernel of Exp reads weights"}


def test_a_config_with_weights_quantizes_a_layer_of_ones_own():
    config = QuantizeConfig(weights=("scale",), w_bits=4)
    model = wrapped(custom(Scaled(name="own")), configs={Scaled: config})
    assert weights_in(model)["own.scale"] == "MinMax 4 per channel"


def test_a_quantized_layer_of_ones_own_reads_the_target_width():
    model = wrapped(custom(Scaled(name="own")), configs={"own": QuantizeConfig(weights=("scale",))})
    assert quantizers_in(model)["first_relu_quantizer"] == "first_relu: PACT u2*"


def test_a_registered_config_holds_for_every_model():
    configs.register_config(Registered, QuantizeConfig(weights=("scale",)))
    assert weights_in(wrapped(custom(Registered(name="own"))))["own.scale"] == "SAWB 2*"


def test_a_registered_function_of_the_layer_holds_for_every_model():
    class ByFunction(Scaled):
        pass

    configs.register_config(ByFunction, lambda layer: QuantizeConfig(weights=("scale",), w_bits=5))
    assert weights_in(wrapped(custom(ByFunction(name="own"))))["own.scale"].startswith("MinMax 5")


def test_a_subclass_of_a_registered_class_has_no_config_and_is_taken_apart():
    model = wrapped(custom(RenamedDense(4, name="own")))
    assert not model.plan().float_layers
    assert type(model.get_layer("own.kernel").layer) is layers.Dense
    assert weights_in(model)["own.kernel.kernel"] == "SAWB 2*"


def test_the_activation_of_a_subclass_that_computes_like_its_base_is_taken_out():
    model = wrapped(
        custom(RenamedDense(4, activation="relu", name="own")),
        configs={RenamedDense: QuantizeConfig(weights=("kernel",))},
    )
    assert quantizers_in(model)["own_relu_quantizer"] == "own_relu: PACT u2*"


def test_a_layer_without_get_config_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Layer 'own' \(WithoutConfig\) cannot be copied"):
        wrapped(custom(WithoutConfig(ops.relu, name="own")), skip="own")


def test_a_layer_without_get_config_that_is_taken_apart_is_not_needed_again():
    model = wrapped(custom(WithoutConfig(ops.relu, name="own")))
    names = {operation.name for operation in model.float_model().operations}
    assert "own" not in names
    assert "own.relu" in names


# ---- layers as activation functions -----------------------------------------------------------


def convolutions_with(activation):
    one, two = (activation.from_config(activation.get_config()) for _ in range(2))
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, activation=one, name="one")(inputs)
    x = layers.SeparableConv2D(4, 2, activation=two, name="two")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


@pytest.mark.parametrize(
    "activation",
    [
        layers.LeakyReLU(0.2),
        layers.PReLU(shared_axes=[1, 2], alpha_initializer="random_uniform"),
        layers.Activation("silu"),
        layers.ReLU(1.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("skip", [[], ["one"], ["two"]])
def test_a_layer_as_activation_function_becomes_a_layer(activation, skip, tmp_path):
    model = convolutions_with(activation)
    wrapped = speq_keras.wrap(model, 3, 3, distillation=None, skip=skip)
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    float_values = model.predict(x, verbose=0)
    plain = wrapped.float_model()
    np.testing.assert_array_equal(plain.predict(x, verbose=0), float_values)
    wrapped.calibrate(x, verbose=0)
    wrapped.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), wrapped.predict(x, verbose=0))
    names = {layer.name for layer in wrapped.layers}
    assert any(name.startswith("one_") and "quantizer" not in name for name in names)
