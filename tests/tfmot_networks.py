"""Networks and data for the comparison with tfmot, for Keras 3 and tf_keras alike."""

import itertools
import re

import numpy as np


def digits(examples=256):
    """Returns scikit-learn's digits as (images in [0, 1], classes)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images[:examples] / 16).astype("float32"), data.target[:examples]


def tutorial(k):
    """The network of tfmot's tutorial, for images of 8 x 8."""
    return k.Sequential(
        [
            k.Input((8, 8)),
            k.layers.Reshape((8, 8, 1)),
            k.layers.Conv2D(12, (3, 3), activation="relu"),
            k.layers.MaxPooling2D((2, 2)),
            k.layers.Flatten(),
            k.layers.Dense(10),
        ]
    )


def _functional(make):
    def network(k):
        inputs = k.Input((8, 8, 1))
        return k.Model(inputs, make(k.layers, inputs))

    return network


def _head(L, x):
    return L.Dense(10, name="last")(L.Flatten(name="flat")(x))


def _norm(L, name):
    return L.BatchNormalization(
        name=name, beta_initializer="ones", moving_variance_initializer="ones"
    )


def _conv_bn_relu(L, x):
    x = _norm(L, "n1")(L.Conv2D(4, 3, use_bias=False, name="c1")(x))
    x = L.ReLU(name="r1")(x)
    x = _norm(L, "n2")(L.DepthwiseConv2D(3, use_bias=False, name="c2")(x))
    x = L.Activation("relu", name="r2")(x)
    x = _norm(L, "n3")(L.Conv2D(4, 1, use_bias=False, name="c3")(x))
    return _head(L, x)


def _dense_bn_relu(L, x):
    x = L.Dense(12, name="d1")(L.Flatten(name="f")(x))
    x = L.ReLU(name="r1")(_norm(L, "n1")(x))
    x = L.Dense(12, activation="tanh", name="d2")(x)
    x = L.Dense(12, activation="gelu", name="d4")(x)
    return L.Dense(10, activation="softmax", name="d3")(x)


def _relu_layers(L, x):
    x = L.ReLU(name="r1")(L.Conv2D(4, 3, name="c1")(x))
    y = L.Conv2D(4, 3, padding="same", name="c2")(x)
    x = L.Activation("relu", name="r2")(L.Add(name="a")([x, y]))
    return _head(L, x)


def _concatenate(L, x):
    x = L.Conv2D(3, 3, activation="relu", name="c1")(x)
    y = L.Conv2D(3, 3, padding="same", name="c2")(x)
    z = L.UpSampling2D(1, name="u")(L.Conv2D(2, 1, activation="relu", name="c3")(x))
    x = L.Concatenate(name="cat")([y, z])
    return _head(L, x)


def _pooling(L, x):
    x = L.ZeroPadding2D(1, name="z")(x)
    x = L.SeparableConv2D(4, 3, activation="relu", name="s")(x)
    x = L.AveragePooling2D(2, name="ap")(x)
    x = L.LeakyReLU(name="l")(x)
    x = L.GlobalAveragePooling2D(name="g")(x)
    return L.Dense(10, activation="sigmoid", name="last")(x)


def _swish(L, x):
    x = L.Conv2D(4, 3, activation="swish", name="c1")(x)
    x = L.Conv2DTranspose(4, 3, name="t")(x)
    x = L.Activation("swish", name="sw")(x)
    x = L.Reshape((8, 8, 4), name="re")(x)
    return _head(L, L.Dropout(0.0, name="dr")(x))


def _separable_norm(L, x):
    x = L.ReLU(name="r0")(L.SeparableConv2D(3, 3, name="s0")(x))
    x = L.SeparableConv2D(4, 3, use_bias=False, name="s1")(x)
    x = L.ReLU(name="r1")(_norm(L, "n1")(x))
    x = L.Reshape((16, 4), name="re")(x)
    x = L.SeparableConv1D(5, 3, activation="relu", name="s2")(x)
    x = L.Reshape((14, 5, 1), name="re2")(x)
    return _head(L, x)


def _separable_1d(L, x):
    x = L.Reshape((16, 4), name="re")(x)
    x = L.SeparableConv1D(4, 3, use_bias=False, name="s1")(x)
    x = L.ReLU(name="r1")(_norm(L, "n1")(x))
    x = _norm(L, "n2")(L.SeparableConv1D(3, 3, use_bias=False, name="s2")(x))
    x = L.ReLU(name="r3")(L.SeparableConv1D(3, 3, name="s3")(x))
    x = L.Reshape((10, 3, 1), name="re2")(x)
    return _head(L, x)


def _transposed(L, x):
    x = L.ReLU(name="r1")(L.Conv2DTranspose(3, 3, name="t1")(x))
    x = _norm(L, "n2")(L.Conv2DTranspose(3, 3, use_bias=False, name="t2")(x))
    x = L.Conv2DTranspose(3, 3, use_bias=False, name="t3")(x)
    x = L.ReLU(name="r3")(_norm(L, "n3")(x))
    return _head(L, x)


def _more_relu_layers(L, x):
    relu = L.ReLU(name="twice")  # no rule has a layer that is called twice
    x = relu(L.Conv2D(3, 1, name="c1")(x))
    x = relu(L.Conv2D(3, 1, name="c2")(x))
    x = L.ReLU(name="r1")(L.DepthwiseConv2D(3, name="d1")(x))
    y = L.Add(name="shared")([x, L.Conv2D(3, 1, name="c3")(x)])
    x = L.Add(name="a")([y, L.ReLU(name="r2")(y)])
    x = L.Flatten(name="f")(L.Activation("gelu", name="ge")(x))
    return L.ReLU(name="r3")(L.Dense(10, name="last")(x))


def merges(k):
    """Concatenations to which tfmot's rule applies, and others; with several inputs and outputs."""
    L = k.layers
    inputs = [k.Input((8, 8, 1)) for _ in range(3)]

    names = (f"c{number}" for number in itertools.count())

    def leaky(x, count):
        """Makes `count` tensors of which each has a quantizer of its own."""
        return [L.LeakyReLU()(L.Conv2D(1, 1, name=next(names))(x)) for _ in range(count)]

    def merged(*tensors):
        return L.Concatenate()(list(tensors))

    # tfmot gives the kernel these tensors in the order of the layers, whatever the order here.
    x = merged(*leaky(inputs[1], 1), inputs[0])  # this input loses its range
    x = merged(*leaky(x, 1), merged(*leaky(x, 2)))
    x = merged(_norm(L, None)(L.Dense(2, name="d")(x)), *leaky(x, 1))  # is known only later
    x = merged(*leaky(x, 4))
    x = merged(*leaky(x, 7))
    twice, shared = leaky(x, 2)
    x = merged(merged(shared, *leaky(shared, 1)), merged(twice, twice))
    x = L.Add()([x, *leaky(inputs[2], 1)])
    return k.Model(inputs, [x, _head(L, L.ReLU()(x))])


NETWORKS = {
    "conv_bn_relu": _functional(_conv_bn_relu),
    "dense_bn_relu": _functional(_dense_bn_relu),
    "relu_layers": _functional(_relu_layers),
    "concatenate": _functional(_concatenate),
    "pooling": _functional(_pooling),
    "swish": _functional(_swish),
    "separable_norm": _functional(_separable_norm),
    "separable_1d": _functional(_separable_1d),
    "transposed": _functional(_transposed),
    "more_relu_layers": _functional(_more_relu_layers),
    "merges": merges,
    "tutorial": tutorial,
}


def random_weights(model, seed=0):
    """Sets the same weights in a model of either Keras; returns it."""
    for layer in model.layers:
        # By name, as layers do not have the same order; numbers that Keras adds do not count.
        random = np.random.default_rng([seed, *re.sub(r"_\d+$", "", layer.name).encode()])
        weights = layer.get_weights()
        if weights and "normalization" not in type(layer).__name__.lower():
            deviations = [max(np.prod(w.shape[:-1]), 1) ** -0.5 for w in weights]
            shapes = [w.shape for w in weights]
            layer.set_weights(
                [random.normal(0, d, s) for d, s in zip(deviations, shapes, strict=True)]
            )
    return model


def images(name, batch, size=32):
    """Returns a batch of random images for a network."""
    random = np.random.default_rng([len(name), batch])
    x = random.normal(0.3, 1, (size, 8, 8, 1)).astype("float32")
    if name == "merges":
        return [x, 2 * x, 3 * x]
    return x[..., 0] if name == "tutorial" else x
