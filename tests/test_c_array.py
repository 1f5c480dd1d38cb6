"""The file as a C array: what a compiler makes of it is the file."""

import re

import numpy as np
import pytest
from c_compiler import compiled_bytes, needs_compiler

from speq_keras.export.c_array import check_c_array_path, write_c_array

CONTENT = np.random.default_rng(0).integers(0, 256, 1001, np.uint8).tobytes()


def values_in(text):
    return bytes(int(value, 16) for value in re.findall(r"\b0x(..),", text))


@needs_compiler
@pytest.mark.parametrize("size", [1, 15, 16, 17, 1001])
def test_a_compiler_finds_the_bytes_of_the_file_on_an_aligned_address(tmp_path, size):
    folder = tmp_path / "array"
    folder.mkdir()
    source, _ = write_c_array(CONTENT[:size], folder / "my_2bit_model.cc")
    assert compiled_bytes(source, tmp_path) == CONTENT[:size]


def test_a_source_and_a_header_are_written(tmp_path):
    source, header = write_c_array(CONTENT, tmp_path / "digits.cc")
    assert (source, header) == (tmp_path / "digits.cc", tmp_path / "digits.h")
    assert sorted(tmp_path.iterdir()) == [source, header]
    text = source.read_text()
    assert '#include "digits.h"' in text
    assert "alignas(16) const unsigned char g_digits[] = {" in text
    assert values_in(text) == CONTENT
    assert "constexpr unsigned int g_digits_size = 1001;" in header.read_text()
    assert "extern const unsigned char g_digits[];" in header.read_text()


def test_the_suffix_of_arduino_is_taken(tmp_path):
    source, header = write_c_array(CONTENT, tmp_path / "digits.cpp")
    assert (source.name, header.name) == ("digits.cpp", "digits.h")


def test_older_files_are_replaced(tmp_path):
    write_c_array(CONTENT, tmp_path / "m.cc")
    write_c_array(CONTENT[:10], tmp_path / "m.cc")
    assert values_in((tmp_path / "m.cc").read_text()) == CONTENT[:10]
    assert "g_m_size = 10;" in (tmp_path / "m.h").read_text()


@pytest.mark.parametrize("stem", ["m", "digits", "my_model", "2bit", "A1_b2", "int"])
def test_a_name_that_can_follow_g_is_taken(tmp_path, stem):
    assert check_c_array_path(tmp_path / f"{stem}.cc")[0].stem == stem


@pytest.mark.parametrize(
    ("stem", "better"),
    [
        ("my-model", "my_model"),
        ("my model", "my_model"),
        ("m.int8", "m_int8"),
        ("_m", "m"),
        ("m_", "m"),
        ("a__b", "a_b"),
        ("modèle", "mod_le"),
        ("é", "model"),
        ('m";', "m"),
        ("m\n", "m"),
        ("m\\", "m"),
        ("١", "model"),
    ],
)
def test_a_name_that_cannot_follow_g_gets_a_better_one(tmp_path, stem, better):
    with pytest.raises(ValueError, match="can follow g_ in a name of C") as error:
        write_c_array(CONTENT, tmp_path / f"{stem}.cc")
    assert str(error.value).endswith(f" Call it {better}.cc.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("m.c", "`path` must be a file that ends in .cc, in a folder that exists. .* Append .cc."),
        ("no/m.cc", "Create '.*no' first."),
        ("m.d.cc", "Call it m_d.cc."),
        (".cc", "Append .cc."),
    ],
)
def test_a_path_that_cannot_be_is_refused(tmp_path, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_c_array(CONTENT, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_path_is_refused():
    with pytest.raises(TypeError, match="`path` must be a file that ends in .cc"):
        write_c_array(CONTENT, 3)


def test_a_header_that_cannot_be_written_is_refused_before_the_source(tmp_path):
    (tmp_path / "m.h").mkdir()
    with pytest.raises(ValueError, match="`path's header` must be .* This is a folder"):
        write_c_array(CONTENT, tmp_path / "m.cc")
    assert not (tmp_path / "m.cc").exists()
