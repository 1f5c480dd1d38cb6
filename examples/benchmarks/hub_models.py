"""KerasHub's networks for images: wrap, train a step, save, load, export, and say what is integer.

    python examples/benchmarks/hub_models.py
    python examples/benchmarks/hub_models.py --only='MiT*' --out_dir=/tmp/hub

Configs are small and weights random. Backbones get a pooling and a Dense behind them, tasks are as
they come. Each network runs in a process of its own, so that a failure is one row. Prints a
Markdown table; rows are added to `hub_models.json` as they come, and a network that has one there
is not run again.
"""

import json
import pathlib
import tempfile
import time

import keras
import keras_hub
import network_rows
import numpy as np
from absl import app, flags

import speq_keras

FLAGS = flags.FLAGS
flags.DEFINE_string("only", "*", "Networks to run, as a shell pattern.")
flags.DEFINE_integer("w_bits", 4, "Width of the weights, in bits.", 2, 8)
flags.DEFINE_integer("a_bits", 8, "Width of the activations, in bits.", 2, 8)
flags.DEFINE_integer("images", 16, "Generated images to train on and to compare.", 2)
flags.DEFINE_bool("retry", False, "Run networks again whose row is an error.")
flags.DEFINE_string("out_dir", "out/benchmarks", "Folder for hub_models.json.")
flags.DEFINE_string("run_one", None, "Run this network here and print its row as JSON.")

SIDE_PX, CLASSES = 32, 3
SHAPE = (SIDE_PX, SIDE_PX, 3)
OK = "ok"


def resnet(use_pre_activation, **changes):
    """Returns a ResNet of two stages."""
    options = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [2, 2],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
        "use_pre_activation": use_pre_activation,
        "image_shape": SHAPE,
    }
    return keras_hub.models.ResNetBackbone(**{**options, **changes})


def mobilenet():
    """Returns a MobileNetV3 of three stages."""
    return keras_hub.models.MobileNetBackbone(
        stackwise_expansion=[[24], [40, 56], [64, 144]],
        stackwise_num_blocks=[1, 2, 2],
        stackwise_num_filters=[[16], [16, 16], [24, 24]],
        stackwise_kernel_size=[[3], [3, 3], [5, 5]],
        stackwise_num_strides=[[2], [2, 1], [1, 1]],
        stackwise_se_ratio=[[None], [None, None], [0.25, 0.25]],
        stackwise_activation=[["relu"], ["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1], [1, 1], [2, 2]],
        output_num_filters=48,
        depthwise_filters=16,
        depthwise_stride=2,
        depthwise_residual=False,
        last_layer_filter=48,
        squeeze_and_excite=0.5,
        image_shape=SHAPE,
    )


def efficientnet():
    """Returns an EfficientNet with fused, unfused and first-version blocks."""
    return keras_hub.models.EfficientNetBackbone(
        stackwise_width_coefficients=[0.5] * 3,
        stackwise_depth_coefficients=[1.0] * 3,
        stackwise_kernel_sizes=[3, 3, 5],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 32],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.25, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=["fused", "unfused", "v1"],
        stackwise_force_input_filters=[0] * 3,
        stackwise_nores_option=[False] * 3,
        num_features=48,
        input_shape=SHAPE,
    )


def densenet():
    """Returns a DenseNet of two stages."""
    return keras_hub.models.DenseNetBackbone(
        stackwise_num_repeats=[2, 2], growth_rate=8, image_shape=SHAPE
    )


def vgg():
    """Returns a VGG of three stages."""
    return keras_hub.models.VGGBackbone(
        stackwise_num_repeats=[1, 1, 2], stackwise_num_filters=[8, 16, 16], image_shape=SHAPE
    )


def cspnet(stage_type, block_type):
    """Returns a CSPNet; with stage_type="dark", it is a DarkNet."""
    return keras_hub.models.CSPNetBackbone(
        stem_filters=16,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2, 2],
        stackwise_strides=[1, 2, 2],
        stackwise_num_filters=[16, 32, 64],
        bottle_ratio=[0.5, 1.0, 1.0],
        block_ratio=[1.0, 0.5, 0.5],
        expand_ratio=[2.0, 1.0, 1.0],
        block_type=block_type,
        stage_type=stage_type,
        image_shape=SHAPE,
    )


def vit():
    """Returns a ViT of two layers, on 4 × 4 patches."""
    return keras_hub.models.ViTBackbone(
        image_shape=SHAPE, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )


def deit():
    """Returns a DeiT of two layers, on 4 × 4 patches."""
    return keras_hub.models.DeiTBackbone(
        image_shape=SHAPE,
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
    )


def mit():
    """Returns a MiT of two stages."""
    return keras_hub.models.MiTBackbone(
        image_shape=SHAPE,
        layerwise_depths=[2, 2],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        hidden_dims=[8, 16],
    )


def pyramid():
    """Returns a ResNet of four stages, for tasks that read several of them."""
    return resnet(
        False,
        stackwise_num_filters=[64] * 4,
        stackwise_num_blocks=[1] * 4,
        stackwise_num_strides=[1, 2, 2, 2],
    )


def retinanet():
    """Returns a RetinaNet object detector on a ResNet."""
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=pyramid(),
        min_level=3,
        max_level=5,
        use_p5=False,
        image_shape=SHAPE,
    )
    return keras_hub.models.RetinaNetObjectDetector(
        backbone=backbone, num_classes=CLASSES, pre_logits_num_conv_layers=1
    )


def deeplab():
    """Returns a DeepLabV3+ image segmenter on a ResNet."""
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=pyramid(),
        projection_filters=8,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P5",
        upsampling_size=8,
        dilation_rates=[1, 2],
        image_shape=SHAPE,
    )
    return keras_hub.models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=CLASSES)


def segformer():
    """Returns a SegFormer image segmenter on a MiT."""
    backbone = keras_hub.models.SegFormerBackbone(image_encoder=mit(), projection_filters=16)
    return keras_hub.models.SegFormerImageSegmenter(backbone=backbone, num_classes=CLASSES)


BACKBONES = {
    "ResNet": lambda: resnet(False),
    "ResNet, bottlenecks": lambda: resnet(False, block_type="bottleneck_block"),
    "ResNet-vd": lambda: resnet(
        False,
        input_conv_filters=[8, 8, 64],
        input_conv_kernel_sizes=[3] * 3,
        block_type="basic_block_vd",
    ),
    "ResNetV2": lambda: resnet(True),
    "MobileNet": mobilenet,
    "EfficientNet": efficientnet,
    "DenseNet": densenet,
    "VGG": vgg,
    "CSPDarkNet": lambda: cspnet("csp", "dark_block"),
    "DarkNet": lambda: cspnet("dark", "dark_block"),
    "CS3": lambda: cspnet("cs3", "bottleneck_block"),
    "ViT": vit,
    "DeiT": deit,
    "MiT": mit,
}
TASKS = {"RetinaNet": retinanet, "DeepLabV3": deeplab, "SegFormer": segformer}


def network(name):
    """Returns a network of the table, with random weights."""
    if name in TASKS:
        return TASKS[name]()
    backbone = BACKBONES[name]()
    y = backbone.output
    y = list(y.values())[-1] if isinstance(y, dict) else y
    pooling = {4: keras.layers.GlobalAveragePooling2D, 3: keras.layers.GlobalAveragePooling1D}
    y = pooling[len(y.shape)]()(y)
    return keras.Model(backbone.input, keras.layers.Dense(CLASSES, name="predictions")(y))


def main(_):
    if FLAGS.run_one:
        print(json.dumps(run_one(FLAGS.run_one)))
        return
    names = network_rows.chosen((*BACKBONES, *TASKS), FLAGS.only)
    path = pathlib.Path(FLAGS.out_dir, "hub_models.json")
    table = network_rows.collect(names, path, is_done=is_done, run=run_in_a_process)
    print(f"\n{markdown_table(table)}")


def is_done(row):
    """Whether a row of an earlier run stays."""
    return row["result"] == OK or not FLAGS.retry


def run_in_a_process(name):
    """Runs this program for one network and returns its row, whatever happens there."""
    arguments = [f"--{flag}={FLAGS[flag].value}" for flag in ("w_bits", "a_bits", "images")]
    return network_rows.run_in_a_process(__file__, [f"--run_one={name}", *arguments])


def run_one(name):
    """Takes one network the whole way; returns its row.

    Returns:
        {"result": "ok", or what went wrong; "parameters"; "layers"; "integer" and "island": numbers
        of layers and operations; "islands": {class: number of float ones}; "whole": {layer: why it
        was not taken apart}; "bytes"; "agreement": share of equal values, of the largest away;
        "seconds"}, as far as it came.
    """
    start_s = time.perf_counter()
    keras.utils.set_random_seed(0)
    float_model = network(name)
    row = {"result": "wrap", "parameters": float_model.count_params()}
    try:
        take_the_way(float_model, row)
    except Exception as error:  # the table says what failed, and at which stage
        row["result"] = f"{row['result']}: {error}"
    return {**row, "seconds": round(time.perf_counter() - start_s, 1)}


def take_the_way(float_model, row):
    """Fills in a row; its "result" is the stage."""
    images = np.random.default_rng(0).uniform(-1, 1, (FLAGS.images, *SHAPE)).astype("float32")
    model = speq_keras.wrap(float_model, FLAGS.w_bits, FLAGS.a_bits, distillation=None, seed=0)
    row["result"] = "calibrate"
    # Random weights have no moving statistics worth the name: use those of the batch.
    model.calibrate(images, training=True, verbose=0)
    row["result"] = "train"
    model.compile(keras.optimizers.SGD(1e-3), "mse")
    targets = keras.tree.map_structure(np.zeros_like, model(images))
    model.fit(images, targets, batch_size=len(images), verbose=0)
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        model.reestimate_batch_norm(images)
    model.calibrate(images, verbose=0)
    row["result"] = "settle"
    model.settle()
    with tempfile.TemporaryDirectory() as folder:
        row["result"] = "save and load"
        model.save(f"{folder}/m.keras")
        loaded = keras.saving.load_model(f"{folder}/m.keras")
        wanted, found = (m.predict(images, verbose=0) for m in (model, loaded))
        if not all(map(np.array_equal, keras.tree.flatten(wanted), keras.tree.flatten(found))):
            raise ValueError("the loaded model computes other values")
        row["result"] = "export"
        plan = loaded.plan()
        row["whole"] = {
            name: f"{plan.row(name).type}: {why}"
            for name, why in plan.float_layers.items()
            if "stays whole" in why
        }
        report = loaded.export_tflite(f"{folder}/m.tflite", data=images, strict=False)
    verdicts = {row.name: row for row in plan.rows}
    islands = {}
    for name in plan.file.islands:
        kind = verdicts[name].type if name in verdicts else "operation"
        islands[kind] = islands.get(kind, 0) + 1
    row.update(
        integer=sum("integer" in verdict for verdict in plan.file.layers.values()),
        island=len(plan.file.islands),
        islands=islands,
        bytes=report.bytes,
        agreement=str(report.agreement),
        result=OK if report.proof.holds else report.proof.first_failure(),
    )


def markdown_table(rows):
    """Returns the rows as a Markdown table, and below it what stayed whole and why."""
    lines = [
        f"KerasHub {keras_hub.__version__}, Keras {keras.__version__}; "
        f"W{FLAGS.w_bits}/A{FLAGS.a_bits}, {FLAGS.images} images of {SIDE_PX} × {SIDE_PX} pixels.",
        "",
        "| network | parameters | integer | in islands | which | file, bytes "
        "| `predict` and the file | result |",
        "| --- " * 8 + "|",
    ]
    for name, row in rows.items():
        result = row["result"].replace("|", "/").replace("\n", " ")
        if "bytes" not in row:
            lines.append(f"| {name} | {row.get('parameters', '-')} {'| - ' * 5}| {result} |")
            continue
        islands = ", ".join(f"{count} {kind}" for kind, count in sorted(row["islands"].items()))
        lines.append(
            f"| {name} | {row['parameters']:,} | {row['integer']} | {row['island']} "
            f"| {islands or '-'} | {row['bytes']:,} | {row['agreement']} | {result} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
