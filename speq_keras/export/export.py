"""`export_tflite`: fold, lower, write, prove; and only then move the file into place."""

import itertools
import time

import keras
import numpy as np

from speq_keras._checks import check_bool, check_choice, check_count, describe
from speq_keras.data import class_numbers, inputs_of, packed, read
from speq_keras.export.fold import IO_TYPES, check_model, fold
from speq_keras.export.folding.steps import plain_dtype
from speq_keras.export.inputs import as_network_inputs
from speq_keras.export.lowering import use_tables_for_micro
from speq_keras.export.micro import micro_needs
from speq_keras.export.report import Accuracy, Agreement, ExportReport, WeightRow
from speq_keras.export.self_test import runner_path, self_test_files
from speq_keras.export.session import prove
from speq_keras.export.storage import STORAGES
from speq_keras.export.tflite import simulate
from speq_keras.export.tflite.network import CODES, in_float
from speq_keras.export.tflite.operations import OPS
from speq_keras.export.tflite.products import differs_elsewhere
from speq_keras.export.tflite.runtimes import (
    RUNTIMES,
    deviation,
    deviations,
    missing_reason,
    partitions,
    run_file,
)
from speq_keras.export.tflite.write import check_batch_size, write
from speq_keras.export.trained import TrainedGraph, to_numpy
from speq_keras.files import check_path, write_safely
from speq_keras.processes import is_first_process, local_values

MOST_EXAMPLES = 32  # in the proof
BATCH_SIZE = 64  # of the training graph's predictions


def export_tflite(
    model,
    path,
    *,
    storage,
    io,
    batch_size,
    softmax,
    data,
    steps,
    self_test,
    runtimes,
    strict,
    begin,
):
    """Writes a model as an integer TFLite file.

    The arguments and their defaults are documented at `SPEQModel.export_tflite` only; `begin` is
    called with a description of each stage.
    """
    start = time.monotonic()
    path, self_test = _checked_paths(path, self_test)
    _check_options(storage, io, batch_size, runtimes)
    softmax, strict = check_bool("softmax", softmax), check_bool("strict", strict)
    for_micro = io != "float32" or "micro" in runtimes
    check_model(model)
    examples, labelled = _examples(data, model, steps)
    begin("network of integers")
    integer_model, network = _folded(model, storage, io, softmax, for_micro)
    content = write(network, batch_size=batch_size)
    begin("proof")
    proof, examples, outputs = prove(
        model, integer_model, content, examples, batch_size=batch_size, softmax=softmax
    )
    _require(proof, path, strict)
    inputs = as_network_inputs(integer_model.folded, network, examples)
    begin("accuracy, other runtimes" if labelled or runtimes else "report")
    report = ExportReport(
        path=str(path),
        storage=storage,
        io=io,
        bytes=len(content),
        proof=proof,
        partitions=partitions(content),
        agreement=_agreement(model, integer_model, examples, outputs, softmax),
        accuracy=_accuracy(model, integer_model, content, labelled) if labelled else None,
        other_runtimes=deviations(content, inputs, runtimes),
        on_arm=_on_arm(network, inputs),
        weights=tuple(_weight_rows(integer_model.folded, network)),
        notes=tuple(network.notes),
        micro=micro_needs(content, measure=for_micro),
        seconds=time.monotonic() - start,
    )
    _write_files(path, self_test, content, inputs)
    return report


def _require(proof, path, strict):
    """Raises an error if a file does not compute the trained network as required."""
    if strict and not proof.holds:
        raise RuntimeError(
            f"The exported file does not compute the trained network: {proof.first_failure()}. "
            f"{describe(path=str(path))} Nothing was written. This is a defect of the export or "
            "of the runtime: please report it; `strict=False` writes the file anyway."
        )


def _folded(model, storage, io, softmax, for_micro):
    """Returns the `FoldedModel` and its network, for Micro restricted to Micro's kernels."""
    integer_model = fold(model, storage=storage, io=io, softmax=softmax)
    if for_micro:
        use_tables_for_micro(integer_model.network)
    return integer_model, integer_model.network


def _checked_paths(path, self_test):
    """Returns both paths after checking that files can be written there."""
    path = check_path(path)
    if self_test is not None:
        self_test = check_path(self_test, name="self_test", suffix=".npz")
        check_path(runner_path(self_test), name="self_test's runner", suffix=".py")
    return path, self_test


def _write_files(path, self_test, content, inputs):
    """Moves all files into place, the network's own last; in the first process only."""
    if not is_first_process():
        return
    if self_test is not None:
        for name, made in self_test_files(path, self_test, content, inputs):
            write_safely(name, made)
    write_safely(path, content)


def _on_arm(network, inputs):
    """Returns the `Deviation` of the results on ARM and in browsers; None: the same."""
    if not any(differs_elsewhere(node, network.tensors) for node in network.nodes):
        return None
    here, there = (simulate.simulate(network, inputs, elsewhere=x) for x in (False, True))
    return deviation("ARM and browsers", here, there)


def _check_options(storage, io, batch_size, runtimes):
    check_choice("storage", storage, STORAGES)
    check_choice("io", io, IO_TYPES)
    check_batch_size(None, batch_size)
    if not isinstance(runtimes, list | tuple | set):
        raise TypeError(
            f"`runtimes` must be a list of names. {describe(runtimes=runtimes)} "
            + (f"Pass runtimes=[{runtimes!r}]." if isinstance(runtimes, str) else "() is none.")
        )
    for runtime in runtimes:
        check_choice("runtimes", runtime, RUNTIMES)
        reason = missing_reason(runtime)
        if reason:
            raise RuntimeError(reason)


def _examples(data, model, steps):
    """Returns the inputs for the proof, and all labelled batches for the accuracy, or Nones.

    Only what the proof needs is read here: the other batches are read on demand, and not at all if
    no accuracy is measured.
    """
    if data is None:
        check_count("steps", steps, optional=True)
        return None, None
    inputs = inputs_of(model, [plain_dtype(tensor.dtype) for tensor in model.inputs])
    batches = read(data, inputs, steps=steps, labels=True)
    first: list = []
    for batch in batches:
        first.append(batch)
        if sum(map(len, first)) >= MOST_EXAMPLES:
            break
    if not any(map(len, first)):
        raise ValueError(
            "`data` must hold at least one example. Received: none. Pass (inputs, labels), inputs, "
            "or a data set of such batches."
        )
    parts = zip(*(batch.x for batch in first), strict=True)
    examples = [np.concatenate(part)[:MOST_EXAMPLES] for part in parts]
    classes = [tensor.shape[-1] for tensor in model.outputs if len(tensor.shape) > 1]
    if all(batch.y is None for batch in first) or len(model.outputs) > 1 or classes in ([], [1]):
        return examples, None
    for batch in first:
        _class_numbers(batch, model)  # problems with labels are reported before any work
    return examples, itertools.chain(first, batches)


def _class_numbers(batch, model):
    """Returns the labels of a batch as class numbers of the model's only output."""
    if batch.y is None:
        raise ValueError(
            "`data` must have labels in all batches, or in none. Received: batches with and "
            "without. Pass (inputs, labels), or inputs alone."
        )
    return class_numbers(batch.y, (len(batch), *model.outputs[0].shape[1:]))


def _agreement(model, integer_model, arrays, outputs, softmax):
    """Returns the `Agreement` of `model.predict` with the file's outputs from the proof."""
    trained = _predict(model, arrays) if softmax else TrainedGraph(model, softmax=False).run(arrays)
    file = [
        in_float(integer_model.network.tensors[name], stored)
        for name, stored in zip(integer_model.network.outputs, outputs, strict=True)
    ]
    pairs = list(zip(trained, file, strict=True))
    top1 = None
    if len(pairs) == 1 and file[0].ndim == 2 and file[0].shape[-1] > 1:
        top1 = float(np.mean(trained[0].argmax(axis=-1) == file[0].argmax(axis=-1)))
    return Agreement(
        examples=len(arrays[0]),
        top1=top1,
        distance=max(float(np.max(np.abs(x - y), initial=0.0)) for x, y in pairs),
        span=max(float(np.ptp(x)) if x.size else 0.0 for x, _ in pairs),
    )


def _accuracy(model, integer_model, content, batches):
    """Returns the accuracies of training graph, integer simulation and file, on all batches."""
    right, count, apart = np.zeros(3), 0, 0
    for batch in batches:
        arrays = batch.x
        inputs = as_network_inputs(integer_model.folded, integer_model.network, arrays)
        outputs = (
            _predict(model, arrays)[0],
            simulate.simulate(integer_model.network, inputs)[0],
            run_file(content, inputs)[0],
        )
        labels = _class_numbers(batch, model)
        hits = np.array([(np.argmax(y, axis=-1) == labels).ravel() for y in outputs])
        right += hits.sum(axis=1)
        apart += int(np.sum(hits[0] != hits[2]))
        count += labels.size
    trained, in_python, file = (float(share) for share in right / count)
    return Accuracy(examples=count, trained=trained, folded=in_python, file=file, apart=apart)


def _predict(model, arrays):
    """Returns the training graph's outputs, a list; each of several processes calls it itself.

    The model is called directly: `predict` would trace it first, which takes longer than the proof.
    """
    parts = []
    for start in range(0, len(arrays[0]), BATCH_SIZE):
        batch = [array[start : start + BATCH_SIZE] for array in arrays]
        with keras.StatelessScope(local_values(model.variables)):
            outputs = model(packed(model, batch), training=False)
        parts.append([to_numpy(output) for output in keras.tree.flatten(outputs)])
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _weight_rows(steps, network):
    filters = {node.layer: node.inputs[1] for node in network.nodes if OPS[node.kind].has_bias}
    for step in steps.steps:
        if step.kind != "linear" or step.is_float:
            continue
        weights = step.weights
        low, high = CODES[weights.container]
        width = (high - low + 1).bit_length() - 1
        (quantizer,) = step.nodes[0].operation.quantizers.values()
        yield WeightRow(
            name=step.nodes[0].name,
            tensor=filters[step.name],
            type=weights.container,
            bits=quantizer.bits,
            used=len(np.unique(weights.codes)),
            largest=int(np.abs(weights.codes).max()),
            multiplier=int(weights.multiplier.max()),
            bytes=-(-weights.codes.size * width // 8),
            why=weights.why,
        )
