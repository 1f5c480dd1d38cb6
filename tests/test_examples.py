"""Every example in its shortest form, as a user runs it: in a process of its own."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(program, *arguments, cwd, timeout=500):
    """Runs an example for so many seconds at most; returns (exit status, what it printed)."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_quickstart_prints_a_table_and_writes_its_files(tmp_path):
    epochs = [f"--{name}=1" for name in ("pretrain_epochs", "retrain_epochs", "epochs")]
    status, text = run("quickstart.py", "--seeds=0", *epochs, cwd=tmp_path)
    assert status == 0, text
    assert "SPEQ" in text
    files = {path.name for path in (tmp_path / "out" / "quickstart").iterdir()}
    assert files >= {"results.json", "curves.png", "speq.keras", "speq.tflite"}
    results = json.loads((tmp_path / "out" / "quickstart" / "results.json").read_text())
    assert results["export"]["proof"]["mismatches"] == 0
    accuracy = results["export"]["accuracy"]
    assert accuracy["file"] == accuracy["folded"]
    # Settled: `predict` is the file, and close to what was trained (of 450 images).
    assert accuracy["trained"] == pytest.approx(accuracy["file"], abs=0.003)
    before = results["runs"][0]["stages"][-1]["test_accuracy"]
    assert accuracy["trained"] == pytest.approx(before, abs=0.03)


def test_beyond_prints_a_row_per_method_and_writes_its_files(tmp_path):
    short = ("--seeds=0", "--pretrain_epochs=1", "--epochs=1", "--strengths=0.1")
    program = "benchmarks/beyond.py"
    status, text = run(program, *short, "--lowering_epochs=", f"--out_dir={tmp_path}", cwd=tmp_path)
    assert status == 0, text
    assert {path.name for path in tmp_path.iterdir()} == {"beyond.json", "beyond.png"}
    rows = json.loads((tmp_path / "beyond.json").read_text())["rows"]
    assert list(rows) == ["W2/A2", "W2/A2, damping 0.1", "W3/A3", "W3/A3, searched"]
    assert all(f"\n| {name} | " in text for name in rows)
    assert rows["W3/A3, searched"][0]["kB"] <= rows["W3/A3"][0]["kB"]


def test_the_recurrent_benchmark_prints_both_tables(tmp_path):
    short = ("--seeds=0", "--layers=GRU", "--w_bits=4", "--pretrain_epochs=1", "--epochs=1")
    options = (*short, "--rounds=2", "--noisy_copies=1", f"--out_dir={tmp_path}")
    status, text = run("benchmarks/recurrent.py", *options, cwd=tmp_path)
    assert status == 0, text
    (((row,),), (cost,)) = (
        json.loads((tmp_path / "recurrent.json").read_text())[name] for name in ("runs", "costs")
    )
    assert "\n| GRU W4/A8 | 1 | " in text
    assert row["same"] >= 99.8  # one of 540
    assert cost["quantizers"] == 10
    assert cost["file_bytes"] < 50_000


def test_the_vision_transformer_benchmark_prints_both_tables(tmp_path):
    short = ("--seeds=0", "--w_bits=8", "--blocks=1", "--pretrain_epochs=1", "--epochs=1")
    options = (*short, "--noisy_copies=2", f"--out_dir={tmp_path}")
    status, text = run("benchmarks/vit.py", *options, cwd=tmp_path)
    assert status == 0, text
    ((row,),) = json.loads((tmp_path / "vit.json").read_text())["runs"]
    assert text.count("\n| ViT W8/A8 | ") == 2
    assert row["islands"] == ["attention_norm_1", "mlp_norm_1", "norm"]
    assert row["same"] >= 99.8  # two of 1,080
    assert row["file"] == pytest.approx(row["settled"], abs=0.2)


def test_the_vision_transformer_benchmark_says_which_features_its_heads_can_share(tmp_path):
    status, text = run("benchmarks/vit.py", "--heads=5", f"--out_dir={tmp_path}", cwd=tmp_path)
    assert status != 0
    assert "--features takes a multiple of --heads=5. Received: 32." in text
    assert "Traceback" not in text


def test_the_program_for_keras_hub_prints_a_row_with_a_proof_that_holds(tmp_path):
    pytest.importorskip("keras_hub")
    options = ("--only=VGG", f"--out_dir={tmp_path}")
    status, text = run("benchmarks/hub_models.py", *options, cwd=tmp_path)
    assert status == 0, text
    row = json.loads((tmp_path / "hub_models.json").read_text())["VGG"]
    assert row["result"] == "ok", row
    assert "\n| VGG | 6,083 | " in text
    assert row["island"] == 0
    assert row["bytes"] < 4 * 6_083  # the float weights


def test_the_program_for_keras_hub_says_which_networks_it_knows(tmp_path):
    pytest.importorskip("keras_hub")
    options = ("--only=NoSuchNet", f"--out_dir={tmp_path}")
    status, text = run("benchmarks/hub_models.py", *options, cwd=tmp_path)
    assert status != 0
    assert "matches no network. Received: NoSuchNet." in text


# A stand-in for TensorFlow Datasets, which has no CIFAR-10 on a machine without a network: the
# program itself is the real one.
CIFAR_ON_NOISE = """
import sys
sys.path.insert(0, {examples!r})
import numpy as np
import cifar_data
random = np.random.default_rng(0)
def noise(count):
    images = random.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    return images, random.integers(0, 10, count)
cifar_data.load = lambda *args, **kwargs: (*noise(64), *noise(32))
import runpy
sys.argv = [{program!r}, *{arguments!r}]
runpy.run_path({program!r}, run_name="__main__")
"""


def run_on_noise(program, *arguments):
    """Runs a program of the CIFAR examples on noise and returns what it prints."""
    code = CIFAR_ON_NOISE.format(
        examples=str(EXAMPLES), program=str(EXAMPLES / program), arguments=arguments
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def save_resnet8(folder):
    """Saves a ResNet-8 with random weights as resnet8.keras; returns it."""
    keras.utils.set_random_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import cifar_networks
    network = cifar_networks.build("resnet8")
    network.save(folder / "resnet8.keras")
    return network


ONE_STEP = ("--pretrain_epochs=1", "--retrain_epochs=1", "--epochs=1", "--steps=1")


def test_cifar_runs_all_stages_and_both_methods_and_exports_what_they_trained(tmp_path):
    text = run_on_noise(
        "cifar.py",
        *ONE_STEP,
        "--batch_size=16",
        "--probe_examples=32",
        f"--out_dir={tmp_path}/out",
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [stage["stage"] for stage in results["stages"]] == ["pretrain", "retrain", "qat", "speq"]
    exported = [stage["stage"] for stage in results["stages"] if "litert_accuracy" in stage]
    assert exported == ["qat", "speq"]
    assert {"seed0_qat.tflite", "seed0_speq.tflite"} <= {
        x.name for x in (tmp_path / "out").iterdir()
    }
    assert "in LiteRT, %" in text


def test_cifar_trains_and_exports_a_network_with_concatenations(tmp_path):
    text = run_on_noise(
        "cifar.py",
        *ONE_STEP,
        "--model=dense",
        "--activation_quantizer=lsq_plus",
        "--stages=pretrain,retrain",
        "--w_bits=4",
        "--a_bits=4",
        "--batch_size=16",
        "--storage=int4",
        f"--out_dir={tmp_path}/out",
    )
    assert (tmp_path / "out" / "seed0_retrain.tflite").is_file()
    assert " 0 differ from the simulation" in text


def test_the_export_benchmark_finds_no_code_of_a_file_that_differs_from_its_simulation(tmp_path):
    save_resnet8(tmp_path)
    run_on_noise(
        "benchmarks/export_cifar.py",
        "--only=resnet8_w4a4_pact",
        "--steps=1",
        "--batch_size=16",
        f"--model_dir={tmp_path}",
        f"--out_dir={tmp_path}/out",
    )
    rows = json.loads((tmp_path / "out" / "export_cifar.json").read_text())
    row = rows["resnet8_w4a4_pact"]
    assert row["codes_compared"] > 1e6
    assert row["codes_different"] == 0
    assert row["codes_outside"] == 0
    assert row["after"]["agreement"] >= row["before"]["agreement"]
    assert row["settlement"]["left"] == []


def test_the_table_of_settings_compares_float_stock_tfmot_and_ours(tmp_path):
    network = save_resnet8(tmp_path)
    text = run_on_noise(
        "benchmarks/settings.py",
        "--networks=resnet8",
        '--settings=float,W8/A8,"W2/A2, SPEQ"',
        "--seed=0",
        "--steps=1",
        "--batch_size=16",
        "--rounds=1",
        f"--model_dir={tmp_path}",
        f"--out_dir={tmp_path}/out",
    )
    rows = json.loads((tmp_path / "out" / "settings_resnet8.json").read_text())
    assert list(rows) == ["float", "stock PTQ", "W8/A8", "W2/A2, SPEQ"]
    assert all(f"\n| {name} | " in text for name in rows)
    sizes = {name: row["0"]["bytes"] for name, row in rows.items()}
    assert sizes["float"] > 4 * network.count_params() > 3 * sizes["stock PTQ"]
    assert rows["W2/A2, SPEQ"]["0"]["smallest"] < 0.7 * sizes["W2/A2, SPEQ"]
    assert all(0 <= row["0"]["file"] <= 100 for row in rows.values())
    assert "at_a8" in rows["W2/A2, SPEQ"]["0"]
    assert "at_a8" not in rows["W8/A8"]["0"]


def test_the_picture_of_the_readme_is_drawn(tmp_path):
    status, text = run("picture.py", "--epochs=1", f"--out={tmp_path}/new.png", cwd=tmp_path)
    assert status == 0, text
    assert (tmp_path / "new.png").stat().st_size > 20_000


def test_cifar_says_in_one_sentence_that_the_data_folder_is_missing(tmp_path):
    status, text = run("cifar.py", "--short", f"--data_dir={tmp_path}/nowhere", cwd=tmp_path)
    assert status != 0
    assert "Traceback" not in text
    assert "--data_dir" in text


def test_the_flagship_trains_on_a_folder_of_images_and_writes_its_results(tmp_path):
    import tensorflow as tf

    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                image = random.integers(0, 256, (40, 48, 3)).astype("uint8")
                (folder / f"{number}.jpg").write_bytes(tf.io.encode_jpeg(image).numpy())
    status, text = run(
        "efficientnet_imagenet.py",
        f"--image_folder={tmp_path}/images",
        "--image_size=32",
        "--batch_size=4",
        "--stages=pretrain",  # a quantized step is traced for a minute, one of SPEQ for another
        "--pretrain_epochs=1",
        "--checkpoint_steps=1",
        "--batch_norm_momentum=0",  # two steps make no moving average
        "--pretrain_learning_rate=0.001",
        "--strategy=mirrored",
        "--logical_devices=2",
        cwd=tmp_path,
    )
    assert status == 0, text
    out = tmp_path / "out" / "efficientnet"
    results = json.loads((out / "results.json").read_text())
    assert [stage["stage"] for stage in results["stages"]] == ["pretrain"]
    assert results["stages"][0]["steps"] == 2
    assert [row["step"] for row in results["log"]] == [1, 2]
    # The settings of the digits are those of the digits alone.
    for name in ("augment", "dropout"):
        assert results["flags"][name] is None
    assert results["flags"]["retrain_optimizer"] == "sgd"
    assert (out / "curves.png").is_file()
    assert list((out / "tensorboard" / "pretrain").iterdir())


def test_the_flagship_retrains_with_3_bits_and_exports_what_it_trained(tmp_path):
    status, text = run(
        "efficientnet_imagenet.py",
        "--stages=pretrain,retrain",
        "--train_examples=64",
        "--test_examples=32",
        "--pretrain_epochs=1",
        "--calibration_examples=32",
        "--batch_norm_momentum=0.5",  # four steps
        cwd=tmp_path,
    )
    assert status == 0, text
    out = tmp_path / "out" / "efficientnet"
    results = json.loads((out / "results.json").read_text())
    assert [stage["steps"] for stage in results["stages"]] == [2, 2]
    assert results["export"]["proof"]["mismatches"] == 0
    assert results["export"]["file_as_settled"] == 1.0
    assert results["flags"]["image_size"] == 48  # a setting of the digits
    assert "block7a_project_conv" in (out / "plan.txt").read_text()
    assert "block7a_project_conv" not in text
    assert (out / "efficientnet.tflite").stat().st_size == results["export"]["bytes"]


def test_transfer_trains_new_layers_on_frozen_features(tmp_path):
    status, text = run(
        "transfer.py",
        "--per_class=5",
        "--epochs=1",
        "--source_epochs=1",
        "--retrain_epochs=1",
        cwd=tmp_path,
    )
    assert status == 0, text
    results = json.loads((tmp_path / "out" / "transfer" / "results.json").read_text())
    assert len(results["accuracies"]["5"][0]) == 3


@pytest.mark.parametrize(
    ("program", "flags", "sentence"),
    [
        ("efficientnet_imagenet.py", ("--weights=no.keras",), "--weights takes imagenet or a file"),
        ("efficientnet_imagenet.py", ("--dataset=imagenet2012", "--data_dir=no"), "was not found"),
        ("transfer.py", ("--dataset=oxford_flowers102",), "pass --float_extractor"),
        ("paper/run.py", ("--table=10",), "--table takes 1, 2, 3, 4, 5, 6, 7, 8, 9"),
        ("paper/run.py", ("--cells=Speq",), "Table 2 has no such cell"),
    ],
)
def test_a_wrong_flag_ends_an_example_with_one_sentence(tmp_path, program, flags, sentence):
    status, text = run(program, *flags, cwd=tmp_path)
    assert status != 0
    assert "Traceback" not in text
    assert sentence in text
