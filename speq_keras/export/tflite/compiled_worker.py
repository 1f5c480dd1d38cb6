"""The process that runs files in LiteRT's `CompiledModel`; `compiled_model` starts it.

Reads and writes messages on standard input and output, each an eight-byte length followed by the
bytes of an .npz file. It imports no other module of this package: that would load Keras.
"""

import io
import sys

import numpy as np


def receive(stream):
    """Returns the next message as a dict of arrays, or None at the end."""
    size = stream.read(8)
    if len(size) < 8:
        return None
    content = stream.read(int.from_bytes(size, "little"))
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def send(stream, arrays):
    """Sends a dict of arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stream.write(buffer.tell().to_bytes(8, "little"))
    stream.write(buffer.getbuffer())
    stream.flush()


def run(content, batches):
    """Runs a file on batches, lists of input arrays; returns a list of outputs for each.

    Runs on the CPU, with one thread.
    """
    from ai_edge_litert.compiled_model import CompiledModel
    from ai_edge_litert.schema_py_generated import Model

    # Before LiteRT 2.2, `CompiledModel` does not report shapes: they are read from the file.
    file = Model.GetRootAs(content, 0)
    graph, signature = file.Subgraphs(0), file.SignatureDefs(0)
    inputs = [signature.Inputs(i).Name().decode() for i in range(signature.InputsLength())]
    outputs = [signature.Outputs(i) for i in range(signature.OutputsLength())]
    outputs = [(entry.Name().decode(), *_kind(graph, entry)) for entry in outputs]
    key = signature.SignatureKey().decode()
    model = CompiledModel.from_buffer(content)
    written = {name: model.create_input_buffer_by_name(key, name) for name in inputs}
    read = {name: model.create_output_buffer_by_name(key, name) for name, _, _ in outputs}
    results = []
    for arrays in batches:
        for name, array in zip(inputs, arrays, strict=True):
            written[name].write(np.ascontiguousarray(array))
        model.run_by_name(key, written, read)
        results.append(
            [
                read[name].read(int(np.prod(shape)), dtype).reshape(shape)
                for name, shape, dtype in outputs
            ]
        )
    return results


def _kind(graph, entry):
    """Returns shape and type of an input or output of a signature."""
    from ai_edge_litert.schema_py_generated import TensorType

    types = {
        TensorType.FLOAT32: np.float32,
        TensorType.INT32: np.int32,
        TensorType.INT8: np.int8,
        TensorType.UINT8: np.uint8,
    }
    tensor = graph.Tensors(entry.TensorIndex())
    shape = tuple(int(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
    return shape, types[tensor.Type()]


def main():
    """Answers messages until there are no more."""
    while (message := receive(sys.stdin.buffer)) is not None:
        content = message.pop("content").tobytes()
        try:
            batches = [
                [message[f"{batch}_{i}"] for i in range(int(message["inputs"]))]
                for batch in range(int(message["batches"]))
            ]
            results = run(content, batches)
            answer = {
                f"{batch}_{i}": array
                for batch, arrays in enumerate(results)
                for i, array in enumerate(arrays)
            }
        except Exception as error:  # any error is reported by the other process
            answer = {"error": np.array(f"{type(error).__name__}: {error}")}
        send(sys.stdout.buffer, answer)


if __name__ == "__main__":
    main()
