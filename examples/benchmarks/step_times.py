"""Times of training steps: the clock that measures them, and what tables say of them."""

import time

import numpy as np


def step_clock(keras):
    """Returns a callback that keeps the time of each step of the last `fit` in `step_times_s`.

    The time runs from just before the compiled step is called to just after its loss is known, so
    setting up `fit` is not in it. What stays is the call itself and taking one batch out of memory,
    well below a millisecond and the same for all methods.

    Args:
        keras: The module of the model that is trained: `keras` or `tf_keras`.
    """

    class StepClock(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.step_times_s = []

        def on_train_batch_begin(self, batch, logs=None):
            self.start_s = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            self.loss = float(logs["loss"])  # waits for an accelerator that is still computing
            self.step_times_s.append(time.perf_counter() - self.start_s)

    return StepClock()


def milliseconds(rounds_s):
    """Returns the median over rounds of the median step, in whole milliseconds.

    Args:
        rounds_s: One list of step times in seconds per round.
    """
    return f"{1e3 * np.median([np.median(times_s) for times_s in rounds_s]):.0f}"


def ratio(rounds_s, base_rounds_s):
    """Returns "median (lower to upper quartile)" of the ratios within each round.

    A machine that slows down for a while slows both sides of such a ratio.

    Args:
        rounds_s: One list of step times in seconds per round.
        base_rounds_s: The same of what they are divided by, for the same rounds.
    """
    ratios = [np.median(a) / np.median(b) for a, b in zip(rounds_s, base_rounds_s, strict=True)]
    lower, median, upper = np.percentile(ratios, (25, 50, 75))
    return f"{median:.2f} ({lower:.2f} to {upper:.2f})"
