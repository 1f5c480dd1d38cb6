"""Draws networks: lines of Keras, weights as after training, and how the network is used."""

import dataclasses
import re

import keras
import numpy as np
import random_own_layers as own
from keras import layers, ops
from random_vocabulary import INPUTS, ROWS, constant, draw_row, option, pick

_LOGITS = re.compile(
    r" = layers\.Softmax\(name|activation='(softmax|sigmoid)', name='\w+'\)\(x\d+\)$"
)
MOST_ELEMENTS = 1200  # of a tensor, per example


@dataclasses.dataclass
class Network:
    """A drawn network: its lines, what is odd about its weights, and how it is used."""

    seed: int
    lines: list
    odd: list
    data: dict
    wrap: dict
    export: dict
    settles: bool

    def __str__(self):
        odd = f"set_weights(network, {self.seed}, {self.odd})"
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.wrap.items())
        export = ", ".join(f"{key}={value!r}" for key, value in self.export.items())
        settle = [f"settle(storage={self.export['storage']!r})"] if self.settles else []
        usage = [odd, f"wrap(network, {arguments})", *settle, f"export_tflite(path, {export})"]
        return "\n".join([*self.lines, *usage, f"# data: {self.data}"])

    def build(self):
        """Returns the float Keras model, with its weights."""
        keras.backend.clear_session()
        keras.utils.set_random_seed(self.seed)
        names = {"keras": keras, "layers": layers, "ops": ops, "np": np, "own": own}
        exec("\n".join(self.lines), names)
        set_weights(names["network"], self.seed, self.odd)
        return names["network"]


class _Drawing:
    """Draws lines and runs each, so that shapes are known and Keras refuses what it does not do."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.names = {"keras": keras, "layers": layers, "ops": ops, "np": np, "own": own}
        self.lines, self.count, self.layers = [], 0, []
        self.shapes = {}  # {expression: shape without the batch}, of float tensors
        self.often = pick(self.rng, [0.1, 0.25, 0.25, 0.5])
        self.wildness = pick(self.rng, [0.0, 0.0, 0.0, 0.0, 0.3])

    def add(self, expression):
        """Runs a line and returns the tensors it makes, as expressions; none if Keras refuses."""
        name = f"x{self.count}"
        try:
            made = eval(expression, self.names)
        except Exception:  # not a network that Keras has
            return []
        tensors = list(made) if isinstance(made, list | tuple) else [made]
        shapes = [tuple(tensor.shape[1:]) for tensor in tensors]
        if any(None in s or not 0 < np.prod(s) <= MOST_ELEMENTS or len(s) > 4 for s in shapes):
            return []
        if any(tensor.shape[0] is not None for tensor in tensors):
            return []
        self.names[name] = made
        self.lines.append(f"{name} = {expression}")
        self.count += 1
        found = [name] if made is tensors[0] else [f"{name}[{i}]" for i in range(len(tensors))]
        for one, shape, tensor in zip(found, shapes, tensors, strict=True):
            if tensor.dtype == "float32":
                self.shapes[one] = shape
        return found

    def name(self):
        self.layers.append(f"n{self.count}_{len(self.layers)}")
        return f"name='{self.layers[-1]}'"

    def filled(self, row, x, often=None):
        """Returns a row's line on the tensor `x`."""
        tail = self.shapes.get(x, ())

        def value(what):
            if what == "x":
                return x
            if what == "name":
                return self.name()
            if what in ("c", "rank", "tail"):
                return {"c": tail[-1], "rank": len(tail), "tail": tail}[what]
            if what == "same":
                return self.same_shape(x, tail)
            if what in ("vec", "posvec", "column", "table"):
                return constant(self.rng, what, tail)
            return option(self.rng, what, len(tail))

        return draw_row(self.rng, row, value, self.often if often is None else often)

    def same_shape(self, x, tail):
        others = [other for other, shape in self.shapes.items() if shape == tail and other != x]
        if others and self.rng.random() < 0.5:
            return pick(self.rng, others)
        rows = ["layers.Dense({c})", "ops.{function}({x})", "{x} * {num}"]
        if len(tail) == 3:
            rows += ["layers.Conv2D({c}, 3, padding='same'<, activation={act}>)"] * 2
        return self.filled(pick(self.rng, rows), x)

    def step(self, x):
        """Adds one line on `x`; returns what the walk goes on with."""
        topics = self.topics(len(self.shapes[x]))
        weights = np.array([_TOPICS[topic] for topic in topics])
        for _ in range(20):
            topic = list(topics)[self.rng.choice(len(topics), p=weights / weights.sum())]
            found = self.add(self.filled(pick(self.rng, topics[topic]), x))
            if found:
                return pick(self.rng, found)
        return x

    def topics(self, rank):
        topics = {topic: list(rows) for topic, rows in ROWS["any"].items()}
        for topic, rows in ROWS.get(rank, {}).items():
            # Rows of the rank come as often as those of any rank, or more.
            topics[topic] = rows + topics.get(topic, [])
        if self.rng.random() >= self.wildness:
            topics.pop("wild")
        return topics

    def input(self):
        kind, dtype, first = pick(self.rng, INPUTS)
        sizes = {"image": (6, 9), "line": (4, 9), "vector": (3, 9), "tokens": (4, 8)}[kind]
        axes = {"image": 2, "line": 1, "vector": 0, "tokens": 0}[kind]
        low, high = sizes
        shape = [int(size) for size in self.rng.integers(low, high, axes)]
        channels = {"image": (1, 5), "tokens": (4, 8)}.get(kind, (2, 8))
        shape = (*shape, int(self.rng.integers(*channels)))
        name = f"pixels{self.count}" if "127.5" in first else f"in{self.count}"
        (x,) = self.add(f"keras.Input({shape}, dtype='{dtype}', name='{name}')")
        return x if first == "{x}" else self.add(self.filled(first, x))[0]

    def end(self, x):
        """Adds an end of the network: a head or nothing."""
        tail = self.shapes[x]
        if len(tail) == 3 and self.rng.random() < 0.6:
            (x,) = self.add(self.filled("layers.GlobalAveragePooling2D()", x)) or [x]
        elif len(tail) > 1 and self.rng.random() < 0.5:
            (x,) = self.add(self.filled("layers.Flatten()", x)) or [x]
        if self.rng.random() < 0.8:
            rows = ["layers.Dense({n})"] * 3 + [
                "layers.Dense({n}, activation='softmax')",
                "layers.Dense({n}, activation='sigmoid')",
                "layers.Softmax({name})(layers.Dense({n})({x}))",
                "layers.Dense({n}, activation={act})",
            ]
            (x,) = self.add(self.filled(pick(self.rng, rows), x)) or [x]
        return x


_TOPICS = {
    "weights": 5.0,
    "norm": 1.6,
    "activation": 2.0,
    "arithmetic": 1.6,
    "noise": 0.3,
    "join": 0.7,
    "pool": 0.8,
    "move": 1.5,
    "composite": 1.2,
    "wild": 2.0,
}


def draw(seed):
    """Returns the `Network` of a seed, the same always."""
    keras.backend.clear_session()
    drawing = _Drawing(seed)
    rng = drawing.rng
    x, ends = drawing.input(), []
    x = drawing.step(x) if rng.random() < 0.3 else _weighted(drawing, x)
    length = int(rng.integers(2, 8))
    for place in range(length):
        x = drawing.step(x)
        if place == length // 2 and rng.random() < 0.15:
            ends.append(drawing.end(x))
        if place == length // 2 and rng.random() < 0.15:
            x = _second_input(drawing, x)
    ends.append(drawing.end(_weighted(drawing, x) if rng.random() < 0.3 else x))
    lines = model_lines(drawing.lines, list(dict.fromkeys(ends)))
    names = [name for name in drawing.layers if f"'{name}'" in "\n".join(lines)]
    data = {"scale": 1.0, "shift": float(pick(rng, [0.0, 0.0, 0.5, 2.0]))}
    if rng.random() < 0.12:
        data["scale"] = float(pick(rng, [1e-4, 1e-2, 1e2, 1e4]))
    return Network(seed, lines, _odd(rng, names), data, *_usage(rng, names, lines))


def model_lines(lines, ends):
    """Returns the lines that some tensors need, and one that makes a model with these outputs."""
    wanted = set(re.findall(r"\bx\d+", " ".join(ends)))
    kept = []
    for line in reversed(lines):
        name, expression = line.split(" = ", 1)
        if name in wanted:
            kept.append(line)
            wanted.update(re.findall(r"\bx\d+", expression))
    inputs = [line.split(" = ")[0] for line in kept[::-1] if " = keras.Input(" in line]
    return [*kept[::-1], f"network = keras.Model([{', '.join(inputs)}], [{', '.join(ends)}])"]


def _weighted(drawing, x):
    rows = drawing.topics(len(drawing.shapes[x]))["weights"]
    for _ in range(10):
        found = drawing.add(drawing.filled(pick(drawing.rng, rows), x))
        if found:
            return found[0]
    return x


def _second_input(drawing, x):
    y, tail = drawing.input(), drawing.shapes[x]
    if len(drawing.shapes[y]) > 1:
        (y,) = drawing.add(drawing.filled("layers.Flatten()", y))
    join = f"layers.Dense({tail[-1]}, {drawing.name()})({y})"
    if len(tail) > 1:
        join = f"layers.Reshape({(*[1] * (len(tail) - 1), tail[-1])})({join})"
    rows = [f"{{x}} + {join}", f"{{x}} * {join}", f"layers.Add({{name}})([{{x}}, {join}])"]
    return (drawing.add(drawing.filled(pick(drawing.rng, rows), x)) or [x])[0]


def _odd(rng, names):
    """Returns [(layer, what is odd about its weights)]."""
    if rng.random() < 0.65 or not names:
        return []
    kinds = ["times 1e-4", "times 1e4", "times 1e-2", "times 100", "dead channel", "small channel"]
    kinds += ["tiny variance", "large bias", "zero", "equal channels"]
    return [(pick(rng, names), pick(rng, kinds)) for _ in range(int(rng.integers(1, 3)))]


def _usage(rng, names, lines):
    """Returns the arguments of wrap and of export, and whether the model settles before."""
    w_bits, a_bits = pick(rng, [(8, 8)] * 6 + [(4, 8), (4, 4), (3, 3), (2, 2), (2, 8), (5, 6)])
    wrap = {"w_bits": w_bits, "a_bits": a_bits, "distillation": None, "seed": 0}
    if _LOGITS.search(lines[-2]):  # else there is nothing to distil
        wrap["distillation"] = pick(rng, [None, "cosine", "kl"])
    if rng.random() < 0.06:
        wrap.update({pick(rng, ["w_bits", "a_bits"]): None, "distillation": None})
    if rng.random() < 0.6:
        wrap["weight_quantizer"] = pick(rng, "minmax mse lsq dorefa qil sawb".split())
    if rng.random() < 0.4:
        wrap["activation_quantizer"] = pick(rng, "pact lsq_plus dorefa lsq_plus".split())
    if rng.random() < 0.2:
        wrap["boundary_bits"] = pick(rng, [None, 4, 4])
    if rng.random() < 0.12 and names:
        wrap["skip"] = [pick(rng, names)]
    if rng.random() < 0.1:
        wrap["fused_batch_norm"] = True
    export = {"storage": pick(rng, ["int8", "int4", "int2", "smallest"])}
    export["io"] = pick(rng, ["float32", "float32", "float32", "int8", "uint8"])
    export["softmax"] = bool(rng.random() < 0.8)
    export["batch_size"] = int(pick(rng, [1, 1, 1, 4]))
    return wrap, export, bool(rng.random() < 0.5)


def set_weights(network, seed, odd=()):
    """Gives a float model weights that a trained one might have, and some that are odd."""
    rng = np.random.default_rng(seed + 1)
    for variable in network.weights:
        name, shape = variable.path.split("/")[-1], tuple(variable.shape)
        if name in ("bias", "beta", "moving_mean", "mean") or name.endswith("bias"):
            variable.assign(0.3 * rng.normal(size=shape))
        elif name in ("gamma", "moving_variance", "variance", "scale"):
            sign = np.where(rng.random(shape) < (0.1 if name == "gamma" else 0), -1, 1)
            variable.assign(sign * rng.uniform(0.4, 2.0, shape))
        elif name == "alpha":
            variable.assign(rng.uniform(0.0, 0.5, shape))
    for layer_name, what in odd:
        layer = next((lay for lay in _all_layers(network) if lay.name == layer_name), None)
        for variable in [] if layer is None else layer.weights:
            _make_odd(variable, what)
    for layer in _all_layers(network):
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()


def _all_layers(network):
    return network._flatten_layers(include_self=False, recursive=True)


def _make_odd(variable, what):
    name, values = variable.path.split("/")[-1], keras.ops.convert_to_numpy(variable).copy()
    if not np.issubdtype(values.dtype, np.floating):
        return
    is_kernel = values.ndim > 1
    if what.startswith("times ") and is_kernel:
        values *= float(what.split()[1])
    elif what == "dead channel" and (is_kernel or name == "gamma"):
        values[..., 0] = 0
    elif what == "small channel" and (is_kernel or name == "gamma"):
        values[..., -1] *= 1e-4
    elif what == "tiny variance" and name == "moving_variance":
        values[..., 0] = 1e-9
    elif what == "large bias" and name in ("bias", "beta"):
        values += 50
    elif what == "zero" and (is_kernel or name == "gamma"):
        values *= 0
    elif what == "equal channels" and is_kernel:
        values[...] = values[..., :1]
    variable.assign(values)
