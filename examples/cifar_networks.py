"""The CIFAR-10 networks of the examples, and the loader of their float weights.

    network = build("resnet8")                      # random weights
    load_weights(network, "resnet20.npz")           # or .keras, .weights.h5, a Keras 2 .h5

    resnet8       the image classification model of MLPerf Tiny
    resnet20      the CIFAR network of He et al. (https://arxiv.org/abs/1512.03385)
    swish         ResNet-8 with swish instead of ReLU: signed activations
    dense         a small DenseNet (https://arxiv.org/abs/1608.06993): BatchNormalization before the
                  convolution, concatenations, average pooling
    efficientnet  EfficientNet-B0 (https://arxiv.org/abs/1905.11946) without dropout: squeeze-excite
                  blocks, swish, and 50 times the weights of the others

All take raw pixels, 0 to 255. ResNet-8 ends in a softmax, the others in logits.
"""

import pathlib

import keras
import numpy as np
from keras import layers, ops

CLASSES = 10
IMAGE_SHAPE = (32, 32, 3)

# Whether the output of a network is logits; a loss has to know.
FROM_LOGITS = {
    "resnet8": False,
    "resnet20": True,
    "swish": True,
    "dense": True,
    "efficientnet": True,
}
NAMES = tuple(FROM_LOGITS)


def build(name):
    """Builds a network by its name, with random weights."""
    networks = {
        "resnet8": resnet8,
        "resnet20": resnet20,
        "swish": swish,
        "dense": dense,
        "efficientnet": efficientnet,
    }
    return networks[name]()


def resnet8():
    """ResNet-8 of MLPerf Tiny (https://github.com/mlcommons/tiny): 78,666 parameters."""
    inputs, x = _resnet8_body(layers.ReLU)
    outputs = layers.Dense(
        CLASSES, activation="softmax", kernel_initializer="he_normal", name="linear"
    )(x)
    return keras.Model(inputs, outputs, name="resnet8")


def swish():
    """ResNet-8 with swish instead of ReLU, and with logits: 78,666 parameters."""
    inputs, x = _resnet8_body(lambda: layers.Activation("swish"))
    return keras.Model(inputs, layers.Dense(CLASSES, name="linear")(x), name="swish")


def _resnet8_body(activation):
    """Returns the inputs of ResNet-8 and its features; `activation` makes an activation layer."""

    def conv(x, filters, *, name, kernel_size=3, strides=1):
        return layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(1e-4),
            name=name,
        )(x)

    def batch_norm(x, name):
        return layers.BatchNormalization(momentum=0.9, name=name)(x)

    inputs = keras.Input(IMAGE_SHAPE)
    x = activation()(batch_norm(conv(inputs, 16, name="conv"), "bn"))
    for block, filters, strides in ((1, 16, 1), (2, 32, 2), (3, 64, 2)):
        name = f"block{block}"
        y = conv(x, filters, strides=strides, name=f"{name}.conv1")
        y = activation()(batch_norm(y, f"{name}.bn1"))
        y = conv(y, filters, name=f"{name}.conv2")
        if strides > 1:
            x = conv(x, filters, kernel_size=1, strides=strides, name=f"{name}.shortcut")
        y = batch_norm(y, f"{name}.bn2")
        x = activation()(layers.Add()([x, y]))
    return inputs, layers.Flatten()(layers.AveragePooling2D(8)(x))


def resnet20():
    """ResNet-20 with shortcuts that have no weights (option A): 269,722 trainable parameters.

    Layers have the names of the PyTorch model
    (https://github.com/akamaster/pytorch_resnet_cifar10), so that its weights can be assigned by
    name.
    """

    def conv(x, filters, *, strides, name):
        if strides > 1:
            # "same" would pad an even image on one side only; PyTorch's weights expect both.
            x = layers.ZeroPadding2D(1)(x)
        return layers.Conv2D(
            filters,
            3,
            strides=strides,
            padding="same" if strides == 1 else "valid",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(
                5e-5
            ),  # its gradient is a weight decay of 1e-4
            name=name,
        )(x)

    def batch_norm(x, name):
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(x)

    inputs = keras.Input(IMAGE_SHAPE)
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Normalization(mean=(0.485, 0.456, 0.406), variance=(0.229**2, 0.224**2, 0.225**2))(x)
    x = layers.ReLU()(batch_norm(conv(x, 16, strides=1, name="conv1"), "bn1"))
    for stage, filters in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            name = f"layer{stage}.{block}"
            strides = 2 if stage > 1 and block == 0 else 1
            y = conv(x, filters, strides=strides, name=f"{name}.conv1")
            y = layers.ReLU()(batch_norm(y, f"{name}.bn1"))
            y = batch_norm(conv(y, filters, strides=1, name=f"{name}.conv2"), f"{name}.bn2")
            if strides == 2:
                # Option A: every second pixel, and zero channels on both sides.
                new_channels = filters - x.shape[-1]
                x = ops.pad(
                    x[:, ::2, ::2, :],
                    ((0, 0), (0, 0), (0, 0), (new_channels // 2, new_channels // 2)),
                )
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="linear")(x), name="resnet20")


def dense():
    """A DenseNet with three blocks of three layers, growth 16: 82,722 parameters."""

    def batch_norm_relu_conv(x, filters, *, kernel_size, name):
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}.bn")(x)
        return layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(5e-5),
            name=f"{name}.conv",
        )(layers.ReLU()(x))

    inputs = keras.Input(IMAGE_SHAPE)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.Conv2D(
        32,
        3,
        strides=2,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name="stem",
    )(x)
    for block in (1, 2, 3):
        if block > 1:  # the transition halves height, width and channels
            x = batch_norm_relu_conv(x, x.shape[-1] // 2, kernel_size=1, name=f"transition{block}")
            x = layers.AveragePooling2D(2)(x)
        for layer in (1, 2, 3):
            y = batch_norm_relu_conv(x, 16, kernel_size=3, name=f"block{block}.{layer}")
            x = layers.Concatenate()([x, y])
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9, name="bn")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(CLASSES, name="linear")(x), name="dense")


def efficientnet(side=32):
    """EfficientNet-B0 on images of `side` pixels: 4,062,381 parameters."""
    network = keras.applications.EfficientNetB0(
        weights=None,
        input_shape=(side, side, 3),
        classes=CLASSES,
        classifier_activation=None,
        name="efficientnet",
    )
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9  # as in the others: statistics converge within an epoch
        elif isinstance(layer, layers.Dropout):
            layer.rate = 0.0
    return network


def build_float(name, folder):
    """Builds a network with the float weights in a folder, a file by the network's name.

    Ends the program with one sentence if the folder has none.
    """
    found = sorted(pathlib.Path(folder).glob(f"{name}.*"))
    if not found:
        raise SystemExit(f"--model_dir has no weights of {name}. Received: {folder}")
    network = build(name)
    load_weights(network, found[0])
    return network


def load_weights(network, path):
    """Loads float weights into `network`.

    Args:
        network: One of the networks above.
        path: A .keras, .weights.h5 or Keras 2 .h5 file, or an .npz file with PyTorch's names and
            layouts.

    Raises:
        ValueError: If there is no such file, or if it contains the weights of another network.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            f"Weights are read from a file. Received: path={str(path)!r}, which is not a file."
        )
    if path.suffix == ".npz":
        _load_pytorch_arrays(network, path)
    elif path.name.endswith(".weights.h5"):
        network.load_weights(path)
    elif path.suffix in (".keras", ".h5"):
        weights = keras.saving.load_model(path, compile=False).get_weights()
        if [w.shape for w in weights] != [w.shape for w in network.get_weights()]:
            raise ValueError(f"File {str(path)!r} does not hold the weights of a {network.name}.")
        network.set_weights(weights)
    else:
        raise ValueError(
            "Weights are read from .keras, .weights.h5, .h5 or .npz files. "
            f"Received: path={str(path)!r}."
        )


def _load_pytorch_arrays(network, path):
    """Fills each layer from the arrays of its name; kernels are OIHW there, matrices (out, in)."""
    with np.load(path) as arrays:

        def read(name):
            if name not in arrays:
                raise ValueError(
                    f"File {str(path)!r} does not hold the weights of a {network.name}: "
                    f"it has no array {name!r}."
                )
            return arrays[name]

        for layer in network.layers:
            if isinstance(layer, layers.Conv2D):
                layer.set_weights([read(f"{layer.name}.weight").transpose(2, 3, 1, 0)])
            elif isinstance(layer, layers.Dense):
                layer.set_weights([read(f"{layer.name}.weight").T, read(f"{layer.name}.bias")])
            elif isinstance(layer, layers.BatchNormalization):
                fields = ("weight", "bias", "running_mean", "running_var")
                layer.set_weights([read(f"{layer.name}.{field}") for field in fields])
