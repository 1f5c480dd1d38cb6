"""Folds the trained graph into steps: BatchNormalization folded, integer weights and biases.

module      does
----------  ------------------------------------------------------------
walk        Keras graph -> steps, one per rounding
node_rules  one small function per kind of node
builder     the network under construction
steps       the result: steps, grids, values, weights
pending     results that are not rounded yet
padding     zeros that are not written yet
options     layer options that would be lost
copying     pooling, reshaping, slicing as operations of the file
affine      BatchNormalization & co. as slope and shift
grids       the grids of quantizers and kernels
ties        scale ratios that put results on halves
weights     codes of trained weights, bias codes
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
