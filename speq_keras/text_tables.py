"""Tables as plain text."""


def aligned(cells, left):
    """Returns a line per row, with every column as wide as its longest text.

    Args:
        cells: Rows of texts, all with the same number of columns.
        left: Indices of the left-aligned columns; the others are right-aligned.

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


def table(cells, left):
    """Returns the lines of a table with a rule below its header, its first row.

    Args:
        cells: As in `aligned`.
        left: How many columns, from the first on, are left-aligned.

    Example:
        >>> table([("layer", "bits"), ("a", "3")], left=1)
        ['layer  bits', '-----  ----', 'a         3']
    """
    head, *rows = cells
    rule = ["-" * max(map(len, column)) for column in zip(*cells, strict=True)]
    return aligned([head, rule, *rows], left=range(left))
