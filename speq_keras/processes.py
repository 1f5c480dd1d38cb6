"""Several processes that train one model, on JAX under `keras.distribution`.

Every process runs the same program on its part of each batch. JAX keeps equal what a step computes
and refuses variables that differ at the start (call `keras.utils.set_random_seed`); what comes from
a process' own data outside of the training step is made equal here.
"""

import contextlib
import pathlib
import tempfile

import keras
import numpy as np
from keras import ops

from speq_keras.files import replacing


def process_count():
    """Returns how many processes run this program; 1 on backends that cannot have more."""
    if keras.backend.backend() != "jax":
        return 1
    import jax  # only where it is the backend

    return jax.process_count()


def is_first_process():
    """Whether this process is the one that writes files."""
    if process_count() == 1:
        return True
    import jax

    return jax.process_index() == 0


def path_to_write(path):
    """Gives the first process what `files.replacing` gives, and the others a path to no purpose."""
    return replacing(path) if is_first_process() else discarded(path)


@contextlib.contextmanager
def discarded(path):
    """Gives a path with the name of `path`; what is written there is deleted again.

    The variables lie on the devices of all processes: it takes all of them to read one, so all have
    to go through the motions of writing.
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
    values = np.resize(values, length)  # what the others pass does not count
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def local_values(variables):
    """Returns [(variable, value)] with values that computations of this process alone can read.

    The variables themselves lie on the devices of all processes. Empty for one process, which can
    read them as they are.
    """
    if process_count() == 1:
        return []
    return [(v, ops.convert_to_tensor(ops.convert_to_numpy(v.value))) for v in variables]
