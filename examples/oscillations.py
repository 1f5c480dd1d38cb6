"""Measures how many weights oscillate between two codes during training."""

import keras
import numpy as np

import speq_keras

MOMENTUM, OSCILLATES_ABOVE = 0.01, 0.005


class OscillationMeter(keras.callbacks.Callback):
    """Follows the codes of all weights with fewer than 8 bits through training.

    A weight oscillates if its code reverses direction often:

        f ← 0.99 f + 0.01 · [the code changed, against the direction of its last change]

    is above 0.005. A change of width restarts the measurement.

    Reference: Nagel et al., "Overcoming Oscillations in Quantization-Aware Training"
    (arXiv:2203.11086), "Quantifying oscillations".
    """

    def on_train_begin(self, logs=None):
        self.followed = {}

    def on_train_batch_end(self, batch, logs=None):
        for layer in self.model.layers:
            if not isinstance(layer, speq_keras.QuantizedLayer):
                continue
            for name, quantizer in layer.quantizers.items():
                if (bits := quantizer.bits) < 8:
                    values = np.asarray(quantizer(layer.variable(name).value))
                    follow(self.followed, (layer.name, name, bits), codes(values, bits))

    def share(self):
        """Returns the share of weights that oscillate at their last width."""
        # For a weight that had several widths, the last one is kept.
        last = {key[:2]: state["frequency"] for key, state in self.followed.items()}
        frequencies = np.concatenate([frequency.ravel() for frequency in last.values()])
        return float(np.mean(frequencies > OSCILLATES_ABOVE))


def codes(values, bits):
    """Returns the integer code of each value, on a grid that is symmetric about zero."""
    return np.round(values / np.abs(values).max() * (2**bits - 1)).astype(int)


def follow(followed, key, code):
    """Adds one step to the record of one weight tensor's codes."""
    state = followed.setdefault(
        key, {"code": code, "direction": 0 * code, "frequency": np.zeros(code.shape)}
    )
    direction = np.sign(code - state["code"])
    turned = direction * state["direction"] < 0
    state["frequency"] = (1 - MOMENTUM) * state["frequency"] + MOMENTUM * turned
    state["direction"] = np.where(direction == 0, state["direction"], direction)
    state["code"] = code
