"""Which ratios of scales XNNPACK takes; outside of them this arithmetic does not hold."""

import numpy as np

# kind: smallest and largest ratio, the largest not included. Found by probing ai-edge-litert 2.3.
# Sums, products and the rest then fall back to builtin kernels; a file with a convolution or matrix
# product beyond them does not load.
LIMITS = {
    "conv_2d": (0, 2**8),
    "depthwise_conv_2d": (0, 2**8),
    "fully_connected": (0, 2**8),
    "transpose_conv": (0, 2**8),
    "batch_matmul": (0, 2**8),
    "add": (2**-10, 2**8),
    "sub": (2**-10, 2**8),
    "mul": (2**-16, 2**8),
    "leaky_relu": (2**-8, 2**7),
    "quantize": (2**-8, 2**7),
}


def scale_ratios(node, tensors):
    """Returns the float32 ratios, input scale to output scale, that `LIMITS` speaks about.

    Args:
        node: `network.Node`.
        tensors: {name: `network.Tensor`}.
    """
    scales = [tensors[name].scale for name in (*node.inputs, node.output) if name]
    if node.kind not in LIMITS or scales[0] is None or tensors[node.output].scale is None:
        return np.zeros(0, np.float32)
    scales = [None if scale is None else np.asarray(scale, np.float32) for scale in scales]
    if node.kind in ("add", "sub"):
        return np.array([scales[0] / scales[-1], scales[1] / scales[-1]], np.float32)
    if node.kind == "leaky_relu":
        ratio = scales[0] / scales[-1]
        return np.array([ratio, abs(ratio * np.float32(node.options["alpha"]))], np.float32)
    if node.kind == "quantize":
        return np.atleast_1d(scales[0] / scales[-1])
    return np.atleast_1d(scales[0] * scales[1] / scales[-1])


def is_within_limits(node, tensors):
    """Returns whether XNNPACK takes the scales of this node."""
    ratios = scale_ratios(node, tensors)
    low, high = LIMITS.get(node.kind, (0, np.inf))
    return bool(np.all((ratios >= low) & (ratios < high)))
