"""Lowers steps to operations of the file.

module      does
----------  ----------------------------------------------------------
encoding    codes as int8, clipped correctly by stock kernels
build       the network under construction: tensors, nodes, inputs, outputs
operations  one small function per kind of step without weights
linear      convolutions, dense layers, slopes per channel
functions   functions of one value, by kernel or by table
functions_without_table     those that a kernel or a sum computes exactly
expression  float operations, written as arithmetic
float_functions, float_only, float_linear   operations of float islands only
lower       the table of kinds, and the walk over the steps
"""

from speq_keras.export.lowering.functions_without_table import use_tables_for_micro
from speq_keras.export.lowering.lower import lower

__all__ = ["lower", "use_tables_for_micro"]
