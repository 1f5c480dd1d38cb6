"""The fake-quantized training graph, node by node, on the codes that an exported file computed.

Every layer is called as it was trained: BatchNormalization by Keras, weights through their own
quantizers. Of the export only the names of tensors are used. So what is compared is everything in
between: folding, lowering, the encoding, and the file.
"""

import dataclasses

import keras
import numpy as np
from exact_arithmetic import INTERPOLATED, rounds_twice
from keras import tree

from speq_keras.export.reference import compute
from speq_keras.graph import Ref, read_graph
from speq_keras.quantizers import ActivationQuantizer

# Float32 sums of the training graph at up to 255 steps, and the 20-bit factors of ADD.
NOISE_STEPS = 2e-3


@dataclasses.dataclass
class Comparison:
    """One rounding of the training graph and the codes in the file.

    Attributes:
        distances: How far every code of the file is from what training would round, in steps.
        allowed: Half a step, plus half a step of the bias, plus noise.
        codes: The file's codes.
        folded: The part of the codes that the folded network in float, its bias not yet rounded,
            makes another code of; ties apart.
    """

    distances: np.ndarray
    allowed: float
    codes: np.ndarray
    folded: float

    @property
    def largest(self):
        return float(np.max(self.distances, initial=0.0))


def compare(model, folded, file, values, arrays):
    """Returns {tensor name: Comparison} for every rounding of the graph.

    Args:
        model: The `SPEQModel`.
        folded: `speq_keras.fold(model)`, for the names only.
        file: A `TFLiteFile`.
        values: What its `run_all` returned.
        arrays: The float inputs, a list.
    """
    graph = read_graph(model)
    names = {
        (step.nodes[-1].outputs[0], step.output.layer): step.output.name
        for step in folded.steps.steps
        if step.quantizer is not None
    }
    steps = {step.output.name: step for step in folded.steps.steps}
    known = dict(zip(graph.input_indices, map(np.asarray, arrays), strict=True))
    makers = {node.outputs[0]: node for node in graph.nodes}
    found = {}
    for node in graph.nodes:
        outputs = _call(node, known)
        (index, *_) = node.outputs
        known.update(zip(node.outputs, outputs, strict=True))
        name = _name_of(node, names, makers)
        if name is None:
            continue
        number = file.numbers[name]
        grid = steps[name].output.grid
        scale, low, high = node.operation.grid()
        # Where results would often lie halfway between two codes, the export changes a scale.
        if np.float32(scale) != grid.scale:
            assert abs(grid.scale / scale - 1) < 1e-3, name
            scale = float(grid.scale)
        codes = values[number].astype("float64") - file.tensors[number].zero_point
        wanted = known[node.inputs[0]].astype("float64")
        if codes.shape != wanted.shape:  # rounded before the zeros are added
            codes = np.pad(codes, _paddings(makers[node.inputs[0]], codes.ndim))
        wanted = np.clip(wanted / np.float64(np.float32(scale)), low, high)
        allowed = 0.5 + NOISE_STEPS + _operation_steps(file, number)
        in_float = _in_float(steps[name], file, values)
        found[name] = Comparison(
            np.abs(codes - wanted), allowed, codes, _differing(wanted, in_float, scale, low, high)
        )
        known[index] = (codes * np.float64(np.float32(scale))).astype("float32")
    return found, [known[index] for index in graph.output_indices]


def _in_float(step, file, values):
    """Returns what the folded network computes in float of the file's codes; None: of floats."""
    arrays = []
    for value in step.inputs:
        if value.grid is None:
            return None
        number = file.numbers[value.name]
        codes = values[number].astype("float64") - file.tensors[number].zero_point
        arrays.append((codes * np.float64(value.grid.scale)).astype("float32"))
    step = dataclasses.replace(step)
    if step.weights is not None:
        exact = step.weights.bias / step.weights.unit
        step.weights = dataclasses.replace(step.weights, bias_codes=exact)
    return compute(step, arrays, rounds=False).astype("float64")


def _differing(wanted, in_float, scale, low, high):
    if in_float is None or in_float.shape != wanted.shape:
        return 0.0
    in_float = np.clip(in_float / np.float64(np.float32(scale)), low, high)
    tie = np.abs(np.abs(wanted - np.rint(wanted)) - 0.5) < NOISE_STEPS
    return float(np.mean((np.rint(in_float) != np.rint(wanted)) & ~tie))


def _name_of(node, names, makers):
    """Returns the name of the tensor that a quantizer makes; None where it changes nothing."""
    if not isinstance(node.operation, ActivationQuantizer):
        return None
    index = node.outputs[0]
    while index is not None:
        if (index, node.name) in names:
            return names[index, node.name]
        maker = makers.get(index)
        leads_on = index == node.outputs[0] or (maker and _changes_nothing(maker.operation))
        index = maker.inputs[0] if leads_on else None
    return None


def _changes_nothing(operation):
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is keras.activations.linear
    name = type(operation).__name__
    return name == "Identity" or any(word in name for word in ("Dropout", "Noise", "Random"))


def _call(node, known):
    args, kwargs = tree.map_structure(
        lambda leaf: (
            keras.ops.convert_to_tensor(known[leaf.index]) if isinstance(leaf, Ref) else leaf
        ),
        (node.args, node.kwargs),
    )
    if "Random" in type(node.operation).__name__:  # these augment unless they are told not to
        kwargs = {**kwargs, "training": False}
    outputs = tree.flatten(node.operation(*args, **kwargs))
    return [keras.ops.convert_to_numpy(output) for output in outputs]


def _paddings(node, rank):
    """Returns the pads of a padding layer; axes that it leaves alone have none."""
    assert "ZeroPadding" in type(node.operation).__name__, node.name
    pads = node.operation.padding
    pads = [pads] if isinstance(pads[0], int) else list(pads)
    return [(0, 0), *map(tuple, pads), (0, 0)][:rank]


def _operation_steps(file, number):
    """Returns how far an operation's own rounding may move its result, in steps of the output.

    A bias is off by up to half of the distance between two biases. XNNPACK interpolates with
    weights that are multiples of 1/2048, each of both axes off by up to half of that. A second
    operation, for clipping or another rank, may stand behind.
    """
    makers = file.makers()
    while number in makers:
        op = makers[number]
        if op.name == "RESIZE_BILINEAR":
            return INTERPOLATED
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
            x, weights = (2, 1) if op.name == "TRANSPOSE_CONV" else (0, 1)
            unit = file.tensors[op.inputs[x]].scale[0] * file.tensors[op.inputs[weights]].scale
            steps = float(np.max(unit)) / file.tensors[op.outputs[0]].scale[0]
            return steps * (1.5 if rounds_twice(op, file.tensors[op.inputs[weights]]) else 0.5)
        if op.name not in ("MUL", "RESHAPE"):
            break
        number = op.inputs[0]
    return 0.0
