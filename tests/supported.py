"""Writes examples/supported.md: what becomes of every layer and operation of Keras.

    python tests/supported.py

Each is put into a small network, wrapped and planned; the page has what `plan()` says of it. The
options tried are those of test_export_options.py, and `OTHERS` here.
"""

import ast
import collections
import pathlib
import re
import sys
import warnings

import keras
import numpy as np
import test_export_options as tried
from keras import layers

import speq_keras
from speq_keras.operations.rows import TRAINING_ONLY

PAGE = pathlib.Path(__file__).parent.parent / "examples" / "supported.md"
IMAGE, SEQUENCE, VECTOR = tried.IMAGE, tried.SEQUENCE, tried.VECTOR
SOUND, VIDEO, CLIP = (256, 1), (4, 6, 6, 2), (3, 4, 4, 4, 2)
_RECURRENT = {
    "return_sequences": [True],
    "go_backwards": [True],
    "unroll": [True],
    "activation": ["relu", "elu", tried.own],
    "use_bias": [False],
}
_GATED = _RECURRENT | {"recurrent_activation": ["hard_sigmoid"]}
_CONV_LSTM = {"filters": 2, "kernel_size": 2}


def _alone(cls, **kwargs):
    return lambda x: cls(**kwargs, name="tried")(x)


def _twice(cls, **kwargs):
    return lambda x: cls(**kwargs, name="tried")([x, layers.Dense(x.shape[-1])(x)])


def _of_itself(cls, **kwargs):
    return lambda x: cls(**kwargs, name="tried")(x, x)


def _with(cls, inner, **kwargs):
    return lambda x: cls(inner(), **kwargs, name="tried")(x)


def _lookup(cls, size, **kwargs):
    return lambda x: layers.Embedding(size, 4)(cls(**kwargs, name="tried")(x))


# Layers that are not in `test_export_options.LAYERS`:
# {name: (shape, dtype, function of one tensor, {option: other values})}
OTHERS = {
    "Embedding": ((5,), "int32", _alone, {"input_dim": 9, "output_dim": 4}),
    "ReversibleEmbedding": ((5,), "int32", _alone, {"input_dim": 9, "output_dim": 4}),
    "LSTM": (SEQUENCE, None, _alone, {"units": 4}, _GATED),
    "GRU": (SEQUENCE, None, _alone, {"units": 4}, _GATED | {"reset_after": [False]}),
    "SimpleRNN": (SEQUENCE, None, _alone, {"units": 4}, _RECURRENT),
    "RNN": (SEQUENCE, None, _with, {"inner": lambda: layers.LSTMCell(4)}),
    "Bidirectional": (SEQUENCE, None, _with, {"inner": lambda: layers.GRU(4)}),
    "TimeDistributed": (SEQUENCE, None, _with, {"inner": lambda: layers.Dense(4)}),
    "SpectralNormalization": (SEQUENCE, None, _with, {"inner": lambda: layers.Dense(4)}),
    "Pipeline": (IMAGE, None, _with, {"inner": lambda: [layers.Rescaling(0.5)]}),
    "Lambda": (IMAGE, None, _with, {"inner": lambda: lambda x: 2 * x}),
    "MultiHeadAttention": (
        SEQUENCE,
        None,
        _of_itself,
        {"num_heads": 2, "key_dim": 4},
        {"value_dim": [3], "use_bias": [False], "output_shape": [5]},
    ),
    "GroupQueryAttention": (
        SEQUENCE,
        None,
        _of_itself,
        {"head_dim": 4, "num_query_heads": 4, "num_key_value_heads": 2},
    ),
    "Attention": (SEQUENCE, None, _twice, {}, {"use_scale": [True], "score_mode": ["concat"]}),
    "AdditiveAttention": (SEQUENCE, None, _twice, {}),
    "Dot": (SEQUENCE, None, _twice, {"axes": -1}),
    "ConvLSTM1D": (VIDEO[1:], None, _alone, _CONV_LSTM),
    "ConvLSTM2D": (VIDEO, None, _alone, _CONV_LSTM),
    "ConvLSTM3D": (CLIP, None, _alone, _CONV_LSTM),
    **{
        f"Adaptive{kind}Pooling{n}D": (
            shape,
            None,
            _alone,
            {"output_size": 2},
            {"output_size": [3]},
        )
        for kind in ("Average", "Max")
        for n, shape in ((1, SEQUENCE), (2, IMAGE), (3, tried.VOLUME))
    },
    "CenterCrop": (IMAGE, None, _alone, {"height": 4, "width": 4}),
    "RandomCrop": (IMAGE, None, _alone, {"height": 4, "width": 4}),
    **{
        name: ((6, 6, 3), None, _alone, {"value_range": (0, 1)})
        for name in ("AutoContrast", "Solarization")
    },
    "ContrastLimitedAdaptiveHistogramEqualization": ((8, 8, 3), None, _alone, {}),
    "STFTSpectrogram": (SOUND, None, _alone, {"frame_length": 64, "frame_step": 32}),
    "MelSpectrogram": (SOUND[:1], None, _alone, {"fft_length": 64, "num_mel_bins": 8}),
    "Discretization": (VECTOR, None, _lookup, {"size": 3, "bin_boundaries": [0.0, 1.0]}),
    "CategoryEncoding": ((1,), "int32", _alone, {"num_tokens": 4}),
    "Hashing": ((1,), "int32", _lookup, {"size": 4, "num_bins": 4}),
    "IntegerLookup": ((1,), "int32", _lookup, {"size": 4, "vocabulary": [1, 2, 3]}),
    "StringLookup": ((1,), "string", _lookup, {"size": 4, "vocabulary": ["a", "b"]}),
    "TextVectorization": ((1,), "string", _lookup, {"size": 9, "vocabulary": ["a", "b"]}),
}
NOT_TRIED = {
    "Layer Wrapper InputLayer": "bases of other layers, and inputs",
    "GRUCell LSTMCell SimpleRNNCell StackedRNNCells": "cells, which an `RNN` has inside",
    "JaxLayer FlaxLayer TFSMLayer TorchModuleWrapper": "hold code of another framework",
    "CutMix MixUp MaxNumBoundingBoxes HashedCrossing": "take labels, boxes or pairs of features",
    "Equalization": "Keras itself cannot put it into a Functional model",
}
HEAD = """# Supported layers and operations

What becomes of each layer and operation of Keras {version}, by itself between two `Dense` layers.
`python tests/supported.py` wrote this page from what `plan()` says of these small networks, and a
test checks it. **Ask `plan()` about your own network**: it answers before any training.

| in training | means |
| --- | --- |
| quantized | its weights and its inputs have the widths that `wrap` was given |
| 4-bit inputs | no weights; its inputs have the target width, here 4 bits |
| 8-bit inputs | no weights; its inputs and its output are rounded to 8 bits |
| folds into its input | it becomes part of the layer before it |
| carries codes | it moves codes: its output has the codes of its input |
| keeps its input's grid | it makes new values on the scale of its input |
| joins codes of one grid | its inputs share one scale |
| taken apart | `wrap` puts these layers and operations in its place |
| float, float inputs | it computes in floating point, or reads floats or masks |

| in the file | means |
| --- | --- |
| integer | integer kernels alone |
| float island | floating point, between a dequantization and a quantization |
| left out | it does nothing in inference |
| refused | training works, and `export_tflite` raises with this reason |

The options named are those that change what becomes of a layer in the file. All others that were
tried make no difference: see `tests/test_export_options.py`, which also compares their values.
"""
MOST_REPEATS = 4  # of one note; what is true of more layers is said once, under the table
GROUPS = {  # from the best to the worst
    "left out": "Left out of the file",
    "integer": "Integer in the file",
    "float island": "Float islands",
    "refused": "Refused by export",
    "not checked": "Not checked",
    "wrap": "Refused by `wrap`",
}


def outcome(shape, build, name, *, dtype=None):
    """Returns (in training, in the file) of what `build` adds to a network.

    Args:
        shape: Of the input, without the batch.
        build: Function of one tensor.
        name: Prefix of the names of the rows that count.
        dtype: Of the input; None: float32, which goes through a Dense layer before.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    inputs = keras.Input(shape, dtype=dtype)
    y = build(layers.Dense(shape[-1], name="before")(inputs) if dtype is None else inputs)
    if len(y.shape) > 1 and None not in y.shape[1:]:
        y = layers.Dense(5, name="after")(y)
    network = keras.Model(inputs, y)
    try:
        plan = speq_keras.wrap(network, 4, 4, distillation=None).plan()
    except (TypeError, ValueError) as error:
        return "", f"wrap: {' '.join(str(error).split())}"
    rows = [row for row in plan.rows if re.fullmatch(rf"{name}(?![a-z]).*", row.name)]
    if plan.file.reason:
        return _in_training(rows), f"refused: {plan.file.reason}"
    return (_in_training(rows), _in_file(rows)) if rows else ("", "left out")


def _in_training(rows):
    """Returns the status of a layer, or the types of the parts that it was taken apart into."""
    if len(rows) > 1:
        return f"taken apart: {', '.join(dict.fromkeys(row.type for row in rows))}"
    return re.sub(r"^float: no quantize config for .*", "float", rows[0].status)


def _in_file(rows):
    """Returns what becomes of a layer in the file: the worst that becomes of its parts."""
    texts = list(dict.fromkeys(row.in_file for row in rows))
    worst = max(map(group_of, texts), key=list(GROUPS).index)
    texts = [text for text in texts if group_of(text) == worst]
    texts = [text for text in texts if ":" in text] or texts  # those with a reason
    if worst in ("integer", "left out"):
        return worst
    # Whose name the tests gave to a function does not matter.
    return "; ".join(texts).replace(" 'own' of test_export_options", "")


def group_of(in_file):
    """Returns the key of `GROUPS` that a text begins with."""
    return next(key for key in GROUPS if in_file.startswith(key))


def layer_cases():
    """Yields (name, [(what is changed, arguments of `outcome`)]) of every layer."""
    for name, (shape, base, options) in tried.LAYERS.items():
        cases = []
        for said, change in _changes(getattr(layers, name), options):
            make = _twice if name in tried.TWO else _alone
            build = make(getattr(layers, name), **(base | change))
            cases.append((said, (shape, build, "tried", None)))
        yield f"{name}", cases
    for name, (shape, dtype, make, base, *options) in OTHERS.items():
        cls = getattr(layers, name, None)
        if cls is None:  # not in this version of Keras
            continue
        yield (
            name,
            [
                (said, (shape, make(cls, **(base | change)), "tried", dtype))
                for said, change in _changes(cls, *options)
            ],
        )


def _changes(cls, options=None):
    """Yields (text, what the constructor is given), the defaults first."""
    yield "", {}
    for option, values in (options or {}).items():
        if option in tried.options_of(cls) | {"unroll"}:
            for value in values:
                change = value if isinstance(value, dict) else {option: value}
                yield ", ".join(f"`{k}={_shown(v)}`" for k, v in change.items()), change


def _shown(value):
    if value is tried.own or isinstance(value, tried.Doubled):
        return "(your own)"
    if isinstance(value, layers.Layer):
        return f"{type(value).__name__}(…)"
    if callable(value):
        return value.__name__
    return f"array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)


def operation_cases():
    """Yields the same for operations, whose calls are shown as they are written."""
    written = _written_calls()
    for name, calls in tried.OPERATIONS.items():
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
        snake = {"ReLU": "re_lu", "RMSNorm": "rms_norm"}.get(name, snake)
        texts = written.get(name, [said for said, _ in calls])
        yield (
            name,
            [
                (f"`{text}`", (IMAGE, build, snake, None))
                for text, (_, build) in zip(texts, calls, strict=True)
            ],
        )


def _written_calls():
    """Returns {operation: [source of each call]} of those that are written out one by one."""
    tree = ast.parse(pathlib.Path(tried.__file__).read_text(encoding="utf-8"))
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OPERATIONS"
    )
    return {
        key.value: [ast.unparse(call.elts[1].body) for call in calls.elts]
        for key, calls in zip(table.keys, table.values, strict=True)
        if isinstance(calls, ast.List)
    }


def row_of(name, cases):
    """Returns (name, in training, in the file, {what becomes of other options: [options]})."""
    (call, arguments), *others = cases
    training, in_file = outcome(*arguments[:3], dtype=arguments[3])
    notes = {}
    for said, (*rest, dtype) in others:
        _, other = outcome(*rest, dtype=dtype)
        if other != in_file:
            notes.setdefault(other, []).append(said)
    if call and in_file.startswith("refused"):
        notes[f"the call tried is {call}"] = []
    return name, training, in_file, notes


def section(title, rows):
    """Returns the lines of the page with all rows, a table for each group."""
    lines = [f"## {title}", ""]
    for key, heading in GROUPS.items():
        group = [row for row in rows if group_of(row[2]) == key]
        if group:
            lines += [f"### {heading}", "", *_table(group), ""]
    return lines


def _table(rows):
    """Returns the lines of a table, layers of which all the same is said in one row."""
    counts = collections.Counter(
        (other, said) for *_, notes in rows for other, group in notes.items() for said in group
    )
    often = {note: [] for note, count in counts.items() if count > MOST_REPEATS}
    found = {}
    for name, training, in_file, notes in rows:
        for note in [note for note in often if note[1] in notes.get(note[0], [])]:
            often[note].append(name)
        left = {o: [s for s in group if (o, s) not in often] for o, group in notes.items()}
        text = "; ".join(
            f"{', '.join(group)}: {other}" if group else other
            for other, group in left.items()
            if group or not notes[other]
        )
        found.setdefault((training, in_file.removeprefix("wrap: "), text), []).append(name)
    yield "| | in training | in the file | but |"
    yield "| --- " * 4 + "|"
    for cells, names in found.items():
        cells = [", ".join(f"`{name}`" for name in names), *cells]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for (other, said), names in often.items():
        yield from ("", f"{said}: {other} ({', '.join(f'`{name}`' for name in names)}).")


def page():
    """Returns the text of the page."""
    warnings.simplefilter("ignore")
    lines = HEAD.format(version=".".join(keras.__version__.split(".")[:2])).splitlines()
    rows = [row_of(*case) for case in layer_cases()]
    lines += ["", *section("Layers", rows)]
    names = ", ".join(f"`{name}`" for name in TRAINING_ONLY)
    lines += ["### Only in training", "", f"Left out of the file, whatever their options: {names}."]
    lines += ["", "### Not tried", ""]
    for group, why in NOT_TRIED.items():
        lines.append(f"- {', '.join(f'`{name}`' for name in group.split())}: {why}.")
    rows = [row_of(*case) for case in operation_cases()]
    lines += ["", *section("Operations of `keras.ops`", rows)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}", file=sys.stderr)
