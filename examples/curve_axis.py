"""The y-axis of learning curves: one for all panels of a quantity, and close enough to compare."""

import numpy as np

_MARGIN = 0.15  # above and below, of what the second halves of the curves span


def show_differences(panels, *, least):
    """Gives panels one y-axis, which spans what their curves reach in their second halves.

    Curves begin at chance and end within a few points of each other: an axis from 0 to 100 % shows
    where they begin. What comes before may leave the picture.

    Args:
        panels: Axes of Matplotlib with lines of one quantity.
        least: What the axis spans at least, in units of the curves.
    """
    lines = [np.asarray(line.get_ydata(), float) for axes in panels for line in axes.lines]
    ends = np.concatenate([line[len(line) // 2 :] for line in lines] or [[]])
    if not np.isfinite(ends).any():
        return
    low, high = np.nanmin(ends), np.nanmax(ends)
    half = max(high - low, least) * (0.5 + _MARGIN)
    for axes in panels:
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
