"""Argument checks and their sentences."""

import math
import re

import keras
import numpy as np
import pytest

import speq_keras
from speq_keras._checks import (
    check_bits,
    check_choice,
    check_count,
    check_number,
    check_seed,
    describe,
)

pytestmark = pytest.mark.every_backend


def test_describe_names_every_value():
    assert describe(w_bits=3, name="x") == "Received: w_bits=3, name='x'."


# ---- widths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_widths_from_2_to_8_pass(bits):
    assert check_bits("w_bits", bits) == bits


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64])
def test_a_numpy_width_becomes_a_python_int(kind):
    assert type(check_bits("w_bits", kind(4))) is int


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 33, np.int64(1)])
def test_a_width_outside_2_to_8_is_a_value_error(bits):
    sentence = (
        "`w_bits` must be a whole number from 2 to 8, or None for floating point. "
        f"Received: w_bits={bits!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_bits("w_bits", bits)


@pytest.mark.parametrize("bits", [2.5, 4.0, True, False, "3", [3], np.float32(3), math.nan])
def test_a_width_that_is_no_whole_number_is_a_type_error(bits):
    sentence = f"2 to 8, or None for floating point. Received: w_bits={bits!r}."
    with pytest.raises(TypeError, match=re.escape(sentence)):
        check_bits("w_bits", bits)


def test_none_is_a_width_where_float_is_allowed():
    assert check_bits("w_bits", None) is None


def test_none_is_refused_where_a_width_is_needed():
    sentence = "`teacher_bits` must be a whole number from 2 to 8. Received: teacher_bits=None."
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        check_bits("teacher_bits", None, optional=False)


# ---- numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float32(0.5), np.int64(1)])
def test_a_number_inside_the_interval_becomes_a_python_float(value):
    checked = check_number("u", value, low=0, high=1)
    assert type(checked) is float
    assert checked == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_number_must_be_finite(value):
    with pytest.raises(
        ValueError, match=r"`u` must be a finite number in \[-inf, inf\]\. Received"
    ):
        check_number("u", value)


@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_a_number_must_lie_in_the_interval(value):
    sentence = f"`u` must be a finite number in [0, 1]. Received: u={value}."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_number("u", value, low=0, high=1)


def test_an_open_lower_end_is_refused():
    sentence = "`temperature` must be a finite number in (0, inf]. Received: temperature=0.0."
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_number("temperature", 0, low=0, low_open=True)


def test_an_open_upper_end_is_refused():
    with pytest.raises(ValueError, match=re.escape("must be a finite number in [0, 1).")):
        check_number("u", 1.0, low=0, high=1, high_open=True)


@pytest.mark.parametrize("value", [0, 1])
def test_the_ends_of_a_closed_interval_pass(value):
    assert check_number("u", value, low=0, high=1) == value


@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], 1j])
def test_what_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=re.escape(f"Received: u={value!r}.")):
        check_number("u", value, low=0, high=1)


# ---- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, np.int64(3)])
def test_a_count_becomes_a_python_int(count):
    checked = check_count("steps", count)
    assert type(checked) is int
    assert checked == count


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_a_value_error(count):
    sentence = f"`steps` must be a whole number of at least 1. Received: steps={count}."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_count("steps", count)


@pytest.mark.parametrize("count", [1.0, True, "3", None])
def test_a_count_that_is_no_whole_number_is_a_type_error(count):
    sentence = f"`steps` must be a whole number of at least 1. Received: steps={count!r}."
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        check_count("steps", count)


def test_none_is_a_count_where_it_is_allowed():
    assert check_count("steps", None, optional=True) is None


def test_the_sentence_says_that_none_is_allowed():
    with pytest.raises(
        ValueError, match="a whole number of at least 1, or None. Received: steps=0"
    ):
        check_count("steps", 0, optional=True)


# ---- choices ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["cosine", "dot", None])
def test_one_of_the_choices_passes(value):
    assert check_choice("distillation", value, ("cosine", "dot", None)) == value


def test_a_near_miss_is_named():
    sentence = (
        "`method` must be one of 'cosine', 'dot', None. Received: method='cosin'. "
        "Did you mean 'cosine'?"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_choice("method", "cosin", ("cosine", "dot", None))


@pytest.mark.parametrize("value", ["zzz", 3, ["dot"]])
def test_a_far_miss_gets_the_choices_and_no_hint(value):
    sentence = f"`method` must be one of 'cosine', 'kl'. Received: method={value!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_choice("method", value, ("cosine", "kl"))


# ---- seeds -----------------------------------------------------------------------------------


# TensorFlow's seeds are int64, those of JAX uint32.
SEED_BITS = 63 if keras.backend.backend() == "tensorflow" else 32


@pytest.mark.parametrize("seed", [None, 0, 7, 2**31, 2**SEED_BITS - 1])
def test_a_seed_is_none_or_a_whole_number(seed):
    assert check_seed(seed) == seed


def test_a_numpy_seed_becomes_a_python_int():
    assert type(check_seed(np.int64(7))) is int


@pytest.mark.parametrize("seed", [-1, True, 1.5, "3", 2**SEED_BITS])
def test_any_other_seed_is_refused(seed):
    sentence = (
        f"`seed` must be None or a whole number from 0 to 2**{SEED_BITS} - 1. "
        f"Received: seed={seed!r}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_seed(seed)


# ---- models ----------------------------------------------------------------------------------


def network():
    dense = [keras.layers.Dense(4) for _ in range(2)]
    last = keras.layers.Dense(3, activation="softmax")
    return keras.Sequential([keras.Input((4,)), *dense, last], name="net")


X, Y = np.ones((2, 4), "float32"), np.zeros(2, "int32")
LOSS = "sparse_categorical_crossentropy"


def search(model):
    if hasattr(model, "settings"):
        model.compile(loss=LOSS)
    return speq_keras.search_bits(model, (X, Y), size_bytes=10**6)


def study_with(student):
    both = speq_keras.CoStudy(student, network())
    both.compile("sgd", LOSS)
    both.fit(X, Y)


NEED_A_MODEL = {
    "search_bits": (search, "model"),
    "fold": (speq_keras.fold, "model"),
    "CoStudy": (study_with, "student"),
}


@pytest.mark.parametrize("who", NEED_A_MODEL)
def test_whoever_needs_a_calibrated_model_says_so_in_the_same_words(who):
    call, name = NEED_A_MODEL[who]
    model = speq_keras.wrap(network(), 2, 2)
    sentence = (
        f"`{name}` must be calibrated or trained. Received: {name}='net' with 4 activation ranges "
        "that were never set, the first is '"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}"):
        call(model)


@pytest.mark.parametrize("who", NEED_A_MODEL)
def test_whoever_needs_a_wrapped_model_says_so_in_the_same_words(who):
    call, name = NEED_A_MODEL[who]
    sentence = f"`{name}` must be a SPEQModel. Received: {name}=<Sequential name=net, built=True>. "
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}Make one with `speq_keras.wrap`"):
        call(network())
