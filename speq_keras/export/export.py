"""`export_tflite`: fold, lower, write, prove; and only then move the file into place."""

import time

import keras
import numpy as np

from speq_keras._checks import check_choice, describe
from speq_keras.export import simulate
from speq_keras.export.fold import IO_TYPES, fold
from speq_keras.export.folding.steps import plain_dtype
from speq_keras.export.inputs import as_network_inputs
from speq_keras.export.network import CODES, in_float
from speq_keras.export.report import Accuracy, Agreement, ExportReport, WeightRow
from speq_keras.export.runtimes import (
    RUNTIMES,
    deviations,
    missing_reason,
    partitions,
    run_file,
)
from speq_keras.export.self_test import runner_path, self_test_files
from speq_keras.export.session import prove
from speq_keras.export.storage import STORAGES
from speq_keras.export.trained import TrainedGraph, to_numpy
from speq_keras.export.write import write
from speq_keras.files import check_path, write_safely
from speq_keras.processes import is_first_process, local_values

MOST_EXAMPLES = 32  # in the proof
BATCH_SIZE = 64  # of what the training graph predicts


def export_tflite(
    model,
    path,
    *,
    storage,
    io,
    batch_size,
    softmax,
    data,
    self_test,
    runtimes,
    strict,
):
    """Writes a model as an integer TFLite file.

    What the arguments mean, and their defaults, stands at `SPEQModel.export_tflite` alone.
    """
    start = time.monotonic()
    path = check_path(path)
    if self_test is not None:
        self_test = check_path(self_test, name="self_test", suffix=".npz")
        check_path(runner_path(self_test), name="self_test's runner", suffix=".py")
    check_choice("storage", storage, STORAGES)
    check_choice("io", io, IO_TYPES)
    _check_batch_size(batch_size)
    _check_runtimes(runtimes)
    folded = fold(model, storage=storage, io=io, softmax=softmax)
    steps, network = folded.steps, folded.network
    examples, labelled = _examples(data, model)
    content = write(network, batch_size=batch_size)
    proof, examples, outputs = prove(
        model, folded, content, examples, batch_size=batch_size, softmax=softmax
    )
    if strict and not proof.holds:
        raise RuntimeError(
            f"The exported file does not compute the trained network: {proof.first_failure()}. "
            f"{describe(path=str(path))} Nothing was written. This is a defect of the export or "
            "of the runtime: please report it; `strict=False` writes the file all the same."
        )
    inputs = as_network_inputs(steps, network, examples)
    report = ExportReport(
        path=str(path),
        storage=storage,
        io=io,
        bytes=len(content),
        proof=proof,
        partitions=partitions(content),
        agreement=_agreement(model, folded, examples, outputs, softmax),
        accuracy=_accuracy(model, folded, content, labelled) if labelled else None,
        elsewhere=deviations(content, inputs, runtimes),
        weights=tuple(_weight_rows(steps)),
        notes=tuple(network.notes),
        seconds=time.monotonic() - start,
    )
    if not is_first_process():
        return report
    if self_test is not None:
        for name, made in self_test_files(path, self_test, content, inputs):
            write_safely(name, made)
    write_safely(path, content)
    return report


def _check_batch_size(batch_size):
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            "`batch_size` must be a whole number from 1; most runtimes can resize it later. "
            + describe(batch_size=batch_size)
        )


def _check_runtimes(runtimes):
    if isinstance(runtimes, str):
        raise TypeError(
            f"`runtimes` must be a list of names. {describe(runtimes=runtimes)} "
            f"Pass runtimes=[{runtimes!r}]."
        )
    for runtime in runtimes:
        check_choice("runtimes", runtime, RUNTIMES)
        reason = missing_reason(runtime)
        if reason:
            raise RuntimeError(reason)


def _examples(data, model):
    """Returns the inputs for the proof, and labelled batches [(inputs, labels), ...]; or Nones."""
    if data is None:
        return None, None
    batches, labelled = [], True
    for batch in _batches(data):
        if isinstance(batch, tuple) and len(batch) > 1:
            batches.append((_arrays(batch[0], model), np.asarray(batch[1])))
        else:
            labelled = False
            batches.append((_arrays(batch[0] if isinstance(batch, tuple) else batch, model), None))
    if not batches or not len(batches[0][0][0]):
        raise ValueError(
            "`data` must hold at least one example. Received: none. Pass (inputs, labels), inputs, "
            "or a data set of such batches."
        )
    parts = [np.concatenate(part)[:MOST_EXAMPLES] for part in zip(*(b[0] for b in batches[:8]))]  # noqa: B905
    if not labelled or len(model.outputs) != 1:
        return parts, None
    return parts, batches


def _batches(data):
    is_pair = isinstance(data, tuple) and all(hasattr(part, "shape") for part in data)
    if is_pair or hasattr(data, "shape") or isinstance(data, dict | list):
        return [data]
    return data


def _arrays(inputs, model):
    """Returns inputs in the order of the model's, after a check of their shapes."""
    if isinstance(inputs, dict):
        names = [tensor.name for tensor in model.inputs]
        # Keras sorts the inputs of a model that was made with a dict, whose keys are no names then.
        keys = names if set(names) == set(inputs) else sorted(inputs)
        inputs = [inputs[key] for key in keys]
    arrays = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    arrays = [np.asarray(keras.ops.convert_to_numpy(x)) for x in arrays]
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    received = [array.shape[1:] for array in arrays]
    if received != shapes:
        raise ValueError(
            f"`data` must have inputs of the shapes {shapes}, batch first. "
            + describe(shapes=received)
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("`data` must be finite. Received: NaN or infinity. Clean the data first.")
    return [
        array.astype(plain_dtype(tensor.dtype))
        for array, tensor in zip(arrays, model.inputs, strict=True)
    ]


def _agreement(model, folded, arrays, outputs, softmax):
    """Returns the `Agreement` of `model.predict` and the file's outputs, as the proof saw them."""
    trained = _predict(model, arrays) if softmax else TrainedGraph(model, softmax=False).run(arrays)
    file = [
        in_float(folded.network.tensors[name], stored)
        for name, stored in zip(folded.network.outputs, outputs, strict=True)
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


def _accuracy(model, folded, content, batches):
    """Returns the accuracy of training graph, integer simulation and file, on all batches."""
    right, count, apart = np.zeros(3), 0, 0
    for arrays, labels in batches:
        inputs = as_network_inputs(folded.steps, folded.network, arrays)
        outputs = (
            _predict(model, arrays)[0],
            simulate.simulate(folded.network, inputs)[0],
            run_file(content, inputs)[0],
        )
        labels = labels.argmax(axis=-1) if labels.ndim == 2 and labels.shape[1] > 1 else labels
        labels = labels.reshape(-1)
        hits = np.array([np.argmax(output, axis=-1) == labels for output in outputs])
        right += hits.sum(axis=1)
        apart += int(np.sum(hits[0] != hits[2]))
        count += len(labels)
    trained, in_python, file = (float(share) for share in right / count)
    return Accuracy(examples=count, trained=trained, folded=in_python, file=file, apart=apart)


def _predict(model, arrays):
    """Returns the outputs of the training graph, a list; several processes each ask on their own.

    The model is called as it is: `predict` would trace it first, which takes longer than the proof.
    """
    parts = []
    for start in range(0, len(arrays[0]), BATCH_SIZE):
        batch = [array[start : start + BATCH_SIZE] for array in arrays]
        with keras.StatelessScope(local_values(model.variables)):
            outputs = model(keras.tree.pack_sequence_as(model.input, batch), training=False)
        parts.append([to_numpy(output) for output in keras.tree.flatten(outputs)])
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _weight_rows(steps):
    for step in steps.steps:
        if step.kind != "linear":
            continue
        weights = step.weights
        low, high = CODES[weights.container]
        width = (high - low + 1).bit_length() - 1
        yield WeightRow(
            name=step.nodes[0].name,
            type=weights.container,
            largest=int(np.abs(weights.codes).max()),
            multiplier=int(weights.multiplier.max()),
            bytes=-(-weights.codes.size * width // 8),
            why=step.options.get("why", ""),
        )
