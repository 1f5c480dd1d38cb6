"""Networks for colour images that end in logits: `keras.applications` and ResNet-18."""

import pathlib
import warnings

import keras
from keras import layers

EFFICIENTNETS = tuple(f"EfficientNetB{number}" for number in range(8))


def efficientnet(name, *, image_size, classes, weights=None):
    """Returns an EfficientNet of `keras.applications` that reads pixels from 0 to 255.

    Args:
        name: One of `EFFICIENTNETS`.
        image_size: Height and width of the images, in pixels.
        classes: Number of classes.
        weights: "imagenet" (downloaded by Keras; unless there are 1,000 classes, the last layer is
            new), a file made by `save` or `save_weights`, or None: random.

    Raises:
        FileNotFoundError: If there is no such file, or the download fails.
        ValueError: If the file contains another network.
    """
    keras_weights = weights if weights == "imagenet" else None
    try:
        network = build_efficientnet(name, image_size, classes, keras_weights)
    except Exception as error:  # Keras raises a bare Exception when a download fails
        if keras_weights is None:
            raise
        raise FileNotFoundError(
            f"--weights=imagenet: Keras could not download {name} ({error}). Pass a file, or none."
        ) from None
    if weights != keras_weights:
        load_weights(network, weights)
    return network


def build_efficientnet(name, image_size, classes, weights):
    """Returns the network, with a last layer for its number of classes."""
    build = getattr(keras.applications, name)
    shape = (image_size, image_size, 3)
    if classes == 1000:
        return build(input_shape=shape, weights=weights, classifier_activation=None)
    # Keras' own last layer is initialized for 1,000 classes: with ten, initial logits are several
    # units large, and training spends its first thousand steps on reducing them.
    features = build(input_shape=shape, weights=weights, include_top=False, pooling="avg")
    x = layers.Dropout(0.2)(features.output)
    return keras.Model(features.input, layers.Dense(classes, name="predictions")(x), name=name)


def load_weights(network, path):
    """Loads a file made by `save` or `save_weights` into a network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file contains another network.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".keras":
            network.set_weights(keras.saving.load_model(path, compile=False).get_weights())
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Keras warns of layers without weights in the file
                network.load_weights(path)
    except (ValueError, KeyError, OSError, UserWarning) as error:
        raise ValueError(
            f"{path} does not hold the weights of {network.name} with {network.output_shape[-1]} "
            f"classes ({str(error).splitlines()[0]})."
        ) from None


def set_batch_norm_momentum(network, momentum):
    """Sets how slowly all moving statistics follow; with Keras' 0.99 they lag by 500 steps."""
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = momentum


def set_dropout_rate(network, rate):
    """Sets the rate of dropout and stochastic depth; 0: none."""
    for layer in network.layers:
        if isinstance(layer, layers.Dropout):
            layer.rate = rate


def resnet18(*, image_size, classes):
    """Returns ResNet-18; see `resnet`."""
    return resnet((2, 2, 2, 2), image_size=image_size, classes=classes, name="resnet18")


def resnet(counts, *, image_size, classes, name):
    """Returns a ResNet with blocks of two convolutions (He et al., 2016), for pixels 0 to 255.

    Images of at most 64 pixels go into a 3×3 convolution without stride or pooling, as in ResNets
    for CIFAR.

    Args:
        counts: Blocks of each stage, (2, 2, 2, 2) for ResNet-18.
        image_size: Height and width of the images, in pixels.
        classes: Number of classes.
        name: The model's name.
    """
    inputs = keras.Input((image_size, image_size, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    if image_size > 64:
        x = convolution(x, 64, 7, strides=2)
        x = layers.ReLU()(x)
        x = layers.ZeroPadding2D(1)(x)
        x = layers.MaxPooling2D(3, strides=2)(x)
    else:
        x = layers.ReLU()(convolution(x, 64, 3))
    for stage, count in enumerate(counts):
        for block in range(count):
            x = residual_block(x, 64 * 2**stage, 2 if stage and block == 0 else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, name="predictions")(x), name=name)


def residual_block(x, filters, strides):
    """Two 3×3 convolutions with a shortcut, which is a 1×1 convolution if shapes change."""
    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
        shortcut = convolution(x, filters, 1, strides=strides)
    x = layers.ReLU()(convolution(x, filters, 3, strides=strides))
    x = convolution(x, filters, 3)
    return layers.ReLU()(layers.Add()([shortcut, x]))


def convolution(x, filters, size, strides=1):
    """A convolution with padding on both sides, as in PyTorch, and BatchNormalization."""
    if size > 1:
        x = layers.ZeroPadding2D(size // 2)(x)
    x = layers.Conv2D(filters, size, strides=strides, use_bias=False)(x)
    return layers.BatchNormalization(epsilon=1e-5)(x)
