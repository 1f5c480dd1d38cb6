"""The integer network as plain data: tensors, and nodes that are one TFLite operation each.

The kinds of nodes are those of `operations.OPS`, and their inputs and options are the arguments of
the kernels there: `padding` is "same" or "valid", `strides`, `dilations` and `size` are (height,
width). Nodes whose tensors have no scale compute with plain numbers, in float islands.
"""

import dataclasses

import numpy as np

from speq_keras.graph.names import free_name

# Smallest and largest stored value by dtype.
CODES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "int2": (-2, 1)}


@dataclasses.dataclass(kw_only=True)
class Tensor:
    """A tensor of the network.

    Attributes:
        name: Unique in the network.
        shape: Sizes; a None in the first position is the batch, -n is n times the batch
            (`batches`).
        dtype: "int8", "int4", "int2", "int32" or "float32"; "uint8" only for inputs and outputs.
        scale: float32, or a float32 vector along `axis`; None: not quantized.
        zero_point: The stored value that means zero.
        axis: The axis of per-channel scales.
        data: The values of a constant, else None. Codes narrower than 8 bits take one int8 each.
        low, high: Smallest and largest stored value that the quantizer of this tensor makes.
        trained_scale: Distance between neighbouring values in units of the trained network. It
            differs from `scale` if RELU_N1_TO_1 requires a certain scale (readers and producer
            compensate for it).
        layer: Name of the trained layer whose output this tensor holds, or "".
        multiplier: For constant weights: `data` is this integer times the trained codes.
    """

    name: str
    shape: tuple
    dtype: str = "int8"
    scale: object = None
    zero_point: int = 0
    axis: int | None = None
    data: np.ndarray | None = None
    low: int = -128
    high: int = 127
    trained_scale: object = None
    layer: str = ""
    multiplier: int = 1

    @property
    def is_constant(self):
        """Whether the file contains the values."""
        return self.data is not None

    @property
    def is_per_channel(self):
        """Whether there is a scale for each position on `axis`."""
        return np.ndim(self.scale) == 1


@dataclasses.dataclass(kw_only=True)
class Node:
    """One operation. An absent bias is "". `layer`: the trained layer that it computes."""

    kind: str
    inputs: list
    outputs: list
    activation: str = "none"
    options: dict = dataclasses.field(default_factory=dict)
    layer: str = ""

    @property
    def output(self):
        """The first output; most operations have one."""
        return self.outputs[0]


@dataclasses.dataclass(kw_only=True)
class IntegerNetwork:
    """Nodes in execution order.

    Attributes:
        name: Name of the model.
        tensors: {name: Tensor}.
        nodes: The nodes.
        inputs, outputs: Names of tensors.
        input_names, output_names: Their names in the signature, in the same order.
        notes: Sentences about what folding did: adjusted scales, dead channels, float islands.
        metadata: Strings to store in the file.
    """

    name: str
    tensors: dict = dataclasses.field(default_factory=dict)
    nodes: list = dataclasses.field(default_factory=list)
    inputs: list = dataclasses.field(default_factory=list)
    outputs: list = dataclasses.field(default_factory=list)
    input_names: list = dataclasses.field(default_factory=list)
    output_names: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)
    metadata: dict = dataclasses.field(default_factory=dict)

    def add_tensor(self, tensor):
        """Adds a tensor under an unused name, and returns it."""
        tensor.name = free_name(tensor.name, self.tensors)
        self.tensors[tensor.name] = tensor
        return tensor

    def readers(self):
        """Returns {tensor name: [nodes that read it]}."""
        readers = {name: [] for name in self.tensors}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    readers[name].append(node)
        return readers


def batches(size):
    """Returns what multiple of the batch a size is, or 0 for a fixed size.

    Example:
        >>> batches(None), batches(-3), batches(7)
        (1, 3, 0)
    """
    return 1 if size is None else max(-size, 0)


def in_float(tensor, stored):
    """Returns the real values of a `Tensor`'s stored values, in float64."""
    values = np.asarray(stored, "float64")
    if tensor.dtype not in CODES:
        return values
    return (values - tensor.zero_point) * np.float64(tensor.trained_scale)
