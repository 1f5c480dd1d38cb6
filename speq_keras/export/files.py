"""Files that are whole or not there."""

import contextlib
import os
import pathlib
import tempfile

from speq_keras._checks import describe


def check_path(path, *, name="path", suffix=".tflite"):
    """Returns `path` as a `pathlib.Path` after checking that an export can end there.

    Called before any work is done: minutes of folding should not end in a typing error.

    Raises:
        TypeError: If `path` is no path.
        ValueError: If it does not end in `suffix`, its folder does not exist or cannot be written
            to, or it is a folder itself.
    """
    rule = f"`{name}` must be a file that ends in {suffix}, in a folder that exists."
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{rule} {describe(**{name: path})}")
    received = describe(**{name: os.fspath(path)})
    path = pathlib.Path(path)
    if path.suffix != suffix:
        raise ValueError(f"{rule} {received} Append {suffix}.")
    if path.is_dir():
        raise ValueError(f"{rule} {received} This is a folder: name a file in it.")
    if not path.parent.is_dir():
        raise ValueError(f"{rule} {received} Create {str(path.parent)!r} first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{rule} {received} No file may be written to {str(path.parent)!r}.")
    return path


def write_safely(path, content):
    """Writes `content` under `path`: all of it, or nothing, and then an older file is still there.

    The bytes go to a hidden file in the same folder (only there a rename is one step) and onto the
    disk, and then the file gets its name. Who is killed in between leaves at most that hidden file
    behind.

    Args:
        path: Path of the file.
        content: The bytes.

    Raises:
        TypeError, ValueError: As `check_path`.
        OSError: If the disk is full or fails; nothing is left behind.
    """
    path = check_path(path, suffix=pathlib.Path(path).suffix)
    # Through a link, so that what it points to is replaced rather than the link.
    target = pathlib.Path(os.path.realpath(path))
    number, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _permissions(target))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _permissions(path):
    """Returns the permissions of the file at `path`, or those that a new file gets."""
    with contextlib.suppress(OSError):
        return path.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder):
    """Puts the new name onto the disk too, where the system can do that to a folder."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
