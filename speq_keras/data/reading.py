"""Reads every kind of data that Keras takes, batch by batch."""

import dataclasses
import itertools
import sys

import keras
import numpy as np
from keras import ops, tree

from speq_keras._checks import check_count, describe
from speq_keras.data.arrays import are_numbers, finite_in, is_array, to_array, to_arrays
from speq_keras.data.inputs import inputs_of, packed

_KINDS = "arrays, (inputs, labels), a tf.data.Dataset, a PyDataset or an iterable of batches"
_EXAMPLES_AT_ONCE = 1024  # are checked


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch: a list of arrays, one per input; labels and sample weights, or None."""

    x: list
    y: object = None
    sample_weight: object = None

    def __len__(self):
        return len(self.x[0])


def input_batches(model, data, **arguments):
    """Returns an iterator over batches of inputs in the structure that a model takes.

    Args:
        model: A Functional model.
        data: See `read`.
        arguments: As in `read`.
    """
    return (packed(model, batch.x) for batch in read(data, inputs_of(model), **arguments))


def read(data, inputs, *, name="data", batch_size=None, steps=None, labels=False):
    """Returns an iterator over the `Batch`es of any data, without empty ones.

    What is known of the data is checked immediately, each batch of an iterable when it is read.

    Args:
        data: See the docstring of the package `data`.
        inputs: The `Inputs`. If there are several, a list of arrays has one for each of them: a
            batch for them is never a single array. Other lists are lists of batches.
        name: Name of the argument, for errors.
        batch_size: Examples per batch, for arrays; None: all of them.
        steps: Read no more batches than this; None: until the data ends.
        labels: Whether labels and sample weights are read; otherwise they are ignored.

    Raises:
        TypeError: If it is not data.
        ValueError: If it does not fit the inputs, is not finite, or is infinite without `steps`.

    Example:
        >>> from speq_keras.data import Inputs
        >>> inputs = Inputs(names=("x",), shapes=((2,),), dtypes=("float32",))
        >>> [len(batch) for batch in read(np.zeros((5, 2)), inputs, batch_size=4)]
        [4, 1]
    """
    check_count("batch_size", batch_size, optional=True)
    check_count("steps", steps, optional=True)
    check_data(data, name=name, steps=steps)
    whole = _whole(data, inputs, name)
    if whole is None:
        return _each(data, inputs, name, steps, labels)
    return _parts_of(whole, inputs, name, batch_size, steps, labels)


def first_batch(data, inputs, **arguments):
    """Returns the first non-empty `Batch` of data, finite or not, or None.

    Args:
        data: See `read`.
        inputs: See `read`.
        arguments: As in `read`.
    """
    steps = 1 if _is_data(data) and is_endless(data) else None
    batch = next(read(data, inputs, steps=steps, **arguments), None)
    return batch if batch else None  # one without examples is false


def check_data(data, *, name="data", steps=None, again=False, steps_name="steps"):
    """Checks what can be checked before the model is known, and returns the data.

    Args:
        data: See `read`.
        name: Name of the argument, for errors.
        steps: Number of batches wanted, or None.
        again: Whether the data must be readable more than once.
        steps_name: Name of the argument `steps`.

    Raises:
        TypeError: If it is not data, or can be read only once.
        ValueError: If it is infinite and `steps` is None.
    """
    rule = f"`{name}` must be {_KINDS}"
    received = f"Received: {name} of type {type(data).__name__}."
    if not _is_data(data):
        what = "Pass what the function returns." if callable(data) else "Convert it first."
        raise TypeError(f"{rule}. {received} {what}")
    if again and hasattr(data, "__next__"):
        raise TypeError(
            f"{rule}, which can be read many times. {received} It ends after the first "
            "time: pass a list of its batches."
        )
    if isinstance(data, dict) and not data:
        raise ValueError(f"{rule}. Received: {name} without a single array, {{}}. Pass arrays.")
    if steps is None and is_endless(data):
        raise ValueError(
            f"`{name}` must end, or `{steps_name}` say how many batches are wanted. {received} It "
            f"has no end, and {steps_name}=None. Pass {steps_name}=..., or data without repeat()."
        )
    return data


def check_numbers(data, *, name="data"):
    """Checks an array's values before the model is known, and returns the data, whatever it is.

    Raises:
        TypeError: If it does not contain numbers.
        ValueError: If it is empty or not finite.
    """
    x = data[0] if isinstance(data, tuple) and data else data  # of (x, y)
    if is_array(x):
        array = to_array(x, name)
        if not array.size:
            raise ValueError(
                f"`{name}` must hold examples. Received: no examples. Pass at least one."
            )
        finite_in(None, array, name)
    return data


def is_endless(data):
    """Whether data is known to be infinite. For generators this is unknown."""
    if is_dataset(data):
        return int(data.cardinality()) == sys.modules["tensorflow"].data.INFINITE_CARDINALITY
    if isinstance(data, keras.utils.PyDataset):
        return _length(data) is None
    return isinstance(data, itertools.cycle | itertools.count)


def peek(x, inputs, batch_size):
    """Returns the first batch of inputs, and data that still starts with it.

    Args:
        x: The argument `x` of `fit`.
        inputs: The `Inputs`.
        batch_size: For arrays; None: `x` is one batch.

    Raises:
        TypeError, ValueError: As in `read`, or if there is no batch.
    """
    if batch_size is None:
        return _not_empty(inputs.arrays(x, name="x")), x
    if hasattr(x, "__next__"):
        taken = list(itertools.islice(x, 1))

        def begin_again():  # a generator: Keras accepts no other iterators
            yield from taken
            yield from x

        return _first(taken, inputs), begin_again()
    is_whole = isinstance(x, dict) or is_array(x)
    is_whole = is_whole or (isinstance(x, list | tuple) and all(map(is_array, x)))
    return _first((x,) if is_whole else x, inputs, batch_size), x  # such a tuple is not `(x, y)`


def _first(data, inputs, batch_size=None):
    batch = first_batch(data, inputs, name="x", batch_size=batch_size)
    return _not_empty(batch.x if batch else [])


def _not_empty(arrays):
    if not arrays or not len(arrays[0]):
        raise ValueError(
            "Training needs at least one batch. Received: an empty data set. Pass inputs."
        )
    return arrays


def is_dataset(data):
    """Whether this is a `tf.data.Dataset`; if so, TensorFlow is already loaded."""
    module = getattr(sys.modules.get("tensorflow"), "data", None)
    return module is not None and isinstance(data, module.Dataset)


# ---- what it is ------------------------------------------------------------------------------


def _is_data(data):
    if isinstance(data, str | bytes | type) or data is None:
        return False
    return is_array(data) or hasattr(data, "__iter__") or _is_indexed(data)


def _is_indexed(data):
    """Whether batches are read by index."""
    if isinstance(data, keras.utils.PyDataset):
        return True
    has = [hasattr(data, name) for name in ("__getitem__", "__len__", "__iter__")]
    return has == [True, True, False]


def _length(data):
    """Returns the number of batches in indexed data; None: infinite."""
    if not isinstance(data, keras.utils.PyDataset):
        return len(data)
    try:
        return data.num_batches
    except NotImplementedError as error:
        raise TypeError(
            "A PyDataset must say how many batches it has. Received: "
            f"{type(data).__name__} without. Give it `__len__`, or `num_batches`, None for no end."
        ) from error


# ---- batch by batch --------------------------------------------------------------------------


def _whole(data, inputs, name):
    """Returns data as one batch `(x, y, sample_weight)`, as given, if it is arrays, else None."""
    if isinstance(data, dict) or (is_array(data) and not isinstance(data, list)):
        return data, None, None
    if isinstance(data, tuple):
        return inputs.split(data, name)
    if isinstance(data, list) and are_numbers(data):
        rank = len(np.shape(data[0])) + 1
        return (data, None, None) if rank <= len(inputs.shapes[0]) + 1 else None
    return (data, None, None) if isinstance(data, list) and inputs.are_in(data) else None


def _each(data, inputs, name, steps, labels):
    """Yields the `Batch`es of an iterable or of indexed data."""
    if _is_indexed(data):
        length = _length(data)
        numbers = itertools.count() if length is None else range(length)
        batches = map(data.__getitem__, numbers)
    else:
        batches = iter(data)
    # No more than `steps` are taken, so that the caller can continue with the iterator.
    for batch in itertools.islice(batches, steps):
        x, y, sample_weight = inputs.split(batch, name)
        found = _checked(inputs.arrays(x, name=name), y, sample_weight, name, labels)
        if len(found):
            yield found


def _parts_of(whole, inputs, name, batch_size, steps, labels):
    """Returns an iterator over the `Batch`es of one large one, after checking what it will read."""
    x, y, sample_weight = whole
    x = [_sliceable(part, name) for part in inputs.parts(x, name)]
    lengths = {len(part) for part in x}
    if len(lengths) > 1:
        inputs.arrays([part[:1] for part in x], name=name)  # their shapes may be the reason
        raise ValueError(
            f"`{name}` must have the same number of examples for each input. "
            f"{describe(examples=dict(zip(inputs.names, map(len, x), strict=True)))}"
        )
    (count,) = lengths
    size = max(count, 1) if batch_size is None else batch_size
    if steps is not None:
        count = min(count, steps * size)
    labelled = _checked(x, y, sample_weight, name, labels)
    if all(type(part) is np.ndarray for part in x):  # others may be on disk
        for start in range(0, max(count, 1), _EXAMPLES_AT_ONCE):
            end = min(start + _EXAMPLES_AT_ONCE, count)
            inputs.arrays([part[start:end] for part in x], name=name)

    def slices():
        # An empty batch counts too: its outputs have shapes.
        for start in range(0, count or (batch_size is None), size):
            place = slice(start, min(start + size, count))
            arrays = inputs.arrays([part[place] for part in x], name=name)
            yield Batch(
                arrays, *(_cut(each, place) for each in (labelled.y, labelled.sample_weight))
            )

    return slices()


def _cut(structure, place):
    return tree.map_structure(lambda part: None if part is None else part[place], structure)


def _sliceable(value, name):
    """Returns an array, or an object that gives one when sliced and may exceed memory."""
    is_elsewhere = all(hasattr(value, n) for n in ("shape", "dtype", "__getitem__", "__len__"))
    in_memory = isinstance(value, np.ndarray | keras.Variable) or ops.is_tensor(value)
    if isinstance(value, np.memmap) or (is_elsewhere and not in_memory):
        return value
    array = to_array(value, name)
    if not array.ndim:
        raise ValueError(
            f"`{name}` must be arrays with the examples on the first axis. {describe(shape=())} "
            "A single example is a batch of one: x[None]."
        )
    return array


def _checked(x, y, sample_weight, name, labels):
    """Returns a `Batch`, after checking that all parts have the same number of examples."""
    if not labels:
        return Batch(x)
    y, sample_weight = to_arrays(y, name), to_arrays(sample_weight, name)
    for what, structure in (("labels", y), ("sample weights", sample_weight)):
        for part in tree.flatten(structure):
            if part is not None and (not part.ndim or len(part) != len(x[0])):
                raise ValueError(
                    f"`{name}` must have {what} for as many examples as inputs. Received: "
                    f"{len(x[0])} examples and {what} of shape {part.shape}."
                )
    return Batch(x, y, sample_weight)
