"""Functions of one value in float: the kernel of that name, or equivalent arithmetic."""

import re

from speq_keras.export.folding.options import unsupported
from speq_keras.export.folding.steps import CannotExport
from speq_keras.operations import OTHER, function_name, name_of, negative_slope

_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805
# For erf: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; error below 2e-7.
_ERF_PLACE = 0.3275911
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def function_of(operation):
    """Returns the name of the function that a layer or operation computes, or None."""
    name = name_of(operation)
    if name == "Gelu":
        return "gelu_approximate" if operation.approximate else "gelu"
    function = _BY_CLASS.get(name, function_name(operation))
    if function is None:
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        function = snake if snake in FUNCTIONS else None
    return None if function == "linear" else function


def activated(x, operation, name):
    """Returns a function of float values.

    Args:
        x: `Floats`.
        operation: The layer or operation that has the function's options, as attributes.
        name: As returned by `function_of`.

    Raises:
        CannotExport: If no float kernels compute it.
    """
    if name is None:
        raise CannotExport("there is no float kernel for it")
    if name not in FUNCTIONS:
        raise CannotExport(f"there is no float kernel for its {_shown(operation, name)}")
    return FUNCTIONS[name](x, operation)


def _shown(layer, function):
    """Returns a description of an activation function, for errors."""
    if function != OTHER:
        return f"activation function {function!r}"
    function = layer.activation
    name = getattr(function, "__name__", type(function).__name__)
    return f"activation function {name!r} of {getattr(function, '__module__', 'no module')}"


def softmax_axes(operation, rank):
    """Returns the axes of a softmax, counted from 0."""
    axes = getattr(operation, "axis", -1)
    axes = axes if isinstance(axes, list | tuple) else [axes]
    axes = tuple(sorted(axis % rank for axis in axes))
    if 0 in axes:
        raise unsupported("axis", axes[0], "it is the batch")
    return axes


def _kernel(kind, **options):
    return lambda x, operation: x.made(kind, **options)


def _leaky_relu(x, operation):
    return x.made("leaky_relu", alpha=negative_slope(operation))


def _bent_relu(x, operation):
    """ReLU with a cap, a slope, and a threshold at which it jumps."""
    slope, cap, bend = operation.negative_slope, operation.max_value, operation.threshold
    if bend:
        y = _where(x.is_true("greater_equal", bend), x, (x - bend) * slope)
    else:
        y = x.made("leaky_relu", alpha=float(slope)) if slope else x.made("relu")
    return y if cap is None else y.at_most(cap)


def _where(mask, x, y):
    return mask.made("select", x, y, shape=x.shape, dtype=x.tensor.dtype)


def _elu(x, operation):
    alpha = float(getattr(operation, "alpha", 1.0))
    return x.made("elu") if alpha == 1 else x.at_least(0) + alpha * x.at_most(0).made("elu")


def _celu(x, operation):
    alpha = float(getattr(operation, "alpha", 1.0))
    return x.at_least(0) + alpha * (x.at_most(0) * (1 / alpha)).made("elu")


def _selu(x, operation):
    return _SELU_SCALE * x.at_least(0) + (_SELU_SCALE * _SELU_ALPHA) * x.at_most(0).made("elu")


def _softplus(x, operation):
    return x.at_least(0) + (1 + (-abs(x)).made("exp")).made("log")


def _sparse_plus(x, operation):
    return ((x.at_least(-1).at_most(1) + 1) * 0.5).made("square") + (x - 1).at_least(0)


def _squareplus(x, operation):
    return 0.5 * (x + (x.made("square") + getattr(operation, "b", 4)).made("sqrt"))


def _soft_shrink(x, operation):
    threshold = getattr(operation, "threshold", 0.5)
    return (x - threshold).at_least(0) + (x + threshold).at_most(0)


def _hard_shrink(x, operation):
    return _where(abs(x).is_true("greater", getattr(operation, "threshold", 0.5)), x, x * 0)


def _threshold(x, operation):
    is_above = x.is_true("greater", operation.threshold)
    return _where(is_above, x, x * 0 + operation.default_value)


def _sign(x, operation=None):
    return (x * 1e38).at_least(-1).at_most(1)


def _erf(x, operation):
    size = abs(x)
    t = 1 / (1 + _ERF_PLACE * size)
    series = t * _ERF[-1]
    for factor in reversed(_ERF[:-1]):
        series = (series + factor) * t
    return _sign(x) * (1 - series * (-x.made("square")).made("exp"))


FUNCTIONS = {
    **{name: _kernel(name) for name in ("relu", "relu6", "tanh", "log", "sqrt", "rsqrt")},
    **{name: _kernel(name) for name in ("sin", "cos", "floor", "ceil", "round", "square")},
    "sigmoid": _kernel("logistic"),
    "hard_silu": _kernel("hard_swish"),
    "gelu": _kernel("gelu", approximate=False),
    "gelu_approximate": _kernel("gelu", approximate=True),
    "exponential": _kernel("exp"),
    "exp": _kernel("exp"),
    "absolute": _kernel("abs"),
    "negative": _kernel("neg"),
    "leaky_relu": _leaky_relu,
    "bent_relu": _bent_relu,
    "elu": _elu,
    "celu": _celu,
    "selu": _selu,
    "silu": lambda x, operation: x * x.made("logistic"),
    "softplus": _softplus,
    "mish": lambda x, operation: x * _softplus(x, operation).made("tanh"),
    "softsign": lambda x, operation: x / (1 + abs(x)),
    "log_sigmoid": lambda x, operation: -_softplus(-x, operation),
    "hard_sigmoid": lambda x, operation: (x + 3).made("relu6") * (1 / 6),
    "tanh_shrink": lambda x, operation: x - x.made("tanh"),
    "hard_tanh": lambda x, operation: x.at_least(-1).at_most(1),
    "sparse_plus": _sparse_plus,
    "squareplus": _squareplus,
    "soft_shrink": _soft_shrink,
    "hard_shrink": _hard_shrink,
    "threshold": _threshold,
    "clip": lambda x, operation: x.at_least(operation.x_min).at_most(operation.x_max),
    "expm1": lambda x, operation: x.at_most(0).made("elu") + (x.at_least(0).made("exp") - 1),
    "log1p": lambda x, operation: (1 + x).made("log"),
    "reciprocal": lambda x, operation: 1 / x,
    "sign": _sign,
    "erf": _erf,
}
# Layers and operations whose function `function_name` does not know: by Keras' class name.
_BY_CLASS = {"ELU": "elu"}
