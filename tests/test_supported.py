"""The pages that programs write are what the programs write today."""

import inspect
import re

import api
import keras
import pytest
import supported
from keras import layers

from speq_keras.operations.rows import LAYER_ROWS, OPERATION_ROWS

PAGE = supported.PAGE.read_text(encoding="utf-8")
IS_OF_THIS_KERAS = f"of Keras {'.'.join(keras.__version__.split('.')[:2])}," in PAGE
NAMES = set(re.findall(r"`(\w+)`", PAGE))


def test_the_page_of_public_names_is_current():
    assert api.PAGE.read_text(encoding="utf-8") == api.page()


def test_every_layer_of_keras_is_on_the_page():
    names = {}
    for name, thing in vars(layers).items():
        if inspect.isclass(thing) and issubclass(thing, layers.Layer):
            names.setdefault(thing, set()).add(name)  # some have two
    assert [found for found in names.values() if not found & NAMES] == []


def test_every_layer_and_operation_with_a_record_is_on_the_page():
    known = {*LAYER_ROWS, *(row.name for _, row in OPERATION_ROWS)}
    assert known - NAMES == set()


# One of each table, with some options.
@pytest.mark.skipif(not IS_OF_THIS_KERAS, reason="the page is of another version of Keras")
@pytest.mark.parametrize("name", "LeakyReLU GRU UnitNormalization Cast Ravel Lambda".split())
def test_a_row_is_what_plan_says_today(name):
    cases = {**dict(supported.layer_cases()), **dict(supported.operation_cases())}
    _, training, in_file, notes = supported.row_of(name, cases[name])
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| `") and f"`{name}`" in line]
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert cells[1:3] == [training, in_file]
    assert all(other in row for other in notes)


@pytest.mark.skipif(not IS_OF_THIS_KERAS, reason="the page is of another version of Keras")
@pytest.mark.long
def test_the_page_of_supported_layers_is_current():
    assert supported.page() == PAGE
