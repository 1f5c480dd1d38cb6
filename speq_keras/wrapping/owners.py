"""Finds the layers a range belongs to: if they are frozen, the range is not trained either.

A tensor belongs to the layer that makes it, even after that layer was taken apart. A tensor made by
a layer or operation without weights (an activation, a sum) or by a BatchNormalization also belongs
to the nearest preceding layers with weights, and is frozen when all of these are. A tensor computed
from the model's inputs without any weights belongs to the layers that read it. A second quantizer,
for readers of another width, belongs to those readers.
"""

import dataclasses

from keras import layers

from speq_keras.operations import Kind
from speq_keras.quantizers import Quantizer


@dataclasses.dataclass(frozen=True)
class Owners:
    """Layers, by name, to which the range of one tensor belongs.

    Attributes:
        any_of: The range is frozen when one of these is.
        all_of: The range is frozen when this is not empty and all of these are.
    """

    any_of: tuple
    all_of: tuple = ()


def find_owners(canonical, kinds, placement):
    """Returns {name of a quantizer: [`Owners` of each tensor that it rounds]}.

    Args:
        canonical: A `Canonical`.
        kinds: {id(node): Kind}.
        placement: The `Placement`.
    """
    finder = _Finder(canonical, kinds)
    places = [(spec.name, index) for index, specs in placement.at.items() for spec in specs]
    places += [
        (node.name, node.inputs[0])
        for node in canonical.graph.nodes
        if isinstance(node.operation, Quantizer)
    ]
    found = {}
    for name, index in places:
        found.setdefault(name, []).append(finder.owners(index))
    for (index, demand), spec in placement.between.items():
        readers = [
            node
            for node in finder.readers[index]
            if placement.demands.get((id(node), index)) == demand
        ]
        found.setdefault(spec.name, []).append(finder.owners_by_readers(index, readers))
    return found


class _Finder:
    def __init__(self, canonical, kinds):
        self.graph, self.kinds = canonical.graph, kinds
        self.with_weights = set(canonical.origins)
        self.readers = self.graph.readers()
        self.parts, self.makers = {}, {}
        for node in self.graph.nodes:
            self.parts.setdefault(id(node.origin or node), []).append(node.name)
            for index in node.outputs:
                self.makers[index] = self.makers_of(node)

    def has_weights(self, node):
        """Whether a layer has trainable weights, frozen or not."""
        never = isinstance(node.operation, Quantizer | layers.Normalization)
        return node.name in self.with_weights and not never

    def makers_of(self, node):
        """Returns the names of the layers with weights nearest to a node's outputs."""
        names = [node.name] if self.has_weights(node) else []
        if not names or self.kinds[id(node)] is Kind.AFFINE:
            names += [name for index in node.inputs for name in self.makers.get(index, ())]
        return tuple(dict.fromkeys(names))

    def owners(self, index):
        """Returns the `Owners` of a tensor."""
        producer = self.graph.tensors[index].producer
        while producer is not None and isinstance(producer.operation, Quantizer):
            index = producer.inputs[0]
            producer = self.graph.tensors[index].producer
        own = ()
        if producer is not None and self.kinds[id(producer)] is not Kind.AFFINE:
            own = tuple(self.parts[id(producer.origin or producer)])
        makers = self.makers.get(index, ())
        return Owners(own, makers) if makers else Owners((*own, *self.readers_with_weights(index)))

    def owners_by_readers(self, index, readers):
        """Returns the `Owners` of a second quantizer, which serves only these readers."""
        names = [node.name for node in readers if self.has_weights(node)]
        return Owners(tuple(dict.fromkeys(names))) if names else self.owners(index)

    def readers_with_weights(self, index):
        """Returns the names of the nearest layers with weights that read a tensor."""
        names, seen, waiting = {}, set(), [index]
        while waiting:
            index = waiting.pop()
            for node in self.readers[index]:
                if self.has_weights(node):
                    names[node.name] = None
                elif id(node) not in seen:
                    seen.add(id(node))
                    waiting += node.outputs
        return tuple(names)
