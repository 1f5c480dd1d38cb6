"""Plots of codes against levels, with a panel per activation quantizer."""

import numpy as np

COLUMNS, ROWS = 4, 6  # of panels on a page
_BINS = 100
_MOST_LINES = 40  # of levels; more would hide the histogram behind them
_MOST_LABELS = 16
_MARGIN = 0.25  # fraction of the quantizer's range shown on both sides
_LONGEST_NAME = 44  # letters that fit above a panel
_VALUES, _LEVELS, _CODES = "#9aa7b5", "#c8382b", "#2a6fb0"
_LEGEND = (
    (_VALUES, "values before the quantizer (logarithmic)"),
    (_LEVELS, "its levels, or their positions"),
    (_CODES, "how often each code is used"),
)


def page_count(observations):
    """Returns how many pages `pages` draws."""
    return max(1, -(-len(observations) // (COLUMNS * ROWS)))


def pages(observations, title):
    """Yields a Matplotlib figure for every 24 observations.

    Args:
        observations: A list of `Observation`.
        title: Text above each page.
    """
    count = page_count(observations)
    for page in range(count):
        start = page * COLUMNS * ROWS
        text = title if count == 1 else f"{title}, page {page + 1} of {count}"
        yield _page(observations[start : start + COLUMNS * ROWS], text)


def _page(observations, title):
    from matplotlib.figure import Figure  # only needed for drawing
    from matplotlib.patches import Patch

    columns = max(1, min(COLUMNS, len(observations)))
    rows = max(1, -(-len(observations) // columns))
    width, height = 5.0 * max(columns, 2), 3.0 * rows + 0.8
    figure = Figure(figsize=(width, height), dpi=80)
    figure.suptitle(title, x=0.2 / width, y=1 - 0.1 / height, ha="left", va="top", fontsize=13)
    figure.legend(
        handles=[Patch(color=color, label=label) for color, label in _LEGEND],
        loc="upper right",
        bbox_to_anchor=(1 - 0.2 / width, 1 - 0.05 / height),
        ncols=len(_LEGEND),
        frameon=False,
        fontsize=9,
    )
    grid = figure.add_gridspec(
        rows,
        columns,
        left=0.6 / width,
        right=1 - 0.25 / width,
        bottom=0.35 / height,
        top=1 - 1.1 / height,
        hspace=0.42,
        wspace=0.2,
    )
    for number, observation in enumerate(observations):
        cell = grid[number // columns, number % columns].subgridspec(
            2, 1, height_ratios=(1, 1), hspace=0.3
        )
        above, below = (figure.add_subplot(cell[half]) for half in range(2))
        _draw(observation, above, below)
    return figure


def _draw(observation, above, below):
    low, high = _ends(observation)
    for axes in (above, below):
        axes.set_xlim(low, high)
        axes.tick_params(labelsize=7.5, length=2)
        axes.spines[["top", "right"]].set_visible(False)
    above.set_title(_caption(observation), loc="left", fontsize=8.5, linespacing=1.3)
    if observation.values.size:
        # Values beyond the ends of the plot are counted in its outermost bins.
        values = np.clip(observation.values, low, high)
        counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
        shares = counts / values.size
        above.stairs(shares, edges, fill=True, color=_VALUES)
        _show_percent(above, shares)
    else:
        above.set_yticks([])
    if not observation.has_levels:
        below.set_axis_off()
        return
    codes = np.arange(observation.low_code, observation.high_code + 1)
    levels = codes * observation.scale
    shares = observation.counts / max(1, observation.counts.sum())
    if len(codes) <= _MOST_LABELS:
        for level in levels:
            above.axvline(level, color=_LEVELS, linewidth=0.9)
        _draw_few_codes(below, codes, levels, shares, observation.scale)
        return
    above.axvspan(levels[0], levels[-1], color=_LEVELS, alpha=0.1, linewidth=0, zorder=0)
    for level in levels[[0, -1]] if len(codes) > _MOST_LINES else levels:
        above.axvline(level, color=_LEVELS, linewidth=0.6)
    edges = np.append(levels, levels[-1] + observation.scale) - observation.scale / 2
    below.stairs(shares, edges, fill=True, color=_CODES)
    _show_percent(below, shares)
    first, last = codes[[0, -1]].tolist()
    far = (last - first) // 12  # from the ends: their labels need room
    ticks = [code for code in range(-128, 256, 64) if first + far < code < last - far]
    ticks = [first, *ticks, last]
    below.set_xticks([code * observation.scale for code in ticks], map(str, ticks))


def _draw_few_codes(axes, codes, levels, shares, scale):
    axes.bar(levels, shares, width=0.7 * scale, color=_CODES)
    axes.set_xticks(levels, [str(code) for code in codes])
    axes.set_ylim(0, 1.25 * max(shares.max(), 1e-9))
    _show_percent(axes)
    if len(codes) > _MOST_LABELS // 2:
        return
    for level, share in zip(levels, shares, strict=True):
        place = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
        axes.annotate(_percent(share, None), (level, share), (0, 1), **place)


def _show_percent(axes, shares=None):
    """Labels the axis in percent, logarithmically if there are `shares` to fit it to."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    axes.yaxis.set_major_locator(MaxNLocator(3))
    if shares is not None and shares.any():
        lowest, highest = shares[shares > 0].min(), shares.max()
        axes.set_yscale("log")
        axes.set_ylim(min(lowest / 2, highest / 20), 1.5 * highest)
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_percent)


def _ends(observation):
    """Returns the part of the axis to show: the inputs, but not far beyond the range."""
    values = observation.values
    low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    if observation.has_levels:
        first = observation.low_code * observation.scale
        last = observation.high_code * observation.scale
        margin = _MARGIN * (last - first)
        half = 0.5 * observation.scale
        low = min(max(low, first - margin), first - half)
        high = max(min(high, last + margin), last + half)
    if not high > low:
        low, high = low - 0.5, low + 0.5
    return float(low), float(high)


def _caption(observation):
    name = observation.name
    if len(name) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2 - 1
        name = f"{name[:half]}...{name[-half:]}"
    if observation.scale is None:
        facts = ["float"]
    elif not observation.has_levels:
        facts = [f"{observation.bits} bits", f"scale {observation.scale}"]
    else:
        used = np.count_nonzero(observation.counts)
        facts = [
            f"{observation.bits} bits",
            f"scale {observation.scale:.3g}",
            f"{used} of {len(observation.counts)} codes",
            f"{_percent(observation.clipped / max(1, observation.size), None)} clipped",
        ]
    if observation.not_finite:
        facts.append(f"{observation.not_finite:,} not finite")
    return f"{name}\n{', '.join(facts)}"


def _percent(share, _):
    """Returns a share in percent, as short as possible (a formatter of Matplotlib's ticks)."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
