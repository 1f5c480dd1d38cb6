"""The origin of a `SPEQModel`: immutable, plain values."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What `wrap` knew about the float model, and what became of its layers.

    Args:
        reasons: ((layer name, why it stays float), ...).
        origins: ((layer name, layer of the float model, indices of its weights or None), ...).
        owners: ((activation quantizer, ((layers of which any one freezes its range, layers that
            must all be frozen), ...)), ...), each with an entry for each tensor; see
            `wrapping.owners`.
        float_config: The float model's config as JSON text, or None.
        output_names: The output names of the float model, used for targets, losses and metrics.
    """

    reasons: tuple = ()
    origins: tuple = ()
    owners: tuple = ()
    float_config: str | None = None
    output_names: tuple = ()

    @classmethod
    def of_graph(cls, graph, **others):
        """Makes the provenance of a `QuantizedGraph`; `others` are fields that it lacks."""
        origins = graph.canonical.origins.items()
        return cls(
            reasons=tuple(graph.reasons.items()),
            origins=tuple((name, origin.layer, origin.indices) for name, origin in origins),
            owners=tuple(
                (name, tuple(dataclasses.astuple(each) for each in places))
                for name, places in graph.owners.items()
            ),
            **others,
        )

    def to_dict(self):
        """Returns values that JSON can represent."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        """Makes provenance from `to_dict`'s values, ignoring others; missing ones get defaults."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: _as_tuples(values[name]) for name in names & values.keys()})


def _as_tuples(data):
    return tuple(map(_as_tuples, data)) if isinstance(data, list | tuple) else data
