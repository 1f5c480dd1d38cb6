"""Turns the arguments of `wrap` into a decision for every layer."""

import dataclasses

import keras

from speq_keras._checks import check_bits, describe
from speq_keras.configs import TARGET, QuantizeConfig, matches, registered_config
from speq_keras.configs.quantize_config import is_config, translated
from speq_keras.layers import QuantizedLayer
from speq_keras.operations import Kind, fixed_range, kind_of
from speq_keras.quantizers import (
    ActivationQuantizer,
    MinMax,
    Quantizer,
    WeightQuantizer,
    get_activation_quantizer,
    get_weight_quantizer,
)
from speq_keras.recurrent import PRODUCTS, is_recurrent, refusal
from speq_keras.wrapping.placement import (
    EIGHT_BITS,
    Demand,
    find_boundaries,
    find_squeeze_excite,
    float_tensors,
)

_PLAIN = QuantizeConfig()
_FIXED_WIDTH_WEIGHTS = MinMax(per_channel=True)


@dataclasses.dataclass(kw_only=True)
class WrapOptions:
    """The checked arguments of `wrap` that decide what happens to each layer.

    Alternative forms of an argument are unified: quantizers are objects, `skip` is a list,
    `configs` a dict.
    """

    w_bits: int | None
    a_bits: int | None
    boundary_bits: int | None
    weight_quantizer: WeightQuantizer
    activation_quantizer: ActivationQuantizer
    skip: list
    configs: dict

    def __post_init__(self):
        for name in ("w_bits", "a_bits", "boundary_bits"):
            setattr(self, name, check_bits(name, getattr(self, name)))
        if self.w_bits is None and self.a_bits is None:
            raise ValueError(
                "`w_bits` and `a_bits` must not both be None: nothing would be quantized. "
                f"{describe(w_bits=None, a_bits=None)} Give at least one width from 2 to 8."
            )
        if not isinstance(self.configs, dict | None):
            raise TypeError(
                "`configs` must be a dict from name patterns or layer classes to QuantizeConfig "
                f"objects. {describe(configs=self.configs)}"
            )
        self.configs = self.configs or {}
        self.weight_quantizer = get_weight_quantizer(self.weight_quantizer)
        self.activation_quantizer = get_activation_quantizer(self.activation_quantizer)
        self.skip = _patterns(self.skip)

    def check_patterns(self, nodes):
        """Raises a ValueError for a pattern or class that no layer of the model matches."""
        names = sorted({node.name for node in nodes})
        for pattern in self.skip:
            if not isinstance(pattern, str):
                raise TypeError(
                    f"`skip` must hold layer names or patterns. {describe(skip=self.skip)}"
                )
            if not any(matches(pattern, name) for name in names):
                raise ValueError(_no_match("skip", pattern, names))
        for key, config in self.configs.items():
            if not is_config(config):
                raise TypeError(
                    "`configs` must map name patterns or layer classes to QuantizeConfig objects. "
                    f"{describe(key=key, value=config)} For configs of tfmot, first import "
                    "speq_keras.tfmot."
                )
            a_bits = getattr(config, "a_bits", TARGET)
            if self.a_bits is None and a_bits not in (TARGET, None):
                raise ValueError(
                    "`a_bits` of a QuantizeConfig must be left out where all activations stay "
                    f"float. {describe(key=key, config=config)} Give `wrap` a width as `a_bits`."
                )
            if isinstance(key, type):
                if not any(isinstance(node.operation, key) for node in nodes):
                    raise ValueError(_no_match("configs", key.__name__, names))
            elif not isinstance(key, str) or not any(matches(key, name) for name in names):
                raise ValueError(_no_match("configs", key, names))

    def names_whole(self, name, layer):
        """Whether the arguments refer to a composite layer itself, not to the layers in it."""
        if any(matches(pattern, name) for pattern in self.skip):
            return True
        return any(
            isinstance(layer, key)
            if isinstance(key, type)
            else getattr(config, "weights", ()) is not None and matches(key, name)
            for key, config in self.configs.items()
        )

    def is_skipped(self, node):
        """Whether `skip` names the layer of the float model that `node` is or was made from."""
        name = (node.origin or node).name
        return any(matches(pattern, name) for pattern in self.skip)

    def config_of(self, node):
        """Returns `(key, QuantizeConfig)`: the config of a layer, and its key in `configs`.

        Both are None if there is no config or the layer is skipped; the key is None for the
        registered config of the layer's class. The two parts of a separable convolution get its
        config.
        """
        operation, origin = node.operation, node.origin or node
        if not isinstance(operation, keras.layers.Layer) or self.is_skipped(node):
            return None, None
        if isinstance(operation, QuantizedLayer | Quantizer):
            return None, None
        registered = registered_config(operation)
        key, config = self.given_config(node)
        if config is None:
            return None, registered
        if type(operation) is not type(origin.operation):  # a part names its own weights
            config = dataclasses.replace(config, weights=None, channel_axes=None)
        config = config if registered is None else config.over(registered)
        return (key, config) if config.weights else (None, None)

    def given_config(self, node):
        """Returns `(key, QuantizeConfig)` of the entry of `configs` for a node, or Nones."""
        origin = node.origin or node
        for key, config in self.configs.items():
            if isinstance(key, type):
                hit = isinstance(node.operation, key) or isinstance(origin.operation, key)
            else:
                hit = matches(key, origin.name)
            if hit:
                return key, translated(config, origin.operation)
        return None, None


@dataclasses.dataclass
class Decisions:
    """The result of `decide`.

    Attributes:
        kinds: {id(node): Kind}.
        demands: {id(operation): Demand or None}: the input width of every weighted layer and of
            every product of two tensors.
        weights: {id(operation): {attribute: WeightQuantizer}}.
        reasons: {layer name: why it stays float}.
        outputs: {tensor: ActivationQuantizer}, from the `output_quantizer`s of configs.
        rounding: ids of the operations that round their outputs themselves.
    """

    kinds: dict
    demands: dict
    weights: dict
    reasons: dict
    outputs: dict
    rounding: set


def decide(graph, options):
    """Decides the width of every layer of a canonical graph (rule 1 of the placement).

    Args:
        graph: The canonical `Graph`.
        options: The `WrapOptions`.

    Returns:
        `Decisions`.

    Raises:
        ValueError: If no layer is left to quantize.
    """
    configs, kinds, reasons, used = _classify(graph, options)
    outputs, keys = _output_quantizers(graph, options)
    for key in options.configs:
        if key not in used | keys:
            raise ValueError(_no_weights(key))
    if not configs:
        already = any(isinstance(node.operation, QuantizedLayer) for node in graph.nodes)
        raise ValueError(_nothing_to_quantize(graph, already))
    boundary = find_boundaries(graph, lambda node: _counts_as_weighted(node, kinds))
    squeeze_excite = find_squeeze_excite(graph, kinds)
    demands, weights = {}, {}
    for node in graph.nodes:
        if kinds[id(node)] is Kind.MATMUL:
            demands[id(node.operation)] = _demand(
                _PLAIN, options, options.a_bits, options.a_bits is not None
            )
        config = configs.get(id(node.operation))
        if config is None or id(node.operation) in demands:
            continue
        at_boundary = id(node.operation) in boundary
        w_bits, w_target = _width(config.w_bits, options.w_bits, at_boundary, options.boundary_bits)
        a_bits, a_target = _width(config.a_bits, options.a_bits, at_boundary, options.boundary_bits)
        if a_target and id(node.operation) in squeeze_excite:
            a_bits, a_target = 8, False
        demands[id(node.operation)] = _demand(config, options, a_bits, a_target)
        if w_bits is None:
            reasons[node.name] = _width_reason(config, at_boundary and options.w_bits is not None)
        else:
            weights[id(node.operation)] = {
                attribute: _weight_quantizer(
                    config, options, w_bits, w_target, node.name, attribute
                )
                for attribute in config.weights
            }
    if not (weights or outputs or any(demands.values())):
        raise ValueError(_all_in_float(graph, options))
    rounding = {
        id(node.operation)
        for node in graph.nodes
        if is_recurrent(node.operation)
        and set(weights.get(id(node.operation), ())) == set(PRODUCTS)
        and demands[id(node.operation)] is not None
    }
    return Decisions(kinds, demands, weights, reasons, outputs, rounding)


def _classify(graph, options):
    """Collects what `wrap`'s arguments and the registry say about each layer, before any width.

    Returns:
        `({id(operation): QuantizeConfig}, {id(node): Kind}, {layer name: why it stays float}, keys
        of `configs` that apply to a layer)`.
    """
    configs, kinds, reasons, used = {}, {}, {}, set()
    floats = float_tensors(graph)
    skipped = {id(node.operation) for node in graph.nodes if options.is_skipped(node)}
    refused = {id(node.operation): why for node in graph.nodes if (why := refusal(graph, node))}
    for node in graph.nodes:
        why = refused.get(id(node.operation))
        key, config = (None, None) if why else options.config_of(node)
        kind = kind_of(node.operation, has_config=config is not None)
        if id(node.operation) in skipped:
            kind = Kind.FLOAT
            reasons[node.name] = "skipped"
        elif config is not None:
            configs[id(node.operation)] = config
            used.add(key)
        elif kind is Kind.FLOAT and floats.intersection(node.outputs):
            reasons[node.name] = why or f"no quantize config for {type(node.operation).__name__}"
        kinds[id(node)] = kind
    return configs, kinds, reasons, used


def _output_quantizers(graph, options):
    """Returns {tensor: quantizer} of all `output_quantizer`s, and the keys of their configs."""
    outputs, keys, makers = {}, set(), {}
    for node in graph.nodes:
        if isinstance((node.origin or node).operation, keras.layers.Layer):
            makers.setdefault(id(node.origin), []).append(node)
    for nodes in makers.values():
        key, config = (
            (None, None) if options.is_skipped(nodes[0]) else options.given_config(nodes[0])
        )
        if config is None or config.output_quantizer is None:
            continue
        keys.add(key)
        is_by_table = len(nodes) > 1 and fixed_range(nodes[-1].operation) is not None
        outputs[nodes[-2 if is_by_table else -1].outputs[0]] = config.output_quantizer
    return outputs, keys


def _width(own, target, at_boundary, boundary_bits):
    """Returns (bits, has_target_width) for one side of a layer, inputs or weights."""
    if own != TARGET:
        return own, False
    if at_boundary and target is not None:
        return boundary_bits, False
    return target, target is not None


def _width_reason(config, at_boundary):
    if config.w_bits is None:
        return "w_bits is None in its config"
    return "boundary_bits is None" if at_boundary else "w_bits is None"


def _demand(config, options, bits, has_target_width):
    if bits is None:
        return None
    if config.activation_quantizer is not None:
        quantizer = get_activation_quantizer(config.activation_quantizer)
    else:
        quantizer = options.activation_quantizer if has_target_width else EIGHT_BITS.quantizer
    return Demand(bits, has_target_width, quantizer)


def _weight_quantizer(config, options, bits, has_target_width, layer, attribute):
    if config.weight_quantizer is not None:
        quantizer = get_weight_quantizer(config.weight_quantizer)
    else:
        quantizer = options.weight_quantizer if has_target_width else _FIXED_WIDTH_WEIGHTS
    return quantizer.copy(
        bits=bits,
        has_target_width=has_target_width,
        channel_axes=(-1,) if config.channel_axes is None else config.channel_axes,
        name=f"{layer}_{attribute}_quantizer",
    )


def _counts_as_weighted(node, kinds):
    """Layers with weights that stay float count too: skipping one does not move the boundary."""
    if kinds[id(node)] is Kind.WEIGHTED:
        return True
    is_float_layer = kinds[id(node)] is Kind.FLOAT and isinstance(
        node.operation, keras.layers.Layer
    )
    return is_float_layer and bool(node.operation.weights)


def _patterns(skip):
    if isinstance(skip, str):
        return [skip]
    if not isinstance(skip, list | tuple | set):
        raise TypeError(f"`skip` must be a layer name, a pattern or a list. {describe(skip=skip)}")
    return list(skip)


def _no_match(argument, pattern, names):
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return (
        f"Every pattern in `{argument}` must match a layer of the model. "
        f"Received: {argument}={pattern!r}. Layers: {shown}."
    )


def _no_weights(key):
    return (
        "Every key in `configs` must apply to a layer that is not skipped, not quantized already, "
        "and of which it is known what its weights are. "
        f"Received: configs={getattr(key, '__name__', key)!r}. Name them in "
        "`QuantizeConfig(weights=...)`."
    )


def _all_in_float(graph, options):
    received = describe(model=graph.name, boundary_bits=options.boundary_bits)
    return (
        "At least one layer must be quantized, and the widths of all layers of this model are None:"
        f" for the first and last, that is `boundary_bits`. {received} Pass boundary_bits=8, "
        "or give a layer a width in `configs`."
    )


def _nothing_to_quantize(graph, already):
    if already:
        return (
            "At least one layer must be left to quantize, and all layers of this model are "
            f"quantized already. Received: model={graph.name!r}. Train it, change widths with "
            "`set_bits`, or add new layers first."
        )
    kinds = sorted({type(node.operation).__name__ for node in graph.nodes})
    return (
        "At least one layer must have a quantize config. "
        f"Received: model={graph.name!r} with {', '.join(kinds)}. Register one with "
        "`configs.register_config`, or shorten `skip`."
    )
