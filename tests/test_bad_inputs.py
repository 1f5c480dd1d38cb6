"""Bad input gets one clear sentence: what is allowed, what came, what to do."""

import keras
import numpy as np
import pytest

import speq_keras
from speq_keras import QuantizeConfig, configs, precision, quantizers

layers = keras.layers


def float_model(units=4, activation="softmax"):
    inputs = keras.Input((6,))
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
    "float activations": ({"a_bits": None}, ValueError, "Pass distillation=None"),
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
        "must be one of 'cosine', 'dot', 'kl', None.*'cosin'.*Did you mean 'cosine'",
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
    "everything skipped": ({"skip": "*"}, ValueError, "At least one layer must have a quantize"),
}


@pytest.mark.parametrize("case", WRAP)
def test_wrap_refuses(case):
    arguments, error, sentence = WRAP[case]
    with pytest.raises(error, match=sentence):
        speq_keras.wrap(float_model(), **arguments)


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
    "a wrapped model": (wrapped, ValueError, "is wrapped already.*set_bits"),
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
        "must be calibrated or trained before it is exported",
    ),
    "a layer of the plan": (
        lambda m: m.plan().row("hiden"),
        ValueError,
        "Did you mean 'hidden'",
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
    with pytest.raises(ValueError, match="quantizer 'hidden_relu_quantizer' saw values that are n"):
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
    with pytest.raises(RuntimeError, match="this one was made in another way"):
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
    with pytest.raises(ValueError, match="no quantizer of the activations has"):
        model.set_bits(activations=4)


def test_a_width_that_is_refused_changes_nothing():
    model = wrapped()
    with pytest.raises(ValueError, match="`activations`"):
        model.set_bits(weights=4, activations=9)
    assert {q.bits for q in model.weight_quantizers if q.has_target_width} == {2}


def test_training_without_logits_names_the_way_out():
    model = speq_keras.wrap(float_model(activation="tanh"), 2, 2)
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
