"""`wrap`: operations on codes, float readers, and the ends of a network."""

import inspect

import numpy as np
import pytest
from keras import layers, ops
from wrapped_networks import (
    average_pooling,
    chain,
    concatenations,
    conv,
    quantizers_in,
    reads,
    residual,
    standard,
    two_ends,
    weights_in,
    wrapped,
)

import speq_keras
from speq_keras.operations import TRAINING_ONLY

# ---- rule 3: operations on codes --------------------------------------------------------------


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


# ---- rule 4: float readers --------------------------------------------------------------------


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


# ---- outputs and inputs -----------------------------------------------------------------------


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
