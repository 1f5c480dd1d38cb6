"""Turns the trained graph into steps: the nodes between two quantizers become one."""

import copy
import dataclasses

from speq_keras.export.folding.builder import Builder
from speq_keras.export.folding.copying import changes_nothing
from speq_keras.export.folding.grids import fixed_grid
from speq_keras.export.folding.node_rules import RULES, check_masks, is_whole, table_rows
from speq_keras.export.folding.options import check_options
from speq_keras.export.folding.padding import Padded
from speq_keras.export.folding.pending import Pending
from speq_keras.export.folding.steps import CannotExport, Problem, Value
from speq_keras.export.folding.weights import finish, is_table
from speq_keras.export.storage import container_of
from speq_keras.export.tflite.network import batches
from speq_keras.operations import Kind, fixed_range, kind_of, name_of


def fold_graph(model, graph, grids=None, no_kernel=()):
    """Folds a SPEQModel for any storage; `store` completes it.

    Layers without integer kernel are computed in float, if there are float kernels.

    Args:
        model: The model, calibrated unless `grids` has the missing grids.
        graph: Its graph, from `read_graph`.
        grids: {name of a quantizer: the `Grid` that replaces its own}, or None.
        no_kernel: `Problem`s of nodes that later turned out to have no integer kernel.

    Returns:
        A `FoldedNetwork` without multipliers and bias codes. If it has `problems`, "refused" steps
        stand in for the layers that cannot be exported.
    """
    grids = dict(grids or {})
    builder = _walk(graph, model.name, grids, no_kernel)
    while builder.nudged is not None:
        # A grid may belong to several tensors, including earlier ones: start again.
        name, grid = builder.nudged
        grids[name] = grid
        builder = _walk(graph, model.name, grids, no_kernel)
    folded = builder.folded
    folded.input_names = [tensor.name for tensor in model.inputs]
    folded.output_names = list(model.output_names)
    return folded


def store(folded, storage):
    """Decides containers, multipliers and bias codes of all weights, in place.

    Args:
        folded: The result of `fold_graph`.
        storage: See `export.storage`.
    """
    notes = []
    for step in folded.steps:
        if step.weights is None:
            continue
        if step.kind == "linear":
            step.weights.container, step.weights.why = container_of(step, storage)
        finish(step.weights, step.output.grid, notes, step.name)
    folded.notes[:0] = notes


def stored_copy(folded, storage):
    """Returns a copy of `fold_graph`'s result with `store` done; the original is unchanged."""
    steps = [
        dataclasses.replace(step, weights=copy.copy(step.weights), options=dict(step.options))
        for step in folded.steps
    ]
    result = dataclasses.replace(folded, steps=steps, notes=list(folded.notes))
    store(result, storage)
    return result


def _walk(graph, name, grids, no_kernel):
    """Visits all nodes of a graph and returns the `Builder` of its network."""
    builder = Builder(graph, name, grids, no_kernel)
    folded = builder.folded
    values = {index: builder.input(index) for index in graph.input_indices}
    problems = folded.problems
    for node in graph.nodes:
        arguments = [values[index] for index in node.inputs]
        outputs = [None] * len(node.outputs)
        if all(value is not None for value in arguments):  # else a layer before it was refused
            try:
                outputs = _outputs(builder, node, arguments)
            except CannotExport as error:
                problems.append(Problem.at(node, error))
        if None in outputs:
            outputs = builder.stand_ins(node, arguments)
        values.update(zip(node.outputs, outputs, strict=True))
        if kind_of(node.operation) is Kind.QUANTIZER and outputs[0] is not None:
            folded.places.tensors[node.outputs[0]] = _name_of(outputs[0])
    folded.places.scales = {name: grid.scale for name, grid in builder.grids.items()}
    for index in graph.output_indices:
        if values[index] is not None:
            try:
                values[index] = _leave(builder, values[index])
                folded.outputs.append(values[index])
            except CannotExport as error:
                problems.append(Problem.at(graph.tensors[index].producer, error))
    folded.problems = list(dict.fromkeys(problems))  # a layer read twice is refused twice
    if not problems:
        folded.drop_unread()
    folded.notes += _notes(builder)
    return builder


def _outputs(builder, node, arguments):
    """Returns the representation of each output of one node."""
    made = _visit(builder, node, arguments)
    outputs = made if isinstance(made, list) else [made]
    if len(outputs) != len(node.outputs):
        raise CannotExport("it has several outputs")
    return outputs


def _visit(builder, node, arguments):
    """Returns the representation of one node's output."""
    kind = kind_of(node.operation)
    if kind is Kind.QUANTIZER:
        return builder.quantize(node, arguments[0])
    if name_of(node.operation) == "BatchNormalization":
        arguments = arguments[:1]  # masks matter only in training
    check_options(node)
    check_masks(builder.graph, node)
    if changes_nothing(node.operation) or _only_renames_type(builder, node, arguments):
        builder.folded.left_out.add(node.name)
        return arguments[0]  # may precede a quantizer
    if kind is Kind.WEIGHTED and is_table(node.operation.layer):
        return table_rows(builder, node, arguments)
    if kind is Kind.FLOAT or any(_is_float(value, kind) for value in arguments):
        return builder.in_float(node, [builder.as_float(value) for value in arguments])
    if id(node) in builder.no_kernel:
        return builder.in_float_instead(builder.no_kernel[id(node)], node, arguments)
    try:
        return RULES[kind](builder, node, arguments)
    except CannotExport as error:
        return builder.in_float_instead(Problem.at(node, error), node, arguments)


def _only_renames_type(builder, node, arguments):
    """Whether a cast keeps the numbers: integers, or codes that become floats.

    In a mask, everything except 0 is true.
    """
    if name_of(node.operation) != "Cast":
        return False
    (value,) = arguments
    is_codes = isinstance(value, Value) and value.grid is not None
    return is_codes if builder.makes_floats(node) else is_whole(value)


def _is_float(value, kind):
    """Whether `value` holds floats, not codes, for a node of this kind."""
    if isinstance(value, Pending):
        return kind not in (Kind.AFFINE, Kind.RELU)
    return isinstance(value, Value) and value.grid is None


def _name_of(value):
    """Returns the name of the tensor that holds the codes of a quantizer."""
    return (value.source if isinstance(value, Padded) else value).name


def _leave(builder, value):
    """Returns an output of the model: as codes, or as floats if it is not rounded."""
    if batches(value.shape[0]) > 1:
        raise CannotExport("the batch has to be the first axis of the model's outputs")
    if not isinstance(value, Pending):
        return builder.codes(value)
    last = value.nodes[-1]
    if value.kind == "table" and fixed_range(last.operation) is not None:
        return builder.round(value, last, fixed_grid(last.operation))
    return builder.as_float(value)


def _notes(builder):
    notes = [
        f"The scale of {name} was made larger by one part in 2048: the scales that meet there "
        "put many results halfway between two codes."
        for name in builder.grids
    ]
    for problem in dict.fromkeys(builder.folded.no_kernel):
        notes.append(f"There is no integer kernel for {problem}.")
    origins = [node.origin.name for node in builder.graph.nodes if node.origin is not None]
    if origins:
        names = ", ".join(dict.fromkeys(origins))
        notes.append(f"Unrolled into separate steps that share constants: {names}.")
    if builder.folded.float_layers:
        names = ", ".join(builder.folded.float_layers)
        notes.append(
            f"Computed in float: {names}. After them, the file equals "
            "the simulation only tensor by tensor."
        )
    return notes
