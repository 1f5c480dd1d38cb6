"""What has to be true of a random network: the check, and its verdict."""

import dataclasses
import os
import pathlib
import re
import tempfile
import time
import traceback
import warnings

import keras
import numpy as np
from exact_arithmetic import TFLiteFile, bias_steps, double_rounding_steps
from keras import ops
from random_drawing import draw

import speq_keras

EXAMPLES = 24


@dataclasses.dataclass
class Result:
    seed: int
    status: str
    step: str
    details: str
    description: str
    seconds: float = 0.0  # of a core

    @property
    def is_fault(self):
        return self.status in ("wrong", "foreign")

    def __str__(self):
        return f"seed {self.seed}: {self.status} at {self.step}: {self.details}\n{self.description}"


# ---- the check ----------------------------------------------------------------------------------


class _Found(Exception):
    """The verdict on a network, from wherever it is found."""

    def __init__(self, status, details):
        super().__init__(details)
        self.status, self.details = status, details


def examples(network, model):
    """Returns the inputs of the check: as in calibration, and some beyond it."""
    rng = np.random.default_rng(network.seed + 2)
    arrays = []
    for tensor in model.inputs:
        shape = (EXAMPLES, *tensor.shape[1:])
        if tensor.dtype != "float32":
            most = 11 if tensor.dtype == "int32" else 256  # rows of a table, or an image
            arrays.append(rng.integers(0, most, shape).astype(tensor.dtype))
        else:
            x = rng.normal(size=shape) + network.data["shift"]
            if "pixels" in tensor.name:
                x = rng.uniform(0, 255, shape)
            x[-6:] *= 1.5  # not seen in calibration
            arrays.append((x * network.data["scale"]).astype("float32"))
    return arrays


def check(seed):
    """Returns the `Result` of a seed."""
    return check_network(draw(seed))


def check_network(network):
    """Returns the `Result` of a `Network`."""
    start, step = time.process_time(), _Step()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        try:
            status, details = "exported", _judge(network, step, folder)
        except _Found as found:
            status, details = found.status, found.details
        except Exception as error:
            status, details = _verdict_on(error, step, network)
    keras.backend.clear_session()
    seconds = round(time.process_time() - start, 2)
    return Result(network.seed, status, step.name, details, str(network), seconds)


class _Step:
    """Where a check is, and what it knows of the model."""

    name, model, plan = "draw", None, None


def _judge(network, step, folder):
    step.name = "build"
    float_model = network.build()
    x = examples(network, float_model)
    try:
        wanted = _outputs(float_model(_as_given(x), training=False))
    except Exception as error:  # such as a mirror of more than there is: Keras finds out here
        raise _Found("refused", f"drawn without meaning: Keras itself: {error}") from error
    if not all(np.isfinite(y).all() and np.abs(y).max() < 1e20 for y in wanted):
        network.odd, network.data["scale"] = [], 1.0
        float_model = network.build()
        x = examples(network, float_model)
        wanted = _outputs(float_model(_as_given(x), training=False))
    if not all(np.isfinite(y).all() and np.abs(y).max() < 1e20 for y in wanted):
        raise _Found("refused", "drawn without meaning: the float model is not finite")
    step.model = float_model
    step.name = "wrap"
    model = step.model = speq_keras.wrap(float_model, **network.wrap)
    step.name = "wrapped in float"
    _check_float(model, x, wanted)
    step.name = "plan"
    step.plan = model.plan()
    str(step.plan)
    step.name = "calibrate"
    model.calibrate(_as_given([a[:-6] for a in x]), verbose=0)
    step.name = "train"
    _train(model, x, wanted, network.seed)
    step.name = "save"
    before = _outputs(model(_as_given(x), training=False))
    model.save(f"{folder}/model.keras")
    loaded = keras.saving.load_model(f"{folder}/model.keras")
    after = _outputs(loaded(_as_given(x), training=False))
    if not all(np.array_equal(x, y, equal_nan=True) for x, y in zip(before, after, strict=True)):
        raise _Found("wrong", "another model was loaded than was saved")
    if not all(np.isfinite(y).all() for y in after):
        raise _Found("refused", "drawn without meaning: training diverged")
    step.name = "settle"
    left = _settle(model, network, x, before) if network.settles else ("not settled",)
    step.name = "export"
    model.export_tflite(f"{folder}/model.tflite", data=_data(network, x), **network.export)
    if _is_refused(step.plan, network):
        raise _Found("wrong", "plan() refuses a model that is exported")
    step.name = "file"
    return _check_file(model, network, x, f"{folder}/model.tflite", is_settled=not left)


def _settle(model, network, x, before):
    """Settles a model, which moves it by no more than roundings do; returns what is left."""
    if not hasattr(model, "settle"):
        return ("there is no settling yet",)
    settlement = model.settle(storage=network.export["storage"])
    # What the file rounds a bias by is taken over: many steps, where its sums are coarse.
    runs = noisy_outputs(model, x, network.seed, shift=bias_shifts(model, settlement.biases))
    after = _outputs(model.predict_on_batch(_as_given(x)))
    for place, (one, other) in enumerate(zip(before, after, strict=True)):
        compare_output(f"settled {place}", other, one, [run[place] for run in runs])
    return settlement.left


def bias_shifts(model, biases):
    """Returns {name of a quantizer: the largest of the moved biases whose result it rounds}."""
    from speq_keras.graph import read_graph

    shifts, behind, found = {}, {}, set()
    for node in read_graph(model).nodes:
        names = set().union(*(behind.get(index, set()) for index in node.inputs))
        if isinstance(node.operation, speq_keras.quantizers.ActivationQuantizer):
            shift = max((biases[name] for name in names), default=0.0)
            shifts[node.operation.name] = max(shift, shifts.get(node.operation.name, 0.0))
            found, names = found | names, set()
        elif node.operation.name in biases:
            names = names | {node.operation.name}
        behind.update((index, names) for index in node.outputs)
    # A layer that is unrolled or broken up for the file has its quantizers inside.
    other = max((biases[name] for name in set(biases) - found), default=0.0)
    return {q.name: max(shifts.get(q.name, 0.0), other) for q in model.activation_quantizers}


def _as_given(x):
    return x[0] if len(x) == 1 else x


def _outputs(outputs):
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    return [keras.ops.convert_to_numpy(y).astype("float64") for y in outputs]


def _size(array):
    return max(float(np.abs(array).max(initial=0)), 1e-30)


def _data(network, x):
    return _as_given(x) if network.seed % 2 else None


def _check_float(model, x, wanted):
    """Without its quantizers the wrapped graph is the float model, up to the order of sums."""
    bits = [(quantizer, quantizer.bits) for quantizer in model.weight_quantizers]
    for quantizer, _ in bits:
        quantizer.bits = None
    for quantizer in model.activation_quantizers:
        quantizer.observer = lambda quantizer, inputs: None
    made = _outputs(model(_as_given(x), training=False))
    for quantizer in model.activation_quantizers:
        quantizer.observer = None
    for quantizer, width in bits:
        quantizer.bits = width
    for place, (one, other) in enumerate(zip(made, wanted, strict=True)):
        # Float32 sums of some hundred terms in another order, through some layers.
        if one.shape != other.shape or np.abs(one - other).max() > 2e-3 * _size(other):
            off = (
                np.abs(one - other).max() / _size(other) if one.shape == other.shape else one.shape
            )
            raise _Found("wrong", f"output {place} wrapped in float is off by {off} of its size")


def _train(model, x, wanted, seed):
    sizes = [max(float(np.std(y)), 1e-6) for y in wanted]
    optimizer = keras.optimizers.SGD(1e-2, clipnorm=0.05)
    losses = ["mse"] * len(wanted) if len(wanted) > 1 else "mse"
    model.compile(optimizer, losses, run_eagerly=bool(seed % 4))
    rng = np.random.default_rng(seed + 3)
    targets = [y + s * rng.normal(size=y.shape) for y, s in zip(wanted, sizes)]  # noqa: B905
    targets = [target[:8].astype("float32") for target in targets]
    batch = _as_given([a[:8] for a in x]), _as_given(targets)
    try:
        loss = model.train_on_batch(*batch)
    except ValueError as error:
        if "distillation" not in str(error):
            raise
        model.distillation = None  # as the sentence says where there is nothing to draw
        loss = model.train_on_batch(*batch)
    if not np.isfinite(np.asarray(loss, "float64")).all():
        raise _Found("wrong", f"the loss of the first step is {loss}")


# ---- the file -----------------------------------------------------------------------------------


def run_file(path, arrays):
    """Returns what LiteRT makes of float inputs, as floats."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    batch = int(inputs[0]["shape"][0])
    made = [[] for _ in outputs]
    for first in range(0, len(arrays[0]), batch):
        for detail, array in zip(inputs, arrays, strict=True):
            part = _encoded(array[first : first + batch], detail)
            interpreter.set_tensor(detail["index"], part)
        interpreter.invoke()
        for part, detail in zip(made, outputs, strict=True):
            part.append(_decoded(interpreter.get_tensor(detail["index"]), detail))
    return [np.concatenate(parts) for parts in made]


def _encoded(array, detail):
    scale, zero_point = detail["quantization"]
    if not scale:
        return array.astype(detail["dtype"])
    low, high = np.iinfo(detail["dtype"]).min, np.iinfo(detail["dtype"]).max
    codes = np.rint(array.astype("float64") / np.float32(scale)) + zero_point
    return np.clip(codes, low, high).astype(detail["dtype"])


def _decoded(array, detail):
    scale, zero_point = detail["quantization"]
    array = array.astype("float64")
    return (array - zero_point) * scale if scale else array


# What roundings can explain is measured, because a network of 2 bits makes much of one code: the
# trained graph is run again with every quantizer's input moved by up to this part of a step. That
# is more than halves of a bias's unit and nudged scales amount to, and at 8 bits what is allowed in
# all is 3 % of the outputs' deviation in the median of 150 networks, 7 % in nine of ten: less than
# two swapped channels (50 % and more) or a scale off by a tenth (10 %).
NOISE_STEPS = 0.05
NOISE_RUNS = 4
# The file may be this many times further from `predict` than the furthest of these runs.
ALLOWED_TIMES = 2.0
# Of a settled model, this part of the outputs may differ: ties that one example of some has.
ALLOWED_SETTLED = 0.02


def noisy_outputs(model, x, seed, steps=NOISE_STEPS, shift=0.0):
    """Returns the trained graph's outputs with noise at every quantizer, a list for every run.

    `steps` are for every value on its own, `shift` for all values of a channel alike: a number, or
    {name of a quantizer: one}.
    """
    rng = np.random.default_rng(seed)
    shifts = shift if isinstance(shift, dict) else {}

    def noisy(quantizer, inputs):
        scale = float(quantizer.grid()[0])
        noise = rng.uniform(-steps, steps, tuple(inputs.shape))
        channels = shifts[quantizer.name] if shifts else shift
        noise = (noise + rng.uniform(-channels, channels, inputs.shape[-1:])) * scale
        return quantizer.quantized(inputs + ops.cast(noise, inputs.dtype))

    for quantizer in model.activation_quantizers:
        quantizer.observer = noisy
    runs = [_outputs(model(_as_given(x), training=False)) for _ in range(NOISE_RUNS)]
    for quantizer in model.activation_quantizers:
        quantizer.observer = None
    return runs


def _check_file(model, network, x, path, *, is_settled):
    made = run_file(path, x)
    wanted = _outputs(model.predict_on_batch(_as_given(x)))
    # Sums that are rounded twice move by up to their distance: much, in files of few bits.
    file = TFLiteFile(pathlib.Path(path).read_bytes())
    twice, shift = double_rounding_steps(file), 0.0 if is_settled else bias_steps(file)
    runs = noisy_outputs(model, x, network.seed, NOISE_STEPS + twice, shift)
    details = []
    for place, y in enumerate(wanted):
        last = _last_function(model, place)
        is_cut = last is not None and not network.export["softmax"]
        file = _outputs(last(made[place]))[0] if is_cut else made[place]
        noise = [run[place] for run in runs]
        # Softmax, sigmoid and tanh at the end are rounded in the file alone, to 1/256 or 1/128.
        rounded = 0.0 if last is None else (1 / 128 if last is ops.tanh else 1 / 256)
        details.append(compare_output(place, y, file, noise, rounded))
        # Softmax and sigmoid end at 255/256 in the file, tanh at 127/128.
        y = y if last is None else np.minimum(y, 1 - rounded)
        off = float(np.mean(np.abs(file - y) > max(0.51 * rounded, _size(y) / 2550)))
        if is_settled and not is_cut and off > ALLOWED_SETTLED:
            raise _Found("wrong", f"settled output {place}: {off:.1%} of the values differ")
    return "; ".join(details)


def compare_output(place, wanted, file, noise, rounded=0.0):
    """Compares one output; what roundings explain is measured on the trained graph itself.

    `rounded` is the distance of codes to which the file alone rounds the output.
    """
    if file.shape != wanted.shape:
        raise _Found("wrong", f"output {place} has shape {file.shape}, not {wanted.shape}")
    spread = max(float(np.std(wanted)), 1e-2 * _size(wanted))  # a constant has no deviation
    off = _rms(file - wanted) / spread
    explained = max(_rms(run - wanted) for run in noise) / spread
    # Slack: one step of a grid of 8 bits whose end is the largest output.
    slack = max(_size(wanted) / 255, rounded) / spread
    allowed = ALLOWED_TIMES * explained + slack
    text = (
        f"output {place} is off by {off:.4f} std (noise explains {explained:.4f}, "
        f"slack {slack:.4f})"
    )
    if not off <= allowed:
        raise _Found("wrong", text)
    return text


def _rms(array):
    return float(np.sqrt(np.mean(np.square(array))))


def _last_function(model, place):
    """Returns the softmax, sigmoid or tanh that an output ends in, or None."""
    from speq_keras.graph import read_graph

    graph = read_graph(model)
    node = graph.tensors[graph.output_indices[place]].producer
    while node is not None and isinstance(
        node.operation, speq_keras.quantizers.ActivationQuantizer
    ):
        node = graph.tensors[node.inputs[0]].producer
    operation = getattr(node, "operation", None)
    functions = {"softmax": ops.softmax, "sigmoid": ops.sigmoid, "tanh": ops.tanh}
    name = getattr(getattr(operation, "activation", None), "__name__", "")
    return functions.get(name) or functions.get(type(operation).__name__.lower())


# ---- refusals -----------------------------------------------------------------------------------


def _verdict_on(error, step, network):
    """Returns (status, details) for an exception."""
    text = str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    named = f"{type(error).__name__}: {text} ({os.path.basename(where.filename)}:{where.lineno})"
    if isinstance(error, RuntimeError) and "defect" in text:
        return "foreign", f"defect: {named}"
    if step.name not in ("wrap", "settle", "export") or not isinstance(
        error, ValueError | TypeError
    ):
        return "foreign", named
    own_file = f"{os.sep}speq_keras{os.sep}" in where.filename
    if not own_file or "Received" not in text or "\n" in text.strip():
        return "foreign", f"unclear: {named}"
    if step.name in ("settle", "export"):
        quoted = set(re.findall(r"'([^']*)'", text))
        if not quoted & {layer.name for layer in step.model.layers + step.model.operations}:
            return "foreign", f"names no layer: {named}"
        if not _is_announced(step, network):
            return "foreign", f"not announced by plan(): {named}"
    return "refused", text


def _is_announced(step, network):
    """Whether `plan()` said it before calibration, or says it now where ranges decide."""
    if not hasattr(step.plan, "file"):
        return True
    return any(_is_refused(plan, network) for plan in (step.plan, step.model.plan()))


def _is_refused(plan, network):
    """Whether a plan says that the export will be refused."""
    file = getattr(plan, "file", None)
    if file is None:
        return False
    return file.is_refused or network.export["storage"] in file.only_refused_as


def reason(details):
    """Returns a refusal without the names in it, for a histogram."""
    found = re.findall(r"\((\w+)\): (.*?)(?:;|\. Replace|$)", details)
    if found:
        return f"{found[0][0]}: {found[0][1]}"[:100]
    return re.sub(r"'[^']*'|\d+", "_", details.split("Received")[0])[:100]
