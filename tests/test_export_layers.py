"""Every layer and operation that can be exported, one small model each.

A model is wrapped, calibrated on random data and exported. Its file is then read with the schema
alone: every code has to be the nearest one to what the training graph computes from the file's own
codes (`trained_graph`), and the nearest one to the exact result of its operation
(`exact_arithmetic`). Neither of them knows how the export works.
"""

import dataclasses
import functools
import tempfile

import keras
import numpy as np
import pytest
from exact_arithmetic import TFLiteFile, distances
from keras import layers, ops
from trained_graph import compare

import speq_keras

EXAMPLES = 8
# (w_bits, a_bits, activation quantizer)
WIDTHS = {"3 bits": (3, "pact"), "2 bits": (2, "lsq_plus"), "4 bits": (4, "lsq_plus")}
LOOKUP = {"CAST": 1, "ADD": 1, "GATHER": 1}
PER_CHANNEL = np.array([0.1, 0.2, -0.3, 0.4], "float32")


@dataclasses.dataclass(frozen=True)
class Case:
    """A model between its first layer and its last.

    Attributes:
        shape: Of the input, without the batch. The first layer, a Dense(4) on its last axis with
            ReLU, makes the features that `body` reads.
        body: Function of the features.
        others: What runs outside of XNNPACK.
    """

    shape: tuple
    body: object
    others: dict = dataclasses.field(default_factory=dict)

    def build(self):
        x = keras.Input(self.shape)
        features = layers.Dense(4, activation="relu", name="first")(x)
        return keras.Model(x, layers.Dense(5, name="last")(self.body(features)))


IMAGE, SEQUENCE, VECTOR = (8, 7, 3), (10, 3), (6,)


def image(body, **kwargs):
    return Case(IMAGE, body, **kwargs)


def sequence(body, **kwargs):
    return Case(SEQUENCE, body, **kwargs)


def vector(body, **kwargs):
    return Case(VECTOR, body, **kwargs)


def pair(merge, **kwargs):
    """Merges three tensors that a 1×1 convolution makes; the second is never negative."""

    def body(x):
        a = layers.Conv2D(4, 1, name="a")(x)
        b = layers.Conv2D(4, 1, activation="relu", name="b")(x)
        return merge(a, b, layers.Conv2D(4, 1, name="c")(x))

    return Case(IMAGE, body, **kwargs)


def table(function, **kwargs):
    """Applies a function to values of both signs."""
    return image(lambda x: function(layers.Conv2D(4, 1, name="signed")(x)), **kwargs)


def affine(function):
    return table(function)


def shared(x):
    layer = layers.Conv2D(4, 3, padding="same", activation="relu", name="shared")
    return layer(layer(x))


def squeeze_excite(x):
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(2, 1, activation="relu")(gate)
    return layers.Multiply()([x, layers.Conv2D(4, 1, activation="sigmoid")(gate)])


def padded_and_read_elsewhere(x):
    """The convolution reads fewer bits than the sum, so it requantizes before it pads."""
    y = layers.ZeroPadding2D(((0, 1), (1, 1)))(x)
    y = layers.Conv2D(4, 3, strides=2, name="padded")(y)
    z = layers.Conv2D(4, 1, strides=2, name="strided")(layers.Add()([x, x]))
    return layers.Concatenate(axis=1)([y, z])


def normalized(**kwargs):
    layer = layers.Normalization(**kwargs)
    if "mean" not in kwargs:
        layer.adapt(np.random.default_rng(0).normal(0.5, 0.3, (20, 3)).astype("float32"))

    def build():
        x = keras.Input(IMAGE)
        return keras.Model(x, layers.Conv2D(5, 3)(layer(x)))

    return build


def from_input(function):
    """Returns the builder of a model that begins with `function`."""

    def build():
        x = keras.Input(IMAGE)
        return keras.Model(x, layers.Conv2D(5, 3)(function(x)))

    return build


def augmentation(x):
    x = layers.RandomZoom(0.2)(layers.RandomRotation(0.1)(layers.RandomFlip()(x)))
    return layers.Rescaling(1 / 2, offset=0.5)(layers.RandomContrast(0.2)(x))


L = layers
PADS = [[0, 0], [1, 2], [2, 0], [0, 0]]
CASES = {
    # ---- layers with weights
    "Dense": vector(lambda x: L.Dense(8, activation="relu")(x)),
    "Dense without bias": vector(lambda x: L.Dense(8, use_bias=False)(x)),
    "Dense, rank 3": sequence(lambda x: L.Dense(8, activation="relu")(x)),
    "Dense, rank 4": image(lambda x: L.Dense(8)(x)),
    "EinsumDense": sequence(
        lambda x: L.EinsumDense("abc,cd->abd", output_shape=(10, 6), bias_axes="d")(x)
    ),
    "EinsumDense, open size": sequence(
        lambda x: L.EinsumDense("abc,cd->abd", output_shape=(None, 6))(x)
    ),
    "EinsumDense, two axes out": sequence(
        lambda x: L.Reshape((10, 6))(
            L.EinsumDense("abc,cde->abde", output_shape=(10, 2, 3), bias_axes="de")(x)
        )
    ),
    "EinsumDense, two axes in": sequence(
        lambda x: L.EinsumDense("abcd,cde->abe", output_shape=(10, 6), bias_axes="e")(
            L.Reshape((10, 2, 3))(L.Dense(6)(x))
        )
    ),
    "grouped queries": sequence(
        lambda x: L.GroupQueryAttention(3, 4, 2)(x, x),
        others={"SOFTMAX": 1, "RESIZE_NEAREST_NEIGHBOR": 2},
    ),
    "attention": sequence(lambda x: L.MultiHeadAttention(2, 3)(x, x), others={"SOFTMAX": 1}),
    "attention with dropout": sequence(
        lambda x: L.MultiHeadAttention(2, 3, dropout=0.1)(x, x), others={"SOFTMAX": 1}
    ),
    "matmul": sequence(lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1)))),
    "Conv1D": sequence(lambda x: L.Conv1D(4, 3, activation="relu")(x)),
    "Conv1D same": sequence(lambda x: L.Conv1D(4, 3, strides=2, padding="same")(x)),
    "Conv1D causal": sequence(lambda x: L.Conv1D(4, 2, padding="causal", dilation_rate=2)(x)),
    "DepthwiseConv1D": sequence(lambda x: L.DepthwiseConv1D(3, depth_multiplier=2)(x)),
    "DepthwiseConv1D same": sequence(lambda x: L.DepthwiseConv1D(3, strides=2, padding="same")(x)),
    "SeparableConv1D": sequence(lambda x: L.SeparableConv1D(6, 3, activation="relu")(x)),
    "Conv1DTranspose": sequence(lambda x: L.Conv1DTranspose(4, 3, strides=2)(x)),
    "Conv1DTranspose same": sequence(
        lambda x: L.Conv1DTranspose(4, 3, strides=2, padding="same", activation="relu")(x)
    ),
    "Conv2D": image(lambda x: L.Conv2D(4, 3, activation="relu")(x)),
    "Conv2D same": image(lambda x: L.Conv2D(4, (3, 2), padding="same")(x)),
    "Conv2D same, strides": image(lambda x: L.Conv2D(4, 3, strides=2, padding="same")(x)),
    "Conv2D dilated": image(lambda x: L.Conv2D(4, 3, dilation_rate=2, padding="same")(x)),
    "Conv2D grouped": image(lambda x: L.Conv2D(8, 3, groups=2)(x)),
    "DepthwiseConv2D": image(lambda x: L.DepthwiseConv2D(3, padding="same")(x)),
    "DepthwiseConv2D times 2": image(lambda x: L.DepthwiseConv2D(3, 2, depth_multiplier=2)(x)),
    "DepthwiseConv2D dilated": image(lambda x: L.DepthwiseConv2D(3, dilation_rate=2)(x)),
    "SeparableConv2D": image(lambda x: L.SeparableConv2D(6, 3, padding="same")(x)),
    "Conv2DTranspose": image(lambda x: L.Conv2DTranspose(4, 3, strides=2)(x)),
    "Conv2DTranspose same": image(lambda x: L.Conv2DTranspose(4, 3, 2, padding="same")(x)),
    "Conv2DTranspose, gaps": image(lambda x: L.Conv2DTranspose(4, 2, strides=3)(x)),
    "Conv2DTranspose, gaps along one axis": image(
        lambda x: L.Conv2DTranspose(4, (1, 3), strides=2, padding="same")(x)
    ),
    "a layer used twice": image(shared),
    # ---- slopes and shifts
    "BatchNormalization alone": image(lambda x: L.BatchNormalization()(x)),
    "BatchNormalization, vector": vector(
        lambda x: L.ReLU()(L.BatchNormalization()(L.Dense(8, activation="relu")(x)))
    ),
    "Rescaling": affine(lambda x: L.Rescaling(0.3, offset=-0.2)(x)),
    "x * c": affine(lambda x: x * 0.37),
    "x * -c": affine(lambda x: x * -0.37),
    "x * vector": affine(lambda x: x * PER_CHANNEL),
    "x + c": affine(lambda x: x + 0.3),
    "c + vector": affine(lambda x: ops.add(PER_CHANNEL, x)),
    "x - c": affine(lambda x: x - 0.3),
    "c - x": affine(lambda x: 1.0 - x),
    "-x": affine(lambda x: -x),
    "x / c": affine(lambda x: x / 3.0),
    # ---- two tensors
    "Add": pair(lambda a, b, c: L.Add()([a, b])),
    "Add, ReLU": pair(lambda a, b, c: L.ReLU()(L.Add()([a, b]))),
    "Add of 3": pair(lambda a, b, c: L.Add()([a, b, c])),
    "Add of one": pair(lambda a, b, c: L.Add()([a, a])),
    "Average": pair(lambda a, b, c: L.Average()([a, b, c])),
    "Subtract": pair(lambda a, b, c: L.Subtract()([a, b])),
    "Multiply": pair(lambda a, b, c: L.Multiply()([a, b])),
    "Multiply by a gate": image(squeeze_excite),
    "Multiply by a map": pair(
        lambda a, b, c: L.Multiply()([a, L.Conv2D(1, 1, activation="sigmoid")(b)])
    ),
    "square": table(ops.square),
    "Concatenate": pair(lambda a, b, c: L.Concatenate()([a, b, c])),
    "Concatenate rows": pair(lambda a, b, c: L.Concatenate(axis=1)([a, c])),
    # ---- functions
    "relu": table(L.ReLU()),
    "ReLU6": table(L.ReLU(max_value=6)),
    "relu6": table(L.Activation("relu6")),
    "LeakyReLU": table(L.LeakyReLU(0.2)),
    "LeakyReLU as activation": image(lambda x: L.Conv2D(4, 3, activation=L.LeakyReLU(0.2))(x)),
    "PReLU as activation": image(
        lambda x: L.SeparableConv2D(4, 3, activation=L.PReLU(shared_axes=[1, 2]))(x),
        others=LOOKUP,
    ),
    "ReLU with a cap": table(L.ReLU(0.4), others=LOOKUP),
    "ReLU with a slope and a cap": table(L.ReLU(0.4, negative_slope=0.2), others=LOOKUP),
    "ReLU, negative slope": table(L.ReLU(negative_slope=0.1)),
    "PReLU": table(L.PReLU(shared_axes=(1, 2)), others=LOOKUP),
    "PReLU, one slope": table(L.PReLU(shared_axes=(1, 2, 3)), others=LOOKUP),
    "ELU": table(L.ELU()),
    "selu": table(L.Activation("selu"), others=LOOKUP),
    "gelu": table(L.Activation("gelu"), others={"GELU": 1}),
    "swish": table(L.Activation("swish")),
    "hard_swish": table(L.Activation("hard_swish")),
    "hard_sigmoid": table(L.Activation("hard_sigmoid")),
    "softplus": table(L.Activation("softplus"), others=LOOKUP),
    "sigmoid": table(L.Activation("sigmoid")),
    "tanh": table(L.Activation("tanh")),
    "softmax": table(L.Softmax(), others={"SOFTMAX": 1}),
    "a fused swish": image(lambda x: L.Conv2D(4, 3, activation="swish")(x)),
    "a fused gelu": image(lambda x: L.Conv2D(4, 3, activation="gelu")(x), others={"GELU": 1}),
    # ---- pooling and resizing
    "MaxPooling1D": sequence(lambda x: L.MaxPooling1D(2)(x)),
    "MaxPooling2D": image(lambda x: L.MaxPooling2D(2)(x)),
    "MaxPooling2D same": image(lambda x: L.MaxPooling2D(3, strides=2, padding="same")(x)),
    "MaxPooling2D, every other pixel": image(lambda x: L.MaxPooling2D(1, strides=2)(x)),
    "AveragePooling1D": sequence(lambda x: L.AveragePooling1D(2)(x)),
    "AveragePooling2D": image(lambda x: L.AveragePooling2D(2)(x)),
    "AveragePooling2D signed": table(L.AveragePooling2D((2, 3), strides=1)),
    "AveragePooling2D same": image(
        lambda x: L.AveragePooling2D(3, strides=2, padding="same")(x),
        others={"AVERAGE_POOL_2D": 1},
    ),
    "AveragePooling2D of all": image(lambda x: L.AveragePooling2D((8, 7))(x)),
    "GlobalMaxPooling1D": sequence(lambda x: L.GlobalMaxPooling1D()(x)),
    "GlobalMaxPooling2D": image(lambda x: L.GlobalMaxPooling2D()(x)),
    "GlobalAveragePooling1D": sequence(lambda x: L.GlobalAveragePooling1D()(x)),
    "GlobalAveragePooling2D": image(lambda x: L.GlobalAveragePooling2D()(x)),
    "GlobalAveragePooling2D kept": table(L.GlobalAveragePooling2D(keepdims=True)),
    "mean of channels": image(lambda x: ops.mean(x, axis=-1, keepdims=True)),
    "UpSampling1D": sequence(lambda x: L.UpSampling1D(2)(x), others={"RESIZE_NEAREST_NEIGHBOR": 1}),
    "UpSampling2D": image(lambda x: L.UpSampling2D(2)(x), others={"RESIZE_NEAREST_NEIGHBOR": 1}),
    "UpSampling2D bilinear": image(lambda x: L.UpSampling2D(2, interpolation="bilinear")(x)),
    "repeat": image(lambda x: ops.repeat(x, 3, axis=2), others={"RESIZE_NEAREST_NEIGHBOR": 1}),
    "Resizing": image(lambda x: L.Resizing(5, 11)(x)),
    "Resizing nearest": image(
        lambda x: L.Resizing(5, 11, interpolation="nearest")(x),
        others={"RESIZE_NEAREST_NEIGHBOR": 1},
    ),
    # ---- codes that move
    "Cropping1D": sequence(lambda x: L.Cropping1D((1, 2))(x)),
    "Cropping2D": image(lambda x: L.Cropping2D(((1, 2), (0, 1)))(x)),
    "ZeroPadding1D": sequence(lambda x: L.Conv1D(4, 3)(L.ZeroPadding1D(2)(x))),
    "ZeroPadding2D": table(L.ZeroPadding2D(((0, 1), (2, 1)))),
    "ZeroPadding2D that SAME does": image(
        lambda x: L.DepthwiseConv2D(3, strides=2)(L.ZeroPadding2D(((0, 1), (1, 1)))(x))
    ),
    "ZeroPadding2D read elsewhere": image(padded_and_read_elsewhere),
    "pad, reflected": table(lambda x: ops.pad(x, PADS, mode="reflect"), others={"MIRROR_PAD": 1}),
    "pad, symmetric": table(lambda x: ops.pad(x, PADS, mode="symmetric"), others={"MIRROR_PAD": 1}),
    "split": table(lambda x: L.Concatenate()(ops.split(x, [1, 2], axis=-1)[::-1])),
    "unstack": table(lambda x: ops.unstack(x, axis=1)[2]),
    "stack": pair(lambda a, b, c: ops.stack([a, b, c], axis=2)),
    "array of channels added": affine(lambda x: x + np.float32([0.3, -0.2, 0.5, 1.0])),
    "array of channels subtracted from": affine(
        lambda x: ops.subtract(np.float32([0.3, -0.2, 0.5, 1.0]), x)
    ),
    "pad": image(lambda x: ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)))),
    "Permute": image(lambda x: L.Permute((2, 3, 1))(x)),
    "transpose": image(lambda x: ops.transpose(x, (0, 3, 1, 2))),
    "Reshape": image(lambda x: L.Reshape((14, 16))(x)),
    "Flatten": image(lambda x: L.Flatten()(x)),
    "expand_dims": vector(lambda x: ops.expand_dims(x, 1)),
    "squeeze": image(lambda x: ops.squeeze(L.GlobalMaxPooling2D(keepdims=True)(x), (1, 2))),
    "a slice": image(lambda x: x[:, 1:, 1:6]),
    "a slice in steps": image(lambda x: x[:, ::2, -4:], others={"STRIDED_SLICE": 1}),
    "an index": image(lambda x: x[:, 2]),
    "Dropout": image(lambda x: L.SpatialDropout2D(0.5)(L.Dropout(0.5)(x))),
    "noise": image(lambda x: L.GaussianNoise(0.5)(L.GaussianDropout(0.5)(x))),
}
BUILDERS = {
    **{name: case.build for name, case in CASES.items()},
    "Rescaling of the input": from_input(layers.Rescaling(1 / 127.5, offset=-1)),
    "Normalization, learned": normalized(),
    "Normalization, given": normalized(mean=[0.4, 0.5, 0.6], variance=[0.04, 0.09, 0.05]),
    "Normalization, inverted": normalized(invert=True),
    "augmentation of the input": from_input(augmentation),
}


@dataclasses.dataclass
class Exported:
    """An exported model, its file and what the file computed."""

    model: object
    report: object
    folded: object
    file: TFLiteFile
    arrays: list
    values: dict

    @functools.cached_property
    def comparison(self):
        return compare(self.model, self.folded, self.file, self.values, self.arrays)


def make_lively(model, rng):
    """Gives every variable that starts at 0 or 1 a random value."""
    for variable in model.weights:
        if variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.2, variable.shape))
        elif variable.name in ("gamma", "alpha", "moving_variance") and variable.shape:
            variable.assign(rng.uniform(0.2, 1.5, variable.shape))  # not a quantizer's α


@functools.cache
def exported(name, width="3 bits", storage="int8"):
    bits, quantizer = WIDTHS[width]
    keras.utils.set_random_seed(1)
    model = speq_keras.wrap(BUILDERS[name](), bits, bits, activation_quantizer=quantizer, seed=0)
    rng = np.random.default_rng(2)
    make_lively(model, rng)
    x = rng.uniform(-1, 2, (EXAMPLES, *model.inputs[0].shape[1:])).astype("float32")
    model.calibrate(x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/m.tflite"
        report = model.export_tflite(path, data=x, batch_size=EXAMPLES, storage=storage)
        with open(path, "rb") as stream:
            file = TFLiteFile(stream.read())
    folded = speq_keras.fold(model, storage=storage)
    return Exported(model, report, folded, file, [x], file.run_all(x))


def check_against_training(result):
    """Every code of the file is the nearest one to what training rounds there."""
    compared, _ = result.comparison
    assert len(compared) >= 2
    far = {name: (c.largest, c.allowed) for name, c in compared.items() if c.largest > c.allowed}
    assert not far


def check_exactly(result):
    far = {
        name: pair
        for name, pair in distances(result.file, result.values).items()
        if pair[0] > pair[1]
    }
    assert not far


@pytest.mark.parametrize("name", BUILDERS)
def test_every_code_is_the_nearest_to_what_was_trained(name):
    check_against_training(exported(name))


@pytest.mark.parametrize("name", BUILDERS)
def test_every_code_is_the_nearest_to_the_exact_result(name):
    check_exactly(exported(name))


@pytest.mark.parametrize("name", BUILDERS)
def test_every_output_is_a_code_times_its_scale(name):
    result = exported(name)
    _, (trained,) = result.comparison
    (number,) = result.file.outputs
    scale = np.abs(trained).max() * 2.0**-22  # of float32 products
    np.testing.assert_allclose(result.values[number], trained, rtol=0, atol=scale)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_proof_of_the_export_holds(name):
    proof = exported(name).report.proof
    assert (proof.holds, proof.examples, proof.mismatches, proof.outside) == (True, EXAMPLES, 0, 0)


@pytest.mark.parametrize("name", BUILDERS)
def test_only_these_operations_run_outside_of_xnnpack(name):
    expected = CASES[name].others if name in CASES else {}
    found = exported(name).report.partitions
    assert found.others == expected
    assert found.partitions <= 1 + len(expected)


@pytest.mark.parametrize("width", ["2 bits", "4 bits"])
@pytest.mark.parametrize("name", BUILDERS)
def test_other_widths_and_offset_grids_are_computed_as_trained(name, width):
    result = exported(name, width)
    check_against_training(result)
    check_exactly(result)


WEIGHTED = [name for name in CASES if any(kind in name for kind in ("Dense", "Conv"))]


@pytest.mark.parametrize("name", [name for name in WEIGHTED if "same" not in name])
def test_weights_in_4_and_2_bits_are_computed_as_trained(name):
    result = exported(name, "2 bits", "smallest")
    check_against_training(result)
    check_exactly(result)


# ---- ends --------------------------------------------------------------------------------------


@functools.cache
def several():
    """A model with two inputs and two outputs, exported with inputs given by name."""
    keras.utils.set_random_seed(3)
    zebra, apple = keras.Input((6, 6, 3), name="zebra"), keras.Input((6, 6, 2), name="apple")
    a = layers.Conv2D(4, 3, padding="same")(zebra)
    total = layers.Add()([a, layers.Conv2D(4, 3, padding="same")(apple)])
    pooled = layers.GlobalAveragePooling2D()(layers.ReLU()(total))
    outputs = {
        "classes": layers.Dense(5, activation="softmax", name="classes")(pooled),
        "map": layers.Conv2D(2, 1, activation="sigmoid", name="map")(total),
    }
    model = speq_keras.wrap(keras.Model([zebra, apple], outputs), 3, 3, seed=0)
    rng = np.random.default_rng(4)
    make_lively(model, rng)
    arrays = [
        rng.uniform(-1, 2, (EXAMPLES, *tensor.shape[1:])).astype("float32")
        for tensor in model.inputs
    ]
    data = {"apple": arrays[1], "zebra": arrays[0]}
    model.calibrate(data, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/m.tflite"
        report = model.export_tflite(path, data=data, batch_size=EXAMPLES)
        with open(path, "rb") as stream:
            file = TFLiteFile(stream.read())
    return Exported(model, report, speq_keras.fold(model), file, arrays, file.run_all(*arrays))


def test_a_model_with_several_ends_computes_as_trained():
    check_against_training(several())


def test_softmax_and_sigmoid_at_the_ends_are_the_nearest_multiple_of_1_256():
    result = several()
    _, trained = result.comparison
    for number, values in zip(result.file.outputs, trained, strict=True):
        wanted = np.clip(values * 256.0, 0, 255)
        assert np.max(np.abs(result.values[number] * 256 - wanted)) <= 0.5 + 0.01


def test_inputs_by_name_reach_the_input_of_that_name():
    assert [t.name for t in several().model.inputs] == ["zebra", "apple"]
    assert several().report.proof.holds


@pytest.mark.parametrize("quantizer", ["pact", "lsq_plus"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_floats_beyond_a_narrow_grid_are_clipped(quantizer, activation):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    first = layers.Dense(6, activation=activation, name="first")
    network = keras.Model(inputs, layers.Dense(3)(layers.Dense(4)(first(inputs))))
    options = {"boundary_bits": None, "activation_quantizer": quantizer, "distillation": None}
    model = speq_keras.wrap(network, 4, 4, **options)
    x = np.random.default_rng(0).normal(size=(EXAMPLES, 5)).astype("float32")
    model.calibrate(x, verbose=0)
    x *= 3
    with tempfile.TemporaryDirectory() as folder:
        report = model.export_tflite(f"{folder}/m.tflite", data=x, batch_size=EXAMPLES)
        with open(f"{folder}/m.tflite", "rb") as stream:
            file = TFLiteFile(stream.read())
    (name,) = (
        layer.name
        for layer in model.layers
        if layer.name.startswith("first") and "_q" in layer.name
    )
    scale, low, high = model.get_layer(name).grid()
    number = file.numbers[name]
    codes = file.run_all(x)[number].astype("float64") - file.tensors[number].zero_point
    floats = x.astype("float64") @ first.kernel.numpy()
    floats = np.maximum(floats, 0) if activation else floats
    assert report.proof.holds
    # 1e-3 steps: what float32 sums are off by.
    assert np.max(np.abs(codes - np.clip(floats / scale, low, high))) <= 0.5 + 1e-3
    assert codes.max() == high


# ---- what has no integer kernel ----------------------------------------------------------------

REFUSED = {
    "a repeated batch": (sequence(lambda x: ops.repeat(x, 2, axis=0)), "the batch has to stay"),
    "mean of the batch": (image(lambda x: x - ops.mean(x, axis=0, keepdims=True)), "the batch"),
    "no kernel": (sequence(lambda x: ops.sort(x, axis=1)), "neither an integer nor a float"),
    "groups of rows": (
        image(lambda x: layers.GroupNormalization(groups=2, axis=1)(x)),
        "it must be the last axis",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_kernel_computes_is_refused(name, tmp_path):
    case, reason = REFUSED[name]
    model = speq_keras.wrap(case.build(), 3, 3, seed=0)
    model.calibrate(np.random.default_rng(0).random((4, *case.shape), "float32"), verbose=0)
    with pytest.raises(ValueError, match=reason):
        model.export_tflite(tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


# What integer kernels do not compute, but float ones do: {name: (case, why)}.
ISLANDS = {
    "bicubic": (image(lambda x: layers.Resizing(5, 11, interpolation="bicubic")(x)), "bicubic"),
    "EinsumDense, a kernel per row": (
        sequence(lambda x: layers.EinsumDense("abc,bcd->abd", output_shape=(10, 6))(x)),
        "abc,bcd->abd",
    ),
    "a product that repeats a batch": (
        sequence(lambda x: ops.matmul(L.Reshape((2, 5, 4))(x), L.Reshape((1, 4, 10))(x))),
        "there is no kernel for the shapes",
    ),
    "EinsumDense, other bias": (
        sequence(lambda x: layers.EinsumDense("abc,cd->abd", (10, 6), bias_axes="bd")(x)),
        "bias_axes='bd'",
    ),
    "PReLU of pixels": (table(layers.PReLU()), "option shared_axes=None has no kernel"),
}


@pytest.mark.parametrize("name", ISLANDS)
def test_what_float_kernels_alone_compute_is_an_island(name, tmp_path):
    case, reason = ISLANDS[name]
    model = speq_keras.wrap(case.build(), 3, 8, distillation=None, seed=0)
    data = np.random.default_rng(0).random((8, *case.shape), "float32")
    model.calibrate(data, verbose=0)
    report = model.export_tflite(tmp_path / "m.tflite", data=data)
    assert report.proof.holds
    assert any(reason in note for note in report.notes)
    assert report.agreement.distance < 0.05 * report.agreement.span  # a few codes of 8 bits


# ---- places in tables, and masks ---------------------------------------------------------------


def reader(masked=True, positions=False):
    """A small encoder of 12 words out of 30: what it reads are whole numbers."""
    keras.utils.set_random_seed(0)
    words = keras.Input((12,), dtype="int32", name="words")
    mask = keras.Input((12,), dtype="int32", name="mask")
    x = layers.Embedding(30, 8, name="table")(words)
    if positions:
        keras_hub = pytest.importorskip("keras_hub")
        x = layers.Add()([x, keras_hub.layers.PositionEmbedding(20, name="position")(x)])
    x = layers.LayerNormalization()(x)
    keeps = {"attention_mask": ops.expand_dims(mask, 1)} if masked else {}
    y = layers.MultiHeadAttention(2, 4, dropout=0.1, name="attention")(x, x, **keeps)
    x = layers.LayerNormalization()(layers.Add()([x, y]))
    x = layers.Dense(8, activation="gelu")(x)
    inputs = {"words": words, "mask": mask} if masked else words
    model = speq_keras.wrap(keras.Model(inputs, layers.Dense(2, name="last")(x)), 3, 3, seed=0)
    rng = np.random.default_rng(1)
    data = {
        "words": rng.integers(0, 30, (16, 12)),
        "mask": (np.arange(12) < rng.integers(3, 13, (16, 1))).astype("int32"),
    }
    return model, data if masked else data["words"]


@pytest.mark.parametrize("options", [{}, {"masked": False}, {"positions": True}], ids=str)
def test_a_model_that_reads_words_is_exported(options, tmp_path):
    model, data = reader(**options)
    model.calibrate(data, verbose=0)
    report = model.export_tflite(tmp_path / "m.tflite", data=data)
    assert report.proof.mismatches == report.proof.outside == 0
    assert {"gather", "batch_matmul"} <= {row.kind for row in report.proof.tensors}
    arrays = [data[name] for name in sorted(data)] if isinstance(data, dict) else [data]
    folded = speq_keras.fold(model)
    found, trained = folded.predict_float(arrays), ops.convert_to_numpy(model(data))
    # Of 3 bits: where a rounded bias moves a code, it moves far.
    assert np.mean(np.abs(found - trained)) < 0.1 * np.std(trained)


def counter(function):
    """A model that counts with whole numbers: it casts them, or adds floats to them."""
    keras.utils.set_random_seed(0)
    count = keras.Input((5,), dtype="int32", name="count")
    x = layers.Dense(8, activation="relu")(function(count))
    model = speq_keras.wrap(keras.Model(count, layers.Dense(2, name="last")(x)), 3, 3, seed=0)
    data = np.random.default_rng(1).integers(0, 9, (16, 5))
    model.calibrate(data, verbose=0)
    return model, data


def test_whole_numbers_that_are_cast_keep_their_values(tmp_path):
    model, data = counter(lambda count: ops.cast(count, "float32"))
    report = model.export_tflite(tmp_path / "m.tflite", data=data)
    assert report.proof.mismatches == report.proof.outside == 0
    found = speq_keras.fold(model).predict_float(data)
    np.testing.assert_allclose(found, model(data), atol=0.2 * np.std(found))
    assert len(np.unique(found[:, 0])) > 8


def test_whole_numbers_beside_floats_are_cast(tmp_path):
    model, data = counter(lambda count: ops.add(count, np.full(5, 0.5, "float32")))
    report = model.export_tflite(tmp_path / "m.tflite", data=data)
    assert report.proof.mismatches == report.proof.outside == 0


def test_masked_words_change_nothing_in_the_file():
    model, data = reader()
    model.calibrate(data, verbose=0)
    folded = speq_keras.fold(model)
    other = np.where(data["mask"] > 0, data["words"], 7)
    before, after = (
        folded.predict({"words": words, "mask": data["mask"]}) for words in (data["words"], other)
    )
    kept = data["mask"] > 0
    np.testing.assert_array_equal(before[kept], after[kept])
    assert np.any(before[~kept] != after[~kept])
