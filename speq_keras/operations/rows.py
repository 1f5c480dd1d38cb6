"""One row for each layer and operation of Keras that is supported.

A row says what integer kernels do with it (`Kind`), and which options of its constructor and which
arguments of a call, besides the first, are honoured. All others must have Keras' default value:
otherwise the export refuses. Options that matter only in training are in `TRAINING_OPTIONS`.
"""

import dataclasses
import enum

from keras import activations, ops

Kind = enum.Enum(
    "Kind",
    "WEIGHTED MATMUL AFFINE RELU ELEMENTWISE CARRY SAME_GRID CONCAT MEAN TABLE QUANTIZER FLOAT",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known about one layer or operation.

    Attributes:
        name: Keras' name of the class; layers and operations of one name compute the same.
        kind: Its `Kind` unless something else decides; FLOAT: its quantize config decides.
        options: Names of the options that are honoured, or refused if no kernel has the value.
        calls: Names of the arguments of a call, besides the first one, that are honoured.
        is_for_training: Whether it returns its input at inference, regardless of options.
    """

    name: str
    kind: Kind = Kind.FLOAT
    options: frozenset = frozenset()
    calls: frozenset = frozenset()
    is_for_training: bool = False


# Padding below this value precedes a maximum: -inf, or practically so.
LOWEST = -1e6
# Options that matter only in training: their names end like this, or are these.
TRAINING_ENDINGS = ("_initializer", "_regularizer", "_constraint")
TRAINING_OPTIONS = frozenset(
    "name trainable dtype seed momentum synchronized renorm renorm_clipping renorm_momentum "
    "batch_input_shape input_shape autocast batch_shape".split()
)
# Layers that act only in training. MixUp and CutMix, which need labels, cannot be in a graph;
# RandomCrop also crops in inference.
TRAINING_ONLY = (
    "ActivityRegularization AlphaDropout AugMix Dropout GaussianDropout GaussianNoise RandAugment "
    "RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast "
    "RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue "
    "RandomInvert RandomPerspective RandomPosterization RandomRotation RandomSaturation "
    "RandomSharpness RandomShear RandomTranslation RandomZoom SpatialDropout1D SpatialDropout2D "
    "SpatialDropout3D"
).split()

_CONVOLUTION = "filters kernel_size strides padding dilation_rate groups activation use_bias"
_DEPTHWISE = "kernel_size strides padding dilation_rate depth_multiplier activation use_bias"
_TRANSPOSED = "filters kernel_size strides padding output_padding dilation_rate activation use_bias"
_SEPARABLE = f"filters {_DEPTHWISE}"
_POOLING = "pool_size strides padding"
_RESIZING = "interpolation crop_to_aspect_ratio pad_to_aspect_ratio antialias"

# (class names, kind, options, further arguments of a call)
_LAYERS = (
    ("Dense", Kind.FLOAT, "units activation use_bias", ""),
    ("EinsumDense", Kind.FLOAT, "equation output_shape activation bias_axes", ""),
    ("Conv1D Conv2D Conv3D", Kind.FLOAT, _CONVOLUTION, ""),
    ("DepthwiseConv1D DepthwiseConv2D", Kind.FLOAT, _DEPTHWISE, ""),
    ("Conv1DTranspose Conv2DTranspose Conv3DTranspose", Kind.FLOAT, _TRANSPOSED, ""),
    ("SeparableConv1D SeparableConv2D", Kind.FLOAT, _SEPARABLE, ""),
    # Layers that use the mask get it as an argument (`graph.masks`).
    ("Embedding", Kind.FLOAT, "input_dim output_dim weights mask_zero", ""),
    (
        "ReversibleEmbedding",
        Kind.FLOAT,
        "input_dim output_dim tie_weights reverse_dtype mask_zero",
        "",
    ),
    ("Masking", Kind.FLOAT, "mask_value", ""),
    ("LayerNormalization", Kind.FLOAT, "axis epsilon center scale", ""),
    ("RMSNormalization", Kind.FLOAT, "axis epsilon", ""),
    ("GroupNormalization", Kind.FLOAT, "groups axis epsilon center scale", ""),
    ("UnitNormalization", Kind.FLOAT, "axis", ""),
    ("BatchNormalization", Kind.AFFINE, "axis epsilon center scale", "mask"),
    ("Rescaling", Kind.AFFINE, "scale offset", ""),
    ("Normalization", Kind.AFFINE, "axis mean variance invert", ""),
    ("Add Subtract Multiply Average", Kind.ELEMENTWISE, "", ""),
    ("Maximum Minimum", Kind.CONCAT, "", ""),
    ("MaxPooling1D MaxPooling2D MaxPooling3D", Kind.CARRY, _POOLING, ""),
    ("GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D", Kind.CARRY, "keepdims", ""),
    ("AveragePooling1D AveragePooling2D AveragePooling3D", Kind.SAME_GRID, _POOLING, ""),
    ("GlobalAveragePooling1D", Kind.MEAN, "keepdims", "mask"),
    ("GlobalAveragePooling2D GlobalAveragePooling3D", Kind.MEAN, "keepdims", ""),
    ("Reshape", Kind.CARRY, "target_shape", ""),
    ("Flatten Identity", Kind.CARRY, "", ""),
    ("Permute", Kind.CARRY, "dims", ""),
    ("RepeatVector", Kind.CARRY, "n", ""),
    ("Cropping1D Cropping2D Cropping3D", Kind.CARRY, "cropping", ""),
    ("ZeroPadding1D ZeroPadding2D ZeroPadding3D", Kind.CARRY, "padding", ""),
    ("UpSampling1D UpSampling2D UpSampling3D", Kind.CARRY, "size interpolation", ""),
    (
        "Resizing",
        Kind.SAME_GRID,
        # The fill value only matters for padding, which is refused.
        f"height width fill_mode fill_value {_RESIZING}",
        "",
    ),
    ("Concatenate", Kind.CONCAT, "axis", ""),
    ("Activation", Kind.FLOAT, "activation", ""),
    ("ReLU", Kind.TABLE, "max_value negative_slope threshold", ""),
    ("LeakyReLU", Kind.TABLE, "negative_slope", ""),
    ("PReLU", Kind.TABLE, "shared_axes", ""),
    ("ELU", Kind.TABLE, "alpha", ""),
    ("Softmax", Kind.TABLE, "axis", "mask"),
)

# (name of the class, a call of the public function, kind, options, further arguments of a call)
_OPERATIONS = (
    ("Matmul", lambda x: ops.matmul(x, x), Kind.MATMUL, "", "x2"),
    ("Add", lambda x: x + x, Kind.ELEMENTWISE, "", "x2"),
    ("Subtract", lambda x: x - x, Kind.ELEMENTWISE, "", "x2"),
    ("Multiply", lambda x: x * x, Kind.ELEMENTWISE, "", "x2"),
    ("Divide", lambda x: ops.divide(x, x), Kind.ELEMENTWISE, "", "x2"),
    ("TrueDivide", lambda x: x / x, Kind.ELEMENTWISE, "", "x2"),
    ("Maximum", lambda x: ops.maximum(x, x), Kind.ELEMENTWISE, "", "x2"),
    ("Minimum", lambda x: ops.minimum(x, x), Kind.ELEMENTWISE, "", "x2"),
    ("Negative", lambda x: -x, Kind.ELEMENTWISE, "", ""),
    ("Square", lambda x: ops.square(x), Kind.ELEMENTWISE, "", ""),
    ("Absolute", lambda x: ops.absolute(x), Kind.ELEMENTWISE, "", ""),
    ("Reshape", lambda x: ops.reshape(x, (1, -1)), Kind.CARRY, "newshape", ""),
    ("Transpose", lambda x: ops.transpose(x), Kind.CARRY, "axes", ""),
    ("GetItem", lambda x: x[0], Kind.CARRY, "", "key"),
    ("Squeeze", lambda x: ops.squeeze(x), Kind.CARRY, "axis", ""),
    ("ExpandDims", lambda x: ops.expand_dims(x, 0), Kind.CARRY, "axis", ""),
    ("Ravel", lambda x: ops.ravel(x), Kind.CARRY, "", ""),
    ("Repeat", lambda x: ops.repeat(x, 2, 1), Kind.CARRY, "repeats axis", ""),
    ("Flip", lambda x: ops.flip(x), Kind.CARRY, "axis", ""),
    ("DepthToSpace", lambda x: ops.depth_to_space(x, 2), Kind.CARRY, "block_size", ""),
    ("Roll", lambda x: ops.roll(x, 1, 1), Kind.CARRY, "shift axis", ""),
    ("Tile", lambda x: ops.tile(x, (1, 2, 1, 1)), Kind.CARRY, "repeats", ""),
    ("Take", lambda x: ops.take(x, [0], axis=1), Kind.CARRY, "axis", "indices"),
    ("Split", lambda x: ops.split(x, 2, 1), Kind.CARRY, "indices_or_sections axis", ""),
    ("Unstack", lambda x: ops.unstack(x, axis=1), Kind.CARRY, "num axis", ""),
    ("Max", lambda x: ops.max(x, 1), Kind.CARRY, "axis keepdims", ""),
    ("Min", lambda x: ops.min(x, 1), Kind.CARRY, "axis keepdims", ""),
    ("MaxPool", lambda x: ops.max_pool(x, 1), Kind.CARRY, _POOLING, ""),
    ("BroadcastTo", lambda x: ops.broadcast_to(x, x.shape), Kind.CARRY, "shape", ""),
    ("Moveaxis", lambda x: ops.moveaxis(x, 1, 2), Kind.CARRY, "source destination", ""),
    ("Swapaxes", lambda x: ops.swapaxes(x, 1, 2), Kind.CARRY, "axis1 axis2", ""),
    (
        "Pad",
        lambda x: ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]),
        Kind.CARRY,
        "pad_width mode",
        "constant_values",
    ),
    ("AveragePool", lambda x: ops.average_pool(x, 1), Kind.SAME_GRID, _POOLING, ""),
    (
        "Resize",
        lambda x: ops.image.resize(x, (2, 2)),
        Kind.SAME_GRID,
        f"size fill_mode fill_value {_RESIZING}",
        "",
    ),
    ("Concatenate", lambda x: ops.concatenate([x, x]), Kind.CONCAT, "axis", ""),
    ("Stack", lambda x: ops.stack([x, x]), Kind.CONCAT, "axis", ""),
    ("Mean", lambda x: ops.mean(x), Kind.MEAN, "axis keepdims", ""),
    ("ConvertToTensor", lambda x: ops.convert_to_tensor(x), Kind.CARRY, "", ""),
    ("StopGradient", lambda x: ops.stop_gradient(x), Kind.CARRY, "", ""),
    # Float only, and masks.
    ("Cast", lambda x: ops.cast(x, "float16"), Kind.FLOAT, "dtype", ""),
    ("Sum", lambda x: ops.sum(x), Kind.FLOAT, "axis keepdims", ""),
    ("Prod", lambda x: ops.prod(x), Kind.FLOAT, "axis keepdims dtype", ""),
    ("Var", lambda x: ops.var(x), Kind.FLOAT, "axis keepdims", ""),
    ("Std", lambda x: ops.std(x), Kind.FLOAT, "axis keepdims", ""),
    ("Norm", lambda x: ops.norm(x), Kind.FLOAT, "ord axis keepdims", ""),
    ("Normalize", lambda x: ops.normalize(x), Kind.FLOAT, "axis order epsilon", ""),
    ("RMSNorm", lambda x: ops.rms_normalization(x), Kind.FLOAT, "axis epsilon", ""),
    ("Logsumexp", lambda x: ops.logsumexp(x), Kind.FLOAT, "axis keepdims", ""),
    ("Cumsum", lambda x: ops.cumsum(x, 1), Kind.FLOAT, "axis", ""),
    ("Argmax", lambda x: ops.argmax(x, -1), Kind.FLOAT, "axis keepdims", ""),
    ("Any", lambda x: ops.any(x), Kind.FLOAT, "axis keepdims", ""),
    ("All", lambda x: ops.all(x), Kind.FLOAT, "axis keepdims", ""),
    ("Where", lambda x: ops.where(x > 0, x, x), Kind.FLOAT, "", "x1 x2"),
    ("Equal", lambda x: ops.equal(x, x), Kind.FLOAT, "", "x2"),
    ("NotEqual", lambda x: ops.not_equal(x, x), Kind.FLOAT, "", "x2"),
    ("Less", lambda x: ops.less(x, x), Kind.FLOAT, "", "x2"),
    ("LessEqual", lambda x: ops.less_equal(x, x), Kind.FLOAT, "", "x2"),
    ("Greater", lambda x: ops.greater(x, x), Kind.FLOAT, "", "x2"),
    ("GreaterEqual", lambda x: ops.greater_equal(x, x), Kind.FLOAT, "", "x2"),
    ("LogicalAnd", lambda x: ops.logical_and(x > 0, x > 0), Kind.FLOAT, "", "x2"),
    ("LogicalOr", lambda x: ops.logical_or(x > 0, x > 0), Kind.FLOAT, "", "x2"),
    ("LogicalNot", lambda x: ops.logical_not(x > 0), Kind.FLOAT, "", ""),
    ("Relu", lambda x: ops.relu(x), Kind.RELU, "", ""),
    ("Relu6", lambda x: ops.relu6(x), Kind.RELU, "", ""),
    (
        "ReLU",
        lambda x: activations.relu(x, negative_slope=0.1),
        Kind.TABLE,
        "max_value negative_slope threshold",
        "",
    ),
    ("Sigmoid", lambda x: ops.sigmoid(x), Kind.TABLE, "", ""),
    ("Tanh", lambda x: ops.tanh(x), Kind.TABLE, "", ""),
    ("Softmax", lambda x: ops.softmax(x), Kind.TABLE, "axis", ""),
    ("LogSoftmax", lambda x: ops.log_softmax(x), Kind.FLOAT, "axis", ""),
    ("Gelu", lambda x: ops.gelu(x), Kind.TABLE, "approximate", ""),
    ("Elu", lambda x: ops.elu(x), Kind.TABLE, "alpha", ""),
    ("Selu", lambda x: ops.selu(x), Kind.TABLE, "", ""),
    ("Softplus", lambda x: ops.softplus(x), Kind.TABLE, "", ""),
    ("HardSigmoid", lambda x: ops.hard_sigmoid(x), Kind.TABLE, "", ""),
    ("HardSilu", lambda x: ops.hard_silu(x), Kind.TABLE, "", ""),
    ("LeakyRelu", lambda x: ops.leaky_relu(x), Kind.TABLE, "negative_slope", ""),
    ("Silu", lambda x: ops.silu(x), Kind.TABLE, "", ""),
    # Functions of a single value: their tables are made by calling them.
    ("Exp", lambda x: ops.exp(x), Kind.TABLE, "", ""),
    ("Expm1", lambda x: ops.expm1(x), Kind.TABLE, "", ""),
    ("Log", lambda x: ops.log(x), Kind.TABLE, "", ""),
    ("Log1p", lambda x: ops.log1p(x), Kind.TABLE, "", ""),
    ("Sqrt", lambda x: ops.sqrt(x), Kind.TABLE, "", ""),
    ("Rsqrt", lambda x: ops.rsqrt(x), Kind.TABLE, "", ""),
    ("Reciprocal", lambda x: ops.reciprocal(x), Kind.TABLE, "", ""),
    ("Power", lambda x: ops.power(x, 2.0), Kind.TABLE, "", "x2"),
    ("Clip", lambda x: ops.clip(x, 0.0, 1.0), Kind.TABLE, "x_min x_max", ""),
    ("Sign", lambda x: ops.sign(x), Kind.TABLE, "", ""),
    ("Erf", lambda x: ops.erf(x), Kind.TABLE, "", ""),
    ("Floor", lambda x: ops.floor(x), Kind.TABLE, "", ""),
    ("Ceil", lambda x: ops.ceil(x), Kind.TABLE, "", ""),
    ("Sin", lambda x: ops.sin(x), Kind.TABLE, "", ""),
    ("Cos", lambda x: ops.cos(x), Kind.TABLE, "", ""),
    ("Arctan", lambda x: ops.arctan(x), Kind.TABLE, "", ""),
    ("Softsign", lambda x: ops.softsign(x), Kind.TABLE, "", ""),
    ("LogSigmoid", lambda x: ops.log_sigmoid(x), Kind.TABLE, "", ""),
    ("Celu", lambda x: ops.celu(x), Kind.TABLE, "alpha", ""),
    ("TanhShrink", lambda x: ops.tanh_shrink(x), Kind.TABLE, "", ""),
    ("HardTanh", lambda x: ops.hard_tanh(x), Kind.TABLE, "", ""),
    ("HardShrink", lambda x: ops.hard_shrink(x), Kind.TABLE, "threshold", ""),
    ("SoftShrink", lambda x: ops.soft_shrink(x), Kind.TABLE, "threshold", ""),
    ("SparsePlus", lambda x: ops.sparse_plus(x), Kind.TABLE, "", ""),
    ("Squareplus", lambda x: ops.squareplus(x), Kind.TABLE, "b", ""),
    ("Threshold", lambda x: ops.threshold(x, 0.5, 0.0), Kind.TABLE, "threshold default_value", ""),
)


def _row(name, kind, options, calls):
    return Row(name, kind, frozenset(options.split()), frozenset(calls.split()))


# By the name in `keras.layers`.
LAYER_ROWS = {
    **{name: _row(name, *rest) for names, *rest in _LAYERS for name in names.split()},
    **{name: Row(name, Kind.CARRY, is_for_training=True) for name in TRAINING_ONLY},
}
# (a call that makes the operation, row)
OPERATION_ROWS = tuple((call, _row(name, *rest)) for name, call, *rest in _OPERATIONS)
# Layers of other packages, and one that is private in Keras.
POSITION_EMBEDDING = Row(
    "PositionEmbedding", Kind.FLOAT, frozenset({"sequence_length", "initializer"})
)
REVERSIBLE_EMBEDDING = LAYER_ROWS["ReversibleEmbedding"]
CHANNEL_OPERATION = Row(
    "ChannelOperation", Kind.AFFINE, frozenset({"shape", "operation", "weight_first"})
)
WEIGHT = Row("Weight", Kind.FLOAT, frozenset({"shape"}))
MASKED_OUTPUT = Row("MaskedOutput", Kind.CARRY, is_for_training=True)
SCALED_SUM = Row("CustomScaleLayer", Kind.FLOAT, frozenset({"scale"}))
