"""A Functional or Sequential model as plain data, with nested models flattened, and back.

`read_graph` goes through `Model.get_config()`, which is Keras' public and stable description of a
graph. `keras.models.clone_model` hides which tensors a layer reads, cannot flatten nested models
and adds nodes to the layers that it walks over.
"""

import contextlib
import dataclasses
import inspect
import sys

import keras
from keras import tree

from speq_keras._checks import describe
from speq_keras.ops import einsum_axes

MOST_OPERATIONS_IN_A_ROW = 20_000


@dataclasses.dataclass(frozen=True)
class Ref:
    """A tensor of the graph, by number."""

    index: int


@dataclasses.dataclass
class Tensor:
    """What is known of a tensor: shape (None: unknown size), dtype, and the node that makes it."""

    shape: tuple
    dtype: str
    producer: "Node | None" = None
    name: str = ""


@dataclasses.dataclass(eq=False)
class Node:
    """One call of a layer or operation. `args` and `kwargs` hold `Ref`s where tensors go.

    `origin` is, in a rewritten graph, the node of the graph before that this one comes from.
    """

    operation: object
    name: str
    args: list
    kwargs: dict
    outputs: list = dataclasses.field(default_factory=list)
    origin: "Node | None" = None

    @property
    def inputs(self):
        """The numbers of the tensors that this node reads, in order."""
        return [leaf.index for leaf in _refs((self.args, self.kwargs))]


@dataclasses.dataclass
class Graph:
    """Nodes in an order in which they can be computed, their tensors, and the ends of the model."""

    name: str
    tensors: list = dataclasses.field(default_factory=list)
    nodes: list = dataclasses.field(default_factory=list)
    inputs: object = None
    outputs: object = None

    def add_tensor(self, shape, dtype, producer=None, name=""):
        self.tensors.append(Tensor(tuple(shape), dtype, producer, name))
        return Ref(len(self.tensors) - 1)

    def add_node(self, operation, name, args, kwargs, shapes_and_dtypes, origin=None):
        """Appends a node and returns the `Ref`s of its outputs."""
        node = Node(operation, name, args, kwargs, origin=origin)
        node.outputs = [self.add_tensor(s, d, node).index for s, d in shapes_and_dtypes]
        self.nodes.append(node)
        return [Ref(index) for index in node.outputs]

    def readers(self):
        """Returns {tensor number: [nodes that read it]}, a node once for every time it reads."""
        readers = {index: [] for index in range(len(self.tensors))}
        for node in self.nodes:
            for index in node.inputs:
                readers[index].append(node)
        return readers

    @property
    def input_indices(self):
        return [ref.index for ref in _refs(self.inputs)]

    @property
    def output_indices(self):
        return [ref.index for ref in _refs(self.outputs)]


def _refs(structure):
    return [leaf for leaf in tree.flatten(structure) if isinstance(leaf, Ref)]


def is_functional(operation):
    """Whether `operation` is a model with a graph of layers that can be read."""
    if not isinstance(operation, keras.Model):
        return False
    if isinstance(operation, keras.Sequential):
        return operation.built
    try:
        return bool(operation.inputs) and bool(operation.operations)
    except AttributeError:  # subclassed models have no graph
        return False


@contextlib.contextmanager
def deep_graphs():
    """Lets Keras make models with thousands of operations in a row.

    It calls itself once for each when it makes a Functional model; Python stops it at a thousand.
    """
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, MOST_OPERATIONS_IN_A_ROW))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def plain_functional(model):
    """Returns a plain Functional model with the same graph and the same layers.

    Subclasses of Functional have constructors and configs of their own, and a Sequential model that
    was never called has no `input`.
    """
    with deep_graphs():
        if isinstance(model, keras.Sequential):
            return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        return keras.Model(model.input, model.output, name=model.name)


def read_graph(model, expand=None):
    """Reads the graph of a Functional or built Sequential model.

    Nested models are flattened: the layers of a model `outer` used inside are named `outer.inner`
    (Keras forbids "/" in names). A `training=` given to a nested model goes on to its layers.

    Args:
        model: The model; it is not changed.
        expand: Function of a name, a layer or operation, and the args and kwargs of its call, with
            a `KerasTensor` for each tensor: returns None, or a model to flatten in its place and
            the tensors that it reads. See `composite.expand`.

    Returns:
        A `Graph` whose nodes hold the model's own layers.
    """
    graph = Graph(name=model.name)
    reader = _Reader(graph, expand)
    ends = plain_functional(model)
    inputs = tree.map_structure(
        lambda x: graph.add_tensor(x.shape, x.dtype, name=x.name), ends.input
    )
    graph.inputs = inputs
    graph.outputs = reader.inline(model, inputs, _Name(""), training=None)
    return graph


class _Name:
    """Names the layers and operations of a model that is flattened into another one."""

    def __init__(self, prefix):
        self.prefix = prefix

    def __call__(self, operation):
        return self.prefix + operation.name


class _NameInside(_Name):
    """Names what is inside a composite layer.

    Keras numbers names that nobody gave through the whole process; these begin anew in each layer,
    so that the same model has the same names whenever it is made.
    """

    def __init__(self, prefix):
        super().__init__(prefix)
        self.given = {}
        self.taken = Names()

    def __call__(self, operation):
        if id(operation) not in self.given:
            name = operation.name.rstrip("0123456789").removesuffix("_")
            is_automatic = name.replace("_", "") == type(operation).__name__.lower()
            name = self.taken.unique(name if is_automatic else operation.name)
            self.given[id(operation)] = (operation, name)  # the object keeps its id its own
        return self.prefix + self.given[id(operation)][1]


class _Reader:
    def __init__(self, graph, expand):
        self.graph = graph
        self.expand = expand
        self.masked = set()  # tensors that carry a mask which no argument shows

    def inline(self, model, inputs, name_of, training):
        """Appends the nodes of `model` on `inputs`; returns its outputs, a structure of `Ref`s."""
        if isinstance(model, keras.Sequential):
            return self.inline_sequential(model, inputs, name_of, training)
        plain = plain_functional(model)
        config = _config_of(plain)
        operations = {operation.name: operation for operation in plain.operations}
        values = {}
        input_keys = _tensor_keys(config["input_layers"])
        for key, ref in zip(input_keys, tree.flatten(inputs), strict=True):
            values[key] = ref
        waiting = []
        for layer in config["layers"]:
            operation = operations[layer["name"]]
            for call, data in enumerate(layer["inbound_nodes"]):
                waiting.append((operation, call, data))
        while waiting:
            later = []
            for operation, call, data in waiting:
                keys = _keys_in(data)
                if any(key not in values for key in keys):
                    later.append((operation, call, data))
                    continue
                args = _fill_in(data["args"], values)
                kwargs = _fill_in(data["kwargs"], values)
                outputs = self.append(operation, args, kwargs, name_of, training)
                for index, ref in enumerate(outputs):
                    values[(operation.name, call, index)] = ref
            if len(later) == len(waiting):
                raise ValueError(
                    f"The graph of model '{model.name}' has nodes that cannot be reached."
                )
            waiting = later
        # Only in the list of outputs does Keras count the call that defines a nested Functional.
        nested = {
            name for name, op in operations.items() if is_functional(op) and not _is_sequential(op)
        }
        return _map_keys(config["output_layers"], values, nested)

    def inline_sequential(self, model, inputs, name_of, training):
        value = tree.flatten(inputs)[0]
        for layer in model.layers:
            (value,) = self.append(layer, [value], {}, name_of, training)
        return value

    def append(self, operation, args, kwargs, name_of, training):
        """Appends one call, flattened if it is a call of a model; returns a flat list of `Ref`s."""
        name = name_of(operation)
        if is_functional(operation):
            training = kwargs.get("training") if kwargs.get("training") is not None else training
            inputs = args[0] if args else kwargs["inputs"]
            return tree.flatten(self.inline(operation, inputs, _Name(f"{name}."), training))
        if training is not None and kwargs.get("training") is None and _takes_training(operation):
            kwargs = {**kwargs, "training": training}
        inside = self.expanded(operation, name, args, kwargs)
        if inside is not None:
            model, inputs = inside
            # The parts of an operation inside a layer are named like its neighbours.
            is_part = isinstance(name_of, _NameInside) and not isinstance(
                operation, keras.layers.Layer
            )
            name_of = name_of if is_part else _NameInside(f"{name}.")
            return tree.flatten(self.inline(model, inputs, name_of, None))
        specs = output_specs(self.graph, operation, args, kwargs)
        outputs = self.graph.add_node(operation, name, args, kwargs, specs)
        if _makes_mask(operation) or self.reads_mask(args, kwargs):
            self.masked.update(ref.index for ref in outputs)
        return outputs

    def reads_mask(self, args, kwargs):
        return any(ref.index in self.masked for ref in _refs((args, kwargs)))

    def expanded(self, operation, name, args, kwargs):
        """Returns `(model, its inputs as Refs)` of what `expand` makes of a call, or None."""
        if self.expand is None or self.reads_mask(args, kwargs):  # inside, the mask would be lost
            return None
        refs = {}

        def symbolic(leaf):
            if not isinstance(leaf, Ref):
                return leaf
            tensor = self.graph.tensors[leaf.index]
            known = keras.KerasTensor(tensor.shape, dtype=tensor.dtype)
            refs[id(known)] = (known, leaf)
            return known

        args, kwargs = tree.map_structure(symbolic, (args, kwargs))
        result = self.expand(name, operation, args, kwargs)
        if result is None:
            return None
        model, tensors = result
        return model, [refs[id(tensor)][1] for tensor in tensors]


def output_specs(graph, operation, args, kwargs):
    """Returns [(shape, dtype), ...] of what `operation` makes of arguments that hold `Ref`s."""

    def symbolic(leaf):
        if not isinstance(leaf, Ref):
            return leaf
        tensor = graph.tensors[leaf.index]
        return keras.KerasTensor(tensor.shape, dtype=tensor.dtype)

    args, kwargs = tree.map_structure(symbolic, (args, kwargs))
    outputs = operation.compute_output_spec(*args, **kwargs)
    inner = getattr(operation, "layer", operation)
    if isinstance(inner, keras.layers.EinsumDense):
        return [(_einsum_shape(inner.equation, args[0].shape, outputs.shape), outputs.dtype)]
    return [(x.shape, x.dtype) for x in tree.flatten(outputs)]


def _einsum_shape(equation, read, made):
    """Returns the shape that an EinsumDense makes, with the sizes that it leaves open but reads."""
    inputs, _, output = einsum_axes(equation)
    if "." in equation:
        return made
    sizes = dict(zip(inputs, read, strict=True))
    return tuple(
        sizes.get(axis) if size is None else size for axis, size in zip(output, made, strict=True)
    )


def _makes_mask(operation):
    return isinstance(operation, keras.layers.Masking) or getattr(operation, "mask_zero", False)


def _is_sequential(operation):
    return isinstance(operation, keras.Sequential)


def _takes_training(operation):
    return "training" in inspect.signature(operation.call).parameters


# ---- Keras' config notation ------------------------------------------------------------------


def _is_tensor(data):
    return isinstance(data, dict) and data.get("class_name") == "__keras_tensor__"


def _keys_in(data):
    """Returns the (layer, call, output) keys of all tensors in a serialized call."""
    if _is_tensor(data):
        return [tuple(data["config"]["keras_history"])]
    if isinstance(data, dict):
        return [key for value in data.values() for key in _keys_in(value)]
    if isinstance(data, list | tuple):
        return [key for value in data for key in _keys_in(value)]
    return []


def _fill_in(data, values):
    """Turns a serialized argument into the argument, with `Ref`s for tensors."""
    if _is_tensor(data):
        return values[tuple(data["config"]["keras_history"])]
    if isinstance(data, dict) and "class_name" in data:
        return keras.saving.deserialize_keras_object(data)
    if isinstance(data, dict):
        return {name: _fill_in(value, values) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_fill_in(value, values) for value in data]
    return data


def _is_key(data):
    return isinstance(data, list) and len(data) == 3 and isinstance(data[0], str)


def _map_keys(data, values, nested):
    if _is_key(data):
        name, call, output = data
        return values[(name, call - (name in nested), output)]
    if isinstance(data, dict):
        return {name: _map_keys(value, values, nested) for name, value in data.items()}
    return [_map_keys(value, values, nested) for value in data]


def _tensor_keys(data):
    if _is_key(data):
        return [tuple(data)]
    if isinstance(data, dict):
        return [key for name in sorted(data) for key in _tensor_keys(data[name])]
    return [key for value in data for key in _tensor_keys(value)]


def _config_of(model):
    """Returns the config of a Functional, or names the layer that has none."""
    try:
        return model.get_config()
    except NotImplementedError:
        for operation in model.operations:
            if not isinstance(operation, keras.Model):
                copy_operation(operation)
        raise


class Names(set):
    """The names that a graph has; new ones are made different."""

    def unique(self, name):
        """Returns `name`, or `name_1`, `name_2`, ... where it is taken, and takes it."""
        candidate, number = name, 0
        while candidate in self:
            number += 1
            candidate = f"{name}_{number}"
        self.add(candidate)
        return candidate


def copy_operation(operation, **changes):
    """Returns a fresh layer or operation with the same config but for `changes`, without weights.

    Raises:
        ValueError: If the layer cannot be made again from its config.
    """
    try:
        copy = _made_from({**operation.get_config(), **changes}, operation)
        if isinstance(operation, keras.layers.Layer) and operation.built and not copy.built:
            build_config = operation.get_build_config()
            if build_config:
                copy.build_from_config(build_config)
        return copy
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"Layer '{operation.name}' ({type(operation).__name__}) cannot be copied. A layer "
            "must be reproducible from `get_config()`: define it, and register functions and "
            "classes of your own with keras.saving.register_keras_serializable. "
            f"{describe(error=str(error))}"
        ) from error


def weights_changed(operations):
    """Has to be called after weights were assigned one by one.

    An adapted Normalization computes with what it made of its weights when they were loaded.
    """
    for operation in operations:
        if isinstance(operation, keras.layers.Normalization):
            operation.finalize_state()


def _made_from(config, operation):
    """Returns a copy of `operation`; functions go over as they are.

    Through a config a function has to be registered, and a lambda is refused and loses its globals.
    """
    if isinstance(operation, keras.layers.Lambda):
        config.update(
            function=operation.function, arguments=operation.arguments, mask=operation.mask
        )
        if isinstance(config.get("output_shape"), dict):  # a serialized function
            config["output_shape"] = operation.compute_output_shape
        return type(operation)(**config)
    if isinstance(operation, keras.layers.Activation):
        config["activation"] = operation.activation
    return type(operation).from_config(config)
