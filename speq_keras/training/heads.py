"""Which outputs of a model can be distilled, and where their logits are."""

import dataclasses

import keras
from keras import tree

from speq_keras._checks import describe
from speq_keras.graph import is_functional, plain_functional, read_graph
from speq_keras.operations import function_name, fused_function
from speq_keras.quantizers import ActivationQuantizer

_SOFTMAX_LOSSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
)
_SIGMOID_LOSSES = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)


@dataclasses.dataclass(frozen=True)
class Head:
    """One output that is distilled.

    Attributes:
        name: Name of the output.
        index: Index of the output in the flattened outputs.
        kind: "softmax" or "sigmoid".
        logits: KerasTensor with the logits.
        ends_in_function: Whether the output itself is a softmax or sigmoid of the logits.
        weight: The output's loss weight.
    """

    name: str
    index: int
    kind: str
    logits: object
    ends_in_function: bool
    weight: float = 1.0


def find_heads(model, loss=None):
    """Finds the outputs with logits.

    If an output ends in a softmax (over the last axis) or a sigmoid, its logits are that function's
    input, because the temperature acts on logits. Any other output counts only if its loss has
    `from_logits=True`.

    Args:
        model: A `SPEQModel`.
        loss: The loss to use instead of `model.loss`, if another model was compiled in its place.

    Returns:
        `(heads, names of the outputs without logits)`.
    """
    graph = read_graph(model)
    losses = values_per_output(model, model.loss if loss is None else loss)
    weights = values_per_output(model, model.loss_weights)
    heads, others = [], []
    outputs = zip(graph.output_indices, model.outputs, model.output_names, strict=True)
    for number, (index, output, name) in enumerate(outputs):
        kind, logits = _logits_of(_end_of(graph, index), output, losses[number])
        if kind is None:
            others.append(name)
            continue
        weight = 1.0 if weights[number] is None else float(weights[number])
        heads.append(Head(name, number, kind, logits, logits is not output, weight))
    return heads, others


def _end_of(graph, index):
    """Returns the node that makes an output, before quantizers and linear activations."""
    node = graph.tensors[index].producer
    while node is not None and (
        isinstance(node.operation, ActivationQuantizer) or function_name(node.operation) == "linear"
    ):
        node = graph.tensors[node.inputs[0]].producer
    return node


def _logits_of(producer, output, loss):
    function = None if producer is None else function_name(producer.operation)
    if function == "softmax" and _is_last_axis(producer.operation, len(output.shape)):
        return "softmax", producer.operation.input
    if function == "sigmoid":
        return "sigmoid", producer.operation.input
    if getattr(loss, "from_logits", False):
        if isinstance(loss, _SOFTMAX_LOSSES):
            return "softmax", output
        if isinstance(loss, _SIGMOID_LOSSES):
            return "sigmoid", output
    return None, None


def _is_last_axis(operation, rank):
    axis = getattr(operation, "axis", -1)
    return axis in (-1, rank - 1)


def values_per_output(model, values):
    """Returns one value per output from what Keras' `compile` takes: one, a list or a dict."""
    names = model.output_names
    if isinstance(values, dict):
        keys = names
        if isinstance(model.output, dict):  # in the order of `model.outputs`
            keys = tree.flatten({key: key for key in model.output})
        return [values.get(key, values.get(name)) for key, name in zip(keys, names, strict=True)]
    if isinstance(values, list | tuple):
        flat = tree.flatten(values)
        return flat if len(flat) == len(names) else [None] * len(names)
    return [values] * len(names)


def check_teacher(model, teacher):
    """Raises an error if an external teacher's outputs do not fit the model's."""
    if not isinstance(teacher, keras.Model):
        raise TypeError(f"`teacher` must be a Keras model. {describe(teacher=teacher)}")
    outputs = getattr(teacher, "outputs", None)
    if outputs is None:  # a subclassed model
        outputs = tree.flatten(teacher.compute_output_spec(plain_functional(model).input))
    mine = [tuple(x.shape) for x in model.outputs]
    theirs = [tuple(x.shape) for x in outputs]
    if mine != theirs:
        raise ValueError(
            "`teacher` must have outputs of the same shapes as the model. "
            f"Received: teacher outputs {theirs}, model outputs {mine}. Take one that was trained "
            "for the same task."
        )


def gives_probabilities(model, heads):
    """Returns, for each head, whether an external teacher ends in a softmax or sigmoid there.

    A teacher without a readable graph is assumed to end like the model.
    """
    if not is_functional(model):
        return [head.ends_in_function for head in heads]
    graph = read_graph(model)
    ends = [_end_of(graph, index) for index in graph.output_indices]
    return [_ends_in_function(ends[head.index]) for head in heads]


def _ends_in_function(producer):
    if producer is None:
        return False
    operation = producer.operation
    return (function_name(operation) or fused_function(operation)) in ("softmax", "sigmoid")
