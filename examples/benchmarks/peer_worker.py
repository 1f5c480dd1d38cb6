"""Trains ResNet-8 with one quantization package, a few steps whenever it is asked to.

`peers.py` starts this program in the package's own environment and talks to it in lines of JSON:

    argument    {"peer": ..., "w_bits": ..., "a_bits": ..., "batch_size": ...}
    it says     {"bases": {method: its float method}, "parameters": ..., "versions": ...}
    reads       {"method": ..., "steps": ...}
    and says    {"step_times_s": [...], "loss": ...}; where something fails, {"error": ...}

Every environment trains the network of `cifar_networks.resnet8` from its own Keras, with the same
optimizer and random images of the same size.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import sys

BOUNDARY_BITS = 8


def main():
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print is no reply
    settings = json.loads(sys.argv[1])
    try:
        keras, models, bases = BUILDERS[settings["peer"]](settings["w_bits"], settings["a_bits"])
        take_turn = trainer(keras, models, settings["batch_size"])
        greeting = {
            "bases": bases,
            "parameters": models["float"].count_params(),
            "versions": installed_versions(),
        }
        reply(replies, greeting)
        for line in sys.stdin:
            reply(replies, take_turn(**json.loads(line)))
    except Exception as error:  # whatever another package raises is what the table has to say
        first_line = (str(error).strip() or "no message").splitlines()[0]
        reply(replies, {"error": f"{type(error).__name__}: {first_line}"})
        raise


def reply(replies, message):
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def trainer(keras, models, batch_size):
    """Compiles the models; returns the function that trains one of them for a few steps."""
    import numpy as np
    import tensorflow as tf
    from step_times import step_clock

    generator = np.random.default_rng(0)
    images = generator.random((batch_size, 32, 32, 3), "float32")
    labels = generator.integers(0, 10, batch_size)
    batches = tf.data.Dataset.from_tensors((tf.constant(images), tf.constant(labels))).repeat()
    for model in models.values():
        if hasattr(model, "calibrate"):
            model.calibrate(images, verbose=0)
        model.compile(
            keras.optimizers.SGD(1e-3, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    clock = step_clock(keras)

    def take_turn(method, steps):
        # The first step of a turn finds the caches full of another model: it is not measured.
        models[method].fit(
            batches, steps_per_epoch=steps + 1, shuffle=False, verbose=0, callbacks=[clock]
        )
        return {"step_times_s": clock.step_times_s[1:], "loss": clock.loss}

    return take_turn


def installed_versions():
    packages = {x.metadata["Name"].lower(): x.version for x in importlib.metadata.distributions()}
    return dict(sorted(packages.items()))


def resnet8(keras, *, conv=None, relu=None, add=None, dense=None, start=None):
    """ResNet-8 of MLPerf Tiny with logits, of Keras' layers or of others in their place.

    Args:
        keras: The module: `keras` or `tf_keras`.
        conv: What makes a convolution, called like Keras' class; so for the next three.
        relu: What makes a ReLU.
        add: What makes an Add.
        dense: What makes the last layer.
        start: Makes the layer that the image goes through first, if any.
    """
    layers = keras.layers
    conv, relu, add = conv or layers.Conv2D, relu or layers.ReLU, add or layers.Add
    convolution = functools.partial(conv, padding="same", kernel_initializer="he_normal")
    inputs = keras.Input((32, 32, 3))
    x = start()(inputs) if start else inputs
    x = convolution(16, 3, name="conv")(x)
    x = relu()(layers.BatchNormalization(momentum=0.9)(x))
    for block, filters, strides in ((1, 16, 1), (2, 32, 2), (3, 64, 2)):
        y = convolution(filters, 3, strides=strides, name=f"conv{block}_1")(x)
        y = relu()(layers.BatchNormalization(momentum=0.9)(y))
        y = convolution(filters, 3, name=f"conv{block}_2")(y)
        if strides > 1:
            x = convolution(filters, 1, strides=strides, name=f"shortcut{block}")(x)
        y = layers.BatchNormalization(momentum=0.9)(y)
        x = relu()(add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return keras.Model(inputs, (dense or layers.Dense)(10, name="dense")(x))


# ---- the packages ----------------------------------------------------------------------------


def tfmot(w_bits, a_bits):
    """Its default scheme: 8 bits, whatever the arguments say."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow_model_optimization
    import tf_keras

    network = resnet8(tf_keras)
    quantized = tensorflow_model_optimization.quantization.keras.quantize_model(network)
    return tf_keras, {"float": network, "QAT": quantized}, {"QAT": "float"}


def qkeras(w_bits, a_bits):
    """Weights in `quantized_bits`, ReLUs in `quantized_relu`; first and last weights in 8 bits."""
    import keras
    from qkeras import QActivation, QConv2D, QDense, quantized_bits, quantized_relu

    def conv(*args, name, **kwargs):
        bits = BOUNDARY_BITS if name == "conv" else w_bits
        return QConv2D(*args, name=name, kernel_quantizer=quantized_bits(bits, 0, 1), **kwargs)

    quantized = resnet8(
        keras,
        start=lambda: QActivation(quantized_bits(8, 0, keep_negative=False)),
        conv=conv,
        relu=lambda: QActivation(quantized_relu(a_bits, 2)),
        dense=functools.partial(QDense, kernel_quantizer=quantized_bits(BOUNDARY_BITS, 0, 1)),
    )
    return keras, {"float": resnet8(keras), "QAT": quantized}, {"QAT": "float"}


def hgq2(w_bits, a_bits):
    """As in its README, with a trained width for every weight and activation; and one per tensor.

    Widths start at HGQ2's own defaults and are trained, whatever the arguments say.
    """
    import keras
    from hgq.config import LayerConfigScope, QuantizerConfigScope
    from hgq.layers import QAdd, QConv2D, QDense

    def build():
        return resnet8(keras, conv=QConv2D, add=QAdd, dense=QDense)

    with (
        QuantizerConfigScope(place="all", default_q_type="kbi", overflow_mode="SAT_SYM"),
        QuantizerConfigScope(place="datalane", default_q_type="kif", overflow_mode="WRAP"),
    ):
        with LayerConfigScope(enable_ebops=True, beta0=1e-5):
            models = {"float": resnet8(keras), "QAT": build()}
        with (
            QuantizerConfigScope(place="all", homogeneous_axis=None, heterogeneous_axis=()),
            LayerConfigScope(enable_ebops=False),
        ):
            models["QAT, one width per tensor"] = build()
    return keras, models, dict.fromkeys(list(models)[1:], "float")


def speq_keras(w_bits, a_bits):
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
    import keras

    import speq_keras

    def copy_fused(layer):
        is_norm = type(layer) is keras.layers.BatchNormalization
        kind = speq_keras.BatchNormalization if is_norm else type(layer)
        return kind.from_config(layer.get_config())

    network = resnet8(keras)
    models = {
        "float": keras.models.clone_model(network, clone_function=copy_fused),
        "float, Keras' BN": network,
    }
    bases = {}
    for method, distillation in (("QAT", None), ("SPEQ", "cosine")):
        for suffix in ("", ", Keras' BN"):
            models[method + suffix] = speq_keras.wrap(
                network,
                w_bits,
                a_bits,
                boundary_bits=BOUNDARY_BITS,
                distillation=distillation,
                fused_batch_norm=not suffix,
                seed=0,
            )
            bases[method + suffix] = f"float{suffix}"
    return keras, models, bases


BUILDERS = {"tfmot": tfmot, "QKeras": qkeras, "HGQ2": hgq2, "speq_keras": speq_keras}

if __name__ == "__main__":
    main()
