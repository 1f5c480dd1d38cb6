"""Writes examples/api.md: every public name with the first sentence of its docstring.

python tests/api.py
"""

import ast
import importlib
import inspect
import pathlib
import re
import sys

from public_api import MODULES, public_names

import speq_keras

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / "examples" / "api.md"
HEAD = """# API

Every public name, with the first sentence of its docstring and a link to its source. Written by
`python tests/api.py`, and checked by a test. `help(speq_keras.wrap)` shows the rest: arguments,
errors and an example that the tests run.
"""
TITLES = {
    "speq_keras": "`speq_keras`",
    "speq_keras.tfmot": "`speq_keras.tfmot` (needs `pip install '.[tfmot]'`)",
}
# The methods of what the functions return, beside Keras' own.
CLASSES = (speq_keras.SPEQModel, speq_keras.BitSearch)


def first_sentence(text):
    """Returns the first sentence of a docstring, on one line."""
    paragraph = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=(?<!Eq)\.) ", paragraph)[0]  # "Eq. 5" goes on
    return sentence.removesuffix(":").replace("|", "\\|")


def line(name, thing_or_text, path):
    """Returns a row of a table."""
    text = thing_or_text if isinstance(thing_or_text, str) else inspect.getdoc(thing_or_text)
    return f"| [`{name}`](../{path}) | {first_sentence(text)} |"


def path_of(thing):
    """Returns where something is defined, as a path from the top of the repository."""
    return pathlib.Path(inspect.getsourcefile(thing)).relative_to(ROOT).as_posix()


def module_rows(module):
    """Returns the rows of the public names of a module, in the order of the alphabet."""
    if module == "speq_keras.tfmot":
        return tfmot_rows()
    content = importlib.import_module(module)
    rows = []
    for name in sorted(public_names(module), key=str.lower):
        thing = getattr(content, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            rows.append(line(name, thing, path_of(thing)))
        elif (
            hasattr(content, "__all__")
            and isinstance(thing, dict | tuple)
            and all(isinstance(value, str) for value in thing)
        ):
            names = ", ".join(f"`{value!r}`" for value in thing)
            rows.append(line(name, f"The names that may be given: {names}.", path_of(content)))
    return rows


def tfmot_rows():
    """Returns the rows of `speq_keras.tfmot`, read from its sources: its package may be missing."""
    folder = ROOT / "speq_keras" / "tfmot"
    found = {}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                place = path.relative_to(ROOT).as_posix()
                found.setdefault(node.name, (ast.get_docstring(node) or "", place))
    names = sorted(public_names("speq_keras.tfmot"), key=str.lower)
    return [line(name, *found[name]) for name in names if name in found]


def method_rows(cls):
    """Returns the rows of the methods and properties that the package adds to a class."""
    rows = []
    for name in sorted(dir(cls), key=str.lower):
        owner = next((base for base in cls.__mro__ if name in vars(base)), object)
        value = inspect.getattr_static(cls, name)
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if name.startswith("_") or not owner.__module__.startswith("speq_keras"):
            continue
        if inspect.isfunction(value) and value.__doc__:
            rows.append(line(name, value, path_of(owner)))
    return rows


def page():
    """Returns the text of the page."""
    lines = HEAD.splitlines()

    def add(title, rows):
        lines.extend(["", f"## {title}", "", "| name | what it is |", "| --- | --- |", *rows])

    for module in MODULES:
        add(TITLES.get(module, f"`{module}`"), module_rows(module))
        if module == "speq_keras":
            for cls in CLASSES:
                add(f"Methods and properties of `{cls.__name__}`", method_rows(cls))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Wrote {PAGE}", file=sys.stderr)
