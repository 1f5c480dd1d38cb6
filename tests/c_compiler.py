"""What a C++ compiler makes of a file that was written as a C array."""

import shutil
import subprocess

import pytest

COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")

_PROGRAM = """
#include "{header}"
#include "{header}"  // the guard lets it pass
#include <cstdint>
#include <cstdio>

static_assert(g_{name}_size > 0, "known to the compiler");

int main() {{
  if (reinterpret_cast<std::uintptr_t>(g_{name}) % 16 != 0) return 2;
  return std::fwrite(g_{name}, 1, g_{name}_size, stdout) != g_{name}_size;
}}
"""


def compiled_bytes(source, folder):
    """Returns the bytes that a program with the C array in `source` has at its 16-byte address."""
    program, binary = folder / "main.cc", folder / "program"
    program.write_text(_PROGRAM.format(header=source.with_suffix(".h").name, name=source.stem))
    options = ["-std=c++11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{source.parent}"]
    subprocess.run([COMPILER, *options, program, source, "-o", binary], check=True)
    return subprocess.run([binary], capture_output=True, check=True).stdout
