"""Functions of one value: a table of their 256 codes in the file, or a float kernel."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras

pytestmark = pytest.mark.tensorflow


def erf(x):
    """By its series, which converges for all x; 60 terms are exact below 4."""
    total = term = np.float64(x)
    for n in range(1, 60):
        term = -term * x * x / n
        total = total + term / (2 * n + 1)
    return 2 / np.sqrt(np.pi) * total


SCALES = np.array([0.2, -0.1, 0.5, 0.0], "float32")
# {name: (in Keras, in NumPy)}; what they read is between 0.1 and 3.
POSITIVE = {
    "log": (ops.log, np.log),
    "log1p": (ops.log1p, np.log1p),
    "sqrt": (ops.sqrt, np.sqrt),
    "rsqrt": (ops.rsqrt, lambda x: 1 / np.sqrt(x)),
    "reciprocal": (ops.reciprocal, lambda x: 1 / x),
    "x ** 1.5": (lambda x: ops.power(x, 1.5), lambda x: x**1.5),
}
# Between -2 and 2.
ANY = {
    "exp": (ops.exp, np.exp),
    "expm1": (ops.expm1, np.expm1),
    "x ** 3": (lambda x: x**3, lambda x: x**3),
    "clip": (lambda x: ops.clip(x, -0.5, 1.0), lambda x: np.clip(x, -0.5, 1.0)),
    "sign": (ops.sign, np.sign),
    "abs": (ops.abs, np.abs),
    "maximum": (lambda x: ops.maximum(x, 0.3), lambda x: np.maximum(x, 0.3)),
    "minimum": (lambda x: ops.minimum(0.3, x), lambda x: np.minimum(x, 0.3)),
    "maximum by channel": (lambda x: ops.maximum(x, SCALES), lambda x: np.maximum(x, SCALES)),
    "minimum by channel": (lambda x: ops.minimum(x, SCALES), lambda x: np.minimum(x, SCALES)),
    "erf": (ops.erf, erf),
    "sin": (ops.sin, np.sin),
    "cos": (ops.cos, np.cos),
    "arctan": (ops.arctan, np.arctan),
    "softsign": (ops.softsign, lambda x: x / (1 + np.abs(x))),
    "log_sigmoid": (ops.log_sigmoid, lambda x: -np.log1p(np.exp(-x))),
    "celu": (
        lambda x: ops.celu(x, 0.7),
        lambda x: np.where(x > 0, x, 0.7 * np.expm1(x / 0.7)),
    ),
    "tanh_shrink": (ops.tanh_shrink, lambda x: x - np.tanh(x)),
    "hard_tanh": (ops.hard_tanh, lambda x: np.clip(x, -1, 1)),
    "hard_shrink": (lambda x: ops.hard_shrink(x, 0.4), lambda x: np.where(np.abs(x) > 0.4, x, 0)),
    "soft_shrink": (
        lambda x: ops.soft_shrink(x, 0.4),
        lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.4, 0),
    ),
    "sparse_plus": (
        ops.sparse_plus,
        lambda x: np.where(x <= -1, 0, np.where(x < 1, (x + 1) ** 2 / 4, x)),
    ),
    "squareplus": (lambda x: ops.squareplus(x, 2), lambda x: (x + np.sqrt(x**2 + 2)) / 2),
    "threshold": (
        lambda x: ops.threshold(x, 0.5, -0.2),
        lambda x: np.where(x > 0.5, x, -0.2),
    ),
    "mish": (layers.Activation("mish"), lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "exponential": (layers.Activation("exponential"), np.exp),
}
FUNCTIONS = {**POSITIVE, **ANY}
# Those with a float kernel.
IN_ISLANDS = "log sqrt rsqrt exp exponential abs maximum minimum".split()
IN_ISLANDS += ["maximum by channel", "minimum by channel"]


def data(name, shape=(64, 6, 6, 4)):
    low, high = (0.1, 3) if name in POSITIVE else (-2, 2)
    return np.random.default_rng(0).uniform(low, high, shape).astype("float32")


def model_of(name, after=lambda x: x, **arguments):
    """Returns a model that applies a function to its inputs' codes, before its only layer."""
    inputs = keras.Input((6, 6, 4))
    x = after(FUNCTIONS[name][0](inputs))
    x = layers.Dense(3)(layers.Flatten()(layers.Conv2D(3, 1)(x)))
    model = speq_keras.wrap(keras.Model(inputs, x), 3, 3, distillation=None, **arguments)
    model.calibrate(data(name), verbose=0)
    return model


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpy_is_keras(name):
    x = data(name)
    in_keras, in_numpy = FUNCTIONS[name]
    # A function of float32, of which NumPy has the float64.
    np.testing.assert_allclose(in_keras(x), in_numpy(x.astype("float64")), rtol=3e-5, atol=3e-6)


def table_of(model):
    network = speq_keras.fold(model).network
    (node,) = [node for node in network.nodes if node.kind == "lookup"]
    x, table = (network.tensors[name] for name in node.inputs)
    output = network.tensors[node.output]
    return x, table.data.reshape(-1, 256), output


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_table_holds_the_function_of_every_code(name):
    x, table, output = table_of(model_of(name))
    reals = (np.arange(-128, 128) - x.zero_point) * np.float64(x.scale)
    is_seen = (reals > 0.1) if name in POSITIVE else (np.abs(reals) <= 2)
    values = FUNCTIONS[name][1](np.repeat(reals[is_seen, None], 4, axis=1))
    exact = np.clip(values / np.float64(output.scale) + output.zero_point, -128, 127).T
    found = np.broadcast_to(table[:, is_seen], exact.shape)
    jumps = name in ("sign", "hard_shrink", "threshold")  # float32 codes may lie on the jump
    differing = np.abs(found - exact) > 0.5 + 1e-3
    assert differing.sum() <= (4 if jumps else 0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_trained_network_is_its_file(name, tmp_path):
    model = model_of(name)
    assert not model.plan().file.islands
    report = model.export_tflite(tmp_path / "m.tflite", data=data(name))
    assert report.proof.holds
    assert report.proof.mismatches == 0


@pytest.mark.parametrize("name", ["abs", "maximum", "minimum by channel", "exp", "x ** 3"])
@pytest.mark.parametrize("relu", [layers.ReLU, lambda: layers.ReLU(max_value=6)])
def test_a_relu_after_it_is_in_the_file(name, relu, tmp_path):
    report = model_of(name, relu()).export_tflite(tmp_path / "m.tflite", data=data(name))
    assert report.proof.holds


@pytest.mark.parametrize("name", IN_ISLANDS)
def test_a_float_island_is_its_file(name, tmp_path):
    def after(x):
        return layers.LayerNormalization(name="norm")(x)

    inputs = keras.Input((6, 6, 4))
    x = layers.Rescaling(1.0, name="island")(inputs)
    x = layers.LayerNormalization(name="before", center=False, scale=False)(x)
    x = ops.abs(x) + 0.5 if name in POSITIVE else x
    x = after(FUNCTIONS[name][0](x))
    x = layers.Dense(3)(layers.Flatten()(layers.Conv2D(3, 1)(x)))
    model = speq_keras.wrap(keras.Model(inputs, x), 3, 3, distillation=None)
    model.calibrate(data(name), verbose=0)
    assert model.export_tflite(tmp_path / "m.tflite").proof.holds


def check_float_island(body, shape, name, why):
    """What no integer kernel computes is computed in float, and plan() says so before."""
    inputs = keras.Input(shape)
    network = keras.Model(inputs, layers.Flatten()(body(inputs)))
    model = speq_keras.wrap(network, 3, 8, distillation=None)
    found = model.plan().file.layers
    (name,) = [layer for layer in found if layer.split("_")[0] == name]
    assert found[name].startswith(f"float island: {why}")
    x = np.random.default_rng(0).uniform(-1, 1, (8, *shape)).astype("float32")
    model.calibrate(x, verbose=0)
    folded = speq_keras.fold(model)
    # One code in a hundred may fall on the other side of a half.
    away = np.abs(folded.predict(x) - model.predict(x, verbose=0)) / np.ptp(folded.predict(x))
    assert np.mean(away > 1e-3) < 0.01


def test_powers_of_two_tensors_are_a_float_island():
    def body(inputs):
        one, other = (layers.ReLU()(layers.Conv2D(4, 1)(inputs)) for _ in range(2))
        return layers.Conv2D(3, 1)(ops.power(one + 1, other))

    why = "there is a kernel for it only with one tensor and a constant"
    check_float_island(body, (6, 6, 4), "power", why)


@pytest.mark.parametrize("shape", [(6, 1, 1), (4, 1)])
def test_a_constant_along_other_axes_is_a_float_island(shape):
    """As many numbers as there are channels may stand along another axis."""
    numbers = np.linspace(-0.5, 0.5, np.prod(shape), dtype="float32").reshape(shape)

    def body(inputs):
        return layers.Conv2D(3, 1)(ops.maximum(layers.Conv2D(4, 1)(inputs), numbers))

    why = "its constant must be one number, or one per channel"
    check_float_island(body, (6, 4, 4), "maximum", why)


def test_a_column_that_keras_takes_for_a_bias_is_the_trained_network(tmp_path):
    """Keras' sum with TensorFlow adds it along the channels where there are as many."""
    inputs = keras.Input((6, 6))
    column = np.linspace(0.3, 2.5, 6, dtype="float32").reshape(6, 1)
    x = ops.add(layers.Dense(6)(inputs), column)
    model = speq_keras.wrap(keras.Model(inputs, layers.Dense(2)(x)), 8, 8, distillation=None)
    data = np.random.default_rng(0).normal(size=(8, 6, 6)).astype("float32")
    model.calibrate(data, verbose=0)
    assert model.export_tflite(tmp_path / "m.tflite", data=data).proof.holds
