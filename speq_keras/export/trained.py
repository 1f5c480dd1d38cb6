"""Runs the trained model's own graph, node by node, on the codes that a file computed.

Files are proven against this. The nodes, their order, arguments and options come from the Keras
model; every layer is called as trained, with its own weights and quantizers, in float32 whatever
its dtype policy. Nothing derived by folding or lowering is used except the names of tensors, and
the adjusted scales (see `folding.ties`).

At each quantizer the file's own codes take over, so each comparison covers only the nodes since the
previous codes, and differences do not grow from layer to layer.
"""

import contextlib
import dataclasses
import math

import keras
import numpy as np

from speq_keras.graph import call_node, run
from speq_keras.operations import fixed_range, name_of, takes_logits
from speq_keras.quantizers import ActivationQuantizer
from speq_keras.recurrent import broken_steps, read_unrolled

# Float kernels sum in another order and approximate exp and rsqrt: relative to the largest value.
FLOAT_TOLERANCE = 2.0**-10
# An adjusted scale is larger by this factor, rounded to float32.
_NUDGED = 1 + 2.0**-11
_SAME = 2.0**-22
# Subtracting a mean from nearly equal values loses the last bits of the inputs: Keras and the
# kernels are each off by some units in the last place, in different ways. These are four. After a
# layer normalization of values near 1000 that differ by 1, one value moves by 5e-4.
_LAST_PLACES = 2.0**-21
_SUBTRACT_A_MEAN = ("LayerNormalization", "GroupNormalization", "Var", "Std")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding:
    """The value that one quantizer of the trained graph would round, and the codes in the file.

    Attributes:
        tensor: Name of the file's tensor.
        layers: Names of the trained layers and operations since the previous codes.
        distances: Distance of each code from the quantizer's input, in steps.
        noise: How far that input may move, in steps, one number or one for each code: because of
            weights in half precision, since Keras passes a layer its quantized weights in the dtype
            of its variables, and because of the last places of float32 where a mean is subtracted.
        problem: Why the codes could not be compared, or "".
    """

    tensor: str
    layers: tuple
    distances: np.ndarray
    noise: float | np.ndarray = 0.0
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class End:
    """One output of the trained graph and of the file.

    Attributes:
        name: The output's name.
        layers: As in a `Rounding`.
        distance: Largest difference, in units of the output.
        allowed: Largest difference that rounding explains.
    """

    name: str
    layers: tuple
    distance: float
    allowed: float


class TrainedGraph:
    """The graph of a trained model, prepared for comparison with its files.

    Args:
        model: The `SPEQModel`.
        softmax: False if the file omits a final softmax or sigmoid.
        graph: The model's `read_unrolled` graph, if it was read before.
    """

    def __init__(self, model, *, softmax=True, graph=None):
        self.graph = read_unrolled(model) if graph is None else graph
        self.output_names = list(model.output_names)
        self.makers = {index: node for node in self.graph.nodes for index in node.outputs}
        self.ends = [self._end(index, softmax) for index in self.graph.output_indices]
        self.nodes = self._needed()
        self.broken = broken_steps(self.graph)
        self.noise = {node.name: _roundoff(node.operation) for node in self.nodes}

    def _end(self, index, softmax):
        """Returns the tensor that is the file's output for an output of the model."""
        maker = self.makers.get(index)
        drops = not softmax and maker is not None and takes_logits(maker.operation)
        return maker.inputs[0] if drops else index

    def _needed(self):
        needed, nodes = set(self.ends), []
        for node in reversed(self.graph.nodes):
            if needed.intersection(node.outputs):
                nodes.insert(0, node)
                needed.update(node.inputs)
        return nodes

    def run(self, arrays):
        """Computes the outputs in float32 with the trained quantizers; returns NumPy arrays."""
        known = dict(zip(self.graph.input_indices, arrays, strict=True))
        run(self.nodes, known, self.ends, call=call)
        return [to_numpy(known[index]) for index in self.ends]

    def roundings(self, arrays, places, file):
        """Walks the graph; yields a `Rounding` for every quantizer, and an `End` for every output.

        Args:
            arrays: Inputs, batch first, a list.
            places: `folding.Places`: which tensors hold the codes of which quantizers.
            file: The file's results: `codes(name)` without zero points; `output(number, trained)`
                in float, called with the trained graph's own; `step_of(number)`, the distance
                between an output's codes, or None for floats.
        """
        for node in self.broken:
            problem = "its steps do not compute what the trained layer computes"
            yield self._failed(node, (), node.name, problem)
        known = dict(zip(self.graph.input_indices, map(np.asarray, arrays), strict=True))
        layers, moved = dict.fromkeys(known, ()), {}
        readers = {index: node for node in self.nodes for index in node.inputs}
        for node in self.nodes:
            if isinstance(node.operation, ActivationQuantizer):
                rounding, value = self._round(node, known, layers, places, file)
                yield self._with_noise(rounding, node, known, moved)
                known[node.outputs[0]], layers[node.outputs[0]] = value, ()
            else:
                moved.update(_moved(node, known, moved))
                before = dict.fromkeys(name for index in node.inputs for name in layers[index])
                for index, value in zip(node.outputs, call(node, known), strict=True):
                    known[index], layers[index] = value, (*before, node.name)
            for index in node.inputs:
                if readers[index] is node and index not in self.ends:
                    known.pop(index, None)
        for number, index in enumerate(self.ends):
            noise = np.max(_distance(moved[index], known[index])) if index in moved else 0.0
            yield self._leave(number, index, known, layers, file, float(noise))

    def _round(self, node, known, layers, places, file):
        """Returns the `Rounding` of a quantizer, and the values of the file's codes."""
        (index,) = node.inputs
        values = to_numpy(known[index])
        scale, low, high = node.operation.grid()
        scale, problem = _scale(np.float32(scale), places.scales.get(node.operation.name))
        name = places.tensors.get(node.outputs[0])
        codes = None if name is None else file.codes(name)
        if codes is None:
            problem = f"no tensor of the file holds the codes of quantizer '{node.name}'"
        if problem:
            return self._failed(node, layers[index], name or node.name, problem), values
        if codes.shape != values.shape and codes.shape[:1] == (1,) and codes.size == values.size:
            codes = codes.reshape(values.shape)  # a weight has no batch
        decoded = codes.astype("float32") * scale
        padded = self._padded(decoded, index)
        if padded is None:
            problem = f"its shape is {codes.shape}, and the trained tensor's is {values.shape}"
            return self._failed(node, layers[index], name, problem), values
        if padded is not decoded:
            codes = padded / scale
        wanted = np.clip(values / scale, np.float32(low), np.float32(high))
        rounding = Rounding(
            tensor=name,
            layers=layers[index],
            distances=np.abs(codes - wanted),
            noise=(high - low) * max((self.noise[layer] for layer in layers[index]), default=0.0),
        )
        return rounding, padded

    @staticmethod
    def _with_noise(rounding, node, known, moved):
        """Returns a `Rounding` that includes the noise from the last places of float32."""
        (index,) = node.inputs
        if index not in moved or rounding.problem:
            return rounding
        scale = float(node.operation.grid()[0])
        noise = _distance(moved[index], known[index]) / scale
        return dataclasses.replace(rounding, noise=rounding.noise + noise)

    @staticmethod
    def _failed(node, layers, name, problem):
        distances = np.zeros(0, "float32")
        return Rounding(
            tensor=name, layers=layers or (node.name,), distances=distances, problem=problem
        )

    def _padded(self, values, index):
        """Returns decoded codes in the shape of the trained tensor, or None.

        A file may round before the zeros around a tensor are added, which are then up to the
        reader: the nodes of the trained graph that add them are called on the codes. Quantizers
        between them have no effect: zero is zero on all grids, and the codes are final.
        """
        waiting = []
        while tuple(values.shape[1:]) != tuple(self.graph.tensors[index].shape[1:]):
            node = self.makers.get(index)
            if node is None or len(node.inputs) != 1:
                return None
            if not isinstance(node.operation, ActivationQuantizer):
                waiting.insert(0, node)
            (index,) = node.inputs
        for node in waiting:
            (values,) = call(node, {node.inputs[0]: values})
        return to_numpy(values) if waiting else values

    def _leave(self, number, index, known, layers, file, noise):
        """Returns the `End` of an output; `noise` as in a `Rounding`, in the output's units."""
        wanted = to_numpy(known[index]).astype("float64")
        found = file.output(number, wanted)
        step, maker = file.step_of(number), self.makers.get(index)
        name = self.output_names[number]
        if wanted.shape != found.shape:
            return End(name=name, layers=layers[index], distance=float("inf"), allowed=0.0)
        allowed = FLOAT_TOLERANCE * float(np.max(np.abs(wanted), initial=0.0)) + noise
        ends = None if maker is None or step is None else fixed_range(maker.operation)
        if ends is not None:  # the kernel of a softmax or sigmoid rounds to a prescribed grid
            wanted = np.clip(wanted, *ends)
            allowed = (ends[1] - ends[0]) / 255 * (0.5 + 2e-3)
        elif step is not None:  # codes, compared before
            allowed = 2e-3 * step
        distance = float(np.max(np.abs(wanted - found), initial=0.0))
        return End(name=name, layers=layers[index], distance=distance, allowed=allowed)


def _moved(node, known, moved):
    """Returns a node's outputs when the last places of its inputs change.

    Neighbours move in opposite directions, along every axis, so that no mean moves with its values.

    Args:
        node: The `Node`.
        known: {number of a tensor: its values}.
        moved: Like `known`, with the last places changed somewhere before the node.

    Returns:
        {number of a tensor: values}; empty if nothing before the node subtracts a mean.
    """
    changed = {index: moved[index] for index in node.inputs if index in moved}
    if name_of(getattr(node.operation, "layer", node.operation)) in _SUBTRACT_A_MEAN:
        for index in node.inputs:
            values = to_numpy(changed.get(index, known[index]))
            if values.dtype.kind == "f":
                signs = 1 - 2 * (np.indices(values.shape).sum(axis=0) % 2)
                changed[index] = (values * (1 + _LAST_PLACES * signs)).astype(values.dtype)
    if not changed:
        return {}
    outputs = call(node, {**known, **changed})
    if _normalizes_single_values(node.operation, to_numpy(known[node.inputs[0]]).shape):
        outputs = [_noise_of_single_values(node.operation, to_numpy(changed[node.inputs[0]]))]
    return dict(zip(node.outputs, outputs, strict=True))


def _normalizes_single_values(operation, shape):
    """Whether a normalization has one value per mean: its result is its offset, and noise."""
    layer = getattr(operation, "layer", operation)
    if name_of(layer) == "LayerNormalization" and not layer.rms_scaling:
        axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
        return all(shape[axis] == 1 for axis in axes)
    return name_of(layer) == "GroupNormalization" and math.prod(shape[1:]) == layer.groups


def _noise_of_single_values(operation, values):
    """Returns what Keras may compute for them: x·k + (β − x·k), k = γ / √ε, in float32."""
    layer = getattr(operation, "layer", operation)
    slope = 1.0 if layer.gamma is None else float(np.max(np.abs(to_numpy(layer.gamma))))
    offset = 0.0 if layer.beta is None else to_numpy(layer.beta)
    noise = _LAST_PLACES * values * slope / np.sqrt(layer.epsilon)
    return (np.reshape(offset, -1) + noise).astype("float32")


def _distance(one, other):
    return np.abs(to_numpy(one).astype("float32") - to_numpy(other).astype("float32"))


def _roundoff(operation):
    """Returns the largest relative rounding error of a layer's variables in half precision."""
    layer = getattr(operation, "layer", operation)
    return {"float16": 2.0**-11, "bfloat16": 2.0**-9}.get(
        getattr(layer, "variable_dtype", "float32"), 0.0
    )


def _scale(own, given):
    """Returns a quantizer's scale in the file, and what is wrong with it, or ""."""
    if given is None or given == own:
        return own, ""
    if abs(float(given) / (float(own) * _NUDGED) - 1) < _SAME:
        return np.float32(given), ""
    return own, f"its scale is {float(given):.9g}, and the quantizer's own is {float(own):.9g}"


def call(node, known):
    """Calls the layer or operation of a graph node in float32; returns its outputs, a list.

    Args:
        node: The `Node`.
        known: {number of a tensor: its values}, NumPy arrays or tensors.
    """
    with in_float32(node.operation):
        return call_node(node, known, training=False)  # regardless of the call, as in `predict`


@contextlib.contextmanager
def in_float32(operation):
    """Makes a layer that was trained in mixed precision compute in float32."""
    inner = getattr(operation, "layer", None)
    found = [x for x in (operation, inner) if isinstance(x, keras.layers.Layer)]
    policies = [layer.dtype_policy for layer in found]
    try:
        for layer in found:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in zip(found, policies, strict=True):
            layer.dtype_policy = policy


def to_numpy(values):
    """Returns values as a NumPy array; types less exact than float32 become float32."""
    values = keras.ops.convert_to_numpy(values)
    return values.astype("float32") if values.dtype.kind not in "iub" else values
