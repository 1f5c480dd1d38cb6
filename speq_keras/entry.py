"""`speq_keras.wrap`: the entry of the package."""

import json

import keras

from speq_keras._checks import brief, check_bool, check_name, describe
from speq_keras.graph import check_has_config, plain_functional
from speq_keras.live_objects import own_classes
from speq_keras.losses import AUTO
from speq_keras.model import SPEQModel
from speq_keras.provenance import Provenance
from speq_keras.settings import (
    SettingsText,
    TrainingSettings,
    speq_weight_from,
    teacher_precision_from,
)
from speq_keras.training.heads import check_teacher
from speq_keras.wrapping import WrapOptions, as_functional, quantize_graph, taken_apart


def wrap(
    model,
    w_bits=3,
    a_bits=3,
    *,
    teacher_bits=None,
    quantization_probability=None,
    temperature=2.0,
    distillation="auto",
    teacher=None,
    speq_weight=None,
    teacher_distillation="kl",
    weight_quantizer="sawb",
    activation_quantizer="pact",
    boundary_bits=8,
    skip=(),
    configs=None,
    teacher_precision=None,
    fused_batch_norm=True,
    seed=None,
    name=None,
    inputs=None,
):
    """Makes a `SPEQModel` from a float Keras model: the same graph with quantizers.

    The float model is not changed; its weights are copied. Layers without a quantize config stay in
    float, and `plan()` says so.

    Frozen layers stay frozen: `layer.trainable = False`, before `wrap` or on the layers of the
    wrapped model, also freezes the ranges of the layer's outputs. After a layer without weights (an
    activation, a sum) and after a BatchNormalization, a range is trained as long as one of the
    preceding layers with weights is. A range shared by several tensors is frozen with the first of
    them, and a second quantizer ("conv_requantizer") with the layers that read it. Layers of a
    nested model are named "base.conv"; `model.part("base").trainable = True` unfreezes all of them;
    setting it on the float `base` has no effect any more. Compile again, as in Keras.

    Args:
        model: A Functional or built Sequential model. Nested models are flattened, and layers made
            of layers (attention, KerasHub's encoder blocks) are taken apart. Or a subclassed model
            whose `call` runs on symbolic tensors: its graph is used, with its layers and weights,
            and `float_model()` is the Functional model of that graph. Its own `train_step`,
            `test_step` or `get_config` are not used.
        w_bits: Width of the weights in bits, 2 to 8, or None: weights stay float.
        a_bits: Width of the weighted layers' input activations, 2 to 8, or None: activations stay
            float (then there is nothing to draw, and training is plain).
        teacher_bits: n_H of Eq. 1 in bits; by default 8.
        quantization_probability: u of Eq. 1: the probability of the target width in the teacher, 0
            to 1; by default 0.5.
        temperature: T of Eq. 2, positive.
        distillation: `"cosine"` (Eq. 8, divided by the L2 norms), `"dot"` (Eq. 8 as printed, with
            the gradient of Eq. 9), `"kl"` (Eq. 6), a custom loss (a function of the softened
            probabilities of teacher and student, such as `keras.losses.kl_divergence`, or its name:
            `losses.register_distillation`), or None: plain quantization-aware training. "auto": the
            cosine if there is something to distil, that is, an output with logits and a teacher
            whose widths can differ from the student's; otherwise plain training, at its cost, with
            one warning. Decided anew at `compile` and when `set_bits` changes it.
        teacher: An external float Keras model with the same outputs (Eq. 3). It is not trained and
            not saved with the model.
        speq_weight: λ of Eq. 4, 0 to 1; by default 0.5. Only with `teacher`.
        teacher_distillation: The loss against `teacher`, as in `distillation`; "kl" in Eq. 3.
        weight_quantizer: Name or object; see the table in `quantizers`, which also registers custom
            ones.
        activation_quantizer: Likewise.
        boundary_bits: Width in bits of the weights and inputs of the first and last weighted
            layers; None leaves them float. Weights with a fixed width use min-max, per channel.
        skip: Name or names of layers to leave in float; shell patterns ("block1_*").
        configs: {name pattern or layer class: `QuantizeConfig`}; the first match wins.
        teacher_precision: How the teacher's widths are drawn; by default `precision.Bernoulli`.
        fused_batch_norm: Whether BatchNormalization trains with TensorFlow's fused kernel: a fifth
            less time per step, and the same values to float accuracy unless a mean is a thousand
            standard deviations (error 1.3e-3 against 5.6e-4). No effect on other backends. Models
            saved with Keras' own keep it: wrap the float model anew and `load_weights` of the old
            model, including its ranges.
        seed: Seed of the draws, an integer; None takes a random one.
        name: Name of the new model; by default the float model's.
        inputs: For a subclassed model that was not called yet, or whose inputs do not all have its
            own dtype: the inputs of its `call`, as `keras.Input` tensors (one, a list or a dict).

    Returns:
        A `SPEQModel`, not compiled.

    Raises:
        TypeError: If `model` is not a Keras 3 model, or an argument has the wrong type.
        ValueError: If the model has no readable graph, is already quantized, has nothing to
            quantize, or an argument has a value that is not allowed.

    Example:
        >>> float_model = keras.Sequential([
        ...     keras.Input((8,)),
        ...     keras.layers.Dense(16, activation="relu"),
        ...     keras.layers.Dense(16, activation="relu", name="hidden"),
        ...     keras.layers.Dense(4, activation="softmax"),
        ... ])
        >>> model = wrap(float_model, w_bits=2, a_bits=2)
        >>> model.plan().row("hidden").w_bits
        2

    Reference: Boo et al., "Stochastic Precision Ensemble" (AAAI 2021), Eq. 1-5.
    """
    _check_model(model)
    float_model, model = model, as_functional(model, inputs)
    check_name("name", name, optional=True)
    options = WrapOptions(
        w_bits=w_bits,
        a_bits=a_bits,
        boundary_bits=boundary_bits,
        weight_quantizer=weight_quantizer,
        activation_quantizer=activation_quantizer,
        skip=skip,
        configs=configs,
    )
    settings = TrainingSettings(
        distillation=distillation,
        temperature=temperature,
        teacher_precision=teacher_precision_from(
            teacher_precision, teacher_bits, quantization_probability
        ),
        speq_weight=speq_weight_from(speq_weight, teacher),
        teacher_distillation=teacher_distillation,
        seed=seed,
    )
    _check_method(model, a_bits, distillation, teacher)
    check_bool("fused_batch_norm", fused_batch_norm)
    graph = quantize_graph(model, options, fuses_batch_norm=fused_batch_norm)
    model = model if model is float_model else taken_apart(graph.read, model.name)
    return assemble(model, graph, settings, name=name or model.name, teacher=teacher)


def assemble(model, graph, settings, *, name, teacher=None):
    """Returns the `SPEQModel` of a quantized graph, with the weights of the float model.

    Args:
        model: The float model.
        graph: The `QuantizedGraph` made from it.
        settings: The `TrainingSettings`.
        name: Name of the new model.
        teacher: External float teacher, or None.
    """
    names = tuple(plain_functional(model).output_names)
    config = _config_of(model, graph.read)
    provenance = Provenance.of_graph(graph, float_config=config, output_names=names)
    text = SettingsText.of(settings, provenance)
    wrapped = SPEQModel(graph.inputs, graph.outputs, name=name, settings=text)
    wrapped.float_classes = tuple(own_classes(model))
    graph.copy_weights(wrapped.layers)
    if teacher is not None:
        wrapped.teacher = teacher
    return wrapped


def _config_of(model, read=None):
    """Returns a float model's config, or else that of its layers taken apart, as in `read`."""
    plain = plain_functional(model)
    try:
        return json.dumps(keras.saving.serialize_keras_object(plain))
    except Exception as error:  # from a third-party `get_config`
        if read is not None:
            return _config_of(taken_apart(read, model.name))
        for operation in plain.operations:
            check_has_config(operation)
        raise ValueError(
            "`model` must have a config, from which it can be recreated. "
            f"{describe(model=model.name, error=brief(error))} Define `get_config()` in every "
            "custom layer."
        ) from error


def _check_method(model, a_bits, distillation, teacher):
    if a_bits is None and distillation not in (AUTO, None):
        raise ValueError(
            "SPEQ draws activation widths, and with `a_bits`=None there are none. "
            f"{describe(a_bits=a_bits, distillation=distillation)} Pass distillation=None."
        )
    if teacher is not None:
        check_teacher(model, teacher)


def _check_model(model):
    if isinstance(model, SPEQModel):
        raise ValueError(
            "`model` must be a float model, and this one is already wrapped. "
            f"{describe(model=model.name)} Change its widths with `set_bits`, its method with "
            "`model.distillation`, or wrap `model.float_model()` again."
        )
    if not isinstance(model, keras.Model):
        module = type(model).__module__
        if "tf_keras" in module or module.startswith("tensorflow.python.keras"):
            raise TypeError(
                "`model` must be a Keras 3 model, and this is a tf_keras (Keras 2) model. "
                f"{describe(model=type(model).__name__)} Save it as .h5 or .keras, load it with "
                "keras.saving.load_model, and unset TF_USE_LEGACY_KERAS."
            )
        raise TypeError(
            f"`model` must be a Keras 3 model. {describe(model=model)} A file is read with "
            "keras.saving.load_model."
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            "`model` must be built: its layers need to know their input shapes. "
            f"{describe(model=model.name)} Begin the Sequential model with keras.Input(shape), or "
            "call model.build(input_shape)."
        )
