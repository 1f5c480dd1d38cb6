"""ActivationSnapshot: plots of what the activation quantizers do, epoch by epoch."""

import io

import keras
import numpy as np

from speq_keras._checks import check_bool, check_count, check_installed, describe
from speq_keras.callbacks import drawing
from speq_keras.callbacks.observation import observe
from speq_keras.callbacks.student import student_of
from speq_keras.configs.quantize_config import matches
from speq_keras.data import check_data, check_numbers, first_batch, inputs_of, packed
from speq_keras.files import check_folder, write_safely


class ActivationSnapshot(keras.callbacks.Callback):
    """Plots, at the end of epochs, the inputs and codes of every activation quantizer.

    A picture has a panel per quantizer: above, the distribution of its float inputs, with its
    levels as lines; below, how often each of its codes is used. Codes that are never used are
    wasted bits; values far beyond the last level are cut off by the clipping level. The files are
    `epoch_0001.png` after the first epoch and so on; networks with more than 24 quantizers get
    pages, `epoch_0001_01.png` and so on. A page takes seconds: use `layers` and `every` to limit
    them.

    The student runs on the batch in inference mode. Neither the model nor any random state changes:
    training continues as it would without the callback. Of several processes the first one writes.

    Args:
        data: A batch of inputs in the form that the model takes: an array, or a list or dict of
            arrays, which together are one batch. From anything else that `SPEQModel.calibrate`
            accepts, the first batch, which is read once.
        directory: Folder for the pictures, created if needed.
        layers: Name or names of activation quantizers, shell patterns ("block1*"); None: all.
        every: Epochs between two pictures.
        tensorboard: Whether to write TensorBoard events to `directory`, too: the histogram of the
            codes under "codes/" and the quantizer's name, one bucket per code. The step is the
            index of the epoch, counted from 0 as in Keras' TensorBoard callback. Needs TensorFlow,
            on every backend.

    Raises:
        TypeError, ValueError: If an argument is not allowed; in `fit` if that depends on the model.
        RuntimeError: If Matplotlib, or TensorFlow for `tensorboard`, is not installed.

    Example:
        >>> import numpy as np, os, speq_keras, tempfile
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
        >>> folder = tempfile.mkdtemp()
        >>> snapshot = speq_keras.callbacks.ActivationSnapshot(x[:8], folder, every=2)
        >>> _ = model.fit(x, y, epochs=4, callbacks=[snapshot], verbose=0)
        >>> sorted(os.listdir(folder))
        ['epoch_0002.png', 'epoch_0004.png']
    """

    def __init__(self, data, directory, *, layers=None, every=1, tensorboard=False):
        super().__init__()
        self.data = check_numbers(check_data(data, steps=1))
        self._first = None
        self.directory = check_folder(directory, name="directory")
        self.layers = _check_names(layers)
        self.every = check_count("every", every)
        self.tensorboard = check_bool("tensorboard", tensorboard)
        check_installed("matplotlib", "`ActivationSnapshot` draws with Matplotlib")
        if tensorboard:
            check_installed("tensorflow", "`tensorboard`=True writes with TensorFlow")
        self._writer = None

    def on_train_begin(self, logs=None):
        """Checks that model, names and data fit together."""
        self.chosen()
        self._batch()

    def on_epoch_end(self, epoch, logs=None):
        """Writes the pictures and events of an epoch, if it is due."""
        if (epoch + 1) % self.every:
            return
        observations = observe(self._student(), self._batch(), self.chosen())
        if observations is None:  # not the first process
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_pictures(epoch + 1, observations)
        if self.tensorboard:
            self._write_events(epoch, observations)

    def on_train_end(self, logs=None):
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _student(self):
        return student_of(self.model, type(self).__name__)

    def _batch(self):
        student = self._student()
        inputs = inputs_of(student)
        if self._first is None:
            self._first = first_batch(self.data, inputs)
        if self._first is None:
            raise ValueError(
                "`data` of an ActivationSnapshot must hold examples. Received: no examples. Pass "
                "at least one."
            )
        return packed(student, inputs.arrays(self._first.x))

    def chosen(self):
        """Returns the quantizers to observe."""
        quantizers = self._student().activation_quantizers
        if self.layers is None:
            return quantizers
        for pattern in self.layers:
            if not any(matches(pattern, quantizer.name) for quantizer in quantizers):
                names = ", ".join(quantizer.name for quantizer in quantizers)
                raise ValueError(
                    "Every pattern in `layers` must match an activation quantizer of the model. "
                    f"Received: layers={pattern!r}. Quantizers: {names}."
                )
        return [q for q in quantizers if any(matches(pattern, q.name) for pattern in self.layers)]

    def _write_pictures(self, epoch, observations):
        several = drawing.page_count(observations) > 1
        for page, figure in enumerate(drawing.pages(observations, f"Epoch {epoch}"), start=1):
            content = io.BytesIO()
            figure.savefig(content, format="png")
            name = f"epoch_{epoch:04}_{page:02}.png" if several else f"epoch_{epoch:04}.png"
            write_safely(self.directory / name, content.getvalue())

    def _write_events(self, epoch, observations):
        import tensorflow as tf  # also on JAX, and only for this

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.directory))
        # Like `tf.summary.histogram`, which would make its own buckets from all values.
        data = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="histograms")
        metadata = tf.compat.v1.SummaryMetadata(plugin_data=data)
        with self._writer.as_default(step=epoch):
            for seen in observations:
                if seen.has_levels:
                    codes = np.arange(seen.low_code, seen.high_code + 1)
                    buckets = np.stack([codes - 0.5, codes + 0.5, seen.counts], axis=-1)
                    tf.summary.write(f"codes/{seen.name}", buckets, metadata=metadata)
        self._writer.flush()


def _check_names(layers):
    names = [layers] if isinstance(layers, str) else layers
    if names is None:
        return None
    is_list = isinstance(names, list | tuple | set)
    if not (is_list and names and all(isinstance(name, str) for name in names)):
        raise TypeError(
            "`layers` must be a name or pattern, or a list of them, or None for all activation "
            f"quantizers. {describe(layers=layers)}"
        )
    return list(names)
