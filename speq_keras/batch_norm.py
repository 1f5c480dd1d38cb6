"""Re-estimates the moving statistics of BatchNormalization from data."""

import keras
import numpy as np
from keras import layers, ops

from speq_keras.processes import from_first_process, local_values


def reestimate(model, batches):
    """Replaces moving means and variances with the averages of batch statistics over `batches`.

    Quantization shifts activations, and after a change of widths the moving statistics belong to a
    different network. Nothing else changes: no weights, no random state.

    Args:
        model: The wrapped model.
        batches: Finite iterable of model inputs.

    Returns:
        The number of layers that were set. Frozen layers (`trainable=False`) are left alone.

    Raises:
        ValueError: If there is no batch.
    """
    norms = [
        layer
        for layer in model.layers
        if isinstance(layer, layers.BatchNormalization) and layer.trainable
    ]
    momenta = [layer.momentum for layer in norms]
    sums, count = None, 0
    try:
        for layer in norms:
            layer.momentum = 0.0  # the "moving" statistics are then those of one batch
        for batch in batches:
            with keras.StatelessScope(local_values(model.variables)) as scope:
                model(batch, training=True)
            values = [
                ops.convert_to_numpy(scope.get_current_value(variable)).astype("float64")
                for layer in norms
                for variable in (layer.moving_mean, layer.moving_variance)
            ]
            sums = values if sums is None else [a + b for a, b in zip(sums, values, strict=True)]
            count += 1
    finally:
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum
    if count == 0:
        raise ValueError(
            "At least one batch is needed to estimate statistics. Received: an empty data set. "
            "Pass a few batches of inputs."
        )
    means = iter(from_first_process(np.asarray(total / count, "float32")) for total in sums)
    for layer in norms:
        layer.moving_mean.assign(next(means))
        layer.moving_variance.assign(next(means))
    return len(norms)
