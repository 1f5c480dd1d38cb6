"""Small integer networks for the tests of the export, their files, and what the runtime computes.

Wherever something is random, `rng` is a generator or a seed.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from speq_keras.export.tflite.network import IntegerNetwork, Node, Tensor
from speq_keras.export.tflite.runtimes import run_file
from speq_keras.export.tflite.write import write

ALL_CODES = np.arange(-128, 128).astype(np.int8)
CONV = {"strides": (1, 2), "dilations": (1, 1), "padding": "same"}
IMAGE = (None, 8, 8, 4)
_CODES = {"int8": (-127, 127), "int4": (-7, 7), "int2": (-2, 1)}

# ---- tensors ---------------------------------------------------------------------------------


def tensor(name, shape, scale=None, zero_point=0, **fields):
    """Returns a tensor whose scales are float32, as in a folded network."""
    scale = None if scale is None else np.asarray(scale, np.float32)[()]
    return Tensor(name=name, shape=shape, scale=scale, zero_point=zero_point, **fields)


def codes(shape, scale, zero_point=0, name="x"):
    """Returns a tensor with any number of examples."""
    return tensor(name, (None, *shape), scale, zero_point)


def quantized(name, shape, *, scale=0.05, zero_point=3, **fields):
    return tensor(name, shape, scale, zero_point, **fields)


def floating(name, shape):
    return tensor(name, shape, dtype="float32")


def constant(name, data, scale, zero_point=0, axis=None, dtype="int8"):
    return tensor(name, data.shape, scale, zero_point, data=data, axis=axis, dtype=dtype)


def weights(rng, shape, *, axis=0, step=1, dtype="int8", name="weights"):
    """Returns random codes that fit `dtype`, in multiples of `step`, with a scale per channel."""
    rng = np.random.default_rng(rng)
    low, high = _CODES[dtype]
    data = (rng.integers(-(-low // step), high // step + 1, shape) * step).astype(np.int8)
    scales = rng.uniform(0.004, 0.02, shape[axis]).astype(np.float32)
    return constant(name, data, scales, axis=axis, dtype=dtype)


def bias(rng, x, filters, spread=5000):
    rng = np.random.default_rng(rng)
    data = rng.integers(-spread, spread + 1, filters.scale.shape).astype(np.int32)
    return constant("bias", data, x.scale * filters.scale, axis=0, dtype="int32")


def random_codes(rng, *shape):
    return np.random.default_rng(rng).integers(-128, 128, shape).astype(np.int8)


# ---- networks --------------------------------------------------------------------------------


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
    for entry in tensors:
        network.add_tensor(entry)
    return network


def single(kind, inputs, output, activation="none", **options):
    """Returns a network of one node; `None` among the inputs is an absent bias."""
    entries = [entry for entry in inputs if entry]
    node = Node(
        kind=kind,
        inputs=[entry.name if entry else "" for entry in inputs],
        outputs=[output.name],
        activation=activation,
        options=options,
    )
    read = [entry.name for entry in entries if not entry.is_constant]
    return network_of([*entries, output], [node], inputs=read, outputs=[output.name])


def one(kind, output, *constants, x=None, activation="none", **options):
    """Returns a network of one node that reads `x` and constants."""
    return single(kind, [x or quantized("x", IMAGE), *constants], output, activation, **options)


def two_inputs(kind, *, make=quantized, **options):
    return single(kind, [make("x", IMAGE), make("b", IMAGE)], make("y", IMAGE), **options)


def bias_for(kernel, seed=0):
    """Returns the bias of weights that read a tensor of `quantized`'s own scale."""
    return bias(seed, quantized("x", IMAGE), kernel, spread=2000)


def conv(*, dtype="int8", activation="none", channels_in=4, options=None):
    kernel = weights(0, (6, 3, 3, channels_in), dtype=dtype, name="w")
    output = quantized("y", (None, 8, 4, 6))
    return one(
        "conv_2d", output, kernel, bias_for(kernel), activation=activation, **(options or CONV)
    )


def dense(dtype="int8", *, inputs=8, keep=False):
    kernel = weights(0, (6, inputs), dtype=dtype, name="w")
    leading = (None, 5) if keep else (None,)
    return one(
        "fully_connected",
        quantized("y", (*leading, 6)),
        kernel,
        bias_for(kernel),
        x=quantized("x", (*leading, inputs)),
        keep_num_dims=keep,
    )


def transposed(*, bias=True, activation="none"):
    kernel = weights(0, (6, 3, 3, 4), name="w")
    return one(
        "transpose_conv",
        quantized("y", (None, 16, 16, 6)),
        *([kernel, bias_for(kernel)] if bias else [kernel]),
        activation=activation,
        strides=(2, 2),
        padding="same",
        output_size=(16, 16),
    )


# ---- files -----------------------------------------------------------------------------------


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


def outputs_of(content, *inputs, resolver=OpResolverType.AUTO):
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


def run(network, *arrays):
    """Returns the output that the file of a network computes on the default runtime."""
    return run_file(write(network, batch_size=len(arrays[0])), list(arrays))[0]
