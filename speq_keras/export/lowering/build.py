"""Puts the operations together: the table of rows, the ends of the network, pruning."""

import copy

import numpy as np

from speq_keras.export.folding.steps import CannotExport, Problem, Value, refusal
from speq_keras.export.lowering import islands, linear, rows
from speq_keras.export.lowering.encoding import encoding_of, fused_activation, tensor_of
from speq_keras.export.tflite.network import IntegerNetwork, Node, Tensor
from speq_keras.export.tflite.operations import limits_problem

ROWS = {
    "quantize": lambda builder, step: builder.quantize(step),
    "linear": linear.linear,
    "affine": linear.affine,
    "requantize": lambda builder, step: linear.slope(builder, step, 1.0),
    "add": rows.pair("add"),
    "subtract": rows.pair("sub"),
    "multiply": rows.pair("mul"),
    "matmul": rows.matmul,
    "mean": rows.mean,
    "average_pool": rows.average_pool,
    "max_pool": rows.pool("max_pool_2d"),
    "resize": rows.resize("resize_bilinear"),
    "resize_nearest": rows.resize("resize_nearest_neighbor"),
    "table": rows.table,
    "concatenate": rows.concatenate,
    "reshape": rows.reshape,
    "transpose": rows.transpose,
    "pad": rows.pad,
    "mirror_pad": rows.mirror_pad,
    "slice": rows.slice_,
    "embedding": rows.embedding,
    "constant": rows.constant,
    "dequantize": islands.dequantize,
    "cast": islands.cast,
    "float": islands.float_,
    "refused": lambda builder, step: builder.placeholder(step),
}


def lower(folded, *, io="float32"):
    """Lowers a `FoldedNetwork` to operations.

    Args:
        folded: The network.
        io: "float32": QUANTIZE and DEQUANTIZE stand at the ends; "int8" or "uint8": they do not.

    Returns:
        An `IntegerNetwork`.

    Raises:
        ValueError: If a layer cannot be computed; names all of them, those of `folded` too.
    """
    network, problems = lower_steps(folded, io=io)
    problems = [*folded.problems, *problems]
    if problems:
        raise ValueError(refusal(folded.name, problems))
    return network


def lower_steps(folded, *, io="float32"):
    """As `lower`, with the problems as data.

    Returns:
        `(network, problems)`: the `IntegerNetwork`, and a `Problem` for every step that cannot be
        computed. With one, here or in `folded`, the network is no network.
    """
    builder = _Builder(folded, io)
    problems = []
    for value in folded.inputs:
        builder.input(value)
    for step in folded.steps:
        try:
            ROWS[step.kind](builder, step)
        except CannotExport as error:
            problems.append(_problem(step, error))
            builder.placeholder(step)
    for value in folded.outputs:
        builder.output(value)
    return builder.network, list(dict.fromkeys(problems))


def _problem(step, error):
    """Returns the `Problem` of a step that raised a `CannotExport`."""
    if step.nodes:
        return Problem.at(step.nodes[0], error)
    return Problem(step.name, step.kind, str(error), error.by_ranges)


class _Builder:
    def __init__(self, folded, io):
        self.io = io
        self.network = IntegerNetwork(
            name=folded.name,
            input_names=list(folded.input_names),
            output_names=list(folded.output_names),
            notes=list(folded.notes),
        )
        self.tensors = {}  # id(Value): Tensor
        self.plains = {}  # id(Value): (Value, the same codes in a tensor whose scale is its step)

    # ---- tensors -------------------------------------------------------------------------------

    def tensor(self, value):
        """Returns the tensor that holds a `Value` made before."""
        return self.tensors[id(value)]

    def tensor_for(self, step):
        """Returns the tensor of a step's output, made once."""
        if id(step.output) not in self.tensors:
            tensor = self.network.add_tensor(tensor_of(step.output))
            self.tensors[id(step.output)] = tensor
        return self.tensors[id(step.output)]

    def placeholder(self, step):
        """Gives a step that cannot be lowered an output, so that the others can be checked."""
        if step.output.grid is None:
            islands.float_output(self, step)
        else:
            self.tensor_for(step)

    def plain(self, value, *, around_zero=False):
        """Returns a tensor whose scale is its step, for operations without a scale of their own.

        With `around_zero` its zero point is 0 as well, if 8 bits hold its codes so: XNNPACK
        multiplies by such a tensor.
        """
        tensor, grid = self.tensor(value), value.grid
        moves = around_zero and tensor.zero_point and grid.low >= -128 and grid.high <= 127
        if tensor.scale == tensor.step and not moves:
            return tensor
        if id(value) not in self.plains:
            made = self.network.add_tensor(_unclipped(f"{value.name}/plain", tensor.shape, tensor))
            factor = np.float64(tensor.step) / np.float64(tensor.scale)
            one = self.constant(f"{value.name}/one", 127, np.float32(factor / 127))
            # The value is kept, so that its id stays its own.
            self.plains[id(value)] = (value, self.add("mul", [tensor.name, one.name], made))
        return self.plains[id(value)][1]

    def constant(self, name, code, scale):
        """Adds and returns a constant of one number, `code` · `scale`."""
        data = np.array([code], "int8")
        return self.network.add_tensor(Tensor(name=name, shape=(1,), scale=scale, data=data))

    # ---- nodes ---------------------------------------------------------------------------------

    def add(self, kind, inputs, output, *, activation="none", options=None, layer=""):
        """Adds a node and returns its output.

        Args:
            kind: As of a `Node`.
            inputs: Names of tensors.
            output: A tensor of the network.
            activation: As of a `Node`.
            options: As of a `Node`.
            layer: As of a `Node`.

        Raises:
            CannotExport: If its kernel does not take the scales.
        """
        node = Node(
            kind=kind,
            inputs=list(inputs),
            outputs=[output.name],
            activation=activation,
            options=options or {},
            layer=layer,
        )
        problem = limits_problem(node, self.network.tensors)
        if problem:
            raise CannotExport(problem, by_ranges=True)
        self.network.nodes.append(node)
        return output

    def emit(
        self, step, kind, inputs, options=None, *, activation="none", flattened=False, shape=None
    ):
        """Adds the node that makes a step's output, and returns that.

        Args:
            step: The step.
            kind: As of a `Node`.
            inputs: Names of tensors.
            options: As of a `Node`.
            activation: As of a `Node`.
            flattened: Whether the kernel makes four axes whatever the step has: a reshape follows.
            shape: What the kernel makes, if it is not the shape of the step: a reshape follows.
        """
        output = self.tensor_for(step)
        made_shape = shape
        if flattened and made_shape is None:
            made_shape = self.shape_made(output)
        if made_shape is None or tuple(made_shape) == tuple(output.shape):
            return self.add(
                kind, inputs, output, activation=activation, options=options, layer=step.name
            )
        inner = self.like(output, f"{step.name}/{kind}", made_shape)
        self.add(kind, inputs, inner, activation=activation, options=options, layer=step.name)
        return self.add("reshape", [inner.name], output, options={"shape": output.shape})

    @staticmethod
    def shape_made(output):
        """Returns the 4-D shape that a kernel makes, where the step has another rank."""
        shape = output.shape
        if len(shape) == 4:
            return shape
        if len(shape) == 3:
            return (shape[0], 1, *shape[1:])
        return (shape[0], 1, int(np.prod([1, *shape[1:-1]])), shape[-1])

    def like(self, tensor, name, shape):
        """Adds and returns a tensor with the encoding of another one."""
        inner = copy.copy(tensor)
        inner.name, inner.shape, inner.layer = name, tuple(shape), ""
        return self.network.add_tensor(inner)

    def rounded(self, step, kind, inputs, options, *, flattened=False, has_scale=True, shape=None):
        """Adds a node that rounds to the step's grid, and one more where it cannot clip.

        `shape` is what the node makes, if it is not the shape of the step. `has_scale` says whether
        the operation multiplies by a scale of its own, which takes in the factor between a file's
        scale and the step of the trained grid.
        """
        grid = step.output.grid
        fused, after = fused_activation(step.activation, grid)
        encoding = encoding_of(grid)
        can_fuse = kind not in ("mean", "batch_matmul")
        fuses = can_fuse or fused == "none"
        if after is None and fuses and (has_scale or encoding.clip != "relu_n1_to_1"):
            return self.emit(
                step, kind, inputs, options, activation=fused, flattened=flattened, shape=shape
            )
        if after == "relu6":
            reason = "ReLU6 below 6 on a signed grid of fewer than 8 bits"
            raise CannotExport(reason, by_ranges=True)
        output = self.tensor_for(step)
        if has_scale:
            inner = self.like(output, f"{step.name}/clipped", shape or output.shape)
        else:
            name = f"{step.name}/unclipped"
            inner = self.network.add_tensor(_unclipped(name, output.shape, output))
        first = fused if has_scale else step.activation if can_fuse else "none"
        second = after if has_scale else fused
        self.add(kind, inputs, inner, activation=first, options=options, layer=step.name)
        factor = np.float64(inner.step) / np.float64(inner.scale) / encoding.factor
        one = self.constant(f"{step.name}/one", 127, np.float32(factor / 127))
        if tuple(inner.shape) != tuple(output.shape):
            output = self.like(output, f"{step.name}/flat", inner.shape)
        made = self.add("mul", [inner.name, one.name], output, activation=second)
        if shape is None:
            return made
        options = {"shape": self.tensor_for(step).shape}
        return self.add("reshape", [made.name], self.tensor_for(step), options=options)

    def reshape(self, tensor, shape, name):
        """Adds a node that gives a tensor another shape; returns what it makes."""
        made = self.like(tensor, f"{name}/reshaped", shape)
        return self.add("reshape", [tensor.name], made, options={"shape": tuple(shape)})

    def with_height(self, tensor, name):
        """Returns a tensor of sequences as one of images of height 1; of others, the tensor."""
        if len(tensor.shape) != 3:
            return tensor
        return self.reshape(tensor, (tensor.shape[0], 1, *tensor.shape[1:]), name)

    def pad(self, tensor, paddings, name):
        """Adds a node that puts zeros around a tensor; returns what it makes.

        Args:
            tensor: The tensor.
            paddings: One (before, after) per axis.
            name: Of the step.
        """
        shape = tuple(
            size if size is None else size + before + after
            for size, (before, after) in zip(tensor.shape, paddings, strict=True)
        )
        made = self.like(tensor, f"{name}/padded", shape)
        return self.add("pad", [tensor.name], made, options={"paddings": paddings})

    def renamed(self, step, tensor):
        """Returns a copy of a step that reads `tensor`."""
        value = Value(tensor.name, tensor.shape, step.inputs[0].grid)
        self.tensors[id(value)] = tensor
        again = copy.copy(step)
        again.inputs = [value]
        return again

    # ---- ends ----------------------------------------------------------------------------------

    def input(self, value):
        """Adds an input; `quantize` replaces a float one where the input is to be codes."""
        tensor = self.network.add_tensor(
            Tensor(name=value.name, shape=tuple(value.shape), dtype=value.dtype)
        )
        self.tensors[id(value)] = tensor
        self.network.inputs.append(tensor.name)

    def quantize(self, step):
        """Makes codes of an input: from floats, from uint8, or they come as they are."""
        outside = self.tensor(step.inputs[0])
        if self.io == "float32" or outside.name not in self.network.inputs:
            return self.emit(step, "quantize", [self.clipped(step, outside).name])
        output = self.tensor_for(step)
        if self.io == "int8":
            place = self.network.inputs.index(outside.name)
            del self.network.tensors[outside.name]
            self.network.inputs[place] = output.name
            return output
        self.make_uint8(outside, output)
        return self.emit(step, "quantize", [outside.name])

    def clipped(self, step, x):
        """Returns floats from which QUANTIZE, which saturates 8 bits only, makes a step's codes.

        The end of the grid at which int8 does not end is clipped in float, and where the file has
        a scale of its own, they are brought to it.
        """
        encoding = encoding_of(step.output.grid)
        never_negative = getattr(step.quantizer, "nonnegative_input", False)
        if encoding.clip == "none" or (encoding.clip == "relu" and never_negative):
            return x
        name = f"{step.name}/clipped"
        made = self.network.add_tensor(Tensor(name=name, shape=x.shape, dtype="float32"))
        if encoding.clip == "relu":
            return self.add("relu", [x.name], made, layer=step.name)
        factor = np.array([1 / encoding.factor], "float32")
        name = f"{step.name}/factor"
        factor = self.network.add_tensor(
            Tensor(name=name, shape=(1,), dtype="float32", data=factor)
        )
        return self.add(
            "mul", [x.name, factor.name], made, activation=encoding.clip, layer=step.name
        )

    @staticmethod
    def make_uint8(tensor, codes):
        """Makes `tensor` one of uint8 for the codes in the tensor `codes`, moved up by 128."""
        tensor.dtype, tensor.scale, tensor.step = "uint8", codes.scale, codes.step
        tensor.zero_point = codes.zero_point + 128
        tensor.low, tensor.high = codes.low + 128, codes.high + 128

    def output(self, value):
        """Adds an output: a step that makes floats or uint8 of codes, where that is asked for."""
        tensor = self.tensor(value)
        if self.io == "int8" or value.grid is None:
            self.network.outputs.append(tensor.name)
            return
        made = self.network.add_tensor(
            Tensor(name=f"{value.name}/output", shape=tensor.shape, dtype="float32")
        )
        if self.io == "uint8":
            self.make_uint8(made, tensor)
        self.add("dequantize" if self.io == "float32" else "quantize", [tensor.name], made)
        self.network.outputs.append(made.name)


def _unclipped(name, shape, like):
    """Returns a tensor for the codes of `like` around a zero point of 0, not clipped to its grid.

    Signed codes of fewer than 8 bits fit whatever their offset is.
    """
    return Tensor(name=name, shape=tuple(shape), scale=np.float32(like.step), step=like.step)
