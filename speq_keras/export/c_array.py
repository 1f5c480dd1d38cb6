"""Writes a TFLite file as a C array for microcontrollers: a source and a header."""

import os
import re

from speq_keras._checks import describe
from speq_keras._version import __version__
from speq_keras.files import check_path, replacing

SUFFIXES = (".cc", ".cpp")
ALIGNMENT_BYTES = 16  # required by TensorFlow Lite Micro
_BYTES_PER_LINE = 16
# What can follow "g_" in C++: double underscores are reserved.
_NAME = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*")

_SOURCE = """\
// Written by speq_keras {version}.

#include "{name}.h"

alignas({alignment}) const unsigned char g_{name}[] = {{
{rows}
}};
"""
_HEADER = """\
// Written by speq_keras {version}: a TFLite file of {size:,} bytes.

#ifndef SPEQ_KERAS_{guard}_H_
#define SPEQ_KERAS_{guard}_H_

constexpr unsigned int g_{name}_size = {size};
extern const unsigned char g_{name}[];

#endif  // SPEQ_KERAS_{guard}_H_
"""


def check_c_array_path(path, *, name="path"):
    """Returns (path of the source, path of the header), after checking that both can be written.

    Args:
        path: Path of the source; the array is named after it: "digits.cc" has `g_digits`.
        name: Name of the argument, for the error.

    Raises:
        TypeError: If `path` is not a path.
        ValueError: If it has none of the `SUFFIXES`, its name cannot be part of a C++ name, or one
            of the two files cannot be written.
    """
    plain = os.fspath(path) if isinstance(path, os.PathLike) else path
    is_cpp = isinstance(plain, str) and plain.endswith(SUFFIXES[1])
    suffix = SUFFIXES[1] if is_cpp else SUFFIXES[0]
    path = check_path(path, name=name, suffix=suffix)
    if not _NAME.fullmatch(path.stem):
        better = "_".join(re.findall("[A-Za-z0-9]+", path.stem)) or "model"
        raise ValueError(
            f"`{name}` must be a file whose name, without {suffix}, can follow g_ in a name of "
            "C++: letters from a to z, digits, and single underscores between them. "
            f"{describe(**{name: str(path)})} Call it {better}{suffix}."
        )
    return path, check_path(path.with_suffix(".h"), name=f"{name}'s header", suffix=".h")


def write_c_array(content, path):
    """Writes the bytes of a file as a C array, with a header next to it.

    Args:
        content: The bytes.
        path: As in `check_c_array_path`.

    Returns:
        (path of the source, path of the header).

    Raises:
        TypeError, ValueError: As in `check_c_array_path`.
        OSError: If the disk is full or fails; nothing is left behind.
    """
    source, header = check_c_array_path(path)
    name = source.stem
    words = {"version": __version__, "name": name, "guard": name.upper(), "size": len(content)}
    text = _SOURCE.format(rows=_rows(content), alignment=ALIGNMENT_BYTES, **words)
    with replacing(source) as temporary:
        temporary.write_text(text, encoding="ascii")
        temporary.with_suffix(".h").write_text(_HEADER.format(**words), encoding="ascii")
    return source, header


def _rows(content):
    """Returns the values as lines of text."""
    texts = [f"0x{value:02x}," for value in range(256)]
    starts = range(0, len(content), _BYTES_PER_LINE)
    return "\n".join(
        "    " + " ".join(texts[value] for value in content[start : start + _BYTES_PER_LINE])
        for start in starts
    )
