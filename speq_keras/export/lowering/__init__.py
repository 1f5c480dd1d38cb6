"""Steps in, TFLite operations out.

encoding   codes as int8 that stock kernels clip right     encoding.py
linear     convolutions, dense and affine steps            linear.py
rows       one small function for every other step         rows.py
build      the table, the ends of the network, pruning     build.py
"""

from speq_keras.export.lowering.build import lower, lower_steps

__all__ = ["lower", "lower_steps"]
