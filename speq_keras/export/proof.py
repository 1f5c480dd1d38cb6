"""The proof in every export: the file is run, and every tensor of it compared.

trained graph against file   every code has to be a nearest one to what the trained network computes
                             from the file's codes before it; float outputs to a tolerance
file against simulation      every code of every tensor has to be the same

The first begins at the Keras model (see `trained`), so it holds whatever folding and lowering did.
The second says that the runtime computes what the file says, also in tensors between two roundings.
"""

import dataclasses

# Random inputs are drawn until no more channels than this show a single code.
FLAT_SHARE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorRow:
    """One tensor of codes in the proof.

    Attributes:
        name: The trained layer's name where it is the output of one.
        kind: What made it.
        shape: Its shape in the file.
        codes: How many codes its grid has.
        used: How many of them occurred.
        largest_share: How often the most frequent code occurred, 0 to 1.
        channels, flat_channels: Channels of the last axis, and how many showed a single code.
        mismatches: How many codes differ between file and simulation.
        deviation: Largest distance from what the trained network rounds there, in steps; None where
            it rounds nothing.
        allowed: Largest distance of a code that is rounded right; of the channel that allows most.
        outside: How many codes are further away.
        layers: The trained layers since the last codes.
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
        """How many bits its codes take: what is left of the byte that holds one is not used."""
        return max(self.codes - 1, 0).bit_length()

    @property
    def holds(self):
        """Whether all codes of this tensor are those of the trained network."""
        return not (self.mismatches or self.outside or self.problem)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputRow:
    """One output in the proof, in its own units; `layers` as of a `TensorRow`.

    `mismatches`: how many values are others where tensors before them are outputs too, or where the
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
    """What the comparison found.

    Attributes:
        examples: Number of examples.
        generated: Whether they are random.
        compared: Codes compared.
        rounded: Of these, the ones that the trained network rounds: compared with its own graph.
        tensors: A `TensorRow` per tensor, in computing order.
        outputs: An `OutputRow` per output.
        settled: Whether every bias is on the grid of its sums; see `SPEQModel.settle`.
        runtimes: Names of the runtimes that the file ran on: LiteRT's interpreter ("default") and
            its `CompiledModel` ("compiled"), if a process can be started for it.
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
        """How many codes and output values differ between file and simulation."""
        return sum(row.mismatches for row in (*self.tensors, *self.outputs))

    @property
    def outside(self):
        """How many codes are no nearest code of what the trained network rounds."""
        return sum(row.outside for row in self.tensors)

    @property
    def deviation(self):
        """Largest distance of a code from the value it rounds, in steps."""
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
