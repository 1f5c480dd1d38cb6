"""How the teacher's activation widths are drawn: Eq. 1, "Mix", fixed widths, and the greedy Eq. 5.

A teacher precision proposes *candidates*: rows of widths, one column per quantizer with the target
width. Usually there is one row; `Greedy` proposes all combinations, and training keeps the row with
the lowest task loss. Subclass this with `candidates` and `get_config` for a custom rule.
"""

import itertools

import keras
import numpy as np
from keras import ops

from speq_keras._checks import check_bits, check_number, describe

GREEDY_LIMIT = 12


class TeacherPrecision:
    """Base class: proposes the teacher's widths for one training step.

    Example:
        >>> class Wide(TeacherPrecision):
        ...     def candidates(self, target_bits, seed):
        ...         return keras.ops.full_like(target_bits, 8)[None]
        >>> Wide()
        Wide()
    """

    def candidates(self, target_bits, seed):
        """Returns the rows of widths to try in this step.

        Args:
            target_bits: Float32 tensor (quantizers,): the student's widths n_A.
            seed: A `keras.random.SeedGenerator`; drawing from it advances it.

        Returns:
            A float32 tensor (rows, quantizers); (1, quantizers) if there is nothing to compare.
        """
        raise NotImplementedError

    def check(self, quantizer_count):
        """Raises a ValueError if this rule cannot work with this many quantizers."""

    def may_differ(self, target_bits):
        """Returns whether the teacher's width can differ from the student's anywhere.

        Args:
            target_bits: The student's widths n_A, a list; None means float.
        """
        return True

    def get_config(self):
        """Returns the constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Makes the rule from the values of `get_config`."""
        return cls(**config)

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((type(self), tuple(sorted(self.get_config().items()))))

    def __repr__(self):
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def register(cls):
    """Registers a teacher precision, so that saved models can be loaded.

    Example:
        >>> @register
        ... class Wide(TeacherPrecision):
        ...     def candidates(self, target_bits, seed):
        ...         return keras.ops.full_like(target_bits, 8)[None]
        >>> keras.saving.get_registered_name(Wide)
        'speq_keras>Wide'
    """
    if not (isinstance(cls, type) and issubclass(cls, TeacherPrecision)):
        raise TypeError(f"`cls` must be a subclass of TeacherPrecision. {describe(cls=cls)}")
    return keras.saving.register_keras_serializable(package="speq_keras")(cls)


class _Rule(TeacherPrecision):
    """A rule whose attributes are the constructor's arguments."""

    def get_config(self):
        return dict(vars(self))


@register
class Bernoulli(_Rule):
    """Eq. 1: n_A with probability u, else n_H, drawn for every quantizer and step.

    Args:
        quantization_probability: u, the probability of the target width, from 0 to 1.
        teacher_bits: n_H, the high precision in bits.

    Example:
        >>> seed = keras.random.SeedGenerator(0)
        >>> draw = Bernoulli(0.5, teacher_bits=8).candidates(ops.full((1000,), 2.0), seed)
        >>> sorted(set(draw.numpy()[0].tolist()))
        [2.0, 8.0]
    """

    def __init__(self, quantization_probability=0.5, teacher_bits=8):
        self.quantization_probability = check_number(
            "quantization_probability", quantization_probability, low=0, high=1
        )
        self.teacher_bits = check_bits("teacher_bits", teacher_bits, optional=False)

    def candidates(self, target_bits, seed):
        draw = keras.random.uniform(ops.shape(target_bits), seed=seed)
        low = draw < self.quantization_probability
        return ops.where(low, target_bits, float(self.teacher_bits))[None]

    def may_differ(self, target_bits):
        return self.quantization_probability < 1 and _any_other(target_bits, self.teacher_bits)


@register
class UniformMix(_Rule):
    """Every width from `low_bits` to `high_bits`, equally likely ("Mix" of Table 3).

    Args:
        low_bits, high_bits: The ends of the range in bits, both included.

    Example:
        >>> seed = keras.random.SeedGenerator(0)
        >>> draw = UniformMix(2, 8).candidates(ops.full((1000,), 2.0), seed)
        >>> sorted(set(draw.numpy()[0].tolist()))
        [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    """

    def __init__(self, low_bits=2, high_bits=8):
        self.low_bits = check_bits("low_bits", low_bits, optional=False)
        self.high_bits = check_bits("high_bits", high_bits, optional=False)
        if self.low_bits > self.high_bits:
            raise ValueError(
                "`low_bits` must not be above `high_bits`. "
                + describe(low_bits=low_bits, high_bits=high_bits)
            )

    def candidates(self, target_bits, seed):
        count = self.high_bits - self.low_bits + 1
        draw = keras.random.uniform(ops.shape(target_bits), seed=seed)
        return (self.low_bits + ops.minimum(ops.floor(draw * count), count - 1.0))[None]

    def may_differ(self, target_bits):
        return self.low_bits < self.high_bits or _any_other(target_bits, self.low_bits)


@register
class Fixed(_Rule):
    """The same width for every quantizer and step: u = 0 of Table 3 with `bits` = 8.

    Args:
        bits: The teacher's width in bits.

    Example:
        >>> Fixed(8).candidates(ops.convert_to_tensor([2.0, 3.0]), None).numpy().tolist()
        [[8.0, 8.0]]
    """

    def __init__(self, bits=8):
        self.bits = check_bits("bits", bits, optional=False)

    def candidates(self, target_bits, seed):
        return ops.full_like(target_bits, float(self.bits))[None]

    def may_differ(self, target_bits):
        return _any_other(target_bits, self.bits)


@register
class Greedy(_Rule):
    """Eq. 5: the combination of n_A and n_H with the lowest task loss among all 2^L.

    Every step runs 2^L forward passes for L quantizers; L > 12 raises an error.

    Args:
        teacher_bits: n_H, the high precision in bits.

    Example:
        >>> Greedy(8).candidates(ops.convert_to_tensor([2.0, 3.0]), None).numpy().tolist()
        [[2.0, 3.0], [2.0, 8.0], [8.0, 3.0], [8.0, 8.0]]
    """

    def __init__(self, teacher_bits=8):
        self.teacher_bits = check_bits("teacher_bits", teacher_bits, optional=False)

    def check(self, quantizer_count):
        if quantizer_count > GREEDY_LIMIT:
            raise ValueError(
                "`Greedy` (Eq. 5) tries all 2^L width combinations in every step and accepts at "
                f"most L={GREEDY_LIMIT} quantizers of the target width. "
                f"{describe(quantizers=quantizer_count)} Use precision.Bernoulli() instead."
            )

    def candidates(self, target_bits, seed):
        count = target_bits.shape[0]
        high = np.array(list(itertools.product([0.0, 1.0], repeat=count)), "float32")
        return target_bits * (1.0 - high) + self.teacher_bits * high

    def may_differ(self, target_bits):
        return _any_other(target_bits, self.teacher_bits)


def _any_other(target_bits, bits):
    return any(target != bits for target in target_bits)
