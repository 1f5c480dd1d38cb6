"""Trained graph in, steps out: BatchNormalization folded, weights and biases as whole numbers.

module     does
---------  ----------------------------------------------------
walk       Keras graph -> steps, one for every rounding
carry      pooling, reshaping, slicing as plain data
affine     BatchNormalization & co. as slope and shift
ties       scale ratios that put results on halves
floats     what may stay in float
weights    codes behind trained weights, bias codes
"""

from speq_keras.export.folding.steps import FoldedNetwork, Grid, Step, Value, Weights
from speq_keras.export.folding.walk import fold_graph

__all__ = ["FoldedNetwork", "Grid", "Step", "Value", "Weights", "fold_graph"]
