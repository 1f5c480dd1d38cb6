"""The integer networks of one trained model, for any storage."""

from speq_keras.export.folding import fold_graph, stored_copy
from speq_keras.export.lowering import lower


class IntegerNetworks:
    """Folds and lowers a model; layers without integer kernel are computed in float.

    Sometimes this is only discovered when operations are chosen: then the model is folded again.

    Args:
        model: The SPEQModel.
        graph: Its graph, from `read_graph`.
        grids: See `fold_graph`.
        forgives_ranges: Whether to ignore problems that depend on ranges, because the ranges are
            not final.
    """

    def __init__(self, model, graph, grids=None, *, forgives_ranges=False):
        self.model, self.graph, self.grids = model, graph, grids
        self.forgives_ranges = forgives_ranges
        self._folded = {}  # by the nodes known to have no integer kernel

    def of(self, storage, *, io="float32", softmax=True):
        """Returns `(folded, network, problems)`.

        Args:
            storage: See `export.storage`.
            io: See `lowering.lower`.
            softmax: False omits a final softmax or sigmoid.

        Returns:
            The `FoldedNetwork`, the `IntegerNetwork`, and the `Problem`s of layers without integer
            and float kernels; if there are any, neither network is usable.
        """
        known = {}
        while True:
            folded = stored_copy(self._fold(known), storage)
            if not softmax:
                folded.drop_last_tables()
            network, problems = lower(folded, io=io)
            problems = self._counting(problems)
            new = {id(problem.node): problem for problem in problems if problem.node is not None}
            if not new.keys() - known.keys():
                problems = [known.get(id(problem.node), problem) for problem in problems]
                problems = [*self._counting(folded.problems), *problems]
                return folded, network, list(dict.fromkeys(problems))  # steps repeat a problem
            known = {**new, **known}  # the first reason is kept

    def _counting(self, problems):
        return [p for p in problems if not (self.forgives_ranges and p.by_ranges)]

    def _fold(self, known):
        key = frozenset(known)
        if key not in self._folded:
            self._folded[key] = fold_graph(self.model, self.graph, self.grids, known.values())
        return self._folded[key]
