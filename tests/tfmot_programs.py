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
    """The configs of the comprehensive guide: {name: QuantizeConfig class}."""
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

    class FixedRangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
        def build(self, tensor_shape, name, layer):
            limit = layer.add_weight(
                name + "_limit", initializer=keras.initializers.Constant(0.1), trainable=False
            )
            return {"limit": limit}

        def __call__(self, inputs, training, weights, **kwargs):
            return keras.backend.clip(inputs, -weights["limit"], weights["limit"])

        def get_config(self):
            return {}

    class OwnQuantizerConfig(DefaultDenseQuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, FixedRangeQuantizer())]

    classes = (
        DefaultDenseQuantizeConfig,
        FewBitsConfig,
        WeightsOnlyConfig,
        OwnQuantizerConfig,
        FixedRangeQuantizer,
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
    """The guide's way to quantize only the Dense layers, with `clone_model`."""

    def apply_quantization_to_dense(layer):
        if isinstance(layer, keras.layers.Dense):
            return tfmot.quantization.keras.quantize_annotate_layer(layer)
        return layer

    base = random_weights(NETWORKS["relu_layers"](keras))
    annotated = keras.models.clone_model(base, clone_function=apply_quantization_to_dense)
    random_weights(annotated)
    return tfmot.quantization.keras.quantize_apply(annotated)


GUIDE = ["DefaultDenseQuantizeConfig", "FewBitsConfig", "WeightsOnlyConfig", "OwnQuantizerConfig"]


def outputs(model, batches):
    """Returns outputs before, while and after a model sees batches in training mode."""
    found = [model(batches[0], training=False)]
    found += [model(batch, training=True) for batch in batches]
    found.append(model(batches[0], training=False))
    return np.stack([np.asarray(y) for y in found])


def trained(keras, tfmot):
    """Returns outputs of the tutorial's network after ten training steps, quantized."""
    model = tfmot.quantization.keras.quantize_model(random_weights(NETWORKS["tutorial"](keras)))
    model.compile(
        keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, y = digits(320)
    model.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
    return np.stack([np.asarray(model(x, training=False))])


def all_outputs(keras, tfmot):
    """Returns {case: outputs} of all networks and programs, to be compared."""
    found = {}
    for name, make in NETWORKS.items():
        model = tfmot.quantization.keras.quantize_model(random_weights(make(keras)))
        found[name] = outputs(model, [images(name, batch) for batch in range(5)])
    vectors = np.random.default_rng(1).normal(size=(5, 16, 20)).astype("float32")
    for name in GUIDE:
        found[name] = outputs(guide(keras, tfmot, name), list(vectors))
    found["some_layers"] = outputs(
        some_layers(keras, tfmot), [images("some", batch) for batch in range(5)]
    )
    found["trained"] = trained(keras, tfmot)
    return found
