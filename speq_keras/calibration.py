"""Sets ranges from data: a few batches through the float network, observed by each quantizer."""

import functools
import math

import keras
import numpy as np
from keras import ops, tree

from speq_keras.graph import call_node, read_graph, run
from speq_keras.layers import QuantizedLayer
from speq_keras.processes import from_first_process, local_values
from speq_keras.quantizers.histogram import Histogram

# Enough for a least-squares range, yet small enough to keep for a hundred quantizers.
_VALUES_PER_BATCH = 65536
_LARGEST = 1e18  # of an activation: variances and gradients square it


def calibrate(model, batches, *, quantizers, training=False):
    """Sets the range of each quantizer to the least squared rounding error.

    The batches run through the float network: weights and activations are not rounded, so each
    range is independent of the other ranges. From every tensor about 65,536 evenly spaced values
    per batch and its two extremes are kept; nothing is random. If several processes train one
    model, all get the ranges that the first one finds in its data.

    Args:
        model: The wrapped model.
        batches: Finite iterable of model inputs.
        quantizers: The activation quantizers to set.
        training: Whether BatchNormalization uses the batch's statistics. No state is changed.

    Raises:
        ValueError: If there is no batch, or an activation is not finite.
    """
    seen = {id(quantizer): [] for quantizer in quantizers}

    def observe(quantizer, values):
        if id(quantizer) in seen:
            seen[id(quantizer)].append(sample(ops.convert_to_numpy(ops.cast(values, "float32"))))

    observed = model.activation_quantizers
    fixed_bits = {q: q.bits for q in model.weight_quantizers if q.width is None}
    count = 0
    forward = _Forward(model)
    try:
        for quantizer in observed:
            quantizer.observer = observe
        for quantizer in fixed_bits:
            quantizer.bits = None
        for batch in batches:
            # The scope discards the pass's updates, and sets float widths for the weights.
            widths = [(width, 0.0) for width in model.weight_widths()]
            with keras.StatelessScope([*local_values(model.variables), *widths]):
                forward(batch, training=training)
            count += 1
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
        # In a loop of one step some observe nothing: there was no state before.
        values = from_first_process(np.concatenate(seen[id(quantizer)] or [np.zeros(1, "float32")]))
        low, high = float(values.min()), float(values.max())
        if not max(-low, high) < _LARGEST:
            raise ValueError(
                "The float network must give finite values on the calibration data, below 1e18, so "
                f"that float32 holds their squares. Received: quantizer '{quantizer.name}' saw "
                f"{low:.3g} ... {high:.3g}. Check its weights, and the size of the inputs."
            )
        quantizer.calibrate(Histogram(values))
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer):
            for attribute, quantizer in layer.quantizers.items():
                quantizer.calibrate(layer.variable(attribute).value)


class _Forward:
    """Runs a model for its quantizers' inputs, and frees each tensor after its last use."""

    def __init__(self, model):
        self.graph = read_graph(model)
        # Only for the inputs: it accepts a batch in the same forms as the model.
        self.inputs = keras.Model(model.input, model.input)

    def __call__(self, batch, *, training):
        arrays = tree.flatten(self.inputs(batch))
        values = dict(zip(self.graph.input_indices, arrays, strict=True))
        run(self.graph.nodes, values, call=functools.partial(call_node, training=training))


def sample(values):
    """Returns at most about 65,536 evenly spaced values of an array, and its extremes."""
    values = values.ravel()
    stride = -(-values.size // _VALUES_PER_BATCH)
    if stride <= 1:
        return values
    # With a common factor with the number of channels, it would only hit some of them.
    while math.gcd(stride, values.size) > 1:
        stride += 1
    return np.append(values[::stride], [values.min(), values.max()])
