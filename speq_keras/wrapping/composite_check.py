"""Checks that a graph computes the same as the layer it was made from, by running both."""

import functools
import inspect
import math

import keras
import numpy as np
from keras import ops, tree

from speq_keras._checks import brief
from speq_keras.graph import read_graph
from speq_keras.merged_batches import examples_in_one

# Batch size while a layer is taken apart: no other size is a multiple of it.
STAND_IN = 1009
# Examples per batch: two sizes reveal code that takes the batch size for a constant.
_BATCH_SIZES = (2, 1)
# For sizes that the graph leaves open; the larger ones if a kernel needs more.
_OPEN_SIZES = (16, 64)
# Relative to the largest value. The same float operations in another order (attention as two
# products) differ by far less; a different function by more.
_TOLERANCES = {"bfloat16": 0.1, "float16": 0.02}
_FLOAT32_TOLERANCE = 1e-3


def difference(layer, model, args, kwargs, inputs):
    """Runs a layer and the graph made of it on random data, with random weights.

    Runs inference on two batch sizes, and training from the same random state if the layer has a
    `training` argument. The layer's own variables keep their values.

    Args:
        layer: The layer.
        model: A Functional model that shares the layer's variables.
        args: Of the layer's call, containing the model's inputs.
        kwargs: Likewise.
        inputs: The inputs of `model`, in order.

    Returns:
        None if they agree, or a phrase that says why the graph cannot replace the layer.
    """
    rng = np.random.default_rng(0)
    weights = _random_values(layer, model, rng)
    # Keras' Functional models pass it to the layers of a graph, whatever a model passes to its own.
    is_model = isinstance(layer, keras.Model)
    asks = is_model or "training" in inspect.signature(layer.call).parameters
    # Time steps treated as examples share what a batch has in common: statistics, random numbers.
    is_per_step = isinstance(layer, keras.layers.TimeDistributed)
    asks = asks and kwargs.get("training") is None and not is_per_step

    def run_layer(arrays, **more):
        values = {id(x): array for x, array in zip(inputs, arrays, strict=True)}
        fill = functools.partial(tree.map_structure, lambda leaf: values.get(id(leaf), leaf))
        return _run(layer, weights, fill(list(args)), {**fill(dict(kwargs)), **more})

    for number, batch_size in enumerate(_batch_sizes(inputs, model)):
        try:
            arrays, wanted = _fitting(run_layer, inputs, batch_size, rng)
        except Exception as error:  # third-party code on random data
            return f"its call fails on random data ({brief(error)})"
        for training in (None, True) if asks and number == 0 else (None,):
            try:
                wanted = run_layer(arrays, training=True) if training else wanted
                found = _run(model, weights, [arrays], {"training": training})
            except Exception as error:
                return f"as a graph it fails on a batch of {batch_size} ({brief(error)})"
            phrase = _compare(*wanted, *found)
            if phrase is not None:
                return f"{phrase} in training" if training else phrase
    return None


def _fitting(run_layer, inputs, batch_size, rng):
    """Returns random data on which the layer runs, and its outputs for them."""
    for open_size in _OPEN_SIZES:
        arrays = [_random_input(x, batch_size, open_size, rng) for x in inputs]
        try:
            return arrays, run_layer(arrays)
        except Exception:
            is_last = open_size == _OPEN_SIZES[-1]
            if is_last or not any(None in x.shape[1:] for x in inputs):
                raise


def _batch_sizes(inputs, model):
    sizes = {x.shape[0] for x in inputs if len(x.shape)}
    if sizes and sizes.isdisjoint((None, STAND_IN)):
        return (next(iter(sizes)),)
    multiple = examples_in_one(read_graph(model))  # image windows that it reassembles
    return tuple(size * multiple for size in _BATCH_SIZES)


def _random_values(layer, model, rng):
    """Returns [(variable, value)] that make every part count: nothing is 0, sums stay near 1.

    The random state differs from that at tracing: noise must not be a constant of the graph.
    """
    values, weights = {}, {id(v) for v in [*layer.weights, *model.weights]}
    for variable in [*layer.variables, *model.variables]:
        if not keras.backend.is_float_dtype(variable.dtype):
            is_random = id(variable) not in weights
            value = ops.cast(variable.value + 1, variable.dtype) if is_random else variable.value
            values[id(variable)] = (variable, value)
            continue
        shape = tuple(variable.shape)
        if len(shape) < 2 or not variable.trainable:
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(size=shape) / math.sqrt(math.prod(shape[:-1]))
        values[id(variable)] = (variable, ops.cast(value, variable.dtype))
    return list(values.values())


def _random_input(x, batch_size, open_size, rng):
    shape = [open_size if size is None else size for size in x.shape]
    if shape and x.shape[0] in (None, STAND_IN):
        shape[0] = batch_size
    if keras.backend.is_float_dtype(x.dtype):
        return ops.cast(rng.normal(size=shape), x.dtype)
    # Codes that every table has; a mask always keeps the first position.
    codes = rng.integers(0, 2, shape)
    codes[..., :1] = 1
    return ops.cast(codes, x.dtype)


def _run(operation, weights, args, kwargs):
    """Returns (flat outputs, losses) of a call with `weights`, without lasting effects."""
    with keras.StatelessScope(weights, collect_losses=True) as scope:
        outputs = tree.flatten(operation(*args, **kwargs))
    return outputs, scope.losses


def _compare(wanted, losses, found, found_losses):
    if len(found) != len(wanted):
        return f"as a graph it has {len(found)} outputs instead of {len(wanted)}"
    for x, y in zip(wanted, found, strict=True):
        x_dtype, y_dtype = (keras.backend.standardize_dtype(z.dtype) for z in (x, y))
        if x_dtype != y_dtype:
            return f"as a graph it makes {y_dtype} instead of {x_dtype}"
        if tuple(x.shape) != tuple(y.shape):
            return f"as a graph it makes the shape {tuple(y.shape)} instead of {tuple(x.shape)}"
        away = _distance(x, y)
        if not away <= _TOLERANCES.get(x_dtype, _FLOAT32_TOLERANCE):
            return f"as a graph it computes other values, off by {away:.2g} of the largest"
    sums = [float(sum(map(ops.sum, each))) if each else 0.0 for each in (losses, found_losses)]
    if not math.isclose(*sums, rel_tol=1e-2, abs_tol=1e-5):
        return "as a graph it adds other losses"
    return None


def _distance(x, y):
    """Returns the largest distance of two tensors as a share of the largest value of `x`."""
    x, y = (np.asarray(ops.convert_to_numpy(ops.cast(z, "float32")), "float64") for z in (x, y))
    if x.size == 0 or np.array_equal(x, y, equal_nan=True):
        return 0.0
    if not np.array_equal(np.isfinite(x), np.isfinite(y)):
        return math.inf
    finite = np.isfinite(x)
    largest = np.abs(x[finite]).max(initial=0.0)
    return float(np.abs(x - y)[finite].max(initial=0.0) / max(largest, 1e-30))
