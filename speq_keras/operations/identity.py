"""Identifies Keras' layers and operations by exact class, never by class name."""

import concurrent.futures
import functools
import inspect
import sys

import keras
from keras import layers

from speq_keras import fused_batch_norm
from speq_keras.layers import MaskedOutput
from speq_keras.operations.rows import (
    CHANNEL_OPERATION,
    LAYER_ROWS,
    MASKED_OUTPUT,
    OPERATION_ROWS,
    POSITION_EMBEDDING,
    REVERSIBLE_EMBEDDING,
    SCALED_SUM,
    WEIGHT,
)
from speq_keras.own_weights import ChannelOperation, Weight

# What a subclass may define without changing what its base computes.
_HARMLESS = frozenset(
    "__init__ build get_config from_config __doc__ __module__ __qualname__ __annotations__ "
    "__annotate__ __annotate_func__ __annotations_cache__ __dict__ __weakref__ __slots__ "
    "__orig_bases__ __parameters__ __firstlineno__ __static_attributes__ __abstractmethods__ "
    "_abc_impl __classcell__".split()
)
# Optional packages: module, class, row.
_ELSEWHERE = (
    ("keras_hub.layers", "PositionEmbedding", POSITION_EMBEDDING),
    ("keras_hub.layers", "ReversibleEmbedding", REVERSIBLE_EMBEDDING),
)


def row_of(operation):
    """Returns the `Row` of a layer or operation, or None for one that is not Keras' own.

    A subclass of a Keras layer counts as its base if it overrides nothing except the constructor,
    `build` and the config. A user's layer that acts only in training, such as stochastic depth,
    counts as a Dropout. Everything else is a user's layer, whatever its name.

    Example:
        >>> row_of(layers.Dense(4)).name
        'Dense'
        >>> row_of(type("Dense", (layers.Layer,), {})()) is None
        True
    """
    if not isinstance(operation, layers.Layer):
        return _operation_rows().get(type(operation))
    row, base = _row_and_base(operation.__class__)
    if base is not None and not _used_by_call(base).isdisjoint(vars(operation)):
        # The call reads attributes; a method set on the object itself is an override.
        patched = _used_by_call(base).intersection(vars(operation))
        if any(callable(getattr(base, name, None)) for name in patched):
            return None
    row = row or _row_elsewhere(type(operation))
    is_own = row is None and base is None
    return LAYER_ROWS["Dropout"] if is_own and _is_noise(operation) else row


def _is_noise(layer):
    """Whether a user's layer returns its input unchanged in inference, like a Dropout.

    It is called on an object that supports no computation, and must return that object.
    """
    if type(layer).__module__.split(".")[0] == "keras" or layer.weights:
        return False
    if "training" not in inspect.signature(layer.call).parameters:
        return False
    nothing = object()
    try:
        return layer.call(nothing, training=False) is nothing
    except Exception:  # anything: third-party code that expects a tensor
        return False


def name_of(operation):
    """Returns Keras' name for a class of layers or operations, "" if it is not Keras' own."""
    row = row_of(operation)
    return "" if row is None else row.name


def config_of(operation):
    """Returns the options of a layer or operation that has a row: {name: value}.

    For a subclass, the base is asked: the subclass's `get_config` may return anything.
    """
    if not isinstance(operation, layers.Layer):
        return operation.get_config()
    base = _row_and_base(operation.__class__)[1] or type(operation)
    return base.get_config(operation)


def constructor_of(operation):
    """Returns the Keras class whose constructor names the options and their defaults."""
    if not isinstance(operation, layers.Layer):
        return type(operation)
    return _row_and_base(operation.__class__)[1] or type(operation)


def make_operation(name, /, **options):
    """Returns a new operation, not a layer, of the Keras class with a name.

    Example:
        >>> make_operation("ExpandDims", axis=1).axis
        1
    """
    cls = next(cls for cls, row in _operation_rows().items() if row.name == name)
    return cls(**options)


@functools.cache
def _layer_rows():
    rows = {getattr(layers, n): row for n, row in LAYER_ROWS.items() if hasattr(layers, n)}
    rows[fused_batch_norm.BatchNormalization] = LAYER_ROWS["BatchNormalization"]
    rows[ChannelOperation], rows[Weight] = CHANNEL_OPERATION, WEIGHT
    rows[MaskedOutput] = MASKED_OUTPUT
    # Keras' InceptionResNetV2 computes x + scale · y with a layer of its own.
    module = sys.modules[keras.applications.InceptionResNetV2.__module__]
    if hasattr(module, SCALED_SUM.name):
        rows[getattr(module, SCALED_SUM.name)] = SCALED_SUM
    return rows


@functools.cache
def _row_and_base(cls):
    """Returns the row of a class of layers and the Keras class that has it, or Nones."""
    rows = _layer_rows()
    for place, base in enumerate(cls.__mro__):
        if base in rows:
            own = {name for other in cls.__mro__[:place] for name in vars(other)} - _HARMLESS
            used = _used_by_call(base)
            is_base = not any(name in used or hasattr(base, name) for name in own)
            return (rows[base], base) if is_base else (None, None)
    return None, None


@functools.cache
def _used_by_call(base):
    """Returns the names that the `call` of a Keras class reads, and its own."""
    return {"call", *inspect.unwrap(base.call).__code__.co_names}


def _row_elsewhere(cls):
    for module, name, row in _ELSEWHERE:
        if getattr(sys.modules.get(module), name, None) is cls:
            return row
    return None


@functools.cache
def _operation_rows():
    """Returns {class: row}."""
    calls, rows = zip(*OPERATION_ROWS, strict=True)
    known = dict(zip(operation_classes(calls), rows, strict=True))
    known.pop(None, None)
    return known


def operation_classes(calls):
    """Returns the classes of the operations that calls make: Keras keeps these classes private.

    A public function called on a symbolic tensor makes an operation, which has a class. This runs
    in a separate thread, so that Keras' numbering of names is not affected.

    Args:
        calls: Functions of a tensor of shape (1, 4, 4, 4), each of which calls one operation. The
            class is None if this version of Keras lacks the function.

    Example:
        >>> (relu,) = operation_classes([keras.ops.relu])
        >>> relu is type(make_operation("Relu"))
        True
    """
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(_make_classes, calls).result()


def _make_classes(calls):
    x = keras.Input(batch_shape=(1, 4, 4, 4))
    made = [_made(call, x) for call in calls]
    model = keras.Model(x, [tensor for tensor in made if tensor is not None])
    makers = {id(keras.tree.flatten(op.output)[0]): type(op) for op in model.operations}
    return [makers.get(id(tensor)) for tensor in made]


def _made(call, x):
    """Returns a call's result on a tensor, or None if this Keras lacks the function."""
    try:
        return keras.tree.flatten(call(x))[0]
    except AttributeError:
        return None
