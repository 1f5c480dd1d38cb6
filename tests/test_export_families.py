"""The families of keras.applications, exported with random weights that keep their codes alive.

Checked node by node on the file's own codes, against exact arithmetic and against the training
graph; see `test_export_layers`. Images are as small as a family takes; ImageNet's weights are not
needed for any of it.
"""

import collections
import dataclasses
import tempfile

import keras
import numpy as np
import pytest
from exact_arithmetic import TFLiteFile, distances
from trained_graph import compare

import speq_keras
from speq_keras.layers import QuantizedLayer
from speq_keras.quantizers import ActivationQuantizer
from speq_keras.quantizers.histogram import Histogram

CLASSES = 100
PROVED = 4  # images for the comparisons of all tensors
SEEN = 50  # images for the classes


@dataclasses.dataclass
class Exported:
    """An exported network; `values` are what the file computed for the first `PROVED` images."""

    model: object
    report: object
    folded: object
    file: TFLiteFile
    values: dict
    distances: dict
    comparison: dict
    classes: np.ndarray


# Name: (side of the images in pixels, activation quantizer). What the others have stands in one of
# these, too; `examples/benchmarks/applications.py` exports all networks.
FAMILIES = {
    "VGG16": (32, "pact"),
    "ResNet50": (32, "pact"),
    "MobileNet": (32, "pact"),
    "MobileNetV2": (32, "lsq_plus"),
    "MobileNetV3Small": (32, "lsq_plus"),
    "EfficientNetB0": (32, "lsq_plus"),
    "DenseNet121": (32, "pact"),
    "InceptionResNetV2": (75, "pact"),
    "Xception": (71, "pact"),
    "NASNetMobile": (32, "pact"),
}


def images(rng, count, side):
    """Returns images with large and small structures, so that neighbouring pixels are alike."""
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(-(-side // 4), 1).repeat(-(-side // 4), 2)
    noise = rng.normal(0, 30, (count, side, side, 3))
    return np.clip(coarse[:, :side, :side] + noise, 0, 255).astype("float32")


def make_lively(network, rng):
    """Gives BatchNormalization slopes and shifts of both signs, and biases."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            if layer.scale:
                signs = rng.choice([1, 1, 1, -1], layer.gamma.shape)
                layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape) * signs)
            layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))


def spread_gates(network, x):
    """Gives the layers of squeeze-excite blocks outputs of mean 0 and deviation 1.

    Nothing normalizes them, and gates that are all 0 or all 1 would be dead.
    """
    gates = [
        layer
        for layer in network.layers
        if ("se_" in layer.name or "squeeze_excite" in layer.name) and hasattr(layer, "kernel")
    ]
    for _ in range(2 if gates else 0):
        inputs = keras.Model(network.inputs[0], [layer.input for layer in gates])(x, training=True)
        for layer, read in zip(gates, inputs, strict=True):  # all of them are 1×1 convolutions
            output = np.asarray(read) @ np.asarray(layer.kernel)[0, 0] + np.asarray(layer.bias)
            factor = 1 / max(output.std(), 1e-3)
            layer.kernel.assign(layer.kernel * factor)
            layer.bias.assign((layer.bias - output.mean()) * factor)


def spread_classes(model, x):
    """Takes what all images have in common out of the logits, and gives them a deviation of 1.5.

    Random networks see the same class everywhere, and a softmax of large logits is 0 nearly always.
    """
    layer = next(x for x in reversed(model.layers) if isinstance(x, QuantizedLayer)).layer
    quantizer = next(x for x in reversed(model.layers) if isinstance(x, ActivationQuantizer))
    logits = np.asarray(keras.Model(model.inputs[0], quantizer.input)(x)).reshape(len(x), -1)
    centred = logits - logits.mean(axis=0)
    factor = 1.5 / centred.std()
    layer.kernel.assign(layer.kernel * factor)
    layer.bias.assign((layer.bias - logits.mean(axis=0)) * factor)
    quantizer.calibrate(Histogram((centred * factor).reshape(-1)))


def build(name):
    side, quantizer = FAMILIES[name]
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(2)
    network = getattr(keras.applications, name)(
        input_shape=(side, side, 3), weights=None, classes=CLASSES
    )
    make_lively(network, rng)
    x = images(rng, SEEN, side)
    spread_gates(network, x[:8])
    model = speq_keras.wrap(network, 3, 3, activation_quantizer=quantizer, seed=0)
    model.calibrate(x[:16], training=True, verbose=0)
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in network.layers):
        # Ranges are not measured again: they would be those of the network without rounding, which
        # these statistics do not normalize, and random networks amplify that.
        model.reestimate_batch_norm(x[:16])
    spread_classes(model, x[:16])
    return model, x


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request):
    model, x = build(request.param)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/m.tflite"
        report = model.export_tflite(path, data=x[:PROVED], batch_size=PROVED)
        with open(path, "rb") as stream:
            file = TFLiteFile(stream.read())
    folded = speq_keras.fold(model)
    values = file.run_all(x[:PROVED])
    comparison, _ = compare(model, folded, file, values, [x[:PROVED]])
    classes = np.argmax(file.run(x)[0], axis=-1)
    return Exported(
        model, report, folded, file, values, distances(file, values), comparison, classes
    )


def code_tensors(exported):
    """Yields (name, stored values) of what operations write, the float output apart."""
    for op in exported.file.operations:
        for number in op.outputs:
            if exported.file.tensors[number].type == "int8":
                yield exported.file.tensors[number].name, exported.values[number]


def test_all_tensors_but_the_ends_are_integers(exported):
    ends = {*exported.file.inputs, *exported.file.outputs}
    types = {t.type for i, t in enumerate(exported.file.tensors) if i not in ends}
    assert types <= {"int8", "int32"}


def test_every_code_is_the_nearest_to_the_exact_result(exported):
    far = {name: pair for name, pair in exported.distances.items() if pair[0] > pair[1]}
    assert not far


def test_every_code_is_the_nearest_to_what_was_trained(exported):
    far = {
        name: (c.largest, c.allowed)
        for name, c in exported.comparison.items()
        if c.largest > c.allowed
    }
    assert not far


def test_every_rounding_of_the_graph_is_compared(exported):
    assert len(exported.comparison) >= 14


def test_every_tensor_uses_three_codes_or_more(exported):
    few = {name: len(np.unique(x)) for name, x in code_tensors(exported) if len(np.unique(x)) < 3}
    assert not few


def test_no_code_is_taken_more_than_95_percent_of_the_time(exported):
    shares = {}
    for name, x in code_tensors(exported):
        (_, count), *_ = collections.Counter(x.reshape(-1).tolist()).most_common(1)
        shares[name] = count / x.size
    assert not {name: share for name, share in shares.items() if share > 0.95}


def test_images_get_ten_classes_or_more(exported):
    assert len(np.unique(exported.classes)) >= 10


def test_the_proof_of_the_export_holds(exported):
    assert exported.report.proof.holds
    assert exported.report.proof.mismatches == 0
