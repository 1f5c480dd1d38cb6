"""Who draws the teacher's widths: frequencies, independence, seeds, all combinations."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from speq_keras import precision
from speq_keras.precision import Bernoulli, Fixed, Greedy, TeacherPrecision, UniformMix

pytestmark = pytest.mark.every_backend

RULES = [Bernoulli(0.3, 6), UniformMix(3, 5), Fixed(4), Greedy(7)]
COUNT = 20_000


def draws(rule, target_bits, steps=1, seed=0, jit_compile=False):
    """The widths drawn in so many steps of one compiled function: (steps, rows, quantizers)."""
    generator = keras.random.SeedGenerator(seed)
    target = keras.ops.convert_to_tensor(target_bits, dtype="float32")

    def step():
        return rule.candidates(target, generator)

    if keras.config.backend() == "tensorflow":
        step = tf.function(step, jit_compile=jit_compile)
    return np.stack([keras.ops.convert_to_numpy(step()) for _ in range(steps)])


def within(frequency, probability, count):
    """Whether a frequency lies within five standard deviations: by chance missed once in 10^6."""
    return abs(frequency - probability) <= 5 * np.sqrt(probability * (1 - probability) / count)


# ---- Eq. 1 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("u", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_the_target_width_is_drawn_with_probability_u(u):
    widths = draws(Bernoulli(u), np.full(COUNT, 2))
    assert within(np.mean(widths == 2), u, COUNT)


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0])
def test_all_other_draws_are_the_high_width(u):
    widths = draws(Bernoulli(u, teacher_bits=6), np.full(COUNT, 3))
    assert np.isin(widths, [3, 6]).all()


def test_without_probability_the_high_width_is_always_drawn():
    assert (draws(Bernoulli(0.0), np.full(COUNT, 2)) == 8).all()


def test_with_probability_one_the_target_width_is_always_drawn():
    assert (draws(Bernoulli(1.0), np.full(COUNT, 2)) == 2).all()


def test_each_quantizer_has_its_own_target_width():
    widths = draws(Bernoulli(0.5), [2, 3, 4], steps=40)[:, 0]
    assert [set(column) for column in widths.T] == [{2, 8}, {3, 8}, {4, 8}]


@pytest.fixture(scope="module")
def many_steps():
    """1 where the target width was drawn: (1000 steps, 6 quantizers)."""
    return (draws(Bernoulli(0.5), np.full(6, 2), steps=1000)[:, 0] == 2).astype(float)


# The correlation of independent draws has a standard deviation of 1/sqrt(steps).
CORRELATION_BOUND = 5 / np.sqrt(1000)


def test_quantizers_draw_independently_of_each_other(many_steps):
    correlations = np.corrcoef(many_steps.T)
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < CORRELATION_BOUND


def test_steps_draw_independently_of_each_other(many_steps):
    for column in many_steps.T:
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < CORRELATION_BOUND


def test_every_quantizer_draws_with_probability_u(many_steps):
    assert all(within(frequency, 0.5, 1000) for frequency in many_steps.mean(axis=0))


@pytest.mark.parametrize("rule", [Bernoulli(0.5), UniformMix()], ids=repr)
def test_draws_differ_from_step_to_step_inside_one_compiled_function(rule):
    first, second, third = draws(rule, np.full(100, 2), steps=3)
    assert (first != second).any()
    assert (second != third).any()
    assert (first != third).any()


@pytest.mark.parametrize("rule", [Bernoulli(0.5), UniformMix()], ids=repr)
def test_equal_seeds_give_equal_draws(rule):
    runs = [draws(rule, np.full(100, 2), steps=3, seed=7) for _ in range(2)]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("rule", [Bernoulli(0.5), UniformMix()], ids=repr)
def test_other_seeds_give_other_draws(rule):
    runs = [draws(rule, np.full(100, 2), steps=3, seed=seed) for seed in (7, 8)]
    assert (runs[0] != runs[1]).any()


def test_under_xla_draws_keep_their_probability():
    widths = draws(Bernoulli(0.25), np.full(COUNT, 2), jit_compile=True)
    assert within(np.mean(widths == 2), 0.25, COUNT)


def test_under_xla_draws_differ_from_step_to_step():
    first, second = draws(Bernoulli(0.5), np.full(100, 2), steps=2, jit_compile=True)
    assert (first != second).any()


# ---- the other rules -------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(2, 8), (3, 5), (4, 4)])
def test_a_mix_draws_every_width_equally_often(low, high):
    widths = draws(UniformMix(low, high), np.full(COUNT, 2))
    share = 1 / (high - low + 1)
    for bits in range(low, high + 1):
        assert within(np.mean(widths == bits), share, COUNT)


def test_a_mix_draws_nothing_else():
    widths = draws(UniformMix(3, 5), np.full(COUNT, 2))
    assert set(widths.ravel()) == {3, 4, 5}


@pytest.mark.tensorflow
def test_a_mix_draws_its_highest_width_where_a_draw_is_rounded_up_to_one(monkeypatch):
    monkeypatch.setattr(keras.random, "uniform", lambda shape, seed: tf.ones(shape))
    assert UniformMix(3, 5).candidates(tf.fill((2,), 2.0), None).numpy().tolist() == [[5, 5]]


def test_a_fixed_width_is_every_quantizers_width():
    assert draws(Fixed(5), [2, 3, 4], steps=2).tolist() == [[[5, 5, 5]], [[5, 5, 5]]]


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_greedy_proposes_every_combination_once(count):
    rows = draws(Greedy(7), np.full(count, 2))[0]
    combinations = [tuple(row) for row in rows]
    assert len(combinations) == 2**count
    assert set(combinations) == set(itertools.product([2, 7], repeat=count))


def test_greedy_keeps_each_quantizers_own_target_width():
    rows = draws(Greedy(8), [2, 3])[0]
    assert {tuple(row) for row in rows} == {(2, 3), (2, 8), (8, 3), (8, 8)}


@pytest.mark.tensorflow
@pytest.mark.parametrize("rule", [Fixed(), Greedy()], ids=repr)
def test_rules_without_chance_leave_the_seed_alone(rule):
    generator = keras.random.SeedGenerator(3)
    before = generator.state.numpy().tolist()
    rule.candidates(tf.fill((3,), 2.0), generator)
    assert generator.state.numpy().tolist() == before


@pytest.mark.parametrize("count", [13, 100])
def test_greedy_refuses_more_than_twelve_quantizers_with_their_count(count):
    with pytest.raises(ValueError, match=rf"at most L=12 .* Received: quantizers={count}\. Use "):
        Greedy().check(count)


def test_greedy_accepts_twelve_quantizers():
    Greedy().check(12)


@pytest.mark.parametrize("rule", [rule for rule in RULES if not isinstance(rule, Greedy)], ids=repr)
def test_all_other_rules_accept_any_number_of_quantizers(rule):
    rule.check(1000)


# ---- what all rules share --------------------------------------------------------------------


def test_every_rule_of_the_module_is_in_this_file():
    rules = [value for value in vars(precision).values() if isinstance(value, type)]
    rules = {rule for rule in rules if issubclass(rule, TeacherPrecision)} - {
        TeacherPrecision,
        precision._Rule,
    }
    assert rules == {type(rule) for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=repr)
class TestEveryRule:
    @pytest.mark.tensorflow
    def test_proposes_rows_of_float32_widths_from_2_to_8(self, rule):
        widths = rule.candidates(tf.constant([2.0, 3.0, 4.0]), keras.random.SeedGenerator(0))
        assert widths.dtype == tf.float32
        assert widths.shape[1:] == (3,)
        assert np.isin(widths, range(2, 9)).all()

    def test_goes_through_its_config(self, rule):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rule))
        assert type(again) is type(rule)
        assert vars(again) == vars(rule)

    def test_equals_a_rule_with_the_same_arguments(self, rule):
        assert rule == type(rule)(**rule.get_config())

    def test_hashes_as_a_rule_with_the_same_arguments(self, rule):
        assert hash(rule) == hash(type(rule)(**rule.get_config()))

    def test_differs_from_every_other_rule(self, rule):
        assert [other == rule for other in RULES].count(True) == 1

    def test_differs_from_a_rule_with_other_arguments(self, rule):
        config = rule.get_config()
        last = list(config)[-1]
        assert rule != type(rule)(**{**config, last: 8})

    def test_prints_as_the_call_that_makes_it(self, rule):
        assert eval(repr(rule), vars(precision)) == rule


@pytest.mark.parametrize("u", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_probability_outside_0_to_1_is_refused(u):
    with pytest.raises(ValueError, match=r"`quantization_probability` must be .* \[0, 1\]"):
        Bernoulli(u)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda bits: Bernoulli(0.5, bits), "teacher_bits"),
        (lambda bits: Greedy(bits), "teacher_bits"),
        (lambda bits: Fixed(bits), "bits"),
        (lambda bits: UniformMix(bits, 8), "low_bits"),
        (lambda bits: UniformMix(2, bits), "high_bits"),
    ],
)
class TestWidthArguments:
    @pytest.mark.parametrize("bits", [0, 1, 9, 33])
    def test_outside_2_to_8_are_refused(self, make, name, bits):
        with pytest.raises(ValueError, match=f"`{name}` must be a whole number from 2 to 8"):
            make(bits)

    @pytest.mark.parametrize("bits", [None, 2.5, True, "3"])
    def test_that_are_no_whole_numbers_are_refused(self, make, name, bits):
        with pytest.raises(TypeError, match=f"`{name}` must be a whole number from 2 to 8"):
            make(bits)


def test_a_mix_upside_down_is_refused():
    with pytest.raises(
        ValueError, match="`low_bits` must not be above `high_bits`.*=5, high_bits=4"
    ):
        UniformMix(5, 4)


def test_a_rule_of_ones_own_is_found_again():
    @precision.register
    class Alternating(TeacherPrecision):
        pass

    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(Alternating())
    )
    assert again == Alternating()
