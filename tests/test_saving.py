"""Saved and loaded, cloned and exported: nothing is lost, and what cannot be kept is said."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import speq_keras
from speq_keras import SPEQModel, precision
from speq_keras.quantizers import LSQ, LSQPlus

pytestmark = pytest.mark.every_backend

ROOT = pathlib.Path(__file__).parents[1]
X = np.random.default_rng(0).normal(size=(8, 5, 4)).astype("float32")
Y = np.arange(8) % 3
COMPILE = {
    "loss": "sparse_categorical_crossentropy",
    "run_eagerly": keras.backend.backend() == "tensorflow",  # elsewhere far slower than compiled
}


def float_network(seed=1):
    """A network with random state in three layers."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5, 4), name="x")
    x = layers.LSTM(4, dropout=0.3, seed=1, name="lstm")(inputs)
    x = layers.Dense(6, activation="relu", name="first")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5, seed=2, name="dropout")(x)
    x = layers.Dense(6, activation="relu", name="second")(x)
    x = layers.Dense(6, activation="relu", name="third")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="last")(x), name="net")


def wrapped(**arguments):
    """Every setting away from its default."""
    arguments = {
        "distillation": "kl",
        "temperature": 3.0,
        "teacher_precision": precision.UniformMix(3, 6),
        "weight_quantizer": LSQ(per_channel=True),
        "activation_quantizer": LSQPlus(weight_decay=1e-3),
        "seed": 11,
        **arguments,
    }
    return speq_keras.wrap(float_network(), 3, 2, **arguments)


def trained(steps=2, **arguments):
    model = wrapped(**arguments)
    model.calibrate(X, verbose=0)
    model.compile(keras.optimizers.Adam(0.01), **COMPILE)
    for _ in range(steps):
        model.train_on_batch(X, Y)
    return model


def state_of(model):
    """All variables but those of metrics: weights, ranges, widths, seeds, optimizer."""
    own = [v for layer in model.layers for v in layer.variables]
    if getattr(model, "optimizer", None) is not None:
        own += model.optimizer.variables
    if isinstance(model, SPEQModel):
        own.append(model.draw_seed.state)
    return [np.array(ops.convert_to_numpy(variable.value)) for variable in own]


def assert_equal_states(mine, theirs):
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


# ---- a fresh process -------------------------------------------------------------------------

# What a user runs who has nothing but the file.
SCRIPT = """
    import json, sys
    import keras
    import numpy as np
    import speq_keras

    x, y = np.load("x.npy"), np.load("y.npy")
    model = keras.saving.load_model("model.keras")

    def states(model):
        variables = [v for layer in model.layers for v in layer.variables]
        variables += [*model.optimizer.variables, model.draw_seed.state]
        return [np.array(keras.ops.convert_to_numpy(v.value)) for v in variables]

    found = {
        "class": type(model).__name__,
        "settings": model.activation_quantizers[0].model_settings,
        "calibrated": model.is_calibrated,
        "plan": model.plan().to_dict(),
        "quantizers": [
            json.dumps(q.get_config(), sort_keys=True)
            for q in (*model.activation_quantizers, *model.weight_quantizers)
        ],
    }
    np.savez("loaded.npz", *states(model))
    np.save("outputs.npy", model(x))
    model.train_on_batch(x, y)
    np.savez("stepped.npz", *states(model))
    json.dump(found, open("found.json", "w"))
"""


def run_fresh(script, folder):
    """Runs a script in a process of its own, which sees the package and nothing of the tests."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A model, saved after two steps; what a fresh process found; and the unbroken third step."""
    folder = tmp_path_factory.mktemp("resumed")
    model = trained()
    model.save(folder / "model.keras")
    np.save(folder / "x.npy", X)
    np.save(folder / "y.npy", Y)
    found = {
        "state": state_of(model),
        "outputs": np.array(model(X)),
        "plan": model.plan().to_dict(),
        "settings": model.activation_quantizers[0].model_settings,
        "quantizers": [
            json.dumps(q.get_config(), sort_keys=True)
            for q in (*model.activation_quantizers, *model.weight_quantizers)
        ],
    }
    model.train_on_batch(X, Y)
    found["stepped"] = state_of(model)
    run_fresh(SCRIPT, folder)
    return found, folder


def fresh(resumed):
    return json.loads((resumed[1] / "found.json").read_text())


def arrays(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


def test_a_fresh_process_loads_a_speq_model(resumed):
    assert fresh(resumed)["class"] == "SPEQModel"


def test_a_fresh_process_finds_all_settings(resumed):
    assert fresh(resumed)["settings"] == resumed[0]["settings"]


def test_a_fresh_process_finds_the_quantizers_arguments(resumed):
    assert fresh(resumed)["quantizers"] == resumed[0]["quantizers"]


def test_a_fresh_process_finds_the_ranges_calibrated(resumed):
    assert fresh(resumed)["calibrated"]


def test_a_fresh_process_makes_the_same_plan(resumed):
    assert fresh(resumed)["plan"] == resumed[0]["plan"]


def test_a_fresh_process_finds_weights_ranges_optimizer_and_seeds(resumed):
    assert_equal_states(arrays(resumed[1] / "loaded.npz"), resumed[0]["state"])


def test_a_fresh_process_computes_the_same(resumed):
    np.testing.assert_array_equal(np.load(resumed[1] / "outputs.npy"), resumed[0]["outputs"])


def test_a_step_in_a_fresh_process_is_the_step_of_the_unbroken_run(resumed):
    assert_equal_states(arrays(resumed[1] / "stepped.npz"), resumed[0]["stepped"])


OWN_QUANTIZER = """
    import keras
    from keras import ops

    from speq_keras.quantizers import MinMax, register_quantizer


    class Halves(MinMax):
        def __init__(self, *, step=0.5, **kwargs):
            super().__init__(**kwargs)
            self.step = step

        def round_to_grid(self, weights, bits):
            return ops.round(weights / self.step) * self.step

        def get_config(self):
            return {**super().get_config(), "step": self.step}


    register_quantizer("halves", Halves)
"""


def test_a_quantizer_of_ones_own_is_found_where_it_is_registered(tmp_path):
    (tmp_path / "own_quantizer.py").write_text(textwrap.dedent(OWN_QUANTIZER))
    run_fresh(
        """
        import numpy as np, keras, own_quantizer, speq_keras
        from keras import layers
        x = inputs = keras.Input((4,))
        for _ in range(3):
            x = layers.Dense(4, activation="relu")(x)
        quantizer = own_quantizer.Halves(step=0.25)
        model = speq_keras.wrap(keras.Model(inputs, x), 2, 2, weight_quantizer=quantizer)
        model.save("own.keras")
        np.save("before.npy", model(np.ones((1, 4))))
        """,
        tmp_path,
    )
    run_fresh(
        """
        import numpy as np, keras, own_quantizer, speq_keras
        model = keras.saving.load_model("own.keras")
        np.save("after.npy", model(np.ones((1, 4))))
        np.save("step.npy", [q.step for q in model.weight_quantizers if hasattr(q, "step")])
        """,
        tmp_path,
    )
    np.testing.assert_array_equal(np.load(tmp_path / "after.npy"), np.load(tmp_path / "before.npy"))
    assert np.load(tmp_path / "step.npy").tolist() == [0.25]


# ---- weights files ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.weights.h5"
    model = trained()
    model.save_weights(path)
    return model, path


def without_optimizer(model):
    """What a weights file holds."""
    variables = [v for layer in model.layers for v in layer.variables] + [model.draw_seed.state]
    return [np.array(ops.convert_to_numpy(variable.value)) for variable in variables]


def test_a_weights_file_holds_weights_ranges_widths_and_seeds(weights_file):
    model, path = weights_file
    again = wrapped(seed=0)
    again.load_weights(path)
    assert_equal_states(without_optimizer(again), without_optimizer(model))


def test_a_weights_file_holds_that_the_ranges_are_calibrated(weights_file):
    again = wrapped()
    again.load_weights(weights_file[1])
    assert again.is_calibrated


def test_a_weights_file_holds_the_widths_of_its_model(tmp_path):
    model = wrapped()
    model.set_bits(weights=5, activations=4)
    model.save_weights(tmp_path / "five.weights.h5")
    again = wrapped()
    again.load_weights(tmp_path / "five.weights.h5")
    row = again.plan().row("second")
    assert (row.w_bits, row.a_bits) == (5, 4)


# ---- in one process --------------------------------------------------------------------------


def test_widths_set_at_run_time_are_saved(tmp_path):
    model = wrapped()
    model.set_bits(weights=5, activations=None)
    model.save(tmp_path / "m.keras")
    row = keras.saving.load_model(tmp_path / "m.keras").plan().row("second")
    assert (row.w_bits, row.a_bits) == (5, None)


CHANGES = {
    "distillation": "dot",
    "temperature": 1.5,
    "teacher_precision": precision.Fixed(6),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_changed_after_wrapping_is_saved(name, tmp_path):
    model = wrapped()
    setattr(model, name, CHANGES[name])
    model.save(tmp_path / "m.keras")
    assert getattr(keras.saving.load_model(tmp_path / "m.keras"), name) == CHANGES[name]


PRECISIONS = [
    precision.Bernoulli(0.25, 7),
    precision.UniformMix(2, 5),
    precision.Fixed(4),
    precision.Greedy(6),
]


@pytest.mark.parametrize("teacher_precision", PRECISIONS, ids=lambda p: type(p).__name__)
def test_every_teacher_precision_is_saved(teacher_precision, tmp_path):
    wrapped(teacher_precision=teacher_precision).save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.teacher_precision == teacher_precision


def test_reasons_of_float_layers_are_saved(tmp_path):
    wrapped(skip=["lstm", "second"]).save(tmp_path / "m.keras")
    plan = keras.saving.load_model(tmp_path / "m.keras").plan()
    assert plan.float_layers == {"lstm": "skipped", "second": "skipped"}


@pytest.fixture(scope="module")
def with_teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "m.keras"
    model = wrapped(teacher=float_network(2), speq_weight=0.25, teacher_distillation="dot")
    model.compile("sgd", **COMPILE)
    model.save(path)
    return keras.saving.load_model(path)


def test_the_weight_of_an_external_teacher_is_saved(with_teacher):
    assert with_teacher.speq_weight == 0.25
    assert with_teacher.settings.teacher_distillation == "dot"


def test_an_external_teacher_is_not_saved(with_teacher):
    assert with_teacher.teacher is None


def test_training_without_the_external_teacher_that_is_missing_is_refused(with_teacher):
    with pytest.raises(RuntimeError, match="external teacher, which is not saved with it. Set"):
        with_teacher.train_on_batch(X, Y)


def test_a_layer_with_several_inputs_is_loaded(tmp_path):
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(10, 4)(inputs)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    float_model = keras.Model(inputs, layers.Dense(2)(x))
    names = ("query_dense.kernel", "output_dense.kernel")
    config = speq_keras.QuantizeConfig(weights=names)
    model = speq_keras.wrap(float_model, 2, 2, configs={"attention": config})
    model.save(tmp_path / "m.keras")
    tokens = np.array([[1, 2, 3, 4, 5]])
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(tokens), model(tokens))


# ---- clones ----------------------------------------------------------------------------------


def test_a_clone_is_a_speq_model():
    assert type(keras.models.clone_model(wrapped())) is SPEQModel


def test_a_clone_keeps_the_settings():
    model = wrapped()
    assert keras.models.clone_model(model).settings == model.settings


def test_a_clone_keeps_settings_that_were_changed():
    model = wrapped()
    model.distillation = "dot"
    assert keras.models.clone_model(model).distillation == "dot"


def test_a_clone_has_the_widths_that_the_model_has_now():
    model = wrapped()
    model.set_bits(weights=6, activations=5)
    row = keras.models.clone_model(model).plan().row("second")
    assert (row.w_bits, row.a_bits) == (6, 5)


def test_widths_of_a_clone_change_alone():
    model = wrapped()
    clone = keras.models.clone_model(model)
    clone.set_bits(weights=6)
    assert model.plan().row("second").w_bits == 3


def test_settings_of_a_clone_change_alone():
    model = wrapped()
    clone = keras.models.clone_model(model)
    clone.temperature = 7.0
    assert model.temperature == 3.0


def test_a_clone_with_the_same_weights_computes_the_same():
    model = wrapped()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(X), model(X))


def test_a_clone_trains():
    clone = keras.models.clone_model(wrapped())
    clone.calibrate(X, verbose=0)
    clone.compile("sgd", **COMPILE)
    assert np.isfinite(clone.train_on_batch(X, Y)[0])


# ---- float checkpoints -----------------------------------------------------------------------


def nested_network(seed=1):
    """A separable convolution, and layers in a nested model."""
    keras.utils.set_random_seed(seed)
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.SeparableConv2D(4, 3, activation="relu", name="separable"),
            layers.BatchNormalization(name="norm"),
        ],
        name="inner",
    )
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(3, 1, activation="swish", name="first")(inputs)
    x = layers.GlobalAveragePooling2D(name="mean")(inner(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="last")(x), name="net")


def stacked_network(seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="relu", name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(3, name="last"),
        ]
    )


def adapted_network(seed=1):
    """An adapted Normalization, which computes with what it made of its weights."""
    keras.utils.set_random_seed(seed)
    normalization = layers.Normalization(name="normalization")
    normalization.adapt(np.random.default_rng(seed).normal(5.0, 3.0, (100, 4)).astype("float32"))
    inputs = keras.Input((4,), name="x")
    x = layers.Dense(4, activation="relu", name="first")(normalization(inputs))
    return keras.Model(inputs, layers.Dense(2, name="last")(x), name="net")


NETWORKS = pytest.mark.parametrize(
    "make", [float_network, nested_network, stacked_network, adapted_network]
)


def quantized(model):
    return speq_keras.wrap(model, 2, 2, distillation=None)


def example(model):
    return np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")


@NETWORKS
def test_the_float_model_has_the_weights_of_the_one_that_was_wrapped(make):
    float_model = make()
    assert_equal_states(
        quantized(float_model).float_model().get_weights(), float_model.get_weights()
    )


@NETWORKS
def test_the_float_model_computes_what_the_one_that_was_wrapped_does(make):
    float_model = make()
    inputs = example(float_model)
    again = quantized(float_model).float_model()
    np.testing.assert_array_equal(again(inputs), float_model(inputs))


def test_the_float_model_has_the_trained_weights():
    model = trained()
    kernel = model.float_model().get_layer("second").kernel
    np.testing.assert_array_equal(kernel, model.get_layer("second").layer.kernel)


def test_the_float_model_has_no_quantizers():
    names = [layer.name for layer in trained(steps=0).float_model().layers]
    assert names == ["x", "lstm", "first", "norm", "dropout", "second", "third", "last"]


def test_training_the_float_model_leaves_the_quantized_one_alone():
    model = quantized(stacked_network())
    before = state_of(model)
    float_model = model.float_model()
    float_model.compile("sgd", "mse", run_eagerly=True)
    float_model.train_on_batch(np.ones((2, 4)), np.ones((2, 3)))
    assert_equal_states(state_of(model), before)


@NETWORKS
def test_the_float_model_comes_back_from_a_file(make, tmp_path):
    float_model = make()
    quantized(float_model).save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras").float_model()
    assert_equal_states(again.get_weights(), float_model.get_weights())


@NETWORKS
def test_a_float_model_is_a_float_checkpoint(make):
    model = quantized(make(seed=1))
    model.load_float_weights(make(seed=2))
    assert_equal_states(model.float_model().get_weights(), make(seed=2).get_weights())


@NETWORKS
def test_a_float_checkpoint_is_computed_with(make):
    model, other = quantized(make(seed=1)), make(seed=2)
    model.load_float_weights(other)
    inputs = example(other)
    np.testing.assert_array_equal(model.float_model()(inputs), other(inputs))
    expected = quantized(other)
    np.testing.assert_array_equal(model(inputs), expected(inputs))


def test_a_wrapped_model_is_a_float_checkpoint():
    model, other = wrapped(), trained()
    before = [quantizer.grid() for quantizer in model.activation_quantizers]
    model.load_float_weights(other)
    np.testing.assert_array_equal(
        model.get_layer("second").layer.kernel, other.get_layer("second").layer.kernel
    )
    assert [quantizer.grid() for quantizer in model.activation_quantizers] == before


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@NETWORKS
def test_a_float_file_is_a_float_checkpoint(make, suffix, tmp_path):
    other, path = make(seed=2), tmp_path / f"float{suffix}"
    other.save(path) if suffix == ".keras" else other.save_weights(path)
    model = quantized(make(seed=1))
    model.load_float_weights(path)
    assert_equal_states(model.float_model().get_weights(), other.get_weights())


def test_a_path_may_be_a_string(tmp_path):
    other = stacked_network(seed=2)
    other.save(tmp_path / "float.keras")
    model = quantized(stacked_network())
    model.load_float_weights(str(tmp_path / "float.keras"))
    np.testing.assert_array_equal(
        model.get_layer("first").layer.kernel, other.get_layer("first").kernel
    )


def test_ranges_stay_when_float_weights_are_loaded():
    model = trained()
    before = [quantizer.grid() for quantizer in model.activation_quantizers]
    model.load_float_weights(float_network(seed=2))
    assert [quantizer.grid() for quantizer in model.activation_quantizers] == before


def test_float_weights_that_do_not_fit_change_nothing():
    model = quantized(stacked_network())
    before = state_of(model)
    other = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Dense(7, name="last"),
        ]
    )
    with pytest.raises(ValueError, match=r"must have the shapes of this model's.*\(5, 7\)"):
        model.load_float_weights(other)
    assert_equal_states(state_of(model), before)


# ---- inherited methods -----------------------------------------------------------------------


def test_quantize_is_refused():
    with pytest.raises(RuntimeError, match="is quantized already; .* Use `set_bits`"):
        wrapped().quantize("int8")


def test_export_to_litert_is_export_tflite(tmp_path):
    with pytest.raises(ValueError, match="must be a file that ends in .tflite"):
        wrapped().export(tmp_path / "m.bin", format="litert")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A saved model, with the warning that came with it."""
    path = str(tmp_path_factory.mktemp("exported"))
    model = trained(steps=0)
    with pytest.warns(UserWarning, match="fake-quantized graph") as warned:
        model.export(path, verbose=False)
    return model, tf.saved_model.load(path), warned


def test_export_says_that_it_exports_the_fake_quantized_graph(exported):
    assert "float arithmetic on quantized values" in str(exported[2][0].message)


def test_the_exported_graph_computes_the_same(exported):
    model, served, _ = exported
    np.testing.assert_allclose(served.serve(X), model(X), rtol=1e-5, atol=1e-6)
