"""Oscillation damping: a loss that keeps weights away from the thresholds between codes."""

import dataclasses
import math

import keras
from keras import ops

from speq_keras._checks import check_count, check_number, describe
from speq_keras.layers import QuantizedLayer


@dataclasses.dataclass(frozen=True, kw_only=True)
class OscillationDamping:
    """Pulls every weight towards its quantized value, harder as training goes on.

        L = λ(t) · Σ (ŵ − clip(w, low, high))²
        λ(t) = strength · ½ (1 − cos(π · min(t / steps, 1)))

    The straight-through gradient pushes a weight to one side of a threshold until its code changes,
    then back again: its code oscillates, and the BatchNormalization averages fit neither code. Here
    ŵ is a constant, and `low` and `high` are the smallest and largest values in use, per scale: the
    gradient is 2λ(t)(w − ŵ) inside that range and 0 outside.

    It is a setting of the model, saved with it: `model.damping = OscillationDamping(...)` adds the
    loss to what `fit` minimizes (not to `task_loss`, nor in evaluation), and `model.damping = None`
    removes it; both retrace once. The teacher's pass is not affected. `Apprentice` and `CoStudy`
    train without it.

    Args:
        strength: λ at the end, positive. The paper uses 0.1 with SGD.
        steps: Optimizer steps until λ(t) reaches `strength`, counted from `compile` like those of a
            learning-rate schedule; afterwards it stays constant.

    Example:
        >>> damping = OscillationDamping(strength=0.1, steps=100)
        >>> [round(float(damping.strength_at(step)), 4) for step in (0, 50, 100, 900)]
        [0.0, 0.05, 0.1, 0.1]

    Reference: Nagel et al., "Overcoming Oscillations in Quantization-Aware Training"
    (arXiv:2203.11086), "Oscillation dampening". There low and high are the ends of the grid, which
    is equivalent if the end codes are in use.
    """

    strength: float
    steps: int

    def __post_init__(self):
        check_number("strength", self.strength, low=0, low_open=True)
        check_count("steps", self.steps)

    def strength_at(self, step):
        """Returns λ(t) as a float32 scalar tensor.

        Args:
            step: t, a number or scalar tensor.
        """
        progress = ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        return 0.5 * self.strength * (1.0 - ops.cos(math.pi * progress))

    def loss(self, layers, step):
        """Returns L for the trainable weights of the `QuantizedLayer`s in `layers`.

        Args:
            layers: Layers of any class.
            step: t.
        """
        distance = 0.0
        for layer in _quantized(layers):
            for attribute, quantizer in layer.quantizers.items():
                variable = layer.variable(attribute)
                if variable.trainable:
                    distance = distance + distance_to_grid(variable.value, quantizer)
        return self.strength_at(step) * distance


def distance_to_grid(weights, quantizer):
    """Returns Σ (ŵ − clip(w, low, high))² of one tensor; 0 if the width is float.

    Example:
        >>> from speq_keras.quantizers import MinMax
        >>> weights = ops.convert_to_tensor([[-1.0, 0.25, 1.0]])  # on 2 bits: -1, 0, 1
        >>> float(distance_to_grid(weights, MinMax(bits=2)))
        0.0625
    """
    weights = ops.cast(weights, "float32")
    quantized = ops.stop_gradient(quantizer(weights))
    axes = quantizer.reduced_axes(len(weights.shape))
    low, high = (end(quantized, axis=axes, keepdims=True) for end in (ops.min, ops.max))
    clipped = ops.minimum(ops.maximum(weights, low), high)
    # A mean times the count, because Keras divides means, but not sums, by the number of replicas.
    return math.prod(weights.shape) * keras.losses.MeanSquaredError()(quantized, clipped)


def _quantized(layers):
    return [layer for layer in layers if isinstance(layer, QuantizedLayer)]


def check_damping(damping, layers):
    """Raises an error if `damping` is not a damping, or a layer has weights that it cannot pull.

    Example:
        >>> check_damping(OscillationDamping(strength=0.1, steps=10), [keras.layers.Dense(4)])
    """
    if not isinstance(damping, OscillationDamping):
        raise TypeError(
            f"`damping` must be an OscillationDamping or None. {describe(damping=damping)}"
        )
    for layer in _quantized(layers):
        for quantizer in layer.quantizers.values():
            if not quantizer.keeps_units:
                raise ValueError(
                    "`damping` pulls weights to their quantized values, which must be in the units "
                    f"of the weights. Received: layer '{layer.name}' ({type(layer.layer).__name__})"
                    f" with {type(quantizer).__name__}, which rescales them. Wrap with another "
                    "weight quantizer, such as 'sawb'."
                )
