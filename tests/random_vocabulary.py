"""The words of random networks: one line of Keras for every layer, operation and option.

`{…}` is drawn by `option` or filled in by whoever draws; what is between `<` and `>` is mostly left
out. A row that is only a layer gets a name and is called on `{x}`. Keras judges what is drawn: a
line that it refuses is drawn again.
"""

import re

import numpy as np

_OPTIONAL = re.compile(r"<([^<>]*)>")
_PLACE = re.compile(r"\{(\w+)\}")

# [rank without the batch, topic]; "wild" is what few people meet, or what cannot be exported.
_TEXT = """
[any weights]
layers.Dense({n}{end}
layers.Dense({n}<, kernel_regularizer='l2'><, kernel_constraint='max_norm'>)
[any norm]
layers.BatchNormalization(<, axis={axis}><, scale=False><, center=False><, epsilon={eps}>)
layers.BatchNormalization()
layers.Rescaling({num}<, offset={num}>)
layers.Rescaling({vec}<, offset={vec}>)
layers.Normalization(<axis={axis}, >mean={num}, variance={pos}<, invert=True>)
layers.Normalization(mean={vec}, variance={posvec}<, invert=True>)
layers.LayerNormalization(<, axis={axis}><, epsilon={eps}><, center=False><, scale=False>)
[any activation]
layers.ReLU(<, max_value={cap}><, negative_slope={slope}><, threshold={cap}>)
layers.ReLU()
layers.LeakyReLU(<, negative_slope={slope}>)
layers.PReLU(<, shared_axes={axes}>)
layers.ELU(<, alpha={pos}>)
layers.Softmax(<, axis={axis}>)
layers.Activation({act})
ops.{function}({x})
keras.activations.{function}({x})
ops.leaky_relu({x}, negative_slope={slope})
ops.elu({x}, alpha={pos})
ops.gelu({x}, approximate={flag})
ops.softmax({x}<, axis={axis}>)
keras.activations.relu({x}<, max_value={cap}><, negative_slope={slope}><, threshold={cap}>)
[any arithmetic]
{x} * {num}
{x} + {num}
{num} - {x}
{x} / {pos}
{x} * {vec}
{x} + {vec}
{vec} - {x}
{x} / {posvec}
-{x}
ops.abs({x})
ops.square({x})
ops.multiply({x}, {num})
ops.add({num}, {x})
ops.maximum({x}, {num})
ops.minimum({x}, {pos})
layers.Add({name})([{x}, {same}])
layers.Add({name})([{x}, {same}, {same}])
layers.Subtract({name})([{x}, {same}])
layers.Multiply({name})([{x}, {same}])
layers.Average({name})([{x}, {same}])
layers.Maximum({name})([{x}, {same}])
layers.Minimum({name})([{same}, {x}])
{x} + {same}
{x} - {same}
{x} * {same}
ops.add({same}, {x})
ops.relu({x} + {same})
ops.maximum({x}, {same})
ops.where({x} > {num}, {x}, {same})
{x} - ops.stop_gradient({same})
ops.square({x} - {same})
[any noise]
layers.Dropout(0.3)
layers.GaussianNoise(0.1)
layers.GaussianDropout(0.1)
layers.Identity()
layers.ActivityRegularization(l2=1e-3)
[any join]
layers.Concatenate({name})([{x}, {same}])
layers.Concatenate(axis={axis}, {name})([{x}, {same}])
ops.concatenate([{same}, {x}], axis={axis})
ops.split({x}, 2, axis=-1)
[any composite]
own.twice(layers.Dense({c}<, activation={act}>, {name}), {x})
own.both(layers.Dense({n}<, activation={act}>, {name}), {x}, {same})
own.both(keras.Sequential([keras.Input({tail}), layers.Dense({n}<, activation={act}>)], {name}), \
{x}, {same})
keras.Sequential([keras.Input({tail}), layers.Dense({n}), \
layers.BatchNormalization(), layers.ReLU()])
[any wild]
ops.sum({x}, axis=-1, keepdims=True)
{x} * ops.cast({x} > 0, 'float32')
ops.var({x}, axis=-1, keepdims=True) + {x}
ops.normalize({x}, axis=-1)
{x} - ops.logsumexp({x}, axis=-1, keepdims=True)
ops.log_softmax({x})
ops.min({x}, axis=-1, keepdims=True) + {x}
layers.LayerNormalization(axis=-1)
own.Dropout()
own.Identity()
own.Negative()
own.Square()
own.ReLU()
own.Scale()
own.Shuffle()
own.DynamicBatch()
own.Block()
own.PlainDense({n})
own.ScaledDense({n})
own.LeakyNorm()
layers.Activation(own.sigmoid)
layers.Dense({n}, activation={rare})
layers.Activation({rare})
layers.LayerNormalization(<, axis={axis}><, rms_scaling=True>)
layers.UnitNormalization()
layers.GroupNormalization(groups=1)
layers.RMSNormalization()
layers.Lambda(own.sigmoid)
ops.sin({x})
ops.exp(-ops.square({x}))
ops.cumsum({x}, axis=1)
ops.clip({x}, -1.0, 2.0)
ops.where({x} > 0.1, {x}, 0.0)
{x} / (1.0 + ops.abs({same}))
ops.std({x}, axis=-1, keepdims=True) * {x}
ops.log1p(ops.abs({x}))
ops.sqrt(ops.abs({x}) + 0.01)
{x} ** 2
layers.Dot(axes=-1, {name})([{x}, {same}])
layers.Masking()
layers.Dense({n}, dtype='bfloat16')
ops.cast(ops.cast({x}, 'float16'), 'float32')
ops.roll({x}, 1, axis={axis})
ops.tile({x}, (1,) * {rank} + (2,))
ops.stack([{x}, {same}], axis={axis})
[1 weights]
layers.Dense({n}{end}
layers.EinsumDense('bc,cd->bd', output_shape={n}<, bias_axes='d'><, activation={act}>)
layers.EinsumDense('bc,chd->bhd', output_shape=(3, {n})<, bias_axes='hd'>)
[1 move]
{x}[:, 1:]
{x}[:, ::2]
layers.Reshape(({c}, 1))
layers.Reshape((2, -1))
ops.expand_dims({x}, 1)
layers.RepeatVector(3)
ops.pad({x}, ((0, 0), (1, 2)))
[1 wild]
ops.flip({x}, axis=-1)
[2 weights]
layers.Conv1D({n}, {k1}{line}<, groups=2>{end}
layers.Conv1D({n}, {k1}, padding='causal'<, dilation_rate={d1}>{end}
layers.DepthwiseConv1D({k1}{line}<, depth_multiplier=2>{end}
layers.SeparableConv1D({n}, {k1}{line}<, depth_multiplier=2>{end}
layers.Conv1DTranspose({n}, {k1}<, strides={s1}><, padding={pad}>{end}
layers.EinsumDense('btc,cd->btd', output_shape=(None, {n})<, bias_axes='d'>)
layers.EinsumDense('btc,chd->bthd', output_shape=(None, 2, {n})<, bias_axes='hd'>)
layers.EinsumDense('btc,tcd->bd', output_shape={n}<, activation={act}>)
[2 pool]
layers.MaxPooling1D({k1}<, strides={s1}><, padding={pad}>)
layers.AveragePooling1D({k1}<, strides={s1}><, padding={pad}>)
layers.GlobalAveragePooling1D(<keepdims=True>)
layers.GlobalMaxPooling1D(<keepdims=True>)
ops.mean({x}, axis={axis}<, keepdims=True>)
ops.max({x}, axis={axis}<, keepdims=True>)
ops.max_pool({x}, {k1}<, strides={s1}><, padding={pad}>)
ops.average_pool({x}, {k1}<, strides={s1}><, padding={pad}>)
[2 move]
layers.Permute((2, 1))
ops.swapaxes({x}, 1, 2)
layers.Reshape((-1, {c}, 1))
layers.Flatten()
layers.Cropping1D({pair})
layers.ZeroPadding1D({pair})
layers.UpSampling1D(2)
{x}[:, 0]
{x}[:, -1]
{x}[:, 1:-1]
{x}[..., ::2]
ops.pad({x}, ((0, 0), {pair}, (0, 0))<, mode={mode}>)
ops.pad({x}, ((0, 0), {pair}, (0, 1))<, constant_values={num}>)
ops.repeat({x}, 2, axis={axis})
ops.expand_dims({x}, 2)
[2 arithmetic]
{x} * {column}
{x} + {column}
{x} / {column}
layers.Rescaling({column})
{x} + ops.mean({x}, axis=1, keepdims=True)
{x} * {table}
{x} + {table}
[2 composite]
layers.MultiHeadAttention(2, 3<, value_dim=2><, use_bias=False>, {name})({x}, {x})
layers.MultiHeadAttention(2, 3, {name})({x}, {same})
{x} + layers.MultiHeadAttention(1, 4, {name})({x}, {x})
layers.TimeDistributed(layers.Dense({n}<, activation={act}>))
layers.LSTM({n}<, return_sequences=True><, go_backwards=True><, use_bias=False>)
layers.GRU({n}<, return_sequences=True><, reset_after=False><, use_bias=False>)
layers.RNN(layers.SimpleRNNCell({n}<, activation={recurrent}>)<, return_sequences=True>)
layers.Bidirectional(layers.GRU({n}<, return_sequences=True>)<, merge_mode={merge}>)
ops.matmul({x}, ops.swapaxes({same}, 1, 2))
ops.softmax(ops.matmul({x}, ops.transpose({same}, (0, 2, 1))) * 0.3) @ {x}
layers.LayerNormalization({name})({x} + {same})
[2 wild]
layers.TimeDistributed(layers.Dense({n}, activation={act}))
layers.AdaptiveAveragePooling1D(3)
layers.AdaptiveMaxPooling1D(3)
layers.MultiHeadAttention(1, 4, dropout=0.1, {name})({x}, {same}, use_causal_mask=True)
ops.layer_normalization({x})
layers.EinsumDense('btc,ts->bsc', output_shape=(4, {c}))
layers.Conv1DTranspose({n}, {k1}{line}{end}
layers.GlobalAveragePooling1D(data_format='channels_first')
{x}[:, ::-1]
layers.Attention({name})([{x}, {same}])
layers.GroupQueryAttention(3, 2, 1, {name})({x}, {x})
layers.AdditiveAttention({name})([{x}, {same}])
layers.MaxPooling1D(2, data_format='channels_first')
own.Flatten()
layers.MultiHeadAttention(2, 3, {name})({x}, {x}, use_causal_mask=True)
layers.SpatialDropout1D(0.2)
[3 weights]
layers.Conv2D({n}, {k2}{window}<, groups=2>{end}
layers.Conv2D({n}, 3, padding='same'{end}
layers.DepthwiseConv2D({k2}{square}<, depth_multiplier=2>{end}
layers.SeparableConv2D({n}, {k2}{square}<, depth_multiplier=2>{end}
layers.Conv2DTranspose({n}, {k2}<, strides={s2}><, padding={pad}>{end}
layers.EinsumDense('bhwc,cd->bhwd', output_shape=(None, None, {n})<, bias_axes='d'>)
[3 pool]
layers.MaxPooling2D({k2}<, strides={s2}><, padding={pad}>)
layers.AveragePooling2D({k2}<, strides={s2}><, padding={pad}>)
layers.GlobalAveragePooling2D(<keepdims=True>)
layers.GlobalMaxPooling2D(<keepdims=True>)
ops.mean({x}, axis={axis}<, keepdims=True>)
ops.mean({x}, axis=(1, 2)<, keepdims=True>)
ops.max({x}, axis={axis}<, keepdims=True>)
ops.max_pool({x}, {k1}<, strides={s2}><, padding={pad}>)
ops.average_pool({x}, {k2}<, strides={s2}><, padding={pad}>)
[3 move]
layers.Permute((2, 1, 3))
layers.Permute((3, 1, 2))
ops.transpose({x}, (0, 3, 1, 2))
ops.moveaxis({x}, -1, 1)
layers.Flatten()
layers.Reshape((-1, {c}))
layers.Cropping2D(({pair}, {pair}))
layers.ZeroPadding2D(({pair}, {pair}))
layers.ZeroPadding2D(1)
layers.UpSampling2D({up}<, interpolation={interpolation}>)
layers.Resizing(5, 6<, interpolation={interpolation}>)
ops.image.resize({x}, (4, 6)<, interpolation={interpolation}><, antialias=True>)
{x}[:, 1:]
{x}[:, :, 0]
{x}[..., 1:]
{x}[:, ::2, 1::2]
ops.pad({x}, ((0, 0), {pair}, {pair}, (0, 0))<, mode={mode}>)
ops.pad({x}, ((0, 0), {pair}, (0, 0), (0, 0))<, constant_values={num}>)
ops.repeat({x}, 2, axis={axis})
[3 arithmetic]
{x} * {column}
{x} - {column}
{x} + {table}
{x} * layers.GlobalAveragePooling2D(keepdims=True, {name})({x})
{x} - ops.mean({x}, axis=(1, 2), keepdims=True)
[3 composite]
{x} * layers.Dense({c}, activation='sigmoid', {name})(layers.Dense(2, activation='relu')(\
layers.GlobalAveragePooling2D(keepdims=True)({x})))
layers.Multiply({name})([{x}, layers.Dense({c}, activation={gate})(layers.Conv2D(3, 1, \
activation='swish')(layers.GlobalAveragePooling2D(keepdims=True)({x})))])
layers.ReLU({name})({x} + layers.BatchNormalization()(layers.Conv2D({c}, 3, padding='same', \
use_bias=False)({x})))
layers.TimeDistributed(layers.Dense({n}))
layers.TimeDistributed(layers.Conv1D({n}, 2<, activation={act}>))
own.twice(layers.Conv2D({c}, 3, padding='same'<, activation={act}>, {name}), {x})
keras.Sequential([keras.Input({tail}), layers.Conv2D({n}, 3, padding='same'), \
layers.BatchNormalization(), layers.Activation({act})])
ops.concatenate([layers.Conv2D(2, 1, {name})({x}), layers.Conv2D(3, 3, padding='same', \
activation='relu')({x})], axis=-1)
[3 wild]
layers.TimeDistributed(layers.Conv1D({n}, 2, activation={act}))
layers.AdaptiveAveragePooling2D((2, 3))
layers.AdaptiveMaxPooling2D((3, 2))
layers.MaxPooling2D(3, 2)(ops.pad({x}, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf))
layers.UpSampling2D(2, interpolation='bicubic')
ops.image.extract_patches({x}, 2)
ops.space_to_depth({x}, 2)
own.StandardizedConv({n}, 3)
layers.Conv2D({n}, 3, activation={rare})
layers.Conv2DTranspose({n}, {k2}{window}<, output_padding=1>{end}
layers.EinsumDense('bhwc,hcd->bwd', output_shape=(None, {n})<, bias_axes='d'>)
layers.RandomFlip()
layers.SpatialDropout2D(0.2)
layers.CenterCrop(3, 4)
layers.SpectralNormalization(layers.Conv2D({n}, 3))
layers.AveragePooling2D(2, data_format='channels_first')
layers.ConvLSTM1D({n}, 2)
layers.GroupNormalization(groups=2)
layers.Resizing(5, 6, crop_to_aspect_ratio=True)
ops.flip({x}, axis=2)
{x}[..., ::-1]
layers.Reshape((-1, {c}, 2, 1))
[4 weights]
layers.Dense({n}{end}
layers.Conv3D({n}, {k1}<, padding={pad}>{end}
[4 pool]
layers.MaxPooling3D(2, padding='same')
layers.AveragePooling3D(2, strides=1)
[4 move]
layers.Flatten()
layers.Reshape((-1, {c}))
layers.ZeroPadding3D(1)
layers.Cropping3D(((0, 1), (0, 0), (0, 0)))
{x}[:, 0]
ops.mean({x}, axis=1)
"""
_SHORTHANDS = {
    "{end}": "<, use_bias=False><, activation={act}>)",
    "{window}": "<, strides={s2}><, padding={pad}><, dilation_rate={d2}>",
    "{square}": "<, strides={s1}><, padding={pad}><, dilation_rate={d2}>",
    "{line}": "<, strides={s1}><, padding={pad}><, dilation_rate={d1}>",
}
ACTIVATIONS = (
    "'relu' 'relu' 'relu' 'relu6' 'sigmoid' 'tanh' 'silu' 'swish' 'gelu' 'elu' 'selu' 'softplus' "
    "'hard_sigmoid' 'hard_silu' 'leaky_relu' 'linear' ops.relu ops.tanh ops.silu ops.relu6 "
    "ops.leaky_relu keras.activations.gelu keras.activations.relu6 layers.ReLU() "
    "layers.ReLU(max_value=2.0) layers.LeakyReLU(negative_slope=0.1) layers.PReLU() layers.ELU()"
).split()
RARE_ACTIVATIONS = (
    "'softmax' 'mish' 'softsign' 'exponential' 'hard_tanh' 'log_sigmoid' 'celu' 'squareplus' "
    "own.sigmoid own.relu ops.softmax 'tanh_shrink' 'threshold' 'sparse_plus'"
).split()
OPTIONS = {
    "n": "2 3 4 5 6 8".split(),
    "k1": "1 2 3 3 5".split(),
    "k2": ["1", "2", "3", "3", "5", "(1, 3)", "(3, 2)", "(5, 1)"],
    "s1": ["2", "2", "3"],
    "s2": ["2", "2", "3", "(2, 1)", "(1, 2)"],
    "d1": ["2", "3"],
    "d2": ["2", "(1, 2)", "(2, 1)"],
    "up": ["2", "(1, 2)", "3"],
    "pad": ["'same'", "'same'", "'valid'"],
    "mode": ["'reflect'", "'symmetric'", "'constant'"],
    "interpolation": ["'bilinear'", "'bilinear'", "'nearest'", "'bicubic'"],
    "act": ACTIVATIONS,
    "recurrent": ["'relu'", "'sigmoid'", "'hard_sigmoid'", "ops.tanh"],
    "merge": ["'sum'", "'mul'", "'ave'"],
    "gate": ["'sigmoid'", "'hard_sigmoid'"],
    "rare": RARE_ACTIVATIONS,
    "function": "relu relu6 sigmoid tanh silu gelu elu selu softplus hard_sigmoid hard_silu "
    "leaky_relu".split(),
    "num": "0.5 2.0 -0.7 0.1 3.0 -1.0 1.7 16.0 1e-3".split(),
    "pos": "0.5 1.5 0.1 3.0".split(),
    "cap": "1.0 2.5 0.3 6.0".split(),
    "slope": "0.1 0.3 0.01".split(),
    "eps": "0.1 1e-6 1e-2".split(),
    "flag": "True False".split(),
    "pair": ["(1, 1)", "(0, 1)", "(1, 0)", "(1, 2)", "(2, 1)"],
}
# What an input is, its type, and the line behind it.
INPUTS = [
    ("image", "float32", "{x}"),
    ("image", "float32", "{x}"),
    ("image", "float32", "layers.Rescaling(1 / 127.5, offset=-1)"),
    ("image", "uint8", "{x} / 255.0"),
    ("image", "uint8", "layers.Rescaling(1 / 255)"),
    ("image", "uint8", "ops.cast({x}, 'float32')"),
    ("line", "float32", "{x}"),
    ("line", "float32", "{x}"),
    ("vector", "float32", "{x}"),
    ("vector", "float32", "{x}"),
    ("tokens", "int32", "layers.Embedding(11, {n}, mask_zero=True)"),
    ("tokens", "int32", "layers.Embedding(11, {n})"),
    ("tokens", "int32", "layers.Embedding(11, {n}<, mask_zero=True>)"),
]


def _read(text):
    """Returns {rank or "any": {topic: rows}}."""
    rows, found = None, {}
    for line in text.strip().splitlines():
        if re.fullmatch(r"\[\w+ \w+\]", line):
            rank, topic = line[1:-1].split()
            rank = rank if rank == "any" else int(rank)
            rows = found.setdefault(rank, {}).setdefault(topic, [])
        else:
            rows.append(line)
    return found


ROWS = _read(_TEXT)


def draw_row(rng, row, value, often):
    """Returns a row's line: optional parts kept or not, places filled by `value(name)`."""
    for short, long in _SHORTHANDS.items():
        row = row.replace(short, long)
    if "{x}" not in row:
        row = row[:-1] + ", {name})({x})"
    row = _OPTIONAL.sub(lambda part: part.group(1) if rng.random() < often else "", row)
    return _PLACE.sub(lambda place: str(value(place.group(1))), row).replace("(, ", "(")


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def option(rng, what, rank):
    """Returns the source of an option of a layer on a tensor of `rank` axes and the batch."""
    if what == "axis":
        return str(pick(rng, [-1, -1, *range(1, rank + 1)]))
    if what == "axes":
        return str(pick(rng, [[1], list(range(1, rank)), [rank]]))
    return pick(rng, OPTIONS[what])


def constant(rng, what, tail):
    """Returns the source of a constant that broadcasts against a tensor of the shape `tail`."""
    low, high = pick(rng, [(-1.0, 2.0), (0.2, 3.0)])
    if what in ("posvec", "column"):
        low, high = 0.3, 2.5
    if what == "column":
        return _linspace(low, high, tail[-2], (tail[-2], 1))
    if what == "table":
        return _linspace(low, high, int(np.prod(tail)), tuple(tail))
    return _linspace(low, high, tail[-1])


def _linspace(low, high, size, shape=None):
    source = f"np.linspace({low}, {high}, {size}, dtype='float32')"
    return source if shape is None else f"{source}.reshape({shape})"
