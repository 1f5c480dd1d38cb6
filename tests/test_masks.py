"""Masks that Keras hands on behind the tensors: in the wrapped graph, in losses, in the file."""

import keras
import numpy as np
import pytest
from keras import layers

import speq_keras

TIME, WORDS, SIZE = 7, 11, 6


def word_data(count=24):
    words = np.random.default_rng(0).integers(0, WORDS, (count, TIME))
    words[:, 0] = 3
    return words


def network(body):
    keras.utils.set_random_seed(1)
    words = keras.Input((TIME,), dtype="int32")
    x = layers.Embedding(WORDS, SIZE, mask_zero=True, name="table")(words)
    return keras.Model(words, body(x))


def pooled(x):
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(x))


def attention(x):
    return layers.MultiHeadAttention(2, 4, name="mha")(x, x)


BODIES = {
    "mean": pooled,
    "attention": lambda x: pooled(attention(x)),
    "residual": lambda x: pooled(layers.Add()([x, attention(x)])),
    "causal": lambda x: pooled(layers.MultiHeadAttention(1, 4)(x, x, use_causal_mask=True)),
    "single head": lambda x: pooled(layers.Attention()([x, x])),
    "joined": lambda x: pooled(layers.Concatenate(axis=1)([x, layers.Dense(SIZE)(x)])),
    "per step": lambda x: pooled(layers.TimeDistributed(layers.Dense(4))(x)),
    "normalized": lambda x: pooled(layers.BatchNormalization()(x)),
}


@pytest.mark.parametrize("name", BODIES)
def test_masked_words_count_as_in_keras_and_in_the_file(name, tmp_path):
    float_model, words = network(BODIES[name]), word_data()
    model = speq_keras.wrap(float_model, 8, 8, distillation=None, weight_quantizer="minmax")
    model.calibrate(words, verbose=0)
    wanted, found = (m.predict(words, verbose=0) for m in (float_model, model))
    # Half a step at some ten roundings of 8 bits; without the mask it is a fifth and more.
    assert np.max(np.abs(found - wanted)) < 0.04 * np.ptp(wanted)
    unmasked = float_model.predict(np.where(words == 0, 4, words), verbose=0)
    assert np.max(np.abs(unmasked - wanted)) > 0.1 * np.ptp(wanted)
    report = model.export_tflite(tmp_path / "m.tflite", data=words)
    assert report.proof.holds
    assert report.agreement.distance < 1e-3 * report.agreement.span
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(words, verbose=0), found)


def test_a_mean_in_numpy():
    float_model, words = (
        network(lambda x: layers.GlobalAveragePooling1D()(layers.Dense(2)(x))),
        None,
    )
    words = word_data()
    table, kernel, bias = (keras.ops.convert_to_numpy(w) for w in float_model.weights)
    is_word = (words != 0)[..., None]
    wanted = ((table[words] @ kernel + bias) * is_word).sum(1) / is_word.sum(1)
    model = speq_keras.wrap(float_model, 8, None, distillation=None, weight_quantizer="minmax")
    # 127 levels for the largest weight of a channel, and as many for the table.
    np.testing.assert_allclose(model.predict(words, verbose=0), wanted, atol=0.01 * np.ptp(wanted))


def test_steps_of_one_value_are_masked(tmp_path):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((TIME, 3))
    float_model = keras.Model(inputs, pooled(layers.Dense(4)(layers.Masking(2.0)(inputs))))
    x = np.random.default_rng(0).normal(size=(16, TIME, 3)).astype("float32")
    x[:, 4:] = 2.0
    model = speq_keras.wrap(float_model, 8, 8, distillation=None, weight_quantizer="minmax")
    model.calibrate(x, verbose=0)
    wanted = float_model.predict(x, verbose=0)
    # Half a step at some ten roundings of 8 bits.
    assert np.max(np.abs(model.predict(x, verbose=0) - wanted)) < 0.04 * np.ptp(wanted)
    assert model.export_tflite(tmp_path / "m.tflite", data=x).proof.holds


@pytest.mark.parametrize("body", [attention, lambda x: layers.Dense(SIZE)(attention(x))])
def test_losses_look_at_the_mask_as_before(body):
    float_model, words = network(body), word_data()
    model = speq_keras.wrap(float_model, 8, None, distillation=None, weight_quantizer="minmax")
    targets = np.zeros((len(words), TIME, SIZE), "float32")
    # Where nothing is looked at, Keras' attention makes something of nothing: no loss sees it.
    losses = []
    for each in (float_model, model):
        each.compile(loss="mse")
        losses.append(each.evaluate(words, targets, verbose=0))
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    shown = float_model.predict(words, verbose=0)
    assert np.mean(shown**2) != pytest.approx(losses[0], rel=0.05)


def test_the_file_has_no_mask_behind_its_tensors():
    model = speq_keras.wrap(network(lambda x: pooled(layers.Multiply()([x, x]))), 8, 8)
    assert "its inputs carry masks" in str(model.plan().file)
