"""The graph itself: nodes, the tensors between them, and the model's inputs and outputs."""

import dataclasses

import keras
from keras import tree


@dataclasses.dataclass(frozen=True)
class Ref:
    """A tensor of the graph, by number."""

    index: int


@dataclasses.dataclass
class Tensor:
    """The shape (None: unknown size), dtype and producer of a tensor."""

    shape: tuple
    dtype: str
    producer: "Node | None" = None
    name: str = ""


@dataclasses.dataclass(eq=False)
class Node:
    """One call of a layer or operation. `args` and `kwargs` hold `Ref`s for tensors.

    In a rewritten graph, `origin` is the node of the previous graph that this one comes from.
    """

    operation: object
    name: str
    args: list
    kwargs: dict
    outputs: list = dataclasses.field(default_factory=list)
    origin: "Node | None" = None

    @property
    def inputs(self):
        """The numbers of the tensors that this node reads, in order."""
        return [leaf.index for leaf in refs_in((self.args, self.kwargs))]


@dataclasses.dataclass
class Graph:
    """Nodes in computable order, their tensors, and the model's inputs and outputs.

    `masked`: the numbers of the tensors that are derived from masked ones. `carried`: those with a
    mask attached when the graph is called.
    """

    name: str
    tensors: list = dataclasses.field(default_factory=list)
    nodes: list = dataclasses.field(default_factory=list)
    inputs: object = None
    outputs: object = None
    masked: set = dataclasses.field(default_factory=set)
    carried: set = dataclasses.field(default_factory=set)

    def add_tensor(self, shape, dtype, producer=None, name=""):
        """Appends a tensor and returns its `Ref`."""
        self.tensors.append(Tensor(tuple(shape), dtype, producer, name))
        return Ref(len(self.tensors) - 1)

    def add_node(self, operation, name, args, kwargs, shapes_and_dtypes, origin=None):
        """Appends a node and returns the `Ref`s of its outputs."""
        node = Node(operation, name, args, kwargs, origin=origin)
        node.outputs = [self.add_tensor(s, d, node).index for s, d in shapes_and_dtypes]
        self.nodes.append(node)
        return [Ref(index) for index in node.outputs]

    def keras_tensor(self, index):
        """Returns a new `KerasTensor` with the shape and dtype of a tensor, given by number."""
        tensor = self.tensors[index]
        return keras.KerasTensor(tensor.shape, dtype=tensor.dtype)

    def readers(self):
        """Returns {tensor number: [nodes that read it]}; nodes that read it twice appear twice."""
        readers = {index: [] for index in range(len(self.tensors))}
        for node in self.nodes:
            for index in node.inputs:
                readers[index].append(node)
        return readers

    def drop_unread(self):
        """Removes nodes whose outputs are not read; tensors keep their numbers."""
        read, kept = set(self.output_indices), []
        for node in reversed(self.nodes):
            if not read.isdisjoint(node.outputs):
                kept.append(node)
                read.update(node.inputs)
        self.nodes = kept[::-1]

    @property
    def input_indices(self):
        """The numbers of the model's inputs, in order."""
        return [ref.index for ref in refs_in(self.inputs)]

    @property
    def output_indices(self):
        """The numbers of the model's outputs, in order."""
        return [ref.index for ref in refs_in(self.outputs)]


def refs_in(structure):
    """Returns the `Ref`s in any structure of lists, tuples and dicts, in order."""
    return [leaf for leaf in tree.flatten(structure) if isinstance(leaf, Ref)]


def map_refs(structure, value):
    """Returns `structure` with `value(number)` for each `Ref` to a tensor.

    Example:
        >>> map_refs({"x": [Ref(2), "same"]}, lambda number: f"tensor {number}")
        {'x': ['tensor 2', 'same']}
    """
    return tree.map_structure(
        lambda leaf: value(leaf.index) if isinstance(leaf, Ref) else leaf, structure
    )
