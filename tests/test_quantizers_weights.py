"""Weight quantizers against NumPy in float64, and what every registered one has to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gradients import gradients_of, tensor
from keras import ops

from speq_keras import quantizers
from speq_keras.quantizers import (
    LSQ,
    MSE,
    QIL,
    SAWB,
    WEIGHT_QUANTIZERS,
    DoReFa,
    MinMax,
    WeightQuantizer,
    get_weight_quantizer,
    register_quantizer,
)

pytestmark = pytest.mark.every_backend

WIDTHS = range(2, 9)
NAMES = list(WEIGHT_QUANTIZERS)
# Sums of some hundred float32 terms: 1e-7 of each. In units of the largest weight.
TOLERANCE = 1e-6


def weights_of(shape=(30, 8), kind="normal", seed=0):
    rng = np.random.default_rng(seed)
    draw = {
        "normal": rng.normal,
        "laplace": rng.laplace,
        "uniform": lambda size: rng.uniform(-1, 1, size),
        "sparse": lambda size: rng.normal(size=size) * (rng.uniform(size=size) < 0.1),
    }[kind]
    return (0.3 * draw(size=shape)).astype("float32")


def started(quantizer, weights):
    """The quantizer as `QuantizedLayer` prepares it."""
    quantizer.build(weights.shape)
    quantizer.start_from(tensor(weights))
    return quantizer


def quantized(quantizer, weights):
    return ops.convert_to_numpy(started(quantizer, weights)(tensor(weights)))


def upstream(shape):
    return np.random.default_rng(9).normal(size=shape).astype("float32")


def gradients(quantizer, weights):
    """Gradients to the weights and the trainable variables; outputs weighted with `upstream`."""

    def total(w):
        return ops.sum(quantizer(w) * upstream(weights.shape))

    return gradients_of(total, [weights], quantizer.trainable_variables)


def largest_code(bits):
    return 2 ** (bits - 1) - 1


def on_symmetric_grid(w, scale, bits):
    k = largest_code(bits)
    return scale * np.clip(np.round(w / scale), -k, k)


def bits_of_floats(x):
    """float32 as integers: equal means equal to the last bit, signs of zeros too."""
    return np.asarray(x, "float32").view("uint32")


# ---- what every weight quantizer does --------------------------------------------------------


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", NAMES)
class TestEveryWeightQuantizer:
    def make(self, name, per_channel, **arguments):
        return WEIGHT_QUANTIZERS[name](per_channel=per_channel, **arguments)

    @pytest.mark.parametrize("bits", WIDTHS)
    def test_has_at_most_two_to_the_bits_values(self, name, per_channel, bits):
        q = quantized(self.make(name, per_channel, bits=bits), weights_of((2000, 2)))
        for channel in q.T if per_channel else [q]:
            assert 2 <= len(np.unique(channel)) <= 2**bits

    def test_uses_more_values_at_8_bits_than_fit_into_4(self, name, per_channel):
        # Not all 256: LSQ starts with 2 mean|w| / sqrt(127), which leaves the largest codes unused.
        q = quantized(self.make(name, per_channel, bits=8), weights_of((2000, 2), "uniform"))
        assert all(len(np.unique(channel)) > 16 for channel in q.T)

    @pytest.mark.parametrize("has_target_width", [False, True])
    def test_gives_the_weights_themselves_at_width_none(self, name, per_channel, has_target_width):
        w = weights_of()
        w[0, :2] = 0.0, -0.0
        q = quantized(self.make(name, per_channel, bits=None, has_target_width=has_target_width), w)
        np.testing.assert_array_equal(bits_of_floats(q), bits_of_floats(w))

    def test_passes_the_gradient_at_width_none(self, name, per_channel):
        w = weights_of()
        quantizer = started(self.make(name, per_channel, bits=3, has_target_width=True), w)
        quantizer.bits = None
        np.testing.assert_array_equal(gradients(quantizer, w)[0], upstream(w.shape))

    @pytest.mark.parametrize("bits", [2, 3, 4, 8])
    def test_computes_the_same_with_a_run_time_width(self, name, per_channel, bits):
        w = weights_of()
        constant = quantized(self.make(name, per_channel, bits=bits), w)
        run_time = quantized(self.make(name, per_channel, bits=bits, has_target_width=True), w)
        np.testing.assert_allclose(run_time, constant, atol=TOLERANCE)

    @pytest.mark.tensorflow
    @pytest.mark.parametrize("bits", [2, 8])
    @pytest.mark.parametrize("value", [0.0, 1e-12, -0.5, 1e4])
    def test_gives_finite_values_and_gradients_for_constant_weights(
        self, name, per_channel, bits, value
    ):
        w = np.full((5, 4), value, "float32")
        quantizer = started(self.make(name, per_channel, bits=bits), w)
        assert np.isfinite(quantizer(tf.constant(w))).all()
        assert all(np.isfinite(gradient).all() for gradient in gradients(quantizer, w))

    @pytest.mark.tensorflow
    def test_computes_float16_weights_in_float32(self, name, per_channel):
        w = weights_of().astype("float16")
        quantizer = started(self.make(name, per_channel, bits=4), w.astype("float32"))
        q = quantizer(tf.constant(w))
        assert q.dtype == tf.float32
        np.testing.assert_array_equal(q, quantizer(tf.constant(w.astype("float32"))))

    def test_goes_through_its_config(self, name, per_channel):
        quantizer = self.make(name, per_channel, bits=3, has_target_width=True, channel_axes=(0, 2))
        again = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(quantizer)
        )
        assert type(again) is type(quantizer)
        assert again.get_config() == quantizer.get_config()

    def test_keeps_its_arguments_in_its_config(self, name, per_channel):
        config = self.make(name, per_channel, bits=3, channel_axes=(0, 2)).get_config()
        wanted = {
            "bits": 3,
            "has_target_width": False,
            "per_channel": per_channel,
            "channel_axes": [0, 2],
        }
        assert {key: config[key] for key in wanted} == wanted

    @pytest.mark.tensorflow
    def test_works_under_xla(self, name, per_channel):
        w = weights_of()
        quantizer = started(self.make(name, per_channel, bits=3), w)
        compiled = tf.function(quantizer, jit_compile=True)(tf.constant(w))
        # Values on the same grid, whose scale XLA sums up in another order.
        np.testing.assert_allclose(compiled, quantizer(tf.constant(w)), rtol=1e-4, atol=TOLERANCE)


def alone(weights, axes, index):
    """One channel's weights with the other channels cut away."""
    for axis, i in zip(axes, index, strict=True):
        weights = np.take(weights, [i], axis=axis)
    return weights


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((9, 4), (-1,)), ((3, 3, 2, 4), (3,)), ((3, 3, 4, 2), (2, 3)), ((5, 6), (0,))],
    ids=["dense", "conv", "depthwise", "embedding"],
)
@pytest.mark.parametrize("name", NAMES)
def test_per_channel_each_channel_is_quantized_as_if_alone(name, shape, axes):
    w = weights_of(shape) * np.linspace(0.1, 3, shape[axes[0]]).reshape(
        [-1 if axis == axes[0] % len(shape) else 1 for axis in range(len(shape))]
    ).astype("float32")
    cls = WEIGHT_QUANTIZERS[name]
    q = quantized(cls(bits=3, per_channel=True, channel_axes=axes), w)
    for index in np.ndindex(*[shape[axis] for axis in axes]):
        expected = quantized(cls(bits=3), alone(w, axes, index))
        np.testing.assert_allclose(alone(q, axes, index), expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_per_tensor_all_channels_share_one_grid(name):
    w = weights_of((300, 4)) * np.float32([0.5, 1, 2, 3])
    assert len(np.unique(quantized(WEIGHT_QUANTIZERS[name](bits=3), w))) <= 8


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", NAMES)
class TestRunTimeWidths:
    @pytest.fixture
    def case(self, name):
        """A quantizer, a compiled call, and the list of its traces."""
        w = weights_of()
        quantizer = started(WEIGHT_QUANTIZERS[name](bits=2, has_target_width=True), w)
        traces = []

        @tf.function
        def call():
            traces.append(1)
            return quantizer(tf.constant(w))

        return quantizer, call, traces

    def test_are_changed_without_another_trace(self, name, case):
        quantizer, call, traces = case
        for bits in (8, 2, None, 5, 2):
            quantizer.bits = bits
            call()
        assert len(traces) == 1

    def test_take_effect_inside_a_compiled_function(self, name, case):
        quantizer, call, _ = case
        counts = []
        for bits in (2, 4, None):
            quantizer.bits = bits
            counts.append(len(np.unique(call())))
        assert counts[0] <= 4 < counts[1] <= 16 < counts[2] == 240

    def test_are_read_back_from_the_variable(self, name, case):
        quantizer, _, _ = case
        for bits in (2, 8, None):
            quantizer.bits = bits
            assert quantizer.bits == bits

    def test_are_drawn_by_a_stateless_scope(self, name, case):
        quantizer, _, _ = case
        w = weights_of()
        quantizer.bits = 2
        with keras.StatelessScope([(quantizer.width, tf.constant(8.0))]):
            assert len(np.unique(quantizer(tf.constant(w)))) > 16
        assert quantizer.bits == 2


# ---- minmax ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
def test_minmax_rounds_to_multiples_of_the_largest_weight_over_k(bits):
    w = weights_of()
    expected = on_symmetric_grid(w, np.abs(w).max() / largest_code(bits), bits)
    np.testing.assert_allclose(quantized(MinMax(bits=bits), w), expected, atol=TOLERANCE)


@pytest.mark.parametrize("bits", WIDTHS)
def test_minmax_keeps_the_largest_weight(bits):
    w = weights_of()
    assert np.abs(quantized(MinMax(bits=bits), w)).max() == pytest.approx(np.abs(w).max(), rel=1e-6)


@pytest.mark.parametrize("cls", [MinMax, MSE, SAWB])
@pytest.mark.parametrize("bits", WIDTHS)
def test_where_the_range_is_a_statistic_the_gradient_is_one_everywhere(cls, bits):
    w = weights_of()
    (gradient,) = gradients(started(cls(bits=bits), w), w)
    np.testing.assert_array_equal(gradient, upstream(w.shape))


@pytest.mark.parametrize("cls", [MinMax, MSE, SAWB])
def test_where_the_range_is_a_statistic_values_are_exact_multiples(cls):
    w = weights_of((2000, 2))
    w[0, 0] = 9.0  # far outside
    q = np.unique(quantized(cls(bits=3), w))
    unit = q[q > 0].min()
    # Code times scale, one float32 product each: nothing of the weight is left in the value.
    np.testing.assert_array_equal(q, (unit * np.round(q / unit)).astype("float32"))


# ---- mse -------------------------------------------------------------------------------------


def squared_error(q, w):
    return float(((np.asarray(q, "float64") - w) ** 2).sum())


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform", "sparse"])
@pytest.mark.parametrize("bits", WIDTHS)
class TestMSE:
    def test_is_close_to_the_least_error_of_all_scales(self, bits, kind):
        w = weights_of((1000, 2), kind)
        scales = np.abs(w).max() / largest_code(bits) * np.linspace(0.02, 1, 400)
        least = min(squared_error(on_symmetric_grid(w, scale, bits), w) for scale in scales)
        # The candidates are 12 % apart, and refining finds the nearest valley, not the deepest.
        assert squared_error(quantized(MSE(bits=bits), w), w) < 1.25 * least

    def test_is_never_worse_than_the_start_of_lsq(self, bits, kind):
        w = weights_of((1000, 2), kind)
        k = largest_code(bits)
        start = min(2 * np.abs(w).mean() / np.sqrt(k), np.abs(w).max() / k)
        error = squared_error(on_symmetric_grid(w, start, bits), w)
        assert squared_error(quantized(MSE(bits=bits), w), w) <= error * (1 + 1e-6)

    def test_has_the_best_scale_for_its_codes(self, bits, kind):
        w = weights_of((1000, 2), kind)
        q = quantized(MSE(bits=bits), w)
        # At the best scale the error is orthogonal to the codes. Refining stops after four rounds,
        # a hundredth short of it on wide grids.
        assert abs(((q - w) * q).sum()) < 0.01 * (q * q).sum()


def test_mse_of_four_weights_by_hand():
    # Codes -1, 0, 0, 1: the best scale is (0.8 + 1.0) / 2.
    q = quantized(MSE(bits=2), np.float32([[-0.8, 0.0, 0.1, 1.0]]))
    np.testing.assert_allclose(q, [[-0.9, 0, 0, 0.9]], rtol=1e-6)


# ---- sawb ------------------------------------------------------------------------------------

PUBLISHED = {2: (3.12, 2.064), 3: (6.99146, 6.34798), 4: (12.04287, 12.0704)}


def sawb_clip(w, bits):
    if bits not in PUBLISHED:
        return np.abs(w).max()
    c1, c2 = PUBLISHED[bits]
    w = w.astype("float64")
    clip = c1 * np.sqrt((w**2).mean()) - c2 * np.abs(w).mean()
    return clip if clip > 0 else np.abs(w).max()


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform"])
def test_sawb_at_2_bits_has_four_levels_without_zero(kind):
    w = weights_of((2000, 2), kind)
    third = sawb_clip(w, 2) / 3
    levels = third * np.array([-3, -1, 1, 3])
    nearest = levels[np.abs(w[..., None] - levels).argmin(-1)]
    np.testing.assert_allclose(quantized(SAWB(bits=2), w), nearest, atol=TOLERANCE)


@pytest.mark.parametrize("kind", ["normal", "laplace", "uniform"])
@pytest.mark.parametrize("bits", range(3, 9))
def test_sawb_from_3_bits_on_has_odd_grids_with_zero(bits, kind):
    w = weights_of((2000, 2), kind)
    expected = on_symmetric_grid(w, sawb_clip(w, bits) / largest_code(bits), bits)
    # The difference of two sums, each ten times as large.
    np.testing.assert_allclose(quantized(SAWB(bits=bits), w), expected, atol=10 * TOLERANCE)


@pytest.mark.parametrize("bits", [3, 4])
def test_sawb_takes_the_largest_weight_where_the_moments_give_nothing(bits):
    w = np.full((50, 2), 0.3, "float32")  # c1 < c2 at 4 bits; at 3 bits c1 - c2 = 0.64 is positive
    expected = 0.3 if bits == 4 else 0.3 * (6.99146 - 6.34798)
    np.testing.assert_allclose(quantized(SAWB(bits=bits), w), expected, rtol=1e-5)


def test_sawb_of_four_weights_by_hand():
    # E[w²] = 2.05 / 4, E|w| = 2.3 / 4: alpha = 3.12 · 0.71589 - 2.064 · 0.575 = 1.04678.
    q = quantized(SAWB(bits=2), np.float32([[-1.0, -0.2, 0.1, 1.0]]))
    np.testing.assert_allclose(q, [[-1.04678, -0.34893, 0.34893, 1.04678]], rtol=1e-4)


# ---- dorefa ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
def test_dorefa_is_the_paper_s_formula(bits):
    w = weights_of()
    squashed = np.tanh(w.astype("float64"))
    steps = 2**bits - 1
    unit = squashed / (2 * np.abs(squashed).max()) + 0.5
    expected = 2 * np.round(steps * unit) / steps - 1
    np.testing.assert_allclose(quantized(DoReFa(bits=bits), w), expected, atol=TOLERANCE)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_gradient_of_dorefa_is_that_of_tanh_over_its_largest_value(bits):
    w = weights_of()
    squashed = np.tanh(w.astype("float64"))
    expected = upstream(w.shape) * (1 - squashed**2) / np.abs(squashed).max()
    (gradient,) = gradients(started(DoReFa(bits=bits), w), w)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=TOLERANCE)


# ---- lsq -------------------------------------------------------------------------------------


class LSQOracle:
    """LSQ in float64, one scale for the whole array."""

    def __init__(self, w, bits, scale=None):
        self.w = w.astype("float64")
        self.low, self.high = max(-(2 ** (bits - 1)), -127), 2 ** (bits - 1) - 1
        self.start = 2 * np.abs(self.w).mean() / np.sqrt(self.high)
        self.scale = self.start if scale is None else scale
        v = self.w / self.scale
        self.codes = np.round(np.clip(v, self.low, self.high))
        self.inside = (v > self.low) & (v < self.high)
        self.values = self.codes * self.scale
        self.to_scale = np.where(self.inside, self.codes - v, self.codes)
        self.factor = 1 / np.sqrt(w.size * self.high)


@pytest.mark.parametrize("bits", WIDTHS)
class TestLSQ:
    def test_starts_at_twice_the_mean_magnitude_over_the_root_of_the_largest_code(self, bits):
        w = weights_of()
        quantizer = started(LSQ(bits=bits), w)
        np.testing.assert_allclose(quantizer.scale, [[LSQOracle(w, bits).start]], rtol=1e-6)

    def test_rounds_to_codes_of_two_s_complement(self, bits):
        w = weights_of()
        expected = LSQOracle(w, bits).values
        np.testing.assert_allclose(quantized(LSQ(bits=bits), w), expected, atol=TOLERANCE)

    def test_has_gradient_one_inside_the_range_and_zero_outside(self, bits):
        w = weights_of()
        quantizer = started(LSQ(bits=bits), w)
        quantizer.scale.assign([[0.5 / 2 ** (bits - 1)]])
        oracle = LSQOracle(w, bits, 0.5 / 2 ** (bits - 1))
        assert not oracle.inside.all()
        np.testing.assert_allclose(
            gradients(quantizer, w)[0], upstream(w.shape) * oracle.inside, atol=TOLERANCE
        )

    def test_has_the_paper_s_gradient_to_the_scale(self, bits):
        w = weights_of()
        quantizer = started(LSQ(bits=bits), w)
        quantizer.scale.assign([[0.5 / 2 ** (bits - 1)]])
        oracle = LSQOracle(w, bits, 0.5 / 2 ** (bits - 1))
        expected = (upstream(w.shape) * oracle.to_scale).sum() * oracle.factor
        # A float32 sum of 240 codes of up to 2^(b-1), times the factor.
        size = np.abs(upstream(w.shape) * oracle.to_scale).sum() * oracle.factor
        np.testing.assert_allclose(gradients(quantizer, w)[1], [[expected]], atol=1e-5 * size)

    def test_has_one_gradient_per_channel_with_the_channel_s_own_factor(self, bits):
        w = weights_of((30, 8)) * np.linspace(0.5, 2, 8, dtype="float32")
        quantizer = started(LSQ(bits=bits, per_channel=True), w)
        channels = [LSQOracle(w[:, i], bits) for i in range(8)]
        expected = [
            (upstream(w.shape)[:, i] * c.to_scale).sum() * c.factor for i, c in enumerate(channels)
        ]
        gradient = gradients(quantizer, w)[1]
        np.testing.assert_allclose(gradient, [expected], rtol=1e-3, atol=1e-4)

    @pytest.mark.tensorflow
    def test_keeps_its_range_at_another_width(self, bits):
        w = weights_of()
        quantizer = started(LSQ(bits=4, has_target_width=True), w)
        quantizer.bits = bits
        # 4 bits have 7 positive codes; the largest value stays 7 s.
        scale = LSQOracle(w, 4).start * 7 / largest_code(bits)
        expected = LSQOracle(w, bits, scale).values
        np.testing.assert_allclose(quantizer(tf.constant(w)), expected, atol=2 * TOLERANCE)

    def test_a_copy_at_this_width_starts_as_one_made_with_it(self, bits):
        w = weights_of()
        np.testing.assert_array_equal(
            quantized(LSQ().copy(bits=bits), w), quantized(LSQ(bits=bits), w)
        )


@pytest.mark.tensorflow
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_calibration_finds_a_finer_scale_for_wide_lsq(bits, per_channel):
    w = weights_of((3000, 4)) * np.float32([1, 2, 5, 0.1])
    quantizer = started(LSQ(bits=bits, per_channel=per_channel), w)
    start = quantizer.scale.numpy()
    quantizer.calibrate(w)
    if bits <= 4:  # the paper's start
        np.testing.assert_array_equal(quantizer.scale.numpy(), start)
        return
    for number, column in enumerate(w.T if per_channel else [w]):
        scales = np.abs(column).max() / np.linspace(0.4, 1, 200) / 2 ** (bits - 1)
        best = min(squared_error(LSQOracle(column, bits, s).values, column) for s in scales)
        mine = LSQOracle(column, bits, quantizer.scale.numpy().ravel()[number]).values
        # Of 17 candidates and refinement; the start is 4 to 20 times the least error at 8 bits.
        assert squared_error(mine, column) < 1.2 * best


@pytest.mark.tensorflow
def test_calibration_leaves_a_trained_lsq_scale_alone():
    w = weights_of()
    quantizer = started(LSQ(bits=8), w)
    quantizer.scale.assign(quantizer.scale * 0.9)
    before = quantizer.scale.numpy()
    quantizer.calibrate(w)
    np.testing.assert_array_equal(quantizer.scale.numpy(), before)


def test_a_copy_of_lsq_that_keeps_its_width_keeps_the_width_of_its_scale():
    quantizer = started(LSQ(bits=4, has_target_width=True), weights_of())
    quantizer.bits = 2
    assert quantizer.copy(name="copy").made_with_bits == 4


@pytest.mark.tensorflow
@pytest.mark.parametrize("scale", [0.0, -1e-3, -1e6])
def test_an_lsq_scale_that_is_not_positive_gives_finite_values_and_gradients(scale):
    w = weights_of()
    quantizer = started(LSQ(bits=3), w)
    quantizer.scale.assign([[scale]])
    assert np.isfinite(quantizer(tf.constant(w))).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients(quantizer, w))


@pytest.mark.parametrize("scale", [0.0, -1e-3, -1e6])
def test_the_gradient_to_an_lsq_scale_below_zero_is_alive(scale):
    quantizer = started(LSQ(bits=3), weights_of((1, 1)))
    quantizer.scale.assign([[scale]])
    # Above the range: the largest code, 3, times 1 / sqrt(1 * 3).
    _, gradient = gradients(quantizer, np.float32([[5.0]]))
    np.testing.assert_allclose(gradient, upstream((1, 1)) * np.sqrt(3), rtol=1e-5)


@pytest.mark.tensorflow
def test_an_lsq_scale_pushed_below_zero_by_a_huge_step_recovers():
    w = tf.constant(weights_of((50, 4)))
    quantizer = started(LSQ(bits=3), w)

    def step(learning_rate, target):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((quantizer(w) - target) ** 2)
        optimizer = keras.optimizers.SGD(learning_rate)
        optimizer.apply(tape.gradient(loss, quantizer.trainable_variables), [quantizer.scale])
        return float(loss)

    best = min(squared_error(LSQOracle(w.numpy(), 3, s).values, w.numpy()) for s in START_SCALES)
    step(1e6, target=0.0)
    assert quantizer.scale.numpy() < 1e-4
    for _ in range(40):
        loss = step(20.0, target=w)
    assert loss * 200 < 1.5 * best


START_SCALES = np.linspace(0.02, 0.5, 100)


def test_only_lsq_and_qil_train_anything():
    trained = {}
    for name, cls in WEIGHT_QUANTIZERS.items():
        quantizer = started(cls(bits=3, has_target_width=True), weights_of())
        trained[name] = [variable.name for variable in quantizer.trainable_variables]
    assert {name: names for name, names in trained.items() if names} == {
        "lsq": ["scale"],
        "qil": ["center", "half_width", "exponent"],
    }


# ---- QIL -------------------------------------------------------------------------------------


def qil(w, center, half_width, exponent, bits, rounds=True):
    """Jung et al., Eq. 3 and 4, weight by weight, with their own α and β."""
    alpha, beta, k = 0.5 / half_width, -0.5 * center / half_width + 0.5, largest_code(bits)
    out = np.zeros_like(w, "float64")
    for index, value in np.ndenumerate(np.asarray(w, "float64")):
        if abs(value) > center + half_width:
            out[index] = np.sign(value)
        elif abs(value) >= center - half_width:
            out[index] = (alpha * abs(value) + beta) ** exponent * np.sign(value)
    return np.round(out * k) / k if rounds else out


def qil_at(center, half_width, exponent, bits):
    quantizer = started(QIL(bits=bits), weights_of())
    for variable, value in zip(
        quantizer.trainable_variables, (center, half_width, exponent), strict=True
    ):
        variable.assign(np.full(variable.shape, value))
    return quantizer


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("bits", WIDTHS)
def test_qil_is_the_paper_s_formula(bits, exponent):
    w = weights_of()
    expected = qil(w, 0.3, 0.2, exponent, bits)
    assert {0, 1} <= set(np.abs(expected).ravel())
    np.testing.assert_allclose(qil_at(0.3, 0.2, exponent, bits)(tensor(w)), expected, atol=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_the_gradients_of_qil_are_those_of_its_curve(exponent):
    w = weights_of()
    point = np.array([0.3, 0.2, exponent])
    # Away from the ends of the interval, where the curve has a kink.
    w = w[np.all(np.abs(np.abs(w) - [[[0.1]], [[0.5]]]) > 1e-2, axis=0)][:, None]
    found = gradients(qil_at(*point, bits=4), w)

    def total(point, w=w):
        return np.sum(qil(w, *point, bits=4, rounds=False) * upstream(w.shape))

    step = 1e-5
    for number in range(3):
        move = step * np.eye(3)[number]
        expected = (total(point + move) - total(point - move)) / (2 * step)
        assert float(np.sum(found[1 + number])) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    exact = w.astype("float64")
    ends = [qil(exact + move, *point, bits=4, rounds=False) for move in (step, -step)]
    slope = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(found[0], slope * upstream(w.shape), rtol=1e-3, atol=1e-3)


def test_qil_prunes_what_lies_below_its_interval():
    w = np.float32([[-0.05, 0.09, 0.11, 0.6]])
    q = qil_at(0.3, 0.2, 1.0, bits=8)(tensor(w))
    assert (np.asarray(q) != 0).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(("bits", "kind"), [(33, ValueError), (2.5, TypeError), (True, TypeError)])
def test_lsq_refuses_a_scale_of_an_impossible_width(bits, kind):
    with pytest.raises(kind, match="`made_with_bits` must be a whole number from 2 to 8"):
        LSQ(made_with_bits=bits)


# ---- the registry ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_quantizer_is_found_by_its_name(name):
    assert type(get_weight_quantizer(name)) is WEIGHT_QUANTIZERS[name]


def test_a_class_stands_for_an_object_with_its_defaults():
    assert get_weight_quantizer(SAWB).get_config()["per_channel"] is False


def test_an_object_is_itself():
    quantizer = SAWB(per_channel=True)
    assert get_weight_quantizer(quantizer) is quantizer


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_nearest():
    with pytest.raises(ValueError, match="must be one of 'sawb', 'minmax', .*Did you mean 'sawb'?"):
        get_weight_quantizer("swab")


@pytest.mark.parametrize("value", [None, 3, keras.layers.Dense])
def test_what_is_no_quantizer_is_refused(value):
    with pytest.raises(
        TypeError, match="`weight_quantizer` must be one of 'sawb', .* or a quantizer"
    ):
        get_weight_quantizer(value)


def test_an_activation_quantizer_is_no_weight_quantizer():
    with pytest.raises(TypeError, match="`weight_quantizer` must be .* of class WeightQuantizer"):
        get_weight_quantizer(quantizers.PACT())


@pytest.fixture
def restored_registry():
    before, objects = dict(WEIGHT_QUANTIZERS), dict(keras.saving.get_custom_objects())
    yield
    WEIGHT_QUANTIZERS.clear()
    WEIGHT_QUANTIZERS.update(before)
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(objects)


class Halves(WeightQuantizer):
    def round_to_grid(self, weights, bits):
        return tf.round(weights * 2) / 2


@pytest.mark.tensorflow
def test_a_quantizer_of_ones_own_gets_a_name(restored_registry):
    register_quantizer("halves", Halves)
    q = get_weight_quantizer("halves")(tf.constant([0.3, 1.1]))
    np.testing.assert_array_equal(q, [0.5, 1.0])


def test_a_quantizer_of_ones_own_is_found_by_saved_models(restored_registry):
    register_quantizer("halves", Halves)
    saved = keras.saving.serialize_keras_object(Halves(bits=3))
    assert type(keras.saving.deserialize_keras_object(saved)) is Halves


def test_a_taken_name_is_refused(restored_registry):
    with pytest.raises(
        ValueError, match=r"`name` must be new\. Received: name='sawb'\. Taken: sawb"
    ):
        register_quantizer("sawb", Halves)


@pytest.mark.parametrize("cls", [keras.layers.Dense, 3, SAWB()], ids=["layer", "number", "object"])
def test_only_quantizer_classes_are_registered(restored_registry, cls):
    with pytest.raises(
        TypeError, match="`cls` must be a subclass of WeightQuantizer or Activation"
    ):
        register_quantizer("mine", cls)


# ---- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("bits", "kind"),
    [(0, ValueError), (1, ValueError), (9, ValueError), (2.5, TypeError), ("3", TypeError)],
)
class TestImpossibleWidths:
    def test_are_refused_by_the_constructor(self, name, bits, kind):
        with pytest.raises(kind, match="`bits` must be a whole number from 2 to 8, or None"):
            WEIGHT_QUANTIZERS[name](bits=bits)

    def test_are_refused_later(self, name, bits, kind):
        quantizer = started(WEIGHT_QUANTIZERS[name](has_target_width=True), weights_of())
        with pytest.raises(kind, match="`bits` must be a whole number from 2 to 8, or None"):
            quantizer.bits = bits
