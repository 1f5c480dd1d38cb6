"""Assembles the operations: nodes, clipping after them, inputs and outputs of the network."""

import copy

import numpy as np

from speq_keras.export.folding.steps import CannotExport
from speq_keras.export.lowering.encoding import encoding_of, fused_activation, tensor_of
from speq_keras.export.tflite.network import IntegerNetwork, Node, Tensor, batches
from speq_keras.export.tflite.operations import OPS


class Builder:
    """An `IntegerNetwork` under construction, one step of the folded network at a time.

    Args:
        folded: The `FoldedNetwork`.
        io: See `lowering.lower`.
    """

    def __init__(self, folded, io):
        self.io = io
        self.shared = {}  # contents of an unrolled layer's constant: its tensor
        self.slices = {}  # id(Value): the steps that slice it
        for step in folded.steps:
            if step.kind == "strided_slice":
                self.slices.setdefault(id(step.inputs[0]), []).append(step)
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
        """Returns the tensor of an existing `Value`."""
        return self.tensors[id(value)]

    def tensor_for(self, step):
        """Returns the tensor of a step's output, creating it once."""
        value = step.output
        if id(value) not in self.tensors:
            made = tensor_of(value) if value.grid is not None else plain_tensor(value)
            self.tensors[id(value)] = self.network.add_tensor(made)
        return self.tensors[id(value)]

    def at_trained_scale(self, value, *, around_zero=False):
        """Returns a tensor whose scale is its step, for operations without their own scale.

        With `around_zero` its zero point is 0 as well, if its codes then fit 8 bits: XNNPACK
        multiplies by such a tensor. Floats are returned unchanged.
        """
        tensor, grid = self.tensor(value), value.grid
        if grid is None:
            return tensor
        moves = around_zero and tensor.zero_point and grid.low >= -128 and grid.high <= 127
        if tensor.scale == tensor.trained_scale and not moves:
            return tensor
        if id(value) not in self.plains:
            made = self.network.add_tensor(_unclipped(f"{value.name}/plain", tensor.shape, tensor))
            factor = np.float64(tensor.trained_scale) / np.float64(tensor.scale)
            one = self.one(value.name, factor)
            # The value is kept, so that its id stays unique.
            self.plains[id(value)] = (value, self.add("mul", [tensor.name, one.name], made))
        return self.plains[id(value)][1]

    def constant_of(self, step, tensor):
        """Adds a constant tensor of a step and returns it; unrolled steps share equal ones."""
        if not step.nodes or step.nodes[0].origin is None:
            return self.network.add_tensor(tensor)
        values = (np.asarray(x).tobytes() for x in (tensor.data, tensor.scale))
        key = (tensor.dtype, tensor.shape, tensor.zero_point, tensor.axis, *values)
        if key not in self.shared:
            self.shared[key] = self.network.add_tensor(tensor)
        return self.shared[key]

    def code_constant(self, name, code, scale):
        """Adds and returns a constant of one number, `code` · `scale`."""
        data = np.array([code], "int8")
        return self.network.add_tensor(Tensor(name=name, shape=(1,), scale=scale, data=data))

    def constant(self, name, values, dtype="float32"):
        """Adds and returns a constant of plain numbers."""
        values = np.asarray(values, dtype)
        tensor = Tensor(name=name, shape=values.shape, dtype=dtype, data=values)
        return self.network.add_tensor(tensor)

    # ---- nodes ---------------------------------------------------------------------------------

    def add(self, kind, inputs, output, *more, activation="none", options=None, layer=""):
        """Adds a node and returns its first output.

        Args:
            kind: As in a `Node`.
            inputs: Names of tensors.
            output: A tensor of the network.
            *more: Further outputs, if there are several.
            activation: As in a `Node`.
            options: As in a `Node`.
            layer: As in a `Node`.

        Raises:
            CannotExport: If its kernel does not compute it with these scales.
        """
        node = Node(
            kind=kind,
            inputs=list(inputs),
            outputs=[tensor.name for tensor in (output, *more)],
            activation=activation,
            options=options or {},
            layer=layer,
        )
        problem = OPS[kind].problem(node, self.network.tensors)
        if problem:
            raise CannotExport(problem, by_ranges=True)
        self.network.nodes.append(node)
        return output

    def one(self, name, factor):
        """Adds and returns a constant for exact multiplication of codes."""
        return self.code_constant(f"{name}/one", 127, np.float32(factor / 127))

    def emit(self, step, kind, inputs, options=None, *, activation="none", shape=None):
        """Adds the node that makes a step's output, and returns that output.

        Args:
            step: The step.
            kind: As in a `Node`.
            inputs: Names of tensors.
            options: As in a `Node`.
            activation: As in a `Node`.
            shape: The kernel's output shape, if not that of the step: a reshape follows. Image
                kernels make four axes, whatever the step has.
        """
        if shape is None and OPS[kind].is_spatial:
            shape = image_shape(step.output.shape)
        if step.output.grid is None:
            return self.finish(step, self.make(step, kind, inputs, shape, options))
        output = self.tensor_for(step)
        if shape is None or tuple(shape) == tuple(output.shape):
            return self.add(
                kind, inputs, output, activation=activation, options=options, layer=step.name
            )
        inner = self.like(output, f"{step.name}/{kind}", shape)
        self.add(kind, inputs, inner, activation=activation, options=options, layer=step.name)
        return self.add("reshape", [inner.name], output, options={"shape": output.shape})

    def like(self, tensor, name, shape):
        """Adds and returns a tensor with the encoding of another tensor."""
        inner = copy.copy(tensor)
        inner.name, inner.shape, inner.layer = name, tuple(shape), ""
        return self.network.add_tensor(inner)

    def rounded(self, step, kind, inputs, options, *, has_scale=True, shape=None):
        """Adds a node that rounds to the step's grid, and another one if it cannot clip.

        Args:
            step: The step; for floats, nothing is rounded.
            kind: As in a `Node`.
            inputs: Names of tensors.
            options: As of a `Node`.
            has_scale: Whether the operation multiplies by its own scale, which absorbs the factor
                between a file's scale and the step of the trained grid.
            shape: The node's output shape, if not that of the step.
        """
        grid = step.output.grid
        if shape is None and OPS[kind].is_spatial and len(step.output.shape) != 4:
            shape = image_shape(step.output.shape)
        if grid is None:
            return self.emit(step, kind, inputs, options, shape=shape)
        fused, after = fused_activation(step.activation, grid)
        encoding = encoding_of(grid)
        can_fuse = OPS[kind].fuses
        fuses = can_fuse or fused == "none"
        if after is None and fuses and (has_scale or encoding.clip != "relu_n1_to_1"):
            return self.emit(step, kind, inputs, options, activation=fused, shape=shape)
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
        factor = np.float64(inner.trained_scale) / np.float64(inner.scale) / encoding.factor
        one = self.one(step.name, factor)
        if tuple(inner.shape) != tuple(output.shape):
            output = self.like(output, f"{step.name}/flat", inner.shape)
        made = self.add("mul", [inner.name, one.name], output, activation=second)
        if shape is None:
            return made
        options = {"shape": self.tensor_for(step).shape}
        return self.add("reshape", [made.name], self.tensor_for(step), options=options)

    def reshape(self, tensor, shape, name):
        """Adds a node that reshapes a tensor; returns its output."""
        made = self.like(tensor, f"{name}/reshaped", shape)
        return self.add("reshape", [tensor.name], made, options={"shape": tuple(shape)})

    def with_height(self, tensor, name):
        """Returns a tensor of sequences as images of height 1; other tensors unchanged."""
        if len(tensor.shape) != 3:
            return tensor
        return self.reshape(tensor, (tensor.shape[0], 1, *tensor.shape[1:]), name)

    def pad(self, tensor, paddings, name):
        """Adds a node that puts zeros around a tensor; returns its output.

        Args:
            tensor: The tensor.
            paddings: One (before, after) per axis.
            name: Name of the step.
        """
        shape = tuple(
            size if batches(size) else size + before + after
            for size, (before, after) in zip(tensor.shape, paddings, strict=True)
        )
        made = self.like(tensor, f"{name}/padded", shape)
        return self.add("pad", [tensor.name], made, options={"paddings": paddings})

    # ---- floats --------------------------------------------------------------------------------

    def make(self, step, kind, inputs, shape=None, options=None, *, dtype=None):
        """Adds one of the float nodes of a step and returns its output; `finish` ends them.

        Args:
            step: The step.
            kind: As in a `Node`.
            inputs: Names of tensors.
            shape: The node's output shape; by default that of the step's output.
            options: As in a `Node`.
            dtype: The output type; by default that of the step's output.
        """
        shape = step.output.shape if shape is None else shape
        dtype = step.output.dtype if dtype is None else dtype
        made = Tensor(name=f"{step.name}/{kind}", shape=tuple(shape), dtype=dtype)
        return self.add(
            kind, inputs, self.network.add_tensor(made), options=options, layer=step.name
        )

    def finish(self, step, tensor):
        """Makes the last node write a step's output, with a reshape if ranks differ."""
        if tuple(tensor.shape) != tuple(step.output.shape):
            options = {"shape": step.output.shape}
            return self.add("reshape", [tensor.name], self.tensor_for(step), options=options)
        del self.network.tensors[tensor.name]
        output = self.tensor_for(step)
        self.network.nodes[-1].outputs = [output.name]
        return output

    # ---- inputs and outputs --------------------------------------------------------------------

    def input(self, value):
        """Adds an input; `quantize` replaces a float one if the input should be codes."""
        tensor = self.tensors[id(value)] = self.network.add_tensor(plain_tensor(value))
        self.network.inputs.append(tensor.name)

    def quantize(self, step):
        """Turns an input into codes: from floats, from uint8, or unchanged."""
        outside = self.tensor(step.inputs[0])
        if self.io == "float32" or outside.name not in self.network.inputs:
            return self.emit(step, "quantize", [self.clipped(step, outside).name])
        output = self.tensor_for(step)
        if self.io == "int8":
            place = self.network.inputs.index(outside.name)
            del self.network.tensors[outside.name]
            self.network.inputs[place] = output.name
            return output
        _make_uint8(outside, output)
        return self.emit(step, "quantize", [outside.name])

    def clipped(self, step, x):
        """Returns floats that QUANTIZE, which only saturates at 8 bits, turns into a step's codes.

        They are clipped in float at the end of the grid at which int8 does not saturate, and scaled
        if the file's scale differs.
        """
        encoding = encoding_of(step.output.grid)
        never_negative = getattr(step.quantizer, "nonnegative_input", False)
        if encoding.clip == "none" or (encoding.clip == "relu" and never_negative):
            return x
        name = f"{step.name}/clipped"
        made = self.network.add_tensor(Tensor(name=name, shape=x.shape, dtype="float32"))
        if encoding.clip == "relu":
            return self.add("relu", [x.name], made, layer=step.name)
        factor = self.constant(f"{step.name}/factor", [1 / encoding.factor])
        return self.add(
            "mul", [x.name, factor.name], made, activation=encoding.clip, layer=step.name
        )

    def output(self, value):
        """Adds an output, and if requested a step that turns codes into floats or uint8."""
        tensor = self.tensor(value)
        if self.io == "int8" or value.grid is None:
            self.network.outputs.append(tensor.name)
            return
        made = self.network.add_tensor(
            Tensor(name=f"{value.name}/output", shape=tensor.shape, dtype="float32")
        )
        if self.io == "uint8":
            _make_uint8(made, tensor)
        self.add("dequantize" if self.io == "float32" else "quantize", [tensor.name], made)
        self.network.outputs.append(made.name)


def plain_tensor(value):
    """Returns the `Tensor` of a `Value` of floats or integers."""
    return Tensor(name=value.name, shape=tuple(value.shape), dtype=value.dtype)


def image_shape(shape):
    """Returns the four-axis shape that an image kernel makes for a step of any rank."""
    if len(shape) == 4:
        return shape
    if len(shape) == 3:
        return (shape[0], 1, *shape[1:])
    return (shape[0], 1, int(np.prod([1, *shape[1:-1]])), shape[-1])


def _unclipped(name, shape, like):
    """Returns a tensor for the codes of `like` with zero point 0, not clipped to its grid.

    Signed codes of fewer than 8 bits fit with any offset.
    """
    scale = np.float32(like.trained_scale)
    return Tensor(name=name, shape=tuple(shape), scale=scale, trained_scale=like.trained_scale)


def _make_uint8(tensor, codes):
    """Makes `tensor` the uint8 form, shifted by 128, of the codes in the tensor `codes`."""
    tensor.dtype, tensor.scale, tensor.trained_scale = "uint8", codes.scale, codes.trained_scale
    tensor.zero_point = codes.zero_point + 128
    tensor.low, tensor.high = codes.low + 128, codes.high + 128
