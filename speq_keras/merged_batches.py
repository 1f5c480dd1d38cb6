"""Batches in which an example is a step, pixel or window of another tensor, or the reverse."""

import fractions
import math

from keras import layers

from speq_keras.operations import name_of


def batches_in(graph):
    """Returns {number of a tensor: its first axis as a multiple of the batch}, if not one.

    `ops.reshape` can turn steps or pixels into examples, and back.
    """
    times = {}
    for node in graph.nodes:
        known = max((times.get(index, 1) for index in node.inputs), default=1)
        if name_of(node.operation) == "Reshape" and not isinstance(node.operation, layers.Layer):
            read, made = (graph.tensors[i].shape for i in (node.inputs[0], node.outputs[0]))
            if None not in (*read[1:], *made[1:]) and made[:1] == (None,):
                known = fractions.Fraction(math.prod(read[1:]), math.prod(made[1:])) * known
        if known != 1:
            times.update(dict.fromkeys(node.outputs, known))
    return times


def examples_in_one(graph):
    """Returns how many examples of its inputs a graph merges into one, the least batch size."""
    times = batches_in(graph).values()
    return math.lcm(*(fractions.Fraction(x).denominator for x in times))
