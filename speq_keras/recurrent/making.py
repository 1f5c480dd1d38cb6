"""Which recurrent layers can be quantized, and with which quantizers."""

from keras import layers

from speq_keras.operations import OTHER, fixed_range, is_never_negative, kind_of, name_of_function
from speq_keras.quantizers import PACT, FixedRange
from speq_keras.recurrent.formulas import FORMULAS
from speq_keras.recurrent.layer import QuantizedRecurrent, roles_of

MOST_STEPS = 128
_LAYERS = (layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN)


def is_recurrent(layer):
    """Whether a layer is one of Keras' recurrent layers around one of its cells."""
    return type(layer) in _LAYERS and type(layer.cell) in FORMULAS


def refusal(graph, node):
    """Returns why a call of a recurrent layer stays in float, with a remedy, or None.

    Args:
        graph: A `Graph`.
        node: One of its nodes.
    """
    layer = node.operation
    if not is_recurrent(layer):
        return _of_cell(layer.cell) if type(layer) is layers.RNN else None
    steps = graph.tensors[node.inputs[0]].shape[1]
    if steps is None:
        return (
            "its length is unknown; build the model with a fixed length, as keras.Input((28, ...))"
        )
    if steps > MOST_STEPS:
        return f"it has {steps} steps, and a file unrolls at most {MOST_STEPS}; shorten the input"
    if layer.stateful:
        return "it is stateful; make it with stateful=False, and pass whole sequences"
    if not graph.masked.isdisjoint(node.inputs) or node.kwargs.get("mask") is not None:
        return "it reads a mask; pass sequences of one length, without Masking or mask_zero"
    if len(node.inputs) > 1:
        return "its initial state is given; build it to start from zeros"
    for role, attribute in FORMULAS[type(layer.cell)].functions.items():
        function = name_of_function(getattr(layer.cell, attribute))
        if function in (OTHER, "softmax"):
            return f"its {attribute} (of the {role}) is not one of Keras' functions of one value"
    return None


def _of_cell(cell):
    known = ", ".join(cls.__name__ for cls in FORMULAS)
    return (
        f"its cell is a {type(cell).__name__}, and only {known} are known; instead of stacked "
        "cells, stack layers"
    )


def quantized_recurrent(layer, quantizers, **kwargs):
    """Returns the `QuantizedRecurrent` of a layer, with new quantizers of 8 bits for all roles.

    Functions with a fixed grid keep it: σ 1/256, tanh 1/128.

    Args:
        layer: The layer, built.
        quantizers: As in `QuantizedRecurrent`.
        **kwargs: For its constructor.
    """
    formula, made = FORMULAS[type(layer.cell)], {}
    for role in roles_of(layer):
        options = {"bits": 8, "name": f"{layer.name}_{role}_quantizer"}
        if role in formula.functions:
            made[role] = _of_function(getattr(layer.cell, formula.functions[role]), options)
        else:
            made[role] = PACT(signed=True, **options)
    return QuantizedRecurrent(layer, quantizers, made, **kwargs)


def _of_function(function, options):
    activation = layers.Activation(function)
    ends = fixed_range(activation)
    if ends is not None:
        low, high = ends
        return FixedRange(low=low, high=high, signed=low < 0, **options)
    nonnegative = is_never_negative(activation, kind_of(activation), ())
    return PACT(signed=not nonnegative, nonnegative_input=nonnegative, **options)
