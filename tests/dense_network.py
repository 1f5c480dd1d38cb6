"""A small dense network for the training tests: in Keras, and written again in NumPy (float64)."""

import keras
import numpy as np
from keras import layers

import speq_keras

NAMES = ("first", "second", "third", "last")
CLASSES = 4


def data(examples=16, seed=0):
    """Returns inputs (examples, 6) and class numbers."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(examples, 6)).astype("float32")
    return x, random.integers(0, CLASSES, examples)


def float_model(seed=1, batch_norm=False, dropout=0.0, dropout_seed=3, head="softmax"):
    """Returns a float model whose last layer has `CLASSES` outputs."""
    keras.utils.set_random_seed(seed)
    # With biases of zero, rounded activations would lie on the kink of the next ReLU.
    biases = keras.initializers.RandomNormal(stddev=0.3)
    x = inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, "relu", bias_initializer=biases, name="first")(x)
    x = layers.Dense(8, bias_initializer=biases, name="second")(x)
    if batch_norm:
        x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="second_relu")(x)
    if dropout:
        x = layers.Dropout(dropout, seed=dropout_seed, name="dropout")(x)
    x = layers.Dense(7, "relu", bias_initializer=biases, name="third")(x)
    return keras.Model(inputs, layers.Dense(CLASSES, activation=head, name="last")(x))


def quantized_model(model=None, *, w_bits=3, a_bits=2, calibrate=True, **kwargs):
    """Returns a wrapped, calibrated model: "second" and "third" have the target width."""
    kwargs = {"weight_quantizer": "minmax", "seed": 5, **kwargs}
    wrapped = speq_keras.wrap(model or float_model(), w_bits, a_bits, **kwargs)
    if calibrate:
        wrapped.calibrate(data()[0], verbose=0)
    return wrapped


def compiled(model, **kwargs):
    """Compiles for class numbers; eagerly unless said otherwise, so that nothing is traced."""
    arguments = {
        "optimizer": keras.optimizers.SGD(0.1),
        "loss": "sparse_categorical_crossentropy",
        "run_eagerly": "jit_compile" not in kwargs,
        **kwargs,
    }
    model.compile(**arguments)
    return model


def values(variables):
    """Returns {path: array} of Keras variables."""
    return {variable.path: np.asarray(variable.value) for variable in variables}


class Rounding:
    """Rounds to a grid, or adds the rounding errors of the first run again.

    With the errors held constant, a derivative is the straight-through one.
    """

    def __init__(self):
        self.errors = []
        self.replay = None

    def again(self):
        """Returns a copy that adds the recorded errors."""
        copy = Rounding()
        copy.replay = iter(self.errors)
        return copy

    def __call__(self, x, scale):
        if self.replay is not None:
            return x + next(self.replay)
        error = np.round(x / scale) * scale - x
        self.errors.append(error)
        return x + error


def logits(x, weights, a_bits, *, w_bits=3, rounding=None):
    """Computes the wrapped network: min-max weights, PACT activations, 8 bits at both ends.

    Args:
        x: Inputs.
        weights: {path: float64 array} of all variables of the model.
        a_bits: Widths of the outputs of "first" and "second".
        w_bits: Width of the weights of "second" and "third".
        rounding: A `Rounding`.
    """
    rounding = rounding or Rounding()
    low, high = weights["x_quantizer/range_low"], weights["x_quantizer/range_high"]
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    x = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    for name, bits in zip(NAMES, (*a_bits, 8, 8), strict=True):
        kernel = weights[f"{name}/kernel"]
        if name in ("first", "last"):  # 8 bits, one scale per column
            kernel = rounding(kernel, np.abs(kernel).max(axis=0) / 127)
        else:
            kernel = rounding(kernel, np.abs(kernel).max() / (2 ** (w_bits - 1) - 1))
        x = x @ kernel + weights[f"{name}/bias"]
        if name == "last":
            clip = weights["last_quantizer/alpha"]
            x = rounding(np.clip(x, -clip, clip * 127 / 128), clip / 128)
        else:
            clip = weights[f"{name}_relu_quantizer/alpha"]
            x = rounding(np.clip(x, 0, clip), clip / (2**bits - 1))
    return x


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(z, y):
    """Returns the mean cross-entropy of logits `z` with class numbers `y`."""
    return -np.log(softmax(z)[np.arange(len(y)), y]).mean()


def distance(teacher, student, method, temperature=2.0):
    """Returns T² · L(p, q) of Eq. 6 or 8, for every example."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    if method == "kl":
        loss = (p * np.log(p / q)).sum(axis=-1)
    else:
        loss = 1 - (p * q).sum(axis=-1)
        if method == "cosine":
            loss = 1 - (1 - loss) / np.linalg.norm(p, axis=-1) / np.linalg.norm(q, axis=-1)
    return temperature**2 * loss
