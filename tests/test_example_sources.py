"""The sources of the examples and the code on the pages: public names, and no list twice."""

import ast
import pathlib
import re

import pytest
from public_api import is_public

import speq_keras

ROOT = pathlib.Path(__file__).parent.parent
PROGRAMS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/**/*.py"))
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*.md"))
PAGES = ["README.md", *(page for page in PAGES if not page.endswith("contributing.md"))]
REGISTRIES = {
    "WEIGHT_QUANTIZERS": speq_keras.quantizers.WEIGHT_QUANTIZERS,
    "ACTIVATION_QUANTIZERS": speq_keras.quantizers.ACTIVATION_QUANTIZERS,
    "METHODS": speq_keras.losses.METHODS,
    "STORAGES": speq_keras.export.STORAGES,
}


def used_names(tree):
    """Yields the dotted names of the package that some code imports or reads."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "speq_keras":
                    aliases[alias.asname or "speq_keras"] = alias.name if alias.asname else None
                    yield alias.name
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "speq_keras":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", ast.unparse(node)):
            first, _, rest = ast.unparse(node).partition(".")
            if first in aliases:
                yield f"{aliases[first] or first}.{rest}"


def code_of(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def not_public(tree):
    return sorted({name for name in used_names(tree) if not is_public(name)})


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_uses_public_names_only(program):
    assert not_public(ast.parse((ROOT / program).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_uses_public_names_only(page):
    assert not_public(ast.parse(code_of(page))) == []


@pytest.mark.parametrize(
    "code",
    [
        "from speq_keras.processes import is_first_process",
        "import speq_keras.layers",
        "import speq_keras\nspeq_keras.graph.read_graph(model)",
        "import speq_keras.tfmot as tfmot\ntfmot.layout.find()",
    ],
)
def test_what_is_not_public_is_found(code):
    assert not_public(ast.parse(code))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_takes_lists_of_names_from_their_registry(program):
    tree = ast.parse((ROOT / program).read_text(encoding="utf-8"))
    written = [
        {x.value for x in node.elts if isinstance(x, ast.Constant) and isinstance(x.value, str)}
        for node in ast.walk(tree)
        if isinstance(node, ast.Tuple | ast.List)
    ]
    repeated = [
        (name, sorted(texts))
        for texts in written
        for name, registry in REGISTRIES.items()
        if len(texts & set(registry)) > 1 and len(texts - set(registry)) == 0
    ]
    assert repeated == []
