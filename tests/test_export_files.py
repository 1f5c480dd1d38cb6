"""Exported files are whole or not there, whatever their names and whatever was there."""

import errno
import importlib
import os
import pathlib
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile

import pytest
from dense_network import quantized_model
from fresh_process import run

import speq_keras
from speq_keras.bit_search import BitSearch
from speq_keras.export.report import ExportReport
from speq_keras.files import check_folder, check_path, replacing, write_safely

OLD, NEW = b"the file before", b"the file after"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(OLD)
    return path


def names_in(path):
    return sorted(entry.name for entry in path.parent.iterdir())


def test_a_new_file_holds_the_bytes(tmp_path):
    write_safely(tmp_path / "m.tflite", NEW)
    assert (tmp_path / "m.tflite").read_bytes() == NEW


def test_an_old_file_is_replaced(path):
    write_safely(str(path), NEW)
    assert path.read_bytes() == NEW


def test_nothing_else_stays_in_the_folder(path):
    write_safely(path, NEW)
    assert names_in(path) == ["m.tflite"]


def test_a_new_file_can_be_read_by_those_that_the_umask_allows(tmp_path):
    mask = os.umask(0o027)
    try:
        write_safely(tmp_path / "m.tflite", NEW)
    finally:
        os.umask(mask)
    assert (tmp_path / "m.tflite").stat().st_mode & 0o777 == 0o640


def test_permissions_of_an_old_file_stay(path):
    path.chmod(0o604)
    write_safely(path, NEW)
    assert path.stat().st_mode & 0o777 == 0o604


def test_a_link_stays_a_link(path):
    link = path.with_name("link.tflite")
    link.symlink_to(path)
    write_safely(link, NEW)
    assert link.is_symlink()
    assert path.read_bytes() == NEW


def test_what_a_link_leads_to_is_written_in_its_own_folder(path, monkeypatch):
    (path.parent / "links").mkdir()
    link = path.parent / "links" / "link.tflite"
    link.symlink_to(path)
    made_in, mkdtemp = [], tempfile.mkdtemp
    monkeypatch.setattr(
        tempfile,
        "mkdtemp",
        lambda dir, **names: (made_in.append(dir), mkdtemp(dir=dir, **names))[1],
    )
    write_safely(link, NEW)
    assert made_in == [path.parent]  # where the links are, nobody may be allowed to write
    assert names_in(path) == ["links", "m.tflite"]
    assert names_in(link) == ["link.tflite"]
    assert path.read_bytes() == NEW


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives away")
@pytest.mark.parametrize("allowed", [True, False])
def test_the_owner_of_an_old_file_stays_where_the_system_lets_it(allowed, path, monkeypatch):
    os.chown(path, 12, 34)
    path.chmod(0o640)
    if not allowed:
        monkeypatch.setattr(os, "chown", lambda *_: os.stat("/nothing/here"))  # an OSError
    write_safely(path, NEW)
    found = path.stat()
    assert (found.st_uid, found.st_gid) == ((12, 34) if allowed else (os.getuid(), os.getgid()))
    assert found.st_mode & 0o777 == 0o640
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("name", ["m" * 248 + ".tflite", "ö" * 124 + ".tflite"])
def test_a_name_of_255_bytes_is_written(name, tmp_path):
    write_safely(tmp_path / name, NEW)
    assert os.listdir(tmp_path) == [name]


def test_several_files_go_beside_the_last_one(path):
    with replacing(path) as temporary:
        temporary.write_bytes(NEW)
        temporary.with_name("beside").write_bytes(NEW)
    assert names_in(path) == ["beside", "m.tflite"]


def test_a_writer_that_wrote_nothing_changes_nothing(path):
    with replacing(path):
        pass
    assert names_in(path) == ["m.tflite"]
    assert path.read_bytes() == OLD


def test_of_several_files_none_is_replaced_where_one_cannot_be(path):
    os.mkfifo(path.with_name("beside"))

    def write():
        with replacing(path) as temporary:
            temporary.write_bytes(NEW)
            temporary.with_name("beside").write_bytes(NEW)

    with pytest.raises(ValueError, match=r"beside'\. This is a named pipe: name a regular file\."):
        write()
    assert path.read_bytes() == OLD
    assert names_in(path) == ["beside", "m.tflite"]


def test_a_file_of_several_that_lies_on_another_disk_is_copied_there(path, monkeypatch):
    disk = path.parent / "disk"
    disk.mkdir()
    (path.parent / "beside").symlink_to(disk / "target")
    replace = os.replace

    def replace_on_one_disk(source, target):
        if (disk in pathlib.Path(source).parents) != (disk in pathlib.Path(target).parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_on_one_disk)
    with replacing(path) as temporary:
        temporary.write_bytes(NEW)
        temporary.with_name("beside").write_bytes(NEW)
    assert names_in(path) == ["beside", "disk", "m.tflite"]
    assert (disk / "target").read_bytes() == NEW
    assert os.listdir(disk) == ["target"]


# ---- what goes wrong on the way --------------------------------------------------------------

# Writes 64 MB in small steps and says when it is in the middle.
SLOW_WRITER = """
import sys, time
from speq_keras.files import replacing

with replacing(sys.argv[1]) as temporary, open(temporary, "wb", buffering=0) as file:
    for _ in range(64):
        file.write(bytes(2**20))
        print("wrote", flush=True)
        time.sleep(0.05)
"""


@pytest.mark.parametrize("existed", [True, False])
def test_who_is_killed_in_the_middle_leaves_no_partial_file(path, existed):
    if not existed:
        path.unlink()
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, path], stdout=subprocess.PIPE, text=True
    )
    for _ in range(3):
        assert process.stdout.readline() == "wrote\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert path.exists() == existed
    assert not existed or path.read_bytes() == OLD


FULL_DISK = """
import resource, signal, sys
from speq_keras.files import write_safely

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, as on a full disk, instead of a signal
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    write_safely(sys.argv[1], bytes(5000))
except OSError as error:
    print(type(error).__name__)
"""


def test_a_full_disk_is_an_os_error_and_leaves_the_old_file(path):
    assert run(FULL_DISK, path).stdout == "OSError\n"
    assert path.read_bytes() == OLD
    assert names_in(path) == ["m.tflite"]


def test_a_disk_that_fails_when_it_has_to_keep_the_bytes_leaves_the_old_file(path, monkeypatch):
    def fail(number):
        raise OSError("Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_safely(path, NEW)
    assert path.read_bytes() == OLD
    assert names_in(path) == ["m.tflite"]


def test_the_bytes_are_on_the_disk_before_the_file_gets_its_name(path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("fsync"), fsync(number)))
    monkeypatch.setattr(os, "replace", lambda *ends: (events.append("replace"), replace(*ends)))
    write_safely(path, NEW)
    assert events[:2] == ["fsync", "replace"]


# ---- bad paths -------------------------------------------------------------------------------

RULE = "`path` must be a file that ends in .tflite, in a folder that exists. Received: "


def refused(path, sentence, error=ValueError):
    return pytest.raises(error, match=f"^{re.escape(RULE + sentence.format(path))}$")


@pytest.mark.parametrize("name", ["m", "m.h5", "m.tflite.gz", "m.TFLITE", ".tflite"])
def test_a_path_without_tflite_at_its_end_is_refused(tmp_path, name):
    path = str(tmp_path / name)
    with refused(path, "path={!r}. Append .tflite."):
        check_path(path)


def test_an_empty_path_is_refused():
    with refused("", "path={!r}. Append .tflite."):
        check_path("")


def test_a_folder_is_refused(tmp_path):
    path = tmp_path / "m.tflite"
    path.mkdir()
    with refused(str(path), "path={!r}. This is a folder: name a file in it."):
        check_path(path)


def test_a_missing_folder_is_refused(tmp_path):
    path = tmp_path / "missing" / "m.tflite"
    with refused(str(path), f"path={{!r}}. Create {str(path.parent)!r} first."):
        check_path(path)


def test_a_folder_below_a_file_is_refused(path):
    below = path / "m.tflite"
    with refused(str(below), f"path={{!r}}. Create {str(path)!r} first."):
        check_path(below)


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write everywhere
    path = tmp_path / "m.tflite"
    with refused(str(path), f"path={{!r}}. No file may be written to {str(tmp_path)!r}."):
        check_path(path)


@pytest.mark.parametrize("path", [None, 3, b"m.tflite", ["m.tflite"]])
def test_what_is_no_path_is_a_type_error(path):
    with refused(path, "path={!r}.", TypeError):
        check_path(path)


def test_a_bad_path_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="Create '.*missing' first"):
        write_safely(tmp_path / "missing" / "m.tflite", NEW)
    assert not list(tmp_path.iterdir())


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # a hundred letters are the most


# {what is there: (makes it, how the sentence goes on)}
ODD = {
    "pipe": (os.mkfifo, "This is a named pipe: name a regular file."),
    "socket": (make_socket, "This is a socket: name a regular file."),
    "device": (lambda path: path.symlink_to(os.devnull), "This is a device: name a regular file."),
    "circle": (lambda path: path.symlink_to(path), "This is a link that leads in a circle: "),
    "lost": (lambda path: path.symlink_to(path.parent / "no" / "m"), "Create '{parent}/no' first."),
    "long": (None, "The name is too long for the file system: shorten it."),
    "NUL": (None, "No file can have this name: leave out NUL and invalid characters."),
}
ODD_NAMES = {"long": "m" * 300, "NUL": "m\0"}


def odd_path(folder, odd, by_link, suffix):
    """Returns the path of something odd, and its sentence."""
    make, sentence = ODD[odd]
    path = folder / f"{ODD_NAMES.get(odd, 'm')}{suffix}"
    if make:
        make(folder / "odd" if by_link else path)
        if by_link:
            path.symlink_to("odd")
    return path, re.escape(sentence.format(parent=folder))


@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_is_refused(odd, by_link, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, sentence = odd_path(tmp_path, odd, by_link, ".tflite")
    with pytest.raises(ValueError, match=f"^{re.escape(RULE)}path='.*\\. {sentence}"):
        check_path(path)
    with pytest.raises(ValueError, match=sentence):
        write_safely(path, NEW)


def test_a_read_only_file_is_refused(path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda given, mode: given != path)  # for root, none is
    with refused(
        str(path), "path={!r}. The file is read-only: change its permissions, or name another."
    ):
        check_path(path)


class BytesPath(os.PathLike):
    def __fspath__(self):
        return b"m.tflite"


def test_a_path_of_bytes_is_a_type_error():
    with pytest.raises(TypeError, match="must be a file that ends in .tflite.*path=b'm.tflite'"):
        check_path(BytesPath())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (pathlib.Path.touch, "This is a file."),
        (os.mkfifo, "This is a file."),
        (lambda path: path.symlink_to("missing"), "This is a link that leads nowhere."),
        (lambda path: path.parent.rmdir() or path.parent.touch(), "Create '{parent}' first."),
    ],
)
def test_what_is_no_folder_is_refused(make, sentence, tmp_path):
    path = tmp_path / "a" / "m"
    path.parent.mkdir()
    make(path)
    sentence = sentence.format(parent=path.parent)
    rule = f"`path` must be a folder, which need not exist yet. Received: path={str(path)!r}. "
    with pytest.raises(ValueError, match=f"^{re.escape(rule + sentence)}$"):
        check_folder(path)


# ---- all that write --------------------------------------------------------------------------

# The package's attribute of that name is the function.
export_module = importlib.import_module("speq_keras.export.export")


@pytest.fixture(scope="module")
def model():
    return quantized_model()


WRITERS = {
    "export_tflite": (".tflite", lambda model, path: model.export_tflite(path)),
    "self_test": (
        ".npz",
        lambda model, path: model.export_tflite(path.with_name("ok.tflite"), self_test=path),
    ),
    "runner of the self_test": (
        "_runner.py",
        lambda model, path: model.export_tflite(
            path.with_name("ok.tflite"),
            self_test=path.with_name(path.name.removesuffix("_runner.py") + ".npz"),
        ),
    ),
    "to_html": (".html", lambda model, path: model.plan().to_html(path)),
    # Before they look at themselves.
    "to_html of an export": (".html", lambda model, path: ExportReport.to_html(None, path)),
    "to_model_explorer": (".json", lambda model, path: ExportReport.to_model_explorer(None, path)),
    "plot": (".png", lambda model, path: BitSearch.plot(None, path)),
}


@pytest.mark.parametrize("by_link", [False, True])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_refuses_before_the_work(writer, odd, by_link, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    for module, work in ((export_module, "fold"), (speq_keras.reporting, "report_page")):
        monkeypatch.setattr(module, work, lambda *_, **__: pytest.fail("began to work"))
    suffix, write = WRITERS[writer]
    path, sentence = odd_path(tmp_path, odd, by_link, suffix)
    before = os.listdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        write(model, path)
    assert os.listdir(tmp_path) == before


def test_a_self_test_whose_runner_has_too_long_a_name_is_refused(tmp_path, model):
    name = "m" * 251 + ".npz"  # 255 letters; _runner.py has seven more than .npz
    with pytest.raises(ValueError, match="self_test's runner='.*. The name is too long"):
        model.export_tflite(tmp_path / "m.tflite", self_test=tmp_path / name)
    assert not os.listdir(tmp_path)


# ---- names as data ---------------------------------------------------------------------------

NAMES = [
    "it's",
    'quo"te',
    "back\\slash",
    "new\nline",
    "carriage\rreturn",
    'a"+print("code in a name")+"',
    '"""',
    "\\",
    "{model}%s",
    "größe \U0001f600 \u2028",
    "\udcff",  # a byte that is no text
    '"SELF_TEST.npz"',  # what the source of the runner has in the other's place
    '"MODEL.tflite"',
    "MODEL",
    "-",
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model):
    """A file and its self test, as bytes; and the runner under its own name."""
    path = tmp_path_factory.mktemp("exported")
    model.export_tflite(path / "m.tflite", self_test=path / "t.npz")
    return [(path / name).read_bytes() for name in ("m.tflite", "t.npz")]


@pytest.mark.parametrize("name", NAMES)
def test_the_runner_runs_whatever_the_names_of_its_files(
    name, tmp_path, exported, model, monkeypatch, capsys
):
    model.export_tflite(tmp_path / f"{name}.tflite", self_test=tmp_path / f"{name}.npz")
    expected = {f"{name}.tflite", f"{name}.npz", f"{name}_runner.py"}
    assert set(os.listdir(tmp_path)) == expected
    assert (tmp_path / f"{name}.tflite").read_bytes() == exported[0]
    (tmp_path / f"{name}_runner.py").rename(tmp_path / "runner.py")
    monkeypatch.setattr(sys, "argv", ["runner.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tmp_path / "runner.py"), run_name="__main__")
    assert ended.value.code is False  # no output differs
    assert re.fullmatch(r"\d+ output values compared, 0 differ\n", capsys.readouterr().out)
