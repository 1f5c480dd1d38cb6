"""How far a code may be from the value that the trained network rounds to it.

Half a step; half a unit of the channel's bias, unless the bias is on the grid of the sums; the
kernel's own rounding; and float32 noise.
"""

import numpy as np

from speq_keras.export.tflite.operations import OPS, slack_steps
from speq_keras.export.tflite.products import unit_steps

# Float32 sums of the training graph at up to 255 steps, and XNNPACK's 20-bit factors of sums: a
# code of 255 may be off by 2 · 255 / 2^20 steps before rounding.
NOISE_STEPS = 2e-3
# Float kernels sum in another order; a code after a float island may be off by this much more.
ISLAND_STEPS = 255 * 2.0**-13


def is_settled(folded):
    """Whether every bias of a `FoldedNetwork` is on the grid of its sums."""
    return all(np.all(_settled(step)) for step in folded.steps if step.weights is not None)


def _settled(step):
    return step.weights.is_settled(step.output.grid.scale)


def allowances(folded, network, makers):
    """Returns {tensor name: the largest distance, in steps, that rounding explains}.

    Args:
        folded: The `FoldedNetwork`.
        network: The `IntegerNetwork`.
        makers: {tensor name: the node that makes it}.
    """
    settled = {step.name: _settled(step) for step in folded.steps if step.weights is not None}
    found = {}
    for name in makers:
        allowed = 0.5 + NOISE_STEPS + _kernel_steps(network, makers, name)
        if name in settled:
            allowed = allowed + np.where(settled[name], 0, 0.5 * _units(network, makers, name))
        found[name] = np.asarray(allowed, "float32")
    return found


def _source(makers, name):
    """Returns the node that computes a tensor, before reshapes and second clippings, or None."""
    while name in makers and makers[name].kind in ("reshape", "mul"):
        node = makers[name]
        if node.kind == "mul" and not node.inputs[1].endswith("/one"):
            break
        name = node.inputs[0]
    return makers.get(name)


def _units(network, makers, name):
    """Returns the distance between neighbouring sums in output steps, a vector over channels."""
    node = _source(makers, name)
    if node is None or not OPS[node.kind].has_bias:
        return 0.0
    return unit_steps(node, network.tensors)


def _kernel_steps(network, makers, name):
    """Returns how far the kernel's own rounding may move a result, in output steps."""
    node = _source(makers, name)
    if node is None:
        return 0.0
    if node.kind == "quantize" and node.inputs[0] not in network.inputs:
        return ISLAND_STEPS
    return slack_steps(node, network.tensors)
