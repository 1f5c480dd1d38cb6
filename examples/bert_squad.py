"""Question answering by BERT with 3- and 4-bit weights and activations: the paper's Table 8.

    python examples/bert_squad.py                          # short form, no download, minutes
    python examples/bert_squad.py --dataset=squad --preset=bert_base_en_uncased --w_bits=4 \
        --a_bits=4 --checkpoint_dir=checkpoints

Stages, each starting where the previous one ended: `pretrain` (float fine-tuning), `retrain` (plain
quantization-aware training), `control` (more of it) and `speq`, which starts from the retrained
network like `control` and takes as many steps. Prints exact match and F1 of all stages and of the
exported file, and writes `results.json`, the models and the file to `--out_dir`.

Without arguments, a small encoder learns made-up questions ("which car?") from scratch, with W4/A4.
`--dataset=squad` reads SQuAD 1.1 through TensorFlow Datasets. A `--preset` is a BERT of KerasHub
with its tokenizer; without one, a small encoder reads whole words. With `--checkpoint_dir` a killed
run resumes from its last checkpoint.

The paper states the widths and that BERT is fine-tuned in float first; steps, rates and the
temperature are ours.
"""

import json
import time

import quiet_start  # noqa: F401 - before Keras

import keras
import numpy as np
from absl import app, flags

try:
    import keras_hub
except ImportError:
    raise SystemExit(
        "bert_squad.py needs KerasHub, which is not installed. Run: pip install 'speq-keras[hub]'"
    ) from None

import speq_keras
import squad
import training_run
from program_flags import (
    ACTIVATION_QUANTIZERS,
    DISTILLATIONS,
    WEIGHT_QUANTIZERS,
    WIDTHS,
    bits,
    check_words,
    own_flags,
    set_defaults,
)

FLAGS = flags.FLAGS
STAGES = ("pretrain", "retrain", "control", "speq")
HEADS = ("start", "end")
INPUTS = ("padding_mask", "segment_ids", "token_ids")

flags.DEFINE_enum("dataset", "embedded", ("embedded", "squad"), "Made-up questions, or SQuAD 1.1.")
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")
flags.DEFINE_bool("download", False, "Let TensorFlow Datasets download the data set.")
flags.DEFINE_integer("train_examples", None, "Number of training questions; default all.", 1)
flags.DEFINE_integer("test_examples", None, "Number of test questions; default all.", 1)
flags.DEFINE_string("preset", None, "A BERT of KerasHub: bert_base_en_uncased, ..., a folder.")
flags.DEFINE_string("weights", None, "A .keras file with float weights of the whole network.")
flags.DEFINE_integer("layers", 2, "Encoder layers, without a preset.", 1)
flags.DEFINE_integer("width", 64, "Numbers per token, without a preset.", 2)
flags.DEFINE_integer("length", 384, "Tokens per window.", 8)
flags.DEFINE_integer("stride", 128, "Tokens between the starts of windows.", 1)

flags.DEFINE_list("stages", list(STAGES), "Some of pretrain, retrain, control, speq.")
flags.DEFINE_enum("w_bits", "4", WIDTHS, "Width of the weights, in bits.")
flags.DEFINE_enum("a_bits", "4", WIDTHS, "Width of the activations, in bits.")
flags.DEFINE_enum("weight_quantizer", "sawb", WEIGHT_QUANTIZERS, "For weights.")
flags.DEFINE_enum("activation_quantizer", "lsq_plus", ACTIVATION_QUANTIZERS, "For activations.")
flags.DEFINE_enum("distillation", "cosine", DISTILLATIONS, "The loss of SPEQ.")
flags.DEFINE_float("temperature", 2.0, "T of Eq. 2.", 0.0)
flags.DEFINE_float("u", 0.5, "Probability of the target width in the teacher (Eq. 1).", 0, 1)
for _stage in ("pretrain", "retrain", "speq"):
    flags.DEFINE_integer(f"{_stage}_epochs", 2, f"Epochs of {_stage}.", 1)
    flags.DEFINE_float(
        f"{_stage}_learning_rate", 3e-5, "Peak, after a tenth of the steps, as in BERT.", 0.0
    )
flags.DEFINE_integer("batch_size", 32, "Windows per step.", 1)
flags.DEFINE_integer("calibration_examples", 256, "Training windows that set the ranges.", 1)
flags.DEFINE_integer("seed", 0, "Seed of weights, draws, order.", 0)
flags.DEFINE_string("checkpoint_dir", None, "A killed run that is restarted resumes from here.")
flags.DEFINE_integer("checkpoint_steps", None, "Most steps between two; default one per epoch.", 1)
flags.DEFINE_string("out_dir", "out/bert", "Folder for the files this program writes.")


def main(_):
    training_run.silence_notices()
    check_words("stages", STAGES)
    if FLAGS.dataset == "embedded":
        print("This is the short form: a small encoder, made-up questions, from scratch.\n")
        set_defaults(
            {
                "train_examples": 8_000,
                "test_examples": 1_000,
                "length": 32,
                "batch_size": 64,
                "pretrain_epochs": 8,
                "pretrain_learning_rate": 3e-3,
                "retrain_epochs": 1,
                "speq_epochs": 1,
                "retrain_learning_rate": 1e-3,
                "speq_learning_rate": 1e-3,
            }
        )
    out_dir = training_run.make_folder(FLAGS.out_dir)
    try:
        course = Course(out_dir)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    rows = [course.run(stage) for stage in STAGES if stage in FLAGS.stages]
    if course.quantized is not None:
        rows += course.export(out_dir / "bert.tflite")
    print(f"\n{table(rows)}\n")
    content = {"flags": own_flags(__name__), "rows": rows}
    training_run.write_file(
        out_dir / "results.json", lambda path: path.write_text(json.dumps(content, indent=1))
    )
    print(f"Wrote results.json, the models and the file to {out_dir}")


class Course:
    """Questions, and the networks of the completed stages.

    Args:
        out_dir: Folder for the models.
    """

    def __init__(self, out_dir):
        self.out_dir = out_dir
        free = ("stages", "out_dir", "checkpoint_dir")
        binding = {k: v for k, v in own_flags(__name__).items() if k not in free}
        self.folder = training_run.checkpoint_folder(FLAGS.checkpoint_dir, out_dir, binding)
        self.log = training_run.Log(self.folder / "log.jsonl")
        self.train_questions, self.test_questions = questions()
        tokens = squad.Words(self.train_questions)
        if FLAGS.preset:
            tokens = squad.WordPieces(FLAGS.preset)
        window = {"length": FLAGS.length, "stride": FLAGS.stride}
        self.train = squad.windows_of(self.train_questions, tokens, **window)
        self.test = squad.windows_of(self.test_questions, tokens, **window)
        self.steps = max(1, len(self.train) // FLAGS.batch_size)
        keras.utils.set_random_seed(FLAGS.seed)
        self.float_network = network(len(tokens))
        if FLAGS.weights:
            self.float_network.load_weights(FLAGS.weights)
        self.retrained = self.quantized = None

    def run(self, stage):
        """Trains a stage; returns its row of the table."""
        model = self.float_network if stage == "pretrain" else self.next_quantized(stage)
        setting = "speq" if stage == "control" else stage
        epochs, rate = FLAGS[f"{setting}_epochs"].value, FLAGS[f"{setting}_learning_rate"].value
        compile_model(model, rate, epochs * self.steps)
        start = time.perf_counter()
        training_run.fit(
            model,
            stage,
            lambda step: batches(self.train, step, FLAGS.batch_size, FLAGS.seed),
            None,
            epochs=epochs,
            steps_per_epoch=self.steps,
            checkpoint_steps=FLAGS.checkpoint_steps,
            batch_size=FLAGS.batch_size,
            folder=self.folder / stage,
            log=self.log,
        )
        seconds = time.perf_counter() - start
        training_run.write_file(self.out_dir / f"{stage}.keras", model.save)
        if stage == "retrain":
            self.retrained = model
        self.quantized = model if stage != "pretrain" else None
        return self.row(stage, model.predict(self.test.inputs, verbose=0), epochs, seconds)

    def next_quantized(self, stage):
        """Returns a quantized network with the weights that a stage starts from."""
        model = speq_keras.wrap(
            self.float_network,
            w_bits=bits(FLAGS.w_bits),
            a_bits=bits(FLAGS.a_bits),
            distillation=FLAGS.distillation if stage == "speq" else None,
            temperature=FLAGS.temperature,
            quantization_probability=FLAGS.u if stage == "speq" else None,
            weight_quantizer=FLAGS.weight_quantizer,
            activation_quantizer=FLAGS.activation_quantizer,
            skip=("far", *HEADS),
            seed=FLAGS.seed,
        )
        if self.retrained is None:
            first = {k: x[: FLAGS.calibration_examples] for k, x in self.train.inputs.items()}
            model.calibrate(first, training=True, verbose=0)
        else:
            model.set_weights(self.retrained.get_weights())
        return model

    def row(self, name, logits, epochs=0, seconds=0.0):
        """Prints and returns exact match and F1 of start and end logits."""
        answers = squad.answers_of(self.test, self.test_questions, *(logits[h] for h in HEADS))
        exact, f1 = squad.scores_of(answers, self.test_questions)
        print(f"{name}: exact match {exact:.1f}, F1 {f1:.1f}", flush=True)
        steps = epochs * self.steps
        return {"name": name, "exact": exact, "f1": f1, "steps": steps, "seconds": seconds}

    def export(self, path):
        """Settles and exports the last network; returns rows for both the network and the file."""
        inputs = self.test.inputs
        print(f"\n{self.quantized.settle(storage='int4')}")
        report = self.quantized.export_tflite(
            path, data={name: x[:32] for name, x in inputs.items()}, storage="int4"
        )
        print(f"\n{report}\n")
        arrays = [inputs[name] for name in INPUTS]
        settled = self.quantized.predict(inputs, verbose=0)
        in_file = speq_keras.export.run_file(path.read_bytes(), arrays)
        names = self.quantized.output_names
        return [
            self.row("settled", settled),
            self.row(".tflite", dict(zip(names, in_file, strict=True))),
        ]


def questions():
    """Returns training and test questions."""
    if FLAGS.dataset == "embedded":
        train = squad.embedded(FLAGS.train_examples, seed=FLAGS.seed)
        return train, squad.embedded(FLAGS.test_examples, seed=FLAGS.seed + 1_000_000)
    return squad.load(
        FLAGS.data_dir,
        download=FLAGS.download,
        train_examples=FLAGS.train_examples,
        test_examples=FLAGS.test_examples,
    )


def network(token_count):
    """Returns a float network from tokens to the logits of the answer's first and last tokens.

    Padding gets −1e9, so it has no effect on softmax, cross-entropy and distillation.
    """
    inputs = {name: keras.Input((FLAGS.length,), dtype="int32", name=name) for name in INPUTS}
    if FLAGS.preset:
        backbone = keras_hub.models.BertBackbone.from_preset(FLAGS.preset)
    else:
        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=token_count,
            num_layers=FLAGS.layers,
            num_heads=max(1, FLAGS.width // 16),
            hidden_dim=FLAGS.width,
            intermediate_dim=4 * FLAGS.width,
            max_sequence_length=FLAGS.length,
            dropout=0.0,
        )
        # BERT's weights are initialized with a deviation of 0.02, for a width of 768. In a narrow
        # network that is so small that attention is nearly uniform for thousands of steps.
        for variable in backbone.trainable_variables:
            if variable.name == "kernel":
                variable.assign(variable * (FLAGS.width**-0.5 / 0.02))
    x = keras.Model(backbone.input, backbone.output["sequence_output"])(inputs)
    mask = keras.ops.cast(inputs["padding_mask"], "float32")
    far = keras.layers.Rescaling(1e9, offset=-1e9, name="far")(mask)
    logits = {}
    for name in HEADS:
        column = keras.layers.Dense(1, name=f"{name}_dense")(x)
        column = keras.layers.Reshape((FLAGS.length,), name=f"{name}_places")(column)
        logits[name] = keras.layers.Add(name=name)([column, far])
    return keras.Model(inputs, logits)


def compile_model(model, rate, steps):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rise = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - rise, warmup_target=rate, warmup_steps=rise
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, clipnorm=1.0)
    model.compile(optimizer, dict.fromkeys(HEADS, loss), loss_weights=dict.fromkeys(HEADS, 0.5))


def batches(windows, first_step, batch_size, seed):
    """Yields endless batches from a step on, with a new order for each pass."""
    per_pass = max(1, len(windows) // batch_size)
    step = first_step
    while True:
        order = np.random.default_rng((seed, step // per_pass)).permutation(len(windows))
        for place in range(step % per_pass, per_pass):
            rows = order[place * batch_size : (place + 1) * batch_size]
            inputs = {name: array[rows] for name, array in windows.inputs.items()}
            yield inputs, {"start": windows.starts[rows], "end": windows.ends[rows]}
            step += 1


def table(rows):
    """Returns the results in Markdown."""
    lines = ["| stage | exact match, % | F1, % | steps | s |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        figures = f"{row['exact']:.1f} | {row['f1']:.1f} | {row['steps']} | {row['seconds']:.0f}"
        lines.append(f"| {row['name']} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
