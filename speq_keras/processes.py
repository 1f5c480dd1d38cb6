"""Support for several processes that train one model, on JAX with `keras.distribution`.

Every process runs the same program on its part of each batch. JAX keeps the results of a step equal
and refuses variables that differ at the start (call `keras.utils.set_random_seed`); values from a
process' own data outside the training step are made equal here.
"""

import contextlib
import pathlib
import tempfile

import keras
import numpy as np
from keras import ops

from speq_keras.files import replacing


def process_count():
    """Returns the number of processes that run this program; 1 on backends without support."""
    if keras.backend.backend() != "jax":
        return 1
    import jax  # only if it is the backend

    return jax.process_count()


def is_first_process():
    """Whether this process is the one that writes files."""
    if process_count() == 1:
        return True
    import jax

    return jax.process_index() == 0


def path_to_write(path):
    """Gives the first process the path of `files.replacing`, and the others a path to discard."""
    return replacing(path) if is_first_process() else discarded(path)


@contextlib.contextmanager
def discarded(path):
    """Gives a path with the name of `path`; anything written there is deleted.

    Variables are on the devices of all processes: reading one takes all of them, so all have to
    take part in writing.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder) / (pathlib.Path(path).name or "folder")


def from_first_process(values):
    """Returns the vector that the first process passed, in all processes.

    Args:
        values: 1-D NumPy array; its length may differ between processes.
    """
    if process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.array(len(values))))
    values = np.resize(values, length)  # the others' values are ignored
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def local_values(variables):
    """Returns [(variable, value)] with values that this process can use on its own.

    The variables themselves are on the devices of all processes. Empty for a single process, which
    can read them directly.
    """
    if process_count() == 1:
        return []
    return [(v, ops.convert_to_tensor(ops.convert_to_numpy(v.value))) for v in variables]
