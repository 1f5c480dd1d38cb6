"""Data of every kind for `keras.Model.evaluate`, which is called many times."""

import keras

from speq_keras._checks import check_count
from speq_keras.data.arrays import is_array
from speq_keras.data.inputs import inputs_of, packed
from speq_keras.data.reading import check_data, first_batch, is_dataset, read

_RULE = (
    "`data` must be `(inputs, targets)`, or a tf.data.Dataset, a PyDataset or a list of such "
    "batches."
)


class _Batches(keras.utils.PyDataset):
    """A list of batches, for Keras."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def evaluation_of(model, data, *, batch_size, steps=None):
    """Returns the arguments of `evaluate` for data that can be read many times.

    Args:
        model: A Functional model.
        data: See `read`; with labels.
        batch_size: Examples per batch, for arrays.
        steps: Batches each time; None: all.

    Raises:
        TypeError, ValueError: As in `read`, or if there are no labels or no examples.
    """
    check_count("batch_size", batch_size)
    check_count("steps", steps, optional=True)
    if is_array(data) or isinstance(data, dict):
        raise TypeError(f"{_RULE} Received: data of type {type(data).__name__}. Add the targets.")
    check_data(data, steps=steps, again=True)
    inputs = inputs_of(model)
    first = first_batch(data, inputs, labels=True)
    if first is None or first.y is None:
        what = "inputs without targets" if first else "no examples"
        raise ValueError(f"{_RULE} Received: {what}.")
    if isinstance(data, tuple):
        parts = {"x": packed(model, first.x), "y": first.y, "sample_weight": first.sample_weight}
        return {**parts, "batch_size": batch_size, "steps": steps}
    if isinstance(data, keras.utils.PyDataset) or is_dataset(data):
        return {"x": data, "steps": steps}
    batches = read(data, inputs, labels=True, steps=steps)
    return {"x": _Batches([_as_batch(packed(model, b.x), b.y, b.sample_weight) for b in batches])}


def _as_batch(*parts):
    """Returns a batch as a `PyDataset` may return it: Keras takes tuples there, but no lists."""
    parts = [part[0] if isinstance(part, list) and len(part) == 1 else part for part in parts]
    return tuple(
        tuple(part) if isinstance(part, list) else part for part in parts if part is not None
    )
