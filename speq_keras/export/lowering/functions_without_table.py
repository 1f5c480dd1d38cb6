"""Functions of one code by kernels that are faster than a table.

A table is read by three kernels outside of XNNPACK. Two other ways stand in its place wherever they
give the table's codes, all 256 of them:

    one kernel      ELU and GELU; a leaky ReLU whose scales and slope `settle` has moved
    a sum           hard sigmoid: x/6 + 1/2, and the ends of its grid clip
                    leaky ReLU:   α·x + (1 − α)·max(x, 0)

The factors of a sum are scales of tensors that hold the codes of x, so only the sum rounds.
"""

import copy

import numpy as np

from speq_keras.export.lowering.float_functions import function_of
from speq_keras.export.tflite.network import Node, Tensor
from speq_keras.export.tflite.operations import OPS
from speq_keras.operations import negative_slope

# The kernel of a function, and its options.
_KERNELS = {
    "elu": ("elu", {}),
    "gelu": ("gelu", {"approximate": False}),
    "gelu_approximate": ("gelu", {"approximate": True}),
}
_ALL_CODES = np.arange(-128, 128).astype("int8")
# TensorFlow Lite Micro has no kernel for them, or one that rounds twice.
_NOT_IN_MICRO = ("gelu", "leaky_relu")


def emit_without_table(builder, step, x, wanted):
    """Adds the operations of a function, if a kernel or a sum computes it exactly.

    Args:
        builder: The `Builder`.
        step: The step of the function.
        x: The `Tensor` that it reads, whose scale is its step.
        wanted: On the grid of the step, the code for each of the codes of `x` from -128 to 127.

    Returns:
        Whether it did.
    """
    for kind, operands, options in _ways(builder, step, x):
        if operands and _computes(kind, operands, step.output.grid, wanted, options):
            if kind == "add":
                operands = [_added(builder, step, x, term) for term in operands]
            names = [tensor.name for tensor in operands]
            builder.rounded(step, kind, names, options, has_scale=False)
            return True
    return False


def _ways(builder, step, x):
    """Returns what may compute a function of `x`: (kind of a node, operands, options), ...

    Outside of XNNPACK LEAKY_RELU rounds twice. A file with codes at its ends is for
    microcontrollers, too, which get the sum.
    """
    name, slope = function_of(step.layer), negative_slope(step.layer)
    if name in _KERNELS:
        kind, options = _KERNELS[name]
        return [(kind, [x], options)]
    ways = [("add", _terms(step, name, x), {})]
    if slope is not None and builder.io == "float32":
        ways.insert(0, ("leaky_relu", [x], {"alpha": slope}))
    return ways


def use_tables_for_micro(network):
    """Makes tables of the functions of codes for which TensorFlow Lite Micro has no exact kernel.

    Args:
        network: The `IntegerNetwork`, changed in place.
    """
    for node in network.nodes:
        (x,) = [network.tensors[name] for name in node.inputs[:1]]
        if node.kind not in _NOT_IN_MICRO or x.scale is None:
            continue
        output = network.tensors[node.output]
        codes = OPS[node.kind].integer([_ALL_CODES], [x], output, **node.options)
        table = Tensor(
            name=f"{node.output}/table",
            shape=codes.shape,
            scale=output.scale,
            zero_point=output.zero_point,
            data=codes,
        )
        network.add_tensor(table)
        node.kind, node.inputs, node.options = "lookup", [x.name, table.name], {}


def _terms(step, name, x):
    """Returns two `Tensor`s whose sum is a function of `x`, or none."""
    if name == "hard_sigmoid":
        half = np.array([127], "int8")
        return [
            _scaled(x, f"{step.name}/sixth", 1 / 6),
            Tensor(name=f"{step.name}/half", shape=(1,), scale=np.float32(0.5 / 127), data=half),
        ]
    slope = negative_slope(step.layer)
    if slope is None or not 0.0 < slope < 1.0:
        return []
    above = _scaled(x, f"{step.name}/above", 1 - slope)
    above.low = above.zero_point
    return [_scaled(x, f"{step.name}/slope", slope), above]


def _scaled(x, name, factor):
    """Returns a tensor for the codes of `x`, which mean `factor` times as much."""
    made = copy.copy(x)
    made.name, made.layer = name, ""
    made.scale = made.trained_scale = np.float32(np.float64(x.scale) * factor)
    return made


def _computes(kind, operands, grid, wanted, options):
    """Whether a kernel makes the codes `wanted` of all codes of its operands."""
    output = Tensor(name="output", shape=(256,), scale=grid.scale, zero_point=-128 - grid.low)
    node = Node(kind=kind, inputs=[x.name for x in operands], outputs=["output"], options=options)
    limits = OPS[kind].limits
    if limits is not None:
        ratios = limits.ratios_of(node, {x.name: x for x in (*operands, output)})
        if min(ratios) < limits.low or max(ratios) >= limits.high:
            return False
    values = [np.clip(_ALL_CODES, x.low, x.high) if x.data is None else x.data for x in operands]
    made = OPS[kind].integer(values, operands, output, **options)
    made = np.minimum(made.astype(int) - output.zero_point, grid.high)
    return np.array_equal(made, wanted)


def _added(builder, step, x, term):
    """Adds a term of a sum to the network: a constant, or the codes of `x` as they are."""
    if term.data is not None:
        return builder.constant_of(step, term)
    activation = "relu" if term.low == term.zero_point else "none"
    factor = np.float64(term.scale) / np.float64(x.scale)
    data = np.array([127], "int8")
    one = Tensor(name=f"{term.name}/one", shape=(1,), scale=np.float32(factor / 127), data=data)
    one = builder.constant_of(step, one)
    made = builder.network.add_tensor(term)
    return builder.add("mul", [x.name, one.name], made, activation=activation)
