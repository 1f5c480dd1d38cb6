"""`wrap`: which quantizers stand where, and that nothing else changes."""

import copy
import functools
import inspect
import json
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras
from speq_keras import QuantizeConfig, QuantizedLayer, configs
from speq_keras.graph import read_graph
from speq_keras.operations import TRAINING_ONLY
from speq_keras.quantizers import PACT, ActivationQuantizer, MinMax

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


# ---- rule 1: weighted layers -----------------------------------------------------------------


def chain(x):
    x = conv(x, "first", use_bias=False)
    x = layers.ReLU(name="first_relu")(layers.BatchNormalization(name="norm")(x))
    x = conv(x, "second", activation="relu")
    x = conv(x, "third", activation="relu")
    return layers.Dense(3, activation="softmax", name="last")(layers.Flatten(name="flat")(x))


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


# ---- rule 2: operations that read 8 bits -----------------------------------------------------


def residual(x):
    x = conv(x, "first", activation="relu")
    y = conv(conv(x, "second", activation="relu"), "third")
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, y]))
    return conv(conv(x, "fourth", activation="relu"), "last")


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


def squeeze_excite(x):
    x = conv(x, "first", activation="relu")
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(2, 1, activation="relu", name="reduce")(gate)
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="expand")(gate)
    return conv(layers.Multiply(name="excite")([x, gate]), "last")


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


# ---- rule 3: operations on codes -------------------------------------------------------------

CARRYING = {
    "max pooling": layers.MaxPooling2D(name="carry"),
    "reshape": layers.Reshape((4, 16, 4), name="carry"),
    "permute": layers.Permute((2, 1, 3), name="carry"),
    "cropping": layers.Cropping2D(1, name="carry"),
    "zero padding": layers.ZeroPadding2D(1, name="carry"),
    "nearest upsampling": layers.UpSampling2D(name="carry"),
    "dropout": layers.Dropout(0.5, name="carry"),
    "spatial dropout": layers.SpatialDropout2D(0.5, name="carry"),
    "noise": layers.GaussianNoise(0.5, name="carry"),
    "augmentation": layers.RandomFlip(name="carry"),
    "a linear activation": layers.Activation("linear", name="carry"),
    "a slice": lambda x: x[:, 1:, 1:],
    "a pad": lambda x: ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]),
    "a transposition": lambda x: ops.transpose(x, (0, 2, 1, 3)),
}


@pytest.mark.parametrize("operation", CARRYING.values(), ids=CARRYING)
def test_operations_that_copy_or_order_codes_have_no_quantizer(operation):
    def body(x):
        x = operation(conv(x, "first", activation="relu"))
        return conv(conv(x, "second"), "last")

    assert quantizers_in(wrapped(body)) == {
        "image_quantizer": "image: FixedRange s8",
        "first_relu_quantizer": "first_relu: PACT u2*",
        "second_quantizer": "second: PACT s8",
        "last_quantizer": "last: PACT s8",
    }


RATES = {
    "ActivityRegularization": {"l2": 0.1},
    "RandomTranslation": {"height_factor": 0.5, "width_factor": 0.5},
    "RandomPosterization": {"factor": 2},
    **dict.fromkeys(
        "AugMix RandAugment RandomColorJitter RandomElasticTransform RandomErasing RandomFlip "
        "RandomGaussianBlur RandomGrayscale RandomInvert RandomPerspective RandomShear".split(),
        {},
    ),
}


@pytest.mark.parametrize("name", TRAINING_ONLY)
def test_layers_of_training_alone_pass_their_input_on_in_inference(name):
    parameters = inspect.signature(getattr(layers, name)).parameters
    first = next(iter(parameters))
    layer = getattr(layers, name)(**RATES.get(name, {first: 0.5}))
    shape = {"1D": (3, 8, 4), "3D": (3, 8, 4, 4, 3)}.get(name[-2:], (3, 8, 8, 3))
    x = np.random.default_rng(0).uniform(-50, 300, shape).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(x, training=False)), x)


def test_codes_are_carried_through_several_operations():
    def body(x):
        x = conv(x, "first", activation="relu")
        x = layers.Dropout(0.5)(layers.ZeroPadding2D(name="pad")(layers.MaxPooling2D()(x)))
        return conv(conv(x, "second"), "last")

    assert list(quantizers_in(wrapped(body))) == [
        "image_quantizer",
        "first_relu_quantizer",
        "second_quantizer",
        "last_quantizer",
    ]


def average_pooling(x):
    x = layers.AveragePooling2D(2, name="average")(conv(x, "first", activation="relu"))
    return conv(conv(x, "second"), "last")


def test_average_pooling_is_rounded_again_by_its_inputs_quantizer():
    found = quantizers_in(standard(average_pooling))
    assert found["first_relu_quantizer"] == "first_relu, average: PACT u2*"


def test_bilinear_upsampling_is_rounded_again_by_its_inputs_quantizer():
    def body(x):
        x = conv(x, "first", activation="relu")
        x = layers.UpSampling2D(interpolation="bilinear", name="up")(x)
        return conv(conv(x, "second"), "last")

    assert quantizers_in(wrapped(body))["first_relu_quantizer"] == "first_relu, up: PACT u2*"


def test_the_reader_of_an_average_pooling_reads_rounded_values():
    assert reads(standard(average_pooling), "second") == ["first_relu_quantizer"]


def test_an_average_pooling_that_is_an_output_is_rounded_again():
    model = wrapped(lambda x: layers.AveragePooling2D(2, name="average")(conv(x, "first")))
    assert quantizers_in(model)["first_quantizer"] == "first, average: PACT s8"


def concatenations(x):
    x = conv(x, "first", activation="relu")
    x = layers.Concatenate(name="join_1")([x, conv(x, "second", activation="relu")])
    x = layers.Concatenate(name="join_2")([x, conv(x, "third", activation="relu")])
    return conv(conv(x, "fourth", activation="relu"), "last")


def test_a_chain_of_concatenations_shares_one_quantizer():
    assert quantizers_in(standard(concatenations)) == {
        "image_quantizer": "image: FixedRange s8",
        "first_relu_quantizer": "first_relu, second_relu, third_relu: PACT u2*",
        "fourth_relu_quantizer": "fourth_relu: PACT u8",
        "last_quantizer": "last: PACT s8",
    }


def test_a_concatenation_of_signed_and_unsigned_tensors_is_signed():
    def body(x):
        x = conv(x, "first", activation="relu")
        x = layers.Concatenate(name="join")([x, conv(x, "second")])
        return conv(conv(x, "third", activation="relu"), "last")

    found = quantizers_in(wrapped(body))
    assert found["first_relu_quantizer"] == "first_relu, second: PACT s2*"


def test_a_second_quantizer_is_unsigned_where_its_tensor_is_though_the_group_is_signed():
    def body(x):
        x = conv(x, "first", activation="relu")
        x = layers.Concatenate(name="join")([x, conv(x, "second", activation="tanh")])
        return conv(conv(x, "third", activation="relu"), "last")

    assert quantizers_in(wrapped(body))["first_relu_requantizer"] == (
        "first_relu_quantizer: PACT u2*"
    )


def test_a_sigmoid_in_a_concatenation_is_rounded_to_its_own_grid_first():
    def body(x):
        x = conv(x, "first", activation="relu")
        x = layers.Concatenate(name="join")([x, conv(x, "second", activation="sigmoid")])
        return conv(conv(x, "third"), "last")

    found = quantizers_in(wrapped(body))
    assert found["second_sigmoid_quantizer"] == "second_sigmoid: FixedRange u8"
    assert found["first_relu_quantizer"] == "first_relu, second_sigmoid_quantizer: PACT u8"


# ---- rule 4: float readers -------------------------------------------------------------------


def test_a_skipped_layer_beside_a_quantized_one_reads_8_bits():
    def body(x):
        x = conv(x, "first", activation="relu")
        return conv(layers.Concatenate()([conv(x, "second"), conv(x, "third")]), "last")

    model = wrapped(body, skip="third")
    assert reads(model, "third") == ["first_relu_quantizer"]
    assert quantizers_in(model)["first_relu_quantizer"] == "first_relu: PACT u8"


def test_what_an_integer_layer_makes_reaches_a_skipped_layer_at_8_bits():
    model = standard(chain, skip="second")
    assert reads(model, "second") == ["first_relu_quantizer"]
    assert quantizers_in(model)["first_relu_quantizer"] == "first_relu: PACT u8"


def test_what_a_float_layer_makes_reaches_a_skipped_layer_as_floats():
    model = standard(chain, skip=("second", "third"))
    assert reads(model, "third") == ["second"]


def test_what_a_skipped_layer_makes_is_rounded_to_8_bits_first():
    found = quantizers_in(standard(chain, skip="second"))
    assert found["second_quantizer"] == "second: PACT u8"
    assert found["second_requantizer"] == "second_quantizer: PACT u2*"


def test_skipping_an_outer_layer_does_not_move_the_boundary():
    assert weights_in(standard(chain, skip="first"))["second.kernel"] == "SAWB 2*"


def test_the_softmax_of_a_skipped_layer_is_taken_out_for_the_teacher():
    assert reads(standard(chain, skip="last"), "last_softmax") == ["last"]


def test_a_model_with_a_skipped_last_layer_is_distilled():
    model = wrapped(chain, skip="last")
    model.compile("sgd", "sparse_categorical_crossentropy")
    (head,) = model.training_plan().heads
    assert head.logits is model.get_layer("last").output


def test_nothing_behind_a_skipped_last_layer_is_rounded():
    assert "last_quantizer" not in quantizers_in(standard(chain, skip="last"))


# ---- outputs and inputs ----------------------------------------------------------------------


def test_logits_are_rounded_to_8_bits():
    model = wrapped(lambda x: conv(conv(x, "first", activation="relu"), "last"))
    assert [layer.name for layer in model.layers][-1] == "last_quantizer"


@pytest.mark.parametrize("body", [chain, residual])
def test_without_boundary_bits_what_leaves_the_model_is_float(body):
    assert "last_quantizer" not in quantizers_in(wrapped(body, boundary_bits=None))


def test_a_softmax_at_the_end_has_no_quantizer_behind_it():
    assert [layer.name for layer in standard(chain).layers][-1] == "last_softmax"


def test_an_output_that_is_read_at_the_target_width_has_8_bits():
    def body(x):
        x = conv(x, "first", activation="relu")
        return [x, conv(conv(x, "second", activation="relu"), "last")]

    found = quantizers_in(wrapped(body))
    assert found["first_relu_quantizer"] == "first_relu: PACT u8"
    assert found["first_relu_requantizer"] == "first_relu_quantizer: PACT u2*"


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


def test_every_input_has_a_quantizer():
    found = quantizers_in(speq_keras.wrap(two_ends(), 2, 2))
    assert found["left_quantizer"] == "left: FixedRange s8"
    assert found["right_quantizer"] == "right: FixedRange s8"


def test_every_output_layer_is_an_outer_layer():
    found = weights_in(speq_keras.wrap(two_ends(), 2, 2))
    assert {name for name, text in found.items() if text.startswith("SAWB")} == {"middle.kernel"}


def test_the_structure_of_inputs_and_outputs_is_that_of_the_float_model():
    model = speq_keras.wrap(two_ends(), 2, 2)
    assert (sorted(model.input), sorted(model.output)) == (["left", "right"], ["classes", "score"])


def test_an_integer_input_has_no_quantizer():
    def body(x):
        x = layers.Embedding(10, 4, name="embed")(x)
        return layers.Dense(2, name="last")(layers.Dense(4, activation="relu", name="middle")(x))

    assert quantizers_in(wrapped(body, (5,), "int32")) == {
        "embed_quantizer": "embed: PACT s2*",
        "middle_relu_quantizer": "middle_relu: PACT u8",
        "last_quantizer": "last: PACT s8",
    }


# ---- layers with weights ---------------------------------------------------------------------


def separable(x):
    x = layers.SeparableConv2D(4, 3, activation="relu", name="first")(x)
    x = layers.SeparableConv2D(4, 3, activation="relu", name="second")(x)
    return conv(x, "last")


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


# ---- at the float setting --------------------------------------------------------------------


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


# ---- what is carried over --------------------------------------------------------------------


def test_float_weights_are_carried_over_bit_for_bit():
    float_model = with_random_statistics(network(chain))
    model = speq_keras.wrap(float_model, 2, 2)
    for layer in float_model.layers:
        mine = model.get_layer(layer.name)
        mine = mine.layer if isinstance(mine, QuantizedLayer) else mine
        for a, b in zip(mine.get_weights(), layer.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_weights_of_a_separable_convolution_are_carried_over_to_its_parts():
    float_model = network(separable)
    model = speq_keras.wrap(float_model, 2, 2)
    depthwise, pointwise, bias = float_model.get_layer("second").get_weights()
    np.testing.assert_array_equal(model.get_layer("second_depthwise").layer.kernel, depthwise)
    np.testing.assert_array_equal(model.get_layer("second").layer.kernel, pointwise)
    np.testing.assert_array_equal(model.get_layer("second").layer.bias, bias)


def test_weights_of_nested_models_are_carried_over():
    float_model = nested()
    model = speq_keras.wrap(float_model, 2, 2)
    inner = float_model.get_layer("outer").get_layer("inner").get_layer("dense")
    np.testing.assert_array_equal(model.get_layer("outer.inner.dense").layer.kernel, inner.kernel)


def test_trained_weight_ranges_start_from_the_float_weights():
    model = wrapped(chain, weight_quantizer="lsq")
    layer = model.get_layer("second")
    # 2 mean|w| / sqrt(Q_P), and Q_P = 1 at two bits
    start = 2 * np.abs(np.asarray(layer.layer.kernel)).mean()
    np.testing.assert_allclose(float(ops.max(layer.quantizers["kernel"].scale)), start, rtol=1e-6)


def test_dtype_policies_are_carried_over():
    def body(x):
        x = layers.Conv2D(4, 3, activation="relu", dtype="mixed_bfloat16", name="first")(x)
        return layers.Conv2D(2, 3, name="last")(x)

    model = wrapped(body)
    names = ["first", "last"]
    assert [model.get_layer(n).layer.dtype_policy.name for n in names] == [
        "mixed_bfloat16",
        "float32",
    ]


def test_an_activity_regularizer_regularizes_what_it_did_before():
    def body(x):
        x = layers.Conv2D(4, 3, activation="relu", activity_regularizer="l2", name="first")(x)
        x = layers.SeparableConv2D(4, 3, activity_regularizer="l1", name="second")(x)
        x = layers.Conv2D(4, 1, activation="swish", activity_regularizer="l2", name="third")(x)
        return layers.Conv2D(2, 1, name="last")(x)

    float_model = network(body)
    model = at_float(speq_keras.wrap(float_model, 2, 2, boundary_bits=None))
    inputs = example_for(float_model)
    float_model(inputs), model(inputs)
    np.testing.assert_allclose(
        sorted(map(float, model.losses)), sorted(map(float, float_model.losses)), rtol=1e-5
    )


def test_regularizers_and_constraints_of_a_separable_convolution_go_to_its_parts():
    def body(x):
        arguments = {
            f"{part}_{kind}": value
            for part in ("depthwise", "pointwise", "bias")
            for kind, value in (("regularizer", "l2"), ("constraint", "non_neg"))
        }
        return conv(layers.SeparableConv2D(4, 3, name="first", **arguments)(x), "last")

    model = wrapped(body)
    depthwise, pointwise = (model.get_layer(n).layer for n in ("first_depthwise", "first"))
    variables = [depthwise.kernel, pointwise.kernel, pointwise.bias]
    assert all(v.regularizer is not None and v.constraint is not None for v in variables)


def test_frozen_layers_stay_frozen():
    float_model = network(chain)
    float_model.get_layer("second").trainable = False
    model = speq_keras.wrap(float_model, 2, 2)
    assert [w.path for w in model.get_layer("second").trainable_weights] == []


def test_a_wrapped_sequential_takes_what_the_sequential_took():
    float_model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)])
    model = speq_keras.wrap(float_model, 2, 2, distillation=None)
    assert model(np.ones((5, 4), "float32")).shape == (5, 2)


def test_the_model_has_the_float_models_name():
    assert standard(chain).name == "network"


def test_the_model_takes_another_name():
    assert wrapped(chain, name="quantized").name == "quantized"


# ---- the float model is not changed ----------------------------------------------------------


def snapshot(model):
    """Config, weights and number of calls of all layers."""
    return {
        "config": json.dumps(model.get_config(), sort_keys=True, default=str),
        "weights": [np.array(w) for w in model.get_weights()],
        # Private, and the only place where Keras keeps the calls of a layer.
        "calls": {layer.name: len(layer._inbound_nodes) for layer in model.layers},
        "trainable": [v.path for v in model.trainable_variables],
    }


@pytest.fixture(scope="module")
def after_training():
    """A float model with everything in it: before, and after its wrapped model was trained."""
    float_model = with_random_statistics(network(chain))
    inputs = example_for(float_model)
    before = snapshot(float_model), np.array(float_model(inputs))
    model = speq_keras.wrap(float_model, 2, 2)
    model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    model.calibrate(inputs, verbose=0)
    model.train_on_batch(inputs, np.array([0, 1, 2]))
    return before, (snapshot(float_model), np.array(float_model(inputs)))


@pytest.mark.parametrize("what", ["config", "calls", "trainable"])
def test_wrapping_and_training_leave_the_float_model_alone(after_training, what):
    (before, _), (after, _) = after_training
    assert after[what] == before[what]


def test_wrapping_and_training_leave_the_float_weights_alone(after_training):
    (before, _), (after, _) = after_training
    for a, b in zip(after["weights"], before["weights"], strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrapping_and_training_leave_the_float_outputs_alone(after_training):
    (_, before), (_, after) = after_training
    np.testing.assert_array_equal(after, before)


def test_a_float_model_is_wrapped_twice():
    float_model = network(chain)
    two, four = (speq_keras.wrap(float_model, bits, bits) for bits in (2, 4))
    assert (weights_in(two)["second.kernel"], weights_in(four)["second.kernel"]) == (
        "SAWB 2*",
        "SAWB 4*",
    )


# ---- skip and configs ------------------------------------------------------------------------


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


# ---- layers of one's own ---------------------------------------------------------------------


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
        wrapped(custom(WithoutConfig(ops.relu, name="own")))


# ---- quantized models, wrapped further -------------------------------------------------------


def feature_extractor():
    """A trained, calibrated SPEQ model up to its last hidden layer."""
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, activation="relu", name="first")(inputs)
    x = layers.Dense(8, activation="relu", name="second")(x)
    x = layers.Dense(8, activation="relu", name="third")(x)
    float_model = keras.Model(inputs, layers.Dense(4, activation="softmax", name="last")(x))
    model = speq_keras.wrap(float_model, 3, 3, seed=0)
    model.calibrate(example_for(model, 16), verbose=0)
    return keras.Model(model.input, model.get_layer("third_relu_quantizer").output, name="base")


def extended(base, trainable=True):
    base.trainable = trainable
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, activation="relu", name="new")(base(inputs))
    return keras.Model(inputs, layers.Dense(2, activation="softmax", name="head")(x))


@pytest.fixture(scope="module")
def base():
    return feature_extractor()


@pytest.fixture
def further(base):
    return speq_keras.wrap(extended(base), 2, 2, seed=0)


def test_a_model_cut_out_of_a_wrapped_one_is_a_plain_functional(base):
    assert type(base) is type(network(chain))


def test_old_layers_keep_their_weight_widths(further):
    assert weights_in(further) == {
        "base.first.kernel": "MinMax 8 per channel",
        "base.second.kernel": "SAWB 3*",
        "base.third.kernel": "SAWB 3*",
        "new.kernel": "SAWB 2*",
        "head.kernel": "MinMax 8 per channel",
    }


def test_old_tensors_keep_their_quantizers_and_new_ones_get_theirs(further):
    assert quantizers_in(further) == {
        "base.x_quantizer": "x: FixedRange s8",
        "base.first_relu_quantizer": "base.first_relu: PACT u3*",
        "base.second_relu_quantizer": "base.second_relu: PACT u3*",
        "base.third_relu_quantizer": "base.third_relu: PACT u8",
        "base.third_relu_requantizer": "base.third_relu_quantizer: PACT u2*",
        "new_relu_quantizer": "new_relu: PACT u8",
        "head_quantizer": "head: PACT s8",
    }


def test_old_quantizers_keep_their_ranges(base, further):
    for layer in base.layers:
        if isinstance(layer, ActivationQuantizer):
            assert further.get_layer(f"base.{layer.name}").grid() == layer.grid()


def test_old_quantizers_stay_calibrated_and_new_ones_are_not(further):
    calibrated = [q.name for q in further.activation_quantizers if q.is_calibrated]
    assert all(name.startswith("base.") for name in calibrated)
    assert len(calibrated) == 4


def test_the_teacher_draws_in_old_quantizers_too(further):
    assert [q.name for q in further.target_quantizers] == [
        "base.first_relu_quantizer",
        "base.second_relu_quantizer",
        "base.third_relu_requantizer",
    ]


def test_old_layers_compute_what_they_computed(base, further):
    inputs = example_for(base)
    again = keras.Model(further.input, further.get_layer("base.third_relu_quantizer").output)
    np.testing.assert_array_equal(again(inputs), base(inputs))


def test_a_width_set_at_run_time_is_the_old_width():
    model = wrapped(chain)
    model.set_bits(weights=4, activations=5)
    cut = keras.Model(model.input, model.get_layer("third_relu").output)
    again = speq_keras.wrap(keras.Model(cut.input, conv(cut.output, "new")), 2, 2)
    assert weights_in(again)["second.kernel"] == "SAWB 4*"
    assert quantizers_in(again)["first_relu_quantizer"] == "first_relu: PACT u5*"


def test_an_old_concatenation_keeps_its_one_quantizer():
    model = standard(concatenations)
    cut = keras.Model(model.input, model.get_layer("join_2").output)
    x = layers.GlobalAveragePooling2D(name="mean")(cut.output)
    again = speq_keras.wrap(keras.Model(cut.input, layers.Dense(2, name="new")(x)), 2, 2)
    found = quantizers_in(again)
    assert found["first_relu_quantizer"] == "first_relu, second_relu, third_relu: PACT u2*"
    assert reads(again, "mean") == ["join_2"]


def test_an_old_average_pooling_is_rounded_once():
    model = standard(average_pooling)
    cut = keras.Model(model.input, model.get_layer("second_quantizer").output)
    again = speq_keras.wrap(keras.Model(cut.input, conv(cut.output, "new")), 2, 2)
    assert quantizers_in(again)["first_relu_quantizer"] == "first_relu, average: PACT u2*"


def test_a_frozen_extractor_is_bit_equal_after_training(base):
    model = speq_keras.wrap(extended(base, trainable=False), 2, 2, seed=0)
    base.trainable = True
    old = [v for layer in base.layers[1:] for v in model.get_layer(f"base.{layer.name}").variables]
    before = values_of(old)
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    with pytest.warns(UserWarning, match="not calibrated"):
        model.fit(example_for(model, 8), np.arange(8) % 2, epochs=2, batch_size=4, verbose=0)
    for a, b in zip(values_of(old), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_new_layers_over_a_frozen_extractor_are_trained(base):
    model = speq_keras.wrap(extended(base, trainable=False), 2, 2, distillation=None)
    base.trainable = True
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {
        "base.third_relu_requantizer",
        "new",
        "new_relu_quantizer",
        "head",
        "head_quantizer",
    }


def test_a_graph_with_more_than_a_thousand_operations_in_a_row_is_wrapped_and_loaded(tmp_path):
    # Python stops functions that call themselves a thousand times, as Keras does on such a graph.
    limit = sys.getrecursionlimit()
    x = y = keras.Input((2,))
    for _ in range(limit // 3 + 50):
        y = layers.Dense(2, activation="relu")(y)
    model = speq_keras.wrap(keras.Model(x, y), 3, 3, distillation=None)
    assert len(model.layers) > limit
    model.save(tmp_path / "deep.keras")
    assert len(keras.saving.load_model(tmp_path / "deep.keras").layers) == len(model.layers)
    assert sys.getrecursionlimit() == limit


# ---- layers as activation functions ------------------------------------------------------------


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
