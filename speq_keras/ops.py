"""Pure tensor functions: rounding, code ranges, fake quantization.

Everything here is a function of its arguments, works on every Keras backend and computes in float32
whatever the dtype policy: a clipping level in bfloat16 moves in steps of 1/128 of itself.
"""

import functools

import keras
import numpy as np
from keras import ops

MAX_BITS = 8
# Widths are run-time values. A table is exact; 2**bits in float32 is not on every backend. Entry 0
# stands for "float" and keeps the divisions finite.
_LEVELS = np.array([2**bits - 1 if bits else 255 for bits in range(MAX_BITS + 1)], "float32")
# The smallest clipping level: divisions by a smaller scale would overflow float32.
SMALLEST_CLIP = 1e-5


def levels_of(bits):
    """Returns 2**bits − 1, the number of steps of a `bits`-wide code.

    Args:
        bits: Whole number from 2 to 8, or a float32 scalar tensor holding one; 0 means float.

    Returns:
        A Python float for a Python number, else a float32 scalar tensor.

    Example:
        >>> levels_of(3)
        7.0
    """
    if isinstance(bits, int):
        return float(_LEVELS[bits])
    return ops.reshape(entry_of(_LEVELS, bits), ())


def entry_of(table, bits):
    """Returns the slice `bits` ... `bits` + 1 of the first axis of a table, at run time.

    `ops.take` does the same with three times the operations (it handles indices below zero), and a
    network has a thousand of these look-ups.

    Args:
        table: NumPy array.
        bits: Float32 scalar tensor that holds a whole number.
    """
    start = [ops.cast(bits, "int32"), *[0] * (table.ndim - 1)]
    return ops.slice(ops.convert_to_tensor(table), start, (1, *table.shape[1:]))


def round_straight_through(x):
    """Rounds to the nearest whole number, ties to even; the backward pass is the identity.

        forward: round(x)        backward: ∂/∂x = 1

    The difference `round(x) - x` is exact in floating point, so the sum is exactly a whole number.

    Example:
        >>> round_straight_through(ops.convert_to_tensor([0.4, 0.5, 1.5])).numpy().tolist()
        [0.0, 0.0, 2.0]

    Reference: Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic
    neurons" (arXiv:1308.3432).
    """
    return x + ops.stop_gradient(ops.round(x) - x)


def replace_value(x, value):
    """Returns `value` in the forward pass and passes the gradient to `x` unchanged.

    `x + stop_gradient(value - x)` would be shorter but is not exact: it returned 0 for x = -1e6,
    value = 1e-5. Here the second term is exactly zero.

    Example:
        >>> float(replace_value(ops.convert_to_tensor(-1e6), 0.25))
        0.25
    """
    return ops.stop_gradient(value) + (x - ops.stop_gradient(x))


def scale_gradient(x, factor):
    """Returns `x` in the forward pass and multiplies its gradient by `factor`.

    Example:
        >>> float(scale_gradient(ops.convert_to_tensor(3.0), 0.1))
        3.0
    """
    scaled = x * factor
    return ops.stop_gradient(x) + (scaled - ops.stop_gradient(scaled))


def keep_positive(clip):
    """Keeps a clipping level at or above `SMALLEST_CLIP` without stopping its gradient.

    With a plain maximum, a level pushed below zero by one huge step would get no gradient and stay
    there forever.

    Example:
        >>> bool(keep_positive(ops.convert_to_tensor(-3.0)) > 0)
        True
    """
    return replace_value(clip, ops.maximum(clip, SMALLEST_CLIP))


def fake_quantize(
    x, scale, *, low_code, high_code, clip_below=True, rounds=True, is_symmetric=False
):
    """Rounds `x` to the nearest multiple of `scale` whose code lies in `low_code` ... `high_code`.

        q(x) = scale · round(clip(x / scale, low_code, high_code))

    On TensorFlow this is one 8-bit fake-quant kernel with the range
    [−(255 − high_code)·scale, high_code·scale]: its upper end clips, its zero point is exact, and
    it is the same encoding in which a stock int8 kernel computes fewer than 8 bits. The kernel does
    not clip below for narrow codes, so a maximum is applied first.

    Rounding has gradient 1 inside the range. Outside it the gradient goes to the end of the range,
    which is PACT's gradient to a clipping level α where `scale` = α / steps.

    Ties: the fused kernel rounds them up, the plain formula (other backends) to even.

    Args:
        x: Float32 tensor of any shape.
        scale: Positive float32 scalar, in units of `x`.
        low_code: Smallest code, a whole number ≤ 0 (number or float32 scalar).
        high_code: Largest code, a whole number ≥ 0; `high_code - low_code` ≤ 255.
        clip_below: False if `x` is known to be ≥ `low_code * scale`, or if the codes fill the
            kernel's 8 bits, so that it clips below itself: saves one pass over `x` on TensorFlow.
        rounds: False clips and does not round; a bool scalar tensor decides at run time.
        is_symmetric: True promises that there are no more codes above zero than below, as in a
            signed width: saves passes over `x` in the gradient.

    Returns:
        A tensor like `x`.

    Example:
        >>> x = ops.convert_to_tensor([-1.0, 0.30, 0.80, 9.0])
        >>> fake_quantize(x, 0.5, low_code=0, high_code=3).numpy().tolist()
        [0.0, 0.5, 1.0, 1.5]

    Reference: PACT (arXiv:1805.06085), Eq. 2-3.
    """
    scale = ops.convert_to_tensor(scale, "float32")
    fused = keras.backend.backend() == "tensorflow"
    if clip_below or not fused:
        if isinstance(low_code, int | float) and low_code == 0:
            x = ops.relu(x)
        else:
            maximum = _tensorflow_maximum() if fused and is_symmetric else ops.maximum
            x = maximum(x, low_code * scale)
    if fused:
        fused_kernel = _tensorflow_kernel()
        return fused_kernel(x, -(255.0 - high_code) * scale, high_code * scale, rounds)
    x = ops.minimum(x, high_code * scale)
    # Not `round_straight_through(x / scale) * scale`, which has LSQ's gradient to the scale.
    rounded = replace_value(x, ops.round(x / scale) * scale)
    return rounded if rounds is True else ops.where(rounds, rounded, x)


@functools.cache
def _tensorflow_maximum():
    """Returns f(x, low) = max(x, low) for a negative scalar, with a gradient in one pass.

    TensorFlow's own gradient makes several slow passes over the tensor: on a signed quantizer it
    took longer than everything else. A 2-bit fake-quant kernel from `low` to −2 · `low` has the
    same gradient: its zero point is 1, 3 · low / 3 is `low` in floating point too, and the gradient
    below `low` goes to `low`. It blocks gradients above its upper end, so no input may exceed it.
    """
    import tensorflow as tf  # only if it is the backend

    @tf.custom_gradient
    def maximum(x, low):
        def gradient(dy):
            dx, dlow, _ = tf.quantization.fake_quant_with_min_max_vars_gradient(
                dy, x, low, -2.0 * low, num_bits=2
            )
            return dx, dlow

        return tf.maximum(x, low), gradient

    return maximum


@functools.cache
def _tensorflow_kernel():
    """Returns TensorFlow's 8-bit fake-quant kernel with a run-time switch: f(x, low, high, rounds).

    The switch is traced once per process. Its gradient, the same on both sides, is not traced at
    all: one `tf.cond` per quantizer took most of the time before the first step of a large network.
    """
    import tensorflow as tf  # only if it is the backend

    scalar = tf.TensorSpec([], tf.float32)

    @tf.function(
        input_signature=[tf.TensorSpec(None), scalar, scalar, tf.TensorSpec([], tf.bool)],
        autograph=False,
    )
    def round_or_clip(x, low, high, rounds):
        return tf.cond(
            rounds,
            lambda: tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=8),
            lambda: tf.clip_by_value(x, low, high),
        )

    @tf.custom_gradient
    def switched(x, low, high, rounds):
        """Rounds or clips, decided at run time; both use the kernel's gradient."""
        y = round_or_clip(x, low, high, rounds)
        y.set_shape(x.shape)

        def gradient(dy):
            dx, dlow, dhigh = tf.quantization.fake_quant_with_min_max_vars_gradient(
                dy, x, low, high, num_bits=8
            )
            return dx, dlow, dhigh, None

        return y, gradient

    def kernel(x, low, high, rounds):
        if rounds is True:
            return tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=8)
        return switched(x, low, high, tf.convert_to_tensor(rounds))

    return kernel


def einsum_axes(equation):
    """Returns the letters of both operands and of the result of an einsum equation.

    Example:
        >>> einsum_axes("abc, cd -> abd")
        ['abc', 'cd', 'abd']
    """
    return equation.replace(" ", "").replace("->", ",").split(",")
