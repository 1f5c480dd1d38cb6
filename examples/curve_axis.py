"""The y-axis of learning curves: shared by all panels of a quantity, narrow enough to compare."""

import numpy as np

_MARGIN = 0.15  # above and below, as a fraction of the span of the second halves


def show_differences(panels, *, least):
    """Gives panels a common y-axis, which spans the second halves of their curves.

    Curves start at chance and end within a few points of each other: an axis from 0 to 100 % hides
    the difference. Earlier values may be outside the picture.

    Args:
        panels: Matplotlib axes with lines of one quantity.
        least: Minimum span of the axis, in units of the curves.
    """
    lines = [np.asarray(line.get_ydata(), float) for axes in panels for line in axes.lines]
    ends = np.concatenate([line[len(line) // 2 :] for line in lines] or [[]])
    if not np.isfinite(ends).any():
        return
    low, high = np.nanmin(ends), np.nanmax(ends)
    half = max(high - low, least) * (0.5 + _MARGIN)
    for axes in panels:
        axes.set_ylim((low + high) / 2 - half, (low + high) / 2 + half)
