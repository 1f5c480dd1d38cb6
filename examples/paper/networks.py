"""The networks of the paper, for pixels from 0 to 255, all ending in logits.

    ResNet20, ResNet32, VGG16, MobileNetV2, FiveLayerCNN    for small images (CIFAR)
    AlexNet, ResNet18, ResNet34, ResNet50,
    EfficientNetB0, EfficientNetB1                          for ImageNet

`ResNet8` is none of the paper's: a ResNet of the same kind that trains in minutes on a CPU.
"""

import keras
from keras import layers

import imagenet_networks
from imagenet_networks import EFFICIENTNETS


def build(name, *, image_size, classes):
    """Builds a network by its name, with random weights.

    Args:
        name: One of `NAMES`.
        image_size: Height and width of the images, in pixels.
        classes: Number of classes.
    """
    if name in EFFICIENTNETS:
        network = imagenet_networks.efficientnet(name, image_size=image_size, classes=classes)
    else:
        network = _BUILDERS[name](name, image_size, classes)
    imagenet_networks.set_batch_norm_momentum(network, 0.9)
    return network


def convolution(x, filters, size=3, strides=1):
    """A convolution without bias, and BatchNormalization."""
    x = layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)
    return layers.BatchNormalization()(x)


def begin(image_size):
    """Returns an input for pixels and the same between −1 and 1."""
    inputs = keras.Input((image_size, image_size, 3))
    return inputs, layers.Rescaling(1 / 127.5, offset=-1)(inputs)


def five_layer_cnn(name, image_size, classes):
    """The five convolutional layers of Fig. 2a; the paper gives no widths: 32 to 128 here."""
    inputs, x = begin(image_size)
    for filters, strides in ((32, 1), (32, 2), (64, 1), (64, 2), (128, 1)):
        x = layers.ReLU()(convolution(x, filters, strides=strides))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name=name)


def cifar_resnet(blocks):
    """Returns a builder of ResNets with 6·blocks + 2 layers (He et al., 2016, Section 4.2).

    Where a block has a stride its shortcut is a 1×1 convolution (option B).
    """

    def resnet(name, image_size, classes):
        inputs, x = begin(image_size)
        x = layers.ReLU()(convolution(x, 16))
        for filters in (16, 32, 64):
            for block in range(blocks):
                strides = 2 if filters > 16 and block == 0 else 1
                y = layers.ReLU()(convolution(x, filters, strides=strides))
                y = convolution(y, filters)
                if strides > 1:
                    x = convolution(x, filters, size=1, strides=strides)
                x = layers.ReLU()(layers.Add()([x, y]))
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(classes)(x), name=name)

    return resnet


def vgg16(name, image_size, classes):
    """VGG16 with BatchNormalization and one dense layer, as it is used for CIFAR."""
    inputs, x = begin(image_size)
    for filters, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            x = layers.ReLU()(convolution(x, filters))
        x = layers.MaxPooling2D()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name=name)


def mobilenet_v2(name, image_size, classes):
    """MobileNetV2 (Sandler et al., 2018), with three strides fewer where images are small."""
    inputs, x = begin(image_size)
    small = image_size <= 64
    x = layers.ReLU(max_value=6)(convolution(x, 32, strides=1 if small else 2))
    for expansion, filters, count, strides in (
        (1, 16, 1, 1),
        (6, 24, 2, 1 if small else 2),
        (6, 32, 3, 1 if small else 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for block in range(count):
            x = inverted_residual(x, expansion, filters, strides if block == 0 else 1)
    x = layers.ReLU(max_value=6)(convolution(x, 1280, size=1))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes)(x), name=name)


def inverted_residual(x, expansion, filters, strides):
    """Widens, convolves each channel, narrows; with a shortcut where shapes stay."""
    channels = x.shape[-1]
    y = x
    if expansion > 1:
        y = layers.ReLU(max_value=6)(convolution(y, expansion * channels, size=1))
    y = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)(y)
    y = layers.ReLU(max_value=6)(layers.BatchNormalization()(y))
    y = convolution(y, filters, size=1)
    return layers.Add()([x, y]) if strides == 1 and channels == filters else y


def alexnet(name, image_size, classes):
    """AlexNet with BatchNormalization for local normalization, as quantized ones are trained."""
    inputs, x = begin(image_size)
    small = image_size <= 64
    x = layers.ReLU()(convolution(x, 96, size=5 if small else 11, strides=1 if small else 4))
    x = layers.MaxPooling2D(3, strides=2)(x)
    x = layers.ReLU()(convolution(x, 256, size=5))
    x = layers.MaxPooling2D(3, strides=2)(x)
    for filters in (384, 384, 256):
        x = layers.ReLU()(convolution(x, filters))
    x = layers.MaxPooling2D(3, strides=2)(x)
    x = layers.Flatten()(x)
    for _ in range(2):
        x = layers.Dense(4096, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(classes)(x), name=name)


def imagenet_resnet(counts):
    """Returns a builder of ResNet-18 and its deeper kin with blocks of two convolutions."""

    def resnet(name, image_size, classes):
        return imagenet_networks.resnet(counts, image_size=image_size, classes=classes, name=name)

    return resnet


def resnet50(name, image_size, classes):
    """ResNet-50 of `keras.applications`, a teacher."""
    inputs, x = begin(image_size)
    features = keras.applications.ResNet50(
        input_tensor=x, include_top=False, weights=None, pooling="avg"
    )
    return keras.Model(inputs, layers.Dense(classes)(features.output), name=name)


_BUILDERS = {
    "FiveLayerCNN": five_layer_cnn,
    "ResNet8": cifar_resnet(1),
    "ResNet20": cifar_resnet(3),
    "ResNet32": cifar_resnet(5),
    "VGG16": vgg16,
    "MobileNetV2": mobilenet_v2,
    "AlexNet": alexnet,
    "ResNet18": imagenet_resnet((2, 2, 2, 2)),
    "ResNet34": imagenet_resnet((3, 4, 6, 3)),
    "ResNet50": resnet50,
}
NAMES = (*_BUILDERS, *EFFICIENTNETS)
