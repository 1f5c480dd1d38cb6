"""The table and the curves of `efficientnet_imagenet.py`."""

from absl import flags
from matplotlib.figure import Figure

from curve_axis import show_differences

FLAGS = flags.FLAGS
# Top-1 accuracy on ImageNet in %, W3/A3 (Boo et al., 2021, Table 6).
PAPER = {"float": 76.7, "retrain": 68.4, "speq": 69.5}
PAPER_TEACHERS = "with EfficientNet-B1 as teacher: Apprentice 68.4, QKD 69.2"


def table(experiment):
    """Returns a Markdown table, a row per stage, with the paper's numbers if settings match."""
    is_papers = (
        FLAGS.model == "EfficientNetB0"
        and FLAGS.dataset == "imagenet2012"
        and not FLAGS.image_folder
        and (FLAGS.w_bits, FLAGS.a_bits, FLAGS.image_size) == ("3", "3", 224)
    )
    lines = [
        f"{FLAGS.model}, {FLAGS.image_size} pixels, W{FLAGS.w_bits}/A{FLAGS.a_bits}, "
        f"{FLAGS.image_folder or FLAGS.dataset}: {experiment.data.train_count} training and "
        f"{experiment.data.test_count} test images, seed {FLAGS.seed}",
        "",
        f"| stage | test, % |{' paper, % |' if is_papers else ''} test loss | kB | steps | s |",
        "| --- " * (7 if is_papers else 6) + "|",
    ]

    def row(stage, accuracy, loss, size, steps, seconds):
        name = "float" if stage in ("pretrain", "float, as given") else stage
        paper = [str(PAPER.get(name, "-"))] if is_papers else []
        cells = (name, f"{100 * accuracy:.2f}", *paper, loss, f"{size / 1e3:,.0f}", steps, seconds)
        lines.append(f"| {' | '.join(cells)} |")

    for r in experiment.results:
        row(
            r["stage"],
            r["test_accuracy"],
            f"{r['test_loss']:.3f}",
            r["bytes"],
            str(r["steps"]),
            f"{r['seconds']:.0f}",
        )
    if experiment.export:
        e = experiment.export
        size = experiment.results[-1]["bytes"]
        row(f"settled, {e['examples']} images", e["settled"], "-", size, "-", "-")
        row(f".tflite, {e['examples']} images", e["file"], "-", e["bytes"], "-", "-")
        lines.append("")
        if e["file_as_settled"] is not None:  # several processes do not compare image by image
            lines.append(
                f"On these {e['examples']} images the file agrees with the settled model on "
                f"{e['file_as_settled']:.2%}, and with the model before settling on "
                f"{e['file_as_trained']:.2%}."
            )
        lines.append(
            f"{e['proof']['rounded']:,} roundings of the trained network compared with the file's "
            f"codes, {e['proof']['outside']} differ."
        )
    names = [r["stage"] for r in experiment.results]
    if "speq" in names and "control" not in names:
        lines.append(
            "SPEQ continued from `retrain`: how it compares with as many steps of plain training, "
            "--stages=pretrain,retrain,control,speq shows."
        )
    if is_papers:
        lines += ["", f"The paper's other methods, {PAPER_TEACHERS}."]
    return "\n".join(lines)


PANELS = {
    "task_loss": "task loss in training",
    "accuracy": "accuracy in training",
    "val_accuracy": "test accuracy",
    "learning_rate": "learning rate",
    "distillation_loss": "distillation loss",
    "teacher_accuracy": "accuracy at 8-bit activations",
}


def curves(rows):
    """Returns a figure of the log's figures over the steps, with a colour per stage."""
    rows = [{"task_loss": row["loss"], **row} for row in rows]
    panels = [name for name in PANELS if any(name in row for row in rows)]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    columns = -(-len(panels) // 2)
    figure = Figure(figsize=(4.3 * columns, 7), layout="constrained")
    drawn = dict(zip(panels, figure.subplots(2, columns).flat, strict=False))
    for name, axes in drawn.items():
        for number, stage in enumerate(stages):
            points = [
                (row["step"], row[name]) for row in rows if row["stage"] == stage and name in row
            ]
            if any(value for _, value in points):
                axes.plot(*zip(*points, strict=True), f"C{number}.-", label=stage)
        axes.set(title=PANELS[name], xlabel="step of the stage")
        axes.grid(alpha=0.3)
        axes.legend()
    # One axis for all accuracies: training, testing, and at both widths.
    show_differences([axes for name, axes in drawn.items() if "accuracy" in name], least=0.02)
    return figure
