"""Tables 8 and 9 of the paper, which are programs of their own beside this folder."""

import json
import pathlib
import subprocess
import sys

from absl import flags
from results import spread

FLAGS = flags.FLAGS
EXAMPLES = pathlib.Path(__file__).resolve().parents[1]
# Exact match and F1 in % of BERT-Base in float (Boo et al., 2021, before Table 8).
FLOAT_BERT = (81.1, 88.6)
BERT_WIDTHS = (4, 3, 2)  # the last is ours
BERT_OF_SCALE = {
    "short": ["--train_examples=1280", "--test_examples=40"],
    "cpu": [],
    "full": ["--dataset=squad", "--preset=bert_base_en_uncased"],
}


def run_bert():
    """Runs Table 8: all widths with each seed, from the same float network, and prints it."""
    folder = pathlib.Path(FLAGS.out_dir).expanduser() / FLAGS.scale / "table8"
    shared = [*BERT_OF_SCALE[FLAGS.scale]]
    if FLAGS.scale == "full":
        shared += [f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir else []
        shared += ["--download"] if FLAGS.download else []
    rows = {}
    for seed in FLAGS.seed:
        first = folder / f"seed{seed}_W{BERT_WIDTHS[0]}A{BERT_WIDTHS[0]}"
        for bits in BERT_WIDTHS:
            out_dir = folder / f"seed{seed}_W{bits}A{bits}"
            flags_of_run = [f"--w_bits={bits}", f"--a_bits={bits}", f"--seed={seed}"]
            flags_of_run += [f"--checkpoint_dir={out_dir / 'checkpoints'}"]
            if out_dir != first:
                flags_of_run += [
                    f"--weights={first / 'pretrain.keras'}",
                    "--stages=retrain,control,speq",
                ]
            path = out_dir / "results.json"
            if not path.exists():
                run_program("bert_squad.py", *shared, *flags_of_run, f"--out_dir={out_dir}")
            for row in json.loads(path.read_text())["rows"]:
                widths = "float" if row["name"] == "pretrain" else f"W{bits}/A{bits}"
                rows.setdefault((widths, row["name"]), []).append(row)
    print(f"\n{bert_table(rows)}\n", flush=True)


def bert_table(rows):
    """Returns Table 8 in Markdown from {(widths, stage): rows of `bert_squad.py`, one per seed}."""
    seeds = max(map(len, rows.values()))
    lines = [
        f"Table 8, {FLAGS.scale}, {seeds} seed(s); in brackets: the paper, BERT-Base on SQuAD 1.1",
        "",
        "| W/A | stage | exact match, % | F1, % | steps | s |",
        "| --- " * 6 + "|",
    ]
    for (widths, stage), of_seeds in rows.items():
        scores = [spread([row[score] for row in of_seeds], digits=1) for score in ("exact", "f1")]
        if widths == "float":
            scores = [f"{ours} ({paper})" for ours, paper in zip(scores, FLOAT_BERT, strict=True)]
        seconds = spread([row["seconds"] for row in of_seeds], digits=0)
        columns = (widths, stage, *scores, str(of_seeds[0]["steps"]), seconds)
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def run_transfer():
    """Runs Table 9."""
    if FLAGS.scale != "short":
        raise SystemExit(
            "Table 9 at this scale needs trained feature extractors: run examples/transfer.py."
        )
    out_dir = pathlib.Path(FLAGS.out_dir).expanduser() / FLAGS.scale / "table9"
    run_program("transfer.py", f"--out_dir={out_dir}", *(f"--seed={seed}" for seed in FLAGS.seed))


def run_program(name, *arguments):
    """Runs an example; ends this program if it fails."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise SystemExit(status)


TABLES = {8: run_bert, 9: run_transfer}
