"""What quantizers leave of a vision transformer's accuracy, and whether its file is that network.

    python examples/benchmarks/vit.py

scikit-learn's digits in 2 × 2 patches: 16 tokens of 32 features with learned positions, two blocks
of LayerNormalization, MultiHeadAttention and a GELU MLP, the average of the tokens, Dense(10). One
split of the images per seed; the float network is trained on them and on shifted copies, then
wrapped and fine-tuned, and beside it trained on in float for as long a time.

LayerNormalization is computed in float in the file, too, so that the second table, of file and
`predict` on shifted and noisy copies of the test images, is that of a network with float islands.
Prints two Markdown tables and writes `vit.json`.
"""

import json
import logging
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # of the next imports
import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
import paired_splits
from absl import app, flags
from keras import layers

from program_flags import own_flags, set_defaults
from training_run import write_file

FLAGS = flags.FLAGS
flags.DEFINE_integer("features", 32, "Features of a token.", 1)
flags.DEFINE_integer("heads", 4, "Heads of an attention, which share the features.", 1)
flags.DEFINE_integer("blocks", 2, "Blocks of attention and MLP.", 1)
flags.adopt_module_key_flags(paired_splits)
set_defaults({"epochs": 6})

RECIPE = paired_splits.Recipe(
    optimizer=keras.optimizers.AdamW, cosine=True, batch_size=128, shifted_copies=8
)


def main(_):
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # many models are compiled, all wanted
    if FLAGS.features % FLAGS.heads:
        raise SystemExit(
            f"--features takes a multiple of --heads={FLAGS.heads}. Received: {FLAGS.features}."
        )
    out_dir = pathlib.Path(FLAGS.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    file = out_dir / "vit.tflite"
    runs = [
        paired_splits.run(network, int(seed), RECIPE, file, network="ViT") for seed in FLAGS.seeds
    ]
    rows = [row for rows in runs for row in rows]
    tables = f"{paired_splits.accuracy_table(rows, 'network')}\n\n{file_table(rows)}"
    print(f"\n{tables}")
    results = {"flags": own_flags(__name__), "tables": tables, "runs": runs}
    write_file(out_dir / "vit.json", lambda path: path.write_text(json.dumps(results, indent=1)))


class Positions(layers.Layer):
    """Adds a learned vector to each token: its place."""

    def build(self, input_shape):
        self.vectors = self.add_weight(
            shape=input_shape[1:],
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="vectors",
        )

    def call(self, tokens):
        return tokens + self.vectors


def network():
    """Returns a float vision transformer."""
    features = FLAGS.features
    inputs = keras.Input((8, 8))
    x = layers.Reshape((8, 8, 1))(inputs)
    x = layers.Conv2D(features, 2, strides=2, name="patches")(x)
    x = Positions(name="positions")(layers.Reshape((16, features))(x))
    for number in range(1, FLAGS.blocks + 1):
        y = layers.LayerNormalization(name=f"attention_norm_{number}")(x)
        attention = layers.MultiHeadAttention(
            FLAGS.heads, features // FLAGS.heads, name=f"attention_{number}"
        )
        x = layers.Add()([x, attention(y, y)])
        y = layers.LayerNormalization(name=f"mlp_norm_{number}")(x)
        y = layers.Dense(2 * features, activation="gelu", name=f"mlp_{number}")(y)
        x = layers.Add()([x, layers.Dense(features, name=f"mlp_out_{number}")(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(name="norm")(x))
    return keras.Model(inputs, layers.Dense(10, name="classes")(x))


def file_table(rows):
    """Returns the Markdown table of file and `predict`, before `settle` and after it."""
    lines = [
        "| network | of copies, %: `predict` | its file | difference | settled, `predict` "
        "| its file | difference | file, kB | float islands |",
        "| --- " * 9 + "|",
    ]
    for label, own in paired_splits.by_width(rows, "network"):
        cells = [label]
        for trained, file in (("copies", "file_before"), ("settled", "file")):
            ours, theirs = (paired_splits.values(own, name) for name in (trained, file))
            cells += [f"{np.mean(ours):.2f}", f"{np.mean(theirs):.2f}"]
            cells.append(paired_splits.spread(theirs - ours))
        kilobytes = paired_splits.values(own, "file_bytes") / 1000
        islands = sorted({name for row in own for name in row["islands"]})
        cells += [f"{np.mean(kilobytes):.1f}", ", ".join(islands)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
