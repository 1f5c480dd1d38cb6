"""Zeros around codes, which the next convolution may add itself."""

import dataclasses

from speq_keras.export.folding.steps import Value
from speq_keras.operations import name_of

_CONVOLUTIONS = ("Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D")


@dataclasses.dataclass(eq=False)
class Padded:
    """Codes surrounded by zeros that are not written yet: the reader may pad itself."""

    source: Value
    paddings: list
    node: object
    shape: tuple
    written: Value | None = None

    @property
    def grid(self):
        """The grid of the codes; it contains 0, which means zero."""
        return self.source.grid


def is_same_padding(layer, padded):
    """Whether an unpadded convolution on padded codes equals one with padding "same"."""
    if name_of(layer) not in _CONVOLUTIONS or layer.padding != "valid":
        return False
    paddings = padded.paddings
    spatial = paddings[1:-1]
    if any(pair != (0, 0) for pair in (paddings[0], paddings[-1])):
        return False
    if len(spatial) != len(layer.kernel_size):
        return False
    rows = zip(
        padded.source.shape[1:-1],
        layer.kernel_size,
        layer.strides,
        layer.dilation_rate,
        spatial,
        strict=True,
    )
    for size, kernel, stride, dilation, pair in rows:
        reach = (kernel - 1) * dilation + 1
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + reach - size, 0)
        if pair != (total // 2, total - total // 2):
            return False
    return True
