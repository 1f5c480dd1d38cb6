"""SPEQ for tf_keras models: a model whose training step has the stochastic teacher.

network = tfmot.quantize_apply(annotated, SPEQScheme(w_bits=2, a_bits=2))   # tfmot's own
model = LegacySPEQModel(network)
model.calibrate(batches); model.compile(...); model.fit(...)
"""

import keras
import numpy as np
import tensorflow as tf

from speq_keras._checks import check_bool, check_count, check_seed, describe
from speq_keras.calibration import sample
from speq_keras.data import inputs_of, read
from speq_keras.losses import DistillationLoss, check_method
from speq_keras.precision import Bernoulli
from speq_keras.quantizers.histogram import Histogram
from speq_keras.settings import TrainingSettings
from speq_keras.tfmot.importing import tf_keras
from speq_keras.tfmot.legacy_configs import SPEQQuantizeConfig
from speq_keras.training.heads import Head
from speq_keras.training.step import to_logits


class LegacySPEQModel(tf_keras.Model):
    """Trains a tf_keras model with our quantizers by SPEQ.

        loss = task(student) + T² · D(teacher, student)                           (Eq. 2)

    The teacher is the network with other widths (Eq. 1); no gradient flows into it, and its updates
    are undone. Unlike in a `SPEQModel`, it has its own dropout masks. The history has `loss`, the
    compiled one, and `distillation_loss`; their sum is minimized.

    Args:
        network: A result of tfmot's `quantize_apply` with `SPEQScheme` or `SPEQQuantizeConfig`s.
        distillation: "cosine", "dot", "kl", a function or a registered name, see
            `losses.register_distillation`, or None: plain quantization-aware training.
        temperature: T of Eq. 2, positive.
        teacher_precision: A `precision.TeacherPrecision` that draws one row of widths. These three
            attributes can be set later; the next step is then recompiled.
        from_logits: Whether the network outputs logits rather than probabilities.
        seed: Seed of the draws.

    Raises:
        ValueError: If no activation of the network has a width to draw, or an argument is not
            allowed.

    Example:
        >>> import numpy as np
        >>> from speq_keras import tfmot
        >>> dense = [tf_keras.layers.Dense(4, "relu"), tf_keras.layers.Dense(3)]
        >>> network = tf_keras.Sequential([tf_keras.Input((4,)), *dense])
        >>> with tfmot.quantize_scope():
        ...     annotated = tfmot.quantize_annotate_model(network)
        ...     quantized = tfmot.quantize_apply(annotated, tfmot.SPEQScheme(2, 2))
        >>> model = LegacySPEQModel(quantized)
        >>> x, y = np.random.rand(8, 4), np.zeros(8)
        >>> model.calibrate(x)
        >>> loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> model.compile("sgd", loss)
        >>> sorted(model.fit(x, y, verbose=0).history)
        ['distillation_loss', 'loss']

    Reference: Boo et al., "Stochastic Precision Ensemble" (AAAI 2021), Eq. 1, 2.
    """

    def __init__(
        self,
        network,
        *,
        distillation="cosine",
        temperature=2.0,
        teacher_precision=None,
        from_logits=True,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.network = network
        self.distillation = distillation
        self.temperature = temperature
        self.teacher_precision = Bernoulli() if teacher_precision is None else teacher_precision
        self.from_logits = check_bool("from_logits", from_logits)
        self.draw_seed = keras.random.SeedGenerator(check_seed(seed))
        self.distillation_loss_tracker = tf_keras.metrics.Mean(name="distillation_loss")
        self.head = Head("output", 0, "softmax", None, not self.from_logits)

    def __setattr__(self, name, value):
        # Instead of properties, because Keras' `__setattr__` tells layers from values.
        if name == "distillation" and value is not None:
            check_method(name, value)
            if not self.drawn_tensors():
                raise ValueError(
                    "SPEQ draws the widths of activations that have the target width, and this "
                    f"network has none. {describe(network=self.network.name)} Quantize it with "
                    "SPEQScheme, or pass distillation=None."
                )
        elif name in ("temperature", "teacher_precision"):
            TrainingSettings(**{name: value})
        super().__setattr__(name, value)
        if name in ("distillation", "temperature", "teacher_precision"):
            self.train_function = None

    def tensors(self):
        """Returns the activations that our quantizers round, in the order of the layers."""
        configs = [getattr(layer, "quantize_config", None) for layer in self.network.layers]
        quantizers = [
            quantizer
            for config in configs
            if isinstance(config, SPEQQuantizeConfig)
            for quantizer in config.activation_quantizers
        ]
        return [tensor for quantizer in quantizers for tensor in quantizer.tensors.values()]

    def drawn_tensors(self):
        """Returns those whose width is drawn for the teacher."""
        return [t for t in self.tensors() if t.quantizer.has_target_width]

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    def calibrate(self, data, *, batch_size=32, steps=None):
        """Sets the ranges of our activation quantizers from a few batches.

        The batches run in training mode, so that tfmot's own quantizers set their ranges; moving
        statistics of layers are restored.

        Args:
            data: As in `SPEQModel.calibrate`.
            batch_size: Examples per batch, for arrays.
            steps: Number of batches; None takes all.

        Raises:
            TypeError, ValueError: As in `SPEQModel.calibrate`.
        """
        check_count("batch_size", batch_size)
        batches = read(data, inputs_of(self.network), batch_size=batch_size, steps=steps)
        seen = {id(tensor.quantizer): [] for tensor in self.tensors()}

        def observe(quantizer, x):
            seen[id(quantizer)].append(sample(np.asarray(x)))

        state = [
            variable
            for layer in self.network.layers
            if not hasattr(layer, "quantizer")  # tfmot's layer after an input
            for variable in getattr(layer, "layer", layer).non_trainable_variables
        ]
        before = [tf.identity(variable) for variable in state]
        for tensor in self.tensors():
            tensor.quantizer.observer = observe
        try:
            for batch in batches:
                arrays = [tf.convert_to_tensor(x) for x in batch.x]
                self.network(arrays if len(arrays) > 1 else arrays[0], training=True)
        finally:
            _assign(state, before)
            for tensor in self.tensors():
                tensor.quantizer.observer = None
        for tensor in self.tensors():
            if seen[id(tensor.quantizer)]:
                tensor.calibrate(Histogram(np.concatenate(seen[id(tensor.quantizer)])))

    def teacher_outputs(self, x):
        """Returns the outputs of the network with drawn widths, as constants (Eq. 1)."""
        tensors = self.drawn_tensors()
        widths = [tensor.weights[tensor.quantizer.width.name] for tensor in tensors]
        target = tf.stack([tf.convert_to_tensor(width) for width in widths])
        rows = self.teacher_precision.candidates(target, self.draw_seed)
        if rows.shape[0] != 1:
            raise ValueError(
                "On tf_keras, a teacher draws one row of widths. "
                f"{describe(teacher_precision=self.teacher_precision)} Use precision.Bernoulli()."
            )
        state = self.network.non_trainable_variables
        before = [tf.identity(variable) for variable in state]
        try:
            for number, tensor in enumerate(tensors):
                tensor.drawn = rows[0, number]
            outputs = self.network(x, training=True)
        finally:
            for tensor in tensors:
                tensor.drawn = None
        _assign(state, before)
        return tf.stop_gradient(outputs)

    def train_step(self, data):
        x, y, sample_weight = tf_keras.utils.unpack_x_y_sample_weight(data)
        if self.distillation is not None:
            teacher = to_logits(self.teacher_outputs(x), self.head, self.from_logits)
        distance = DistillationLoss(self.distillation or "cosine", self.temperature)
        with tf.GradientTape() as tape:
            outputs = self(x, training=True)
            task_loss = self.compute_loss(x, y, outputs, sample_weight)
            distillation_loss = 0.0
            if self.distillation is not None:
                logits = to_logits(outputs, self.head, self.from_logits)
                distillation_loss = distance(teacher, logits, sample_weight)
            loss = task_loss + distillation_loss
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
        self.distillation_loss_tracker.update_state(distillation_loss)
        return self.compute_metrics(x, y, outputs, sample_weight)

    def test_step(self, data):
        logs = super().test_step(data)
        return {name: value for name, value in logs.items() if name != "distillation_loss"}


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
