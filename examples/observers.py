"""What is looked at while a network trains: observers of `training_run.Pieces`."""

import keras
import numpy as np

import speq_keras


class ReadAtBothWidths:
    """Adds `student_accuracy` and `teacher_accuracy` (8-bit activations) at the end of an epoch."""

    def __init__(self, batches, a_bits):
        self.batches = batches
        self.a_bits = a_bits

    def __call__(self, model, row, epoch_ends):
        if not epoch_ends or self.a_bits is None:
            return

        def accuracy():
            return model.evaluate(self.batches, verbose=0, return_dict=True)["accuracy"]

        row["student_accuracy"] = accuracy()
        model.set_bits(activations=8)
        try:
            row["teacher_accuracy"] = accuracy()
        finally:
            model.set_bits(activations=self.a_bits)


MOST_CODES = 10_000  # of a layer, in its histogram


class TensorBoard:
    """Writes all figures of a row; clipping levels; once per epoch the codes of every layer.

    Args:
        folder: Where its event files go.
        images: A few images, whose codes are counted.
        alone: Whether this process trains alone.
    """

    def __init__(self, folder, images, *, alone=True):
        import tensorflow as tf  # which other backends may lack

        self.summary = tf.summary
        self.writer = tf.summary.create_file_writer(str(folder))
        self.images = images
        self.alone = alone
        self.activations = None

    def __call__(self, model, row, epoch_ends):
        with self.writer.as_default(step=row["step"]):
            for name, value in row.items():
                if name not in ("stage", "step"):
                    self.summary.scalar(name, value)
            # What one process alone computes cannot read a model that lies on several.
            if isinstance(model, speq_keras.SPEQModel) and self.alone:
                for quantizer in model.report().ranges:
                    if quantizer.scale is not None:
                        level = quantizer.scale * quantizer.high_code
                        self.summary.scalar(f"clipping_level/{quantizer.name}", level)
                if epoch_ends:
                    self.write_codes(model)
        self.writer.flush()

    def write_codes(self, model):
        """Writes the distribution of codes of every activation quantizer."""
        quantizers = {q.name: q for q in model.activation_quantizers if q.bits}
        if self.activations is None:
            outputs = {name: q.output for name, q in quantizers.items()}
            self.activations = keras.Model(model.inputs, outputs)
        values = self.activations(keras.ops.convert_to_tensor(np.asarray(self.images)))
        for name, quantizer in quantizers.items():
            scale, low, high = quantizer.grid()
            codes = np.rint(keras.ops.convert_to_numpy(values[name]).ravel() / np.float32(scale))
            # TensorFlow takes memory for values times buckets.
            codes = np.clip(codes[:: -(-codes.size // MOST_CODES)], low, high)
            self.summary.histogram(f"codes/{name}", codes, buckets=int(high - low) + 1)
