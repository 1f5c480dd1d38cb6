"""`QuantizedLayer`: at width None nothing but the quantizers themselves tells it from its layer."""

import contextlib
import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from speq_keras.configs import REGISTRY, registered_config
from speq_keras.layers import QuantizedLayer, weight_quantizers
from speq_keras.quantizers import SAWB, MinMax, WeightQuantizer

pytestmark = pytest.mark.every_backend

POLICIES = [
    "float32",
    "mixed_bfloat16",
    "mixed_float16",
]

# Every layer class with a config: arguments, input shape without the batch, and the argument that
# regularizes its kernel.
CASES = {
    layers.Conv1D: ({"filters": 4, "kernel_size": 3}, (8, 3), "kernel_regularizer"),
    layers.Conv2D: ({"filters": 4, "kernel_size": 3}, (6, 6, 3), "kernel_regularizer"),
    layers.Conv3D: ({"filters": 4, "kernel_size": 2}, (4, 4, 4, 3), "kernel_regularizer"),
    layers.Dense: ({"units": 4}, (5,), "kernel_regularizer"),
    layers.DepthwiseConv1D: ({"kernel_size": 3}, (8, 3), "depthwise_regularizer"),
    layers.DepthwiseConv2D: (
        {"kernel_size": 3, "depth_multiplier": 2},
        (6, 6, 3),
        "depthwise_regularizer",
    ),
    layers.Conv1DTranspose: ({"filters": 4, "kernel_size": 3}, (8, 3), "kernel_regularizer"),
    layers.Conv2DTranspose: ({"filters": 4, "kernel_size": 3}, (6, 6, 3), "kernel_regularizer"),
    layers.SeparableConv1D: ({"filters": 4, "kernel_size": 3}, (8, 3), "pointwise_regularizer"),
    layers.SeparableConv2D: ({"filters": 4, "kernel_size": 3}, (6, 6, 3), "pointwise_regularizer"),
    layers.EinsumDense: (
        {"equation": "abc,cde->abde", "output_shape": (None, 2, 4), "bias_axes": "de"},
        (5, 3),
        "kernel_regularizer",
    ),
    layers.Embedding: ({"input_dim": 10, "output_dim": 4}, (5,), "embeddings_regularizer"),
}
if hasattr(layers, "ReversibleEmbedding"):
    CASES[layers.ReversibleEmbedding] = CASES[layers.Embedding]
EVERY_CLASS = pytest.mark.parametrize("layer_class", CASES, ids=lambda cls: cls.__name__)
EVERY_POLICY = pytest.mark.parametrize("policy", POLICIES)

# Layers with state of their own: arguments, inputs, and what is quantized in them.
STATEFUL = {
    "BatchNormalization": (lambda: layers.BatchNormalization(), [(4,)], ("gamma",)),
    "SpectralNormalization": (
        lambda: layers.SpectralNormalization(layers.Dense(4, kernel_initializer=initializer())),
        [(5,)],
        ("layer.bias",),
    ),
    "LSTM with dropout": (
        lambda: layers.LSTM(
            3,
            dropout=0.5,
            recurrent_dropout=0.5,
            seed=1,
            kernel_initializer=initializer(),
            recurrent_initializer=initializer(),
        ),
        [(5, 4)],
        ("cell.kernel", "cell.recurrent_kernel"),
    ),
    "MultiHeadAttention with two inputs": (
        lambda: layers.MultiHeadAttention(
            2, 3, dropout=0.5, seed=1, kernel_initializer=initializer()
        ),
        [(5, 4), (6, 4)],
        ("query_dense.kernel", "output_dense.kernel"),
    ),
}
EVERY_STATEFUL = pytest.mark.parametrize("case", STATEFUL.values(), ids=STATEFUL)


def initializer():
    return keras.initializers.RandomNormal(seed=7)


def example(shape, count=4):
    return np.random.default_rng(5).normal(size=(count, *shape)).astype("float32")


def inputs_of(layer_class):
    if issubclass(layer_class, layers.Embedding):
        return np.array([[1, 2, 3, 4, 0], [5, 6, 7, 8, 9]])
    return example(CASES[layer_class][1])


def make(layer_class):
    """The layer with the same weights every time, and regularizers on its kernel and outputs."""
    arguments, shape, regularizer = CASES[layer_class]
    # Keras cannot add up a half precision loss, that of the outputs, and the kernel's in float32.
    mixed = keras.config.dtype_policy().name.startswith("mixed")
    activity = {} if mixed else {"activity_regularizer": "l2"}
    layer = layer_class(**arguments, **{regularizer: "l2"}, **activity)
    layer.build((None, *shape))
    rng = np.random.default_rng(3)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    return layer


def quantized(layer, attributes, bits=None):
    quantizers = {name: SAWB(bits=bits, has_target_width=True) for name in attributes}
    return QuantizedLayer(layer, quantizers)


def wrapped(layer_class, bits=None):
    layer = make(layer_class)
    return quantized(layer, registered_config(layer).weights, bits)


def network(layer, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, layer(*inputs))


def step(model, inputs, compiled=False):
    # Left alone, Keras scales float16 losses by 2**15 and skips the first step, which overflows.
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
    model.compile(optimizer, "mse", run_eagerly=not compiled)
    model.train_on_batch(inputs, np.ones_like(model(inputs), dtype="float32"))


def values_of(variables):
    # Copies: NumPy would share the memory that the next assignment overwrites.
    return [np.array(ops.convert_to_numpy(variable.value)) for variable in variables]


def state_of(layer):
    """All variables: weights, moving statistics, seeds."""
    return values_of(layer.variables)


def assert_same_state(mine, theirs):
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        # The same numbers, which a compiled step may add up in another order; seeds are equal.
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@contextlib.contextmanager
def dtype_policy(policy):
    """A policy for models and layers alike, as users set it."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class Recorder(MinMax):
    """Remembers what it was given."""

    def call(self, weights):
        self.seen = weights
        return super().call(weights)


# ---- every layer class with a config ---------------------------------------------------------


@functools.cache
def seen_of(layer_class, policy, is_wrapped):
    """What a network with the layer, or with the wrapped layer at width None, does."""
    with dtype_policy(policy):
        layer = wrapped(layer_class) if is_wrapped else make(layer_class)
        inner = layer.layer if is_wrapped else layer
        model, inputs = network(layer, CASES[layer_class][1]), inputs_of(layer_class)
        dtypes, call = [], inner.call
        inner.call = lambda x, **kwargs: dtypes.append(x.dtype.name) or call(x, **kwargs)
        outputs = model(inputs)
        inner.call = call
        losses = sorted(float(loss) for loss in model.losses)
        step(model, inputs)
        return types.SimpleNamespace(
            outputs=outputs, dtypes=dtypes, losses=losses, after_step=state_of(inner)
        )


@functools.cache
def two_bit_step(layer_class, policy):
    """A step at two bits: weights before and after, and what the quantizers were given."""
    with dtype_policy(policy):
        layer = make(layer_class)
        names = registered_config(layer).weights
        quantizers = {name: Recorder(bits=2) for name in names}
        model = network(QuantizedLayer(layer, quantizers), CASES[layer_class][1])
        model(inputs_of(layer_class))
        given = [quantizers[name].seen for name in names]
        given = [(x.dtype, np.array(ops.convert_to_numpy(x))) for x in given]
        kernels = [getattr(layer, name) for name in names]
        before = values_of(kernels)
        step(model, inputs_of(layer_class))
        after = values_of(kernels)
        return types.SimpleNamespace(given=given, before=before, after=after)


def test_the_cases_cover_the_registry():
    recurrent = {layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN}  # see test_recurrent.py
    assert set(CASES) | recurrent == {
        cls for cls in REGISTRY if cls.__module__.startswith("keras.")
    }


@EVERY_POLICY
@EVERY_CLASS
def test_outputs_are_those_of_the_layer(layer_class, policy):
    plain, mine = (seen_of(layer_class, policy, is_wrapped) for is_wrapped in (False, True))
    np.testing.assert_array_equal(mine.outputs, plain.outputs)


@EVERY_POLICY
@EVERY_CLASS
def test_outputs_have_the_dtype_of_the_layers_outputs(layer_class, policy):
    plain, mine = (seen_of(layer_class, policy, is_wrapped) for is_wrapped in (False, True))
    assert mine.outputs.dtype == plain.outputs.dtype


@EVERY_POLICY
@EVERY_CLASS
def test_the_layer_computes_in_the_dtype_in_which_it_would_alone(layer_class, policy):
    plain, mine = (seen_of(layer_class, policy, is_wrapped) for is_wrapped in (False, True))
    assert mine.dtypes == plain.dtypes


@EVERY_POLICY
@EVERY_CLASS
def test_weights_after_a_step_are_those_of_the_layer(layer_class, policy):
    plain, mine = (seen_of(layer_class, policy, is_wrapped) for is_wrapped in (False, True))
    assert_same_state(mine.after_step, plain.after_step)


@EVERY_POLICY
@EVERY_CLASS
def test_regularizers_give_the_losses_of_the_layer(layer_class, policy):
    plain, mine = (seen_of(layer_class, policy, is_wrapped) for is_wrapped in (False, True))
    assert mine.losses == plain.losses


@EVERY_CLASS
def test_there_is_one_loss_for_the_kernel_and_one_for_the_outputs(layer_class):
    assert len(seen_of(layer_class, "float32", True).losses) == 2


@pytest.mark.tensorflow
@EVERY_POLICY
@EVERY_CLASS
def test_the_weight_quantizer_is_given_float32(layer_class, policy):
    dtypes = {dtype for dtype, _ in two_bit_step(layer_class, policy).given}
    assert dtypes == {tf.float32}


@EVERY_POLICY
@EVERY_CLASS
def test_the_weight_quantizer_is_given_every_bit_of_the_weights(layer_class, policy):
    seen = two_bit_step(layer_class, policy)
    for (_, given), weights in zip(seen.given, seen.before, strict=True):
        np.testing.assert_array_equal(given, weights)


@EVERY_POLICY
@EVERY_CLASS
def test_the_gradient_reaches_the_quantized_weights(layer_class, policy):
    seen = two_bit_step(layer_class, policy)
    for before, after in zip(seen.before, seen.after, strict=True):
        # The regularizer alone would shrink every weight by the same factor.
        assert np.ptp(after / before) > 1e-3


@EVERY_CLASS
def test_outputs_at_two_bits_are_those_of_the_layer_with_quantized_weights(layer_class):
    plain, inputs = make(layer_class), inputs_of(layer_class)
    for name in registered_config(plain).weights:
        weights = getattr(plain, name)
        weights.assign(SAWB(bits=2)(weights.value))
    # The width is a tensor in one and a number in the other: rounded differently in the last bit.
    np.testing.assert_allclose(
        wrapped(layer_class, bits=2)(inputs), plain(inputs), rtol=1e-5, atol=1e-5
    )


@EVERY_CLASS
def test_a_call_leaves_the_float_weights_as_they_are(layer_class):
    layer = wrapped(layer_class, bits=2)
    before = state_of(layer.layer)
    layer(inputs_of(layer_class), training=True)
    for a, b in zip(state_of(layer.layer), before, strict=True):
        np.testing.assert_array_equal(a, b)


@EVERY_CLASS
def test_the_config_makes_an_equal_layer(layer_class):
    config = keras.saving.serialize_keras_object(wrapped(layer_class, bits=3))
    again = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(again) == config


@EVERY_CLASS
def test_a_layer_made_from_a_config_computes_the_same(layer_class):
    layer = wrapped(layer_class, bits=3)
    inputs = inputs_of(layer_class)
    outputs = layer(inputs)
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    again(inputs)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(inputs), outputs)


def test_losses_of_one_call_are_gone_after_the_next():
    model = network(wrapped(layers.Dense), (5,))
    for _ in range(2):
        model(inputs_of(layers.Dense))
    assert len(model.losses) == 2


# ---- layers with state -----------------------------------------------------------------------


def stateful_pair(case):
    """The layer alone and wrapped, with equal weights: `(network, layer)` of each."""
    make_layer, shapes, attributes = case
    plain, inner = make_layer(), make_layer()
    if len(shapes) > 1:  # the wrapper's `build` knows one shape only
        inner.build(*[(None, *shape) for shape in shapes])
    networks = network(plain, *shapes), network(quantized(inner, attributes), *shapes)
    inner.set_weights(plain.get_weights())
    return (networks[0], plain), (networks[1], inner)


def inputs_for(case):
    arrays = [example(shape) for shape in case[1]]
    return arrays[0] if len(arrays) == 1 else arrays


# Keras' SpectralNormalization clips to a float32 bound, which JAX casts to float16.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@EVERY_POLICY
@EVERY_STATEFUL
def test_state_after_a_training_call_is_that_of_the_layer(case, policy):
    with dtype_policy(policy):
        states = []
        for model, layer in stateful_pair(case):
            model(inputs_for(case), training=True)
            states.append(state_of(layer))
    assert_same_state(*states)


# Keras' SpectralNormalization overwrites its kernel before it reads it, which stops the gradient
# there; read from a scope, the kernel has the gradient of the normalization too.
@pytest.mark.parametrize("name", [name for name in STATEFUL if name != "SpectralNormalization"])
def test_state_after_a_compiled_step_is_that_of_the_layer(name):
    states = []
    for model, layer in stateful_pair(STATEFUL[name]):
        step(model, inputs_for(STATEFUL[name]), compiled=True)
        states.append(state_of(layer))
    assert_same_state(*states)


@EVERY_STATEFUL
def test_a_training_call_changes_state(case):
    _, (model, layer) = stateful_pair(case)
    before = state_of(layer)
    model(inputs_for(case), training=True)
    assert any((a != b).any() for a, b in zip(state_of(layer), before, strict=True))


@EVERY_STATEFUL
def test_outputs_in_training_are_those_of_the_layer(case):
    outputs = [model(inputs_for(case), training=True) for model, _ in stateful_pair(case)]
    np.testing.assert_array_equal(*outputs)


@EVERY_STATEFUL
def test_an_outer_stateless_scope_catches_what_a_call_changes(case):
    _, (model, layer) = stateful_pair(case)
    before = state_of(layer)
    with keras.StatelessScope():
        model(inputs_for(case), training=True)
    assert_same_state(state_of(layer), before)


def test_values_of_an_outer_stateless_scope_are_computed_with():
    layer = layers.Dense(1, use_bias=False)
    wrapper = quantized(layer, ["kernel"])
    wrapper.build((None, 2))
    with keras.StatelessScope([(layer.kernel, ops.ones((2, 1)))]):
        outputs = wrapper(np.array([[3.0, 4.0]]))
    assert float(outputs[0, 0]) == 7.0


def test_a_frozen_batch_normalization_keeps_its_statistics():
    layer = layers.BatchNormalization()
    wrapper = quantized(layer, ["gamma"])
    wrapper.trainable = False
    wrapper.build((None, 4))
    wrapper(example((4,)), training=True)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(4))


# ---- masks -----------------------------------------------------------------------------------

TOKENS = np.array([[1, 2, 0], [3, 0, 0]])


def embedding(mask_zero=True):
    layer = layers.Embedding(5, 4, mask_zero=mask_zero, embeddings_initializer=initializer())
    return quantized(layer, ["embeddings"])


def test_the_mask_of_a_quantized_embedding_is_obeyed_further_on():
    tokens = keras.Input((3,), dtype="int32")
    vectors = embedding()(tokens)
    model = keras.Model(tokens, [vectors, layers.GlobalAveragePooling1D()(vectors)])
    values, means = model(TOKENS)
    np.testing.assert_allclose(means[1], values[1, 0], rtol=1e-6)


def test_a_quantized_recurrent_layer_obeys_a_mask():
    lstm = layers.LSTM(3, kernel_initializer=initializer(), recurrent_initializer=initializer())
    wrapper = quantized(lstm, ["cell.kernel"])
    tokens = keras.Input((3,), dtype="int32")
    model = keras.Model(tokens, wrapper(embedding()(tokens)))
    first_step = model(TOKENS[1:, :1])
    np.testing.assert_array_equal(model(TOKENS[1:]), first_step)


# ---- attributes ------------------------------------------------------------------------------


def test_weight_quantizers_are_found_on_a_quantized_layer():
    assert weight_quantizers(quantized(layers.Dense(2), ["kernel"]))[0].bits is None


def test_a_plain_layer_has_no_weight_quantizers():
    assert weight_quantizers(layers.Dense(2)) == []


def test_an_attribute_that_is_no_variable_is_refused():
    with pytest.raises(ValueError, match=r"Layer 'd' \(Dense\) has no variable 'units'"):
        quantized(layers.Dense(2, name="d"), ["units"]).build((None, 3))


def test_a_missing_attribute_is_refused():
    with pytest.raises(ValueError, match=r"Layer 'd' \(Dense\) has no variable 'cell.kernel'"):
        quantized(layers.Dense(2, name="d"), ["cell.kernel"]).build((None, 3))


def test_an_unbuilt_layer_with_several_inputs_is_refused():
    layer = layers.MultiHeadAttention(2, 3, name="attention")
    wrapper = quantized(layer, ["query_dense.kernel"])
    with pytest.raises(ValueError, match="Layer 'attention' .*must be built before it is wrapped"):
        wrapper(example((5, 4)), example((6, 4)))


def test_a_quantizer_written_here_is_used():
    class Zero(WeightQuantizer):
        def round_to_grid(self, weights, bits):
            return ops.zeros_like(weights)

    wrapper = QuantizedLayer(layers.Dense(2), {"kernel": Zero(bits=2)})
    np.testing.assert_array_equal(wrapper(example((3,))), np.zeros((4, 2)))
