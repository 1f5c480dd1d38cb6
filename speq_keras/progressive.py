"""Progressive width lowering: training starts with wide codes and ends at the target width."""

import keras

from speq_keras._checks import check_bits, check_bool, check_count, check_speq_model, describe
from speq_keras.data import check_data, check_numbers, inputs_of, read


class LowerWidths(keras.callbacks.Callback):
    """Lowers the widths of a `SPEQModel` during `fit`: 8, then 4, then 3, then 2 bits.

    Wrap and calibrate the model with the last width. The widths are set by `SPEQModel.set_bits`,
    and nothing is retraced except when distillation begins: at 8 bits the teacher has no other
    widths. A resumed run (`initial_epoch`, `BackupAndRestore`) continues with the width of its
    epoch.

    A range belongs to a width: the least-squares clipping level of 8 bits is far above that of 2.
    By default ranges are kept, so that the wide epochs train the network inside the range of the
    last width; with `calibration_data` they are set again whenever the width changes.

    Args:
        widths: {epoch: bits}: the width from that epoch on, counted from 0. The first epoch must be
            0, and widths must decrease.
        weights, activations: Whether to lower the width of that side.
        calibration_data: Inputs for `SPEQModel.calibrate`, as in training (batch statistics), or
            None. Data that can be read only once, such as a generator, is not allowed.
        calibration_steps: Number of batches of it; None takes all. Required for infinite data.

    Raises:
        TypeError: If an argument has the wrong type, or the trained model is not a `SPEQModel`.
        ValueError: If the widths are not allowed, or training ends before the last one.

    Example:
        >>> import numpy as np, speq_keras
        >>> layers = [keras.layers.Dense(8, activation="relu") for _ in range(3)]
        >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *layers]), 2, 2,
        ...                         distillation=None)
        >>> x = np.random.rand(16, 4)
        >>> model.calibrate(x, verbose=0)
        >>> model.compile("sgd", "mse")
        >>> callback = LowerWidths({0: 8, 1: 4, 2: 2})
        >>> history = model.fit(x, np.zeros((16, 8)), epochs=3, callbacks=[callback], verbose=0)
        >>> model.weight_quantizers[1].bits
        2
    """

    def __init__(
        self,
        widths,
        *,
        weights=True,
        activations=True,
        calibration_data=None,
        calibration_steps=None,
    ):
        super().__init__()
        self.widths = _check_widths(widths)
        weights, activations = (
            check_bool("weights", weights),
            check_bool("activations", activations),
        )
        if not (weights or activations):
            raise ValueError(
                "At least one of `weights` and `activations` must be True. "
                f"{describe(weights=weights, activations=activations)}"
            )
        self.sides = [
            side
            for side, is_lowered in (("weights", weights), ("activations", activations))
            if is_lowered
        ]
        self.calibration_steps = check_count("calibration_steps", calibration_steps, optional=True)
        if calibration_data is not None:
            check_data(
                calibration_data,
                name="calibration_data",
                steps=calibration_steps,
                again=True,
                steps_name="calibration_steps",
            )
            check_numbers(calibration_data, name="calibration_data")
        self.calibration_data = calibration_data

    def on_train_begin(self, logs=None):
        """Checks that model and data fit, and that training reaches the last width."""
        check_speq_model("model", self.model, of=" of LowerWidths")
        if self.calibration_data is not None:
            # Arrays are checked now; batches are not read before they are needed.
            inputs, steps = inputs_of(self.model), self.calibration_steps
            read(self.calibration_data, inputs, name="calibration_data", steps=steps)
        last, epochs = max(self.widths), self.params["epochs"]
        if last >= epochs:
            raise ValueError(
                "Training must reach the epoch of the last width. "
                f"{describe(widths=self.widths, epochs=epochs)} Train for at least {last + 1} "
                "epochs."
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Sets the width of the epoch, and its ranges."""
        bits = self.widths[max(first for first in self.widths if first <= epoch)]
        if {q.bits for side in self.sides for q in self._quantizers(side)} == {bits}:
            return
        self.model.set_bits(**dict.fromkeys(self.sides, bits))
        if self.calibration_data is not None and "activations" in self.sides:
            self.model.calibrate(
                self.calibration_data, steps=self.calibration_steps, training=True, verbose=0
            )

    def _quantizers(self, side):
        if side == "activations":
            return self.model.target_quantizers
        return [q for q in self.model.weight_quantizers if q.has_target_width]


def _check_widths(widths):
    """Returns {epoch: bits} in order of epochs."""
    rule = (
        "`widths` must be a dict from epochs, which begin at 0, to widths from 8 to 2 bits, each "
        "below the one before."
    )
    if not isinstance(widths, dict):
        raise TypeError(f"{rule} {describe(widths=widths)} Pass one such as {{0: 8, 5: 4, 10: 2}}.")
    for epoch, bits in widths.items():
        check_bits("widths", bits, optional=False)
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            raise TypeError(f"{rule} {describe(epoch=epoch)} Epochs are whole numbers.")
    widths = dict(sorted(widths.items()))
    values = list(widths.values())
    falls = all(after < before for before, after in zip(values, values[1:], strict=False))
    if min(widths, default=None) != 0 or not falls:
        raise ValueError(f"{rule} {describe(widths=widths)}")
    return widths
