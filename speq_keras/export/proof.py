"""The proof in every export: the file is run, and every tensor of it compared.

file against simulation   every code of every tensor has to be the same
file against float        every code has to be a nearest one to what the folded network computes
                          in float from the file's own inputs of that step
end to end                top-1 agreement of the file and the folded float network
"""

import dataclasses

import numpy as np

from speq_keras.export.arithmetic import compute as compute_node
from speq_keras.export.network import CODES
from speq_keras.export.reference import compute, run_steps
from speq_keras.export.runtimes import run_file
from speq_keras.export.simulate import simulate
from speq_keras.export.write import write

# Where float arithmetic and integer kernels see a tie on different sides: XNNPACK adds with 20 bits
# of scale, so that a code of 255 may be off by 2 · 255 / 2^20 steps before it is rounded.
ALLOWED_STEPS = 0.5 + 2.0**-9
PLAIN = ("float32", "int32")
GENERATED_EXAMPLES = 4
MOST_EXAMPLES = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRow:
    """One tensor of codes in the proof.

    Attributes:
        name: The trained layer's name where it is the output of one.
        kind: What made it.
        codes: How many codes its grid has.
        used: How many of them occurred.
        largest_share: How often the most frequent code occurred, 0 to 1.
        mismatches: How many codes differ between file and simulation.
        deviation: Largest distance from the float value, in steps; None where nothing rounds.
        allowed: Largest distance of a code that is rounded right.
    """

    name: str
    kind: str
    shape: tuple
    codes: int
    used: int
    largest_share: float
    mismatches: int
    deviation: float | None
    allowed: float

    @property
    def is_outside(self):
        """Whether some code is no nearest code of its float value."""
        return self.deviation is not None and self.deviation > self.allowed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """What the comparison found.

    Attributes:
        examples: Number of examples.
        compared, mismatches: Codes compared between file and simulation, and how many differ.
        deviation: Largest distance of a code from the float value it rounds, in steps.
        outside: How many codes are no nearest code of that value.
        agreement: Top-1 agreement of file and folded float network, 0 to 1; None: not a classifier.
        tensors: A `TensorRow` per tensor.
    """

    examples: int
    compared: int
    mismatches: int
    deviation: float
    outside: int
    agreement: float | None
    tensors: tuple

    @property
    def holds(self):
        """Whether the file computes the folded network, code for code."""
        return self.mismatches == 0 and self.outside == 0

    def first_failure(self):
        """Returns a sentence on the first tensor that fails."""
        for row in self.tensors:
            if row.mismatches:
                return f"{row.mismatches} codes of tensor '{row.name}' ({row.kind}) differ"
            if row.is_outside:
                return (
                    f"codes of tensor '{row.name}' ({row.kind}) are {row.deviation:.2f} steps "
                    "from the float value"
                )
        return "the outputs differ"


def generate_inputs(folded, seed=0):
    """Returns inputs that fill the trained ranges and tables, `GENERATED_EXAMPLES` of them."""
    rng = np.random.default_rng(seed)
    readers = {id(step.inputs[0]): step for step in folded.steps if step.kind == "quantize"}
    tables = {id(step.inputs[0]): step for step in folded.steps if step.kind == "embedding"}
    arrays = []
    for value in folded.inputs:
        if value.dtype == "int32":  # places in a table, or a mask
            rows = len(tables[id(value)].options["codes"]) if id(value) in tables else 2
            shape = (GENERATED_EXAMPLES, *value.shape[1:])
            arrays.append(rng.integers(0, rows, shape, dtype="int32"))
            continue
        grid = readers[id(value)].output.grid
        shape = (GENERATED_EXAMPLES, *value.shape[1:])
        array = rng.uniform(grid.low, grid.high, shape) * np.float64(grid.scale)
        arrays.append(array.astype("float32"))
    return arrays


def as_network_inputs(folded, network, arrays):
    """Returns float inputs in the type of the network's inputs: codes where it reads codes."""
    readers = {id(step.inputs[0]): step for step in folded.steps if step.kind == "quantize"}
    converted = []
    for value, name, array in zip(folded.inputs, network.inputs, arrays, strict=True):
        tensor = network.tensors[name]
        if tensor.dtype in CODES:
            codes = readers[id(value)].output.grid.round(array)
            array = (codes + tensor.zero_point).astype(tensor.dtype)
        converted.append(np.asarray(array))
    return converted


def prove(folded, network, content, arrays, *, batch_size=1):
    """Runs a file and compares all of it.

    Args:
        folded: The `FoldedNetwork`.
        network: The `IntegerNetwork` that was made of it.
        content: The file's bytes.
        arrays: Float inputs, a list.
        batch_size: Of the file.

    Returns:
        A `Proof`.
    """
    inputs = as_network_inputs(folded, network, arrays)
    names = _made_tensors(network)
    extra = [name for name in names if name not in network.outputs]
    probe = write(network, batch_size=batch_size, extra_outputs=extra)
    results = run_file(probe, inputs)
    outputs = results[: len(network.outputs)]
    file_codes = dict(zip([*network.outputs, *extra], results, strict=True))
    file_codes.update(zip(network.inputs, inputs, strict=True))
    constants = [step.name for step in folded.steps if step.kind == "constant"]
    file_codes.update((name, network.tensors[name].data) for name in constants)
    names = [name for name in names if network.tensors[name].dtype in CODES]
    simulated = _simulated(network, inputs, file_codes, names)
    differing = {name: int(np.sum(file_codes[name] != simulated[name])) for name in names}
    # The file itself, which keeps its tensors inside the delegate.
    for name, probed, plain in zip(
        network.outputs, outputs, run_file(content, inputs), strict=True
    ):
        differing[name] = differing.get(name, 0) + int(np.sum(probed != plain))
    deviations = _deviations(folded, network, file_codes)
    makers = {output: node for node in network.nodes for output in node.outputs}
    allowed = {name: _allowed(network, makers, name) for name in [*names, *deviations]}
    rows = []
    for name in names:
        tensor, kind = network.tensors[name], makers[name].kind
        found = (file_codes[name], differing[name], deviations.get(name), allowed[name])
        rows.append(_row(tensor, kind, *found))
    return Proof(
        examples=len(arrays[0]),
        compared=sum(file_codes[name].size for name in names),
        mismatches=sum(differing.values()),
        deviation=max((float(d.max()) for d in deviations.values() if d.size), default=0.0),
        outside=sum(int(np.sum(d > allowed[name])) for name, d in deviations.items()),
        agreement=_agreement(folded, arrays, outputs),
        tensors=tuple(rows),
    )


def _made_tensors(network):
    """Returns the names of all tensors that the proof reads: codes, and floats inside islands."""
    made = [name for node in network.nodes for name in node.outputs]
    return [name for name in made if network.tensors[name].dtype in (*CODES, *PLAIN)]


def _simulated(network, inputs, file_values, names):
    """Returns {tensor name: codes}.

    Behind a float island equality from end to end cannot be asked for: sums of floats depend on
    their order. There every node gets the file's own tensors.
    """
    if not has_islands(network):
        return simulate(network, inputs, keep=names)[1]
    codes = {}
    for node in network.nodes:
        if node.output not in names:
            continue
        constants = {name: network.tensors[name].data for name in node.inputs if name}
        arrays = [
            None if not name else file_values.get(name, constants[name]) for name in node.inputs
        ]
        codes[node.output] = compute_node(node, arrays, network.tensors)
    return codes


def has_islands(network):
    """Whether some node computes in float."""
    return any(
        node.kind not in ("quantize", "dequantize")
        and network.tensors[node.output].dtype == "float32"
        for node in network.nodes
    )


def _deviations(folded, network, file_codes):
    """Returns {tensor name: distances in steps} for every step, fed with the file's own inputs."""
    found = {}
    for step in folded.steps:
        if step.output.grid is None or step.output.name not in file_codes:
            continue
        if any(value.name not in file_codes for value in step.inputs):
            continue
        arrays = [_decoded(network, value, file_codes[value.name]) for value in step.inputs]
        values = compute(step, arrays, rounds=False).astype("float64")
        grid = step.output.grid
        wanted = np.clip(values / np.float64(grid.scale), grid.low, grid.high)
        tensor = network.tensors[step.output.name]
        codes = file_codes[step.output.name].astype("float64") - tensor.zero_point
        found[step.output.name] = np.abs(codes - wanted)
    return found


def _decoded(network, value, stored):
    tensor = network.tensors[value.name]
    if tensor.dtype in PLAIN:
        return stored
    step = tensor.step if value.grid is None else value.grid.scale
    return (stored.astype("int32") - tensor.zero_point).astype("float32") * step


def _row(tensor, kind, stored, mismatches, deviation, allowed):
    counts = np.bincount(stored.reshape(-1).astype("int16") + 128)  # np.unique would sort
    counts = counts[counts > 0]
    return TensorRow(
        name=tensor.name,
        kind=kind,
        shape=tuple(tensor.shape),
        codes=tensor.high - tensor.low + 1,
        used=len(counts),
        largest_share=float(counts.max() / stored.size) if stored.size else 0.0,
        mismatches=mismatches,
        deviation=None if deviation is None or not deviation.size else float(deviation.max()),
        allowed=allowed,
    )


def _allowed(network, makers, name):
    """Returns the largest distance between a code and its float value that rounding explains.

    Kernels outside of XNNPACK round twice, first to a fraction of a step that is as fine as the
    accumulator: only convolutions with weights below 8 bits run there. XNNPACK interpolates with
    weights that are multiples of 1/2048, each of both axes off by up to half of that.
    """
    while name in makers and makers[name].kind == "reshape":  # copies what another node made
        name = makers[name].inputs[0]
    node = makers.get(name)
    if node is None:
        return ALLOWED_STEPS
    if node.kind == "resize_bilinear":
        output = network.tensors[node.output]
        return ALLOWED_STEPS + (output.high - output.low) * 2.0**-11
    weights = network.tensors[node.inputs[1]] if len(node.inputs) > 1 else None
    if node.kind == "batch_matmul" and weights.zero_point:
        x, output = network.tensors[node.inputs[0]], network.tensors[node.output]
        return ALLOWED_STEPS + float(x.scale * weights.scale / output.scale)
    is_fast = weights is None or node.kind == "fully_connected" and weights.dtype == "int4"
    if is_fast or weights.dtype not in ("int4", "int2"):
        return ALLOWED_STEPS
    x, output = network.tensors[node.inputs[0]], network.tensors[node.output]
    ratio = np.max(np.float64(x.scale) * weights.scale / np.float64(output.scale))
    return ALLOWED_STEPS + float(ratio)


def _agreement(folded, arrays, outputs):
    if len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[-1] < 2:
        return None
    (expected,) = run_steps(folded, arrays)
    return float(np.mean(np.argmax(expected, axis=-1) == np.argmax(outputs[0], axis=-1)))
