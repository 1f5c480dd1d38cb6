"""The integer network as the bytes of a TFLite file."""

import numpy as np

from speq_keras._checks import describe
from speq_keras.export.emitters import EMITTERS
from speq_keras.export.network import CODES, Tensor

# Fields of options tables that hold an enumeration of the schema.
ENUMERATIONS = {
    "padding": "Padding",
    "fusedActivationFunction": "ActivationFunctionType",
    "inDataType": "TensorType",
    "outDataType": "TensorType",
}
SIGNATURE = "serving_default"
# What mmap, and kernels that read whole vectors at once, expect of a constant's place in the file.
ALIGNMENT_BYTES = 16
# Every 8-bit kernel that the emitters use; newer ones by (operator, version).
OLDEST_RUNTIME = (2, 3, 0)
RUNTIMES = {
    ("CONV_2D", 6): (2, 9, 0),
    ("CONV_2D", 7): (2, 14, 0),
    ("DEPTHWISE_CONV_2D", 7): (2, 14, 0),
    ("FULLY_CONNECTED", 10): (2, 14, 0),
    ("FULLY_CONNECTED", 12): (2, 17, 0),
    ("FULLY_CONNECTED", 14): (2, 21, 0),
    ("GELU", 1): (2, 9, 0),
    ("GELU", 2): (2, 9, 0),
    ("TRANSPOSE_CONV", 4): (2, 14, 0),
}


def write(network, *, batch_size=1, extra_outputs=()):
    """Lays an integer network down as a TFLite flatbuffer; equal networks give equal bytes.

    Args:
        network: An `IntegerNetwork`.
        batch_size: Takes the place of None in the shapes. The file says that this axis may change,
            and runtimes can resize it, except behind a transposed convolution.
        extra_outputs: Names of further tensors that become outputs of the graph, behind the
            network's own and outside the signature: to compare tensor by tensor.

    Returns:
        The file as bytes.

    Raises:
        ValueError: If a node's kind has no emitter, or an extra output is unknown.
    """
    for node in network.nodes:
        if node.kind not in EMITTERS:
            known = ", ".join(sorted(EMITTERS))
            received = describe(kind=node.kind, layer=node.layer)
            raise ValueError(f"A node's kind must be one of {known}. {received}")
    for name in extra_outputs:
        if name not in network.tensors:
            raise ValueError(
                f"`extra_outputs` must name tensors of the network. {describe(name=name)} "
                "`network.tensors` holds all names."
            )
    return _File(network, batch_size).pack(extra_outputs)


def pack_codes(codes, bits):
    """Returns `codes` with 8 // `bits` of them to a byte, the first in the lowest bits.

    Example:
        >>> pack_codes(np.array([1, -2, 7], np.int8), 4).tolist()
        [225, 7]
    """
    codes = np.asarray(codes, np.int8).reshape(-1).view(np.uint8)
    if bits == 8:
        return codes
    per_byte = 8 // bits
    codes = np.pad(codes, (0, -len(codes) % per_byte)).reshape(-1, per_byte)
    codes = (codes & (2**bits - 1)) << (bits * np.arange(per_byte, dtype=np.uint8))
    return np.bitwise_or.reduce(codes, axis=1)


class _File:
    """What has been laid down so far. The schema's own object API does the packing."""

    def __init__(self, network, batch_size):
        # Imported at the first export only: who trains does not need the runtime.
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.network = network
        self.batch_size = batch_size
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "speq_keras"
        self.model.operatorCodes, self.model.buffers, self.model.metadata = [], [], []
        self.graph = schema.SubGraphT()
        self.graph.name = network.name
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]
        self.tensor_indices, self.operator_indices, self.buffer_indices = {}, {}, {}
        # By convention the first buffer is empty, and stands for "no data".
        self.model.buffers.append(schema.BufferT())

    def pack(self, extra_outputs):
        for tensor in self.network.tensors.values():
            self.tensor(tensor)
        for node in self.network.nodes:
            for operation in EMITTERS[node.kind](node, self.network.tensors, self.batch_size):
                self.operation(operation)
        outputs = [*self.network.outputs, *extra_outputs]
        self.graph.inputs = self.numbers(self.network.inputs)
        self.graph.outputs = self.numbers(outputs)
        self.model.signatureDefs = [self.signature()]
        for name, text in {**self.network.metadata, **self.runtime_version()}.items():
            self.metadata(name, text)
        return _packed(self.model)

    # ---- tensors and their buffers -----------------------------------------------------------

    def numbers(self, names):
        return np.array([self.tensor_indices[name] for name in names], np.int32)

    def tensor(self, tensor):
        """Adds a tensor under a name that is still free, and returns its number."""
        schema = self.schema
        shape = [self.batch_size if size is None else int(size) for size in tensor.shape]
        entry = schema.TensorT()
        entry.name = tensor.name
        entry.shape = np.array(shape, np.int32)
        if None in tensor.shape:
            entry.shapeSignature = np.array(
                [-1 if size is None else int(size) for size in tensor.shape], np.int32
            )
        entry.type = getattr(schema.TensorType, tensor.dtype.upper())
        entry.hasRank = True
        entry.buffer = self.buffer(tensor_bytes(tensor)) if tensor.is_constant else 0
        entry.quantization = self.quantization(tensor)
        number = len(self.graph.tensors)
        self.graph.tensors.append(entry)
        self.tensor_indices[tensor.name] = number
        return number

    def quantization(self, tensor):
        if tensor.scale is None:
            return None
        entry = self.schema.QuantizationParametersT()
        entry.scale = np.atleast_1d(np.asarray(tensor.scale, np.float32))
        entry.zeroPoint = np.full(entry.scale.shape, tensor.zero_point, np.int64)
        entry.quantizedDimension = int(tensor.axis or 0) if tensor.is_per_channel else 0
        return entry

    def buffer(self, data):
        """Returns the number of the buffer that holds `data`; equal constants share one."""
        if data not in self.buffer_indices:
            entry = self.schema.BufferT()
            entry.data = np.frombuffer(data, np.uint8)
            self.buffer_indices[data] = len(self.model.buffers)
            self.model.buffers.append(entry)
        return self.buffer_indices[data]

    # ---- operations --------------------------------------------------------------------------

    def operation(self, operation):
        entry = self.schema.OperatorT()
        entry.opcodeIndex = self.operator_code(operation.operator, operation.version)
        entry.inputs = np.array([self.operand(x) for x in operation.inputs], np.int32)
        entry.outputs = np.array([self.operand(x) for x in operation.outputs], np.int32)
        if operation.options_type:
            entry.builtinOptionsType = getattr(self.schema.BuiltinOptions, operation.options_type)
            entry.builtinOptions = self.options(operation)
        self.graph.operators.append(entry)

    def operand(self, operand):
        if not isinstance(operand, Tensor):
            return self.tensor_indices[operand] if operand else -1
        known = self.tensor_indices.get(operand.name)
        return self.tensor(operand) if known is None else known

    def options(self, operation):
        entry = getattr(self.schema, f"{operation.options_type}T")()
        for field, value in operation.options.items():
            if field in ENUMERATIONS:
                value = getattr(getattr(self.schema, ENUMERATIONS[field]), value)
            setattr(entry, field, value)
        return entry

    def operator_code(self, operator, version):
        key = operator, version
        if key not in self.operator_indices:
            entry = self.schema.OperatorCodeT()
            entry.builtinCode = getattr(self.schema.BuiltinOperator, operator)
            # Readers from before 2020 look here; 127 tells them that the code does not fit.
            entry.deprecatedBuiltinCode = min(entry.builtinCode, 127)
            entry.version = version
            self.operator_indices[key] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(entry)
        return self.operator_indices[key]

    # ---- signature and metadata --------------------------------------------------------------

    def signature(self):
        entry = self.schema.SignatureDefT()
        entry.signatureKey = SIGNATURE
        entry.subgraphIndex = 0
        entry.inputs = self.named(self.network.input_names, self.network.inputs)
        entry.outputs = self.named(self.network.output_names, self.network.outputs)
        return entry

    def named(self, names, tensors):
        entries = []
        for name, tensor in zip(names, tensors, strict=True):
            entry = self.schema.TensorMapT()
            entry.name = name
            entry.tensorIndex = self.tensor_indices[tensor]
            entries.append(entry)
        return entries

    def metadata(self, name, text):
        entry = self.schema.MetadataT()
        entry.name = name
        entry.buffer = self.buffer(str(text).encode())
        self.model.metadata.append(entry)

    def runtime_version(self):
        needed = [RUNTIMES.get(key, OLDEST_RUNTIME) for key in self.operator_indices]
        newest = ".".join(map(str, max([OLDEST_RUNTIME, *needed])))
        return {"min_runtime_version": newest.ljust(16, "\0")}


def tensor_bytes(tensor):
    """Returns the data of a constant as the file holds it, little-endian."""
    if tensor.dtype == "float32":
        return np.asarray(tensor.data).astype("<f4").tobytes()
    if tensor.dtype == "int32":
        return np.asarray(tensor.data).astype("<i4").tobytes()
    low, high = CODES[tensor.dtype]
    data = np.asarray(tensor.data)
    if data.size and (data.min() < low or data.max() > high):
        raise ValueError(
            f"The codes of an {tensor.dtype} tensor must lie in {low} ... {high}. "
            + describe(name=tensor.name, smallest=int(data.min()), largest=int(data.max()))
        )
    if tensor.dtype == "uint8":
        return data.astype(np.uint8).tobytes()
    return pack_codes(data, {"int8": 8, "int4": 4, "int2": 2}[tensor.dtype]).tobytes()


def _packed(model):
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
