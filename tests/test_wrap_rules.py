"""`wrap`: what weighted layers read and make, and which operations read 8 bits."""

import pytest
from keras import layers
from wrapped_networks import (
    chain,
    conv,
    quantizers_in,
    reads,
    residual,
    squeeze_excite,
    standard,
    weights_in,
    wrapped,
)

# ---- rule 1: weighted layers ------------------------------------------------------------------


def test_a_chain_is_rounded_behind_its_relus_its_input_and_its_logits():
    assert quantizers_in(standard(chain)) == {
        "image_quantizer": "image: FixedRange s8",
        "first_relu_quantizer": "first_relu: PACT u2*",
        "second_relu_quantizer": "second_relu: PACT u2*",
        "third_relu_quantizer": "third_relu: PACT u8",
        "last_quantizer": "last: PACT s8",
    }


def test_batch_norm_and_relu_behind_a_convolution_read_it_unrounded():
    model = standard(chain)
    assert [reads(model, name) for name in ("norm", "first_relu")] == [["first"], ["norm"]]


def test_inner_weights_have_the_target_width_and_outer_ones_8_bits_per_channel():
    assert weights_in(standard(chain)) == {
        "first.kernel": "MinMax 8 per channel",
        "second.kernel": "SAWB 2*",
        "third.kernel": "SAWB 2*",
        "last.kernel": "MinMax 8 per channel",
    }


def test_quantizers_behind_a_relu_know_that_their_input_is_not_negative():
    model = standard(chain)
    flags = {q.name: q.nonnegative_input for q in model.activation_quantizers}
    assert [name for name, flag in flags.items() if flag] == [
        "first_relu_quantizer",
        "second_relu_quantizer",
        "third_relu_quantizer",
    ]


def test_another_boundary_width_is_that_of_the_outer_weights():
    model = standard(chain, boundary_bits=4)
    assert weights_in(model)["last.kernel"] == "MinMax 4 per channel"


def test_another_boundary_width_rounds_the_8_bit_input_again():
    model = standard(chain, boundary_bits=4)
    assert quantizers_in(model)["image_requantizer"] == "image_quantizer: PACT s4"


def test_without_boundary_bits_the_ends_of_the_network_are_float():
    assert quantizers_in(standard(chain, boundary_bits=None)) == {
        "first_relu_quantizer": "first_relu: PACT u2*",
        "second_relu_quantizer": "second_relu: PACT u2*",
    }


def test_without_boundary_bits_the_outer_weights_are_float():
    assert list(weights_in(standard(chain, boundary_bits=None))) == [
        "second.kernel",
        "third.kernel",
    ]


def test_without_a_bits_there_are_no_activation_quantizers():
    model = standard(chain, a_bits=None, distillation=None)
    assert model.activation_quantizers == []


def test_without_a_bits_the_weights_are_quantized_all_the_same():
    model = standard(chain, a_bits=None, distillation=None)
    assert weights_in(model) == weights_in(standard(chain))


def test_without_w_bits_there_are_no_weight_quantizers():
    assert weights_in(standard(chain, w_bits=None)) == {}


def test_without_w_bits_activations_are_rounded_all_the_same():
    assert quantizers_in(standard(chain, w_bits=None)) == quantizers_in(standard(chain))


def test_the_first_and_last_layer_of_every_path_are_outer_layers():
    def two_paths(x):
        long = conv(conv(x, "a1", activation="relu"), "a2", activation="relu")
        short = conv(x, "b1", activation="relu")
        x = layers.Concatenate(name="join")([long, short])
        return [conv(conv(x, "c1", activation="relu"), "c2"), conv(x, "d1")]

    model = wrapped(two_paths)
    outer = [name for name, quantizer in weights_in(model).items() if quantizer.startswith("Min")]
    assert sorted(outer) == ["a1.kernel", "b1.kernel", "c2.kernel", "d1.kernel"]


def test_a_layer_used_at_the_boundary_and_inside_is_an_outer_layer():
    def body(x):
        shared = layers.Conv2D(3, 3, padding="same", activation="relu", name="shared")
        return conv(conv(shared(shared(x)), "inner", activation="relu"), "last")

    assert weights_in(wrapped(body))["shared.kernel"] == "MinMax 8 per channel"


def test_every_call_of_a_shared_layer_has_a_quantizer_of_its_own():
    def body(x):
        shared = layers.Conv2D(4, 3, padding="same", activation="relu", name="shared")
        return conv(shared(shared(conv(x, "first", activation="relu"))), "last")

    found = quantizers_in(wrapped(body))
    assert found["shared_relu_quantizer"] == "shared_relu: PACT u2*"
    assert found["shared_relu_1_quantizer"] == "shared_relu_1: PACT u8"


# ---- rule 2: operations that read 8 bits ------------------------------------------------------


def test_a_residual_add_reads_8_bits_and_the_branch_a_second_quantizer():
    assert quantizers_in(standard(residual)) == {
        "image_quantizer": "image: FixedRange s8",
        "first_relu_quantizer": "first_relu: PACT u8",
        "first_relu_requantizer": "first_relu_quantizer: PACT u2*",
        "second_relu_quantizer": "second_relu: PACT u2*",
        "third_quantizer": "third: PACT s8",
        "sum_relu_quantizer": "sum_relu: PACT u2*",
        "fourth_relu_quantizer": "fourth_relu: PACT u8",
        "last_quantizer": "last: PACT s8",
    }


def test_the_add_reads_the_8_bit_values():
    assert reads(standard(residual), "sum") == ["first_relu_quantizer", "third_quantizer"]


def test_the_convolution_in_the_branch_reads_the_second_quantizer():
    assert reads(standard(residual), "second") == ["first_relu_requantizer"]


def test_a_relu_behind_an_add_fuses_with_it():
    assert reads(standard(residual), "sum_relu") == ["sum"]


def test_a_chain_of_adds_is_8_bits_between_them():
    def body(x):
        x = conv(x, "first", activation="relu")
        x = layers.Add(name="sum_1")([x, conv(x, "second")])
        x = layers.Add(name="sum_2")([x, conv(x, "third")])
        return conv(x, "last")

    found = quantizers_in(wrapped(body))
    assert found["sum_1_quantizer"] == "sum_1: PACT s8"
    assert found["sum_1_requantizer"] == "sum_1_quantizer: PACT s2*"


def test_readers_of_one_width_share_the_second_quantizer():
    def body(x):
        x = conv(x, "first", activation="relu")
        y = layers.Add(name="sum")([conv(x, "a"), conv(x, "b"), x])
        return conv(y, "last")

    model = wrapped(body)
    assert reads(model, "a") == reads(model, "b") == ["first_relu_requantizer"]


def test_a_mean_reads_and_makes_8_bits():
    def body(x):
        x = conv(conv(x, "first", activation="relu"), "second", activation="relu")
        x = layers.GlobalAveragePooling2D(name="mean")(x)
        return layers.Dense(2, name="last")(layers.Dense(4, activation="relu", name="third")(x))

    found = quantizers_in(wrapped(body))
    assert found["second_relu_quantizer"] == "second_relu: PACT u8"
    assert found["mean_quantizer"] == "mean: PACT u8"
    assert found["mean_requantizer"] == "mean_quantizer: PACT u2*"


def test_swish_is_taken_apart_into_a_sigmoid_and_a_product():
    def body(x):
        x = conv(x, "first", activation="swish")
        return conv(conv(x, "second", activation="relu"), "last")

    model = wrapped(body)
    assert reads(model, "first_silu") == ["first_quantizer", "first_silu_sigmoid_quantizer"]


def test_a_swish_has_8_bits_at_its_input_and_its_sigmoid():
    def body(x):
        x = layers.BatchNormalization(name="norm")(conv(x, "first"))
        x = layers.Activation("swish", name="swish")(x)
        return conv(conv(x, "second", activation="relu"), "last")

    assert quantizers_in(wrapped(body)) == {
        "image_quantizer": "image: FixedRange s8",
        "norm_quantizer": "norm: PACT s8",
        "swish_sigmoid_quantizer": "swish_sigmoid: FixedRange u8",
        "swish_quantizer": "swish: PACT s2*",
        "second_relu_quantizer": "second_relu: PACT u8",
        "last_quantizer": "last: PACT s8",
    }


def test_swish_stays_whole_where_activations_are_float():
    def body(x):
        return conv(conv(x, "first", activation="swish"), "last")

    model = wrapped(body, a_bits=None, distillation=None)
    assert [layer.name for layer in model.layers] == ["image", "first", "first_silu", "last"]


FIXED_GRIDS = {
    "sigmoid": (1 / 256, 0, 255),
    "softmax": (1 / 256, 0, 255),
    "tanh": (1 / 128, -128, 127),
}


@pytest.mark.parametrize("function", FIXED_GRIDS)
def test_a_function_with_a_fixed_integer_range_is_rounded_to_it(function):
    model = wrapped(lambda x: conv(conv(x, "first", activation=function), "last"))
    assert model.get_layer(f"first_{function}_quantizer").grid() == FIXED_GRIDS[function]


def test_a_function_by_table_reads_and_makes_8_bits():
    model = wrapped(lambda x: conv(conv(conv(x, "first", activation="gelu"), "second"), "last"))
    found = quantizers_in(model)
    assert found["first_quantizer"] == "first: PACT s8"
    assert found["first_gelu_quantizer"] == "first_gelu: PACT s8"
    assert found["first_gelu_requantizer"] == "first_gelu_quantizer: PACT s2*"


def test_all_tensors_of_a_squeeze_excite_block_have_8_bits():
    assert quantizers_in(standard(squeeze_excite)) == {
        "image_quantizer": "image: FixedRange s8",
        "first_relu_quantizer": "first_relu: PACT u8",
        "squeeze_quantizer": "squeeze: PACT u8",
        "reduce_relu_quantizer": "reduce_relu: PACT u8",
        "expand_quantizer": "expand: PACT s8",
        "expand_sigmoid_quantizer": "expand_sigmoid: FixedRange u8",
        "excite_quantizer": "excite: PACT u8",
        "last_quantizer": "last: PACT s8",
    }


def test_weights_of_a_squeeze_excite_block_have_the_target_width():
    found = weights_in(standard(squeeze_excite))
    assert [found["reduce.kernel"], found["expand.kernel"]] == ["SAWB 2*", "SAWB 2*"]


def test_a_dense_head_behind_a_mean_is_no_squeeze_excite_block():
    def body(x):
        x = layers.GlobalAveragePooling2D(name="mean")(conv(x, "first", activation="relu"))
        x = layers.Dense(4, activation="relu", name="second")(x)
        x = layers.Dense(4, activation="relu", name="third")(x)
        return layers.Dense(2, name="last")(x)

    assert quantizers_in(wrapped(body))["second_relu_quantizer"] == "second_relu: PACT u2*"


def test_a_batch_norm_before_its_convolution_reads_8_bits():
    def body(x):
        x = layers.MaxPooling2D(name="pool")(conv(x, "first", activation="relu"))
        x = layers.ReLU(name="norm_relu")(layers.BatchNormalization(name="norm")(x))
        return conv(conv(x, "second"), "last")

    found = quantizers_in(wrapped(body))
    assert found["first_relu_quantizer"] == "first_relu: PACT u8"
    assert found["norm_relu_quantizer"] == "norm_relu: PACT u2*"


def test_a_batch_norm_behind_a_convolution_that_is_read_elsewhere_reads_8_bits():
    def body(x):
        x = conv(x, "first")
        y = layers.ReLU(name="norm_relu")(layers.BatchNormalization(name="norm")(x))
        return conv(layers.Add(name="sum")([x, conv(y, "second")]), "last")

    model = wrapped(body)
    assert reads(model, "norm") == ["first_quantizer"]
    assert quantizers_in(model)["first_quantizer"] == "first: PACT s8"


def test_a_relu_behind_a_convolution_that_is_an_output_too_reads_8_bits():
    def body(x):
        x = conv(x, "first")
        return [x, conv(conv(layers.ReLU(name="relu")(x), "second"), "last")]

    assert reads(wrapped(body), "relu") == ["first_quantizer"]


def test_rescaling_reads_the_8_bit_input():
    def body(x):
        x = layers.Rescaling(1 / 255, name="rescale")(x)
        return conv(conv(x, "first", activation="relu"), "last")

    model = wrapped(body)
    assert reads(model, "rescale") == ["image_quantizer"]
    assert quantizers_in(model)["rescale_quantizer"] == "rescale: PACT s8"
