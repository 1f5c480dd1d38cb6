"""Activation quantizers against NumPy in float64, and what every registered one has to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gradients import gradients_of, tensor
from keras import ops

from speq_keras.quantizers import (
    ACTIVATION_QUANTIZERS,
    PACT,
    DoReFaActivation,
    FixedRange,
    LSQPlus,
    get_activation_quantizer,
)
from speq_keras.quantizers.histogram import Histogram

pytestmark = pytest.mark.every_backend

WIDTHS = range(2, 9)
NAMES = list(ACTIVATION_QUANTIZERS)
# The fused kernel works in float32 on codes and offsets of up to 255: 255 * 2**-23 = 3e-5.
STEP_TOLERANCE = 1e-4


def built(quantizer, shape=(None, 1)):
    quantizer.build(shape)
    return quantizer


def quantized(quantizer, x):
    return ops.convert_to_numpy(quantizer(tensor(x)))


def upstream(shape):
    return np.random.default_rng(9).normal(size=shape).astype("float32")


def gradients(quantizer, x):
    """Gradients to x and the trainable variables; outputs weighted with `upstream`."""

    def total(x):
        return ops.sum(quantizer(x) * upstream(x.shape))

    return gradients_of(total, [x], quantizer.trainable_variables)


def values_away_from_ties(scale, low, high, count=400):
    """Values in and around the range, at most 0.45 of a step from a multiple of the scale.

    None has the code of an end, where gradients jump.
    """
    rng = np.random.default_rng(0)
    codes = rng.integers(low - 5, high + 6, count)
    codes = np.where((codes == low) | (codes == high), codes + 7 * np.sign(codes - 0.5), codes)
    return ((codes + rng.uniform(-0.45, 0.45, count)) * scale).astype("float32")[:, None]


def code_range(bits, signed):
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def on_grid(x, scale, low, high):
    return scale * np.clip(np.round(np.asarray(x, "float64") / scale), low, high)


def train(quantizer, x, target, *, learning_rate, steps):
    """Plain gradient descent on mean squared error; returns the last loss."""
    x = tf.constant(x, "float32")
    variables = quantizer.trainable_variables
    optimizer = keras.optimizers.SGD(learning_rate)
    optimizer.build(variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((quantizer(x) - target) ** 2)
        optimizer.apply(tape.gradient(loss, variables), variables)

    for _ in range(steps):
        step()
    return float(tf.reduce_mean((quantizer(x) - target) ** 2))


DENSE = np.linspace(-9, 9, 4001, dtype="float32")[:, None]


# ---- what every activation quantizer does ----------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", NAMES)
class TestEveryActivationQuantizer:
    def make(self, kind, signed, **arguments):
        return built(ACTIVATION_QUANTIZERS[kind](signed=signed, **arguments))

    @pytest.mark.parametrize("bits", WIDTHS)
    @pytest.mark.parametrize("has_target_width", [False, True])
    def test_has_at_most_two_to_the_bits_values(self, kind, signed, bits, has_target_width):
        quantizer = self.make(kind, signed, bits=bits, has_target_width=has_target_width)
        values = np.unique(quantized(quantizer, DENSE).round(5))
        assert 2 ** (bits - 1) < len(values) <= 2**bits

    @pytest.mark.parametrize("bits", [*WIDTHS, None])
    def test_keeps_zero(self, kind, signed, bits):
        assert quantized(self.make(kind, signed, bits=bits), [[0.0]]) == 0

    @pytest.mark.parametrize("has_target_width", [False, True])
    def test_clips_and_does_not_round_at_width_none(self, kind, signed, has_target_width):
        quantizer = self.make(kind, signed, bits=None, has_target_width=has_target_width)
        y = quantized(quantizer, DENSE)
        low, high = y.min(), y.max()
        assert len(np.unique(y)) > 200
        # One float32 division and multiplication at most.
        np.testing.assert_allclose(y, np.clip(DENSE, low, high), rtol=3e-7, atol=3e-7)

    def test_clips_at_both_ends_at_width_none(self, kind, signed):
        y = quantized(self.make(kind, signed, bits=None), [[-1e4], [1e4]])
        assert np.abs(y).max() < 10

    @pytest.mark.parametrize("bits", WIDTHS)
    def test_computes_the_same_with_a_run_time_width(self, kind, signed, bits):
        constant = self.make(kind, signed, bits=bits)
        run_time = self.make(kind, signed, bits=bits, has_target_width=True)
        # At most a step apart where a value is a tie for one of two kernels; here none is.
        np.testing.assert_allclose(
            quantized(run_time, DENSE), quantized(constant, DENSE), atol=STEP_TOLERANCE
        )

    @pytest.mark.tensorflow
    def test_changes_its_width_without_another_trace(self, kind, signed):
        quantizer = self.make(kind, signed, bits=4, has_target_width=True)
        traces = []

        @tf.function
        def call(x):
            traces.append(1)
            return quantizer(x)

        counts = []
        for bits in (2, None, 8, 3):
            quantizer.bits = bits
            counts.append(len(np.unique(call(tf.constant(DENSE)).numpy().round(5))))
        assert len(traces) == 1
        assert counts[0] <= 4 < counts[3] <= 8 < counts[2] <= 256 or counts[1] > 256

    @pytest.mark.tensorflow
    def test_holds_a_target_width_in_a_variable_that_is_not_trained(self, kind, signed):
        quantizer = self.make(kind, signed, bits=3, has_target_width=True)
        assert float(quantizer.width.numpy()) == 3
        assert not quantizer.width.trainable

    def test_holds_a_constant_width_in_no_variable(self, kind, signed):
        quantizer = self.make(kind, signed, bits=3)
        assert quantizer.width is None
        assert "bits" not in [variable.name for variable in quantizer.variables]

    @pytest.mark.tensorflow
    def test_holds_float_as_a_width_of_zero(self, kind, signed):
        quantizer = self.make(kind, signed, bits=3, has_target_width=True)
        quantizer.bits = None
        assert float(quantizer.width.numpy()) == 0
        assert quantizer.bits is None

    @pytest.mark.tensorflow
    def test_takes_its_width_from_a_stateless_scope(self, kind, signed):
        quantizer = self.make(kind, signed, bits=2, has_target_width=True)
        x = tf.constant(DENSE)
        with keras.StatelessScope([(quantizer.width, tf.constant(5.0))]):
            drawn = len(np.unique(quantizer(x).numpy().round(5)))
        assert 16 < drawn <= 32
        assert quantizer.bits == 2

    @pytest.mark.tensorflow
    @pytest.mark.parametrize("bits", [3, None])
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_gives_the_dtype_it_gets(self, kind, signed, dtype, bits):
        quantizer = self.make(kind, signed, bits=bits)
        assert quantizer(tf.cast(DENSE, dtype)).dtype == dtype

    @pytest.mark.tensorflow
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_computes_in_float32_whatever_the_dtype(self, kind, signed, dtype):
        quantizer = self.make(kind, signed, bits=8)
        x = tf.cast(DENSE, dtype)
        expected = tf.cast(quantizer(tf.cast(x, "float32")), dtype)
        np.testing.assert_array_equal(
            tf.cast(quantizer(x), "float32"), tf.cast(expected, "float32")
        )

    def test_has_float32_variables_under_a_mixed_policy(self, kind, signed):
        before = keras.config.dtype_policy()
        try:
            keras.config.set_dtype_policy("mixed_bfloat16")
            quantizer = self.make(kind, signed, bits=3, has_target_width=True)
        finally:
            keras.config.set_dtype_policy(before)
        assert {variable.dtype for variable in quantizer.variables} == {"float32"}

    @pytest.mark.parametrize("bits", [2, 3, 8])
    def test_knows_its_grid(self, kind, signed, bits):
        quantizer = self.make(kind, signed, bits=bits)
        scale, low, high = quantizer.grid()
        ends = quantized(quantizer, [[-1e4], [1e4]]).ravel()
        np.testing.assert_allclose(ends / scale, [low, high], atol=STEP_TOLERANCE * 255)
        assert high - low == 2**bits - 1

    def test_knows_that_it_has_no_grid_at_width_none(self, kind, signed):
        assert self.make(kind, signed, bits=None).grid() is None

    def test_passes_masks_on(self, kind, signed):
        assert self.make(kind, signed).supports_masking

    def test_promises_the_shape_it_gives(self, kind, signed):
        inputs = keras.Input((5, 3), dtype="bfloat16")
        outputs = ACTIVATION_QUANTIZERS[kind](signed=signed)(inputs)
        assert (outputs.shape, outputs.dtype) == (inputs.shape, "bfloat16")

    @pytest.mark.tensorflow
    @pytest.mark.parametrize(
        "values",
        [[0.0], [3.7] * 9, [-2.0], [1.0, 1.0000001], [0.5, 0.50001], [1e-30, 2e-30], [-1e30, 1e30]],
        ids=str,
    )
    def test_is_finite_after_calibration_on_odd_values(self, kind, signed, values):
        quantizer = self.make(kind, signed, bits=3)
        quantizer.calibrate(Histogram(np.float32(values)))
        y = quantized(quantizer, [[-1.0], [0.0], [0.3], [5.0]])
        assert np.isfinite(y).all()
        assert all(np.isfinite(variable.numpy()).all() for variable in quantizer.variables)

    def test_goes_through_its_config(self, kind, signed):
        quantizer = ACTIVATION_QUANTIZERS[kind](
            signed=signed, bits=3, has_target_width=True, nonnegative_input=True, weight_decay=0.25
        )
        again = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(quantizer)
        )
        assert type(again) is type(quantizer)
        assert again.get_config() == quantizer.get_config()

    def test_keeps_its_arguments_in_its_config(self, kind, signed):
        wanted = {
            "signed": signed,
            "bits": 3,
            "has_target_width": True,
            "nonnegative_input": True,
            "weight_decay": 0.25,
        }
        config = ACTIVATION_QUANTIZERS[kind](**wanted).get_config()
        assert {key: config[key] for key in wanted} == wanted

    def test_keeps_its_arguments_in_a_copy(self, kind, signed):
        quantizer = ACTIVATION_QUANTIZERS[kind](signed=signed, bits=3, weight_decay=0.25)
        config, copied = quantizer.get_config(), quantizer.copy(name="another").get_config()
        assert copied.pop("name") == "another"
        config.pop("name")
        assert copied == config

    def test_is_calibrated_after_calibration(self, kind, signed):
        quantizer = self.make(kind, signed)
        quantizer.calibrate(Histogram(DENSE))
        assert quantizer.is_calibrated

    def test_carries_its_range_and_calibration_in_a_weights_file(self, kind, signed, tmp_path):
        def model():
            layer = ACTIVATION_QUANTIZERS[kind](signed=signed, bits=3)
            return keras.Sequential([keras.Input((1,)), layer]), layer

        saved, quantizer = model()
        quantizer.calibrate(Histogram(DENSE / 3))
        saved.save_weights(tmp_path / "q.weights.h5")
        loaded, again = model()
        loaded.load_weights(tmp_path / "q.weights.h5")
        assert again.is_calibrated
        np.testing.assert_array_equal(quantized(again, DENSE), quantized(quantizer, DENSE))

    @pytest.mark.tensorflow
    def test_stays_on_its_grid_under_xla(self, kind, signed):
        quantizer = self.make(kind, signed, bits=2, has_target_width=True)
        compiled = tf.function(quantizer, jit_compile=True)
        for bits in (2, 3, 8):
            quantizer.bits = bits
            scale, low, high = quantizer.grid()
            x = values_away_from_ties(scale, low, high)
            y = compiled(tf.constant(x)).numpy()
            np.testing.assert_allclose(y, on_grid(x, scale, low, high), atol=STEP_TOLERANCE * scale)

    @pytest.mark.parametrize(
        ("weight_decay", "error"),
        [(-0.1, ValueError), (float("nan"), ValueError), ("1", TypeError)],
    )
    def test_refuses_an_impossible_weight_decay(self, kind, signed, weight_decay, error):
        with pytest.raises(error, match=r"`weight_decay` must be a finite number in \[0, inf\]"):
            ACTIVATION_QUANTIZERS[kind](signed=signed, weight_decay=weight_decay)


@pytest.mark.parametrize("kind", ["pact", "lsq_plus", "fixed"])
def test_a_range_that_comes_from_data_is_not_calibrated_at_first(kind):
    assert not built(ACTIVATION_QUANTIZERS[kind]()).is_calibrated


@pytest.mark.parametrize("quantizer", [DoReFaActivation(), FixedRange(low=0.0, high=1.0)])
def test_a_range_that_is_given_is_calibrated_at_once(quantizer):
    assert built(quantizer).is_calibrated


def test_a_quantizer_that_is_not_built_is_not_calibrated():
    assert not PACT().is_calibrated


@pytest.mark.parametrize("kind", NAMES)
def test_an_activation_quantizer_is_found_by_its_name(kind):
    assert type(get_activation_quantizer(kind)) is ACTIVATION_QUANTIZERS[kind]


def test_an_unknown_activation_quantizer_is_refused_with_the_known_ones():
    sentence = "must be one of 'pact', 'lsq_plus', 'dorefa', 'fixed'.*Did you mean 'lsq_plus'?"
    with pytest.raises(ValueError, match=sentence):
        get_activation_quantizer("lsqplus")


# ---- pact ------------------------------------------------------------------------------------


def pact(alpha, **arguments):
    quantizer = built(PACT(**arguments))
    quantizer.alpha.assign(alpha)
    return quantizer


@pytest.mark.parametrize("alpha", [3e-4, 3e3])
@pytest.mark.parametrize("has_target_width", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
class TestPACT:
    @pytest.fixture(autouse=True)
    def case(self, bits, signed, has_target_width, alpha):
        self.quantizer = pact(alpha, bits=bits, signed=signed, has_target_width=has_target_width)
        self.low, self.high = code_range(bits, signed)
        self.scale = alpha / (-self.low if signed else self.high)
        self.x = values_away_from_ties(self.scale, self.low, self.high)
        self.below = self.x < self.low * self.scale
        self.above = self.x > self.high * self.scale

    def test_is_the_numpy_formula(self):
        expected = on_grid(self.x, self.scale, self.low, self.high)
        np.testing.assert_allclose(
            quantized(self.quantizer, self.x), expected, atol=STEP_TOLERANCE * self.scale
        )

    def test_passes_gradients_inside_the_range_only(self):
        to_x, _ = gradients(self.quantizer, self.x)
        inside = ~self.below & ~self.above
        np.testing.assert_array_equal(to_x, upstream(self.x.shape) * inside)

    def test_has_the_paper_s_gradient_to_the_clipping_level(self, signed, bits):
        # Unsigned: 1 above. Signed: the ends are alpha (1 - 2^(1-b)) and -alpha.
        to_alpha = self.above * (1 - 2.0 ** (1 - bits)) - self.below if signed else self.above
        expected = (upstream(self.x.shape) * to_alpha).sum()
        # A float32 sum of 400 terms of size 1.
        assert gradients(self.quantizer, self.x)[1] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("nonnegative_input", [False, True])
@pytest.mark.parametrize("has_target_width", [False, True])
@pytest.mark.parametrize("bits", [*WIDTHS, None])
def test_unsigned_pact_keeps_values_that_are_not_negative(
    bits, has_target_width, nonnegative_input
):
    quantizer = pact(
        6.0, bits=bits, has_target_width=has_target_width, nonnegative_input=nonnegative_input
    )
    x = np.abs(values_away_from_ties(6 / 255, 0, 255))
    steps = 255 if bits is None else 2**bits - 1
    y = quantized(quantizer, x)
    half_step = 0.5 * 6 / steps * (1 + STEP_TOLERANCE * 2)
    np.testing.assert_allclose(y, np.minimum(x, 6), atol=half_step)


@pytest.mark.parametrize("has_target_width", [False, True])
@pytest.mark.parametrize("bits", [*WIDTHS, None])
def test_unsigned_pact_of_a_negative_input_is_zero(bits, has_target_width):
    quantizer = pact(6.0, bits=bits, has_target_width=has_target_width, nonnegative_input=False)
    y = quantized(quantizer, [[-1e4], [-6.0], [-0.01], [-1e-30]])
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize("has_target_width", [False, True])
@pytest.mark.parametrize("bits", [*WIDTHS, None])
def test_unsigned_pact_passes_no_gradient_to_a_negative_input(bits, has_target_width):
    quantizer = pact(6.0, bits=bits, has_target_width=has_target_width)
    to_x, to_alpha = gradients(quantizer, [[-1e4], [-6.0], [-0.01]])
    np.testing.assert_array_equal(to_x, 0)
    assert to_alpha == 0


def test_pact_at_two_bits_by_hand():
    y = quantized(pact(6.0, bits=2), [[-1.0], [0.9], [1.1], [2.9], [3.1], [4.9], [5.1], [99.0]])
    np.testing.assert_allclose(y.ravel(), [0, 0, 2, 2, 4, 4, 6, 6], atol=1e-5)


def test_signed_pact_at_two_bits_by_hand():
    y = quantized(pact(4.0, bits=2, signed=True), [[-99.0], [-2.9], [-0.9], [1.1], [99.0]])
    np.testing.assert_allclose(y.ravel(), [-4, -2, 0, 2, 2], atol=1e-5)


@pytest.mark.parametrize("has_target_width", [False, True])
@pytest.mark.parametrize(("signed", "ends"), [(False, (0, 1)), (True, (-1, 127 / 128))])
class TestPACTAtWidthNone:
    """The ends of the range are those of 8 bits, in units of alpha."""

    def test_is_a_plain_clip(self, signed, ends, has_target_width):
        quantizer = pact(2.0, bits=None, signed=signed, has_target_width=has_target_width)
        expected = np.clip(DENSE, 2 * ends[0], 2 * ends[1])
        np.testing.assert_allclose(quantized(quantizer, DENSE), expected, rtol=3e-7)

    def test_trains_its_clipping_level(self, signed, ends, has_target_width):
        quantizer = pact(2.0, bits=None, signed=signed, has_target_width=has_target_width)
        gradient = gradients(quantizer, [[-5.0], [0.1], [5.0]])[1]
        weights = upstream((3, 1)).ravel()
        expected = ends[0] * weights[0] + ends[1] * weights[2]
        assert gradient == pytest.approx(expected, rel=1e-6)

    def test_passes_gradients_inside_the_range_only(self, signed, ends, has_target_width):
        quantizer = pact(2.0, bits=None, signed=signed, has_target_width=has_target_width)
        x = np.float32([[-5.0], [-0.1], [0.1], [5.0]])
        expected = upstream((4, 1)) * [[0], [signed], [1], [0]]
        np.testing.assert_allclose(gradients(quantizer, x)[0], expected)


@pytest.mark.tensorflow  # on JAX, `maximum` gives half of the gradient to each of two equal values
@pytest.mark.parametrize("alpha", np.random.default_rng(4).uniform(0.01, 9, 20).astype("float32"))
@pytest.mark.parametrize("bits", WIDTHS[:-1])  # at 8 the fused kernel has the same end, nearly
def test_a_drawn_signed_width_passes_the_gradient_of_its_lower_end_itself(bits, alpha):
    quantizer = pact(alpha, bits=bits, signed=True, has_target_width=True)
    low = -np.float32(alpha)  # code -2^(b-1) times alpha / 2^(b-1), exact in float32
    x = np.stack([np.nextafter(low, np.float32(-99)), low, np.nextafter(low, np.float32(0))])
    to_x, to_alpha = gradients(quantizer, x[:, None])
    weights = upstream((3, 1)).ravel()
    np.testing.assert_array_equal(to_x.ravel(), weights * [0, 1, 1])
    assert to_alpha == pytest.approx(-weights[0], rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, -1e-6, -3.0, -1e6, -1e30])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 8, None])
class TestPACTWithAClippingLevelBelowZero:
    def test_gives_values_as_small_as_the_smallest_level(self, bits, signed, alpha):
        y = quantized(pact(alpha, bits=bits, signed=signed), DENSE)
        assert np.abs(y).max() == pytest.approx(1e-5, rel=1e-3)

    def test_has_a_live_gradient(self, bits, signed, alpha):
        # Everything lies outside; above the range counts 1, or 1 - 2^(1-b) where it is signed.
        _, gradient = gradients(pact(alpha, bits=bits, signed=signed), [[5.0]])
        share = 1 - 2.0 ** (1 - (bits or 8)) if signed else 1
        assert gradient == pytest.approx(share * upstream((1, 1))[0, 0], rel=1e-4)


POSITIVE = np.linspace(0, 4, 201)[:, None]
BOTH = np.linspace(-4, 4, 401)[:, None]


@pytest.mark.tensorflow
@pytest.mark.parametrize(("signed", "x"), [(False, POSITIVE), (True, BOTH)])
class TestRecovery:
    """A huge step towards zero output, then y = x regression at 3 bits.

    The best range of 8 even steps over so wide a uniform input has an error of step²/12; twice that
    is asked for.
    """

    def bound(self, signed):
        step = 4 / 7 if not signed else 8 / 7
        return 2 * step**2 / 12

    def test_pact_recovers_from_a_huge_step(self, signed, x):
        quantizer = pact(2.0, bits=3, signed=signed)
        train(quantizer, x, 0.0, learning_rate=1e6, steps=1)
        assert quantizer.alpha.numpy() < 1e-4
        assert train(quantizer, x, x, learning_rate=0.5, steps=40) < self.bound(signed)

    def test_pact_recovers_from_a_level_that_was_assigned(self, signed, x):
        quantizer = pact(-1e3, bits=3, signed=signed)
        assert train(quantizer, x, x, learning_rate=0.5, steps=40) < self.bound(signed)

    def test_lsq_plus_recovers_from_a_huge_step(self, signed, x):
        quantizer = lsq_plus(0.3, -1.2, bits=3, signed=signed)
        train(quantizer, x, 0.0, learning_rate=1e6, steps=1)
        assert quantizer.scale.numpy() < 1e-4
        assert train(quantizer, x, x, learning_rate=0.1, steps=60) < self.bound(signed)

    def test_lsq_plus_recovers_from_a_scale_that_was_assigned(self, signed, x):
        quantizer = lsq_plus(-1e6, -1.2, bits=3, signed=signed)
        assert train(quantizer, x, x, learning_rate=0.1, steps=60) < self.bound(signed)


@pytest.mark.tensorflow
def test_a_huge_step_upwards_recovers_too():
    quantizer = pact(2.0, bits=3)
    train(quantizer, POSITIVE, 1e4, learning_rate=1e-2, steps=1)
    assert quantizer.alpha.numpy() > 50
    # Then nothing is clipped, and only weight decay can bring the level back.
    assert gradients(quantizer, POSITIVE)[1] == 0


@pytest.mark.parametrize("kind", ["pact", "lsq_plus"])
def test_weight_decay_adds_its_factor_times_the_squared_range(kind):
    quantizer = built(ACTIVATION_QUANTIZERS[kind](weight_decay=0.25))
    (quantizer.alpha if kind == "pact" else quantizer.scale).assign(3.0)
    assert [float(loss) for loss in quantizer.losses] == [0.25 * 9]


@pytest.mark.parametrize("kind", NAMES)
def test_without_weight_decay_there_is_no_extra_loss(kind):
    assert built(ACTIVATION_QUANTIZERS[kind]()).losses == []


# ---- lsq+ ------------------------------------------------------------------------------------


def lsq_plus(scale, offset=None, shape=(None, 1), **arguments):
    quantizer = built(LSQPlus(**arguments), shape)
    quantizer.scale.assign(scale)
    if quantizer.offset is not None:
        quantizer.offset.assign(offset)
    return quantizer


class LSQPlusOracle:
    """LSQ+ in float64, with the zero point rounded and clipped."""

    def __init__(self, x, scale, offset, bits, values_per_example=1):
        steps = 2**bits - 1
        self.zero = float(np.clip(np.round(-offset / scale), 0, steps))
        v = np.asarray(x, "float64") / scale + self.zero
        self.inside, self.above = (v > 0) & (v < steps), v >= steps
        codes = np.round(np.clip(v, 0, steps))
        self.values = scale * (codes - self.zero)
        self.to_scale = np.where(self.inside, codes - v, steps * self.above)
        self.factor = 1 / np.sqrt(values_per_example * steps)


def values_for_lsq_plus(scale, zero, bits):
    return values_away_from_ties(scale, int(-zero), int(2**bits - 1 - zero))


# Offsets that give zero points inside the codes, at both ends of them, and beyond.
OFFSETS = [-0.3, -0.0, -1.97, 0.6, -1e3]


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("has_target_width", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
class TestSignedLSQPlus:
    @pytest.fixture(autouse=True)
    def case(self, bits, has_target_width, offset):
        self.scale = 2.2 / (2**bits - 1)
        zero = LSQPlusOracle(0, self.scale, offset, bits).zero
        self.x = values_for_lsq_plus(self.scale, zero, bits)
        self.oracle = LSQPlusOracle(self.x, self.scale, offset, bits)
        self.quantizer = lsq_plus(
            self.scale, offset, bits=bits, signed=True, has_target_width=has_target_width
        )

    def test_is_the_numpy_formula(self):
        np.testing.assert_allclose(
            quantized(self.quantizer, self.x), self.oracle.values, atol=STEP_TOLERANCE * self.scale
        )

    def test_passes_gradients_inside_the_range_only(self):
        to_x = gradients(self.quantizer, self.x)[0]
        np.testing.assert_allclose(to_x, upstream(self.x.shape) * self.oracle.inside, rtol=1e-6)

    def test_has_the_paper_s_gradient_to_the_scale(self):
        terms = upstream(self.x.shape) * self.oracle.to_scale * self.oracle.factor
        gradient = gradients(self.quantizer, self.x)[1]
        # Each term comes out of float32 sums of codes up to 255 with a precision of 1e-5.
        assert gradient == pytest.approx(terms.sum(), abs=1e-4 * (1 + np.abs(terms).sum()))

    def test_has_the_paper_s_gradient_to_the_offset(self):
        terms = upstream(self.x.shape) * ~self.oracle.inside * self.oracle.factor
        gradient = gradients(self.quantizer, self.x)[2]
        assert gradient == pytest.approx(terms.sum(), abs=1e-4)


@pytest.mark.parametrize("scale", [0.0, -1e-3, -1e6])
@pytest.mark.parametrize("signed", [False, True])
class TestLSQPlusWithAScaleBelowZero:
    def test_gives_values_as_small_as_the_smallest_scale(self, signed, scale):
        y = quantized(lsq_plus(scale, -2e-5, bits=3, signed=signed), DENSE)
        assert 0 < np.abs(y).max() < 7.1e-5

    def test_has_a_live_gradient(self, signed, scale):
        # Above the range: L = 7, times 1 / sqrt(7).
        to_scale = gradients(lsq_plus(scale, -2e-5, bits=3, signed=signed), [[5.0]])[1]
        assert to_scale == pytest.approx(upstream((1, 1))[0, 0] * np.sqrt(7), rel=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
class TestUnsignedLSQPlus:
    @pytest.fixture(autouse=True)
    def case(self, bits):
        self.scale = 2.2 / (2**bits - 1)
        self.x = values_for_lsq_plus(self.scale, 0, bits)
        self.oracle = LSQPlusOracle(self.x, self.scale, 0.0, bits)
        self.quantizer = lsq_plus(self.scale, bits=bits)

    def test_is_the_numpy_formula(self):
        np.testing.assert_allclose(
            quantized(self.quantizer, self.x), self.oracle.values, atol=STEP_TOLERANCE * self.scale
        )

    def test_has_the_paper_s_gradient_to_the_scale(self):
        terms = upstream(self.x.shape) * self.oracle.to_scale * self.oracle.factor
        gradient = gradients(self.quantizer, self.x)[1]
        assert gradient == pytest.approx(terms.sum(), abs=1e-4 * (1 + np.abs(terms).sum()))

    def test_has_no_offset(self):
        assert [variable.name for variable in self.quantizer.trainable_variables] == ["scale"]


@pytest.mark.tensorflow
def test_the_gradient_factor_of_lsq_plus_counts_the_values_of_one_example():
    quantizer = lsq_plus(1.0, shape=(None, 2, 3), bits=2)
    # Above the range the gradient is L = 3 for each of 12 values, times 1 / sqrt(6 * 3).
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(quantizer(tf.fill((2, 2, 3), 100.0)))
    gradient = tape.gradient(total, quantizer.scale.value)
    assert float(gradient) == pytest.approx(12 * 3 / np.sqrt(18), rel=1e-6)


def test_lsq_plus_at_two_bits_by_hand():
    # z = round(1.2) = 1, so the grid is -1, 0, 1, 2.
    y = quantized(lsq_plus(1.0, -1.2, bits=2, signed=True), [[-7.0], [-0.6], [0.4], [1.6], [7.0]])
    np.testing.assert_array_equal(y.ravel(), [-1, -1, 0, 2, 2])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_lsq_plus_keeps_its_range_at_another_width(bits):
    quantizer = lsq_plus(0.2, -0.6, bits=4, signed=True, has_target_width=True)
    quantizer.bits = bits
    # 15 steps of 0.2 are a range of 3.
    oracle = LSQPlusOracle(DENSE, 3 / (2**bits - 1), -0.6, bits)
    away = np.abs(np.abs((DENSE / 3 * (2**bits - 1)) % 1) - 0.5) > 0.05
    np.testing.assert_allclose(
        quantized(quantizer, DENSE)[away], oracle.values[away], atol=STEP_TOLERANCE
    )


def test_lsq_plus_at_width_none_clips_to_the_range_of_its_grid():
    quantizer = lsq_plus(0.2, -0.6, bits=4, signed=True, has_target_width=True)
    quantizer.bits = None
    # z = 3 of 15 steps.
    np.testing.assert_allclose(quantized(quantizer, DENSE), np.clip(DENSE, -0.6, 2.4), atol=1e-6)


def test_lsq_plus_at_width_none_trains_its_range():
    quantizer = lsq_plus(0.2, -0.6, bits=4, signed=True, has_target_width=True)
    quantizer.bits = None
    _, to_scale, to_offset = gradients(quantizer, [[-9.0], [0.3], [9.0]])
    below, _, above = upstream((3, 1)).ravel()
    # The ends are beta and beta + 15 s, the factor is 1 / sqrt(15).
    assert to_scale == pytest.approx(15 * above / np.sqrt(15), rel=1e-5)
    assert to_offset == pytest.approx((below + above) / np.sqrt(15), rel=1e-5)


@pytest.mark.tensorflow
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_copy_of_lsq_plus_at_another_width_is_made_with_it(bits):
    copied, made = built(LSQPlus().copy(bits=bits)), built(LSQPlus(bits=bits))
    assert copied.scale.numpy() == made.scale.numpy()


@pytest.mark.tensorflow
def test_an_offset_above_zero_recovers():
    x = np.linspace(-1, 4, 251)[:, None]
    quantizer = lsq_plus(0.5, 50.0, bits=3, signed=True)
    loss = train(quantizer, x, x, learning_rate=0.3, steps=60)
    assert quantizer.grid()[1] < 0
    assert loss < 2 * (5 / 7) ** 2 / 12


@pytest.mark.tensorflow
def test_an_optimizer_keeps_the_offset_at_or_below_zero():
    quantizer = lsq_plus(0.5, -0.5, bits=3, signed=True)
    train(quantizer, np.full((5, 1), -9.0), 9.0, learning_rate=1e3, steps=1)
    assert quantizer.offset.numpy() == 0


# ---- dorefa ----------------------------------------------------------------------------------


@pytest.mark.parametrize("has_target_width", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
class TestDoReFa:
    @pytest.fixture(autouse=True)
    def case(self, bits, has_target_width):
        self.quantizer = built(DoReFaActivation(bits=bits, has_target_width=has_target_width))
        self.steps = 2**bits - 1
        self.x = values_away_from_ties(1 / self.steps, 0, self.steps)

    def test_is_the_paper_s_formula(self):
        expected = np.round(self.steps * np.clip(self.x, 0, 1)) / self.steps
        np.testing.assert_allclose(
            quantized(self.quantizer, self.x), expected, atol=STEP_TOLERANCE / self.steps
        )

    def test_passes_gradients_between_0_and_1_only(self):
        (to_x,) = gradients(self.quantizer, self.x)
        inside = (self.x > 0) & (self.x < 1)
        np.testing.assert_array_equal(to_x, upstream(self.x.shape) * inside)


def test_dorefa_at_width_none_clips_to_0_and_1():
    y = quantized(built(DoReFaActivation(bits=None)), DENSE)
    np.testing.assert_array_equal(y, np.clip(DENSE, 0, 1))


# ---- fixed -----------------------------------------------------------------------------------

RANGES = [(-1.0, 1.0), (0.0, 6.0), (-0.28, 5.0), (-3.0, 0.0), (1.0, 2.0), (-2.0, -1.0), (-1e3, 3e3)]


def fixed_grid(low, high, bits):
    """Scale, smallest and largest code: zero is widened in, ties of the zero point go up."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    zero = np.floor(-low / scale + 0.5 + 1e-6)
    return scale, int(-zero), int(2**bits - 1 - zero)


@pytest.mark.parametrize(("low", "high"), RANGES)
@pytest.mark.parametrize("has_target_width", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 8])
class TestFixedRange:
    @pytest.fixture(autouse=True)
    def case(self, bits, low, high, has_target_width):
        self.quantizer = built(
            FixedRange(bits=bits, low=low, high=high, has_target_width=has_target_width)
        )
        self.scale, self.low, self.high = fixed_grid(low, high, bits)
        self.x = values_away_from_ties(self.scale, self.low, self.high)

    def test_is_the_numpy_formula(self):
        expected = on_grid(self.x, self.scale, self.low, self.high)
        np.testing.assert_allclose(
            quantized(self.quantizer, self.x), expected, atol=STEP_TOLERANCE * self.scale
        )

    def test_passes_gradients_inside_the_range_only(self):
        (to_x,) = gradients(self.quantizer, self.x)
        inside = (self.x > self.low * self.scale) & (self.x < self.high * self.scale)
        np.testing.assert_array_equal(to_x, upstream(self.x.shape) * inside)

    def test_knows_its_grid(self):
        scale, low, high = self.quantizer.grid()
        assert scale == pytest.approx(self.scale, rel=1e-6)
        assert (low, high) == (self.low, self.high)


@pytest.mark.parametrize("bits", [3, 8])
def test_the_grid_of_a_symmetric_range_is_the_one_that_is_computed(bits):
    # Its zero point is a tie, and whoever rounds it another way is off by one code everywhere.
    for end in np.random.default_rng(0).uniform(0.1, 9, 30):
        quantizer = built(FixedRange(bits=bits, low=-end, high=end))
        scale, low, high = quantizer.grid()
        codes = quantized(quantizer, [[-1e3], [1e3]]).ravel() / scale
        np.testing.assert_allclose(codes, [low, high], atol=0.01)


def test_a_sigmoid_s_range_has_the_scale_of_integer_kernels():
    quantizer = built(FixedRange(low=0.0, high=255 / 256, bits=8))
    assert quantizer.grid() == (1 / 256, 0, 255)


def test_a_fixed_range_at_width_none_clips_to_its_ends():
    y = quantized(built(FixedRange(low=-0.5, high=2.0, bits=None)), DENSE)
    np.testing.assert_array_equal(y, np.clip(DENSE, -0.5, 2))


@pytest.mark.tensorflow
def test_a_fixed_range_reaches_from_the_smallest_to_the_largest_value_seen():
    quantizer = built(FixedRange(bits=8))
    quantizer.calibrate(Histogram(np.float32([-0.5, 0.1, 2.0])))
    assert (quantizer.range_low.numpy(), quantizer.range_high.numpy()) == (-0.5, 2.0)


@pytest.mark.tensorflow
def test_a_fixed_range_always_contains_zero():
    quantizer = built(FixedRange(bits=8))
    quantizer.calibrate(Histogram(np.float32([1.5, 2.0])))
    assert (quantizer.range_low.numpy(), quantizer.range_high.numpy()) == (0.0, 2.0)


@pytest.mark.tensorflow
def test_given_ends_are_not_moved_by_calibration():
    quantizer = built(FixedRange(low=0.0, high=1.0))
    quantizer.calibrate(Histogram(np.float32([-5.0, 5.0])))
    assert (quantizer.range_low.numpy(), quantizer.range_high.numpy()) == (0.0, 1.0)


@pytest.mark.parametrize("has_target_width", [False, True])
@pytest.mark.parametrize("kind", ["fixed", "dorefa"])
def test_a_range_that_is_given_is_never_trained(kind, has_target_width):
    quantizer = built(ACTIVATION_QUANTIZERS[kind](has_target_width=has_target_width))
    assert quantizer.trainable_variables == []


@pytest.mark.tensorflow
def test_the_ends_of_a_fixed_range_get_no_gradient():
    quantizer = built(FixedRange(bits=3, has_target_width=True))
    ends = [quantizer.range_low.value, quantizer.range_high.value]
    with tf.GradientTape() as tape:
        tape.watch(ends)
        total = tf.reduce_sum(quantizer(tf.constant(DENSE)) * upstream(DENSE.shape))
    assert tape.gradient(total, ends) == [None, None]


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, None), (None, 1.0), (1.0, 1.0), (2.0, 1.0)], ids=str
)
def test_ends_that_are_no_range_are_refused(low, high):
    with pytest.raises(ValueError, match="`low` and `high` must be two numbers, the first one sma"):
        FixedRange(low=low, high=high)


def test_given_ends_are_kept_in_the_config():
    quantizer = FixedRange(low=-0.5, high=2)
    again = FixedRange.from_config(quantizer.get_config())
    assert (again.low, again.high) == (-0.5, 2.0)


@pytest.mark.parametrize("high", [float("nan"), float("inf")])
def test_ends_that_are_not_finite_are_refused(high):
    with pytest.raises(ValueError, match="`high` must be a finite number"):
        FixedRange(low=0.0, high=high)


def test_ends_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="`low` must be a finite number"):
        FixedRange(low="0", high=1.0)


# ---- calibration -----------------------------------------------------------------------------


def samples(kind):
    z = np.random.default_rng(0).normal(size=20_000)
    return {
        "relu": np.maximum(z, 0),
        "normal": z,
        "laplace": np.random.default_rng(0).laplace(size=20_000),
        "swish": 2 * z / (1 + np.exp(-2 * z)),
    }[kind].astype("float32")


def squared_error(x, scale, low, high):
    return ((on_grid(x, scale, low, high) - x) ** 2).sum()


# Candidates 4 % apart cost at most 0.1 % of error, the histogram's bins up to 1.5 % at 8 bits.
CALIBRATION_TOLERANCE = 1.05


@pytest.mark.parametrize(
    ("kind", "signed"), [("relu", False), ("normal", True), ("laplace", True), ("swish", True)]
)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
class TestCalibration:
    def test_gives_pact_the_least_squared_error(self, bits, kind, signed):
        x = samples(kind)
        quantizer = built(PACT(bits=bits, signed=signed))
        quantizer.calibrate(Histogram(x))
        low, high = code_range(bits, signed)
        alphas = np.abs(x).max() * np.linspace(0.02, 1.5, 300)
        scales = alphas / (-low if signed else high)
        least = min(squared_error(x, scale, low, high) for scale in scales)
        assert squared_error(x, *quantizer.grid()) < CALIBRATION_TOLERANCE * least

    def test_gives_lsq_plus_the_least_squared_error(self, bits, kind, signed):
        x = samples(kind)[:2000]
        quantizer = built(LSQPlus(bits=bits, signed=signed))
        quantizer.calibrate(Histogram(x))
        steps = 2**bits - 1
        zeros = sorted({round(z) for z in np.linspace(0, steps, 16)}) if signed else [0]
        scales = (x.max() - min(x.min(), 0)) / steps * np.linspace(0.1, 1.3, 40)
        least = min(squared_error(x, s, -z, steps - z) for s in scales for z in zeros)
        assert squared_error(x, *quantizer.grid()) < CALIBRATION_TOLERANCE * least


@pytest.mark.parametrize("value", [3e38, -1e20, 1e14, 7.0, 1e-6])
def test_a_constant_has_a_histogram_of_one_value(value):
    histogram = Histogram(np.full(10, value, "float32"))
    assert (histogram.counts.tolist(), histogram.centers.tolist()) == ([10.0], [np.float32(value)])
    scale, error = histogram.best_scale(-7, 7)
    # The value is a code of its best scale, up to the last bits of float64.
    assert error <= 10 * (1e-15 * value) ** 2
    assert np.round(abs(np.float32(value)) / scale) == 7


def test_a_histogram_counts_values_at_the_middles_of_its_bins():
    histogram = Histogram(np.float32([0.0, 1.0, 1.2, 4.0]), bins=4)
    assert histogram.centers.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert histogram.counts.tolist() == [1, 2, 0, 1]


@pytest.mark.tensorflow
def test_calibration_is_for_the_current_width():
    quantizer = built(PACT(bits=8, has_target_width=True))
    quantizer.calibrate(Histogram(samples("relu")))
    at_eight = float(quantizer.alpha.numpy())
    quantizer.bits = 2
    quantizer.calibrate(Histogram(samples("relu")))
    # The best 2-bit clip of a half-normal tensor is near 2, the best 8-bit clip near its maximum.
    assert float(quantizer.alpha.numpy()) < 0.7 * at_eight


@pytest.mark.parametrize("kind", ["relu", "swish"])
def test_lsq_plus_is_calibrated_alike_whatever_width_it_was_made_with(kind):
    grids = []
    for made_with_bits in (2, 4):
        quantizer = built(LSQPlus(bits=made_with_bits, signed=True, has_target_width=True))
        quantizer.bits = 2
        quantizer.calibrate(Histogram(samples(kind)))
        grids.append(quantizer.grid())
    assert grids[0] == pytest.approx(grids[1], rel=1e-6)


@pytest.mark.tensorflow
@pytest.mark.parametrize("kind", ["pact", "lsq_plus"])
def test_a_tensor_of_zeros_leaves_the_range_alone(kind):
    quantizer = built(ACTIVATION_QUANTIZERS[kind](signed=True))
    before = [variable.numpy() for variable in quantizer.trainable_variables]
    quantizer.calibrate(Histogram(np.zeros(10)))
    assert [variable.numpy() for variable in quantizer.trainable_variables] == before


@pytest.mark.tensorflow
def test_a_quantizer_that_is_observed_passes_its_input_on():
    quantizer = built(PACT(bits=2))
    seen = []
    quantizer.observer = lambda who, values: seen.append((who, values))
    x = tf.constant(DENSE)
    assert quantizer(x) is x
    assert seen == [(quantizer, x)]
