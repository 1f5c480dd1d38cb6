"""What the documents show is what runs."""

import pathlib
import re

import keras
import pytest
from c_compiler import compiled_bytes, needs_compiler

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    *(f"examples/{name}.md" for name in ("README", "results", "limits", "migration", "freezing")),
    *(f"examples/{name}.md" for name in ("microcontroller", "contributing", "browser/README")),
    *(f"examples/{name}.md" for name in ("recipes", "supported", "api", "training", "export")),
]


def marked_block(name):
    return README.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]


def run_the_code_of(page):
    """Runs the Python code of a page in the current folder; returns its names."""
    keras.utils.clear_session()  # layers are called conv2d, dense, ... as in a process of its own
    keras.utils.set_random_seed(0)
    names = {}
    text = (ROOT / page).read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, page, "exec"), names)
    return names


def test_the_code_of_the_readme_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_the_code_of("README.md")
    printed = capsys.readouterr().out
    assert (tmp_path / "digits.tflite").is_file()
    right = re.search(r"training graph ([\d.]+)%, folded [\d.]+%, file ([\d.]+)%", printed)
    trained, file = map(float, right.groups())
    assert trained > 88
    assert abs(trained - file) < 1

    def form(line):  # without what differs from one run to the next
        return " ".join(re.sub(r"[\d.,]+", "0", line.split(";")[0]).split())

    (shown,) = re.findall(r"```text\n(.*?)```", marked_block("output"), re.DOTALL)
    forms = {form(line) for line in printed.splitlines()}
    assert [line for line in shown.splitlines() if form(line) not in forms] == []


# What is trained for one epoch has rough ranges; that is no news.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_python_code_of_the_page_on_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_the_code_of("examples/training.md")
    assert names["model"].distillation == "cosine"
    assert (tmp_path / "model.keras").is_file()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_python_code_of_the_page_on_export_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_the_code_of("examples/export.md")
    assert names["report"].proof.holds
    assert not names["report"].accuracy.differs
    assert (tmp_path / "export.html").is_file()
    assert names["classes"].shape == (64,)


def test_the_python_code_of_the_migration_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_the_code_of("examples/migration.md")
    assert names["model"].plan().row("wide").w_bits == 8
    assert names["smaller"].proof.holds
    assert [row.type for row in names["smaller"].weights] == ["int8", "int4", "int8"]
    assert (tmp_path / "keras.tflite").is_file()


def test_the_python_code_of_the_page_on_freezing_runs():
    names = run_the_code_of("examples/freezing.md")
    assert names["model"].part("base").trainable
    assert names["model"].get_layer("base.conv").trainable


# ---- recipes -----------------------------------------------------------------------------------

RECIPES = dict(
    re.findall(
        r"^## (.*?)\n.*?```python\n(.*?)```",
        (ROOT / "examples" / "recipes.md").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
)


def test_there_is_a_recipe_for_each_task():
    assert len(RECIPES) == 6
    assert all("export_tflite" in code for code in RECIPES.values())


# The detector's boxes are not distilled, which it says.
@pytest.mark.filterwarnings("ignore:Outputs .'box'. have no logits:UserWarning")
@pytest.mark.parametrize("task", RECIPES)
def test_a_recipe_runs_and_its_file_is_what_it_trained(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    names = {"__name__": "recipe"}
    exec(compile(RECIPES[task], "recipes.md", "exec"), names)
    report = names["report"]
    assert report.proof.holds
    assert (tmp_path / report.path).is_file()
    if report.accuracy is not None:
        assert report.accuracy.file > 0.8
        assert not report.accuracy.differs


# ---- links ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (path.parent / link).exists()] == []


# ---- the page on microcontrollers -------------------------------------------------------------

MICROCONTROLLER = (ROOT / "examples" / "microcontroller.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def on_a_microcontroller(tmp_path_factory):
    """Returns the folder in which the Python code of the page has run, and its names."""
    folder = tmp_path_factory.mktemp("microcontroller")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in re.findall(r"```python\n(.*?)```", MICROCONTROLLER, re.DOTALL):
            exec(compile(block, "microcontroller.md", "exec"), names)
    return folder, names


def test_the_python_code_of_the_page_on_microcontrollers_runs(on_a_microcontroller):
    _, names = on_a_microcontroller
    report = names["report"]
    assert report.proof.holds
    assert report.accuracy.file > 0.9
    assert not report.accuracy.differs


@needs_compiler
def test_the_c_array_of_the_page_is_the_file_to_a_compiler(on_a_microcontroller, tmp_path):
    folder, _ = on_a_microcontroller
    assert compiled_bytes(folder / "digits.cc", tmp_path) == (folder / "digits.tflite").read_bytes()


def test_the_program_of_the_page_registers_what_the_file_needs(on_a_microcontroller):
    _, names = on_a_microcontroller
    (program,) = re.findall(r"```cpp\n(.*?)```", MICROCONTROLLER, re.DOTALL)
    lines = [line.strip() for line in program.splitlines() if "esolver" in line]
    lines = [line for line in lines if not line.startswith(("#include", "tflite::MicroInterp"))]
    assert lines == names["report"].micro.resolver.splitlines()
    assert names["report"].micro.resolver in MICROCONTROLLER
    (arena_kb,) = re.findall(r"arena\[(\d+) \* 1024\]", program)
    assert (names["report"].micro.arena_bytes or 0) <= int(arena_kb) * 1024


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 160


def test_the_readme_has_at_most_twelve_lines_of_code():
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize("name", ["example-command", "test-command"])
def test_each_of_the_two_commands_stands_on_one_line(name):
    (command,) = re.findall(r"```bash\n(.*?)\n```", marked_block(name), re.DOTALL)
    assert "\n" not in command
    assert command.startswith("python3 -m venv")


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    names = set(re.findall(r"(?:examples|tests|\.ci)/[\w/.]+\w", text))
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def commands_in(text):
    """Returns (program, flags) of the examples that a page runs."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    shorthands = dict(re.findall(r'^(\w)="(.*)"$', blocks, re.MULTILINE))
    for name, value in shorthands.items():
        blocks = blocks.replace(f"${name}", value)
    for line in blocks.splitlines():
        for program, rest in re.findall(r"python (examples/\S+\.py)(.*)", line):
            yield program, re.findall(r"--(\w+)", rest)


@pytest.mark.parametrize("page", PAGES)
def test_the_flags_that_a_page_shows_are_those_of_the_program(page):
    for program, flags in commands_in((ROOT / page).read_text(encoding="utf-8")):
        source = (ROOT / program).read_text(encoding="utf-8")
        known = set(re.findall(r'DEFINE_\w+\(\s*f?"([\w{}]+)"', source))
        # f"{stage}_epochs" stands for all stages.
        patterns = [re.sub(r"\{\w+\}", r"\\w+", name) for name in known]
        if "_field.name" in source:  # paper/run.py: one for every field of its scales
            patterns += re.findall(r"^    (\w+): (?:int|float)", source, re.MULTILINE)
        unknown = [f for f in flags if not any(re.fullmatch(p, f) for p in patterns)]
        assert unknown == [], program


def test_commands_are_found_on_the_page_of_results():
    text = (ROOT / "examples" / "results.md").read_text(encoding="utf-8")
    found = list(commands_in(text))
    assert len(found) >= 10
    assert sum(len(flags) for _, flags in found) >= 40


def test_every_program_is_listed_for_those_who_look_for_one():
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    programs = [
        path
        for path in (ROOT / "examples").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    ]
    assert len(programs) >= 5
    assert [path.name for path in programs if path.name not in listed] == []
