"""Programs for tfmot, which run with tf_keras and tfmot as with Keras 3 and speq_keras.tfmot.

They take the modules that a program imports as arguments, so that nothing but imports differs.
"""

import numpy as np
from tfmot_networks import NETWORKS, digits, images, random_weights


def tutorial(keras, tfmot):
    """The quantization-aware training tutorial: a small CNN, trained in float and quantized.

    Returns:
        `(accuracy in float, accuracy after training quantized, the quantized model)`.
    """
    train_images, train_labels = digits(1500)
    model = keras.Sequential(
        [
            keras.layers.InputLayer(input_shape=(8, 8)),
            keras.layers.Reshape(target_shape=(8, 8, 1)),
            keras.layers.Conv2D(filters=12, kernel_size=(3, 3), activation="relu"),
            keras.layers.MaxPooling2D(pool_size=(2, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train_images, train_labels, epochs=4, validation_split=0.1, verbose=0)

    quantize_model = tfmot.quantization.keras.quantize_model
    q_aware_model = quantize_model(model)
    q_aware_model.compile(
        optimizer="adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    q_aware_model.summary(print_fn=lambda line: None)
    q_aware_model.fit(
        train_images[:1000],
        train_labels[:1000],
        batch_size=500,
        epochs=1,
        validation_split=0.1,
        verbose=0,
    )
    _, baseline_accuracy = model.evaluate(train_images, train_labels, verbose=0)
    _, q_aware_accuracy = q_aware_model.evaluate(train_images, train_labels, verbose=0)
    return baseline_accuracy, q_aware_accuracy, q_aware_model


def guide_configs(keras, tfmot):
    """The configs of the comprehensive guide, and more: {name: QuantizeConfig class}."""
    quantizers = tfmot.quantization.keras.quantizers
    LastValueQuantizer = tfmot.quantization.keras.quantizers.LastValueQuantizer
    MovingAverageQuantizer = tfmot.quantization.keras.quantizers.MovingAverageQuantizer

    class DefaultDenseQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
        weight_bits = 8

        def get_weights_and_quantizers(self, layer):
            quantizer = LastValueQuantizer(
                num_bits=self.weight_bits, symmetric=True, narrow_range=False, per_axis=False
            )
            return [(layer.kernel, quantizer)]

        def get_activations_and_quantizers(self, layer):
            quantizer = MovingAverageQuantizer(
                num_bits=8, symmetric=False, narrow_range=False, per_axis=False
            )
            return [(layer.activation, quantizer)]

        def set_quantize_weights(self, layer, quantize_weights):
            layer.kernel = quantize_weights[0]

        def set_quantize_activations(self, layer, quantize_activations):
            layer.activation = quantize_activations[0]

        def get_output_quantizers(self, layer):
            return []

        def get_config(self):
            return {}

    class FewBitsConfig(DefaultDenseQuantizeConfig):
        weight_bits = 4

    class WeightsOnlyConfig(DefaultDenseQuantizeConfig):
        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_activations(self, layer, quantize_activations):
            return

    class OtherRulesConfig(DefaultDenseQuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, quantizers.AllValuesQuantizer(8, False, True, True))]

        def get_activations_and_quantizers(self, layer):
            return [(layer.activation, quantizers.FixedQuantizer(4, -0.3, 1.1, True))]

    class OutputConfig(DefaultDenseQuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return []

        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_weights(self, layer, quantize_weights):
            return

        def set_quantize_activations(self, layer, quantize_activations):
            return

        def get_output_quantizers(self, layer):
            # tfmot takes the first one.
            return [quantizers.LastValueQuantizer(b, False, False, True) for b in (4, 3)]

    class ActivationConfig(OutputConfig):
        get_activations_and_quantizers = DefaultDenseQuantizeConfig.get_activations_and_quantizers
        set_quantize_activations = DefaultDenseQuantizeConfig.set_quantize_activations

        def get_output_quantizers(self, layer):
            return []

    class SeparableConfig(DefaultDenseQuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            kernels = layer.depthwise_kernel, layer.pointwise_kernel
            quantizer = quantizers.LastValueQuantizer(5, False, False, False)
            return [(kernel, quantizer) for kernel in kernels]

        def set_quantize_weights(self, layer, quantize_weights):
            layer.depthwise_kernel, layer.pointwise_kernel = quantize_weights

    class LimitQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
        def build(self, tensor_shape, name, layer):
            limit = layer.add_weight(
                name + "_limit", initializer=keras.initializers.Constant(0.1), trainable=False
            )
            return {"limit": limit}

        def __call__(self, inputs, training, weights, **kwargs):
            if training:
                weights["limit"].assign(0.9 * weights["limit"])
            return keras.backend.clip(inputs, -weights["limit"], weights["limit"])

        def get_config(self):
            return {}

    class OwnQuantizerConfig(DefaultDenseQuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, LimitQuantizer())]

    classes = (
        DefaultDenseQuantizeConfig,
        FewBitsConfig,
        WeightsOnlyConfig,
        OwnQuantizerConfig,
        OtherRulesConfig,
        OutputConfig,
        ActivationConfig,
        SeparableConfig,
        LimitQuantizer,
    )
    return {cls.__name__: cls for cls in classes}


def guide(keras, tfmot, config_name):
    """The guide's model with a layer of one's own and a config; the rest has the defaults."""
    quantize_annotate_layer = tfmot.quantization.keras.quantize_annotate_layer
    quantize_annotate_model = tfmot.quantization.keras.quantize_annotate_model
    quantize_scope = tfmot.quantization.keras.quantize_scope

    class CustomLayer(keras.layers.Dense):
        pass

    configs = guide_configs(keras, tfmot)
    base = keras.Sequential(
        [
            quantize_annotate_layer(
                CustomLayer(20, activation="relu", input_shape=(20,)), configs[config_name]()
            ),
            keras.layers.Dense(10),
            keras.layers.Flatten(),
        ]
    )
    model = quantize_annotate_model(base)
    random_weights(model)
    with quantize_scope({**configs, "CustomLayer": CustomLayer}):
        return tfmot.quantization.keras.quantize_apply(model)


def some_layers(keras, tfmot):
    """The guide's way to quantize only some layers, with `clone_model`: Dense, and a ReLU.

    tfmot also rounds what float layers feed into them: the convolution in front of the ReLU.
    """

    def annotated_if_chosen(layer):
        if isinstance(layer, keras.layers.Dense | keras.layers.ReLU):
            return tfmot.quantization.keras.quantize_annotate_layer(layer)
        return layer

    base = random_weights(NETWORKS["relu_layers"](keras))
    annotated = keras.models.clone_model(base, clone_function=annotated_if_chosen)
    random_weights(annotated)
    return tfmot.quantization.keras.quantize_apply(annotated)


def configured(keras, tfmot):
    """Layers with configs of one's own in places where tfmot has rules for others."""
    L, annotate = keras.layers, tfmot.quantization.keras.quantize_annotate_layer
    configs = guide_configs(keras, tfmot)
    x = inputs = keras.Input((8, 8, 1))
    x = annotate(L.SeparableConv2D(3, 3, name="s"), configs["SeparableConfig"]())(x)
    dense = L.Dense(3, name="d")
    x = L.ReLU(name="r")(annotate(dense, configs["DefaultDenseQuantizeConfig"]())(x))
    c1, c2 = (L.Conv2D(1, 1, name=name)(x) for name in ("c1", "c2"))
    x = annotate(L.LeakyReLU(name="l"), configs["OutputConfig"]())(c1)
    x = annotate(L.Concatenate(name="cat"), configs["OutputConfig"]())([x, c2])
    # What goes into the function is rounded for it alone.
    x = L.Add(name="a")(
        [x, annotate(L.Activation("tanh", name="t"), configs["ActivationConfig"]())(x)]
    )
    x = L.Dense(10, name="last")(L.Flatten(name="f")(x))
    base = random_weights(keras.Model(inputs, x))
    with tfmot.quantization.keras.quantize_scope(configs):
        model = tfmot.quantization.keras.quantize_annotate_model(base)
        return tfmot.quantization.keras.quantize_apply(model)


NOT_FUSED = [
    "behind a function",
    "of a tensor with two readers",
    "of a model's output",
    "of a layer that is called twice",
    "of a layer with a config",
]


def not_fused(keras, tfmot, case):
    """Returns an annotated network with a normalization to which no rule of tfmot applies."""
    L, quantization = keras.layers, tfmot.quantization.keras
    function = "relu" if case == "behind a function" else None
    conv = L.Conv2D(1, 1, use_bias=False, activation=function)
    if case == "of a layer with a config":
        config = guide_configs(keras, tfmot)["DefaultDenseQuantizeConfig"]()
        conv = quantization.quantize_annotate_layer(conv, config)
    inputs = keras.Input((4, 4, 1))
    x = conv(inputs)
    y = L.BatchNormalization(name="norm")(x)
    outputs = {
        "of a tensor with two readers": lambda: L.Add()([x, y]),
        "of a model's output": lambda: [x, y],
        "of a layer that is called twice": lambda: conv(y),
    }.get(case, lambda: y)()
    with quantization.quantize_scope(guide_configs(keras, tfmot)):
        return quantization.quantize_annotate_model(keras.Model(inputs, outputs))


GUIDE = [
    "DefaultDenseQuantizeConfig",
    "FewBitsConfig",
    "WeightsOnlyConfig",
    "OwnQuantizerConfig",
    "OtherRulesConfig",
]
CASES = [*NETWORKS, *GUIDE, "some_layers", "configured", "trained"]


def seen(model, batches):
    """Returns outputs before, while and after a model sees batches in training mode."""
    outputs = [model(batches[0], training=False)]
    outputs += [model(batch, training=True) for batch in batches]
    outputs.append(model(batches[0], training=False))
    rows = [y if isinstance(y, list | tuple) else [y] for y in outputs]
    return np.stack([np.concatenate([np.ravel(part) for part in row]) for row in rows])


def ranges(model):
    """Returns the ends of all ranges that training sets, of weights and activations, sorted."""
    if hasattr(model, "activation_quantizers"):  # a SPEQModel
        quantizers = [*model.activation_quantizers, *model.weight_quantizers]
        follow = [q for q in quantizers if getattr(q, "rule", "fixed") != "fixed"]
        ends = [end for q in follow for end in (q.range_low, q.range_high)]
    else:
        ends = [w for w in model.weights if w.name.split(":")[0].endswith(("_min", "_max"))]
    return np.sort(np.concatenate([np.ravel(end) for end in ends]))


def trained(keras, tfmot):
    """Returns the tutorial's network after ten training steps, quantized."""
    model = tfmot.quantization.keras.quantize_model(random_weights(NETWORKS["tutorial"](keras)))
    model.compile(
        keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, y = digits(320)
    model.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
    return model


def results(keras, tfmot, case):
    """Returns (outputs, ends of all ranges) of one of `CASES`, to be compared."""
    if case == "trained":
        model = trained(keras, tfmot)
        return seen(model, [digits(320)[0]]), ranges(model)
    if case in NETWORKS:
        network = random_weights(NETWORKS[case](keras))
        model = tfmot.quantization.keras.quantize_model(network)
    elif case in GUIDE:
        model = guide(keras, tfmot, case)
    else:
        model = {"some_layers": some_layers, "configured": configured}[case](keras, tfmot)
    if case in GUIDE:
        batches = list(np.random.default_rng(1).normal(size=(3, 16, 20)).astype("float32"))
    else:
        batches = [images(case, batch) for batch in range(3)]
    return seen(model, batches), ranges(model)
