"""`SPEQModel.settle`: the trained model adopts the roundings of its file.

`predict` and the file differ in the rounding of biases to the grid of the sums, in adjusted scales,
and in results halfway between two codes, which float32 and integers round differently. All of these
are much smaller than a training step's changes, but low-bit networks amplify them: a trained
network that adopts them computes what its file computes.
"""

import dataclasses

import keras

from speq_keras._checks import check_choice
from speq_keras.export.fold import fold
from speq_keras.export.folding.weights import slope_of
from speq_keras.export.session import has_islands
from speq_keras.export.settle_biases import apply_move, move_of
from speq_keras.export.settle_scales import Scales, relations_of
from speq_keras.export.storage import STORAGES
from speq_keras.export.tflite.operations import OPS
from speq_keras.export.tflite.products import rounds_twice
from speq_keras.graph import read_graph
from speq_keras.operations import Kind, kind_of
from speq_keras.recurrent import take_over_biases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settlement:
    """The result of `SPEQModel.settle`; prints as a few lines.

    Attributes:
        storage: The storage whose biases the model now has.
        biases: {layer: the largest move of its bias, β, mean or offset, in output steps; for a
            layer with several calls, in the finest steps}.
        scales: {quantizer: its scale now, relative to before}.
        slopes: {leaky ReLU: its slope now, relative to before}.
        left: Sentences on what could not be settled: there `predict` and the file may differ.
    """

    storage: str
    biases: dict
    scales: dict
    left: tuple
    slopes: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        moved = max(self.biases.values(), default=0)
        line = (
            f"settled for storage={self.storage!r}: {len(self.biases)} biases moved, by up to "
            f"{moved:.2g} steps; {len(self.scales)} scales, by up to {_largest(self.scales)}"
        )
        if self.slopes:
            line += f"; {len(self.slopes)} slopes, by up to {_largest(self.slopes)}"
        return "\n".join([line, *(f"  left: {sentence}" for sentence in self.left)])


def _largest(factors):
    """Returns the largest of the moves of scales or slopes, in words."""
    changed = max((abs(factor - 1) for factor in factors.values()), default=0)
    return f"{changed:.2g} of themselves"


def settle(model, *, storage, begin):
    """Settles a model in place, and reports stages to `begin`; see `SPEQModel.settle`."""
    check_choice("storage", storage, STORAGES)
    quantizers = {quantizer.name: quantizer for quantizer in model.activation_quantizers}
    scales = Scales(quantizers)
    begin("scales")
    left = _settle_scales(model, storage, scales)
    begin("biases")
    biases = _settle_biases(model, storage)
    begin("remaining differences")
    # Once more, for the remaining differences.
    integer_model = fold(model, storage=storage)
    left += (
        _biases_left(integer_model.folded) + _kernels_left(integer_model) + _training_left(model)
    )
    return Settlement(
        storage=storage,
        biases=biases,
        scales=dict(scales.moved),
        left=tuple(dict.fromkeys(left)),
        slopes=dict(scales.slopes),
    )


def _settle_scales(model, storage, scales):
    integer_model = fold(model, storage=storage)
    folded, scales.twins = integer_model.folded, _twins(integer_model)
    for step in folded.steps:
        name = getattr(step.quantizer, "name", None)  # unquantized input codes have none
        is_input = step.kind == "quantize" and step.inputs[0] in folded.inputs
        if is_input and name is not None and name not in scales.prescribed:
            scales.settle_input(name)
    left = [
        f"{relation.name}: its results may lie halfway between two codes, since the scales that "
        "meet there are prescribed, equal, or also used elsewhere"
        for relation in relations_of(folded, _owners(folded), scales.prescribed)
        if not scales.settle(relation)
    ]
    nudged = fold(model, storage=storage).folded.places.scales
    return left + [f"{name}: its scale is prescribed" for name in scales.take_over(nudged)]


def _twins(integer_model):
    """Returns {name of a quantizer: names of those that make the same codes of its codes}."""
    made, twins = {}, {}
    for index, tensor in integer_model.folded.places.tensors.items():
        quantizer = integer_model.graph.tensors[index].producer.operation
        made.setdefault(tensor, {})[quantizer.name] = None
    for names in made.values():
        for name in names:
            twins.setdefault(name, {}).update(names)
    return {name: [x for x in names if x != name] for name, names in twins.items()}


def _owners(folded):
    """Returns {id(value): name of the quantizer whose grid it has}."""
    owners = {}
    for step in folded.steps:
        if step.quantizer is not None:
            owners[id(step.output)] = step.quantizer.name
        elif step.output.grid is not None and step.inputs:
            source = step.inputs[0]
            if source.grid == step.output.grid:
                owners[id(step.output)] = owners.get(id(source))
    return owners


def _settle_biases(model, storage):
    """Returns {layer: how far its bias moved, in steps}, for the call with the finest steps."""
    integer_model = fold(model, storage=storage)
    moved, finest = {}, {}
    for step in _steps_with_bias(integer_model.folded):
        move, scale = move_of(step), float(step.output.grid.scale)
        name = step.nodes[0].operation.name if step.nodes else ""
        finest[name] = min(scale, finest.get(name, scale))
        if move is not None and name not in moved and apply_move(step, move):
            moved[name] = move.largest * scale
    take_over_biases(integer_model.graph)
    return {name: distance / finest[name] for name, distance in moved.items()}


def _steps_with_bias(folded):
    return [step for step in folded.steps if step.weights is not None and slope_of(step) is None]


def _biases_left(folded):
    return [
        f"{step.nodes[0].name}: its bias is rounded by up to {move.largest:.2g} steps; no layer "
        "there has a bias or an offset to move, or another call of the layer has moved it"
        for step in _steps_with_bias(folded)
        if (move := move_of(step)) is not None
    ]


def _kernels_left(integer_model):
    """Returns sentences on kernels that round in their own way."""
    left, tensors = [], integer_model.network.tensors
    for step in integer_model.folded.steps:
        name = step.nodes[0].name if step.nodes else step.name
        if step.is_float:
            continue
        if step.kind == "average_pool_2d" and step.options["padding"] != "valid":
            left.append(f"{name}: an average with padding 'same' rounds halves away from zero")
        elif step.kind == "resize_bilinear" and not _is_exact(step):
            left.append(f"{name}: it interpolates with weights of 11 bits")
    for node in integer_model.network.nodes:
        weights = tensors[node.inputs[1]] if len(node.inputs) > 1 else None
        off_centre = node.kind == "batch_matmul" and weights.zero_point
        if off_centre or (OPS[node.kind].has_bias and rounds_twice(node.kind, weights)):
            left.append(f"{node.layer}: its kernel rounds twice")
    if has_islands(integer_model.network):
        left.append("layers in float: sums of floats depend on their order")
    return left + [note for note in integer_model.notes if "almost constant" in note]


def _is_exact(step):
    """Whether an interpolation's weights have few bits."""
    pairs = zip(step.inputs[0].shape[1:-1], step.options["size"], strict=True)
    return all(after in (before, 2 * before, 4 * before, 8 * before) for before, after in pairs)


def _training_left(model):
    """Returns sentences on what the training graph computes in its own way."""
    left = []
    graph = read_graph(model)
    for node in graph.nodes:
        maker = graph.tensors[node.inputs[0]].producer if node.inputs else None
        is_average = maker is not None and kind_of(maker.operation) is Kind.SAME_GRID
        if kind_of(node.operation) is Kind.QUANTIZER and is_average and not node.kwargs:
            left.append(
                f"{node.name}: halves of averages are decided by float32 in models of 0.1.0; wrap "
                "the float model again and copy the weights"
            )
    layers = [getattr(layer, "layer", layer) for layer in model.layers]
    dtypes = {layer.compute_dtype for layer in layers if isinstance(layer, keras.layers.Layer)}
    if dtypes - {"float32", "float64"}:
        left.append(f"predict computes in {', '.join(sorted(dtypes - {'float32', 'float64'}))}")
    return left
