"""BatchNormalization with TensorFlow's fused kernel, against NumPy and Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fresh_process import result_of
from keras import layers

import speq_keras
from speq_keras import fused_batch_norm

SHAPE = (4, 3, 3, 5)  # 36 numbers per channel: a variance over n - 1 is 3 % too large


def images(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(3.0, 2.0, shape).astype("float32")


def pair(shape=SHAPE, **arguments):
    """Returns Keras' layer and the fused one, with the same random weights."""
    ours = fused_batch_norm.BatchNormalization(**arguments)
    theirs = layers.BatchNormalization(**arguments)
    for layer in (theirs, ours):
        layer.build(shape)
    random = np.random.default_rng(1)
    weights = [random.uniform(0.5, 2.0, w.shape).astype("float32") for w in theirs.weights]
    theirs.set_weights(weights)
    ours.set_weights(weights)
    return theirs, ours


def kernels_in(layer, x, **arguments):
    """Returns how often the traced call of `layer` runs the fused kernel."""
    traced = tf.function(lambda: layer(x, **arguments)).get_concrete_function()
    return sum(op.type == "FusedBatchNormV3" for op in traced.graph.get_operations())


# ---- the layer -------------------------------------------------------------------------------


def test_training_runs_the_fused_kernel():
    assert kernels_in(pair()[1], images(), training=True) == 1


def test_inference_runs_no_fused_kernel():
    assert kernels_in(pair()[1], images(), training=False) == 0


@pytest.mark.parametrize("arguments", [{}, {"epsilon": 1e-5}, {"scale": False}, {"center": False}])
def test_outputs_in_training_are_those_of_the_formula(arguments):
    _, layer = pair(**arguments)
    x = images().astype("float64")
    gamma = layer.gamma.numpy() if layer.scale else 1.0
    beta = layer.beta.numpy() if layer.center else 0.0
    deviation = np.sqrt(x.var(axis=(0, 1, 2)) + layer.epsilon)
    expected = gamma * (x - x.mean(axis=(0, 1, 2))) / deviation + beta
    # 1e-5: two float32 divisions and sums of 36 numbers around 3
    np.testing.assert_allclose(layer(images(), training=True), expected, atol=1e-5)


def test_moving_statistics_are_averages_of_the_biased_ones():
    _, layer = pair(momentum=0.9)
    mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    for seed in (0, 1):
        x = images(seed=seed).astype("float64")
        layer(images(seed=seed), training=True)
        mean = 0.9 * mean + 0.1 * x.mean(axis=(0, 1, 2))
        variance = 0.9 * variance + 0.1 * x.var(axis=(0, 1, 2))
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-6)


def test_the_variance_of_one_number_is_zero():
    layer = fused_batch_norm.BatchNormalization(momentum=0.0)
    layer(images((1, 1, 1, 5)), training=True)
    assert layer.moving_variance.numpy().tolist() == [0.0] * 5


def test_gradients_are_those_of_keras():
    x, direction = tf.constant(images()), tf.constant(images(seed=2))
    gradients = []
    for layer in pair():
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) * direction)
        variables = [layer.gamma.value, layer.beta.value]
        gradients.append(tape.gradient(loss, [x, *variables]))
    for theirs, ours in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)  # of sums of 36, up to 200


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_computes_in_float32_like_keras(dtype):
    x = images().astype("float16")
    theirs, ours = pair(dtype=dtype)
    expected, outputs = theirs(x, training=True), ours(x, training=True)
    assert outputs.dtype == expected.dtype
    step = 2.0**-7 if dtype == "mixed_bfloat16" else 2.0**-10
    np.testing.assert_allclose(
        tf.cast(outputs, "float32"), tf.cast(expected, "float32"), rtol=step, atol=1e-3
    )
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((6, 5), {}),
        ((4, 3, 5), {}),
        (SHAPE, {"axis": 1}),
        (SHAPE, {"dtype": "float64"}),
        (SHAPE, {"synchronized": True}),
    ],
)
def test_what_the_kernel_does_not_compute_is_left_to_keras(shape, arguments):
    theirs, ours = pair(shape, **arguments)
    assert kernels_in(ours, images(shape), training=True) == 0
    np.testing.assert_array_equal(
        ours(images(shape), training=True), theirs(images(shape), training=True)
    )


def test_a_mask_is_left_to_keras():
    mask = np.arange(36).reshape(SHAPE[:3]) % 2 == 0
    theirs, ours = pair()
    np.testing.assert_array_equal(
        ours(images(), training=True, mask=mask), theirs(images(), training=True, mask=mask)
    )


def test_a_frozen_layer_uses_its_moving_statistics():
    theirs, ours = pair()
    ours.trainable = theirs.trainable = False
    np.testing.assert_array_equal(ours(images(), training=True), theirs(images(), training=True))


def test_a_compiled_kernel_gives_the_same_statistics():
    layer, compiled = (pair()[1] for _ in range(2))
    layer(images(), training=True)
    tf.function(lambda x: compiled(x, training=True), jit_compile=True)(images())
    np.testing.assert_allclose(compiled.moving_mean, layer.moving_mean, rtol=1e-5)
    np.testing.assert_allclose(compiled.moving_variance, layer.moving_variance, rtol=1e-5)


def test_other_backends_compute_with_keras_own_code():
    code = """
import json, keras, numpy as np
from speq_keras import fused_batch_norm
x = np.random.default_rng(0).normal(size=(4, 3, 3, 5)).astype("float32")
results = []
for cls in (keras.layers.BatchNormalization, fused_batch_norm.BatchNormalization):
    layer = cls()
    y = layer(x, training=True)
    results.append([np.asarray(v).tolist() for v in (y, *[w.value for w in layer.weights])])
print(json.dumps(results[0] == results[1]))
"""
    assert result_of(code, KERAS_BACKEND="jax") is True


# ---- in a wrapped model ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = inputs
    for number in (1, 2):
        x = layers.Conv2D(4, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.BatchNormalization(momentum=0.5, name=f"norm{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="dense")(x))
    for layer in (model.get_layer("norm1"), model.get_layer("norm2")):
        random = np.random.default_rng(3)
        layer.set_weights([random.uniform(0.5, 1.5, 4).astype("float32") for _ in range(4)])
    return model


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    return random.random((16, 6, 6, 3), "float32"), random.integers(0, 3, 16)


def wrapped(network, data, fused=True, steps=0, **arguments):
    model = speq_keras.wrap(network, 8, 4, fused_batch_norm=fused, seed=0, **arguments)
    model.calibrate(data[0], verbose=0)
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    for _ in range(steps):
        model.train_on_batch(*data)
    return model


def norms_of(model):
    return [x for x in model.layers if isinstance(x, layers.BatchNormalization)]


def statistics_of(model):
    return [v.numpy() for n in norms_of(model) for v in (n.moving_mean, n.moving_variance)]


@pytest.mark.parametrize(
    ("fused", "cls"),
    [(True, fused_batch_norm.BatchNormalization), (False, layers.BatchNormalization)],
)
def test_wrap_fuses_where_it_is_asked_to(network, fused, cls):
    model = speq_keras.wrap(network, fused_batch_norm=fused)
    assert [type(layer) for layer in norms_of(model)] == [cls] * 2


def test_wrap_keeps_the_float_model_as_it_was(network):
    model = speq_keras.wrap(network, fused_batch_norm=True)
    assert [type(x) for x in norms_of(network)] == [layers.BatchNormalization] * 2
    assert [type(x) for x in norms_of(model.float_model())] == [layers.BatchNormalization] * 2


def test_the_plan_is_the_same_with_the_kernel(network):
    plain, fused = (speq_keras.wrap(network, fused_batch_norm=x).plan() for x in (False, True))
    assert str(fused) == str(plain)


def test_wrap_refuses_what_is_no_bool(network):
    with pytest.raises(TypeError, match=r"must be True or False\. Received: fused_batch_norm=1\."):
        speq_keras.wrap(network, fused_batch_norm=1)


def test_steps_of_speq_train_the_same_weights(network, data):
    # Fixed, because a draw of widths turns a last digit into another code only by chance.
    precision = speq_keras.precision.Fixed(8)
    models = [
        wrapped(network, data, fused, steps=2, teacher_precision=precision)
        for fused in (False, True)
    ]
    for theirs, ours in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_teacher_leaves_the_moving_statistics_alone(network, data):
    speq = wrapped(network, data, steps=1)
    plain = wrapped(network, data, steps=1, distillation=None)
    for theirs, ours in zip(statistics_of(plain), statistics_of(speq), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_step_moves_the_statistics(network, data):
    before, after = (statistics_of(wrapped(network, data, steps=steps)) for steps in (0, 1))
    assert all(np.abs(a - b).min() > 1e-3 for a, b in zip(after, before, strict=True))


def test_reestimation_sets_the_statistics_that_keras_layers_get(network, data):
    models = [wrapped(network, data, fused) for fused in (False, True)]
    assert [model.reestimate_batch_norm(data[0]) for model in models] == [2, 2]
    for theirs, ours in zip(*(statistics_of(model) for model in models), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_saved_model_loads_with_the_kernel(network, data, tmp_path):
    model = wrapped(network, data, steps=1)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert [type(x) for x in norms_of(loaded)] == [fused_batch_norm.BatchNormalization] * 2
    np.testing.assert_array_equal(
        loaded.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
    )


def test_the_exported_file_computes_the_trained_network(network, data, tmp_path):
    model = wrapped(network, data, steps=2)
    report = model.export_tflite(tmp_path / "m.tflite", data=data[0]).to_dict()
    assert report["proof"]["mismatches"] == 0


def test_a_norm_left_in_float_is_exported_in_float(data, tmp_path):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="second")(x))
    outputs = layers.Conv2D(4, 1)(x)
    model = speq_keras.wrap(
        keras.Model(inputs, outputs),
        distillation=None,
        skip=("second", "norm"),
        fused_batch_norm=True,
    )
    model.calibrate(data[0], verbose=0)
    report = model.export_tflite(tmp_path / "m.tflite", data=data[0]).to_dict()
    assert report["proof"]["mismatches"] == 0
