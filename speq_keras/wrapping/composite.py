"""Takes layers made of layers apart: attention, transformer and residual blocks.

A composite layer is taken apart by calling its `call` on symbolic tensors. Meanwhile the variables
that it holds itself are tensors, too (`symbolic_weights`): each is made by a `Weight`. The
resulting graph replaces the layer only if every weight of the layer belongs to a layer of the
graph, if training gives the same graph, and if both compute the same results on random data
(`composite_check`). Otherwise the layer stays one node, and `Expander.reasons` says why. So does a
layer after `Embedding(mask_zero=True)` or `Masking`: only a mask passed as an argument is visible.

Operations that combine several others are taken apart, too (`parts`): `ops.dot_product_attention`,
which Keras' attention layers call if they have no dropout, into two products and the softmax
between them; `ops.einsum` of two tensors into `ops.matmul` between transpositions.
"""

import contextlib
import functools
import inspect

import keras
from keras import layers, ops, tree

from speq_keras._checks import brief
from speq_keras.configs import registered_config
from speq_keras.graph import read_graph
from speq_keras.layers import Constant, QuantizedLayer
from speq_keras.operations import ARITHMETIC, Kind, kind_of, name_of, row_of
from speq_keras.own_weights import Weight
from speq_keras.quantizers import Quantizer
from speq_keras.wrapping import open_batch
from speq_keras.wrapping.composite_check import STAND_IN, difference
from speq_keras.wrapping.own_weights import is_convolution
from speq_keras.wrapping.parts import CannotExpand, part_functions
from speq_keras.wrapping.symbolic_weights import (
    is_fixed,
    is_symbolic,
    on_weights,
    variables_in,
)

# Of Keras' own layers, only these are taken apart.
_KERAS_COMPOSITES = (
    layers.MultiHeadAttention,
    layers.GroupQueryAttention,
    layers.Attention,
    layers.AdditiveAttention,
    layers.Dot,
    layers.TimeDistributed,
    layers.Bidirectional,
    layers.CenterCrop,
    *(getattr(layers, name) for name in dir(layers) if name.startswith("Adaptive")),
)
# Operations that may read a weight held by the layer itself: these have kernels.
_READS_WEIGHTS = (*ARITHMETIC, "Matmul")
# The package of keras.applications, whose ConvNeXt has a LayerScale.
_APPLICATIONS = keras.applications.ConvNeXtTiny.__module__.rsplit(".", 1)[0]


def is_composite(operation):
    """Whether `expand` may be able to take an operation apart, judging by its class alone."""
    if not isinstance(operation, layers.Layer):
        return type(operation) in part_functions()
    if isinstance(operation, QuantizedLayer | Quantizer) or registered_config(operation):
        return False
    if isinstance(operation, _KERAS_COMPOSITES):
        return True
    row = row_of(operation)
    if row is not None and row.is_for_training:
        return False
    if type(operation).__module__.startswith(_APPLICATIONS):  # like a user's layer, unless known
        return row is None
    return not _is_known(type(operation))


class Expander:
    """The `expand` of `graph.read_graph`: takes composite layers apart.

    Args:
        stays_whole: Function of a name and a layer: True for layers to leave alone.
        verifies: Whether each graph is run beside its layer. Unnecessary for a model whose layers
            were taken apart before.

    Attributes:
        reasons: {layer name: why it stays whole}, after reading.
    """

    def __init__(self, stays_whole, verifies=True):
        self.stays_whole = stays_whole
        self.verifies = verifies
        self.reasons = {}
        self._verified = {}
        self._weights = {}  # id of a variable: (variable, its `Weight`)

    def __call__(self, name, operation, args, kwargs):
        """Returns the result of `expand`, or None for a layer that stays one node."""
        if not is_composite(operation) or self.stays_whole(name, operation):
            return None
        try:
            check = self._difference if self.verifies else None
            return expand(operation, args, kwargs, check, self._weights)
        except CannotExpand as error:
            self.refuse(name, str(error))
            return None

    def refuse(self, name, why):
        """Records why a layer stays whole."""
        self.reasons.setdefault(name, f"stays whole: {why}")

    def _difference(self, layer, model, args, kwargs):
        """Calls `difference` once for all layers that are alike: blocks repeat."""
        key = _likeness(layer, model, args, kwargs)
        if key is None or key not in self._verified:
            found = difference(layer, model, args, kwargs, model.inputs)
            if key is None:
                return found
            self._verified[key] = found
        return self._verified[key]


def expand(operation, args, kwargs, difference=None, weights=None):
    """Takes a call apart.

    Args:
        operation: A composite layer or operation.
        args: The call's arguments, with a `keras.KerasTensor` for each tensor.
        kwargs: Likewise.
        difference: Function of the layer, its graph and the call's args and kwargs, like the one in
            `composite_check`, or None.
        weights: {id of a variable: (variable, its `Weight`)}, extended; or None.

    Returns:
        `(model, tensors)`: a Functional model of the inner layers, and the tensors of the call that
        correspond to its inputs.

    Raises:
        CannotExpand: If the layer has to stay one node.
    """
    is_layer = isinstance(operation, layers.Layer)
    part = part_functions().get(type(operation))
    call = operation.call if part is None else functools.partial(part, operation)
    args, kwargs, tensors = _fresh(args, kwargs)
    own = variables_in(operation) if is_layer else {}
    if is_layer and part is None:
        call = on_weights(operation, {} if weights is None else weights)
    try:
        with _random_states_kept(operation):
            args, kwargs, model = _graph_of(call, args, kwargs, tensors)
    except CannotExpand as error:
        if own:
            raise CannotExpand(f"{_has_weights(own)}, and {error}") from error
        raise
    if is_layer:
        _check_weights(operation, model)
        why = difference and difference(operation, model, args, kwargs)
        if why:
            raise CannotExpand(why)
    return model, tensors


@contextlib.contextmanager
def _random_states_kept(operation):
    """Undoes what calls on symbolic tensors do to the state of random layers."""
    weights = {id(v) for v in getattr(operation, "weights", ())}
    states = [v for v in getattr(operation, "variables", ()) if id(v) not in weights]
    before = [ops.copy(state.value) for state in states]
    try:
        yield
    finally:
        for state, value in zip(states, before, strict=True):
            state.assign(value)


def _graph_of(call, args, kwargs, tensors):
    """Returns the args and kwargs that a call was traced with, and its graph.

    If the call uses the batch size, which is None, a number replaces it.
    """
    try:
        model = _traced(call, args, kwargs)
        reads_batch = open_batch.is_read(model)
    except CannotExpand:
        reads_batch = True  # a None may have been the cause
        if not any(x.shape[:1] == (None,) for x in tensors):
            raise
    if reads_batch:
        args, kwargs, _ = _fresh(args, kwargs, STAND_IN)
        model = open_batch.left_open(_traced(call, args, kwargs))
    return args, kwargs, model


def _fresh(args, kwargs, batch_size=None):
    """Replaces the tensors of a call by inputs of a new model.

    Args:
        args: The call's arguments.
        kwargs: Likewise.
        batch_size: Replaces an unknown size, or None.

    Returns:
        `(args, kwargs, tensors)`: the new ones, and the call's tensors in order, without
        duplicates.
    """
    known, tensors = {}, []

    def fresh(leaf):
        if not isinstance(leaf, keras.KerasTensor):
            return leaf
        if id(leaf) not in known:
            is_open = leaf.shape[:1] == (None,)
            shape = (batch_size, *leaf.shape[1:]) if is_open else leaf.shape
            known[id(leaf)] = keras.Input(batch_shape=shape, dtype=leaf.dtype)
            tensors.append(leaf)
        return known[id(leaf)]

    return (*tree.map_structure(fresh, (args, kwargs)), tensors)


def _traced(call, args, kwargs):
    """Returns the graph that `call` makes, in inference mode."""
    inputs = list({id(x): x for x in tree.flatten((args, kwargs)) if is_symbolic(x)}.values())
    try:
        asks = "training" in inspect.signature(call).parameters and kwargs.get("training") is None
        if asks:  # a default of False would be written into the graph
            kwargs = {**kwargs, "training": None}
        model = keras.Model(inputs, _outputs(call, inputs, args, kwargs))
        if asks:
            training = {**kwargs, "training": True}
            in_training = keras.Model(inputs, _outputs(call, inputs, args, training))
            if _classes_in(in_training) != _classes_in(model):
                raise CannotExpand("its graph differs in training")
    except CannotExpand:
        raise
    except Exception as error:  # anything: third-party code on symbolic tensors
        raise CannotExpand(f"its call fails on symbolic tensors ({brief(error)})") from error
    return model


def _outputs(call, inputs, args, kwargs):
    """Returns a call's results; arrays that depend on no input become tensors of the graph."""
    return tree.map_structure(
        lambda y: y if is_symbolic(y) else Constant(ops.convert_to_numpy(y))(inputs[0]),
        call(*args, **kwargs),
    )


def _check_weights(layer, model):
    """Raises CannotExpand if the graph lacks something that the layer has."""
    if layer.activity_regularizer is not None:
        raise CannotExpand("it has an activity regularizer")
    found = {id(variable) for variable in model.weights}
    own = [v.name for v in layer.weights if id(v) not in found and not is_fixed(v)]
    if own:
        raise CannotExpand(_has_weights(own))
    if any(type(o) is Weight for o in model.operations):
        _check_readers(read_graph(model))


def _check_readers(graph):
    """Raises CannotExpand if an operation reads weights that none of its kernels can."""
    weights = {}  # tensor computed from weights alone: their names
    for node in graph.nodes:
        names = [name for index in node.inputs for name in weights.get(index, ())]
        is_weight = type(node.operation) is Weight
        is_alone = bool(names) and all(index in weights for index in node.inputs)
        if is_weight or is_alone:
            weights.update(dict.fromkeys(node.outputs, [node.name] if is_weight else names))
        copies = kind_of(node.operation) in (Kind.CARRY, Kind.CONCAT)
        reads = name_of(node.operation) in _READS_WEIGHTS or is_convolution(node.operation)
        # An operation that is itself taken apart (`ops.einsum`) may be a product.
        is_known = copies or type(node.operation) in part_functions() or (reads and not is_alone)
        if names and not is_weight and not is_known:
            name = type(node.operation).__name__
            reason = "weights alone" if reads else "weights"
            raise CannotExpand(f"{_has_weights(names)}, and no kernel of {name} reads {reason}")


def _has_weights(names):
    return f"it has weights of its own ({', '.join(names)})"


def _likeness(layer, model, args, kwargs):
    """Returns a key that is equal for layers that differ only in their weights, or None."""

    def plain(leaf):
        return (leaf.shape, leaf.dtype) if isinstance(leaf, keras.KerasTensor) else leaf

    try:
        config = {**layer.get_config(), "name": None}
        call = tree.map_structure(plain, (args, kwargs))
        weights = [(v.shape, v.dtype, v.trainable) for v in layer.variables]
        return repr((type(layer), config, call, weights, _classes_in(model)))
    except Exception:  # layers without a config are checked one by one
        return None


def _is_known(layer_class):
    """Whether a class belongs to Keras or this package."""
    return layer_class.__module__.split(".")[0] in ("keras", __name__.split(".")[0])


def _classes_in(model):
    return [type(operation) for operation in model.operations]
