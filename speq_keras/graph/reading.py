"""Reads the graph of a Keras model.

`read_graph` uses `Model.get_config()`, Keras' public and stable description of a graph.
`keras.models.clone_model` hides which tensors a layer reads, cannot flatten nested models and adds
nodes to the layers that it visits.
"""

import keras
from keras import tree

from speq_keras._checks import brief
from speq_keras.graph.copies import check_copyable
from speq_keras.graph.functional import is_functional, plain_functional
from speq_keras.graph.masks import UNKNOWN, mask_arguments, mask_model
from speq_keras.graph.names import NameInLayer, NameInModel
from speq_keras.graph.nodes import Graph, Ref, map_refs, refs_in
from speq_keras.graph.notation import config_of, fill_in, input_keys, keys_in, map_outputs
from speq_keras.graph.running import takes_training
from speq_keras.layers import MaskedOutput, QuantizedLayer
from speq_keras.ops import einsum_axes


def read_graph(model, expand=None):
    """Reads the graph of a Functional or built Sequential model.

    Nested models are flattened: the layers of a model `outer` used inside are named `outer.inner`
    (Keras forbids "/" in names). A `training=` argument of a nested model is passed on to its
    layers.

    Args:
        model: The model; it is not changed.
        expand: Function of a name, a layer or operation, and the args and kwargs of its call, with
            a `KerasTensor` for each tensor: returns None, or a model to inline instead and the
            tensors that it reads. If such a model cannot be inlined, its `refuse` is called with
            the name of the layer, which stays one node, and the reason. See `composite.Expander`.

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
    outputs = reader.inline(model, inputs, NameInModel(""), training=None)
    graph.outputs = outputs if expand is None else map_refs(outputs, reader.with_mask)
    reader.drop_unread_masks()
    return graph


class _Reader:
    def __init__(self, graph, expand):
        self.graph = graph
        self.expand = expand
        self.masked = graph.masked
        self.masks = {}  # {number of a tensor: the `Ref` of its mask}
        self.of_masks = []  # nodes that compute masks
        self.names_inside = {}  # {layer name: the `NameInLayer` for its contents}
        self.carried = graph.carried

    def inline(self, model, inputs, name_of, training):
        """Appends the nodes of `model` on `inputs`; returns its outputs, a structure of `Ref`s."""
        if isinstance(model, keras.Sequential):
            return self.inline_sequential(model, inputs, name_of, training)
        plain = plain_functional(model)
        config = config_of(plain)
        operations = {operation.name: operation for operation in plain.operations}
        values = dict(zip(input_keys(config["input_layers"]), tree.flatten(inputs), strict=True))
        waiting = [
            (operations[layer["name"]], call, data)
            for layer in config["layers"]
            for call, data in enumerate(layer["inbound_nodes"])
        ]
        while waiting:  # Keras lists each layer with all its calls, not in execution order
            later = []
            for operation, call, data in waiting:
                if any(key not in values for key in keys_in(data)):
                    later.append((operation, call, data))
                    continue
                args = fill_in(data["args"], values)
                kwargs = fill_in(data["kwargs"], values)
                outputs = self.append(operation, args, kwargs, name_of, training)
                for index, ref in enumerate(outputs):
                    values[(operation.name, call, index)] = ref
            if len(later) == len(waiting):
                raise ValueError(
                    f"The graph of model '{model.name}' has nodes that cannot be reached."
                )
            waiting = later
        nested = {
            name
            for name, operation in operations.items()
            if is_functional(operation) and not isinstance(operation, keras.Sequential)
        }
        return map_outputs(config["output_layers"], values, nested)

    def inline_sequential(self, model, inputs, name_of, training):
        """Like `inline`, for a model whose layers form a chain."""
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
            return tree.flatten(self.inline(operation, inputs, NameInModel(f"{name}."), training))
        if training is not None and kwargs.get("training") is None and takes_training(operation):
            kwargs = {**kwargs, "training": training}
        # A layer that stays one node finds the tensors' attached masks itself.
        shown = dict(kwargs)
        if isinstance(operation, keras.layers.Layer):
            shown |= mask_arguments(operation, args, kwargs, self.mask_of)
        outputs = self.append_expanded(operation, name, args, shown, name_of)
        if outputs is not None:
            self.hand_on(operation, args, kwargs, outputs)
            return outputs
        if isinstance(name_of, NameInLayer):
            check_copyable(operation)
        specs = output_specs(self.graph, operation, args, kwargs)
        outputs = self.graph.add_node(operation, name, args, kwargs, specs)
        if _makes_mask(operation) or self.reads_mask(args, kwargs):
            self.masked.update(ref.index for ref in outputs)
        self.hand_on(operation, args, kwargs, outputs)
        carries = any(ref.index in self.carried for ref in refs_in(args[:1]))
        if (_makes_mask(operation) or carries) and outputs[0].index in self.masks:
            self.carried.add(outputs[0].index)
        return outputs

    def with_mask(self, index):
        """Returns the `Ref` of a model output with its mask attached, for losses."""
        if index not in self.masks or index in self.carried:
            return Ref(index)
        tensor, mask = self.graph.tensors[index], self.masks[index]
        layer = MaskedOutput(dtype=tensor.dtype, name=f"{tensor.producer.name}_masked")
        specs = [(tensor.shape, tensor.dtype)]
        return self.graph.add_node(layer, layer.name, [[Ref(index), mask]], {}, specs)[0]

    def drop_unread_masks(self):
        """Drops the nodes that compute unread masks."""
        read = {*self.graph.output_indices}
        kept = []
        of_masks = {id(node) for node in self.of_masks}
        for node in reversed(self.graph.nodes):
            if id(node) not in of_masks or not read.isdisjoint(node.outputs):
                kept.append(node)
                read.update(node.inputs)
        self.graph.nodes = kept[::-1]

    def mask_of(self, leaf):
        """Returns the `Ref` of the mask of a `Ref`, or None."""
        return self.masks.get(leaf.index) if isinstance(leaf, Ref) else None

    def hand_on(self, operation, args, kwargs, outputs):
        """Records the masks of a layer's outputs, with nodes that compute them."""
        is_layer = isinstance(operation, keras.layers.Layer)
        if not is_layer or not outputs or outputs[0].index in self.masks:
            return
        first = args[0] if args else next(iter(kwargs.values()), None)
        before = tree.map_structure(self.mask_of, first)
        if not (_makes_mask(operation) or refs_in(before)):
            return
        inputs, ref_of = self.symbolic((first, before), _input_like)
        made = mask_model(operation, *inputs)
        if isinstance(made, keras.Model):
            sources = [ref_of(x) for x in made.inputs]
            name_of = NameInLayer(f"{self.graph.nodes[-1].name}_mask.")
            length = len(self.graph.nodes)
            (self.masks[outputs[0].index],) = tree.flatten(
                self.inline(made, sources, name_of, None)
            )
            self.of_masks += self.graph.nodes[length:]
        elif made is UNKNOWN:
            self.carried.add(outputs[0].index)
        elif made is not None:
            self.masks[outputs[0].index] = ref_of(made)

    def append_expanded(self, operation, name, args, kwargs, name_of):
        """Appends the layers of a composite layer; returns their outputs, or None for others."""
        inside = self.expanded(operation, name, args, kwargs)
        if inside is None:
            return None
        model, inputs = inside
        # An operation's parts inside a layer are named like its neighbours.
        is_part = isinstance(name_of, NameInLayer) and not isinstance(operation, keras.layers.Layer)
        name_of = name_of if is_part else self.inside_of(name)
        length = len(self.graph.nodes), len(self.graph.tensors)
        try:
            return tree.flatten(self.inline(model, inputs, name_of, None))
        except Exception as error:  # an inner layer that cannot be recreated
            del self.graph.nodes[length[0] :], self.graph.tensors[length[1] :]
            self.expand.refuse(name, f"its graph cannot be made again ({brief(error)})")
            return None

    def inside_of(self, name):
        """Returns a layer's `NameInLayer`, shared by all its calls; parts are created anew."""
        return self.names_inside.setdefault(name, NameInLayer(f"{name}."))

    def reads_mask(self, args, kwargs):
        """Whether a call reads a tensor that carries a mask."""
        return any(ref.index in self.masked for ref in refs_in((args, kwargs)))

    def expanded(self, operation, name, args, kwargs):
        """Returns `(model, its inputs as Refs)` from `expand` for a call, or None."""
        if self.expand is None:
            return None
        (args, kwargs), ref_of = self.symbolic((args, kwargs))
        result = self.expand(name, operation, args, kwargs)
        if result is None:
            return None
        model, tensors = result
        return model, [ref_of(tensor) for tensor in tensors]

    def symbolic(self, structure, make=lambda tensor: tensor):
        """Replaces the `Ref`s in a structure by symbolic tensors.

        Args:
            structure: Lists, tuples and dicts.
            make: Function of a `KerasTensor` that returns its replacement.

        Returns:
            `(structure, function from such a tensor to its `Ref`)`.
        """
        refs = {}  # the tensor is kept, so that its id stays unique

        def symbol(index):
            tensor = make(self.graph.keras_tensor(index))
            refs[id(tensor)] = (tensor, Ref(index))
            return tensor

        return map_refs(structure, symbol), lambda tensor: refs[id(tensor)][1]


def output_specs(graph, operation, args, kwargs):
    """Returns [(shape, dtype), ...] of the outputs of `operation` on arguments with `Ref`s."""
    args, kwargs = map_refs((args, kwargs), graph.keras_tensor)
    outputs = operation.compute_output_spec(*args, **kwargs)
    inner = operation.layer if isinstance(operation, QuantizedLayer) else operation
    if isinstance(inner, keras.layers.EinsumDense):
        return [(_einsum_shape(inner.equation, args[0].shape, outputs.shape), outputs.dtype)]
    return [(x.shape, x.dtype) for x in tree.flatten(outputs)]


def _einsum_shape(equation, read, made):
    """Returns an EinsumDense's output shape, taking unknown sizes from its input."""
    inputs, _, output = einsum_axes(equation)
    if "." in equation:
        return made
    sizes = dict(zip(inputs, read, strict=True))
    return tuple(
        sizes.get(axis) if size is None else size for axis, size in zip(output, made, strict=True)
    )


def _input_like(tensor):
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)


def _makes_mask(operation):
    operation = operation.layer if isinstance(operation, QuantizedLayer) else operation
    return isinstance(operation, keras.layers.Masking) or getattr(operation, "mask_zero", False)
