"""The table of all operations that a file can have, `OPS`, and look-ups in it.

The integer kernels are those of LiteRT's default runtime, bit for bit: XNNPACK on x86 and, for
operations that XNNPACK does not take, the builtin kernel, which ends an XNNPACK partition. Each
function says how its kernel rounds ties: to even, up, or away from zero.

Float kernels sum in a different order, so `floating` agrees with the runtime up to float32
rounding, not bit for bit.
"""

from speq_keras._checks import describe
from speq_keras.export.tflite import elementwise, functions, moving, pooling, products, volumes

OPS = {
    **products.OPS,
    **volumes.OPS,
    **elementwise.OPS,
    **functions.OPS,
    **pooling.OPS,
    **moving.OPS,
}


def emit(node, tensors, batch_size):
    """Returns the `Operation`s that compute `node`, in execution order.

    Args:
        node: A `Node`.
        tensors: {name: `Tensor`} of its network.
        batch_size: The file's batch size.
    """
    operations = OPS[node.kind].emit(node, tensors, batch_size)
    return operations if isinstance(operations, list) else [operations]


def compute(node, values, tensors, *, elsewhere=False):
    """Returns the array that a node writes, or a list of arrays if it has several outputs.

    Args:
        node: `network.Node`.
        values: Arrays of its inputs; None: absent.
        tensors: {name: `network.Tensor`}.
        elsewhere: Whether to compute as on ARM and in browsers, where a kernel rounds differently.

    Raises:
        NotImplementedError: If no kernel of the node's kind is known for these types.
    """
    inputs = [tensors[name] if name else None for name in node.inputs]
    output = tensors[node.output]
    options = dict(node.options)
    if node.activation != "none":
        options["activation"] = node.activation
    if elsewhere and products.differs_elsewhere(node, tensors):
        options["once"] = True
    is_plain = all(tensor is None or tensor.scale is None for tensor in (*inputs, output))
    op = OPS.get(node.kind)
    kernel = op and (op.floating if is_plain else op.integer)
    if kernel is None:
        types = "plain numbers" if is_plain else "codes"
        raise NotImplementedError(
            f"`simulate` must know every node's kind. {describe(kind=node.kind, layer=node.layer)} "
            f"`tflite.operations.OPS` holds the known ones, and what they compute from {types}."
        )
    return kernel(values, inputs, output, **options)


def slack_steps(node, tensors):
    """Returns how many output steps a kernel may be off, beyond the nearest code."""
    op = OPS[node.kind]
    return 0.0 if op.slack is None else op.slack(node, tensors)
