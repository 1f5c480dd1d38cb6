"""The trained graph's roundings against a file that the tests have read and run themselves."""

import dataclasses

import numpy as np
from exact_arithmetic import INTERPOLATED, rounds_twice

from speq_keras.export.trained import TrainedGraph

# Float32 sums of the training graph at up to 255 steps, and the 20-bit factors of ADD.
NOISE_STEPS = 2e-3


@dataclasses.dataclass
class Comparison:
    """One rounding of the training graph and the codes in the file.

    Attributes:
        largest: How far a code of the file is from what training would round, in steps, at most.
        allowed: Half a step, plus half a step of the bias, plus noise.
    """

    largest: float
    allowed: float


def compare(model, folded, file, values, arrays):
    """Returns {tensor name: Comparison} for every rounding of the graph, and the trained outputs.

    Args:
        model: The `SPEQModel`.
        folded: `speq_keras.fold(model)`, for the names only.
        file: A `TFLiteFile`.
        values: What its `run_all` returned.
        arrays: The float inputs, a list.
    """
    results = _Results(file, values)
    found = {}
    for rounding in TrainedGraph(model).roundings(arrays, folded.folded.places, results):
        if hasattr(rounding, "tensor"):
            assert not rounding.problem, rounding.problem
            allowed = 0.5 + NOISE_STEPS + _operation_steps(file, file.numbers[rounding.tensor])
            largest = float(np.max(rounding.distances, initial=0.0))
            found[rounding.tensor] = Comparison(largest, allowed)
    return found, results.trained


class _Results:
    """A file's values as `TrainedGraph` asks for them; keeps the trained outputs it is shown."""

    def __init__(self, file, values):
        self.file, self.values, self.trained = file, values, []

    def codes(self, name):
        number = self.file.numbers[name]
        stored = self.values.get(number, self.file.tensors[number].data)
        return stored.astype("int32") - self.file.tensors[number].zero_point

    def output(self, number, trained):
        self.trained.append(trained)
        return self.values[self.file.outputs[number]]

    def step_of(self, number):
        return None


def _operation_steps(file, number):
    """Returns how far an operation's own rounding may move its result, in steps of the output.

    A bias is off by up to half of the distance between two biases. XNNPACK interpolates with
    weights that are multiples of 1/2048, each of both axes off by up to half of that. A second
    operation, for clipping or another rank, may stand behind.
    """
    makers = file.makers()
    while number in makers:
        op = makers[number]
        if op.name == "RESIZE_BILINEAR":
            return INTERPOLATED
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
            x, weights = (2, 1) if op.name == "TRANSPOSE_CONV" else (0, 1)
            unit = file.tensors[op.inputs[x]].scale[0] * file.tensors[op.inputs[weights]].scale
            steps = float(np.max(unit)) / file.tensors[op.outputs[0]].scale[0]
            return steps * (1.5 if rounds_twice(op, file.tensors[op.inputs[weights]]) else 0.5)
        if op.name not in ("MUL", "RESHAPE"):
            break
        number = op.inputs[0]
    return 0.0
