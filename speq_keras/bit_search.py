"""Chooses a width for every layer: measures the loss per layer, then optimizes in a budget."""

import dataclasses
import io
import itertools

import numpy as np

from speq_keras._checks import (
    check_bits,
    check_installed,
    check_number,
    check_speq_model,
    describe,
    require_calibrated,
)
from speq_keras.configs import QuantizeConfig
from speq_keras.data import evaluation_of
from speq_keras.files import check_path, write_safely
from speq_keras.graph import read_graph
from speq_keras.layers import QuantizedLayer
from speq_keras.progress import check_verbose, counted
from speq_keras.reporting import layer_rows
from speq_keras.text_tables import table

_IN_A_ROW = {"size_bytes": "bytes", "bit_ops": "bitops"}  # budget: field of a `LayerRow`


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitSearch:
    """The result of `search_bits`; prints as a table.

    Attributes:
        widths: The widths that were tried, in bits, in ascending order.
        loss: Loss of the network with all searched weights at the widest width.
        changes: {layer: change of the loss per width, if only its weights have that width}.
        costs: {layer: its cost, per width}.
        chosen: {layer: its width}.
        budget_name: "size_bytes" or "bit_ops".
        budget: The budget for all layers together.
        cost: Cost of the whole model with the chosen widths: `plan().totals`.
        quantizers: {layer: its weight quantizer}, for `configs`.
    """

    widths: tuple
    loss: float
    changes: dict
    costs: dict
    chosen: dict
    budget_name: str
    budget: float
    cost: float
    quantizers: dict = dataclasses.field(repr=False)

    @property
    def configs(self):
        """{layer: `QuantizeConfig`} for `wrap(float_model, configs=...)`."""
        # A pattern without dots also matches inside nested models; the first match wins.
        names = sorted(self.chosen, key=lambda name: -name.count("."))
        return {
            name: QuantizeConfig(w_bits=self.chosen[name], weight_quantizer=self.quantizers[name])
            for name in names
        }

    @property
    def predicted_change(self):
        """The sum of the changes of the chosen widths, as if layers did not interact."""
        return sum(self.changes[name][self.widths.index(w)] for name, w in self.chosen.items())

    def to_dict(self):
        """Returns plain dicts, lists and numbers."""
        names = ("widths", "loss", "changes", "costs", "chosen", "budget_name", "budget", "cost")
        return {**{name: getattr(self, name) for name in names}, "change": self.predicted_change}

    def __str__(self):
        cells = [("layer", *(f"{bits} bits" for bits in self.widths), "chosen")]
        for name, changes in self.changes.items():
            cells.append((name, *(f"{x:+.4f}" for x in changes), str(self.chosen[name])))
        lines = [
            f"Change of the loss ({self.loss:.4f} with all at {self.widths[-1]} bits), one layer "
            "at a time",
            *table(cells, left=1),
            f"{self._budget_line}, predicted change {self.predicted_change:+.4f}",
        ]
        return "\n".join(lines)

    @property
    def _budget_line(self):
        return f"{self.budget_name} {self.cost:,.10g} of {self.budget:,.10g}"

    def plot(self, path):
        """Draws the changes of all layers, with the chosen widths marked, into a PNG file.

        Raises:
            TypeError, ValueError: If `path` is not a .png file in an existing folder.
            RuntimeError: If matplotlib is not installed.
        """
        path = check_path(path, suffix=".png")
        check_installed("matplotlib", "`plot` draws with Matplotlib")
        from matplotlib.figure import Figure  # only drawing needs it

        names = list(self.changes)
        changes = np.array(list(self.changes.values()))
        chosen = [self.changes[name][self.widths.index(self.chosen[name])] for name in names]
        figure = Figure(figsize=(max(6, 0.3 * len(names) + 3), 4.5), layout="constrained")
        axes = figure.subplots()
        for column, bits in enumerate(self.widths):
            axes.plot(names, changes[:, column], "o-", label=f"{bits} bits", linewidth=0.8)
        axes.plot(names, chosen, "ks", label="chosen", markersize=10, fillstyle="none")
        # Linear around zero, where a change may be negative; logarithmic from a hundredth of the
        # largest on: the narrowest width would hide all others.
        linear = max(np.abs(changes).max() / 100, 1e-6)
        axes.set_yscale("symlog", linthresh=linear)
        axes.set_ylim(1.5 * changes.min() - linear / 2, 2 * changes.max() + linear / 2)
        axes.set(ylabel="change of the loss", title=self._budget_line)
        axes.tick_params("x", rotation=90)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper")
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120)
        write_safely(path, content.getvalue())


def search_bits(
    model,
    data,
    *,
    size_bytes=None,
    bit_ops=None,
    widths=(2, 3, 4, 8),
    batch_size=32,
    steps=None,
    verbose="auto",
):
    """Chooses the width of each layer's weights: the least loss within a budget.

    For each layer, the loss is measured with that layer's weights at each width, while all other
    weights have the widest one and the activations are clipped but not rounded. The choice
    minimizes the sum of these changes exactly (a knapsack problem), assuming that the changes add
    up. The search is deterministic. Layers whose weights have a fixed width (the first and the
    last) keep it, and activations keep theirs: one activation quantizer serves several layers.

    The model is not changed. To train the choice, wrap the float model again with the same
    arguments and `configs={**result.configs, **your_own}`.

    Args:
        model: A calibrated and compiled `SPEQModel`, before quantized training: weights trained for
            one width say little about another. Trained ranges of weights (`lsq`) are measured
            unchanged, at every width.
        data: `(inputs, targets)`, `(inputs, targets, sample_weight)`, a `tf.data.Dataset`, a
            `PyDataset` or a list of such batches. It must give the same examples on every pass, so
            a generator is not allowed.
        size_bytes: Budget of `plan().totals["bytes"]`, positive.
        bit_ops: Budget of `plan().totals["bitops"]`, positive; one of the two is given.
        widths: Widths to try in bits, 2 to 8, at least two.
        batch_size: Examples per batch, for arrays.
        steps: Batches per measurement; None takes all. Required for infinite data.
        verbose: "auto" shows a progress bar if it takes longer than two seconds; 1 and 2 as in
            `fit`; 0 shows nothing.

    Returns:
        A `BitSearch`: prints as a table; `configs`, `chosen`, `cost`, `plot(path)`.

    Raises:
        TypeError: If `model` is not a `SPEQModel`, or an argument has the wrong type.
        RuntimeError: If the model is not compiled or not calibrated.
        ValueError: If there is not exactly one budget, it is too small, there is nothing to choose,
            or the data do not fit the model or are infinite.

    Example:
        >>> import keras, speq_keras
        >>> keras.utils.set_random_seed(0)
        >>> layers = [keras.layers.Dense(8, activation="relu") for _ in range(4)]
        >>> float_model = keras.Sequential([keras.Input((4,)), *layers])
        >>> model = speq_keras.wrap(float_model, 3, 3, distillation=None)
        >>> x, y = np.random.rand(32, 4), np.random.rand(32, 8)
        >>> model.calibrate(x, verbose=0)
        >>> model.compile(loss="mse")
        >>> result = search_bits(model, (x, y), size_bytes=300, widths=(2, 4))
        >>> wrapped = speq_keras.wrap(float_model, 3, 3, distillation=None, configs=result.configs)
        >>> wrapped.plan().totals["bytes"] == result.cost <= 300
        True

    Reference: the sensitivity of a layer as in Dong et al., "HAWQ" (arXiv:1905.03696), measured
    rather than derived from the Hessian.
    """
    budget_name, budget = _check_budget(size_bytes, bit_ops)
    widths, verbose = _check_widths(widths), check_verbose(verbose)
    _check_model(model)
    arguments = evaluation_of(model, data, batch_size=batch_size, steps=steps)
    units = _units(model)
    bits_before = [(q, q.bits) for q in (*_searched(units), *model.target_quantizers)]
    try:
        costs, fixed = _costs(model, units, widths, budget_name)
        least = fixed + sum(min(row) for row in costs.values())
        if least > budget:
            raise ValueError(
                f"`{budget_name}` must be at least {least:,.10g}, the cost of the narrowest "
                f"widths. {describe(**{budget_name: budget})} Raise it, or add narrower "
                "widths."
            )
        if model.target_quantizers:
            model.set_bits(activations=None)
        loss, changes = _changes(model, units, widths, arguments, verbose)
    finally:
        for quantizer, bits in bits_before:
            quantizer.bits = bits
    picked = choose(list(changes.values()), list(costs.values()), budget - fixed)
    chosen = {name: widths[index] for name, index in zip(units, picked, strict=True)}
    return BitSearch(
        widths=widths,
        loss=loss,
        changes=changes,
        costs=costs,
        chosen=chosen,
        budget_name=budget_name,
        budget=budget,
        cost=fixed + sum(costs[name][i] for name, i in zip(units, picked, strict=True)),
        quantizers={
            name: next(iter(layers[0].quantizers.values())).copy(has_target_width=False)
            for name, layers in units.items()
        },
    )


def choose(losses, costs, budget):
    """Returns the index per layer that minimizes the sum of losses within the budget, exactly.

    Layer by layer, only those partial choices are kept that no other one beats in both sums, that
    fit the budget with the cheapest choices for the remaining layers, and that with the best of
    these are not worse than a greedy choice.

    Args:
        losses: One row per layer, one number per choice.
        costs: Likewise.
        budget: Largest sum of costs; at least the sum of the smallest ones.

    Example:
        >>> choose([[5.0, 1.0, 0.0], [2.0, 1.0, 0.0]], [[2, 4, 8], [2, 4, 8]], 8)
        [1, 1]
    """
    losses, costs = np.asarray(losses, "float64"), np.asarray(costs, "float64")
    later_cost = _sums_of_later(costs.min(axis=1))
    later_loss = _sums_of_later(losses.min(axis=1))
    reached = _greedy_loss(losses, costs, budget)
    total_loss, total_cost, trail = np.zeros(1), np.zeros(1), []
    for number, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        all_losses = np.add.outer(total_loss, loss).ravel()
        all_costs = np.add.outer(total_cost, cost).ravel()
        # By cost, then by loss, then by index: ties are broken the same way each time.
        order = np.lexsort((all_losses, all_costs))
        fits = all_costs[order] + later_cost[number] <= budget
        hopeful = all_losses[order] + later_loss[number] <= reached
        order = order[fits & hopeful]
        best_before = np.minimum.accumulate(np.append(np.inf, all_losses[order]))[:-1]
        order = order[all_losses[order] < best_before]
        total_loss, total_cost = all_losses[order], all_costs[order]
        trail.append(np.divmod(order, len(loss)))
    position, picked = int(np.argmin(total_loss)), []
    for before, choice in reversed(trail):
        picked.append(int(choice[position]))
        position = before[position]
    return picked[::-1]


def _sums_of_later(values):
    return np.append(np.cumsum(values[::-1])[::-1][1:], 0.0)


def _greedy_loss(losses, costs, budget):
    """Returns the loss of a choice that fits: from the cheapest, always the best gain per cost."""
    rows = np.arange(len(losses))
    picked = costs.argmin(axis=1)
    while True:
        saved = losses[rows, picked][:, None] - losses
        more = costs - costs[rows, picked][:, None]
        left = budget - costs[rows, picked].sum()
        useful = (saved > 0) & (more <= left)
        if not useful.any():
            # A small margin: the sums over the layers are formed in another order elsewhere.
            return losses[rows, picked].sum() + 1e-9 * np.abs(losses).sum()
        gain = np.where(useful, saved / np.maximum(more, 1e-12), -np.inf)
        layer, choice = np.unravel_index(gain.argmax(), gain.shape)
        picked[layer] = choice


def _units(model):
    """Returns {layer of the float model: [its quantized layers with the target width]}."""
    origins = {name: origin for name, origin, _ in model.provenance.origins}
    units = {}
    for layer in model.layers:
        if isinstance(layer, QuantizedLayer) and any(
            quantizer.has_target_width for quantizer in layer.quantizers.values()
        ):
            units.setdefault(origins.get(layer.name, layer.name), []).append(layer)
    if not units:
        raise ValueError(
            "`model` must have layers whose weights have the target width. Received: a model "
            f"without ({model.name!r}). Wrap the float model with a width as `w_bits`, and "
            "without configs that fix it."
        )
    return units


def _searched(units):
    return [q for layers in units.values() for layer in layers for q in layer.quantizers.values()]


def _set_width(layers, bits):
    for quantizer in _searched({"": layers}):
        quantizer.bits = bits


def _costs(model, units, widths, budget_name):
    """Returns ({layer: its cost per width}, cost of all other layers), from `plan`."""
    plans, graph = [], read_graph(model)
    for bits in widths:
        for layers in units.values():
            _set_width(layers, bits)
        rows = layer_rows(model, graph)
        plans.append({row.name: getattr(row, _IN_A_ROW[budget_name]) for row in rows})
    costs = {}
    for name, layers in units.items():
        if any(plans[0][layer.name] is None for layer in layers):
            raise ValueError(
                f"`{budget_name}` needs layers whose costs are known. Received: layer {name!r}, "
                "whose shapes are not. Give `size_bytes`, or a model with known input sizes."
            )
        costs[name] = [sum(plan[layer.name] for layer in layers) for plan in plans]
    total = sum(value for value in plans[0].values() if value)
    return costs, total - sum(row[0] for row in costs.values())


def _changes(model, units, widths, arguments, verbose):
    """Returns (loss with all layers at the widest width, {layer: change of it per width})."""
    *narrow, widest = widths
    for layers in units.values():
        _set_width(layers, widest)
    measured = [("", widest), *itertools.product(units, narrow)]
    losses = []
    for name, bits in counted(measured, len(measured), unit="measurement", verbose=verbose):
        _set_width(units.get(name, ()), bits)
        losses.append(_loss(model, arguments))
        _set_width(units.get(name, ()), widest)
    loss, *others = losses
    rows = np.reshape(others, (len(units), len(narrow))) - loss
    changes = {name: [*map(float, row), 0.0] for name, row in zip(units, rows, strict=True)}
    return loss, changes


def _loss(model, arguments):
    return float(model.evaluate(**arguments, verbose=0, return_dict=True)["loss"])


def _check_budget(size_bytes, bit_ops):
    given = {"size_bytes": size_bytes, "bit_ops": bit_ops}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            "Exactly one of `size_bytes` and `bit_ops` must be given. "
            f"{describe(size_bytes=size_bytes, bit_ops=bit_ops)}"
        )
    ((name, value),) = given.items()
    return name, check_number(name, value, low=0, low_open=True)


def _check_widths(widths):
    rule = "`widths` must hold at least two different widths from 2 to 8."
    if not isinstance(widths, list | tuple):
        raise TypeError(f"{rule} {describe(widths=widths)}")
    found = tuple(sorted({check_bits("widths", bits, optional=False) for bits in widths}))
    if len(found) < 2:
        raise ValueError(f"{rule} {describe(widths=widths)}")
    return found


def _check_model(model):
    check_speq_model("model", model)
    if not model.compiled:
        raise RuntimeError("The model must be compiled, with a loss. Call `model.compile` first.")
    require_calibrated("model", model)
