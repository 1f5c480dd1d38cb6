"""What was found, as tables in Markdown with the paper's numbers."""

import numpy as np
import tables


def spread(values, digits=2):
    """Returns the mean, and with it the deviation of several values."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.{digits}f}"


def table(number, cells, results, *, scale):
    """Returns a table in Markdown: a row per cell, ours and the paper's accuracy.

    Args:
        number: Of the table in the paper.
        cells: Its cells, a list of `tables.Cell`.
        results: {cell: {seed: figures}}.
        scale: Name of the scale.
    """
    seeds = len(results[cells[0]])
    if number == 1:
        return _table_1(cells, results, f"Table 1, {scale}, {seeds} seed(s)")
    lines = [
        f"Table {number}, {scale}, {seeds} seed(s); test accuracy in %",
        "",
        "| network | data | W/A | method | ours | paper | more than retrain, by seed | "
        "on training images | steps | s |",
        "| --- " * 10 + "|",
    ]
    for cell in cells:
        of_seeds = list(results[cell].values())
        row = (
            cell.model,
            cell.dataset,
            cell.widths,
            cell.row,
            spread([100 * figures["test_accuracy"] for figures in of_seeds]),
            "-" if cell.paper is None else str(cell.paper),
            _more_than_retrain(cell, cells, results),
            spread([100 * figures["train_accuracy"] for figures in of_seeds]),
            str(of_seeds[0]["steps"]),
            spread([figures["seconds"] for figures in of_seeds], digits=0),
        )
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def _more_than_retrain(cell, cells, results):
    """Returns how much more accurate a cell is than the control with the same seed, in points."""
    same = {"model": cell.model, "dataset": cell.dataset, "widths": cell.widths}
    for other in cells:
        is_alike = all(getattr(other, name) == value for name, value in same.items())
        if other.row == "retrain" and other != cell and is_alike:
            ours, control = results[cell], results[other]
            return spread(
                [100 * (ours[s]["test_accuracy"] - control[s]["test_accuracy"]) for s in ours]
            )
    return "-"


def _table_1(cells, results, title):
    """Returns Table 1 in Markdown: accuracy at widths that were not trained; paper in brackets."""
    widths = list(tables.READ_AT["W2AF"])
    lines = [
        f"{title}; test accuracy in %, (paper)",
        "",
        f"| trained | {' | '.join(f'read at {width}' for width in widths)} |",
        "| --- " * (len(widths) + 1) + "|",
    ]
    for cell in cells:
        texts = []
        for width in widths:
            values = [100 * figures["read_at"][width] for figures in results[cell].values()]
            texts.append(f"{spread(values)} ({tables.READ_AT[cell.row][width]})")
        lines.append(f"| {cell.row} | {' | '.join(texts)} |")
    return "\n".join(lines)
