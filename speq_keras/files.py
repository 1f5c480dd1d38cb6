"""Files that are complete or absent: the only way in which the package writes files.

check_path, check_folder    before the work: an error if nothing can be written
replacing                   a temporary path, whose contents are moved into place
write_safely                the same for bytes
"""

import contextlib
import errno
import os
import pathlib
import shutil
import stat
import tempfile

from speq_keras._checks import describe

_HIDDEN = ".speq_"  # prefix of the hidden folders; mkdtemp appends eight letters
_ODD_KINDS = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


# ---- before the work -------------------------------------------------------------------------


def check_path(path, *, name="path", suffix=".tflite", in_new_folder=False):
    """Returns `path` as a `pathlib.Path` after checking that a file can be written there.

    Called before any work is done: minutes of folding should not end in a typo. A link to a regular
    file counts as that file.

    Args:
        path: The path.
        name: Name of the argument, for the error.
        suffix: Required end of the name; None: any.
        in_new_folder: Whether the writer creates missing folders.

    Raises:
        TypeError: If `path` is not a path.
        ValueError: If it does not end in `suffix`, its folder does not exist or is not writable,
            the existing file is not a regular file or is read-only, or the system rejects the name.
    """
    ending = "" if suffix is None else f" that ends in {suffix}"
    comma = "," if ending else ""
    where = "" if in_new_folder else f"{comma} in a folder that exists"
    rule = f"`{name}` must be a file{ending}{where}."
    path, received = _as_path(path, name, rule)
    if suffix is not None and path.suffix != suffix:
        raise ValueError(f"{rule} {received} Append {suffix}.")
    problem = _wrong_name(path) or _wrong_file(path)
    if not problem:
        is_link = path.is_symlink()
        folder = _target(path).parent if is_link else path.parent
        problem = _wrong_folder(folder, in_new_folder and not is_link)
    if problem:
        raise ValueError(f"{rule} {received} {problem}")
    return path


def check_folder(path, *, name="path"):
    """Returns `path` as a `pathlib.Path` after checking that it is a folder or can become one.

    Raises:
        TypeError: If `path` is not a path.
        ValueError: If something else is there, nothing can be written there, or the system rejects
            the name.
    """
    rule = f"`{name}` must be a folder, which need not exist yet."
    path, received = _as_path(path, name, rule)
    problem = _wrong_name(path)
    if not problem and not path.is_dir() and os.path.lexists(path):
        problem = "This is a file." if path.exists() else "This is a link that leads nowhere."
    problem = problem or _wrong_folder(path, may_be_new=True)
    if problem:
        raise ValueError(f"{rule} {received} {problem}")
    return path


def _as_path(path, name, rule):
    """Returns (`path` as a `pathlib.Path`, "Received: ...")."""
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    received = describe(**{name: path})
    if not isinstance(path, str):
        raise TypeError(f"{rule} {received}")
    return pathlib.Path(path), received


def _wrong_name(path):
    """Returns a sentence if the system rejects the name, or its folder may not be searched."""
    # The path must not be too long inside the hidden folder, either.
    for place in (path, path.parent / f"{_HIDDEN}{'x' * 8}" / path.name):
        try:
            os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            pass  # a new file, or a problem of the folder
        except ValueError:
            return "No file can have this name: leave out NUL and invalid characters."
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return "The name is too long for the file system: shorten it."
            return f"{error.strerror}: name another file."
    return None


def _wrong_file(path):
    """Returns a sentence if `path` is something that a file must not replace."""
    if path.is_dir():
        return "This is a folder: name a file in it."
    target = _target(path)
    if target.is_symlink():
        return "This is a link that leads in a circle: name another file."
    if not target.exists():
        return None
    mode = target.stat().st_mode
    for is_kind, kind in _ODD_KINDS.items():
        if is_kind(mode):
            return f"This is {kind}: name a regular file."
    if not os.access(target.parent, os.W_OK) or os.access(target, os.W_OK):
        return None
    return "The file is read-only: change its permissions, or name another."


def _wrong_folder(folder, may_be_new):
    """Returns a sentence if no file can be written to `folder`."""
    while may_be_new and not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        if folder.parts[0].startswith("~"):
            return "A leading `~` is not expanded: call `os.path.expanduser` on the path."
        return f"Create {str(folder)!r} first."
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"No file may be written to {str(folder)!r}."
    return None


def _target(path):
    """Returns what `path` leads to: a link is never replaced itself."""
    return pathlib.Path(os.path.realpath(path))


# ---- writing ---------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path):
    """Gives a temporary path; the file or folder made there replaces `path` if all went well.

    The temporary path ends in the name of `path` (by which Keras recognizes formats). It is in a
    hidden folder next to it, because a move is atomic only within a file system, and a hidden file
    would need a longer name than the file. The content is flushed to disk before it gets its name.
    A process killed in between leaves at most the hidden folder.

    A set of several files is written first, and then moved file by file: into a folder that exists,
    where everything else is kept; and next to `path` for files written next to the temporary path.
    A kill within these few calls can leave the set half old and half new, with each file complete.

    Permissions, and if the system allows it the owner, are copied from the older file.

    Args:
        path: Path of a file, or of a folder.

    Raises:
        TypeError, ValueError: As in `check_path`, at the latest before anything is replaced.
        OSError: If the disk is full or fails; nothing is left behind.
    """
    path = pathlib.Path(path)
    target = _target(path)
    is_folder = target.is_dir()
    home = target if is_folder else target.parent
    hidden = pathlib.Path(tempfile.mkdtemp(dir=home, prefix=_HIDDEN))
    temporary = hidden / ("folder" if is_folder else path.name)
    try:
        yield temporary
        beside = [entry for entry in sorted(hidden.iterdir()) if entry != temporary]
        moves = [move for entry in beside for move in _moves(entry, path.parent / entry.name)]
        if temporary.exists():  # last, because it may name the others
            moves += _moves(temporary, path)
        for made, place in moves:
            check_folder(place) if made.is_dir() else check_path(place, suffix=None)
            _sync(made)
        for made, place in moves:
            _move(made, _target(place))
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def write_safely(path, content):
    """Writes `content` to `path`: all of it or nothing, and then an older file is still there.

    Args:
        path: Path of the file.
        content: The bytes.

    Raises:
        TypeError, ValueError: As in `check_path`.
        OSError: If the disk is full or fails; nothing is left behind.
    """
    path = check_path(path, suffix=None)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _moves(made, place):
    """Yields (file or folder, its destination); for an existing folder, entry by entry."""
    if made.is_dir() and place.is_dir():
        for entry in sorted(made.iterdir()):
            yield from _moves(entry, place / entry.name)
    else:
        yield made, place


def _move(made, target):
    _keep_permissions(made, target)
    try:
        os.replace(made, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # One of several files is a link to another disk.
        with replacing(target) as temporary:
            shutil.copyfile(made, temporary)
    _sync_entry(target.parent)


def _keep_permissions(made, target):
    """Gives a file the permissions and the owner of the one that it replaces."""
    try:
        old, new = target.stat(), made.stat()
    except FileNotFoundError:
        return
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with contextlib.suppress(OSError):
            os.chown(made, old.st_uid, old.st_gid)
    os.chmod(made, old.st_mode & 0o777)


def _sync(made):
    """Flushes a file, or everything in a folder, to disk."""
    for path in [made, *made.rglob("*")]:
        if path.is_dir():
            _sync_entry(path)
            continue
        number = os.open(path, os.O_RDWR)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _sync_entry(folder):
    """Flushes the names in a folder to disk too, if the system supports that."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
