"""Ranges from data: a few batches through the float network, seen by every quantizer."""

import functools
import math

import keras
import numpy as np
from keras import ops, tree

from speq_keras._checks import check_count, describe
from speq_keras.graph import call_node, read_graph, run
from speq_keras.layers import QuantizedLayer
from speq_keras.processes import from_first_process, local_values
from speq_keras.quantizers import ActivationQuantizer
from speq_keras.quantizers.histogram import Histogram

# Enough for a least-squares range, and little enough to keep for a hundred quantizers.
_VALUES_PER_BATCH = 65536


def calibrate(model, batches, *, quantizers, training=False, progress=None):
    """Sets the range of each quantizer to the least squared rounding error.

    The batches run through the float network: weights and activations are not rounded, so each
    range is that of the values themselves, whatever the other ranges are. Of every tensor about
    65,536 evenly spaced values a batch and its two ends are kept; there is nothing random in it.
    Where several processes train one model, all get the ranges that the first one finds in its
    data.

    Args:
        model: The wrapped model.
        batches: Iterable of model inputs.
        quantizers: The activation quantizers to set.
        training: Whether BatchNormalization uses the batch's statistics. No state is changed.
        progress: Called with the number of batches done.

    Raises:
        ValueError: If there is no batch, or a value is not finite.
    """
    seen = {id(quantizer): [] for quantizer in quantizers}

    def observe(quantizer, values):
        if id(quantizer) in seen:
            seen[id(quantizer)].append(sample(ops.convert_to_numpy(ops.cast(values, "float32"))))

    observed = [layer for layer in model.layers if isinstance(layer, ActivationQuantizer)]
    fixed_bits = {q: q.bits for q in model.weight_quantizers if q.width is None}
    count = 0
    forward = _Forward(model)
    try:
        for quantizer in observed:
            quantizer.observer = observe
        for quantizer in fixed_bits:
            quantizer.bits = None
        for batch in batches:
            check_finite(batch)
            # The scope drops whatever the pass updates; float widths for the weights.
            widths = [(width, 0.0) for width in model.weight_widths()]
            with keras.StatelessScope([*local_values(model.variables), *widths]):
                forward(batch, training=training)
            count += 1
            if progress is not None:
                progress(count)
    finally:
        for quantizer in observed:
            quantizer.observer = None
        for quantizer, bits in fixed_bits.items():
            quantizer.bits = bits
    if count == 0:
        raise ValueError(
            "Calibration needs at least one batch. Received: an empty data set. Pass a few "
            "batches of inputs."
        )
    for quantizer in quantizers:
        values = from_first_process(np.concatenate(seen[id(quantizer)]))
        if not np.isfinite(values).all():
            raise ValueError(
                f"Quantizer '{quantizer.name}' saw values that are not finite. The float network "
                "must give finite values on the calibration data; check its weights."
            )
        quantizer.calibrate(Histogram(values))
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer):
            for attribute, quantizer in layer.quantizers.items():
                quantizer.calibrate(layer.variable(attribute).value)


class _Forward:
    """Runs a model for what its quantizers see, and keeps no tensor longer than it is read."""

    def __init__(self, model):
        self.graph = read_graph(model)
        # Only the inputs: it takes a batch in all the forms in which the model takes one.
        self.inputs = keras.Model(model.input, model.input)

    def __call__(self, batch, *, training):
        arrays = tree.flatten(self.inputs(batch))
        values = dict(zip(self.graph.input_indices, arrays, strict=True))
        run(self.graph.nodes, values, call=functools.partial(call_node, training=training))


def sample(values):
    """Returns at most about 65,536 evenly spaced values of an array, and its ends."""
    values = values.ravel()
    stride = -(-values.size // _VALUES_PER_BATCH)
    if stride <= 1:
        return values
    # With a factor in common with the number of channels, it would meet only some of them.
    while math.gcd(stride, values.size) > 1:
        stride += 1
    return np.append(values[::stride], [values.min(), values.max()])


def check_finite(batch):
    """Raises a ValueError if a batch of model inputs holds NaN or infinity."""
    for x in tree.flatten(batch):
        values = ops.convert_to_numpy(ops.convert_to_tensor(x))
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(
                "Inputs must be finite. Received: a batch with NaN or infinity. "
                "Clean the data first."
            )


def input_batches(data, batch_size, steps, *, inputs=1):
    """Yields batches of model inputs from whatever `fit` would take; empty ones are left out.

    Args:
        data: Arrays (any structure that the model takes), or an object that yields `x`, `(x, y)` or
            `(x, y, sample_weight)`.
        batch_size: For arrays only.
        steps: Stop after so many batches; None: when the data ends.
        inputs: How many the model has. A list of that many arrays, two or more, is one for each:
            a batch of such a model is never a single array. Other lists are lists of batches.
    """
    check_count("batch_size", batch_size)
    check_count("steps", steps, optional=True)
    is_data = any(hasattr(data, name) for name in ("shape", "__iter__", "__getitem__"))
    if isinstance(data, str | bytes) or not is_data:
        raise TypeError(
            "Data must be arrays, a tf.data.Dataset, a PyDataset or an iterable of batches. "
            f"{describe(data=data)}"
        )
    if isinstance(data, tuple) and data and all(hasattr(part, "shape") for part in data):
        raise TypeError(
            f"Data must not be a tuple of arrays. Received: a tuple of {len(data)} arrays. Pass "
            "`x` of `(x, y)`, several inputs as a dict by input name, several batches as a list."
        )
    if isinstance(data, keras.utils.PyDataset):
        count = len(data) if steps is None else min(steps, len(data))
        for index in range(count):
            yield first_of(data[index])
        return
    if _is_arrays(data, inputs):
        arrays = tree.flatten(data)
        count = min(len(x) for x in arrays)
        for number, start in enumerate(range(0, count, batch_size)):
            if steps is not None and number >= steps:
                return
            yield tree.map_structure(lambda x, start=start: x[start : start + batch_size], data)
        return
    for number, batch in enumerate(data):
        if steps is not None and number >= steps:
            return
        x = first_of(batch)
        if all(len(part) for part in tree.flatten(x) if hasattr(part, "__len__")):
            yield x


def _is_arrays(data, inputs):
    if isinstance(data, dict):
        return all(hasattr(value, "shape") for value in data.values())
    if isinstance(data, list) and len(data) == inputs > 1:
        return all(hasattr(part, "shape") for part in data)
    return hasattr(data, "shape")


def first_of(batch):
    """Returns the inputs of a batch `x`, `(x, y)` or `(x, y, sample_weight)`."""
    return batch[0] if isinstance(batch, tuple) else batch


def peek(x, batch_size):
    """Returns the first batch of inputs, and data that still begins with it.

    Args:
        x: What `fit` takes as `x`.
        batch_size: For arrays only.

    Raises:
        ValueError: If there is no batch.
    """
    if isinstance(x, keras.utils.PyDataset) or not hasattr(x, "__next__"):
        arrays = isinstance(x, list | tuple) and all(hasattr(part, "shape") for part in x)
        if arrays:
            return tree.map_structure(lambda part: part[:batch_size], x), x
        first = next(input_batches(x, batch_size, 1), None)
        if first is None:
            raise ValueError(
                "Training needs at least one batch. Received: an empty data set. Pass inputs."
            )
        return first, x
    first = next(x)

    def begin_again():  # a generator: Keras takes no other iterator
        yield first
        yield from x

    return first_of(first), begin_again()
