"""Arrays of numbers from any object that contains some."""

import sys

import keras
import numpy as np
from keras import ops, tree

from speq_keras._checks import brief


def is_array(value):
    """Whether a value is one array: a NumPy array, a tensor, a table, or numbers in lists."""
    if isinstance(value, type):
        return False
    return any(hasattr(value, name) for name in ("shape", "__array__")) or are_numbers(value)


def are_numbers(value):
    """Whether a value is a list of numbers, or of lists of numbers, and so on."""
    depth = 0
    while isinstance(value, list | tuple) and len(value):
        value, depth = value[0], depth + 1
    return depth > 0 and isinstance(value, bool | int | float | complex)


def to_array(value, name):
    """Returns a NumPy array of real numbers.

    Raises:
        TypeError: If `value` does not contain any: text, objects, complex numbers.
    """
    try:
        array = _converted(value)
    except Exception as error:  # from third-party conversions
        raise TypeError(
            f"`{name}` must hold arrays of numbers. Received: {name} with a value of type "
            f"{type(value).__name__}, which NumPy does not convert ({brief(error)}). Convert it "
            "first."
        ) from error
    if array.dtype.kind == "V" and "float" in array.dtype.name:  # bfloat16, float8
        array = array.astype("float32")
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"`{name}` must hold arrays of real numbers. Received: {name} of type "
            f"{array.dtype.name}. Encode it as numbers first."
        )
    return array


def _converted(value):
    tf = sys.modules.get("tensorflow")
    if tf is not None and isinstance(value, tf.RaggedTensor):
        value = value.to_tensor()
    elif tf is not None and isinstance(value, tf.SparseTensor):
        value = tf.sparse.to_dense(value)
    if isinstance(value, keras.Variable) or ops.is_tensor(value):
        return np.asarray(ops.convert_to_numpy(value))
    if hasattr(value, "toarray"):  # SciPy sparse matrices
        value = value.toarray()
    return np.asarray(value)


def to_arrays(structure, name):
    """Returns labels or weights, however nested, converted to arrays; None stays None."""
    if is_array(structure):
        return to_array(structure, name)
    return tree.map_structure(lambda x: None if x is None else to_array(x, name), structure)


def adjusted(array, shape):
    """Returns an array with a last axis of 1 added or removed, as in Keras."""
    if array.ndim == len(shape) + 2 and array.shape[-1] == 1:
        return array[..., 0]
    if array.ndim == len(shape) and array.ndim and shape[-1] == 1:
        return array[..., None]
    return array


def finite_in(dtype, array, name):
    """Returns an array in its dtype, after checking that it is finite before and after."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(
            f"`{name}` must be finite. Received: {name} with NaN or infinity. Clean the data first."
        )
    if dtype is None or array.dtype == dtype:
        return array
    if "float" not in dtype:
        return array.astype(dtype)
    with np.errstate(over="ignore"):
        converted = np.asarray(ops.convert_to_numpy(ops.cast(array.astype("float32"), dtype)))
    if not np.isfinite(converted.astype("float32")).all():
        largest = float(np.abs(array).max())
        raise ValueError(
            f"`{name}` must be finite in {dtype}, the type of the input. Received: {name} with "
            f"values of up to {largest:.3g}. Scale the data first."
        )
    return converted


def class_numbers(labels, shape, *, name="data", output=None):
    """Returns labels as class numbers, one for each position of outputs of `shape`.

    Args:
        labels: Class numbers of the shape without the classes or with a 1 for them, or one-hot.
        shape: Shape of the outputs, classes last.
        name: Name of the argument, for errors.
        output: Name of the output, for errors if there are several.

    Raises:
        ValueError: If they have another shape, or are not finite.
    """
    which = "" if output is None else f" of output '{output}'"
    if isinstance(labels, list | tuple) and len(labels) == 1:  # for the only output
        labels = labels[0]
    labels = np.zeros(0) if labels is None else to_array(labels, name)
    positions = tuple(shape[:-1])
    if labels.shape == tuple(shape) and shape[-1] > 1:
        found = labels.argmax(axis=-1)
    elif labels.shape in (positions, (*positions, 1)):
        found = labels.reshape(positions)
    else:
        raise ValueError(
            f"The labels{which} in `{name}` must be class numbers of shape {positions}, or one-hot "
            f"of shape {tuple(shape)}. Received: labels of shape {labels.shape}."
        )
    if not np.isfinite(labels).all():
        raise ValueError(
            f"The labels{which} in `{name}` must be finite. Received: labels with NaN or infinity. "
            "Clean the data first."
        )
    return found
