"""`examples/contributing.md`: its steps are followed literally, on a copy of the package."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from test_imports import STAIRCASE

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / "examples" / "contributing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
FILE = re.compile(r"# (\S+\.py)\n")
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


def changed(source, hunk):
    """Returns `source` after one hunk of a diff, whose old lines have to be there once."""
    lines = hunk.strip("\n").splitlines()
    old, new = (
        "".join(line[1:] + "\n" for line in lines if line[:1] in (" ", sign)) for sign in "-+"
    )
    assert source.count(old) == 1, f"these lines have to be there once:\n{old}"
    return source.replace(old, new)


def follow(folder):
    """Writes the files of the page, and makes its changes, in the order of the page."""
    for kind, text in BLOCKS:
        if kind == "python" and FILE.match(text):
            name, content = FILE.match(text).group(1), text.split("\n", 1)[1]
            assert not (folder / name).exists()
            (folder / name).write_text(content, encoding="utf-8")
        if kind == "diff":
            for part in re.split(r"^--- ", text, flags=re.MULTILINE)[1:]:
                name, *hunks = re.split(r"^@@\n", part, flags=re.MULTILINE)
                path = folder / name.strip()
                source = path.read_text(encoding="utf-8")
                for hunk in hunks:
                    source = changed(source, hunk)
                path.write_text(source, encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Returns a copy of package and tests in which the page was followed."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pytest.ini", folder)
    for name in ("speq_keras", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    follow(folder)
    return folder


def run(command, folder):
    """Returns exit status and output of a command in a copy."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_changes_on_the_page_can_be_made(copy):
    changes = [text for kind, text in BLOCKS if kind == "diff"]
    assert len(changes) >= 3


def test_the_code_of_the_page_runs(copy):
    code = "\n".join(text for kind, text in BLOCKS if kind == "python" and not FILE.match(text))
    (copy / "page.py").write_text(code, encoding="utf-8")
    status, output = run([sys.executable, "page.py"], copy)
    assert status == 0, output


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_succeeds(copy, command):
    status, output = run(["bash", "-c", command], copy)
    assert status == 0, output


def test_the_map_has_every_room_in_its_order():
    (table,) = re.findall(r"<!-- map -->(.*?)<!-- /map -->", PAGE, re.DOTALL)
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == STAIRCASE


def test_every_section_that_the_page_promises_is_there():
    titles = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    for thing in ("a quantizer", "a layer", "an operation", "a loss", "a backend"):
        assert f"Add {thing}" in titles
