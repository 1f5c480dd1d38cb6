"""Every option of every layer and operation that has a row: the right values, or a refusal."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops

import speq_keras
from speq_keras.export.tflite.runtimes import run_file
from speq_keras.export.tflite.write import write
from speq_keras.operations.rows import (
    LAYER_ROWS,
    OPERATION_ROWS,
    TRAINING_ENDINGS,
    TRAINING_ONLY,
    TRAINING_OPTIONS,
)

# Keras calls one option of LayerNormalization deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`")

IMAGE, SEQUENCE, VOLUME, VECTOR = (6, 6, 4), (6, 4), (4, 4, 4, 2), (8,)
# Half a step at some twenty roundings of 8 bits in a row; a lost option moves outputs by more.
SHARE_OF_RANGE = 0.04
FIRST = "channels_first"
PADS = [[0, 0], [1, 1], [2, 0], [0, 0]]


@keras.saving.register_keras_serializable(package="test_export_options")
class Doubled(keras.layers.Layer):
    """Given as an activation function: 2 · x."""

    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable(package="test_export_options")
def own(x):
    return ops.sin(x)


CONVOLUTION = {
    "filters": [3],
    "kernel_size": [2],
    "strides": [2],
    "padding": ["same"],
    "data_format": [FIRST],
    "dilation_rate": [2],
    "groups": [2],
    "activation": ["relu", "tanh", "softplus", own, layers.LeakyReLU(0.2), layers.ReLU(1.5)],
    "use_bias": [False],
}
CAUSAL = CONVOLUTION | {"padding": ["same", "causal"]}
DEPTHWISE = {key: value for key, value in CONVOLUTION.items() if key not in ("filters", "groups")}
DEPTHWISE["depth_multiplier"] = [2]
TRANSPOSED = {key: value for key, value in CONVOLUTION.items() if key != "groups"}
TRANSPOSED |= {"output_padding": [1], "kernel_size": [1, 2]}
TRANSPOSED |= {"dilation_rate": [{"dilation_rate": 2, "strides": 1}]}
SEPARABLE = DEPTHWISE | {"filters": [3]}
POOL = {"pool_size": [3], "strides": [1], "padding": ["same"], "data_format": [FIRST]}
GLOBAL = {"data_format": [FIRST], "keepdims": [True]}
RELU = {"max_value": [1.5, 6], "negative_slope": [0.4], "threshold": [0.2]}
RESIZING = {
    "height": [9],
    "width": [3],
    "interpolation": ["nearest", "bicubic", "lanczos3"],
    "crop_to_aspect_ratio": [True],
    "pad_to_aspect_ratio": [True],
    "antialias": [True],
    "data_format": [FIRST],
    "fill_mode": [],  # Keras knows "constant" only
    "fill_value": [3.0],
}
LORA = {"lora_rank": [1], "lora_alpha": [2], "quantization_config": []}
STEPS = np.arange(1, 5, dtype="float32") / 2
# {layer: (shape it reads, what it is made with, {option: other values})}
LAYERS = {
    "Dense": (VECTOR, {"units": 4}, CONVOLUTION | {"units": [3]} | LORA),
    "EinsumDense": (
        SEQUENCE,
        {"equation": "abc,cd->abd", "output_shape": (6, 3), "bias_axes": "d"},
        {
            "equation": [
                {"equation": "abc,bd->acd", "output_shape": (4, 3)},
                {"equation": "abc,bcd->abd", "output_shape": (6, 3)},
                {"equation": "abc,bd->adc", "output_shape": (3, 4)},
                {"equation": "abc,cd->abd", "output_shape": (6, 3), "bias_axes": "b"},
            ],
            "output_shape": [(None, 3)],
            "activation": CONVOLUTION["activation"],
            "bias_axes": [None, "bd"],
            "gptq_unpacked_column_size": [],
            **LORA,
        },
    ),
    "Conv1D": (SEQUENCE, {"filters": 4, "kernel_size": 3}, CAUSAL),
    "Conv2D": (IMAGE, {"filters": 4, "kernel_size": 3}, CONVOLUTION),
    "DepthwiseConv1D": (SEQUENCE, {"kernel_size": 3}, DEPTHWISE),
    "DepthwiseConv2D": (IMAGE, {"kernel_size": 3}, DEPTHWISE),
    "Conv1DTranspose": (SEQUENCE, {"filters": 4, "kernel_size": 3, "strides": 2}, TRANSPOSED),
    "Conv2DTranspose": (IMAGE, {"filters": 4, "kernel_size": 3, "strides": 2}, TRANSPOSED),
    "SeparableConv1D": (SEQUENCE, {"filters": 4, "kernel_size": 3}, SEPARABLE),
    "SeparableConv2D": (IMAGE, {"filters": 4, "kernel_size": 3}, SEPARABLE),
    "LayerNormalization": (
        IMAGE,
        {},
        {
            "axis": [1, (2, 3), (1, 2)],
            "epsilon": [1.0],
            "center": [False],
            "scale": [False],
            "rms_scaling": [True],
        },
    ),
    "RMSNormalization": (IMAGE, {}, {"axis": [(2, 3), (1, 2, 3)], "epsilon": [1.0]}),
    "GroupNormalization": (
        IMAGE,
        {"groups": 2},
        {
            "groups": [1, 4, -1],
            "axis": [1, 3],
            "epsilon": [1.0],
            "center": [False],
            "scale": [False],
        },
    ),
    "UnitNormalization": (IMAGE, {}, {"axis": [1, (2, 3)]}),
    "BatchNormalization": (
        IMAGE,
        {},
        {"axis": [1, 3], "epsilon": [1.0], "center": [False], "scale": [False]},
    ),
    "Rescaling": (
        IMAGE,
        {"scale": 0.5},
        {"scale": [STEPS, np.arange(1, 7).reshape(6, 1) / 4], "offset": [1.0, STEPS]},
    ),
    "Normalization": (
        IMAGE,
        {"mean": 0.5, "variance": 0.2, "axis": None},
        {"axis": [-1, 1], "mean": [2.0], "variance": [4.0], "invert": [True]},
    ),
    **{name: (IMAGE, {}, {}) for name in "Add Subtract Multiply Average Maximum Minimum".split()},
    **{f"{kind}Pooling1D": (SEQUENCE, {"pool_size": 2}, POOL) for kind in ("Max", "Average")},
    **{f"{kind}Pooling2D": (IMAGE, {"pool_size": 2}, POOL) for kind in ("Max", "Average")},
    **{f"Global{kind}Pooling1D": (SEQUENCE, {}, GLOBAL) for kind in ("Max", "Average")},
    **{f"Global{kind}Pooling2D": (IMAGE, {}, GLOBAL) for kind in ("Max", "Average")},
    "Conv3D": (VOLUME, {"filters": 4, "kernel_size": 2}, CONVOLUTION),
    "Conv3DTranspose": (
        VOLUME,
        {"filters": 3, "kernel_size": 3, "strides": 2},
        TRANSPOSED | {"kernel_size": [2]},
    ),
    **{f"{kind}Pooling3D": (VOLUME, {"pool_size": 2}, POOL) for kind in ("Max", "Average")},
    "Cropping3D": (
        VOLUME,
        {"cropping": ((1, 0), (0, 1), (1, 0))},
        {"cropping": [((0, 1), (2, 0), (0, 0))], "data_format": [FIRST]},
    ),
    "ZeroPadding3D": (VOLUME, {}, {"padding": [((0, 1), (2, 0), 1)], "data_format": [FIRST]}),
    "UpSampling3D": (VOLUME, {}, {"size": [(1, 3, 2)], "data_format": [FIRST]}),
    "GlobalAveragePooling3D": (VOLUME, {}, GLOBAL),
    "GlobalMaxPooling3D": (VOLUME, {}, GLOBAL),
    "Reshape": (IMAGE, {"target_shape": (36, 4)}, {"target_shape": [(-1, 8), (4, 6, 6)]}),
    "Flatten": (IMAGE, {}, {"data_format": [FIRST]}),
    "Identity": (IMAGE, {}, {}),
    "Permute": (IMAGE, {"dims": (2, 1, 3)}, {"dims": [(3, 1, 2)]}),
    "RepeatVector": (VECTOR, {"n": 2}, {"n": [3]}),
    "Cropping1D": (SEQUENCE, {}, {"cropping": [2, (0, 1)]}),
    "Cropping2D": (IMAGE, {}, {"cropping": [1, ((0, 1), (2, 0))], "data_format": [FIRST]}),
    "ZeroPadding1D": (SEQUENCE, {}, {"padding": [(0, 2)], "data_format": [FIRST]}),
    "ZeroPadding2D": (IMAGE, {}, {"padding": [((0, 1), (2, 0))], "data_format": [FIRST]}),
    "UpSampling1D": (SEQUENCE, {}, {"size": [3]}),
    "UpSampling2D": (
        IMAGE,
        {},
        {
            "size": [(1, 3)],
            "interpolation": ["bilinear", "bicubic"],
            "data_format": [FIRST],
        },
    ),
    "Resizing": (IMAGE, {"height": 4, "width": 8}, RESIZING),
    "Concatenate": (IMAGE, {}, {"axis": [1, 2]}),
    "Activation": (
        IMAGE,
        {"activation": "relu"},
        {
            "activation": [
                *"sigmoid tanh softmax gelu elu selu softplus hard_sigmoid hard_silu".split(),
                *"leaky_relu silu linear relu6 mish".split(),
                *(own, ops.gelu, layers.LeakyReLU(0.4), layers.ReLU(1.5), Doubled()),
            ]
        },
    ),
    "ReLU": (IMAGE, {}, RELU),
    "LeakyReLU": (IMAGE, {}, {"negative_slope": [0.8]}),
    "PReLU": (
        IMAGE,
        {"alpha_initializer": "random_uniform"},
        {"shared_axes": [[1, 2], [1], [3], [1, 2, 3]]},
    ),
    "ELU": (IMAGE, {}, {"alpha": [0.3]}),
    "Softmax": (SEQUENCE, {}, {"axis": [1, (1, 2)]}),
    "Masking": (SEQUENCE, {}, {"mask_value": [0.5]}),
}
TWO = "Add Subtract Multiply Average Maximum Minimum Concatenate".split()
TABLES = {  # with whole numbers as inputs
    "Embedding": (
        {"input_dim": 9, "output_dim": 4},
        {"mask_zero": [True], "weights": [], **LORA, "input_dim": [12], "output_dim": [3]},
    ),
    "ReversibleEmbedding": (
        {"input_dim": 9, "output_dim": 4},
        {
            "tie_weights": [False],
            "mask_zero": [True],
            "reverse_dtype": ["float32"],
            "logit_soft_cap": [2.0],
            "input_dim": [12],
            "output_dim": [3],
        },
    ),
}
# {operation: [(what it says, a function of one tensor or of two)]}
OPERATIONS = {
    "Matmul": [("", lambda x: ops.matmul(x, ops.transpose(x, (0, 1, 3, 2))))],
    "Add": [("2", lambda x: x + 2), ("array", lambda x: x + STEPS), ("self", lambda x: x + x)],
    "Subtract": [("2", lambda x: x - 2), ("from 2", lambda x: 2 - x), ("a", lambda x: x - STEPS)],
    "Multiply": [("2", lambda x: x * 2), ("array", lambda x: x * STEPS)],
    "Divide": [("2", lambda x: ops.divide(x, 2)), ("1", lambda x: ops.divide(1, x * x + 4))],
    "TrueDivide": [("2", lambda x: x / 2), ("array", lambda x: x / STEPS)],
    "Maximum": [("0.1", lambda x: ops.maximum(x, 0.1))],
    "Minimum": [("0.1", lambda x: ops.minimum(x, 0.1))],
    "Negative": [("", lambda x: -x)],
    "Square": [("", lambda x: ops.square(x))],
    "Absolute": [("", lambda x: ops.absolute(x))],
    "Reshape": [
        ("", lambda x: ops.reshape(x, (-1, 36, 4))),
        ("b", lambda x: ops.reshape(x, (-1, 8))),
    ],
    "Transpose": [
        ("", lambda x: ops.transpose(x, (0, 2, 1, 3))),
        ("all", lambda x: ops.transpose(x)),
    ],
    "GetItem": [
        ("slice", lambda x: x[:, 1:5:2]),
        ("number", lambda x: x[:, :, -1]),
        ("dots", lambda x: x[..., 1:]),
        ("new axis", lambda x: x[:, None]),
        ("backwards", lambda x: x[:, ::-1]),
    ],
    "Squeeze": [("", lambda x: ops.squeeze(x[:, :1], 1))],
    "ExpandDims": [("", lambda x: ops.expand_dims(x[:, 1], 2))],
    "Ravel": [("", lambda x: ops.ravel(x))],
    "Repeat": [("1", lambda x: ops.repeat(x, 2, 1)), ("3", lambda x: ops.repeat(x, 2, 3))],
    "Flip": [("", lambda x: ops.flip(x, 1))],
    "Roll": [("", lambda x: ops.roll(x, 2, 1)), ("all", lambda x: ops.roll(x, 2))],
    "Tile": [("", lambda x: ops.tile(x, (1, 1, 2, 1))), ("b", lambda x: ops.tile(x, (2, 1, 1, 1)))],
    "Take": [
        ("", lambda x: ops.take(x, [3, 1], axis=2)),
        ("all", lambda x: ops.take(x, [3, 1])),
        ("grid", lambda x: ops.take(x, [[3, 1], [0, 2]], axis=1)),
    ],
    "DepthToSpace": [("", lambda x: ops.depth_to_space(x, 2))],
    "Split": [
        ("2", lambda x: ops.split(x, 2, axis=-1)[1]),
        ("places", lambda x: ops.split(x, [1, 4], axis=1)[1]),
    ],
    "Unstack": [("", lambda x: ops.unstack(x, axis=2)[3])],
    "Max": [("1", lambda x: ops.max(x, 1)), ("keepdims", lambda x: ops.max(x, 1, keepdims=True))],
    "Min": [("1", lambda x: ops.min(x, 1)), ("batch", lambda x: ops.min(x, (0, 1)))],
    "Exp": [("", lambda x: ops.exp(x))],
    "Expm1": [("", lambda x: ops.expm1(x))],
    "Log": [("", lambda x: ops.log(ops.abs(x) + 0.1))],
    "Log1p": [("", lambda x: ops.log1p(ops.abs(x)))],
    "Sqrt": [("", lambda x: ops.sqrt(ops.abs(x)))],
    "Rsqrt": [("", lambda x: ops.rsqrt(ops.abs(x) + 0.1))],
    "Reciprocal": [("", lambda x: ops.reciprocal(ops.abs(x) + 1))],
    "Power": [("", lambda x: ops.power(ops.abs(x), 1.5)), ("of", lambda x: ops.power(1.5, x))],
    "Clip": [("", lambda x: ops.clip(x, -0.8, 1.2))],
    "Sign": [("", lambda x: ops.sign(x - 0.5))],
    "Erf": [("", lambda x: ops.erf(x))],
    "Floor": [("", lambda x: x + 0.1 * ops.floor(x))],
    "Ceil": [("", lambda x: x + 0.1 * ops.ceil(x))],
    "Sin": [("", lambda x: ops.sin(x))],
    "Cos": [("", lambda x: ops.cos(x))],
    "Arctan": [("", lambda x: ops.arctan(x))],
    "Softsign": [("", lambda x: ops.softsign(x))],
    "LogSigmoid": [("", lambda x: ops.log_sigmoid(x))],
    "Celu": [("", lambda x: ops.celu(x - 0.5, 0.6))],
    "TanhShrink": [("", lambda x: ops.tanh_shrink(x))],
    "HardTanh": [("", lambda x: ops.hard_tanh(x))],
    "HardShrink": [("", lambda x: ops.hard_shrink(x, 0.3))],
    "SoftShrink": [("", lambda x: ops.soft_shrink(x, 0.3))],
    "SparsePlus": [("", lambda x: ops.sparse_plus(x))],
    "Squareplus": [("", lambda x: ops.squareplus(x, 2))],
    "Threshold": [("", lambda x: ops.threshold(x, 0.5, 0.1))],
    "MaxPool": [
        ("2", lambda x: ops.max_pool(x, 2)),
        ("strides", lambda x: ops.max_pool(x, 3, 1)),
        ("same", lambda x: ops.max_pool(x, 3, 2, "same")),
    ],
    "BroadcastTo": [("", lambda x: ops.broadcast_to(x[:, :1], (16, 6, 6, 4)))],
    "Moveaxis": [("", lambda x: ops.moveaxis(x, 3, 1))],
    "Swapaxes": [("", lambda x: ops.swapaxes(x, 3, 1))],
    "Pad": [
        ("", lambda x: ops.pad(x, PADS)),
        ("reflect", lambda x: ops.pad(x, PADS, mode="reflect")),
        ("symmetric", lambda x: ops.pad(x, PADS, mode="symmetric")),
        ("channels", lambda x: ops.pad(x, [[0, 0]] * 3 + [[1, 2]], mode="reflect")),
        ("ones", lambda x: ops.pad(x, PADS, constant_values=1)),
    ],
    "AveragePool": [
        ("2", lambda x: ops.average_pool(x, 2)),
        ("same", lambda x: ops.average_pool(x, 3, 2, "same")),
    ],
    "Resize": [
        ("", lambda x: ops.image.resize(x, (9, 4))),
        ("nearest", lambda x: ops.image.resize(x, (12, 12), interpolation="nearest")),
        ("bicubic", lambda x: ops.image.resize(x, (9, 4), interpolation="bicubic")),
        ("antialias", lambda x: ops.image.resize(x, (3, 3), antialias=True)),
    ],
    "Concatenate": [
        (f"{axis}", lambda x, axis=axis: ops.concatenate([x, x], axis)) for axis in (1, 3)
    ],
    "Stack": [(f"{axis}", lambda x, axis=axis: ops.stack([x, x + x], axis)) for axis in (1, -1)],
    "Mean": [
        ("", lambda x: ops.mean(x, (1, 2))),
        ("1", lambda x: ops.mean(x, 1)),
        ("-1", lambda x: ops.mean(x, -1)),
        ("keepdims", lambda x: ops.mean(x, (1, 3), keepdims=True)),
    ],
    "Cast": [("", lambda x: ops.cast(x, "float32"))],
    "ConvertToTensor": [("", lambda x: ops.convert_to_tensor(x))],
    "StopGradient": [("", lambda x: ops.stop_gradient(x))],
    "Sum": [("", lambda x: ops.sum(x, (1, 2))), ("kept", lambda x: ops.sum(x, -1, keepdims=True))],
    "Prod": [("", lambda x: ops.prod(1 + 0.2 * x, -1))],
    "Var": [("", lambda x: ops.var(x, (1, 2))), ("kept", lambda x: ops.var(x, -1, keepdims=True))],
    "Std": [("", lambda x: ops.std(x, (1, 2)))],
    "Norm": [(f"{n}", lambda x, n=n: ops.norm(x, n, axis=-1)) for n in (1, 2, np.inf)],
    "Normalize": [
        ("", lambda x: ops.normalize(x)),
        ("order", lambda x: ops.normalize(x, 1, order=1, epsilon=0.5)),
    ],
    "RMSNorm": [
        ("", lambda x: ops.rms_normalization(x)),
        ("axes", lambda x: ops.rms_normalization(x, axis=(1, 2), epsilon=0.5)),
        ("scale", lambda x: ops.rms_normalization(x, STEPS)),
    ],
    "Logsumexp": [("", lambda x: ops.logsumexp(x, -1))],
    "Cumsum": [("", lambda x: ops.cumsum(x, 1)), ("flat", lambda x: ops.cumsum(x))],
    "Argmax": [
        ("", lambda x: x * ops.cast(ops.argmax(x + 50 * STEPS, -1, keepdims=True), "float32")),
    ],
    "Any": [("", lambda x: ops.where(ops.any(x > -9, -1, keepdims=True), x, 2 * x))],
    "All": [("", lambda x: ops.where(ops.all(x > -9, -1, keepdims=True), 2 * x, x))],
    # Continuous, so that no code on the wrong side of a bend counts.
    "Where": [
        ("", lambda x: ops.where(x > 0, x, 0.2 * x)),
        ("0", lambda x: ops.where(x < 0, x, 0)),
    ],
    "Equal": [("", lambda x: ops.where(ops.equal(x, 99), 2 * x, x))],
    "NotEqual": [("", lambda x: ops.where(ops.not_equal(x, 99), 2 * x, x))],
    "Less": [("", lambda x: ops.where(x < 0, 0.2 * x, x))],
    "LessEqual": [("", lambda x: ops.where(x <= 0, x, 0.2 * x))],
    "Greater": [("", lambda x: x * ops.cast(x > 0, "float32"))],
    "GreaterEqual": [("", lambda x: ops.where(x >= 0, x, 0.2 * x))],
    "LogicalAnd": [("", lambda x: ops.where(ops.logical_and(x > 0, x < 9), x, 0.2 * x))],
    "LogicalOr": [("", lambda x: ops.where(ops.logical_or(x < 0, x > 9), x, 0.2 * x))],
    "LogicalNot": [("", lambda x: ops.where(ops.logical_not(x > 0), x, 0.2 * x))],
    "Relu": [("", lambda x: ops.relu(x))],
    "Relu6": [("", lambda x: ops.relu6(30 * x))],
    "ReLU": [
        ("slope", lambda x: keras.activations.relu(x, negative_slope=0.4)),
        ("cap", lambda x: keras.activations.relu(x, max_value=1.5)),
        ("both", lambda x: keras.activations.relu(x, negative_slope=0.4, max_value=1.5)),
        ("threshold", lambda x: keras.activations.relu(x, threshold=0.2)),
    ],
    "Sigmoid": [("", lambda x: ops.sigmoid(x))],
    "Tanh": [("", lambda x: ops.tanh(x))],
    "Softmax": [("", lambda x: ops.softmax(x)), ("1", lambda x: ops.softmax(x, axis=1))],
    "LogSoftmax": [("", lambda x: ops.log_softmax(x)), ("1", lambda x: ops.log_softmax(x, 1))],
    "Gelu": [
        ("", lambda x: ops.gelu(3 * x)),
        ("exact", lambda x: ops.gelu(3 * x, approximate=False)),
    ],
    "Elu": [("", lambda x: ops.elu(x)), ("alpha", lambda x: ops.elu(x, alpha=0.3))],
    "Selu": [("", lambda x: ops.selu(x))],
    "Softplus": [("", lambda x: ops.softplus(x))],
    "HardSigmoid": [("", lambda x: ops.hard_sigmoid(x))],
    "HardSilu": [("", lambda x: ops.hard_silu(x))],
    "LeakyRelu": [("", lambda x: ops.leaky_relu(x)), ("slope", lambda x: ops.leaky_relu(x, 0.8))],
    "Silu": [("", lambda x: ops.silu(x))],
}


def layer_cases():
    """Yields (what it says, shape, function of one tensor)."""
    for name, (shape, base, options) in LAYERS.items():
        cls = getattr(layers, name)
        changes = [{}] + [
            value if isinstance(value, dict) else {option: value}
            for option, values in options.items()
            if option in options_of(cls)
            for value in values
        ]
        for change in changes:

            def build(x, cls=cls, name=name, kwargs=base | change):
                layer = cls(**kwargs, name="tried")
                return layer([x, layers.Dense(x.shape[-1])(x)] if name in TWO else x)

            said = ", ".join(f"{k}={named(v)}" for k, v in change.items())
            yield f"{name}({said})".replace("\n", " "), shape, build


def named(value):
    """Returns a value's part of a test's name, without an address: all workers need one name."""
    return f"{value.__name__}()" if inspect.isfunction(value) else getattr(value, "name", value)


def options_of(cls):
    """Returns the options of a constructor that count at inference."""
    names = set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}
    if cls is layers.LayerNormalization:
        names.add("rms_scaling")  # not in the signature
    return {n for n in names - TRAINING_OPTIONS if not n.endswith(TRAINING_ENDINGS)}


def operation_cases():
    """Yields the same for operations."""
    for name, calls in OPERATIONS.items():
        for said, build in calls:
            yield f"ops.{name}({said})", IMAGE, build


CASES = {name: (shape, build) for name, shape, build in [*layer_cases(), *operation_cases()]}
# Those whose options were lost without a word, or are computed in a way of their own.
QUICK = [
    "ReLU(max_value=1.5)",
    "LayerNormalization(axis=1)",
    "PReLU(shared_axes=[1])",
    "Flatten(data_format=channels_first)",
    "AveragePooling1D(padding=same)",
    "Conv2DTranspose(kernel_size=1)",
    "ops.Elu(alpha)",
    "ops.Mean(keepdims)",
    "ops.Pad(symmetric)",
    "ops.Softmax(1)",
    "ops.Stack(-1)",
    "ops.Subtract(from 2)",
]
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CASES]


def test_every_option_of_every_layer_is_tried():
    tried = {*LAYERS, *TABLES, *TRAINING_ONLY}
    assert tried == set(LAYER_ROWS)
    for name, (_, base, options) in LAYERS.items():
        assert options_of(getattr(layers, name)) <= {*base, *options}, name
    assert set(OPERATIONS) == {row.name for _, row in OPERATION_ROWS}


def result_of(shape, build, *, skip=(), dtype="float32", goes_on=False):
    """Returns the refusal, or how far the file is off, as a share of the range of the outputs."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input(shape, dtype=dtype)
    y = build(layers.Dense(shape[-1], name="before")(inputs) if dtype == "float32" else inputs)
    if goes_on and len(y.shape) > 1 and None not in y.shape[1:]:
        y = layers.Dense(5, name="after")(y)
    network = keras.Model(inputs, y)
    rng = np.random.default_rng(0)
    for variable in network.variables:
        if variable.name in ("bias", "beta", "moving_mean"):
            variable.assign(rng.normal(size=variable.shape))
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 2, variable.shape))
    x = rng.normal(size=(16, *shape)).astype("float32")
    if dtype != "float32":
        x = rng.integers(0, 9, (16, *shape)).astype(dtype)
    if any(getattr(layer, "lora_enabled", False) for layer in network.layers) and not skip:
        with pytest.raises(ValueError, match=r"'tried' \(.*Received: lora_rank=1"):
            speq_keras.wrap(network, 8, 8, distillation=None)
        return 0.0
    model = speq_keras.wrap(network, 8, 8, distillation=None, skip=list(skip))
    model.calibrate(x, verbose=0)
    trained = model.predict(x, verbose=0)
    try:
        folded = speq_keras.fold(model)
    except ValueError as error:
        return str(error)
    (got,) = run_file(write(folded.network, batch_size=len(x)), [x])
    assert got.shape == trained.shape
    return float(np.max(np.abs(got - trained)) / np.ptp(trained))


def check(result, name):
    """A refusal names the layer and what of it has no kernel; all else is right."""
    if isinstance(result, float):
        assert result <= SHARE_OF_RANGE
        return
    assert result.startswith("Every layer of a model must be one that integer kernels compute.")
    if not name.startswith("ops."):
        assert "'tried" in result


@pytest.mark.parametrize("name", ALL)
def test_a_quantized_layer_has_right_values_or_is_refused(name):
    check(result_of(*CASES[name], goes_on=True), name)


@pytest.mark.parametrize("name", ALL)
def test_a_layer_in_float_has_right_values_or_is_refused(name):
    shape, build = CASES[name]
    made = keras.Input(shape)
    operations = keras.Model(made, build(made)).operations[1:]
    skip = (
        ["tried*"]
        if not name.startswith("ops.")
        else [f"{operations[-1].name.rstrip('_0123456789')}*"]
    )
    check(result_of(shape, build, skip=skip), name)


def table_cases():
    for name, (base, options) in TABLES.items():
        for option, values in options.items():
            for value in values:
                said = f"{name}({option}={named(value)})"
                yield pytest.param(name, base | {option: value}, id=said)


@pytest.mark.long
@pytest.mark.parametrize(("name", "kwargs"), table_cases())
def test_a_table_has_right_rows_or_is_refused(name, kwargs):
    cls = getattr(layers, name)
    known = {key: value for key, value in kwargs.items() if key in options_of(cls)}

    def build(x):
        return layers.Dense(3)(cls(**known, name="tried")(x))

    check(result_of((5,), build, dtype="int32"), name)
