"""Exported files are whole or not there."""

import os
import re
import signal
import subprocess
import sys

import pytest
from fresh_process import run

from speq_keras.export.files import check_path, write_safely

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


# ---- what goes wrong on the way --------------------------------------------------------------

# Writes 64 MB in small steps and says when it is in the middle.
SLOW_WRITER = """
import io, os, sys, time
from speq_keras.export import files

class Slow(io.FileIO):
    def write(self, content):
        for start in range(0, len(content), 2**20):
            super().write(content[start:start + 2**20])
            print("wrote", flush=True)
            time.sleep(0.05)

os.fdopen = lambda number, mode: Slow(number, mode)
files.write_safely(sys.argv[1], bytes(2**26))
"""


@pytest.mark.slow  # a process of its own
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
from speq_keras.export.files import write_safely

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, as on a full disk, instead of a signal
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    write_safely(sys.argv[1], bytes(5000))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.slow  # a process of its own
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
