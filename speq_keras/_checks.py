"""Argument checks, so that every error of the package has the same shape.

    What is allowed. Received: name=value. What to do.

`ValueError` for a value, `TypeError` for a type, `RuntimeError` for calls in the wrong order.
"""

import difflib
import importlib.util
import math
import numbers

import keras
import numpy as np

WIDTH_RULE = "a whole number from 2 to 8, or None for floating point"
_LONGEST_VALUE = 200  # characters of a value in a sentence


def describe(**received):
    """Returns the `Received: name=value.` part of an error sentence."""
    return "Received: " + ", ".join(f"{name}={_shown(x)}" for name, x in received.items()) + "."


def _shown(value):
    text = " ".join(repr(value).split())
    if len(text) <= _LONGEST_VALUE:
        return text
    return f"{text[:_LONGEST_VALUE]}... of type {type(value).__name__}"


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_bits(name, bits, *, optional=True):
    """Returns `bits` as an int (or None) after checking that it is an allowed width.

    Raises:
        TypeError: If `bits` is not a whole number.
        ValueError: If `bits` is outside 2 ... 8.
    """
    rule = WIDTH_RULE if optional else WIDTH_RULE.split(",")[0]
    if bits is None and optional:
        return None
    if not _is_whole(bits):
        raise TypeError(f"`{name}` must be {rule}. {describe(**{name: bits})}")
    if not 2 <= bits <= 8:
        raise ValueError(f"`{name}` must be {rule}. {describe(**{name: bits})}")
    return int(bits)


def check_number(name, value, *, low=-math.inf, high=math.inf, low_open=False, high_open=False):
    """Returns `value` as a float after checking that it is finite and inside the interval."""
    left, right = "(" if low_open else "[", ")" if high_open else "]"
    rule = f"a finite number in {left}{low:g}, {high:g}{right}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be {rule}. {describe(**{name: value})}")
    value = float(value)
    below = value < low or (low_open and value == low)
    above = value > high or (high_open and value == high)
    if not math.isfinite(value) or below or above:
        raise ValueError(f"`{name}` must be {rule}. {describe(**{name: value})}")
    return value


def check_choice(name, value, choices):
    """Returns `value` after checking that it is one of `choices`; names a near miss."""
    choices = list(choices)
    # An array equals no choice: NumPy would compare its elements.
    if isinstance(value, tuple(map(type, choices))) and value in choices:
        return value
    known = ", ".join(repr(choice) for choice in choices)
    near = difflib.get_close_matches(str(value), [c for c in choices if isinstance(c, str)], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"`{name}` must be one of {known}. {describe(**{name: value})}{hint}")


def check_bool(name, value):
    """Returns `value` as a bool after checking that it is True or False, not just truthy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False. {describe(**{name: value})}")
    return bool(value)


def check_name(name, value, *, optional=False):
    """Returns `value` after checking that Keras allows it as a name: a string without "/"."""
    if value is None and optional:
        return None
    rule = f'`{name}` must be a string without "/"' + (", or None" if optional else "")
    if not isinstance(value, str):
        raise TypeError(f"{rule}. {describe(**{name: value})}")
    if not value or "/" in value:
        raise ValueError(f"{rule}. {describe(**{name: value})}")
    return value


def check_axes(name, axes):
    """Returns `axes` as a tuple of ints after checking that they are different whole numbers."""
    rule = f"`{name}` must be a tuple of whole numbers, each of them a different axis"
    if not (isinstance(axes, list | tuple) and all(map(_is_whole, axes))):
        raise TypeError(f"{rule}. {describe(**{name: axes})}")
    if len(set(axes)) < len(axes):
        raise ValueError(f"{rule}. {describe(**{name: axes})}")
    return tuple(int(axis) for axis in axes)


def check_count(name, value, *, high=math.inf, optional=False):
    """Returns `value` after checking that it is a whole number of at least 1 (or None)."""
    rule = (
        "a whole number of at least 1" if high == math.inf else f"a whole number from 1 to {high}"
    )
    rule += ", or None" if optional else ""
    if value is None and optional:
        return None
    if not _is_whole(value):
        raise TypeError(f"`{name}` must be {rule}. {describe(**{name: value})}")
    if not 1 <= value <= high:
        raise ValueError(f"`{name}` must be {rule}. {describe(**{name: value})}")
    return int(value)


def check_seed(seed):
    """Returns `seed` after checking that it is None or an integer that Keras can store."""
    if seed is None:
        return None
    bits = 63 if keras.backend.backend() == "tensorflow" else 32
    if not _is_whole(seed) or not 0 <= seed < 2**bits:
        raise ValueError(
            f"`seed` must be None or a whole number from 0 to 2**{bits} - 1. {describe(seed=seed)}"
        )
    return int(seed)


def check_speq_model(name, model, *, of=""):
    """Returns `model` after checking that it is a `SPEQModel`, by its characteristic attributes.

    Args:
        name: Name of the argument.
        model: Its value.
        of: The owner of the argument, such as " of a LowerWidths", or "".

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(model, keras.Model) or not hasattr(model, "activation_quantizers"):
        raise TypeError(
            f"`{name}`{of} must be a SPEQModel. {describe(**{name: model})} Make one with "
            "`speq_keras.wrap`."
        )
    return model


def require_calibrated(name, model):
    """Raises a RuntimeError if a `SPEQModel` has activation ranges that were never set."""
    waiting = [q.name for q in model.activation_quantizers if not q.is_calibrated]
    if waiting:
        raise RuntimeError(
            f"`{name}` must be calibrated or trained. Received: {name}={model.name!r} with "
            f"{len(waiting)} activation ranges that were never set, the first is {waiting[0]!r}. "
            f"Call `{name}.calibrate(batches)`."
        )


def check_installed(package, why):
    """Checks that an optional package can be imported; does not import it.

    Args:
        package: Its name, for Python and for pip.
        why: What it is needed for, the beginning of the error sentence.

    Raises:
        RuntimeError: If it cannot be imported.
    """
    if importlib.util.find_spec(package) is None:
        raise RuntimeError(f"{why}, which is not installed. Run `pip install {package}`.")


def brief(error):
    """Returns an error in a few words: its class and its first sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Keras puts a line before the actual error, and the arguments after it.
    if len(lines) > 1 and lines[0].startswith("Exception encountered when calling"):
        lines = lines[1:]
    text = lines[0].replace("\x1b[1m", "").replace("\x1b[0m", "") if lines else ""
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
