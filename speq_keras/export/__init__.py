"""Integer TFLite export: fold, simulate, write, prove.

Of it, this is for programs around an export: `run_file` runs a file on one of `RUNTIMES`,
`missing_reason` says why one cannot be used here, `partitions` what of a file XNNPACK takes;
`STORAGES` are the values of `storage=`.
"""

from speq_keras.export.storage import STORAGES
from speq_keras.export.tflite.runtimes import RUNTIMES, missing_reason, partitions, run_file

__all__ = ["RUNTIMES", "STORAGES", "missing_reason", "partitions", "run_file"]
