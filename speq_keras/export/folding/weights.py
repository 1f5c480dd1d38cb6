"""Turns trained weights into integers: codes, scales, multipliers, bias codes."""

import keras
import numpy as np

from speq_keras.export.folding.steps import CannotExport, Weights
from speq_keras.export.storage import largest_multiplier
from speq_keras.operations import fused_function, name_of
from speq_keras.ops import einsum_axes

# Quantized weights are float32 products: off by a few last bits of the largest code.
_TOLERANCE = 2e-4
# The kernels sum products of 8-bit numbers in 32 bits.
_LARGEST_SUM = 2**31 - 1
_LARGEST_INPUT = 255

_LINEAR_LAYERS = set(
    "Conv1D Conv2D DepthwiseConv1D DepthwiseConv2D Conv1DTranspose Conv2DTranspose Dense "
    "EinsumDense".split()
)
_LINEAR_IN_FLOAT = {"Conv3D", "Conv3DTranspose", "SeparableConv1D", "SeparableConv2D"}


class NotOnGridError(ValueError):
    """The values of a weight are not integer multiples of one step per channel."""


def codes_of(values, channel_axes, likely=(127, 3, 1, 7)):
    """Finds the integer codes of quantized weights.

    The step is found from the values themselves, so a quantizer needs no second description that
    could differ from what it computes. Each channel gets the largest step of which all its values
    are integer multiples: {-2, 0, 2} becomes {-1, 0, 1}.

    Args:
        values: float32 weights of any rank, on a uniform grid per output channel.
        channel_axes: The axes that number the output channels.
        likely: Largest codes to try first.

    Returns:
        `(codes, scale)`: int32 codes like `values`, and float64 steps per output channel, in the
        order of `channel_axes`.

    Raises:
        NotOnGridError: If some channel needs codes beyond ±127.

    Example:
        >>> codes, scale = codes_of(np.float32([[-0.5, 0.0], [1.5, 0.2]]), (-1,))
        >>> codes.tolist(), scale.round(3).tolist()
        ([[-1, 0], [3, 1]], [0.5, 0.2])
    """
    rank = values.ndim
    channels = [axis % rank for axis in channel_axes]
    others = [axis for axis in range(rank) if axis not in channels]
    order = others + channels
    count = int(np.prod([values.shape[axis] for axis in channels]))
    table = np.transpose(values, order).reshape(-1, count).astype("float64")
    scale = np.array([_step_of(np.unique(table[:, c]), likely) for c in range(count)])
    codes = np.rint(table / scale)
    # The best step for these codes, by least squares: averages the float32 noise of many values.
    power = np.sum(codes * codes, axis=0)
    scale = np.where(power > 0, np.sum(table * codes, axis=0) / np.maximum(power, 1), scale)
    shape = [values.shape[axis] for axis in order]
    codes = np.transpose(codes.reshape(shape), np.argsort(order)).astype("int32")
    return codes, scale


def _step_of(unique, likely):
    largest = np.max(np.abs(unique), initial=0.0)
    if largest == 0:
        return 1.0
    for candidates in (np.array(likely), np.arange(1, 128)):
        ratios = unique[None, :] * (candidates[:, None] / largest)
        errors = np.max(np.abs(ratios - np.rint(ratios)), axis=1)
        # Relative to the largest code, like the noise of a float32 product.
        fits = errors <= _TOLERANCE * np.maximum(candidates / 127, 1 / 127)
        if fits.any():
            # The smallest code that fits, unless a likely one is a multiple of it.
            return largest / candidates[fits].min()
    raise NotOnGridError


def is_linear(layer):
    """Whether a kernel, at least a float one, computes sums of products with a layer's weights."""
    return name_of(layer) in _LINEAR_LAYERS | _LINEAR_IN_FLOAT


def check_linear(layer):
    """Checks that integer kernels compute a layer with weights.

    Raises:
        CannotExport: If they do not.
    """
    if name_of(layer) not in _LINEAR_LAYERS:
        raise CannotExport("there is no integer kernel for it")
    if fused_function(layer) is not None:
        raise CannotExport("its activation function has to be a separate layer")
    summed_axes(layer)  # raises an error if it sums over other axes


def check_weights(wrapper, attribute):
    """Checks that the one quantized variable of a `QuantizedLayer` is the one kernels read.

    Raises:
        CannotExport: If it is not.
    """
    if list(wrapper.quantizers) != [attribute]:
        raise CannotExport(
            f"its only quantized variable must be {attribute!r}, and it has "
            f"{', '.join(map(repr, wrapper.quantizers))}"
        )


def summed_axes(layer):
    """Returns how many of the last axes of its input a Dense or EinsumDense sums over.

    EinsumDense is supported with equations like "ab...xy,xyz->ab...z", with or without a bias over
    the new axes.

    Raises:
        CannotExport: If an EinsumDense does something else.
    """
    if name_of(layer) != "EinsumDense":
        return 1
    inputs, kernel, output = einsum_axes(layer.equation)
    summed = "".join(axis for axis in kernel if axis in inputs)
    made = "".join(axis for axis in kernel if axis not in inputs)
    kept = inputs[: len(inputs) - len(summed)]
    is_dense = inputs == kept + summed and output == kept + made
    if not (is_dense and summed and made) or layer.bias_axes not in (None, "", made):
        raise CannotExport(
            f"its equation {layer.equation!r} with bias_axes={layer.bias_axes!r} is not a Dense "
            "layer on the last axes"
        )
    return len(summed)


def folded_weights(pending, input_scale):
    """Returns the `Weights` of a linear or affine step, including everything folded into it.

    BatchNormalization may make a scale negative: the sign is moved into the codes.

    Args:
        pending: The `Pending`.
        input_scale: The scale of the input's grid.
    """
    if pending.kind == "affine":
        channels = pending.shape[-1]
        codes, scale, bias = np.ones(channels, "int32"), np.ones(channels), np.zeros(channels)
        axes = (-1,)
    else:
        codes, scale, bias, axes = weights_of(pending.nodes[0].operation)
    for slope, shift in pending.affines:
        # If several axes number the channels: one value per position on the last one.
        slope, shift = (np.resize(vector, scale.shape) for vector in (slope, shift))
        scale, bias = scale * slope, bias * slope + shift
    weights = Weights(codes, np.abs(scale), bias, axes, input_scale=input_scale)
    weights.codes = np.where(weights.per_channel(scale < 0), -codes, codes)
    return weights


def finish(weights, output_grid, notes, name):
    """Decides multipliers and rounds the bias to what the integer kernel stores.

    Args:
        weights: `Weights` with codes, positive scale, bias and container; completed in place.
        output_grid: The `Grid` of the output, or None for float.
        notes: List of sentences, extended.
        name: Name of the layer, for the notes.
    """
    rank = weights.codes.ndim
    others = tuple(a for a in range(rank) if a not in {x % rank for x in weights.channel_axes})
    magnitudes = np.abs(weights.codes.astype("int64"))
    largest = np.max(magnitudes, axis=others).reshape(-1)
    low, high = (f(weights.codes, axis=others).reshape(-1) for f in (np.min, np.max))
    reach = np.sum(magnitudes, axis=others).reshape(-1) * _LARGEST_INPUT
    step = float(output_grid.scale) if output_grid is not None else 1.0
    unit = weights.input_scale * weights.scale
    is_cut = np.zeros(len(unit), bool)
    if output_grid is not None:
        # A bias beyond this saturates the output for any input.
        limit = (max(-output_grid.low, output_grid.high) + 2) * step + reach * unit
        is_cut = np.abs(weights.bias) > limit
        weights.bias = np.clip(weights.bias, -limit, limit)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        most = (_LARGEST_SUM - 1) / (reach + np.abs(weights.bias) / unit)
    most = np.where(unit > 0, most, 0.0)
    wanted = largest_multiplier(low, high, weights.container)
    weights.multiplier = np.maximum(np.minimum(wanted, most), 1).astype("int64")
    dead = (largest == 0) | (most < 1)
    lost = dead & (largest > 0)
    if lost.any():
        part = np.max(reach[lost] * unit[lost]) / step
        notes.append(
            f"{name}: {int(lost.sum())} channels are almost constant, and their bias would leave "
            f"32 bits; their weights, which move the output by at most {part:.2g} steps, are "
            "written as zeros."
        )
    weights.codes = np.where(weights.per_channel(dead), 0, weights.codes)
    weights.multiplier = np.where(dead, 1, weights.multiplier)
    # Without weights any scale works: fine enough for the bias, and within the kernels' limits.
    weights.scale = np.where(dead, step / weights.input_scale * 2.0**-12, weights.scale)
    weights.bias_codes = np.rint(weights.bias / weights.unit).astype("int64")
    weights.bias = np.where(is_cut, weights.rounded_bias, weights.bias)


def slope_of(step):
    """Returns the factor of an affine step that is a mere multiplication, otherwise None."""
    if step.kind != "affine" or step.is_float or step.weights.bias_codes.any():
        return None
    slopes = step.weights.scale * step.weights.codes
    return float(slopes[0]) if slopes[0] and np.all(slopes == slopes[0]) else None


def weights_of(layer):
    """Returns codes, scale, bias and channel axes of a `QuantizedLayer`."""
    (attribute,) = layer.quantizers
    quantizer = layer.quantizers[attribute]
    variable = layer.variable(attribute)
    values = keras.ops.convert_to_numpy(quantizer(variable.value))
    axes = tuple(quantizer.channel_axes)
    channels = int(np.prod([values.shape[axis] for axis in axes]))
    try:
        codes, scale = codes_of(values, axes if quantizer.per_channel else ())
    except NotOnGridError as error:
        raise CannotExport(
            f"the values of its weight quantizer {type(quantizer).__name__} are not whole "
            "multiples, up to 127, of one step per output channel"
        ) from error
    scale = np.broadcast_to(scale, (channels,)).astype("float64")
    bias = getattr(layer.layer, "bias", None)
    if bias is None:
        bias = np.zeros(channels)
    else:
        bias = keras.ops.convert_to_numpy(bias.value).astype("float64").reshape(-1)
    return codes, scale, bias, axes


def is_table(layer):
    """Whether a layer returns rows of a table, or all of it."""
    return name_of(layer) in ("Embedding", "ReversibleEmbedding", "PositionEmbedding", "Weight")


def table_of(layer):
    """Returns the codes and the one scale of the table of a `QuantizedLayer`."""
    ((attribute, quantizer),) = layer.quantizers.items()
    values = keras.ops.convert_to_numpy(quantizer(layer.variable(attribute).value))
    try:
        codes, scale = codes_of(values, ())
    except NotOnGridError as error:
        raise CannotExport("the rows of its table have different scales") from error
    return codes, float(scale[0])
