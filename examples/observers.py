"""Measurements during training: observers for `training_run.Pieces`."""

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


class TensorBoard:
    """Writes all figures of a row, and clipping levels.

    Args:
        folder: Folder for the event files.
        alone: Whether this process trains alone.
    """

    def __init__(self, folder, *, alone=True):
        import tensorflow as tf  # may be missing on other backends

        self.summary = tf.summary
        self.writer = tf.summary.create_file_writer(str(folder))
        self.alone = alone

    def __call__(self, model, row, epoch_ends):
        with self.writer.as_default(step=row["step"]):
            for name, value in row.items():
                if name not in ("stage", "step"):
                    self.summary.scalar(name, value)
            # Computations of one process alone cannot read a model spread over several.
            if isinstance(model, speq_keras.SPEQModel) and self.alone:
                for quantizer in model.report().ranges:
                    if quantizer.scale is not None:
                        level = quantizer.scale * quantizer.high_code
                        self.summary.scalar(f"clipping_level/{quantizer.name}", level)
        self.writer.flush()
