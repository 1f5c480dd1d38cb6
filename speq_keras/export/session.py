"""Runs a file and compares all of it, one batch at a time."""

import numpy as np

from speq_keras.export.allowances import NOISE_STEPS, allowances, is_settled
from speq_keras.export.inputs import as_network_inputs, generate_inputs
from speq_keras.export.proof import FLAT_SHARE, OutputRow, Proof, TensorRow
from speq_keras.export.reference import channel_shape
from speq_keras.export.tflite.network import CODES, in_float
from speq_keras.export.tflite.operations import compute as compute_node
from speq_keras.export.tflite.runtimes import PROVEN_RUNTIMES, missing_reason, run_file
from speq_keras.export.tflite.simulate import by_name, simulate
from speq_keras.export.tflite.write import write
from speq_keras.export.trained import End, TrainedGraph

PLAIN = ("float32", "int32")
MOST_DRAWS = 4  # of random inputs
# If the first draw leaves more channels than this at a single code, the network itself is constant
# there (because of untrained statistics), and further draws show nothing new.
HOPELESS_SHARE = 0.5


def prove(model, integer_model, content, arrays=None, *, batch_size=1, softmax=True, seed=0):
    """Runs a file and compares all of it.

    Args:
        model: The `SPEQModel`.
        integer_model: The `FoldedModel` made from it.
        content: The file's bytes.
        arrays: Float inputs, a list; None: random ones that fill the trained ranges, drawn until
            nearly all channels show more than one code.
        batch_size: Batch size of the file.
        softmax: Whether the file has a final softmax or sigmoid.
        seed: Seed of the random inputs.

    Returns:
        `(proof, arrays, outputs)`: a `Proof`, the inputs that were used, and the file's outputs for
        them, lists.
    """
    session = _Session(model, integer_model, content, batch_size, softmax)
    if arrays is not None:
        outputs = session.run(arrays)
        return session.proof(generated=False), arrays, outputs
    drawn, made = [], []
    for draw in range(MOST_DRAWS):
        drawn.append(generate_inputs(integer_model.folded, seed + draw))
        made.append(session.run(drawn[-1]))
        proof = session.proof(generated=True)
        if not FLAT_SHARE < proof.flat_share <= HOPELESS_SHARE:
            break
    return proof, *([np.concatenate(x) for x in zip(*y, strict=True)] for y in (drawn, made))


class _Session:
    """A file under test: `run` compares one batch at a time, `proof` sums up."""

    def __init__(self, model, integer_model, content, batch_size, softmax):
        self.folded, self.network = integer_model.folded, integer_model.network
        self.content = content
        self.runtimes = [name for name in PROVEN_RUNTIMES if missing_reason(name) is None]
        self.trained = TrainedGraph(model, softmax=softmax, graph=integer_model.graph)
        self.makers = {name: node for node in self.network.nodes for name in node.outputs}
        made = [
            name for name in self.makers if self.network.tensors[name].dtype in (*CODES, *PLAIN)
        ]
        self.extra = [name for name in made if name not in self.network.outputs]
        self.names = [name for name in made if self.network.tensors[name].dtype in CODES]
        self.probe = write(self.network, batch_size=batch_size, extra_outputs=self.extra)
        self.allowed = allowances(self.folded, self.network, self.makers)
        self.tallies = {name: _Tally(self.network.tensors[name]) for name in self.names}
        self.others = {}  # codes that no node makes
        self.ends = [_EndTally() for _ in self.network.outputs]
        self.examples = 0

    def run(self, arrays):
        """Compares the file on one batch of float inputs; returns the file's outputs."""
        inputs = as_network_inputs(self.folded, self.network, arrays)
        results = run_file(self.probe, inputs)
        values = dict(zip([*self.network.outputs, *self.extra], results, strict=True))
        values.update(zip(self.network.inputs, inputs, strict=True))
        simulated = _simulated(self.network, inputs, values, self.names)
        for name in self.names:
            self.tallies[name].count(values[name], simulated[name])
        # The file itself keeps its tensors inside the delegate.
        plain, *others = (run_file(self.content, inputs, runtime=name) for name in self.runtimes)
        for place, (name, output) in enumerate(zip(self.network.outputs, plain, strict=True)):
            for other in (values[name], *(outputs[place] for outputs in others)):
                self.ends[place].mismatches += int(np.sum(other != output))
        self.compare_trained(arrays, values, plain)
        self.examples += len(arrays[0])
        return plain

    def compare_trained(self, arrays, values, outputs):
        """Compares the file's codes with the trained graph."""
        results = _Results(self.network, values, outputs)
        place = 0
        for found in self.trained.roundings(arrays, self.folded.places, results):
            if isinstance(found, End):
                self.ends[place].compare(found)
                place += 1
                continue
            tally = self.tallies.get(found.tensor)
            if tally is None:  # an input of codes, or a constant
                tensor = self.network.tensors.get(found.tensor)
                tally = self.others.setdefault(found.tensor, _Tally(tensor))
            tally.compare(found, self.allowed.get(found.tensor))

    def proof(self, *, generated):
        """Returns the `Proof` over everything that was run."""
        rows = [tally.row(name, self.kind_of(name)) for name, tally in self.tallies.items()]
        rows += [tally.row(name, self.kind_of(name)) for name, tally in self.others.items()]
        return Proof(
            examples=self.examples,
            generated=generated,
            compared=sum(tally.size for tally in self.tallies.values()),
            rounded=sum(t.rounded for t in (*self.tallies.values(), *self.others.values())),
            tensors=tuple(rows),
            outputs=tuple(end.row() for end in self.ends),
            settled=is_settled(self.folded),
            runtimes=tuple(self.runtimes),
        )

    def kind_of(self, name):
        """Returns the kind of the node that makes a tensor, or what it is if there is none."""
        if name in self.makers:
            return self.makers[name].kind
        tensor = self.network.tensors.get(name)
        return "input" if tensor is None or tensor.data is None else "constant"


class _Results:
    """A file's results, in the interface of `TrainedGraph.roundings`."""

    def __init__(self, network, values, outputs):
        self.network, self.values, self.outputs = network, values, outputs
        self.makers = {name: node for node in network.nodes for name in node.outputs}

    def codes(self, name):
        """Returns the codes of a tensor, without its zero point, or None."""
        tensor = self.network.tensors.get(name)
        stored = self.values.get(name)
        if tensor is None or tensor.dtype not in CODES:
            return None
        if stored is None:
            stored = tensor.data
        return None if stored is None else stored.astype("int32") - tensor.zero_point

    def output(self, number, trained):
        """Returns an output in float."""
        return in_float(self.network.tensors[self.network.outputs[number]], self.outputs[number])

    def step_of(self, number):
        """Returns the distance between an output's codes, or None if it is computed in float."""
        name = self.network.outputs[number]
        tensor, maker = self.network.tensors[name], self.makers.get(name)
        if tensor.dtype not in CODES and maker is not None and maker.kind == "dequantize":
            tensor = self.network.tensors[maker.inputs[0]]
        return float(tensor.trained_scale) if tensor.dtype in CODES else None


class _Tally:
    """The findings about one tensor so far."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.counts = np.zeros(512, "int64")  # of codes, from -128 on; uint8 fits, too
        self.low = self.high = None
        self.size = self.rounded = self.mismatches = self.outside = 0
        self.deviation, self.allowed = None, 0.5 + NOISE_STEPS
        self.layers, self.problem = (), ""

    def count(self, stored, simulated):
        """Counts the codes, and those that differ from the simulation."""
        self.size += stored.size
        self.mismatches += int(np.sum(stored != simulated))
        self.counts += np.bincount(stored.reshape(-1).astype("int16") + 128, minlength=512)
        if stored.size:
            rows = stored.reshape(-1, stored.shape[-1])
            low, high = rows.min(axis=0), rows.max(axis=0)
            self.low = low if self.low is None else np.minimum(low, self.low)
            self.high = high if self.high is None else np.maximum(high, self.high)

    def compare(self, rounding, allowed):
        """Adds a `Rounding`; `allowed` is a number, or one per channel, or None."""
        self.layers = self.layers or rounding.layers
        self.problem = self.problem or rounding.problem
        distances = rounding.distances
        if not distances.size:
            return
        if allowed is None:
            allowed = np.float32(0.5 + NOISE_STEPS)
        elif np.ndim(allowed):
            shape = channel_shape(distances.shape[1:], allowed.size)
            allowed = np.max(allowed) if shape is None else allowed.reshape(shape)
        allowed = allowed + np.float32(rounding.noise)
        self.rounded += distances.size
        self.allowed = max(self.allowed, float(np.max(allowed)))
        # Written so that NaN counts as outside.
        self.outside += int(distances.size - np.sum(distances <= allowed))
        largest = float(np.max(distances))
        self.deviation = largest if self.deviation is None else max(self.deviation, largest)

    def row(self, name, kind):
        """Returns the `TensorRow`."""
        used = self.counts[self.counts > 0]
        has_channels = self.low is not None and self.deviation is not None
        return TensorRow(
            name=name,
            kind=kind,
            shape=() if self.tensor is None else tuple(self.tensor.shape),
            codes=0 if self.tensor is None else self.tensor.high - self.tensor.low + 1,
            used=len(used),
            largest_share=float(used.max() / self.size) if self.size else 0.0,
            channels=self.low.size if has_channels else 0,
            flat_channels=int(np.sum(self.low == self.high)) if has_channels else 0,
            mismatches=self.mismatches,
            deviation=self.deviation,
            allowed=self.allowed,
            outside=self.outside,
            layers=self.layers,
            problem=self.problem,
        )


class _EndTally:
    """The findings about one output so far: its worst batch."""

    def __init__(self):
        self.mismatches, self.worst = 0, None

    def compare(self, end):
        """Adds an `End`."""
        if self.worst is None or not _excess(end) <= _excess(self.worst):
            self.worst = end

    def row(self):
        """Returns the `OutputRow`."""
        return OutputRow(
            name=self.worst.name,
            layers=self.worst.layers,
            deviation=self.worst.distance,
            allowed=self.worst.allowed,
            mismatches=self.mismatches,
        )


def _excess(end):
    return end.distance - end.allowed


def _simulated(network, inputs, file_values, names):
    """Returns {tensor name: codes}.

    After a float island, end-to-end equality cannot be required: sums of floats depend on their
    order. There every node gets the file's own tensors.
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
        codes.update(by_name(node, compute_node(node, arrays, network.tensors)))
    return codes


def has_islands(network):
    """Whether some node computes in float."""
    return any(
        node.kind not in ("quantize", "dequantize")
        and network.tensors[node.output].dtype == "float32"
        for node in network.nodes
    )
