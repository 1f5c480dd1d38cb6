"""Progress reports of long work; silent for the first two seconds.

    counted    how much is done, in Keras' bar         calibrate, reestimate_batch_norm, search_bits
    phases     the current phase, a line on stderr     settle, export_tflite

`verbose="auto"` is silent unless the work lasts longer than that; 1 and 2 report from the start, 2
without a moving bar; 0 never reports. Of several processes the first one reports.
"""

import contextlib
import sys
import threading
import time

import keras

from speq_keras._checks import check_choice
from speq_keras.processes import is_first_process

DELAY_S = 2.0


def check_verbose(verbose):
    """Returns `verbose` after checking that it is "auto", 0, 1 or 2."""
    return check_choice("verbose", verbose, ("auto", 0, 1, 2))


def counted(items, total, *, unit, verbose):
    """Yields items, and shows how many are done in Keras' own progress bar.

    Args:
        items: An iterable.
        total: Their number; None: unknown.
        unit: Name of an item, a singular noun.
        verbose: "auto", 0, 1 or 2, checked.

    Example:
        >>> list(counted("ab", 2, unit="letter", verbose="auto"))
        ['a', 'b']
    """
    if not verbose or not is_first_process():
        yield from items
        return
    start_s, done, is_shown = time.monotonic(), 0, False
    bar = keras.utils.Progbar(
        total, unit_name=unit, verbose=1 if verbose == "auto" else int(verbose)
    )
    try:
        for item in items:
            yield item
            done += 1
            is_shown = is_shown or verbose != "auto" or time.monotonic() - start_s >= DELAY_S
            if is_shown:
                bar.update(done, finalize=False)
    finally:
        if is_shown:
            bar.update(done, finalize=True)  # ends the line


@contextlib.contextmanager
def phases(title, verbose):
    """Gives a function that is called at the start of each phase, and reports it on stderr.

    Args:
        title: Name of the work: the function that the user called.
        verbose: "auto", 0, 1 or 2, checked.

    Example:
        >>> with phases("export_tflite", "auto") as begin:
        ...     begin("proof")
    """
    if not verbose or not is_first_process():
        yield lambda phase: None
        return
    lines = _Lines(title)
    timer = threading.Timer(DELAY_S if verbose == "auto" else 0.0, lines.show)
    timer.daemon = True
    if verbose == "auto":
        timer.start()  # during a long phase there is no chance to check the time
    else:
        lines.show()
    try:
        yield lines.begin
    finally:
        timer.cancel()
        lines.end()


class _Lines:
    """The lines of `phases`; two threads write them."""

    def __init__(self, title):
        self.title, self.phase, self.is_shown = title, "", False
        self.start_s, self.lock = time.monotonic(), threading.Lock()

    def begin(self, phase):
        with self.lock:
            self.phase = phase
            if self.is_shown:
                self._write(f"{phase} ...")

    def show(self):
        with self.lock:
            self.is_shown = True
            if self.phase:
                self._write(f"{self.phase} ...")

    def end(self):
        with self.lock:
            if self.is_shown and self.phase:
                self._write(f"{time.monotonic() - self.start_s:.1f} s")
            self.is_shown, self.phase = False, ""

    def _write(self, text):
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)
