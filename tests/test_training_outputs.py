"""Which outputs are distilled, and with which weights and masks."""

import warnings

import keras
import numpy as np
import pytest
from dense_network import compiled, data, distance, quantized_model
from keras import layers

from speq_keras import precision, wrap

CROSS_ENTROPY = "sparse_categorical_crossentropy"


def many_headed_model():
    """Returns a float model with two softmax outputs, a sigmoid output and a linear one."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,), name="x")
    x = layers.Dense(8, "relu", name="first")(inputs)
    x = layers.Dense(8, "relu", name="second")(x)
    outputs = [
        layers.Dense(4, "softmax", name="animal")(x),
        layers.Dense(3, "softmax", name="colour")(x),
        layers.Dense(5, "sigmoid", name="labels")(x),
        layers.Dense(1, name="size")(x),
    ]
    return keras.Model(inputs, outputs)


def model_with(names, float_model=None, **kwargs):
    """Returns a quantized model with the named outputs and an 8-bit teacher."""
    float_model = float_model or many_headed_model()
    outputs = [float_model.get_layer(name).output for name in names]
    if len(outputs) == 1:
        outputs = outputs[0]
    arguments = {"distillation": "kl", "teacher_precision": precision.Fixed(8), **kwargs}
    return quantized_model(keras.Model(float_model.input, outputs), **arguments)


def logits_of(model, name, x):
    """Returns the logits of the student and of an 8-bit teacher at one output."""
    network = keras.Model(model.input, model.get_layer(f"{name}_quantizer").output)
    logits = []
    for bits in (2, 8):
        model.set_bits(activations=bits)
        logits.append(network(x).numpy().astype("float64"))
    model.set_bits(activations=2)
    return logits


def distances(model, name, x):
    """Returns the distillation loss of every example (and position) at one softmax output."""
    student, teacher = logits_of(model, name, x)
    return distance(teacher, student, "kl")


def distillation_loss(model, x, y, sample_weight=None, **kwargs):
    """Returns what one step reports, with weights that stay as they are."""
    compiled(model, optimizer=keras.optimizers.SGD(0.0), **kwargs)
    logs = model.train_on_batch(x, y, sample_weight, return_dict=True)
    return logs["distillation_loss"]


def labels(x):
    """Returns targets for the sigmoid output."""
    return (x[:, :5] > 0).astype("float32")


# ---- weights and masks -----------------------------------------------------------------------


def test_sample_weights_weigh_the_distillation_loss_as_they_do_the_task_loss():
    x, y = data()
    weight = np.linspace(0, 2, len(x)).astype("float32")
    model = model_with(["animal"])
    expected = (distances(model, "animal", x) * weight).mean()
    assert distillation_loss(model, x, y, weight) == pytest.approx(expected, rel=1e-4)


def test_class_weights_weigh_the_distillation_loss():
    x, y = data()
    class_weight = {0: 0.5, 1: 1.0, 2: 2.0, 3: 4.0}
    model = compiled(model_with(["animal"]), optimizer=keras.optimizers.SGD(0.0))
    expected = (distances(model, "animal", x) * [class_weight[int(c)] for c in y]).mean()
    history = model.fit(x, y, batch_size=16, class_weight=class_weight, verbose=0).history
    assert history["distillation_loss"][0] == pytest.approx(expected, rel=1e-4)


def model_of_sequences():
    """Returns a float model with a softmax at every position, and padded sequences for it."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((5,), dtype="int32", name="words")
    wide = keras.initializers.RandomNormal(stddev=0.8)  # so that student and teacher differ
    x = layers.Embedding(10, 6, wide, mask_zero=True, name="embedding")(inputs)
    x = layers.Dense(8, "relu", kernel_initializer=wide, name="first")(x)
    x = layers.Dense(8, "relu", kernel_initializer=wide, name="second")(x)
    x = layers.Dense(4, "softmax", kernel_initializer=wide, name="animal")(x)
    model = keras.Model(inputs, x)
    words = np.random.default_rng(3).integers(1, 10, (6, 5))
    words[:, 3:] = 0
    words[4:, 1:] = 0
    return model, words, words % 4


def quantized_model_of_sequences():
    model, words, targets = model_of_sequences()
    model = quantized_model(
        model, distillation="kl", teacher_precision=precision.Fixed(8), calibrate=False
    )
    model.calibrate(words, verbose=0)
    return model, words, targets


def test_distillation_loss_is_the_mean_over_positions_that_are_not_masked():
    model, words, targets = quantized_model_of_sequences()
    expected = distances(model, "animal", words)[words != 0].mean()
    assert distillation_loss(model, words, targets) == pytest.approx(expected, rel=1e-4)


def test_sample_weights_of_sequences_hold_for_their_positions():
    model, words, targets = quantized_model_of_sequences()
    weight = np.arange(6, dtype="float32")
    weighted = distances(model, "animal", words) * weight[:, None]
    expected = weighted[words != 0].mean()
    loss = distillation_loss(model, words, targets, weight[:, None])
    assert loss == pytest.approx(expected, rel=1e-4)


# ---- several outputs -------------------------------------------------------------------------


def two_targets(seed=4, examples=16):
    random = np.random.default_rng(seed)
    return [random.integers(0, 4, examples), random.integers(0, 3, examples)]


def test_distillation_losses_of_several_outputs_are_added():
    x, _ = data()
    model = model_with(["animal", "colour"])
    expected = distances(model, "animal", x).mean() + distances(model, "colour", x).mean()
    loss = distillation_loss(model, x, two_targets(), loss=[CROSS_ENTROPY] * 2)
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weights", [[0.25, 3.0], {"animal": 0.25, "colour": 3.0}])
def test_distillation_losses_have_the_loss_weights_of_their_outputs(weights):
    x, _ = data()
    model = model_with(["animal", "colour"])
    animal, colour = (distances(model, name, x).mean() for name in ("animal", "colour"))
    loss = (
        dict.fromkeys(weights, CROSS_ENTROPY) if isinstance(weights, dict) else [CROSS_ENTROPY] * 2
    )
    loss = distillation_loss(model, x, two_targets(), loss=loss, loss_weights=weights)
    assert loss == pytest.approx(0.25 * animal + 3 * colour, rel=1e-4)


def test_loss_weights_of_a_second_compile_hold():
    x, _ = data()
    model = model_with(["animal", "colour"])
    animal, colour = (distances(model, name, x).mean() for name in ("animal", "colour"))
    arguments = {"loss": [CROSS_ENTROPY] * 2, "loss_weights": [1.0, 1.0]}
    distillation_loss(model, x, two_targets(), **arguments)
    arguments["loss_weights"] = [2.0, 0.5]
    loss = distillation_loss(model, x, two_targets(), **arguments)
    assert loss == pytest.approx(2 * animal + 0.5 * colour, rel=1e-4)


def test_outputs_can_have_sample_weights_of_their_own():
    x, _ = data()
    random = np.random.default_rng(5)
    weights = [random.uniform(size=16).astype("float32") for _ in range(2)]
    model = model_with(["animal", "colour"])
    expected = sum(
        (distances(model, name, x) * weight).mean()
        for name, weight in zip(("animal", "colour"), weights, strict=True)
    )
    loss = distillation_loss(model, x, two_targets(), weights, loss=[CROSS_ENTROPY] * 2)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_outputs_in_a_dict_are_matched_by_name():
    x, _ = data()
    float_model = many_headed_model()
    outputs = {name: float_model.get_layer(name).output for name in ("colour", "animal")}
    model = quantized_model(
        keras.Model(float_model.input, outputs),
        distillation="kl",
        teacher_precision=precision.Fixed(8),
    )
    animal, colour = (distances(model, name, x).mean() for name in ("animal", "colour"))
    targets = dict(zip(("animal", "colour"), two_targets(), strict=True))
    loss = distillation_loss(
        model,
        x,
        targets,
        loss=dict.fromkeys(outputs, CROSS_ENTROPY),
        loss_weights={"animal": 0.25, "colour": 3.0},
    )
    assert loss == pytest.approx(0.25 * animal + 3 * colour, rel=1e-4)


def test_greedy_teacher_trains_a_model_of_several_outputs():
    x, _ = data()
    model = model_with(["animal", "colour"], teacher_precision=precision.Greedy())
    assert np.isfinite(distillation_loss(model, x, two_targets(), loss=[CROSS_ENTROPY] * 2))


# ---- kinds of outputs ------------------------------------------------------------------------


def binary_distance(teacher, student, temperature=2.0):
    """Returns T² times the divergence of two-class distributions, averaged over the labels."""
    p, q = (1 / (1 + np.exp(-z / temperature)) for z in (teacher, student))
    loss = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return temperature**2 * loss.mean(axis=-1)


def test_sigmoid_output_is_one_distribution_per_label():
    x, _ = data()
    model = model_with(["labels"])
    student, teacher = logits_of(model, "labels", x)
    loss = distillation_loss(model, x, labels(x), loss="binary_crossentropy")
    assert loss == pytest.approx(binary_distance(teacher, student).mean(), rel=1e-4)


def linear_model(width):
    """Returns a float model whose output "animal" is linear."""
    model = many_headed_model()
    x = model.get_layer("second").output
    return keras.Model(model.input, layers.Dense(width, name="animal")(x))


def test_linear_output_under_a_cross_entropy_from_logits_is_a_softmax():
    x, y = data()
    model = model_with(["animal"], linear_model(4))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = distances(model, "animal", x).mean()
    assert distillation_loss(model, x, y, loss=loss) == pytest.approx(expected, rel=1e-4)


def test_linear_output_under_a_binary_cross_entropy_from_logits_is_a_sigmoid():
    x, _ = data()
    model = model_with(["animal"], linear_model(5))
    student, teacher = logits_of(model, "animal", x)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    expected = binary_distance(teacher, student).mean()
    assert distillation_loss(model, x, labels(x), loss=loss) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("ending", ["linear", "read_again"])
def test_softmax_is_found_behind_layers_that_change_nothing(ending):
    x, y = data()
    model = many_headed_model()
    softmax = model.get_layer("animal").output
    if ending == "linear":
        outputs = layers.Activation("linear", dtype="float32", name="cast")(softmax)
    else:  # a second reader: its input is rounded, and so is the output
        outputs = [softmax, layers.Dense(3, "softmax", name="more")(softmax)]
        y = [y, y % 3]
    model = quantized_model(keras.Model(model.input, outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert distillation_loss(model, x, y) > 0


def test_softmax_over_another_axis_is_no_softmax_head():
    inputs = keras.Input((4, 6), name="x")
    x = layers.Dense(8, "relu", name="first")(inputs)
    x = layers.Dense(8, "relu", name="second")(x)
    x = layers.Softmax(axis=1)(layers.Dense(3, name="last")(x))
    model = quantized_model(keras.Model(inputs, x), calibrate=False, distillation="cosine")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="distillation=None"):
        model.training_plan()


def test_outputs_without_logits_are_named_once():
    x, y = data()
    model = model_with(["animal", "size"])
    compiled(model, loss=[CROSS_ENTROPY, "mse"])
    with pytest.warns(UserWarning, match=r"Outputs \['size'\] have no logits"):
        model.train_on_batch(x, [y, x[:, :1]])
    model.temperature = 3.0  # looks for the outputs again
    model.train_on_batch(x, [y, x[:, :1]])  # a second warning would be an error


def test_outputs_without_logits_are_not_distilled():
    x, y = data()
    model = model_with(["animal", "size"])
    expected = distances(model, "animal", x).mean()
    with pytest.warns(UserWarning, match="no logits"):
        loss = distillation_loss(model, x, [y, x[:, :1]], loss=[CROSS_ENTROPY, "mse"])
    assert loss == pytest.approx(expected, rel=1e-4)


def test_model_without_any_logits_names_the_way_out():
    x, _ = data()
    model = compiled(model_with(["size"]), loss="mse")
    with pytest.raises(ValueError, match=r"Received: outputs \['size'\].*distillation=None"):
        model.fit(x, x[:, :1])


def test_model_without_any_logits_trains_without_distillation():
    x, _ = data()
    model = model_with(["size"], distillation=None)
    assert distillation_loss(model, x, x[:, :1], loss="mse") == 0


# ---- extra losses ----------------------------------------------------------------------------


class ActivityPenalty(layers.Dense):
    """A Dense layer of an own class: it stays in float."""


@pytest.mark.parametrize("layer_class", [layers.Dense, ActivityPenalty])
@pytest.mark.parametrize("rule", [precision.Fixed(8), precision.Greedy()])
def test_activity_losses_and_regularizers_count_once(layer_class, rule):
    x, y = data()
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,), name="x")
    h = layers.Dense(8, "relu", kernel_regularizer="l2", name="first")(inputs)
    h = layer_class(8, activity_regularizer="l2", name="second")(h)
    h = layers.Dense(8, "relu", name="third")(layers.ReLU()(h))
    model = keras.Model(inputs, layers.Dense(4, "softmax", name="animal")(h))
    task_losses = []
    for distillation in ("kl", None):
        wrapped = quantized_model(model, distillation=distillation, teacher_precision=rule)
        compiled(wrapped)
        task_losses += [wrapped.train_on_batch(x, y, return_dict=True)["task_loss"]]
    assert task_losses[0] == task_losses[1]


def test_greedy_compares_losses_in_which_activity_losses_count_once(monkeypatch):
    x, y = data()
    inputs = keras.Input((6,), name="x")
    h = layers.Dense(8, "relu", name="first")(inputs)
    h = layers.Dense(8, activity_regularizer="l2", name="second")(h)
    model = keras.Model(inputs, layers.Dense(4, "softmax", name="animal")(layers.ReLU()(h)))
    model = compiled(quantized_model(model, teacher_precision=precision.Greedy()))
    losses = []
    original = model.compute_loss

    def spy(*args, **kwargs):
        losses.append(original(*args, **kwargs))
        return losses[-1]

    monkeypatch.setattr(model, "compute_loss", spy)
    model.train_on_batch(x, y)
    # The first combination is the student's own.
    assert float(losses[0]) == float(losses[-1])


# ---- places that a mask takes out ----------------------------------------------------------------


def place_finder():
    """Returns a float model that picks one of eight places, of which a mask takes some out."""
    keras.utils.set_random_seed(2)
    inputs = {"x": keras.Input((8, 4), name="x"), "mask": keras.Input((8,), name="mask")}
    y = layers.Dense(6, "relu", name="first")(inputs["x"])
    y = layers.Dense(6, "relu", name="second")(y)
    y = layers.Flatten(name="places")(layers.Dense(1, name="place")(y))
    return keras.Model(inputs, keras.ops.where(inputs["mask"] > 0, y, -1e9))


def test_masked_places_are_not_distilled():
    rng = np.random.default_rng(3)
    inputs = {
        "x": rng.normal(size=(16, 8, 4)).astype("float32"),
        "mask": (np.arange(8) < rng.integers(2, 9, (16, 1))).astype("float32"),
    }
    teacher = precision.Fixed(8)
    model = wrap(place_finder(), 2, 2, distillation="kl", teacher_precision=teacher)
    model.calibrate(inputs, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = distillation_loss(model, inputs, np.zeros(16, "int32"), loss=loss)
    student, teacher = (logits[..., 0] for logits in logits_of(model, "place", inputs))
    distances = [
        distance(teacher[i : i + 1, keeps], student[i : i + 1, keeps], "kl")[0]
        for i, keeps in enumerate(inputs["mask"] > 0)
    ]
    assert found == pytest.approx(np.mean(distances), rel=1e-3)
    with_all = np.mean(distance(teacher, student, "kl"))
    assert abs(with_all - found) > 0.02 * found
