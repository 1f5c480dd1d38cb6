"""The folded network: the operations between two roundings form one step.

kind          reads       computes, before it is rounded to the grid of its output
------------  ----------  -----------------------------------------------------------------
quantize      float       x
linear        codes       its layer with weights · scale, + bias, activation
affine        codes       x · scale + bias per channel (BatchNormalization, Rescaling, ...)
add           2 codes     a + b, activation             (subtract, multiply: likewise)
matmul        2 codes     their product
mean          codes       mean over `options["axes"]`
table         codes       a function of one value       (softmax: of the last axis)
requantize    codes       x
concatenate   codes       nothing: the codes of all inputs, which have one grid
embedding     int32       rows of the layer's table, which already are codes
constant      -           the layer's table itself (PositionEmbedding)
dequantize    codes       x, in float
cast          int32       x, in float
refused       -           nothing: stands in for a refused layer's output

The other kinds copy or average codes on their own grid (`copying`), and are named after operations
in `tflite.operations.OPS`: reshape, max_pool_2d, resize_bilinear, ...

In a float island the grid is None: its steps have the same kinds, one per node, and read and make
floats or integers. Kinds that exist only in islands, except "divide" and "power", have the name of
Keras' class: LayerNormalization, Where, ...
"""

import dataclasses

import numpy as np

from speq_keras.layers import QuantizedLayer
from speq_keras.operations import takes_logits

# A bias this near to the grid of the sums, in output steps, counts as on it: float32 is no finer.
SETTLED_STEPS = 2.0**-14


# Why an unknown layer is refused.
NO_KERNEL = "neither an integer nor a float kernel is known for it"


class CannotExport(Exception):
    """One layer cannot be written; `str()` says why.

    Args:
        reason: Text.
        by_ranges: Whether it depends on trained ranges: with others it could be written.

    `node`: the layer's node, if it is not the visited one.
    """

    node = None

    def __init__(self, reason, *, by_ranges=False):
        super().__init__(reason)
        self.by_ranges = by_ranges


@dataclasses.dataclass(frozen=True)
class Problem:
    """A refused layer: its name in the graph, its class, the reason, its node; see `CannotExport`.

    For an unrolled layer, `node` is the refused step; name and class are the layer's.
    """

    layer: str
    type: str
    reason: str
    by_ranges: bool = False
    node: object = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def at(cls, node, error):
        """Returns the `Problem` of a node that raised a `CannotExport`."""
        place = error.node or node
        layer = place.origin or place
        operation = unwrapped(layer.operation)  # of other wrappers, the outer layer is named
        return cls(layer.name, type(operation).__name__, str(error), error.by_ranges, place)

    def __str__(self):
        return f"'{self.layer}' ({self.type}): {self.reason}"


def refusal(model_name, problems):
    """Returns the sentence of the error for a model with these `Problem`s."""
    return (
        "Every layer of a model must be one that integer kernels compute. Received: "
        f"model={model_name!r} with {'; '.join(map(str, problems))}. Replace these "
        "layers, or leave them out of the exported part."
    )


@dataclasses.dataclass(frozen=True)
class Grid:
    """Codes `low` ... `high`; a code means `scale` · code."""

    scale: np.float32
    low: int
    high: int

    def round(self, values):
        """Returns the codes of float values: nearest, ties to even."""
        codes = np.rint(np.asarray(values, "float64") / np.float64(self.scale))
        return np.clip(codes, self.low, self.high).astype("int32")


def plain_dtype(dtype):
    """Returns the type in the file of numbers that are not codes; masks are integers."""
    return "float32" if "float" in dtype else "int32"


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor between steps: codes on a grid, or plain numbers (`grid` None).

    `dtype` is the type of plain numbers: "float32", or "int32" for integers and masks. `whole`: for
    an 8-bit integer input, the smallest and largest value.
    """

    name: str
    shape: tuple
    grid: Grid | None
    layer: str = ""
    dtype: str = "float32"
    whole: tuple = ()

    @property
    def is_whole(self):
        """Whether these are plain integers."""
        return self.grid is None and self.dtype == "int32"


@dataclasses.dataclass(eq=False)
class Weights:
    """Weights and bias of a linear or affine step.

    Attributes:
        codes: Integers in the layer's own layout; output channels are `channel_axes`.
        scale: float64 per output channel, including BatchNormalization. Never negative.
        bias: float64 per output channel, in units of the output.
        channel_axes: Axes of `codes` that number the output channels.
        container: "int8", "int4" or "int2": the type that the stored codes have to fit.
        why: Why the container is not narrower, or "".
        multiplier: Whole number per output channel; stored code = code · multiplier.
        bias_codes: int64 per channel; the bias in units of input scale · scale / multiplier.
        input_scale: The scale of the input's grid.
    """

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    channel_axes: tuple
    container: str = "int8"
    why: str = ""
    multiplier: np.ndarray | None = None
    bias_codes: np.ndarray | None = None
    input_scale: float = 1.0

    def per_channel(self, vector):
        """Returns a vector over the output channels, shaped to broadcast to `codes`."""
        rank = self.codes.ndim
        axes = {axis % rank for axis in self.channel_axes}
        shape = [size if i in axes else 1 for i, size in enumerate(self.codes.shape)]
        return np.reshape(vector, shape)

    @property
    def values(self):
        """The folded float weights."""
        return self.codes * self.per_channel(self.scale)

    @property
    def unit(self):
        """Distance between neighbouring accumulator values per channel, in units of the output."""
        return np.float64(self.input_scale) * self.scale / self.multiplier

    def is_settled(self, step):
        """Whether the bias of each channel is on the grid of the sums, up to float32.

        Args:
            step: The distance between two codes of the output.
        """
        return np.abs(self.bias - self.rounded_bias) <= SETTLED_STEPS * np.float64(step)

    @property
    def rounded_bias(self):
        """The bias that the accumulator can hold, in units of the output."""
        return self.bias_codes * self.unit


@dataclasses.dataclass(eq=False)
class Step:
    """One step.

    Attributes:
        kind: See above.
        inputs: `Value`s.
        output: The resulting `Value`.
        nodes: The nodes of the trained graph that it computes, in order.
        activation: "none", "relu" or "relu6".
        weights: For a linear or affine step of codes: its `Weights`.
        affines: For an affine step of floats: [(slope, shift), ...], which broadcast.
        options: Other data that its kind needs: axes, sizes, ...
        codes: For an embedding or constant: the codes of the table.
        absorbed: The padding node whose zeros the layer adds itself, or None.
        quantizer: The trained quantizer that decided the grid, or None.
    """

    kind: str
    inputs: list
    output: Value
    nodes: list = dataclasses.field(default_factory=list)
    activation: str = "none"
    weights: Weights | None = None
    affines: list = dataclasses.field(default_factory=list)
    options: dict = dataclasses.field(default_factory=dict)
    codes: np.ndarray | None = None
    absorbed: object = None
    quantizer: object = None

    @property
    def name(self):
        """The name of the output."""
        return self.output.name

    @property
    def layer(self):
        """The layer or operation of its first node; for a quantized layer, the inner layer."""
        return unwrapped(self.nodes[0].operation)

    @property
    def is_float(self):
        """Whether it computes a node of the trained graph in float or on plain whole numbers."""
        return self.output.grid is None and bool(self.nodes) and self.kind != "refused"


def unwrapped(operation):
    """Returns the layer in a `QuantizedLayer`; other layers unchanged."""
    return operation.layer if isinstance(operation, QuantizedLayer) else operation


@dataclasses.dataclass(eq=False)
class Places:
    """Where the codes of the trained graph's quantizers are in the file.

    Attributes:
        tensors: {number of a quantizer's output tensor in the trained graph: name of the file's
            tensor}. If zeros around a tensor are left to its reader: the tensor without them.
        scales: {name of a quantizer: its scale in the file}, for adjusted scales.
    """

    tensors: dict = dataclasses.field(default_factory=dict)
    scales: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class FoldedNetwork:
    """Steps in execution order; `inputs` and `outputs` are Values, `places` its `Places`.

    If there are `problems`, it is not a usable network. `float_layers` and `left_out` are names of
    layers: those computed in float, and those that do nothing. `no_kernel` has the `Problem`s of
    layers that are in float because no integer kernel computes them.
    """

    name: str
    steps: list = dataclasses.field(default_factory=list)
    inputs: list = dataclasses.field(default_factory=list)
    outputs: list = dataclasses.field(default_factory=list)
    input_names: list = dataclasses.field(default_factory=list)
    output_names: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)
    places: Places = dataclasses.field(default_factory=Places)
    problems: list = dataclasses.field(default_factory=list)
    float_layers: list = dataclasses.field(default_factory=list)
    left_out: set = dataclasses.field(default_factory=set)
    no_kernel: list = dataclasses.field(default_factory=list)

    def drop_unread(self):
        """Removes steps that are no longer read; constants are kept, they cost nothing."""
        needed = {id(value) for value in self.outputs}
        kept = []
        for step in reversed(self.steps):
            if id(step.output) in needed or step.kind == "constant":
                kept.append(step)
                needed.update(id(value) for value in step.inputs)
        self.steps = kept[::-1]

    def drop_last_tables(self):
        """Makes the logits the output, dropping a final softmax, sigmoid or tanh."""
        makers = {id(step.output): step for step in self.steps}
        for place, value in enumerate(self.outputs):
            step = makers.get(id(value))
            if step is not None and _is_last_function(step):
                self.outputs[place] = step.inputs[0]
        self.drop_unread()


def _is_last_function(step):
    """Whether a step is an unrounded softmax, sigmoid or tanh, in codes or in float."""
    is_last = step.kind == "table" and step.quantizer is None
    return is_last and takes_logits(unwrapped(step.nodes[-1].operation))
