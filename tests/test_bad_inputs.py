"""Bad input gets one clear sentence: what is allowed, what came, what to do."""

import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import speq_keras
from speq_keras import QuantizeConfig, configs, losses, precision, quantizers
from speq_keras.callbacks import ActivationSnapshot, PrecisionReport

layers = keras.layers


X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
Y = np.arange(8) % 4


def float_model(units=4, activation="softmax"):
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(5, activation="relu", name="first")(inputs)
    x = layers.Dense(5, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(units, activation=activation, name="last")(x))


def wrapped(**kwargs):
    return speq_keras.wrap(float_model(), 2, 2, **kwargs)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def no_weights():
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.ReLU()(inputs))


def keras_quantized():
    model = float_model()
    model.get_layer("first").quantize("int8")
    return model


def cut_out_of_a_wrapped_model():
    model = wrapped()
    return keras.Model(model.input, model.get_layer("last_quantizer").output)


WIDTH = r"must be a whole number from 2 to 8, or None for floating point\. Received: "

# What `wrap` is called with besides a good model, the error, and the sentence.
WRAP = {
    "w_bits 0": ({"w_bits": 0}, ValueError, f"`w_bits` {WIDTH}w_bits=0"),
    "w_bits 1": ({"w_bits": 1}, ValueError, f"`w_bits` {WIDTH}w_bits=1"),
    "w_bits 33": ({"w_bits": 33}, ValueError, f"`w_bits` {WIDTH}w_bits=33"),
    "w_bits 2.5": ({"w_bits": 2.5}, TypeError, f"`w_bits` {WIDTH}w_bits=2.5"),
    "w_bits True": ({"w_bits": True}, TypeError, f"`w_bits` {WIDTH}w_bits=True"),
    "w_bits text": ({"w_bits": "3"}, TypeError, f"`w_bits` {WIDTH}w_bits='3'"),
    "w_bits -2": ({"w_bits": -2}, ValueError, f"`w_bits` {WIDTH}w_bits=-2"),
    "a_bits 0": ({"a_bits": 0}, ValueError, f"`a_bits` {WIDTH}a_bits=0"),
    "a_bits 1": ({"a_bits": 1}, ValueError, f"`a_bits` {WIDTH}a_bits=1"),
    "a_bits 33": ({"a_bits": 33}, ValueError, f"`a_bits` {WIDTH}a_bits=33"),
    "a_bits 2.5": ({"a_bits": 2.5}, TypeError, f"`a_bits` {WIDTH}a_bits=2.5"),
    "a_bits True": ({"a_bits": True}, TypeError, f"`a_bits` {WIDTH}a_bits=True"),
    "a_bits text": ({"a_bits": "3"}, TypeError, f"`a_bits` {WIDTH}a_bits='3'"),
    "boundary_bits 0": ({"boundary_bits": 0}, ValueError, f"`boundary_bits` {WIDTH}"),
    "boundary_bits True": ({"boundary_bits": True}, TypeError, f"`boundary_bits` {WIDTH}"),
    "boundary_bits text": ({"boundary_bits": "8"}, TypeError, f"`boundary_bits` {WIDTH}"),
    "boundary_bits 16": ({"boundary_bits": 16}, ValueError, f"`boundary_bits` {WIDTH}"),
    "no width": ({"w_bits": None, "a_bits": None}, ValueError, "must not both be None"),
    "float activations": (
        {"a_bits": None, "distillation": "cosine"},
        ValueError,
        "Pass distillation=None",
    ),
    "teacher_bits 1": ({"teacher_bits": 1}, ValueError, "`teacher_bits` must be a whole number"),
    "teacher_bits 2.5": ({"teacher_bits": 2.5}, TypeError, "`teacher_bits` must be a whole number"),
    "probability nan": ({"quantization_probability": float("nan")}, ValueError, r"in \[0, 1\]"),
    "probability 1.5": (
        {"quantization_probability": 1.5},
        ValueError,
        r"a finite number in \[0, 1\]\. Received: quantization_probability=1.5",
    ),
    "probability -0.1": ({"quantization_probability": -0.1}, ValueError, r"in \[0, 1\]"),
    "probability text": ({"quantization_probability": "half"}, TypeError, r"in \[0, 1\]"),
    "temperature 0": ({"temperature": 0}, ValueError, r"`temperature` must be .* \(0, inf\]"),
    "temperature -1": ({"temperature": -1.0}, ValueError, "Received: temperature=-1"),
    "temperature nan": ({"temperature": float("nan")}, ValueError, "Received: temperature=nan"),
    "temperature inf": ({"temperature": float("inf")}, ValueError, "Received: temperature=inf"),
    "temperature text": ({"temperature": "2"}, TypeError, "Received: temperature='2'"),
    "distillation": (
        {"distillation": "cosin"},
        ValueError,
        "must be one of 'auto', 'cosine', 'dot', 'kl', None.*'cosin'.*Did you mean 'cosine'",
    ),
    "weight_quantizer": (
        {"weight_quantizer": "swab"},
        ValueError,
        "must be one of 'sawb', 'minmax', 'mse', 'lsq', 'dorefa'.*Did you mean 'sawb'",
    ),
    "activation_quantizer": (
        {"activation_quantizer": "relu"},
        ValueError,
        "must be one of 'pact', 'lsq_plus', 'dorefa', 'fixed'",
    ),
    "weights' quantizer for activations": (
        {"activation_quantizer": quantizers.SAWB()},
        TypeError,
        "or a quantizer object of class ActivationQuantizer",
    ),
    "activations' quantizer for weights": (
        {"weight_quantizer": quantizers.PACT},
        TypeError,
        "or a quantizer object of class WeightQuantizer",
    ),
    "no weight_quantizer": ({"weight_quantizer": None}, TypeError, "weight_quantizer=None"),
    "no activation_quantizer": (
        {"activation_quantizer": None},
        TypeError,
        "activation_quantizer=None",
    ),
    "speq_weight alone": ({"speq_weight": 0.5}, ValueError, "needs `teacher`"),
    "teacher_distillation": (
        {"teacher_distillation": None},
        ValueError,
        "`teacher_distillation` must be one of",
    ),
    "both ways to say u": (
        {"teacher_precision": precision.Fixed(8), "teacher_bits": 8},
        ValueError,
        "must not be given together with `teacher_bits`",
    ),
    "both ways to say u, by the probability": (
        {"teacher_precision": precision.Greedy(), "quantization_probability": 0.5},
        ValueError,
        "must not be given together with .*`quantization_probability`",
    ),
    "teacher_precision": ({"teacher_precision": 8}, TypeError, "must be a TeacherPrecision"),
    "teacher_precision class": (
        {"teacher_precision": precision.Fixed},
        TypeError,
        "must be a TeacherPrecision",
    ),
    "seed 1.5": ({"seed": 1.5}, ValueError, "`seed` must be None or a whole number"),
    "seed True": ({"seed": True}, ValueError, "`seed` must be None or a whole number"),
    "seed beyond": ({"seed": 2**80}, ValueError, r"from 0 to 2\*\*63 - 1. Received: seed=1208"),
    "seed": ({"seed": -1}, ValueError, "`seed` must be None or a whole number"),
    "skip": (
        {"skip": "conv*"},
        ValueError,
        "`skip` must match a layer.*first, hidden, last",
    ),
    "skip of numbers": ({"skip": [1]}, TypeError, "`skip` must hold layer names"),
    "one of two skips": ({"skip": ["hidden", "conv"]}, ValueError, "skip='conv'"),
    "skip of no list": ({"skip": 3}, TypeError, "`skip` must be a layer name, a pattern or a list"),
    "configs pattern": (
        {"configs": {"conv*": QuantizeConfig(w_bits=4)}},
        ValueError,
        "`configs` must match a layer",
    ),
    "configs class": (
        {"configs": {layers.Conv2D: QuantizeConfig(w_bits=4)}},
        ValueError,
        "`configs` must match a layer",
    ),
    "configs value": ({"configs": {"hidden": 4}}, TypeError, "to QuantizeConfig objects"),
    "configs no dict": ({"configs": [4]}, TypeError, "`configs` must be a dict"),
    "configs key": ({"configs": {3: QuantizeConfig()}}, ValueError, "configs=3"),
    "configs of a skipped layer": (
        {"skip": "hidden", "configs": {"hidden": QuantizeConfig(w_bits=4)}},
        ValueError,
        "`configs` must apply to a layer that is not skipped.*configs='hidden'",
    ),
    "configs without weights": (
        {"configs": {"hidden": QuantizeConfig(weights=())}},
        ValueError,
        r"QuantizeConfig\(weights=...\)",
    ),
    "configs of another variable": (
        {"configs": {"hidden": QuantizeConfig(weights=("gamma",))}},
        ValueError,
        r"Layer 'hidden' \(Dense\) has no variable 'gamma'",
    ),
    "configs of float activations": (
        {
            "a_bits": None,
            "distillation": None,
            "configs": {"hidden": QuantizeConfig(a_bits=4)},
        },
        ValueError,
        "`a_bits` of a QuantizeConfig must be left out",
    ),
    "name": ({"name": 3}, TypeError, '`name` must be a string without "/", or None.*name=3'),
    "name of a path": ({"name": "a/b"}, ValueError, '`name` must be a string without "/"'),
    "fused_batch_norm": (
        {"fused_batch_norm": "no"},
        TypeError,
        "`fused_batch_norm` must be True or False. Received: fused_batch_norm='no'",
    ),
    "axes that a kernel has not": (
        {"configs": {"hidden": QuantizeConfig(channel_axes=(9,))}},
        ValueError,
        r"Layer 'hidden' \(Dense\): `channel_axes` must be axes of its 'kernel', which has 2. "
        r"Received: channel_axes=\(9,\)",
    ),
    "everything skipped": ({"skip": "*"}, ValueError, "At least one layer must have a quantize"),
}


@pytest.mark.parametrize("case", WRAP)
def test_wrap_refuses(case):
    arguments, error, sentence = WRAP[case]
    with pytest.raises(error, match=sentence):
        speq_keras.wrap(float_model(), **arguments)


def test_wrap_refuses_a_model_of_boundary_layers_that_are_all_float():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match="At least one layer must be .* boundary_bits=None. Pass"):
        speq_keras.wrap(model, 8, None, boundary_bits=None, distillation=None)


MODELS = {
    "a subclassed model": (Subclassed, ValueError, "must be Functional or Sequential"),
    "a model that Keras has quantized": (
        lambda: keras_quantized(),
        ValueError,
        r"Layer 'first' \(Dense\) must have float weights.*quantization_mode='int8'",
    ),
    "an unbuilt Sequential": (
        lambda: keras.Sequential([layers.Dense(2)]),
        ValueError,
        "must be built.*keras.Input",
    ),
    "a wrapped model": (wrapped, ValueError, "is already wrapped.*set_bits"),
    "a wholly quantized graph": (
        cut_out_of_a_wrapped_model,
        ValueError,
        "all layers of this model are quantized already",
    ),
    "a model without weights": (no_weights, ValueError, "must have a quantize config"),
    "a path": (lambda: "resnet.keras", TypeError, "A file is read with keras.saving.load_model"),
    "a layer": (lambda: layers.Dense(2), TypeError, "`model` must be a Keras 3 model"),
    "None": (lambda: None, TypeError, "`model` must be a Keras 3 model. Received: model=None"),
}


@pytest.mark.parametrize("case", MODELS)
def test_wrap_refuses_as_a_model(case):
    make, error, sentence = MODELS[case]
    with pytest.raises(error, match=sentence):
        speq_keras.wrap(make())


def test_wrap_refuses_a_tf_keras_model():
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    with pytest.raises(TypeError, match="tf_keras .Keras 2. model.*TF_USE_LEGACY_KERAS"):
        speq_keras.wrap(model)


@pytest.mark.parametrize(
    ("teacher", "error", "sentence"),
    [
        (lambda: float_model(units=3), ValueError, "outputs of the same shapes"),
        (Subclassed, ValueError, "outputs of the same shapes"),
        (lambda: "resnet", TypeError, "`teacher` must be a Keras model"),
    ],
)
def test_wrap_refuses_a_teacher_that_does_not_fit(teacher, error, sentence):
    with pytest.raises(error, match=sentence):
        wrapped(teacher=teacher())


@pytest.mark.parametrize(
    ("weight", "error"), [(1.5, ValueError), (float("nan"), ValueError), ("half", TypeError)]
)
def test_wrap_refuses_a_speq_weight_that_is_no_share(weight, error):
    with pytest.raises(error, match=r"`speq_weight` must be a finite number in \[0, 1\]"):
        wrapped(teacher=float_model(), speq_weight=weight)


# What a wrapped model is asked to do.
CALLS = {
    "set_bits 0": (lambda m: m.set_bits(weights=0), ValueError, f"`weights` {WIDTH}weights=0"),
    "set_bits 9": (lambda m: m.set_bits(activations=9), ValueError, f"`activations` {WIDTH}"),
    "set_bits text": (lambda m: m.set_bits(weights="4"), TypeError, f"`weights` {WIDTH}"),
    "set_bits True": (lambda m: m.set_bits(weights=True), TypeError, f"`weights` {WIDTH}"),
    "set_bits 2.5": (lambda m: m.set_bits(activations=2.5), TypeError, f"`activations` {WIDTH}"),
    "set teacher": (
        lambda m: setattr(m, "teacher", float_model(units=7)),
        ValueError,
        "`teacher` must have outputs of the same shapes",
    ),
    "set teacher_precision": (
        lambda m: setattr(m, "teacher_precision", "fixed"),
        TypeError,
        "must be a TeacherPrecision",
    ),
    "set distillation": (
        lambda m: setattr(m, "distillation", "mse"),
        ValueError,
        "`distillation` must be one of",
    ),
    "set temperature": (
        lambda m: setattr(m, "temperature", 0.0),
        ValueError,
        "`temperature` must be",
    ),
    "calibrate on nan": (
        lambda m: m.calibrate(np.full((4, 6), np.nan, "float32"), verbose=0),
        ValueError,
        "`data` must be finite. Received: data with NaN or infinity. Clean the data first",
    ),
    "calibrate on infinity": (
        lambda m: m.calibrate([np.full((4, 6), np.inf, "float32")], verbose=0),
        ValueError,
        "`data` must be finite. Received: data with NaN or infinity. Clean the data first",
    ),
    "calibrate on nothing": (
        lambda m: m.calibrate(np.zeros((0, 6), "float32"), verbose=0),
        ValueError,
        "at least one batch",
    ),
    "calibrate on an empty list": (
        lambda m: m.calibrate([], verbose=0),
        ValueError,
        "at least one batch",
    ),
    "calibrate on empty batches": (
        lambda m: m.calibrate([np.zeros((0, 6), "float32")], verbose=0),
        ValueError,
        "at least one batch",
    ),
    "calibrate on a number": (
        lambda m: m.calibrate(3),
        TypeError,
        r"`data` must be arrays, \(inputs, labels\), .* Received: data of type int\. Convert it",
    ),
    "calibrate for no steps": (
        lambda m: m.calibrate(np.zeros((4, 6)), steps=0),
        ValueError,
        "`steps` must be a whole number of at least 1, or None. Received: steps=0",
    ),
    "calibrate for 1.5 steps": (
        lambda m: m.calibrate(np.zeros((4, 6)), steps=1.5),
        TypeError,
        "`steps` must be a whole number",
    ),
    "calibrate on batches of 0": (
        lambda m: m.calibrate(np.zeros((4, 6)), batch_size=0),
        ValueError,
        "`batch_size` must be a whole number of at least 1. Received: batch_size=0",
    ),
    "calibrate on another input name": (
        lambda m: m.calibrate({"image": np.zeros((4, 6))}, verbose=0),
        ValueError,
        "image",
    ),
    "calibrate on None": (lambda m: m.calibrate(None), TypeError, "`data` must be arrays"),
    "calibrate on a path": (lambda m: m.calibrate("x.npy"), TypeError, "`data` must be arrays"),
    "reestimate on nan": (
        lambda m: m.reestimate_batch_norm(np.full((4, 6), np.nan, "float32")),
        ValueError,
        "`data` must be finite",
    ),
    "reestimate on None": (
        lambda m: m.reestimate_batch_norm(None),
        TypeError,
        "`data` must be arrays",
    ),
    "reestimate on nothing": (
        lambda m: m.reestimate_batch_norm([]),
        ValueError,
        "At least one batch",
    ),
    "quantize": (lambda m: m.quantize("int8"), RuntimeError, "is quantized already"),
    "export": (
        lambda m: m.export("x.tflite", format="litert"),
        RuntimeError,
        "must be calibrated or trained",
    ),
    "a layer of the plan": (
        lambda m: m.plan().row("hiden"),
        ValueError,
        "Did you mean 'hidden'",
    ),
    "set_bits of nothing": (lambda m: m.set_bits(), ValueError, "At least one of .* neither"),
    "calibrate in some training": (
        lambda m: m.calibrate(X, training="yes", verbose=0),
        TypeError,
        "`training` must be True or False. Received: training='yes'",
    ),
    "calibrate loudly": (
        lambda m: m.calibrate(X, verbose="loud"),
        ValueError,
        "`verbose` must be one of 'auto', 0, 1, 2. Received: verbose='loud'",
    ),
    "calibrate on batches of None": (
        lambda m: m.calibrate(X, batch_size=None),
        TypeError,
        "`batch_size` must be a whole number",
    ),
    "calibrate where float32 has no range": (
        lambda m: m.calibrate(np.float32([[-3e38] * 6, [3e38] * 6]), verbose=0),
        ValueError,
        r"below 1e18, .* Received: quantizer 'x_quantizer' saw -3e\+38 ... 3e\+38. Check",
    ),
    "calibrate where float32 has no squares": (
        lambda m: m.calibrate(np.full((4, 6), 3e38, "float32"), verbose=0),
        ValueError,
        r"below 1e18, .* Received: quantizer 'x_quantizer' saw 3e\+38 ... 3e\+38. Check",
    ),
    "reestimate for no steps": (
        lambda m: m.reestimate_batch_norm(X, steps=0),
        ValueError,
        "`steps` must be a whole number of at least 1, or None. Received: steps=0",
    ),
    "set distillation to a list": (
        lambda m: setattr(m, "distillation", ["kl"]),
        ValueError,
        "`distillation` must be one of",
    ),
    "settle for an array": (
        lambda m: m.settle(storage=np.array(["int8", "int4"])),
        ValueError,
        "`storage` must be one of",
    ),
    "float weights of no file": (
        lambda m: m.load_float_weights("no.keras"),
        ValueError,
        "`source` must be a .keras or .weights.h5 file .* Received: source='no.keras'",
    ),
    "float weights of another file": (
        lambda m: m.load_float_weights(__file__),
        ValueError,
        "`source` must be a .keras or .weights.h5 file",
    ),
    "float weights of another model": (
        lambda m: m.load_float_weights(no_weights()),
        ValueError,
        "must have the layers of the one that was wrapped",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_wrapped_model_refuses(case):
    call, error, sentence = CALLS[case]
    with pytest.raises(error, match=sentence):
        call(wrapped())


def test_calibrate_refuses_a_wrong_shape():
    with pytest.raises(ValueError, match=r"shapes \[\(None, 6\)\], .*shapes=\[\(4, 7\)\]"):
        wrapped().calibrate(np.zeros((4, 7), "float32"), verbose=0)


def test_calibrate_names_the_quantizer_that_saw_what_is_not_finite():
    model = float_model()
    model.get_layer("hidden").bias.assign(np.full(5, np.inf))
    with pytest.raises(ValueError, match="Received: quantizer 'hidden_relu_quantizer' saw inf ..."):
        speq_keras.wrap(model, 2, 2).calibrate(np.ones((4, 6)), verbose=0)


@pytest.mark.filterwarnings("ignore:The activation ranges are not calibrated")
def test_fit_refuses_empty_data():
    model = wrapped()
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="Training needs at least one batch. Received: an empty"):
        model.fit(np.zeros((0, 6)), np.zeros(0), verbose=0)


@pytest.mark.parametrize("source", [None, 3, {}])
def test_load_float_weights_refuses_what_is_no_checkpoint(source):
    with pytest.raises(TypeError, match="`source` must be a Keras model or a path"):
        wrapped().load_float_weights(source)


def test_float_weights_without_biases_are_refused():
    inputs = keras.Input((6,))
    x = layers.Dense(5, use_bias=False, name="first")(inputs)
    other = keras.Model(inputs, layers.Dense(4, name="last")(layers.Dense(5, name="hidden")(x)))
    with pytest.raises(ValueError, match="layer 'first' with 1 instead of 2 weights"):
        wrapped().load_float_weights(other)


def test_a_model_made_by_hand_has_no_float_model():
    inputs = keras.Input((4,))
    model = speq_keras.SPEQModel(inputs, quantizers.PACT()(inputs))
    with pytest.raises(RuntimeError, match="this one was not made by it"):
        model.float_model()


def test_a_speq_model_needs_quantizers():
    model = float_model()
    with pytest.raises(ValueError, match=r"Make it with `speq_keras.wrap\(keras_model\)`"):
        speq_keras.SPEQModel(model.input, model.output)


def test_float_weights_of_another_shape_are_refused():
    model = wrapped()
    other = float_model(units=7)
    before = model.get_weights()
    with pytest.raises(ValueError, match="must have the shapes of this model's"):
        model.load_float_weights(other)
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_set_bits_names_the_side_that_has_no_target_width():
    model = speq_keras.wrap(float_model(), 2, None, distillation=None)
    with pytest.raises(ValueError, match="none of the activations has"):
        model.set_bits(activations=4)


def test_a_width_that_is_refused_changes_nothing():
    model = wrapped()
    with pytest.raises(ValueError, match="`activations`"):
        model.set_bits(weights=4, activations=9)
    assert {q.bits for q in model.weight_quantizers if q.has_target_width} == {2}


def test_training_without_logits_names_the_way_out():
    model = speq_keras.wrap(float_model(activation="tanh"), 2, 2, distillation="cosine")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Pass distillation=None"):
        model.fit(np.zeros((4, 6)), np.zeros((4, 4)), verbose=0)


def test_greedy_counts_the_quantizers_that_are_too_many():
    inputs = x = keras.Input((6,))
    for _ in range(15):
        x = layers.Dense(6, activation="relu")(x)
    model = speq_keras.wrap(
        keras.Model(inputs, layers.Dense(3, activation="softmax")(x)),
        2,
        2,
        teacher_precision=precision.Greedy(),
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="at most L=12 quantizers.*quantizers=14"):
        model.fit(np.zeros((4, 6)), np.zeros(4), verbose=0)


# What the building blocks refuse.
BLOCKS = {
    "clip of no sign": (
        lambda: quantizers.FixedRange(low=1.0, high=0.0),
        ValueError,
        "`low` and `high` must be two numbers",
    ),
    "quantizer width": (lambda: quantizers.PACT(bits=9), ValueError, f"`bits` {WIDTH}bits=9"),
    "weight decay": (lambda: quantizers.PACT(weight_decay=-1.0), ValueError, "`weight_decay`"),
    "config width": (lambda: QuantizeConfig(w_bits=1), ValueError, f"`w_bits` {WIDTH}"),
    "config weights": (lambda: QuantizeConfig(weights="kernel"), TypeError, "must be a tuple"),
    "config width text": (lambda: QuantizeConfig(a_bits="3"), TypeError, f"`a_bits` {WIDTH}"),
    "config axes": (lambda: QuantizeConfig(channel_axes=3), TypeError, "`channel_axes` must be a"),
    "config weights of numbers": (
        lambda: QuantizeConfig(weights=(3,)),
        TypeError,
        "`weights` must hold names of attributes",
    ),
    "config activation quantizer": (
        lambda: QuantizeConfig(activation_quantizer="sawb"),
        ValueError,
        "must be one of 'pact', 'lsq_plus'",
    ),
    "a layer that is none": (
        lambda: speq_keras.QuantizedLayer(3, {}),
        TypeError,
        "`layer` must be a Keras layer. Received: layer=3",
    ),
    "quantizers by name": (
        lambda: speq_keras.QuantizedLayer(layers.Dense(2), {"kernel": "sawb"}),
        TypeError,
        "`quantizers` must be a dict from names of the layer's variables to WeightQuantizer",
    ),
    "quantizers for activations": (
        lambda: speq_keras.QuantizedLayer(layers.Dense(2), {"kernel": quantizers.PACT()}),
        TypeError,
        "to WeightQuantizer objects",
    ),
    "config quantizer": (
        lambda: QuantizeConfig(weight_quantizer="swab"),
        ValueError,
        "Did you mean 'sawb'",
    ),
    "register no class": (
        lambda: quantizers.register_quantizer("mine", 3),
        TypeError,
        "must be a subclass of WeightQuantizer or ActivationQuantizer",
    ),
    "register a known name": (
        lambda: quantizers.register_quantizer("sawb", quantizers.SAWB),
        ValueError,
        "`name` must be new",
    ),
    "register no layer": (
        lambda: configs.register_config(3, QuantizeConfig()),
        TypeError,
        "must be a subclass of keras.layers.Layer",
    ),
    "register no config": (
        lambda: configs.register_config(layers.LSTM, 3),
        TypeError,
        "`config` must be a QuantizeConfig",
    ),
    "channels per what": (
        lambda: quantizers.SAWB(per_channel=3),
        TypeError,
        "`per_channel` must be True or False. Received: per_channel=3",
    ),
    "channels by text": (lambda: quantizers.MinMax(per_channel="yes"), TypeError, "='yes'"),
    "a sign": (lambda: quantizers.LSQPlus(signed="x"), TypeError, "`signed` must be True or"),
    "no negative inputs": (
        lambda: quantizers.PACT(nonnegative_input=1),
        TypeError,
        "`nonnegative_input` must be True or False",
    ),
    "a target width": (
        lambda: quantizers.PACT(has_target_width=None),
        TypeError,
        "`has_target_width` must be True or False",
    ),
    "axes": (lambda: quantizers.SAWB(channel_axes=3), TypeError, "`channel_axes` must be a tuple"),
    "axes of text": (
        lambda: QuantizeConfig(channel_axes=("a",)),
        TypeError,
        "`channel_axes` must be a tuple of whole numbers",
    ),
    "the same axes": (
        lambda: quantizers.SAWB(channel_axes=(1, 1)),
        ValueError,
        "each of them a different axis. Received: channel_axes=",
    ),
    "axes of a layer": (
        lambda: speq_keras.QuantizedLayer(
            layers.Dense(2), {"kernel": quantizers.MinMax(per_channel=True, channel_axes=(5,))}
        )(np.zeros((1, 3))),
        ValueError,
        r"must be axes of its 'kernel', which has 2. Received: channel_axes=\(5,\)",
    ),
    "quantizer name": (lambda: quantizers.PACT(name=3), TypeError, "`name` must be a string"),
    "layer name": (
        lambda: speq_keras.QuantizedLayer(layers.Dense(2), {}, name="a/b"),
        ValueError,
        "`name` must be a string",
    ),
    "register a number": (
        lambda: quantizers.register_quantizer(3, quantizers.SAWB),
        TypeError,
        '`name` must be a string without "/". Received: name=3',
    ),
    "register a precision": (lambda: precision.register(3), TypeError, "TeacherPrecision.*cls=3"),
    "logits of two shapes": (
        lambda: losses.distillation_loss(X, X[:, :3], method="kl", temperature=1.0),
        ValueError,
        "must have the same shape. Received: shapes=",
    ),
    "a teacher without its share": (
        lambda: losses.combine(1.0, 1.0, 1.0),
        TypeError,
        "`speq_weight` must be a number",
    ),
    "a long value": (
        lambda: QuantizeConfig(channel_axes=list("abc" * 1000)),
        TypeError,
        r"Received: channel_axes=\('a', 'b', .{150,220}\.\.\. of type tuple\.$",
    ),
    "mix the wrong way round": (
        lambda: precision.UniformMix(8, 2),
        ValueError,
        "must not be above",
    ),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_is_refused(case):
    make, error, sentence = BLOCKS[case]
    with pytest.raises(error, match=sentence):
        make()


# ---- data ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ready():
    model = speq_keras.wrap(float_model(), 2, 2)
    model.calibrate(X, verbose=0)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


class NoLength(keras.utils.PyDataset):
    def __getitem__(self, index):
        return X, Y


def generate():
    yield X, Y


KIND = " must be arrays, .* Received: {name} of type "
NUMBERS = "` must hold arrays of (real )?numbers. Received: {name} "
FINITE = "` must be finite"
SHAPES = r"` must have inputs of the shapes \[\(None, 6\)\], examples first. Received: shapes="
ARRAYS = "` must have 1 arrays for the inputs"
# What no function takes as data, and the sentence after the name of the argument.
DATA = {
    "None": (lambda: None, KIND),
    "a number": (lambda: 3, KIND),
    "text": (lambda: "images", KIND),
    "bytes": (lambda: b"images", KIND),
    "a class": (lambda: NoLength, KIND),
    "a function": (lambda: generate, KIND + "function. Pass what the function returns"),
    "a model": (float_model, KIND),
    "an empty dict": (lambda: {}, " must be arrays, .* without a single array"),
    "a NumPy number": (lambda: np.float32(3), "` must be arrays with the examples on the first"),
    "an array of text": (lambda: np.array([["a"] * 6] * 4), NUMBERS),
    "a tensor of text": (lambda: tf.constant([["a"] * 6] * 4), NUMBERS),
    "a dict of text": (lambda: {"x": np.array([["a"] * 6] * 4)}, NUMBERS),
    "objects": (lambda: np.array([[None] * 6] * 4), NUMBERS),
    "dates": (lambda: np.array(["2020-01-01"] * 4, "datetime64[D]"), NUMBERS),
    "fields": (lambda: np.zeros(4, [("a", "f4")]), NUMBERS),
    "complex numbers": (lambda: np.zeros((4, 6), "complex64"), NUMBERS),
    "a symbolic tensor": (lambda: keras.Input((6,)), NUMBERS),
    "lists of unequal length": (lambda: [[1.0, 2.0], [1.0]], NUMBERS),
    "batches of text": (lambda: [np.array([["a"] * 6])], NUMBERS),
    "tf.data of text": (
        lambda: tf.data.Dataset.from_tensor_slices(np.array([["a"] * 6] * 4)).batch(2),
        NUMBERS,
    ),
    "a list of None": (lambda: [None], NUMBERS),
    "NaN": (lambda: np.full((4, 6), np.nan, "float32"), FINITE),
    "infinity": (lambda: np.full((4, 6), -np.inf), FINITE),
    "NaN in a later batch": (lambda: [(X, Y), (X * np.nan, Y)], FINITE),
    "beyond float32": (lambda: np.full((4, 6), 1e300), FINITE + " in float32"),
    "another shape": (lambda: np.zeros((4, 7)), SHAPES),
    "no batch axis": (lambda: np.zeros(6), SHAPES),
    "another rank": (lambda: np.zeros((4, 6, 2)), SHAPES),
    "another name": (lambda: {"image": X}, r"` must have the inputs \['x'\]. Received: keys="),
    "too many inputs": (lambda: [((X, X), Y)], ARRAYS),
    "too many parts": (lambda: (X, Y, Y, Y), "` must be x, .* Received: a tuple of 4"),
    "a PyDataset of no length": (NoLength, "A PyDataset must say how many batches it has"),
}


def readers(model):
    """Returns {name: (function of data, the argument's name)}."""
    folded = speq_keras.fold(model)
    return {
        "calibrate": (lambda data: model.calibrate(data, verbose=0), "data"),
        "reestimate_batch_norm": (model.reestimate_batch_norm, "data"),
        "predict": (folded.predict, "inputs"),
        "predict_float": (folded.predict_float, "inputs"),
        "evaluate": (folded.evaluate, "x"),
    }


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize(
    "reader", ["calibrate", "reestimate_batch_norm", "predict", "predict_float", "evaluate"]
)
def test_data_are_refused(ready, reader, case):
    call, name = readers(ready)[reader]
    make, sentence = DATA[case]
    before = ready.get_weights()
    with pytest.raises((TypeError, ValueError), match=sentence.format(name=name)) as info:
        call(make())
    assert f"`{name}`" in str(info.value) or "PyDataset" in str(info.value)
    assert re.search(r"Received: .*\.", str(info.value))
    for was, now in zip(before, ready.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("case", [case for case in DATA if case != "None"])
def test_export_refuses_data(ready, tmp_path, case):
    make, sentence = DATA[case]
    with pytest.raises((TypeError, ValueError), match=sentence.format(name="data")):
        ready.export_tflite(tmp_path / "m.tflite", data=make())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", [case for case in DATA if "later" not in case])
def test_a_snapshot_refuses_data(ready, tmp_path, case):
    make, sentence = DATA[case]

    def begin():
        snapshot = ActivationSnapshot(make(), tmp_path)
        snapshot.set_model(ready)
        snapshot.on_train_begin()

    with pytest.raises((TypeError, ValueError), match=sentence.format(name="data")):
        begin()


@pytest.mark.parametrize("case", DATA)
def test_functions_that_need_labels_refuse_data(ready, case):
    make, _ = DATA[case]
    for call in (
        lambda data: PrecisionReport(data).measure(ready),
        lambda data: speq_keras.search_bits(ready, data, size_bytes=1000),
    ):
        with pytest.raises((TypeError, ValueError), match=r"(`data`|PyDataset) must .*Received: "):
            call(make())


@pytest.mark.parametrize("case", ["a number", "NaN", "beyond float32", "text", "an empty dict"])
def test_lowering_widths_refuses_data(case):
    def begin():
        callback = speq_keras.LowerWidths({0: 8, 1: 2}, calibration_data=DATA[case][0]())
        callback.set_params({"epochs": 2})
        callback.set_model(wrapped())
        callback.on_train_begin()

    with pytest.raises((TypeError, ValueError), match="`calibration_data` must .*Received: "):
        begin()


@pytest.mark.parametrize("case", ["a number", "an array of text", "NaN", "another shape"])
@pytest.mark.filterwarnings("ignore:The activation ranges are not calibrated")
def test_training_on_an_uncalibrated_model_refuses_inputs(case):
    model = wrapped()
    model.compile("sgd", "sparse_categorical_crossentropy")
    for call in (model.fit, model.train_on_batch):
        with pytest.raises((TypeError, ValueError), match="`x` must .*Received: "):
            call(DATA[case][0](), Y)
    assert not model.is_calibrated


def test_inputs_of_unequal_length_are_refused():
    a, b = keras.Input((6,), name="a"), keras.Input((2,), name="b")
    x = layers.Dense(3)(layers.Concatenate()([a, b]))
    model = speq_keras.wrap(keras.Model([a, b], layers.Dense(2)(x)), 3, 3, distillation=None)
    sentence = "same number of examples for each input. Received: examples={'a': 8, 'b':"
    for data in ([X, X[:3, :2]], [[X, X[:3, :2]]]):
        with pytest.raises(ValueError, match=sentence):
            model.calibrate(data, verbose=0)


# Labels that do not fit outputs of 4 classes.
LABELS = {
    "too few": (Y[:3], "for as many examples as inputs. Received: 8 examples and labels of"),
    "a number": (3, "for as many examples as inputs|hold arrays of numbers"),
    "of rank 3": (np.zeros((8, 2, 2)), r"must be class numbers of shape \(8,\), or one-hot"),
    "of other classes": (np.eye(5)[Y], r"must be class numbers .* one-hot of shape \(8, 4\)"),
    "text": (np.array(["a"] * 8), "must hold arrays of real numbers. Received: .* of type str"),
    "objects": ([None] * 8, "must hold arrays of real numbers|labels"),
    "NaN": (np.full(8, np.nan), "must be finite. Received: labels with NaN"),
    "by name": ({"a": Y, "b": Y}, "must hold arrays of real numbers"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_refused(ready, tmp_path, case):
    labels, sentence = LABELS[case]
    folded = speq_keras.fold(ready)
    for call in (
        lambda: folded.evaluate(X, labels),
        lambda: folded.evaluate((X, labels)),
        lambda: ready.export_tflite(tmp_path / "m.tflite", data=(X, labels)),
        lambda: ready.export_tflite(tmp_path / "m.tflite", data=[(X, labels)]),
    ):
        with pytest.raises((TypeError, ValueError), match=sentence):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", ["too few", "text", "a number"])
def test_labels_are_refused_where_they_are_compared(ready, case):
    labels, sentence = LABELS[case]
    for call in (
        lambda: PrecisionReport((X, labels)).measure(ready),
        lambda: speq_keras.search_bits(ready, (X, labels), size_bytes=1000),
    ):
        with pytest.raises((TypeError, ValueError), match=sentence):
            call()


def test_labels_in_some_batches_are_refused(ready, tmp_path):
    with pytest.raises(ValueError, match="`data` must have labels in all batches, or in none"):
        ready.export_tflite(tmp_path / "m.tflite", data=[(X, Y)] * 5 + [X])
    assert not list(tmp_path.iterdir())


# Other arguments of the functions that read data.
ARGUMENTS = {
    "report batch_size": (lambda: PrecisionReport((X, Y), batch_size="a"), "`batch_size` must be"),
    "report steps": (lambda: PrecisionReport((X, Y), steps=0), "`steps` must be"),
    "report verbose": (lambda: PrecisionReport((X, Y), verbose="loud"), "`verbose` must be one of"),
    "report seed": (lambda: PrecisionReport((X, Y), seed=2**80), "`seed` must be"),
    "snapshot tensorboard": (
        lambda: ActivationSnapshot(X, "folder", tensorboard="no"),
        "`tensorboard` must be True or False",
    ),
    "snapshot directory": (lambda: ActivationSnapshot(X, "a\0b"), "`directory` must be a folder"),
    "lower weights": (
        lambda: speq_keras.LowerWidths({0: 8, 1: 2}, weights="no"),
        "`weights` must be True or False",
    ),
    "lower steps": (
        lambda: speq_keras.LowerWidths({0: 8, 1: 2}, calibration_steps=0),
        "`calibration_steps` must be",
    ),
    "lower once": (
        lambda: speq_keras.LowerWidths({0: 8, 1: 2}, calibration_data=itertools.cycle([X])),
        "`calibration_data` must be .* which can be read many times",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_an_argument_is_refused(case):
    make, sentence = ARGUMENTS[case]
    with pytest.raises((TypeError, ValueError), match=f"{sentence}.* Received: "):
        make()


@pytest.mark.parametrize("name", ["batch_size", "steps"])
def test_a_search_refuses_counts_that_are_none(ready, name):
    with pytest.raises(ValueError, match=f"`{name}` must be .* Received: {name}=0"):
        speq_keras.search_bits(ready, (X, Y), size_bytes=1000, **{name: 0})


@pytest.mark.parametrize("value", [None, 0, "no", np.array([True, False])])
@pytest.mark.parametrize("name", ["softmax", "strict"])
def test_export_takes_true_and_false_only(ready, tmp_path, name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be True or False. Received: {name}="):
        ready.export_tflite(tmp_path / "m.tflite", **{name: value})
    assert not list(tmp_path.iterdir())


def test_fold_takes_true_and_false_only(ready):
    with pytest.raises(TypeError, match="`softmax` must be True or False. Received: softmax='no'"):
        speq_keras.fold(ready, softmax="no")
