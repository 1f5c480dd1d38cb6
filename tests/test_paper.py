"""`examples/paper`: the networks, the cells of the tables, and the figures."""

import json
import pathlib
import sys

import fresh_process
import keras
import numpy as np
import pytest
from test_examples import run

import speq_keras

PAPER = pathlib.Path(__file__).parent.parent / "examples" / "paper"


@pytest.fixture(scope="module", autouse=True)
def paper_on_the_path(examples_on_the_path):
    sys.path.insert(0, str(PAPER))
    yield
    sys.path.remove(str(PAPER))


# ---- networks ----------------------------------------------------------------------------------


def weights_of_convolutions(*shapes):
    """Parameters of convolutions without bias and the BatchNormalization behind each."""
    return sum(height * width * into * out + 4 * out for height, width, into, out in shapes)


def cifar_resnet(blocks, classes):
    """He et al. (2016), Section 4.2, with 1×1 convolutions in the two shortcuts with a stride."""
    shapes = [(3, 3, 3, 16)]
    for into, out in ((16, 16), (16, 32), (32, 64)):
        shapes += [(3, 3, into, out)] + [(3, 3, out, out)] * (2 * blocks - 1)
        shapes += [(1, 1, into, out)] * (into != out)
    return weights_of_convolutions(*shapes) + 65 * classes


VGG16 = (64, 64, 128, 128, 256, 256, 256, *[512] * 6)


# The last three: counts of torchvision and keras.applications, and the moving statistics.
@pytest.mark.parametrize(
    ("name", "classes", "size", "parameters"),
    [
        ("ResNet8", 10, 32, cifar_resnet(1, 10)),
        ("ResNet20", 10, 32, cifar_resnet(3, 10)),
        ("ResNet32", 100, 32, cifar_resnet(5, 100)),
        (
            "VGG16",
            10,
            32,
            weights_of_convolutions(
                *((3, 3, a, b) for a, b in zip((3, *VGG16), VGG16, strict=False))
            )
            + 5130,
        ),
        ("ResNet18", 1000, 224, 11_689_512 + 9_600),
        ("ResNet34", 1000, 224, 21_797_672 + 17_024),
        ("MobileNetV2", 1000, 224, 3_538_984),
    ],
)
def test_a_network_has_the_parameters_of_its_kind(name, classes, size, parameters):
    import networks

    network = networks.build(name, image_size=size, classes=classes)
    assert network.count_params() == parameters
    assert network.output_shape == (None, classes)


@pytest.mark.parametrize(
    "name", ["ResNet20", "MobileNetV2", "ResNet18", "ResNet50", "EfficientNetB0"]
)
def test_moving_statistics_follow_within_a_few_steps(name):
    import networks

    network = networks.build(name, image_size=32, classes=10)
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == sum("moving_mean" in v.path for v in network.variables)  # none is nested
    assert {norm.momentum for norm in norms} == {0.9}


def test_the_five_layer_network_has_five_convolutions():
    import networks

    network = networks.build("FiveLayerCNN", image_size=32, classes=10)
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds.count("Conv2D") == 5


# ---- tables ------------------------------------------------------------------------------------


def all_cells():
    import tables

    return [cell for cells in tables.TABLES.values() for cell in cells]


def test_every_cell_names_what_exists():
    import methods
    import networks
    import tables

    for cell in all_cells():
        assert cell.model in networks.NAMES
        assert cell.teacher in (None, *networks.NAMES)
        assert cell.method in methods.METHODS
        assert cell.quantizer in tables.QUANTIZERS


def test_no_two_cells_of_a_table_are_the_same():
    names = [(cell.table, cell.model, cell.widths, cell.row) for cell in all_cells()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("table", "model", "widths", "row", "accuracy"),
    [
        (2, "ResNet20", "W2/A2", "SPEQ u=0.5 cosine", 91.44),
        (2, "ResNet20", "W2/A2", "KD kl", 91.24),
        (3, "ResNet20", "W2/A2", "u=0.9", 90.96),
        (4, "MobileNetV2", "WF/A2", "SPEQ", 75.2),
        (5, "AlexNet", "W2/A2", "SPEQ", 59.3),
        (6, "EfficientNetB0", "W3/A3", "QKD", 69.2),
        (7, "ResNet34", "W2/A2", "SPEQ+AP", 72.1),
    ],
)
def test_a_cell_has_the_paper_s_number(table, model, widths, row, accuracy):
    found = [
        cell.paper
        for cell in all_cells()
        if (cell.table, cell.model, cell.widths, cell.row) == (table, model, widths, row)
    ]
    assert found == [accuracy]


# ---- figures -----------------------------------------------------------------------------------


def logits_of(probability, classes):
    return np.log([probability] + [(1 - probability) / (classes - 1)] * (classes - 1))


@pytest.mark.parametrize("method", ["kl", "dot", "cosine"])
def test_the_surfaces_are_the_gradients_of_the_losses(method):
    import figures

    name = dict(zip(("kl", "dot", "cosine"), figures.GRADIENTS, strict=True))[method]
    step = 1e-2
    for q, p in ((0.2, 0.7), (0.6, 0.3), (0.9, 0.95), (0.1, 0.1)):
        ends = []
        for sign in (1, -1):
            z = logits_of(q, 10)
            z[0] += sign * step
            loss = speq_keras.losses.distillation_loss(
                logits_of(p, 10)[None], z[None], method=method, temperature=1.0
            )
            ends.append(float(keras.ops.convert_to_numpy(loss)[0]))
        slope = (ends[0] - ends[1]) / (2 * step)
        found = float(figures.gradients(q, p, 10)[name])
        assert found == pytest.approx(slope, abs=2e-4)  # float32 losses, 1e-7 / 2e-2


def test_kl_pushes_back_where_the_student_is_surer_and_the_dot_product_does_not():
    import figures

    found = figures.gradients(0.9, 0.6, 10)
    assert found["KL, Eq. 7"] > 0 > found["dot product, Eq. 9"]


def test_the_dot_product_neglects_a_teacher_that_knows_nothing():
    import figures  # Eq. 11

    students = np.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(
        figures.gradients(students, 0.1, 10)["dot product, Eq. 9"], 0, atol=1e-12
    )


def test_under_a_sure_teacher_the_gradient_is_q_times_one_minus_q():
    import figures  # Eq. 10

    q = np.linspace(0.01, 0.99, 9)
    found = figures.gradients(q, 1.0, 10)["dot product, Eq. 9"]
    np.testing.assert_allclose(found, -q * (1 - q), atol=1e-12)


# ---- the harness -------------------------------------------------------------------------------

RATES = f"""
import sys
sys.path[:0] = [{str(PAPER)!r}, {str(PAPER.parent)!r}]
import run
from absl import flags
for given in (["--scale=cpu"], ["--scale=short"], ["--learning_rate=0.5"]):
    flags.FLAGS(["run.py", *given])
    scales = [run.scale(model) for model in ("ResNet20", "AlexNet")]
    print(*[(scale.pretrain_learning_rate, scale.learning_rate) for scale in scales])
"""


def test_a_network_has_rates_of_its_own_in_the_short_form_unless_flags_say_others():
    lines = fresh_process.run(RATES).stdout.splitlines()
    assert lines == [
        "(0.1, 0.02) (0.1, 0.02)",
        "(0.0005, 0.0002) (1e-05, 5e-05)",
        "(0.0005, 0.5) (1e-05, 0.5)",
    ]


pytestmark = pytest.mark.timeout(1500)  # the fixture trains 30 cells, five minutes of a core
CELLS = ("1:W2AF", "2:*", "3:*", "4:QKD", "5:qil", "6:AP", "7:AP*A")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    arguments = ("paper/run.py", "--model=FiveLayerCNN", "--out_dir=out")
    cells = f"--cells={','.join(CELLS)}"
    tables = "--table=1,2,3,4,5,6,7"
    status, text = run(*arguments, tables, cells, "--figure=2a", cwd=folder, timeout=1200)
    assert status == 0, text
    again, text_again = run(*arguments, "--table=3", cwd=folder)
    assert again == 0, text_again
    content = json.loads((folder / "out" / "results_short.json").read_text())
    return folder / "out", text, text_again, content


def test_the_short_form_prints_the_tables_with_the_paper_s_numbers(results):
    _, text, _, _ = results
    assert "| FiveLayerCNN | digits | W2/A2 | SPEQ u=0.5 cosine |" in text
    assert "| 91.44 |" in text
    assert "its accuracies mean nothing" in text


def test_what_is_finished_is_not_trained_again(results):
    _, text, text_again, _ = results
    assert "Table 3, seed 0" in text
    assert "Table 3, seed 0" not in text_again
    assert [line for line in text.splitlines() if "| Mix |" in line] == [
        line for line in text_again.splitlines() if "| Mix |" in line
    ]


def test_figures_of_another_scale_are_not_taken_for_these(results):
    folder, _, _, _ = results
    arguments = ("--model=FiveLayerCNN", "--out_dir=out", "--table=3", "--epochs=3")
    status, text = run("paper/run.py", *arguments, cwd=folder.parent)
    assert status != 0
    assert "were made with --epochs=2. Pass the same flags again, or another --out_dir." in text


def test_every_cell_lowers_its_loss_and_beats_chance(results):
    folder, _, _, _ = results
    figures = list(folder.glob("short/seed0/cells/*/figures.json"))
    # Table 3 shares three cells with Table 2; the last is that of figure 2a.
    assert len(figures) == 1 + 13 + 11 + 4 + 1
    for path in figures:
        content = json.loads(path.read_text())
        before, after = content["loss_on_a_fixed_batch"]
        assert after < before, path
        assert content["test_accuracy"] > 0.3, path  # chance is 0.1


def test_the_greedy_teacher_picks_among_all_combinations(results):
    folder, _, _, _ = results
    rows = [
        json.loads(line)
        for path in folder.glob("short/seed0/cells/*draw=greedy/last/log.jsonl")
        for line in path.read_text().splitlines()
    ]
    # After so few steps 8 bits may be best everywhere; four quantizers have 16 combinations.
    assert all(1 <= row["combinations"] <= 16 for row in rows)
    assert all(len(row["picked_8_bits"]) == 4 for row in rows)
    assert (folder / "figure_2a.png").is_file()
