"""Tables as plain text."""


def aligned(cells, left):
    """Returns a line per row, with every column as wide as its longest text.

    Args:
        cells: Rows of texts, all with the same number of columns.
        left: Numbers of the columns that are aligned on the left; the others are on the right.

    Example:
        >>> aligned([("layer", "bits"), ("a", "3")], left=[0])
        ['layer  bits', 'a         3']
    """
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
