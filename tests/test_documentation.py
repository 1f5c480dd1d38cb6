"""What the documents show is what runs."""

import pathlib
import re

import keras
import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def marked_block(name):
    return README.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]


# MobileNetV2 is not trained to convergence by an example; that its ranges are rough is no news.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_python_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "model.keras").is_file()
    assert (tmp_path / "model.tflite").is_file()
    assert names["classes"].shape == (64,)


def test_the_readme_has_at_most_twelve_lines_of_code():
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize("name", ["example-command", "test-command"])
def test_each_of_the_two_commands_stands_on_one_line(name):
    (command,) = re.findall(r"```bash\n(.*?)\n```", marked_block(name), re.DOTALL)
    assert "\n" not in command
    assert command.startswith("python3 -m venv")


def test_the_programs_that_the_readme_names_exist():
    names = set(re.findall(r"(?:examples|tests|\.ci)/[\w/.]+\w", README))
    assert names
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_every_program_is_listed_for_those_who_look_for_one():
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    programs = [
        path
        for path in (ROOT / "examples").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    assert len(programs) >= 5
    assert [path.name for path in programs if path.name not in listed] == []
