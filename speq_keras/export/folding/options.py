"""Refuses layer options and call arguments that the export does not honour."""

import inspect

import keras
import numpy as np

from speq_keras.export.folding.steps import CannotExport
from speq_keras.graph import Ref, refs_in
from speq_keras.layers import QuantizedLayer
from speq_keras.operations import (
    TRAINING_ENDINGS,
    TRAINING_OPTIONS,
    config_of,
    constructor_of,
    row_of,
)


def unsupported(option, value, why=""):
    """Returns the error for an option's value that no kernel supports."""
    reason = f": {why}" if why else ""
    return CannotExport(f"option {option}={value!r} has no kernel{reason}")


def check_options(node):
    """Checks that the file honours every option of a layer or operation.

    Options that its row does not name must have Keras' default value.

    Raises:
        CannotExport: If an option, or an argument of the call, would be lost.
    """
    operation = node.operation
    layer = operation.layer if isinstance(operation, QuantizedLayer) else operation
    row = row_of(layer)
    if row is None:
        return  # a user's layer: refused when it is visited
    _check_call(node, layer, row)
    if row.is_for_training:
        return
    defaults = inspect.signature(constructor_of(layer).__init__).parameters
    for option, value in config_of(layer).items():
        if option in row.options or option in TRAINING_OPTIONS:
            continue
        if option.endswith(TRAINING_ENDINGS):
            continue
        if option == "data_format":
            _check_data_format(value)
            continue
        parameter = defaults.get(option)
        default = None if parameter is None else parameter.default
        if not _is_default(value, default):
            raise unsupported(option, value)


def check_no_constants(node):
    """Checks that a node that reads a list of tensors has only tensors in it.

    Raises:
        CannotExport: If it contains a constant.
    """
    operands = node.args[0] if node.args else next(iter(node.kwargs.values()))
    if not all(isinstance(operand, Ref) for operand in operands):
        raise CannotExport("one of the tensors that it reads is a constant")


def _check_data_format(value):
    if (value or keras.config.image_data_format()) != "channels_last":
        raise unsupported("data_format", value or "channels_first", "kernels read channels last")


def _is_default(value, default):
    if default is None or default is inspect.Parameter.empty:
        return value is None or value is False
    return bool(np.all(value == default))


def _check_call(node, layer, row):
    """Checks the arguments of a call: those not named must be None or False.

    `predict` passes training=False to every layer, whatever its call in the graph says.
    """
    parameters = list(inspect.signature(layer.call).parameters.values())
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    given = dict(zip(names[1:], node.args[1:], strict=False)) | node.kwargs
    given.pop(names[0], None)
    for name, value in given.items():
        if name in (*row.calls, "training") or value is None or value is False:
            continue
        shown = "a tensor" if refs_in(value) or isinstance(value, Ref) else repr(value)
        raise CannotExport(f"argument {name}={shown} of its call has no kernel")
