"""A report as a self-contained web page: one file, no scripts, no external resources."""

import html
import re

from speq_keras.files import check_path
from speq_keras.ops import MAX_BITS
from speq_keras.processes import path_to_write

# Number of text columns in a report's tables.
LAYER_WORDS = 4
RANGE_WORDS = 3

_WORD_ENDS = re.compile(r"(?<=[_/.])(?=\w)|(?<=[a-z])(?=[A-Z])")

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a90d955; --float: #d9804a55; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; }
dl { display: flex; flex-wrap: wrap; gap: 1rem; }
dl div { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem 1rem; }
dt { opacity: .75; font-size: .85rem; } dd { margin: 0; font-size: 1.25rem; }
dd small { display: block; font-size: .8rem; opacity: .75; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { text-align: left; position: sticky; top: 0; z-index: 1; background: Canvas; }
th.number, td.number { text-align: right; min-width: 4rem; }
td.text { white-space: normal; overflow-wrap: break-word; min-width: 5.5rem; max-width: 22rem; }
td[style] { background: linear-gradient(90deg, var(--fill, var(--bar)) var(--share), #0000 0)
            no-repeat .2rem 50% / calc(100% - .4rem) 70%; }
td.float { --fill: var(--float); }
tbody tr:hover { background: #8881; }
/* On a phone the boxes form two columns, and a table scrolls under its first column. */
@media (max-width: 60rem) {
  body { margin: 1rem auto; font-size: 14px; }
  dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .5rem; }
  dl div { padding: .4rem .6rem; } dd { overflow-wrap: anywhere; font-size: 1.1rem; }
  .wide { overflow-x: auto; }
  th, td { padding: .25rem .4rem; }
  td:first-child, th:first-child { position: sticky; left: 0; z-index: 1; background: Canvas;
                                   border-right: 1px solid var(--line); }
  td.text:first-child { min-width: 0; max-width: 8.5rem; }
}
"""


def report_page(report):
    """Returns the page of a `reporting.Report`."""
    totals = report.totals
    parts = [
        facts(
            [
                ("parameters", f"{totals['parameters']:,}", ""),
                (
                    "size, packed",
                    f"{totals['bytes'] / 1000:,.1f} kB",
                    f"{totals['size_ratio']:.1f} times smaller than float32",
                ),
                *_file_sizes(report),
                ("multiply-accumulates", f"{totals['macs'] / 1e6:,.2f} M", "per example"),
                (
                    "bit operations",
                    f"{totals['bitops'] / 1e9:,.3f} G",
                    f"{totals['bitops_ratio']:.1f} times fewer than float32",
                ),
            ]
        ),
        *([paragraph(str(report.file))] if report.file is not None else []),
        heading("Layers"),
        table(report.layer_cells(), _layer_bars(report), words=LAYER_WORDS),
    ]
    if report.ranges:
        cells = report.range_cells()
        column = cells[0].index("bits")
        bars = {(row, column): _share(range_.bits) for row, range_ in enumerate(report.ranges)}
        parts += [heading("Activation quantizers"), table(cells, bars, words=RANGE_WORDS)]
    return page(f"{report.title.capitalize()} of {report.model or 'a model'}", parts)


def _file_sizes(report):
    """Returns the box with the size of the file, if there will be one."""
    if report.file is None or not report.file.bytes:
        return []
    first, *others = [f"{size / 1000:,.1f} kB {name}" for name, size in report.file.bytes.items()]
    return [("TFLite file", first, ", ".join(others))]


def _layer_bars(report):
    """Returns the bars of the layers' table: {(row, column): share}."""
    rows, header = report.rows, report.layer_cells()[0]
    most_bytes = max((row.bytes for row in rows), default=0)
    most_bitops = max((row.bitops or 0 for row in rows), default=0)
    bars = {}
    for number, row in enumerate(rows):
        if row.has_width:
            bars[number, header.index("W")] = _share(row.w_bits)
            bars[number, header.index("A")] = _share(row.a_bits)
        if row.bytes:
            bars[number, header.index("kB")] = row.bytes / most_bytes
        if row.bitops:
            bars[number, header.index("GBitOP")] = row.bitops / most_bitops
    return bars


def _share(bits):
    return 1.0 if bits is None else bits / MAX_BITS


def written(path, make_page):
    """Returns a page, after writing it to a file.

    Args:
        path: File, ".html", checked before the page is made; None: no file. It is written
            completely or not at all; of several processes the first one writes.
        make_page: Function without arguments that returns the page.

    Raises:
        TypeError, ValueError: If no file can be written to `path`.
    """
    if path is None:
        return make_page()
    path = check_path(path, suffix=".html")
    text = make_page()
    with path_to_write(path) as target:
        target.write_bytes(text.encode())
    return text


def page(title, parts):
    """Returns a whole page.

    Args:
        title: Text.
        parts: HTML strings from `facts`, `heading` and `table`.

    Example:
        >>> page("a < b", [heading("Layers")]).splitlines()[-1]
        '<h1>a &lt; b</h1><h2>Layers</h2></body></html>'
    """
    title = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )


def heading(text):
    """Returns a heading of the second level."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text):
    """Returns a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def facts(rows):
    """Returns a row of boxes: a name, a value and a remark in each.

    Args:
        rows: Triples of texts; the remark may be empty.
    """
    boxes = [
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}"
        f"<small>{html.escape(remark)}</small></dd></div>"
        for name, value, remark in rows
    ]
    return f"<dl>{''.join(boxes)}</dl>"


def table(cells, bars, *, words=3):
    """Returns a table.

    Args:
        cells: Rows of texts; the first one is the header.
        bars: {(row, column): filled share of the cell, 0 to 1}, rows counted without the header. A
            cell whose text begins with "float" gets another colour.
        words: Number of text columns, or a collection of their indices.

    Example:
        >>> text = table([("layer", "type", "", "kB"), ("a<b", "Dense", "", "3")], {(0, 3): 0.5})
        >>> "a&lt;b" in text, "--share: 50.0%" in text
        (True, True)
    """
    words = range(words) if isinstance(words, int) else words
    kinds = ["text" if column in words else "number" for column in range(len(cells[0]))]
    head = "".join(
        f'<th class="{kind}">{html.escape(text)}</th>'
        for kind, text in zip(kinds, cells[0], strict=True)
    )
    lines = [
        "".join(
            _cell(text, kind, bars.get((number, column)))
            for column, (kind, text) in enumerate(zip(kinds, row, strict=True))
        )
        for number, row in enumerate(cells[1:])
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(text, kind, share):
    shown = _breakable(text) if kind == "text" else html.escape(text)
    if share is None:
        return f'<td class="{kind}">{shown}</td>'
    name = f"{kind} float" if text.startswith("float") else kind
    return f'<td class="{name}" style="--share: {100 * share:.1f}%">{shown}</td>'


def _breakable(text):
    """Returns HTML whose long names can break between words: after _, / and ., before capitals.

    Example:
        >>> _breakable("conv2_bn/GlobalAveragePooling2D")
        'conv2_<wbr>bn/<wbr>Global<wbr>Average<wbr>Pooling2D'
    """
    return "<wbr>".join(map(html.escape, _WORD_ENDS.split(text)))
