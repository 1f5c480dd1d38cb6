"""Networks of one operation, their files, and what the runtime makes of them."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from speq_keras.export.tflite.network import IntegerNetwork, Node, Tensor
from speq_keras.export.tflite.write import write

CONV = {"strides": (1, 2), "dilations": (1, 1), "padding": "same"}
IMAGE = (None, 8, 8, 4)


def quantized(name, shape, *, scale=0.05, zero_point=3, **fields):
    return Tensor(name=name, shape=shape, scale=np.float32(scale), zero_point=zero_point, **fields)


def floating(name, shape):
    return Tensor(name=name, shape=shape, dtype="float32")


def weights(name, shape, *, axis=0, dtype="int8", seed=0):
    """Returns codes that fit `dtype`, with a scale per channel."""
    rng = np.random.default_rng(seed)
    low, high = {"int8": (-127, 128), "int4": (-7, 8), "int2": (-2, 2)}[dtype]
    return Tensor(
        name=name,
        shape=shape,
        dtype=dtype,
        scale=rng.uniform(0.005, 0.02, shape[axis]).astype(np.float32),
        axis=axis,
        data=rng.integers(low, high, shape).astype(np.int8),
    )


def bias_for(kernel, *, input_scale=0.05, seed=0):
    channels = len(kernel.scale)
    return Tensor(
        name="bias",
        shape=(channels,),
        dtype="int32",
        scale=np.float32(input_scale) * kernel.scale,
        axis=0,
        data=np.random.default_rng(seed).integers(-2000, 2000, channels).astype(np.int32),
    )


def network_of(tensors, nodes, inputs=("x",), outputs=("y",), **fields):
    network = IntegerNetwork(
        name="net",
        nodes=nodes,
        inputs=list(inputs),
        outputs=list(outputs),
        input_names=[f"in_{name}" for name in inputs],
        output_names=[f"out_{name}" for name in outputs],
        **fields,
    )
    for tensor in tensors:
        network.add_tensor(tensor)
    return network


def one(kind, output, *more, x=None, activation="none", **options):
    """Returns a network of one node that reads `x` and the constants `more`."""
    x = x or quantized("x", IMAGE)
    node = Node(
        kind=kind,
        inputs=["x", *(tensor.name for tensor in more)],
        outputs=["y"],
        activation=activation,
        options=options,
    )
    return network_of([x, *more, output], [node])


def two_inputs(kind, *, make=quantized, **options):
    tensors = [make("x", IMAGE), make("b", IMAGE), make("y", IMAGE)]
    node = Node(kind=kind, inputs=["x", "b"], outputs=["y"], options=options)
    return network_of(tensors, [node], inputs=("x", "b"))


def conv(*, dtype="int8", activation="none", channels_in=4, options=None):
    kernel = weights("w", (6, 3, 3, channels_in), dtype=dtype)
    output = quantized("y", (None, 8, 4, 6))
    return one(
        "conv_2d", output, kernel, bias_for(kernel), activation=activation, **(options or CONV)
    )


def dense(dtype="int8", *, inputs=8, keep=False):
    kernel = weights("w", (6, inputs), dtype=dtype)
    leading = (None, 5) if keep else (None,)
    return one(
        "fully_connected",
        quantized("y", (*leading, 6)),
        kernel,
        bias_for(kernel),
        x=quantized("x", (*leading, inputs)),
        keep_num_dims=keep,
    )


def parsed(network, **arguments):
    return schema.ModelT.InitFromPackedBuf(write(network, **arguments))


def tensor_named(model, name):
    return next(t for t in model.subgraphs[0].tensors if t.name.decode() == name)


def operators_of(model):
    """Returns [(operator name, version, options)]."""
    names = {number: name for name, number in vars(schema.BuiltinOperator).items()}
    codes = model.operatorCodes
    return [
        (names[codes[x.opcodeIndex].builtinCode], codes[x.opcodeIndex].version, x.builtinOptions)
        for x in model.subgraphs[0].operators
    ]


def interpreter_of(content, resolver=OpResolverType.AUTO):
    return Interpreter(model_content=content, experimental_op_resolver_type=resolver)


def run(content, *inputs, resolver=OpResolverType.AUTO):
    """Returns the outputs of a file, after a change of the batch size if the inputs need it."""
    interpreter = interpreter_of(content, resolver)
    details = interpreter.get_input_details()
    for detail, values in zip(details, inputs, strict=True):
        interpreter.resize_tensor_input(detail["index"], values.shape)
    interpreter.allocate_tensors()
    for detail, values in zip(details, inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return [interpreter.get_tensor(x["index"]) for x in interpreter.get_output_details()]


def codes(shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


def transposed(*, bias=True, activation="none"):
    kernel = weights("w", (6, 3, 3, 4))
    more = [kernel, bias_for(kernel)] if bias else [kernel]
    return one(
        "transpose_conv",
        quantized("y", (None, 16, 16, 6)),
        *more,
        activation=activation,
        strides=(2, 2),
        padding="same",
        output_size=(16, 16),
    )
