"""Integer TFLite export: fold, simulate, write, prove.

For programs that use an export: `run_file` runs a file on one of `RUNTIMES`, `missing_reason` says
why one cannot be used here, `partitions` shows what XNNPACK takes of a file; `STORAGES` are the
values of `storage=`.
"""

from speq_keras.export.storage import STORAGES
from speq_keras.export.tflite.runtimes import RUNTIMES, missing_reason, partitions, run_file

__all__ = ["RUNTIMES", "STORAGES", "missing_reason", "partitions", "run_file"]
