"""Starts Keras and its backend without TensorFlow's start-up messages.

Import it before Keras: `.ruff.toml` sorts it there. `TF_CPP_MIN_LOG_LEVEL` turns the messages off
in most versions of TensorFlow; in 2.21 Abseil writes those below before it reads any setting, so
they are filtered from the output while the libraries are imported. All other lines are kept. If
`TF_CPP_MIN_LOG_LEVEL` is already set, it is respected and nothing is filtered.

One line comes later and cannot be turned off, LiteRT's when it runs its first file: "INFO: Created
TensorFlow Lite XNNPACK delegate for CPU."
"""

import contextlib
import os
import re
import tempfile

NOTICES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|I0000 "  # info messages before Abseil starts
    rb"|To enable the following instructions: "  # the second line of one of them
    rb"|E0000 .*(cuInit|Unable to register cu)"  # no GPU; plug-ins that are registered twice
    rb"|W0000 .*computation placer already registered"
)


@contextlib.contextmanager
def without_notices():
    """Holds back standard error, and writes it at the end without the `NOTICES`."""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            os.write(2, b"".join(line for line in file if not NOTICES.match(line)))


def start():
    """Imports Keras with its backend, and `speq_keras`, which imports LiteRT."""
    import keras

    import speq_keras  # noqa: F401

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for GPUs, with messages


if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
    start()
else:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # its warnings are for those who build it
    with without_notices():
        start()
