"""Reads web pages of the package."""

import html.parser


class Page(html.parser.HTMLParser):
    """Reads a page: its tables as text, the widths of its bars, the tags that are left open."""

    VOID = ("meta", "wbr")

    def __init__(self, text):
        super().__init__()
        self.tables, self.shares, self.open, self.loads = [], {}, [], []
        self.classes = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.loads += [name for name in ("src", "href") if name in attributes]
        if tag in self.VOID:
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            place = (len(self.tables) - 1, len(self.tables[-1]) - 1, len(self.tables[-1][-1]) - 1)
            self.classes[place] = attributes["class"]
            if "style" in attributes:
                self.shares[place] = float(attributes["style"].removeprefix("--share: ")[:-1])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
