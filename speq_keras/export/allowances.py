"""How far a code may be from what the trained network rounds there.

Half a step; half a unit of the channel's own bias, unless the bias is on the grid of the sums; what
the kernel adds; and the noise of float32.
"""

import numpy as np

from speq_keras.export.tflite.arithmetic.products import rounds_twice

# Float32 sums of the training graph at up to 255 steps, and XNNPACK's 20-bit factors of sums: a
# code of 255 may be off by 2 · 255 / 2^20 steps before it is rounded.
NOISE_STEPS = 2e-3
# Float kernels sum in another order; a code after a float island may lie this much further away.
ISLAND_STEPS = 255 * 2.0**-13
WITH_BIAS = ("conv_2d", "depthwise_conv_2d", "fully_connected", "transpose_conv")


def is_settled(folded):
    """Whether every bias of a `FoldedNetwork` is on the grid of its sums."""
    return all(np.all(_settled(step)) for step in folded.steps if step.weights is not None)


def _settled(step):
    return step.weights.is_settled(step.output.grid.scale)


def allowances(folded, network, makers):
    """Returns {tensor name: the largest distance, in steps, that roundings explain}.

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
    """Returns the node that computes a tensor, before reshapes and second clippings; or None."""
    while name in makers and makers[name].kind in ("reshape", "mul"):
        node = makers[name]
        if node.kind == "mul" and not node.inputs[1].endswith("/one"):
            break
        name = node.inputs[0]
    return makers.get(name)


def _units(network, makers, name):
    """Returns the distance of neighbouring sums, in steps of the output: a vector over channels."""
    node = _source(makers, name)
    if node is None or len(node.inputs) < 2 or node.kind not in WITH_BIAS:
        return 0.0
    x, weights, output = (
        network.tensors[part] for part in (node.inputs[0], node.inputs[1], node.output)
    )
    return np.float64(x.scale) * weights.scale / np.float64(output.scale)


def _kernel_steps(network, makers, name):
    """Returns how far the kernel's own rounding may move a result, in steps of the output.

    Kernels outside of XNNPACK round sums twice, first to a fraction of a step that is as fine as
    the accumulator. XNNPACK interpolates with weights that are multiples of 1/2048, each of both
    axes off by up to half of that. Float kernels sum in another order.
    """
    node = _source(makers, name)
    if node is None:
        return 0.0
    output = network.tensors[node.output]
    if node.kind == "resize_bilinear":
        return (output.high - output.low) * 2.0**-11
    if node.kind == "quantize" and node.inputs[0] not in network.inputs:
        return ISLAND_STEPS
    if node.kind == "batch_matmul" and network.tensors[node.inputs[1]].zero_point:
        x, y = (network.tensors[part] for part in node.inputs)
        return float(x.scale * y.scale / output.scale)
    if node.kind in WITH_BIAS and rounds_twice(node.kind, network.tensors[node.inputs[1]]):
        return float(np.max(_units(network, makers, name)))
    return 0.0
