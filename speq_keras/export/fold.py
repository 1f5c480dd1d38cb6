"""`speq_keras.fold`: the trained model as an integer network, in Python."""

import dataclasses

import keras
import numpy as np

from speq_keras._checks import (
    check_bool,
    check_choice,
    check_speq_model,
    describe,
    require_calibrated,
)
from speq_keras._version import __version__
from speq_keras.data import Inputs, inputs_of, read
from speq_keras.export.folding import FoldedNetwork
from speq_keras.export.folding.steps import refusal
from speq_keras.export.networks import IntegerNetworks
from speq_keras.export.reference import run_steps
from speq_keras.export.storage import STORAGES
from speq_keras.export.tflite import simulate
from speq_keras.export.tflite.network import IntegerNetwork
from speq_keras.graph import Graph
from speq_keras.recurrent import read_unrolled

IO_TYPES = ("float32", "int8", "uint8")


@dataclasses.dataclass(eq=False)
class FoldedModel:
    """A trained model in integers, as stored in a TFLite file.

    Attributes:
        folded: The `FoldedNetwork`: the operations between two roundings form one step.
        network: The `IntegerNetwork`: one node per operation of the file.
        storage: See `fold`.
        graph: The trained model's `Graph`, with every step of recurrent layers.
        keys: The keys of the trained model's input dict, in the order of its inputs, or ().

    `print(folded)` shows one line per step.
    """

    folded: FoldedNetwork
    network: IntegerNetwork
    storage: str
    graph: Graph | None = None
    keys: tuple = ()

    def predict(self, inputs, *, steps=None):
        """Returns what the exported file computes on LiteRT's default runtime, bit for bit.

        Args:
            inputs: Like the data of `SPEQModel.calibrate`; float32 unless folded with another `io`,
                whose codes are used as they are.
            steps: Number of batches; None takes all. Required for infinite data.

        Returns:
            An array, or a list of arrays if the model has several outputs.

        Raises:
            TypeError, ValueError: If the inputs are missing, do not fit, or are not finite.
        """
        return simulate.predict(self.network, inputs, steps=steps, keys=self.keys)

    def predict_float(self, inputs, *, steps=None):
        """Returns what the folded network, with rounded biases, computes in float arithmetic.

        Args:
            inputs: As in `predict`; real values for any `io`.
            steps: As in `predict`.
        """
        values = self.folded.inputs
        expected = Inputs(
            names=tuple(self.network.input_names),
            shapes=tuple(tuple(value.shape)[1:] for value in values),
            dtypes=tuple(value.dtype for value in values),
            keys=self.keys,
        )
        batches = read(inputs, expected, name="inputs", steps=steps)
        return simulate.joined([run_steps(self.folded, batch.x) for batch in batches])

    def evaluate(self, x, y=None, *, steps=None):
        """Returns the top-1 accuracy of `predict`, 0 to 1.

        Args:
            x: Inputs; without `y`, data of any kind with labels: `(inputs, labels)`, or a data set
                of such batches.
            y: Labels, as numbers or one-hot; None if `x` contains them.
            steps: As in `predict`.

        Raises:
            TypeError, ValueError: As in `predict`, or if labels are missing or do not fit.
        """
        return simulate.evaluate(self.network, x, y, steps=steps, keys=self.keys)

    @property
    def notes(self):
        """Sentences about what folding did: dead channels, clipped biases, ..."""
        return self.network.notes

    def __str__(self):
        lines = [f"{self.folded.name}: {len(self.folded.steps)} steps"]
        for step in self.folded.steps:
            grid = step.output.grid
            reads = ", ".join(value.name for value in step.inputs)
            codes = f"{grid.low} ... {grid.high} x {grid.scale:.4g}" if grid else "float"
            clip = "" if step.activation == "none" else f" {step.activation}"
            lines.append(f"{step.name}: {step.kind}({reads}){clip} -> {codes}")
        return "\n".join([*lines, *self.notes])


def fold(model, *, storage="int8", io="float32", softmax=True):
    """Turns a calibrated SPEQModel into the integer network that `export_tflite` writes.

    BatchNormalization is folded into per-channel scales, weights become integers (times a factor
    that fills their container), biases become 32-bit integers, and every tensor gets a scale and a
    zero point at which stock int8 kernels compute 2- to 8-bit codes.

    Args:
        model: A calibrated `SPEQModel`.
        storage: "int8", "int4", "int2" or "smallest"; see `SPEQModel.export_tflite`.
        io: Type of inputs and outputs: "float32", "int8" or "uint8".
        softmax: False omits a final softmax or sigmoid: the outputs are logits.

    Returns:
        A `FoldedModel`.

    Raises:
        TypeError: If `model` is not a SPEQModel.
        ValueError: If an argument is not allowed, sizes are unknown, a width is float, weights
            are NaN, or layers cannot be computed with integers: all of them are named.
        RuntimeError: If the model is not calibrated.

    Example:
        >>> import numpy as np, speq_keras
        >>> dense = [keras.layers.Dense(4) for _ in range(3)]
        >>> network = keras.Sequential([keras.Input((4,)), *dense])
        >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
        >>> x = np.random.rand(8, 4).astype("float32")
        >>> model.calibrate(x, verbose=0)
        >>> fold(model).predict(x).shape
        (8, 4)

    Reference: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference" (arXiv:1712.05877), Eq. 1-7.
    """
    check_choice("storage", storage, STORAGES)
    check_choice("io", io, IO_TYPES)
    softmax = check_bool("softmax", softmax)
    check_model(model)
    graph = read_unrolled(model)
    folded, network, problems = IntegerNetworks(model, graph).of(storage, io=io, softmax=softmax)
    if problems:
        raise ValueError(refusal(folded.name, problems))
    network.metadata.update(metadata_of(model, storage))
    return FoldedModel(folded, network, storage, graph, inputs_of(model).keys)


def metadata_of(model, storage):
    """Returns {name: text}: the metadata in a file about the model it was made from."""
    widths = {
        "speq_keras_version": __version__,
        "storage": storage,
        "weight_bits": _widths(model.weight_quantizers),
        "activation_bits": _widths(model.activation_quantizers),
    }
    return {name: str(value) for name, value in widths.items()}


def _widths(quantizers):
    return " ".join(str(bits) for bits in sorted({q.bits for q in quantizers} - {None}))


def check_model(model):
    """Raises an error if a model cannot be folded, for reasons that are quick to check."""
    check_speq_model("model", model)
    require_calibrated("model", model)
    reason = unfoldable_reason(model) or float_widths_reason(model)
    if reason is not None:
        raise ValueError(reason)


def float_widths_reason(model):
    """Returns why a model with float activations cannot be exported, or None."""
    for quantizer in model.activation_quantizers:
        if quantizer.bits is None:
            return (
                "All widths must be 2 to 8 bits. Received: activations in float at "
                f"{quantizer.name!r}. Call model.set_bits(activations=...) first."
            )
    return None


def unfoldable_reason(model):
    """Returns why a model cannot be folded, regardless of its layers, or None."""
    for variable in model.weights:
        if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
            return (
                f"Weights must be finite. Received: NaN or infinity in {variable.path!r} of model="
                f"{model.name!r}. Training diverged: go back to an earlier state, and train with a "
                "lower learning rate."
            )
    for tensor in model.inputs:
        if any(size is None for size in tensor.shape[1:]):
            return (
                "Input sizes must be known, up to the batch. "
                f"{describe(input=tensor.name, shape=tuple(tensor.shape))} Build the float model "
                "with a fixed input shape, wrap it in the same way, and take weights and ranges "
                "over: fixed.set_weights(model.get_weights())."
            )
    return None
