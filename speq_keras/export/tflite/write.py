"""Writes the integer network as the bytes of a TFLite file."""

import math

import numpy as np

from speq_keras._checks import check_count, describe
from speq_keras._version import __version__
from speq_keras.export.tflite.network import CODES, Tensor, batches
from speq_keras.export.tflite.operations import OPS, emit
from speq_keras.export.tflite.packing import pack_codes
from speq_keras.graph.names import free_name

SIGNATURE = "serving_default"
# Fields of options tables that hold an enumeration of the schema.
ENUMERATIONS = {
    "padding": "Padding",
    "mode": "MirrorPadMode",
    "fusedActivationFunction": "ActivationFunctionType",
    "inDataType": "TensorType",
    "outDataType": "TensorType",
    "outputType": "TensorType",
}
# Alignment that kernels expect of constants that they read in place, several values at once.
ALIGNMENT_BYTES = 16
# The first TensorFlow version whose runtime has all kernels used here, except those that a record
# marks as newer (`record.Op.since`).
OLDEST_RUNTIME = (2, 3, 0)
_LARGEST_BYTES = 2**31 - 1  # of a tensor


def write(network, *, batch_size=1, extra_outputs=()):
    """Serializes an integer network to a TFLite flatbuffer; equal networks give equal bytes.

    Args:
        network: An `IntegerNetwork`.
        batch_size: Replaces None in the shapes. None: it is 1, and the file declares this axis as
            variable. LiteRT's interpreter resizes either. With `strict=True`, and if a transposed
            convolution runs outside XNNPACK (those kernels take the batch size from a constant),
            only declared axes may change, or none.
        extra_outputs: Names of further tensors that become outputs of the graph, after the
            network's own and outside the signature: for comparing tensor by tensor. A name that
            already is an output is not added again.

    Returns:
        The file as bytes.

    Raises:
        ValueError: If a node's kind or a tensor is unknown, a constant's codes do not fit its type,
            or the tensors of such a large batch do not fit into a file.
    """
    check_batch_size(network, batch_size)
    for node in network.nodes:
        if node.kind not in OPS:
            raise ValueError(
                f"The kind of a node must be one of {', '.join(sorted(OPS))}. "
                + describe(kind=node.kind, layer=node.layer)
            )
    outputs = list(dict.fromkeys([*network.outputs, *extra_outputs]))
    for name in outputs:
        if name not in network.tensors:
            raise ValueError(
                f"An output must be a tensor of the network. {describe(name=name)} "
                "`network.tensors` holds all names."
            )
    return _File(network, batch_size).bytes(outputs)


def check_batch_size(network, batch_size):
    """Checks that all tensors of a batch stay below 2 GiB, the runtimes' limit.

    `network` is None if it is not known yet.
    """
    tensors = () if network is None else network.tensors.values()
    largest = max(
        (
            math.prod(batches(size) or size for size in tensor.shape)
            for tensor in tensors
            if any(map(batches, tensor.shape))
        ),
        default=1,
    )
    most = 2**31 - 1 if network is None else max(1, _LARGEST_BYTES // (4 * largest))
    try:
        check_count("batch_size", batch_size, high=most, optional=True)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{error} None writes a file for `resize_tensor_input(strict=True)`; without `strict`, "
            "the interpreter resizes others, too."
        ) from None


def tensor_bytes(tensor):
    """Returns the values of a constant tensor as stored in the file, little-endian.

    Raises:
        ValueError: If a value does not fit the tensor's type.
    """
    data = np.asarray(tensor.data)
    if tensor.dtype == "float32":
        return data.astype("<f4").tobytes()
    low, high = CODES.get(tensor.dtype, (-(2**31), 2**31 - 1))
    if data.size and (data.min() < low or data.max() > high):
        raise ValueError(
            f"The values of an {tensor.dtype} tensor must be from {low} to {high}. "
            + describe(name=tensor.name, smallest=int(data.min()), largest=int(data.max()))
        )
    if tensor.dtype == "int32":
        return data.astype("<i4").tobytes()
    bits = int(tensor.dtype.removeprefix("u").removeprefix("int"))
    return pack_codes(data, bits).tobytes()


class _File:
    """The file written so far, in the classes of the schema's object API."""

    def __init__(self, network, batch_size):
        # Imported at the first export only: training does not need the runtime.
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.network = network
        self.batch_size, self.is_open = batch_size or 1, batch_size is None
        # Indices in the file: of tensors by name, of buffers by their bytes, of operator codes by
        # (operator, version).
        self.tensors, self.buffers, self.operators = {}, {}, {}
        # Equal objects are stored once: shapes, axes by their values, tables by their fields.
        self.constants, self.tables = {}, {}
        self.runtime = OLDEST_RUNTIME  # the first one that has all operators so far
        self.graph = self.new("SubGraph", name=network.name, tensors=[], operators=[])
        # The first buffer is empty and means "no data".
        self.model = self.new(
            "Model",
            version=3,
            description=f"Written by speq_keras {__version__}",
            subgraphs=[self.graph],
            operatorCodes=[],
            buffers=[schema.BufferT()],
            metadata=[],
        )

    def new(self, kind, **fields):
        """Returns an object of the schema with these fields set."""
        entry = getattr(self.schema, f"{kind}T")()
        for name, value in fields.items():
            setattr(entry, name, value)
        return entry

    def shared(self, kind, **fields):
        """Returns the one object with these fields, which is written once."""
        values = [x.tobytes() if isinstance(x, np.ndarray) else x for x in fields.values()]
        key = (kind, *fields, *values)
        if key not in self.tables:
            self.tables[key] = _LaidDownOnce(self.new(kind, **fields))
        return self.tables[key]

    def bytes(self, outputs):
        """Serializes everything and returns the file; `outputs` are names of tensors."""
        for name, tensor in self.network.tensors.items():
            self.tensors[name] = self.add_tensor(tensor, name)
        for node in self.network.nodes:
            operations = emit(node, self.network.tensors, self.batch_size)
            self.add_operations(operations)
            since = OPS[node.kind].since
            self.runtime = max(
                self.runtime, *(since.get(x.version, OLDEST_RUNTIME) for x in operations)
            )
        self.graph.inputs = self.numbers(self.network.inputs)
        self.graph.outputs = self.numbers(outputs)
        self.model.signatureDefs = [
            self.new(
                "SignatureDef",
                signatureKey=SIGNATURE,
                inputs=self.named(self.network.input_names, self.network.inputs),
                outputs=self.named(self.network.output_names, self.network.outputs),
            )
        ]
        for name, text in self.network.metadata.items():
            self.add_metadata(name, text)
        # By convention, 16 bytes long.
        self.add_metadata("min_runtime_version", ".".join(map(str, self.runtime)).ljust(16, "\0"))
        return _packed(self.model)

    # ---- tensors and their buffers -----------------------------------------------------------

    def add_tensor(self, tensor, name):
        """Returns the index of the new tensor."""
        times = [batches(size) for size in tensor.shape]
        shape = [n * self.batch_size or size for n, size in zip(times, tensor.shape, strict=True)]
        signature = [-1 if n else size for n, size in zip(times, tensor.shape, strict=True)]
        is_open = self.is_open and any(times)
        entry = self.new(
            "Tensor",
            name=name,
            shape=np.array(shape, np.int32),
            shapeSignature=np.array(signature, np.int32) if is_open else None,
            hasRank=True,
            type=getattr(self.schema.TensorType, tensor.dtype.upper()),
            buffer=self.buffer(tensor_bytes(tensor)) if tensor.is_constant else 0,
        )
        if tensor.scale is not None:
            # One zero point per scale, although all are equal: the runtimes require it.
            scale = np.atleast_1d(np.asarray(tensor.scale, np.float32))
            entry.quantization = self.shared(
                "QuantizationParameters",
                scale=scale,
                zeroPoint=np.full(scale.shape, tensor.zero_point, np.int64),
                quantizedDimension=int(tensor.axis) if tensor.is_per_channel else 0,
            )
        self.graph.tensors.append(entry)
        return len(self.graph.tensors) - 1

    def buffer(self, data):
        """Returns the index of the buffer with these bytes. Equal constants share one.

        Their tensors stay separate: equal codes can have different scales.
        """
        if data not in self.buffers:
            self.buffers[data] = len(self.model.buffers)
            self.model.buffers.append(self.new("Buffer", data=np.frombuffer(data, np.uint8)))
        return self.buffers[data]

    def numbers(self, names):
        """Returns the indices of tensors; -1 is an absent one."""
        return np.array([self.tensors[name] if name else -1 for name in names], np.int32)

    # ---- operations --------------------------------------------------------------------------

    def add_operations(self, operations):
        """Adds the `Operation`s of one node."""
        own = {}  # names in the file of tensors that exist only for these operations
        for operation in operations:
            ends = [[self.named_operand(x, own) for x in operation.inputs]]
            ends.append([self.named_operand(x, own) for x in operation.outputs])
            entry = self.new(
                "Operator",
                opcodeIndex=self.operator(operation.operator, operation.version),
                inputs=self.numbers(ends[0]),
                outputs=self.numbers(ends[1]),
            )
            if operation.options_type:
                options = {field: self.value(field, x) for field, x in operation.options.items()}
                entry.builtinOptionsType = getattr(
                    self.schema.BuiltinOptions, operation.options_type
                )
                entry.builtinOptions = self.shared(operation.options_type, **options)
            self.graph.operators.append(entry)

    def named_operand(self, operand, own):
        """Returns the name of an operand: a name, or a tensor that gets one here.

        Equal plain constants share one.
        """
        if not isinstance(operand, Tensor):
            return operand
        key = id(operand)
        if operand.is_constant and operand.scale is None:
            key, own = (operand.dtype, operand.shape, operand.data.tobytes()), self.constants
        if key not in own:
            name = free_name(operand.name, self.tensors)
            self.tensors[name] = self.add_tensor(operand, name)
            own[key] = name
        return own[key]

    def value(self, field, value):
        """Returns the value of an option; names in enumerations become numbers."""
        if field not in ENUMERATIONS:
            return value
        return getattr(getattr(self.schema, ENUMERATIONS[field]), value)

    def operator(self, operator, version):
        """Returns the index of an operator code."""
        key = operator, version
        if key not in self.operators:
            code = getattr(self.schema.BuiltinOperator, operator)
            self.operators[key] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(
                # Old readers use the one-byte field; 127 tells them that it does not fit.
                self.new(
                    "OperatorCode",
                    builtinCode=code,
                    deprecatedBuiltinCode=min(code, 127),
                    version=version,
                )
            )
        return self.operators[key]

    # ---- signature and metadata --------------------------------------------------------------

    def named(self, names, tensors):
        """Returns the entries of a signature: tensors and their names in it."""
        return [
            self.new("TensorMap", name=name, tensorIndex=self.tensors[tensor])
            for name, tensor in zip(names, tensors, strict=True)
        ]

    def add_metadata(self, name, text):
        """Adds a text under a name."""
        buffer = self.buffer(text.encode())
        self.model.metadata.append(self.new("Metadata", name=name, buffer=buffer))


class _LaidDownOnce:
    """An object of the schema that several others refer to."""

    def __init__(self, entry):
        self.entry, self.place = entry, None

    def Pack(self, builder):
        """Returns its position in the file."""
        if self.place is None:
            self.place = self.entry.Pack(builder)
        return self.place


def _packed(model):
    import flatbuffers

    class Builder(flatbuffers.Builder):
        """Writes equal vectors once, and aligns the data of constants.

        The format needs an 8-byte zero point, always 0, for every channel of a per-channel
        constant: shared, they cost nothing.
        """

        def __init__(self):
            super().__init__(2**16)
            self.vectors = {}

        def CreateNumpyVector(self, x):
            key = x.dtype, x.tobytes()
            if key not in self.vectors:
                if x.dtype == np.uint8:
                    self.Prep(ALIGNMENT_BYTES, x.size)
                self.vectors[key] = super().CreateNumpyVector(x)
            return self.vectors[key]

    builder = Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
