"""What a layer or operation is: by exact class, never by a name."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras
from speq_keras import fused_batch_norm
from speq_keras.operations import (
    OTHER,
    Kind,
    fused_function,
    kind_of,
    make_operation,
    name_of,
    name_of_function,
    operation_classes,
)
from speq_keras.operations.rows import LAYER_ROWS, OPERATION_ROWS

OPERATION_NAMES = [row.name for _, row in OPERATION_ROWS]
FUNCTION_NAMES = (
    "linear relu relu6 sigmoid tanh softmax gelu elu selu softplus hard_sigmoid hard_silu "
    "leaky_relu silu swish gelu_approximate"
).split()


def quarter(self, x):
    return 0.25 * x


@pytest.mark.parametrize("name", LAYER_ROWS)
def test_a_layer_of_keras_is_known(name):
    assert LAYER_ROWS[name].name == name
    assert hasattr(layers, name)


@pytest.mark.parametrize("name", [*LAYER_ROWS, *OPERATION_NAMES, "CustomScaleLayer"])
@pytest.mark.parametrize("base", [layers.Layer, keras.Operation])
def test_a_class_of_that_name_is_the_users(name, base):
    mine = type(name, (base,), {"call": quarter})()
    assert name_of(mine) == ""
    assert kind_of(mine) is Kind.FLOAT


@pytest.mark.parametrize("name", FUNCTION_NAMES)
def test_a_function_of_that_name_is_the_users(name):
    def mine(x):
        return 0.25 * x

    mine.__name__ = name
    assert name_of_function(mine) == OTHER
    assert fused_function(layers.Dense(2, activation=mine)) == OTHER
    assert kind_of(layers.Activation(mine)) is Kind.FLOAT


def test_a_function_with_other_options_is_another_function():
    function = functools.partial(keras.activations.gelu, approximate=True)
    assert name_of_function(function) == OTHER


def test_the_default_of_gelu_is_that_of_the_module():
    assert name_of_function(keras.activations.gelu) == "gelu"
    assert name_of_function(ops.gelu) == "gelu_approximate"


def test_functions_of_tensorflow_are_known_where_it_is_imported():
    tf = pytest.importorskip("tensorflow")
    assert name_of_function(tf.nn.relu) == "relu"
    assert name_of_function(tf.nn.gelu) == "gelu"


X = keras.Input((4, 6), name="x_of_operations")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("Add", lambda: X + X),
        ("Add", lambda: ops.add(X, X)),
        ("Absolute", lambda: abs(X)),
        ("GetItem", lambda: X[:, 1]),
        ("TrueDivide", lambda: X / 2),
        ("Softmax", lambda: keras.activations.softmax(X, axis=1)),
    ],
)
def test_an_operation_is_known_however_it_was_called(name, tensor):
    assert name_of(keras.Model(X, tensor()).operations[-1]) == name


def test_looking_operations_up_numbers_no_names():
    x = keras.Input((4,))
    keras.utils.clear_session()
    speq_keras.operations.identity._operation_rows.cache_clear()
    make_operation("GetItem")
    assert keras.Model(x, ops.relu6(x)).operations[-1].name == "relu6"


# ---- subclasses --------------------------------------------------------------------------------


class WithAFlag(layers.Dense):
    """A Dense with a constructor and a config of its own, and a new method."""

    def __init__(self, *args, flag=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.flag = flag

    def get_config(self):
        return {"flag": self.flag}

    def describe(self):
        return f"flag {self.flag}"


class OtherCall(layers.Dense):
    call = quarter


class OtherConvolution(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel) / 2


class OtherActivation(layers.Dense):
    @property
    def activation(self):
        return ops.tanh

    @activation.setter
    def activation(self, value):
        pass


class OtherEntry(layers.Add):
    def __call__(self, *args, **kwargs):
        return 2 * super().__call__(*args, **kwargs)


def test_a_subclass_with_another_constructor_counts_as_its_base():
    assert name_of(WithAFlag(3)) == "Dense"


@pytest.mark.parametrize(
    "layer",
    [OtherCall(3), OtherConvolution(2, 3), OtherActivation(3), OtherEntry()],
    ids=lambda layer: type(layer).__name__,
)
def test_a_subclass_that_overrides_what_its_base_calls_is_the_users(layer):
    assert name_of(layer) == ""


def test_a_call_put_into_the_object_itself_makes_it_the_users():
    layer = layers.Dense(3)
    layer.call = lambda x: x
    assert name_of(layer) == ""


def test_the_fused_batch_normalization_is_one():
    assert name_of(fused_batch_norm.BatchNormalization()) == "BatchNormalization"


# ---- in a file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Square", "Dropout", "ReLU", "BatchNormalization", "Flatten"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_layer_of_that_name_computes_what_it_says_wherever_it_is(name, place):
    mine = type(name, (layers.Layer,), {"call": quarter})(name="mine")
    inputs = keras.Input((6,))
    x = mine(inputs) if place == "first" else inputs
    x = layers.Dense(4)(x)
    x = layers.Dense(4)(mine(x)) if place == "middle" else x
    network = keras.Model(inputs, mine(x) if place == "last" else x)
    model = speq_keras.wrap(network, 8, 8, distillation=None)
    data = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    model.calibrate(data, verbose=0)
    wanted = network.predict(data, verbose=0)
    found = speq_keras.fold(model).predict(data)
    # A few steps of 8 bits; a layer that is dropped or another's is off by factors.
    np.testing.assert_allclose(found, wanted, atol=0.04 * np.ptp(wanted))


def test_a_function_that_an_older_keras_lacks_has_no_row():
    calls = [ops.relu, lambda x: ops.a_function_of_the_future(x)]
    relu, unknown = operation_classes(calls)
    assert name_of(relu()) == "Relu"
    assert unknown is None
