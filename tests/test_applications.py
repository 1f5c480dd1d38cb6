"""The smallest classifier of each family in keras.applications: wraps and trains untouched."""

import types

import keras
import numpy as np
import pytest

import speq_keras

# Name: side of the images in pixels. `examples/benchmarks/applications.py` runs the larger ones.
SMALLEST = {
    "ConvNeXtTiny": 32,
    "DenseNet121": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "NASNetMobile": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "VGG16": 32,
    "Xception": 71,
}
# What stays in float, by class.
FLOAT_TYPES = {
    "ConvNeXtTiny": {"LayerNormalization"},
    "InceptionResNetV2": set(),
}


def classifier(name):
    side = SMALLEST[name]
    build = getattr(keras.applications, name)
    return build(weights=None, input_shape=(side, side, 3), classes=10)


def images(model):
    """Returns two images, or more where the last maps have one pixel.

    Of two values per channel BatchNormalization makes -1 and 1 whatever they are: no gradient.
    """
    count = 4 if "V3Small" in model.name else 2
    return np.random.default_rng(0).random((count, *model.input_shape[1:]), "float32")


def trained(name, **compile_arguments):
    """Wraps, and takes one step of SPEQ."""
    model = speq_keras.wrap(classifier(name), 3, 3)
    # Adam moves every weight that has a gradient, however small.
    model.compile("adam", "sparse_categorical_crossentropy", **compile_arguments)
    # The moving statistics of a network that was never trained mean nothing.
    model.calibrate(images(model), training=True, verbose=0)
    before = [np.copy(variable) for variable in model.trainable_variables]
    losses = model.train_on_batch(
        images(model), np.arange(1, len(images(model)) + 1), return_dict=True
    )
    after = model.trainable_variables
    moved = [not np.array_equal(was, now) for was, now in zip(before, after, strict=True)]
    return types.SimpleNamespace(model=model, losses=losses, moved=moved, plan=model.plan())


@pytest.fixture(scope="module", params=SMALLEST)
def seen(request):
    # Not compiled: tracing takes ten times as long as the step.
    yield trained(request.param, run_eagerly=True)
    keras.backend.clear_session()


def test_losses_of_a_step_are_finite(seen):
    assert np.isfinite(list(seen.losses.values())).all()


def test_a_step_has_a_distillation_loss(seen):
    assert "distillation_loss" in seen.losses


def test_a_step_moves_most_weights(seen):
    assert sum(seen.moved) > len(seen.moved) / 2


def test_float_layers_are_listed_with_the_reason(seen, request):
    name = request.node.callspec.params["seen"]
    reasons = seen.plan.float_layers
    types_found = {seen.plan.row(layer).type for layer in reasons}
    assert types_found == FLOAT_TYPES.get(name, set())
    assert all(why.startswith("no quantize config for ") for why in reasons.values())


def test_all_convolutions_and_dense_layers_are_quantized(seen):
    weighted = [row for row in seen.plan.rows if "Conv" in row.type or row.type == "Dense"]
    assert {row.status for row in weighted} == {"quantized"}


def test_the_plan_counts_the_models_parameters(seen, request):
    name = request.node.callspec.params["seen"]
    assert seen.plan.totals["parameters"] == classifier(name).count_params()


def test_a_compiled_step_is_the_step_without_compiling():
    keras.utils.set_random_seed(0)
    eager = trained("MobileNetV3Small", run_eagerly=True)
    keras.utils.set_random_seed(0)
    compiled = trained("MobileNetV3Small", jit_compile=False)
    for name in eager.losses:
        # Sums in another order make some values round the other way, in 150 layers.
        np.testing.assert_allclose(eager.losses[name], compiled.losses[name], rtol=0.05)
