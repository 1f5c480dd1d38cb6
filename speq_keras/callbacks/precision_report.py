"""PrecisionReport: student and teacher side by side, epoch by epoch."""

import keras
import numpy as np
from keras import ops, tree

from speq_keras._checks import check_choice, check_count, check_seed, describe
from speq_keras.callbacks.student import student_of
from speq_keras.data import (
    check_data,
    check_numbers,
    class_numbers,
    inputs_of,
    is_array,
    packed,
    read,
)
from speq_keras.precision import TeacherPrecision
from speq_keras.processes import from_first_process, is_first_process, local_values, process_count
from speq_keras.training.heads import find_heads, values_per_output

_RULE = (
    "`data` must be (inputs, labels) or (inputs, labels, sample_weight), or a data set or list of "
    "such batches."
)
FIGURES = ("student_accuracy", "teacher_accuracy", "agreement", "distance")


class PrecisionReport(keras.callbacks.Callback):
    """Evaluates the network as student and as its own teacher, and compares their outputs.

    At the end of every epoch the logs get

        student_accuracy    of the network at its own widths
        teacher_accuracy    of the same network at widths drawn as in training (Eq. 1)
        agreement           how often both have the same top class
        distance            mean L2 distance between their softmax or sigmoid outputs

    These are also in `History` and available to every later callback in the list (`CSVLogger`,
    `TensorBoard`). If a model has several outputs, the name of the output is a prefix:
    "digit_student_accuracy". SPEQ reduces the distance; it relies on the teacher being the better
    one.

    Both run in inference mode, with moving statistics and without dropout, unlike in training.
    External teachers play no part. Neither the model nor its random state changes: each batch has
    its own draw, and the draws are the same in every epoch. `set_bits` affects the drawn widths
    only through the target width itself. A model with `distillation=None` is evaluated as the
    teacher that its `teacher_precision` would give.

    Every position of a sequence counts, even if masked, unless its sample weight is 0. With several
    processes, each with its own data, the figures are those of the first one.

    Args:
        data: Held-out data: `(inputs, labels)` or `(inputs, labels, sample_weight)` as arrays, a
            `tf.data.Dataset` or a `PyDataset` of such batches, or a list of them; not a generator,
            which is exhausted after one epoch. Labels are class numbers or one-hot.
        batch_size: Examples per batch, for arrays.
        steps: Batches per epoch; None takes all. Required for infinite data.
        teacher_precision: How the teacher's widths are drawn; None: as in training.
            `precision.Fixed(8)` evaluates it at 8 bits everywhere.
        draws: Teachers per batch; the figures are averaged over them.
        seed: Seed of the draws, a whole number.
        verbose: 1 prints a line per epoch.

    Raises:
        TypeError, ValueError: If an argument is not allowed; raised in `fit` if that depends on the
            model or the batches.

    Example:
        >>> import numpy as np, speq_keras
        >>> layers = keras.layers
        >>> float_model = keras.Sequential([
        ...     keras.Input((4,)),
        ...     layers.Dense(8, activation="relu"),
        ...     layers.Dense(8, activation="relu"),
        ...     layers.Dense(3, activation="softmax"),
        ... ])
        >>> model = speq_keras.wrap(float_model, w_bits=2, a_bits=2)
        >>> x, y = np.random.rand(32, 4).astype("float32"), np.random.randint(0, 3, 32)
        >>> model.calibrate(x, verbose=0)
        >>> model.compile("sgd", "sparse_categorical_crossentropy")
        >>> report = speq_keras.callbacks.PrecisionReport((x, y))
        >>> history = model.fit(x, y, epochs=2, callbacks=[report], verbose=0).history
        >>> len(history["teacher_accuracy"])
        2
        >>> sorted(report.measure(model))
        ['agreement', 'distance', 'student_accuracy', 'teacher_accuracy']
    """

    def __init__(
        self,
        data,
        *,
        batch_size=32,
        steps=None,
        teacher_precision=None,
        draws=1,
        seed=0,
        verbose=0,
    ):
        super().__init__()
        self.batch_size = check_count("batch_size", batch_size)
        self.steps = check_count("steps", steps, optional=True)
        self.data = _check_data(data, steps)
        if not isinstance(teacher_precision, TeacherPrecision | None):
            raise TypeError(
                "`teacher_precision` must be a TeacherPrecision, such as precision.Fixed(8), or "
                f"None: that of the model. {describe(teacher_precision=teacher_precision)}"
            )
        self.teacher_precision = teacher_precision
        self.draws = check_count("draws", draws)
        if seed is None:
            raise ValueError(
                "`seed` must be a whole number, because all epochs get the same draws. "
                f"{describe(seed=seed)} Leave it out, or pass 0."
            )
        self.seed = check_seed(seed)
        self.verbose = check_choice("verbose", verbose, (0, 1))

    def on_train_begin(self, logs=None):
        """Checks that model and data fit together."""
        self._read(self.model)

    def on_epoch_end(self, epoch, logs=None):
        """Adds the figures to the logs of the epoch."""
        figures = self.measure(self.model)
        if logs is not None:
            logs.update(figures)
        if self.verbose and is_first_process():
            text = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
            print(f"Epoch {epoch + 1}: {text}", flush=True)

    def measure(self, model):
        """Returns the figures of a model in its current state: {name: number}.

        Args:
            model: A `SPEQModel`, or an `Apprentice` or `CoStudy` with one; compiled, unless its
                outputs are a softmax or sigmoid.

        Raises:
            TypeError, ValueError: If the model or the data have no such figures.
        """
        student, heads, rule = self._read(model)
        random = keras.random.SeedGenerator(self.seed, name="precision_report")
        sums = {head.name: np.zeros(len(FIGURES) + 1) for head in heads}
        for batch in self._batches(student):
            labels = values_per_output(student, batch.y)
            weights = values_per_output(student, batch.sample_weight)
            x = packed(student, batch.x)
            mine = _predict(student, x)
            for _ in range(self.draws):
                theirs = _predict(student, x, _draw(student, rule, random))
                for head in heads:
                    sums[head.name] += _sums(
                        head,
                        mine[head.index],
                        theirs[head.index],
                        labels[head.index],
                        weights[head.index],
                    )
        figures = {}
        for name, parts in sums.items():
            parts = from_first_process(parts)
            if not parts[-1]:
                raise ValueError(
                    "`data` of a PrecisionReport must hold examples. Received: none, or sample "
                    "weights that are all 0. Pass held-out data."
                )
            prefix = f"{name}_" if len(student.outputs) > 1 else ""
            means = parts[:-1] / parts[-1]
            figures |= {
                f"{prefix}{figure}": float(mean)
                for figure, mean in zip(FIGURES, means, strict=True)
            }
        return figures

    def _batches(self, student):
        batches = read(
            self.data,
            inputs_of(student),
            batch_size=self.batch_size,
            steps=self.steps,
            labels=True,
        )
        for batch in batches:
            if batch.y is None:
                raise TypeError(f"{_RULE} Received: a batch without labels.")
            yield batch

    def _read(self, model):
        """Returns (student, heads, teacher precision), after checking that there is a teacher."""
        student = student_of(model, type(self).__name__)
        if not student.target_quantizers:
            raise ValueError(
                "`PrecisionReport` draws the widths of the activation quantizers that have the "
                f"target width, and this model has none. {describe(model=student.name)} Wrap the "
                "float model with a width as `a_bits`, or leave the callback out."
            )
        heads, others = find_heads(student, model.loss)
        if not heads:
            raise ValueError(
                "`PrecisionReport` compares classes: an output must be a softmax or sigmoid, or "
                f"have a cross-entropy with from_logits=True. Received: outputs {others}. Leave "
                "the callback out."
            )
        rule = self.teacher_precision or student.teacher_precision
        rule.check(len(student.target_quantizers))
        if _draw_count(student, rule) > 1:
            raise ValueError(
                "`teacher_precision` of a PrecisionReport must draw one teacher, and this rule "
                f"tries several and takes the best in training. {describe(teacher_precision=rule)} "
                "Pass teacher_precision=precision.Fixed(8)."
            )
        return student, heads, rule


def _rows(student, rule, random):
    target = np.float32([quantizer.bits or 0 for quantizer in student.target_quantizers])
    return ops.convert_to_numpy(rule.candidates(ops.convert_to_tensor(target), random))


def _draw_count(student, rule):
    return len(_rows(student, rule, keras.random.SeedGenerator(0, name="precision_report")))


def _draw(student, rule, random):
    """Returns [(width variable, width)] of one teacher."""
    (row,) = _rows(student, rule, random)
    return [(q.width, float(bits)) for q, bits in zip(student.target_quantizers, row, strict=True)]


def _predict(model, x, widths=()):
    """Returns the outputs as a flat list of arrays, with the given widths set meanwhile."""
    if process_count() > 1:
        # A compiled pass would need all processes and all of their data.
        with keras.StatelessScope([*local_values(model.variables), *widths]):
            outputs = tree.flatten(model(x, training=False))
        return [ops.convert_to_numpy(output) for output in outputs]
    before = [(width, ops.convert_to_numpy(width)) for width, _ in widths]
    examples = len(tree.flatten(x)[0])
    try:
        for width, value in widths:
            width.assign(value)
        return tree.flatten(model.predict(x, batch_size=examples, verbose=0))
    finally:
        for width, value in before:
            width.assign(value)


def _sums(head, student, teacher, labels, weights):
    """Returns the weighted sums of the figures over a batch, and the sum of the weights."""
    student, teacher = (_probabilities(head, outputs) for outputs in (student, teacher))
    mine, theirs = (_decisions(head, outputs) for outputs in (student, teacher))
    truth = _truth(head, labels, student.shape)
    apart = np.linalg.norm(student - teacher, axis=-1)
    if head.kind == "sigmoid":  # accuracy is per label, the distance is over all labels
        apart = np.broadcast_to(apart[..., None], mine.shape)
    weights = _weights(weights, mine.shape)
    found = (mine == truth, theirs == truth, mine == theirs, apart)
    return np.array([*(np.sum(weights * values) for values in found), np.sum(weights)])


def _probabilities(head, outputs):
    outputs = np.asarray(outputs, "float64")
    if head.ends_in_function:
        return outputs
    if head.kind == "sigmoid":
        return 1 / (1 + np.exp(-np.clip(outputs, -700, 700)))
    powers = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _decisions(head, probabilities):
    return probabilities > 0.5 if head.kind == "sigmoid" else probabilities.argmax(axis=-1)


def _truth(head, labels, shape):
    """Returns the labels in the form of `_decisions`."""
    if head.kind == "softmax":
        return class_numbers(labels, shape, output=head.name)
    # Every entry is a separate label with two classes, 0 and 1.
    return class_numbers(labels, (*shape, 2), output=head.name) > 0.5


def _weights(weights, shape):
    """Returns sample weights, of an example or of its positions, spread over `shape`."""
    if weights is None:
        return np.ones(shape)
    weights = np.asarray(ops.convert_to_numpy(weights), "float64")
    if weights.ndim > len(shape):
        weights = weights.reshape(weights.shape[: len(shape)])
    return np.broadcast_to(
        weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape
    )


def _check_data(data, steps):
    if is_array(data) or isinstance(data, dict):
        raise TypeError(f"{_RULE} Received: data of type {type(data).__name__}.")
    if isinstance(data, tuple) and len(data) not in (2, 3):
        raise TypeError(f"{_RULE} Received: a tuple of {len(data)}.")
    return check_numbers(check_data(data, steps=steps, again=True))
