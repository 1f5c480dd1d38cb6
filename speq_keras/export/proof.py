"""The proof in every export: the file is run, and every one of its tensors is compared.

trained graph against file   every code must be a nearest one to the value that the trained network
                             computes from the file's previous codes; float outputs to a tolerance
file against simulation      every code of every tensor must be the same

The first comparison starts from the Keras model (see `trained`), so it holds whatever folding and
lowering did. The second shows that the runtime computes what the file specifies, including tensors
between two roundings.
"""

import dataclasses

# Random inputs are drawn until no more channels than this show a single code.
FLAT_SHARE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRow:
    """One tensor of codes in the proof.

    Attributes:
        name: The trained layer's name if it is the output of one.
        kind: The kind of operation that made it.
        shape: Its shape in the file.
        codes: Number of codes of its grid.
        used: Number of these that occurred.
        largest_share: Frequency of the most frequent code, 0 to 1.
        channels, flat_channels: Channels of the last axis, and the number that showed a single
            code.
        mismatches: Number of codes that differ between file and simulation.
        deviation: Largest distance from the value that the trained network rounds, in steps; None
            if it does not round here.
        allowed: Largest distance of a correctly rounded code; for the channel that allows most.
        outside: Number of codes that are further away.
        layers: The trained layers since the previous codes.
        problem: Why the trained network's values could not be compared, or "".
    """

    name: str
    kind: str
    shape: tuple
    codes: int
    used: int
    largest_share: float
    channels: int
    flat_channels: int
    mismatches: int
    deviation: float | None
    allowed: float
    outside: int
    layers: tuple
    problem: str

    @property
    def bits(self):
        """The number of bits that its codes need; the rest of their byte is unused."""
        return max(self.codes - 1, 0).bit_length()

    @property
    def holds(self):
        """Whether all codes of this tensor are the trained network's."""
        return not (self.mismatches or self.outside or self.problem)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputRow:
    """One output in the proof, in its own units; `layers` as in a `TensorRow`.

    `mismatches`: number of values that differ when tensors before them are outputs too, or when the
    file runs in LiteRT's `CompiledModel`.
    """

    name: str
    layers: tuple
    deviation: float
    allowed: float
    mismatches: int

    @property
    def holds(self):
        """Whether the output is the trained network's."""
        return self.mismatches == 0 and self.deviation <= self.allowed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proof:
    """The result of the comparison.

    Attributes:
        examples: Number of examples.
        generated: Whether they are random.
        compared: Codes compared.
        rounded: Those that the trained network rounds: compared with its own graph.
        tensors: A `TensorRow` per tensor, in execution order.
        outputs: An `OutputRow` per output.
        settled: Whether every bias is on the grid of its sums; see `SPEQModel.settle`.
        runtimes: Names of the runtimes that ran the file: LiteRT's interpreter ("default") and its
            `CompiledModel` ("compiled"), if a process can be started for it.
    """

    examples: int
    generated: bool
    compared: int
    rounded: int
    tensors: tuple
    outputs: tuple
    settled: bool
    runtimes: tuple = ("default",)

    @property
    def holds(self):
        """Whether the file computes the trained network, code for code."""
        return bool(self.outputs) and all(row.holds for row in (*self.tensors, *self.outputs))

    @property
    def mismatches(self):
        """Number of codes and output values that differ between file and simulation."""
        return sum(row.mismatches for row in (*self.tensors, *self.outputs))

    @property
    def outside(self):
        """Number of codes that are not nearest to the value that the trained network rounds."""
        return sum(row.outside for row in self.tensors)

    @property
    def deviation(self):
        """Largest distance of a code from the value that it rounds, in steps."""
        return max((row.deviation for row in self.tensors if row.deviation is not None), default=0)

    @property
    def flat_share(self):
        """The share of channels that showed a single code, 0 to 1."""
        channels = sum(row.channels for row in self.tensors)
        return sum(row.flat_channels for row in self.tensors) / channels if channels else 0.0

    def first_failure(self):
        """Returns a sentence on the first tensor or output that fails, with its layers."""
        for row in self.tensors:
            if not row.holds:
                return f"{_failure(row)} in tensor '{row.name}' ({row.kind}){_after(row.layers)}"
        for row in self.outputs:
            if row.mismatches:
                return (
                    f"{row.mismatches} values of output '{row.name}' differ between two ways to "
                    "run the file"
                )
            if not row.holds:
                return (
                    f"output '{row.name}' is {row.deviation:.3g} from the trained network's, and "
                    f"roundings explain {row.allowed:.3g}{_after(row.layers)}"
                )
        return "the file has no output"


def _failure(row):
    if row.problem:
        return row.problem
    if row.outside:
        return (
            f"{row.outside} codes are up to {row.deviation:.3f} steps from what the trained "
            f"network rounds there, and roundings explain {row.allowed:.3f},"
        )
    return f"{row.mismatches} codes differ between the file and its simulation"


def _after(layers):
    if not layers:
        return ""
    shown = [*layers[:1], "...", *layers[-3:]] if len(layers) > 4 else layers
    return f", after {', '.join(shown)}"
