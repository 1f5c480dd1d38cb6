"""Trained graph in, steps out: BatchNormalization folded, weights and biases as whole numbers.

module      does
----------  ------------------------------------------------------------
walk        Keras graph -> steps, one for every rounding
node_rules  one small function for every kind of node
builder     the network while it is made
steps       what comes out: steps, grids, values, weights
pending     what is computed and not rounded yet
padding     zeros that nobody has written yet
options     what of a layer's options would be lost
copying     pooling, reshaping, slicing as operations of the file
affine      BatchNormalization & co. as slope and shift
grids       the grids of quantizers and kernels
ties        scale ratios that put results on halves
weights     codes behind trained weights, bias codes
"""

from speq_keras.export.folding.steps import (
    FoldedNetwork,
    Grid,
    Places,
    Step,
    Value,
    Weights,
)
from speq_keras.export.folding.walk import fold_graph, stored_copy

__all__ = [
    "FoldedNetwork",
    "Grid",
    "Places",
    "Step",
    "Value",
    "Weights",
    "fold_graph",
    "stored_copy",
]
