"""Settings and provenance of a model, and the text in which files keep them."""

import dataclasses
import json

import keras
import pytest

import speq_keras
from speq_keras import OscillationDamping, precision
from speq_keras.provenance import Provenance
from speq_keras.settings import SettingsText, TrainingSettings

pytestmark = pytest.mark.every_backend

# As version 0.1.0 wrote it into a .keras file, when both were one class.
OLD_TEXT = """{
    "distillation": "kl", "temperature": 3.0,
    "teacher_precision": {
        "module": "speq_keras.precision", "class_name": "UniformMix",
        "config": {"low_bits": 3, "high_bits": 6}, "registered_name": "speq_keras>UniformMix"},
    "speq_weight": 0.25, "teacher_distillation": "cosine", "seed": 11,
    "reasons": [["second", "skipped"]],
    "origins": [["first", "first", null], ["separable_depthwise", "separable", [0]]],
    "owners": [["x_quantizer", [[["base.dense"], []]]],
        ["norm_quantizer", [[[], ["norm", "first"]]]]],
    "float_config": "{}", "output_names": ["last"], "damping": {"strength": 0.1, "steps": 10}}"""
SETTINGS = TrainingSettings(
    distillation="kl",
    temperature=3.0,
    teacher_precision=precision.UniformMix(3, 6),
    speq_weight=0.25,
    teacher_distillation="cosine",
    seed=11,
    damping=OscillationDamping(strength=0.1, steps=10),
)
PROVENANCE = Provenance(
    reasons=(("second", "skipped"),),
    origins=(("first", "first", None), ("separable_depthwise", "separable", (0,))),
    owners=(
        ("x_quantizer", ((("base.dense",), ()),)),
        ("norm_quantizer", (((), ("norm", "first")),)),
    ),
    float_config="{}",
    output_names=("last",),
)


def model():
    dense = [keras.layers.Dense(4, name=name) for name in ("a", "b", "c")]
    return speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2, seed=5)


def test_a_text_of_the_first_version_is_read():
    assert SettingsText.read(OLD_TEXT) == (SETTINGS, PROVENANCE)


def test_a_text_is_written_as_the_first_version_wrote_it():
    assert json.loads(SettingsText.of(SETTINGS, PROVENANCE)) == json.loads(OLD_TEXT)


@pytest.mark.parametrize(
    "name", ["damping", "owners", "output_names", "teacher_distillation", "teacher_precision"]
)
def test_what_a_text_lacks_has_its_default(name):
    values = json.loads(OLD_TEXT)
    del values[name]
    settings, provenance = SettingsText.read(json.dumps(values))
    found = {**vars(settings), **vars(provenance)}
    fields = dataclasses.fields(TrainingSettings) + dataclasses.fields(Provenance)
    assert found[name] == {field.name: field.default for field in fields}[name]


def test_settings_and_provenance_share_no_name():
    names = [f.name for cls in (TrainingSettings, Provenance) for f in dataclasses.fields(cls)]
    assert len(set(names)) == len(names)


def test_a_file_keeps_both(tmp_path):
    wrapped = model()
    wrapped.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert (loaded.settings, loaded.provenance) == (wrapped.settings, wrapped.provenance)
    assert loaded.provenance.origins[0] == ("a", "a", None)


def test_one_quantizer_carries_the_text_in_a_model_around_another_one_too():
    inner, inputs = model(), keras.Input((4,))
    x = inner(keras.layers.Dense(4, name="before")(inputs))
    outer = speq_keras.wrap(keras.Model(inputs, keras.layers.Dense(2, name="after")(x)), 2, 2)
    for wrapped in (inner, outer):
        quantizers = (*wrapped.activation_quantizers, *wrapped.weight_quantizers)
        carriers = [q for q in quantizers if q.model_settings is not None]
        assert carriers == [quantizers[0]]
