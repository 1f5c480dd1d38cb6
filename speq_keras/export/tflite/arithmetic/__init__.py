"""The integers that LiteRT's default runtime computes, in NumPy, bit for bit.

One pure function per node kind of `export.network`, all called the same way:

    function(values, inputs, output, *, activation="none", **options) -> array

`values` are the arrays of the inputs (None: absent), `inputs` and `output` the `network.Tensor`s
that say scales and zero points, the rest is the node's own. The default runtime is XNNPACK on x86
and, for the operations that XNNPACK leaves alone, the builtin kernel:

    module         rounds
    -------------  -------------------------------------------------------------------------
    products       conv_2d, depthwise_conv_2d, fully_connected, transpose_conv: float32, even;
                   batch_matmul: float32, even, or* fixed point, twice
    elementwise    mul: float32, even; add, sub: fixed point, up; prelu*: fixed point, twice
    tables         logistic, tanh, elu: float32, even; leaky_relu: 1/256, up; gelu*: float32,
                   away from zero; hard_swish*: 16-bit fixed point; lookup*: does not round
    pooling        mean: float32, even; resize_bilinear: 1/2048, up; average_pool_2d*, softmax*:
                   away from zero; max_pool_2d, resize_nearest_neighbor*: do not round
    shapes         do not round; mirror_pad*, concatenation* of more than 5 tensors,
                   strided_slice* by steps

    * a builtin kernel, which ends an XNNPACK partition
"""

from speq_keras._checks import describe
from speq_keras.export.tflite.arithmetic import (
    elementwise,
    floating,
    pooling,
    products,
    shapes,
    tables,
)

KERNELS = {
    function.__name__: function
    for function in (
        elementwise.quantize,
        elementwise.dequantize,
        elementwise.add,
        elementwise.sub,
        elementwise.mul,
        elementwise.prelu,
        products.conv_2d,
        products.depthwise_conv_2d,
        products.fully_connected,
        products.batch_matmul,
        products.transpose_conv,
        pooling.average_pool_2d,
        pooling.max_pool_2d,
        pooling.mean,
        pooling.resize_nearest_neighbor,
        pooling.resize_bilinear,
        pooling.softmax,
        shapes.concatenation,
        shapes.gather,
        shapes.reshape,
        shapes.transpose,
        shapes.pad,
        shapes.mirror_pad,
        shapes.strided_slice,
        tables.logistic,
        tables.tanh,
        tables.elu,
        tables.gelu,
        tables.hard_swish,
        tables.leaky_relu,
        tables.lookup,
    )
}


def compute(node, values, tensors, *, elsewhere=False):
    """Returns the array that a node writes.

    Args:
        node: `network.Node`.
        values: Arrays of its inputs; None: absent.
        tensors: {name: `network.Tensor`}.
        elsewhere: Whether on ARM and in browsers, where a kernel rounds otherwise than on x86.

    Raises:
        NotImplementedError: If the node's kind is not known for these types.
    """
    inputs = [tensors[name] if name else None for name in node.inputs]
    output = tensors[node.output]
    options = dict(node.options)
    if node.activation != "none":
        options["activation"] = node.activation
    if elsewhere and products.differs_elsewhere(node, tensors):
        options["once"] = True
    types = {tensor.dtype for tensor in (*inputs, output) if tensor is not None}
    kernel = KERNELS.get(node.kind)
    if node.kind in floating.KERNELS and (kernel is None or types == {"float32"}):
        kernel = floating.KERNELS[node.kind]
    if kernel is None:
        raise NotImplementedError(
            f"`simulate` must know every node's kind. {describe(kind=node.kind, layer=node.layer)} "
            "`export.arithmetic.KERNELS` holds the known ones."
        )
    return kernel(values, inputs, output, **options)
