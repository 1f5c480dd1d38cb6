"""Tensor functions against NumPy formulas in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gradients import gradients_of
from keras import ops

from speq_keras import ops as speq_ops

pytestmark = pytest.mark.every_backend

WIDTHS = range(2, 9)
CLIPS = [3e-4, 0.03, 1.0, 37.0, 3e3]
# The kernel works in float32 on codes up to 255 and offsets of that size: 255 * 2**-23 = 3e-5.
STEP_TOLERANCE = 1e-4


def code_range(bits, signed):
    """The two's complement range, or 0 ... 2^b - 1."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def scale_of(clip, bits, signed):
    low, high = code_range(bits, signed)
    return np.float32(clip / (-low if signed else high))


def quantized(x, scale, low, high):
    return scale * np.clip(np.round(np.asarray(x, "float64") / scale), low, high)


def values_away_from_ties(scale, low, high, count=400):
    """Values in and around the range, at most 0.45 of a step from a multiple of the scale."""
    rng = np.random.default_rng(0)
    codes = rng.integers(low - 5, high + 6, count) + rng.uniform(-0.45, 0.45, count)
    return (codes * scale).astype("float32")


def gradients(function, *inputs):
    """Gradients of the sum of the outputs, each weighted with 1, 2, 3, ..."""

    def total(*tensors):
        outputs = function(*tensors)
        return ops.sum(outputs * upstream(outputs.shape))

    return gradients_of(total, inputs)


def check_sum(value, terms):
    """Compares with a sum that was taken in float32, which is right to 1e-7 of the terms' sizes."""
    terms = terms.astype("float64")
    np.testing.assert_allclose(value, terms.sum(), atol=1e-6 * np.abs(terms).sum())


def upstream(shape):
    return np.arange(1, np.prod(shape, dtype=int) + 1, dtype="float32").reshape(shape)


@pytest.fixture
def plain_formula(monkeypatch):
    """What backends other than TensorFlow compute, here on TensorFlow's tensors."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "another")


# ---- levels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
def test_levels_of_a_number_are_two_to_the_bits_minus_one(bits):
    assert speq_ops.levels_of(bits) == 2**bits - 1


@pytest.mark.tensorflow
def test_levels_of_a_tensor_are_exact():
    levels = [float(speq_ops.levels_of(tf.constant(float(bits)))) for bits in WIDTHS]
    assert levels == [3, 7, 15, 31, 63, 127, 255]


@pytest.mark.tensorflow
def test_levels_of_a_float_width_stay_finite():
    assert float(speq_ops.levels_of(tf.constant(0.0))) == 255


# ---- straight-through ------------------------------------------------------------------------


@pytest.mark.tensorflow
def test_rounding_takes_ties_to_even():
    x = tf.constant([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 2.49, -2.51])
    rounded = speq_ops.round_straight_through(x).numpy()
    np.testing.assert_array_equal(rounded, [-2, -2, 0, 0, 2, 2, 2, -3])


@pytest.mark.tensorflow
def test_rounded_values_are_exactly_whole():
    x = np.random.default_rng(0).uniform(-1e5, 1e5, 10_000).astype("float32")
    rounded = speq_ops.round_straight_through(tf.constant(x)).numpy()
    np.testing.assert_array_equal(rounded, np.round(x))


def test_the_gradient_of_rounding_is_one():
    (gradient,) = gradients(speq_ops.round_straight_through, [-7.3, -0.5, 0.0, 0.2, 1e6])
    np.testing.assert_array_equal(gradient, [1, 2, 3, 4, 5])


@pytest.mark.tensorflow
@pytest.mark.parametrize("value", [1e-5, 0.25, -3.0, 1e6])
def test_a_replaced_value_is_exact_whatever_it_replaces(value):
    x = tf.constant([-1e30, -1e6, -3.3, 0.0, 1e-20, 7.0, 1e30])
    replaced = speq_ops.replace_value(x, tf.fill(x.shape, value)).numpy()
    np.testing.assert_array_equal(replaced, np.full(7, value, "float32"))


def test_a_replaced_value_passes_its_gradient_to_what_it_replaces():
    gradient, _ = gradients(lambda x, v: speq_ops.replace_value(x, v) + 0 * v, [1.0, -2.0], [5, 6])
    np.testing.assert_array_equal(gradient, [1, 2])


def test_the_replacement_gets_no_gradient():
    _, gradient = gradients(lambda x, v: speq_ops.replace_value(x, v) + 0 * v, [1.0, -2.0], [5, 6])
    np.testing.assert_array_equal(gradient, [0, 0])


@pytest.mark.tensorflow
def test_scaling_a_gradient_leaves_the_value_exactly_as_it_was():
    x = np.random.default_rng(0).normal(size=1000).astype("float32")
    np.testing.assert_array_equal(speq_ops.scale_gradient(tf.constant(x), 0.037).numpy(), x)


def test_scaling_a_gradient_multiplies_it():
    (gradient,) = gradients(lambda x: speq_ops.scale_gradient(x, 0.25), [1.0, -2.0, 0.0])
    np.testing.assert_array_equal(gradient, [0.25, 0.5, 0.75])


@pytest.mark.tensorflow
@pytest.mark.parametrize("clip", [0.0, -1e-6, -1.0, -1e4, -1e30])
def test_a_clip_that_is_not_positive_becomes_the_smallest_one(clip):
    kept = speq_ops.keep_positive(tf.constant(clip)).numpy()
    assert kept == np.float32(speq_ops.SMALLEST_CLIP)


@pytest.mark.tensorflow
@pytest.mark.parametrize("clip", CLIPS)
def test_a_positive_clip_is_kept_as_it_is(clip):
    assert speq_ops.keep_positive(tf.constant(clip)).numpy() == np.float32(clip)


@pytest.mark.parametrize("clip", [-1e6, -1.0, 0.0, 2.0])
def test_the_gradient_to_a_clip_is_alive_on_both_sides_of_zero(clip):
    (gradient,) = gradients(speq_ops.keep_positive, [clip])
    np.testing.assert_array_equal(gradient, [1])


# ---- fake quantization -----------------------------------------------------------------------


@pytest.mark.tensorflow
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_fake_quantization_is_the_numpy_formula(bits, signed, clip):
    low, high = code_range(bits, signed)
    scale = scale_of(clip, bits, signed)
    x = values_away_from_ties(scale, low, high)
    q = speq_ops.fake_quantize(tf.constant(x), scale, low_code=low, high_code=high).numpy()
    np.testing.assert_allclose(q, quantized(x, scale, low, high), atol=STEP_TOLERANCE * scale)


@pytest.mark.tensorflow
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_may_be_tensors(bits, signed):
    low, high = code_range(bits, signed)
    x = values_away_from_ties(0.1, low, high)
    codes = {"low_code": tf.constant(float(low)), "high_code": tf.constant(float(high))}
    q = speq_ops.fake_quantize(tf.constant(x), 0.1, **codes).numpy()
    np.testing.assert_allclose(q, quantized(x, 0.1, low, high), atol=STEP_TOLERANCE * 0.1)


@pytest.mark.tensorflow
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_the_plain_formula_is_the_numpy_formula(bits, signed, plain_formula):
    low, high = code_range(bits, signed)
    scale = scale_of(37.0, bits, signed)
    x = values_away_from_ties(scale, low, high)
    q = speq_ops.fake_quantize(tf.constant(x), scale, low_code=low, high_code=high).numpy()
    np.testing.assert_allclose(q, quantized(x, scale, low, high), atol=STEP_TOLERANCE * scale)


@pytest.mark.tensorflow
def test_the_fused_kernel_rounds_ties_up():
    x = 0.25 * np.array([-1.5, -0.5, 0.5, 1.5, 2.5])
    q = speq_ops.fake_quantize(tf.constant(x, "float32"), 0.25, low_code=-4, high_code=3)
    np.testing.assert_array_equal(q.numpy() / 0.25, [-1, 0, 1, 2, 3])


@pytest.mark.tensorflow
def test_the_plain_formula_rounds_ties_to_even(plain_formula):
    x = 0.25 * np.array([-1.5, -0.5, 0.5, 1.5, 2.5])
    q = speq_ops.fake_quantize(tf.constant(x, "float32"), 0.25, low_code=-4, high_code=3)
    np.testing.assert_array_equal(q.numpy() / 0.25, [-2, 0, 0, 2, 2])


@pytest.mark.tensorflow
@pytest.mark.parametrize("signed", [False, True])
def test_full_8_bit_codes_clip_below_by_themselves(signed):
    low, high = code_range(8, signed)
    x = tf.constant([-1e4, 1e4])
    q = speq_ops.fake_quantize(x, 0.5, low_code=low, high_code=high, clip_below=False)
    np.testing.assert_array_equal(q.numpy(), [low * 0.5, high * 0.5])


@pytest.mark.tensorflow
def test_the_plain_formula_clips_below_whether_told_to_or_not(plain_formula):
    x = tf.constant([-1e4, 1e4])
    q = speq_ops.fake_quantize(x, 0.5, low_code=-128, high_code=127, clip_below=False)
    np.testing.assert_array_equal(q.numpy(), [-64, 63.5])


@pytest.fixture(params=["fused", "plain"])
def either_formula(request):
    if request.param == "plain":
        request.getfixturevalue("plain_formula")


@pytest.mark.parametrize("rounds", [False, tf.constant(False)], ids=["constant", "run-time"])
@pytest.mark.parametrize("low", [0, -2, -128])
class TestWithoutRounding:
    def clipped(self, x, scale, low, rounds):
        codes = {"low_code": low, "high_code": 127 if low < -2 else 3}
        return speq_ops.fake_quantize(x, scale, **codes, rounds=rounds)

    @pytest.mark.tensorflow
    def test_values_are_only_clipped(self, low, rounds, either_formula):
        x = np.random.default_rng(0).uniform(-30, 30, 200).astype("float32")
        expected = np.clip(x, low * 0.1, 12.7 if low < -2 else 0.3)
        clipped = self.clipped(tf.constant(x), 0.1, low, rounds)
        np.testing.assert_allclose(clipped, expected, rtol=3e-7)

    @pytest.mark.tensorflow
    def test_gradients_are_those_of_rounded_values(self, low, rounds, either_formula):
        x = np.random.default_rng(0).uniform(-30, 30, 200)
        expected = gradients(lambda x, s: self.clipped(x, s, low, True), x, 0.1)
        computed = gradients(lambda x, s: self.clipped(x, s, low, rounds), x, 0.1)
        np.testing.assert_allclose(computed[0], expected[0])
        np.testing.assert_allclose(computed[1], expected[1], rtol=1e-5)


@pytest.mark.tensorflow
def test_rounding_is_switched_at_run_time_without_another_trace(either_formula):
    traces = []

    @tf.function
    def call(rounds):
        traces.append(1)
        return speq_ops.fake_quantize(tf.constant(0.7), 0.5, low_code=0, high_code=3, rounds=rounds)

    values = [float(call(tf.constant(rounds))) for rounds in (True, False, True)]
    np.testing.assert_allclose(values, [0.5, 0.7, 0.5], rtol=1e-6)
    assert len(traces) == 1


@pytest.mark.parametrize("formula", ["fused", "plain"])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
class TestGradientsOfFakeQuantization:
    @pytest.fixture(autouse=True)
    def case(self, bits, signed, formula, monkeypatch):
        if formula == "plain":
            monkeypatch.setattr(keras.backend, "backend", lambda: "another")
        self.low, self.high = code_range(bits, signed)
        self.scale = 0.1
        x = values_away_from_ties(self.scale, self.low, self.high)
        # The ends are where the gradient jumps.
        codes = np.round(x / self.scale)
        self.x = x[(codes != self.low) & (codes != self.high)]
        self.to_x, self.to_scale = gradients(
            lambda x, s: speq_ops.fake_quantize(x, s, low_code=self.low, high_code=self.high),
            self.x,
            self.scale,
        )
        self.below, self.above = self.x < self.low * self.scale, self.x > self.high * self.scale

    def test_to_x_is_one_inside_the_range_and_zero_outside(self):
        inside = ~self.below & ~self.above
        np.testing.assert_array_equal(self.to_x, upstream(self.x.shape) * inside)

    def test_to_the_scale_is_the_code_at_the_end_that_clipped(self):
        at_ends = self.low * self.below + self.high * self.above
        check_sum(self.to_scale, upstream(self.x.shape) * at_ends)


@pytest.fixture(scope="module")
def compiled():
    """Value and gradients under XLA, compiled once: codes and scale are arguments."""

    @tf.function(jit_compile=True)
    def run(x, scale, low, high):
        with tf.GradientTape() as tape:
            tape.watch([x, scale])
            q = speq_ops.fake_quantize(x, scale, low_code=low, high_code=high)
            total = tf.reduce_sum(q * upstream(x.shape))
        return q, *tape.gradient(total, [x, scale])

    return lambda *arguments: [y.numpy() for y in run(*map(tf.constant, arguments))]


@pytest.mark.tensorflow
@pytest.mark.parametrize("clip", [3e-4, 3e3])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_under_xla_values_stay_on_the_grid(compiled, bits, signed, clip):
    low, high = code_range(bits, signed)
    scale = scale_of(clip, bits, signed)
    x = values_away_from_ties(scale, low, high)
    q, _, _ = compiled(x, scale, np.float32(low), np.float32(high))
    np.testing.assert_allclose(q, quantized(x, scale, low, high), atol=STEP_TOLERANCE * scale)


@pytest.mark.tensorflow
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
class TestGradientsUnderXLA:
    @pytest.fixture(autouse=True)
    def case(self, compiled, bits, signed):
        self.low, self.high = code_range(bits, signed)
        scale = np.float32(0.1)
        x = values_away_from_ties(scale, self.low, self.high)
        codes = np.round(x / scale)
        # As many values as the function was compiled for, and none at the ends.
        self.x = np.where((codes == self.low) | (codes == self.high), self.low - 3, codes) * scale
        self.below, self.above = self.x < self.low * scale, self.x > self.high * scale
        arguments = self.x, scale, np.float32(self.low), np.float32(self.high)
        _, self.to_x, self.to_scale = compiled(*arguments)

    def test_to_x_is_one_inside_the_range_and_zero_outside(self):
        inside = ~self.below & ~self.above
        np.testing.assert_array_equal(self.to_x, upstream(self.x.shape) * inside)

    def test_to_the_scale_is_the_code_at_the_end_that_clipped(self):
        at_ends = self.low * self.below + self.high * self.above
        check_sum(self.to_scale, upstream(self.x.shape) * at_ends)
