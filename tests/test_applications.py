"""The smallest classifier of each family in keras.applications: wraps and trains untouched."""

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
FLOAT_TYPES = {"ConvNeXtTiny": {"LayerNormalization", "LayerScale"}}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The activation ranges are not calibrated")
@pytest.mark.parametrize("name", SMALLEST)
def test_wraps_and_takes_a_training_step(name):
    side = SMALLEST[name]
    build = getattr(keras.applications, name)
    float_model = build(weights=None, input_shape=(side, side, 3), classes=10)
    model = speq_keras.wrap(float_model, 3, 3)
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    before = [np.copy(weight) for weight in model.get_weights()]
    losses = model.train_on_batch(
        np.random.default_rng(0).random((2, side, side, 3), "float32"),
        np.array([1, 2]),
        return_dict=True,
    )
    assert np.isfinite(list(losses.values())).all()
    changed = [
        not np.array_equal(was, now) for was, now in zip(before, model.get_weights(), strict=True)
    ]
    assert sum(changed) > len(changed) / 2
    plan = model.plan()
    assert {plan.row(row).type for row in plan.float_layers} == FLOAT_TYPES.get(name, set())
    keras.backend.clear_session()
