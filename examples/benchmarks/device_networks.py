"""The networks whose files are tried on devices: on ARM, in browsers, on microcontrollers.

    exported = export("resnet8", "int8", folder)     # files and what they have to compute

Their weights are random, and ranges are calibrated on noise: what a kernel computes does not depend
on what a network has learned. Wrong roundings show because BatchNormalization has the statistics of
that noise, without which signals fade to nothing in a deep network, and because the outputs are
logits, since a softmax would round most of the difference away.
"""

import dataclasses
import pathlib
import sys

import keras
import numpy as np
from keras import layers, ops

import speq_keras

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))  # the folder of the next import
import cifar_networks

NUM_EXAMPLES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported network.

    Attributes:
        model: Path of the .tflite file; all its inputs and outputs are float32.
        self_test: Path of an .npz file with `input_0`, `output_0`, …: four examples and what the
            file computes of them on the desktop.
        report: The `ExportReport`.
    """

    model: pathlib.Path
    self_test: pathlib.Path
    report: object


def export(name, storage, folder):
    """Wraps, calibrates and exports a network; returns an `Exported`.

    Args:
        name: A key of `NETWORKS`.
        storage: As in `SPEQModel.export_tflite`.
        folder: Existing folder for the files, which are named after network and storage.

    Raises:
        RuntimeError: If most outputs are the same for all images: wrong files would pass such a
            self test.
    """
    build, w_bits, a_bits, quantizer = NETWORKS[name]
    keras.utils.set_random_seed(0)
    network = build()
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (16, *network.inputs[0].shape[1:])).astype("float32")
    model = speq_keras.wrap(
        network, w_bits, a_bits, activation_quantizer=quantizer, distillation=None
    )
    model.calibrate(images, training=True, verbose=0)
    model.reestimate_batch_norm(images)
    path = pathlib.Path(folder) / f"{name}-{storage}.tflite"
    self_test = path.with_suffix(".npz")
    report = model.export_tflite(
        path, storage=storage, softmax=False, data=images[:NUM_EXAMPLES], self_test=self_test
    )
    outputs = np.load(self_test)["output_0"]
    if np.mean(np.ptp(outputs, axis=0) > 0) < 0.9:
        raise RuntimeError(
            f"The self test of {name!r} shows nothing: its outputs hardly depend on the image."
        )
    return Exported(model=path, self_test=self_test, report=report)


def attention():
    """A small vision transformer: patches of 8 pixels, two blocks of attention, 16 numbers each."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    x = layers.Conv2D(16, 8, strides=8)(x)
    x = layers.Reshape((16, 16))(x)
    for _ in range(2):
        x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x)])
        x = layers.Add()([x, layers.Dense(16)(layers.Dense(32, activation="relu")(x))])
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def u_net():
    """A U-Net of two levels: a class for every pixel."""

    def block(x, filters):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization()(x))

    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    skips = []
    for filters in (8, 16):
        x = block(x, filters)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = block(x, 32)
    for filters, skip in zip((16, 8), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(filters, 2, strides=2)(x)
        x = block(layers.Concatenate()([x, skip]), filters)
    return keras.Model(inputs, layers.Conv2D(4, 1)(x))


def _application(maker, side, **kwargs):
    """Returns a function that builds a network of keras.applications for raw pixels, 0 to 255."""

    def build():
        network = maker(weights=None, classes=10, input_shape=(side, side, 3), **kwargs)
        inputs = keras.Input((side, side, 3))
        return keras.Model(inputs, network(layers.Rescaling(1 / 127.5, offset=-1)(inputs)))

    return build


def _efficientnet():
    network = keras.applications.EfficientNetB0(
        weights=None, classes=10, input_shape=(64, 64, 3), classifier_activation=None
    )
    return keras.Model(network.inputs, ops.softmax(network.outputs[0]))


# What builds it, the width of weights and of activations, and the activation quantizer.
NETWORKS = {
    "resnet8": (lambda: cifar_networks.build("resnet8"), 3, 3, "pact"),
    "resnet20": (lambda: cifar_networks.build("resnet20"), 2, 2, "pact"),
    "mobilenet_v2": (_application(keras.applications.MobileNetV2, 96), 4, 4, "pact"),
    "mobilenet_v3": (
        _application(keras.applications.MobileNetV3Small, 96, include_preprocessing=False),
        4,
        8,
        "pact",
    ),
    "efficientnet": (_efficientnet, 3, 3, "lsq_plus"),
    "densenet": (_application(keras.applications.DenseNet121, 64), 4, 4, "pact"),
    "attention": (attention, 4, 8, "pact"),
    "u_net": (u_net, 4, 4, "pact"),
}
