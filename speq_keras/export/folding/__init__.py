"""Trained graph in, steps out: BatchNormalization folded, weights and biases as whole numbers.

walk       Keras graph -> steps, one for every rounding     walk.py
carry      pooling, reshaping, slicing as plain data        carry.py
affine     BatchNormalization & co. as slope and shift      affine.py
weights    codes behind trained weights, bias codes         weights.py
"""

from speq_keras.export.folding.steps import FoldedNetwork, Grid, Step, Value, Weights
from speq_keras.export.folding.walk import fold_graph

__all__ = ["FoldedNetwork", "Grid", "Step", "Value", "Weights", "fold_graph"]
