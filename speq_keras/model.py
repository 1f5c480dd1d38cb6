"""SPEQModel: a quantized Keras model that trains itself."""

import types
import warnings

import keras

from speq_keras import training
from speq_keras._checks import describe
from speq_keras.damping import check_damping
from speq_keras.data import inputs_of, packed, peek
from speq_keras.losses import is_registered
from speq_keras.quantized_model import QuantizedModel
from speq_keras.saving import compile_from_config
from speq_keras.settings import speq_weight_from
from speq_keras.training.heads import check_teacher
from speq_keras.training.plan import check_drawable, make_plan


@keras.saving.register_keras_serializable(package="speq_keras")
class SPEQModel(QuantizedModel):
    """A Functional model with quantizers, trained by stochastic precision self-distillation.

    Made by `speq_keras.wrap`. Everything that a Keras model does works as usual (`compile`, `fit`,
    `evaluate`, `predict`, `save`, callbacks); `fit` adds the distillation loss of Eq. 2. The
    history has `loss` (what is minimized), `task_loss` (the compiled loss and regularizers),
    `distillation_loss`, `teacher_loss` with an external teacher, and the student's metrics.

    Example:
        >>> import numpy as np, speq_keras
        >>> dense = [keras.layers.Dense(8, activation="relu") for _ in range(2)]
        >>> network = keras.Sequential([keras.Input((4,)), *dense, keras.layers.Dense(3)])
        >>> model = speq_keras.wrap(network, w_bits=2, a_bits=2)
        >>> x, y = np.random.rand(32, 4), np.random.randint(3, size=32)
        >>> model.calibrate(x, verbose=0)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> model.compile("sgd", loss, metrics=["accuracy"])
        >>> sorted(model.fit(x, y, verbose=0).history)
        ['accuracy', 'distillation_loss', 'loss', 'task_loss']

    Reference: Boo et al., "Stochastic Precision Ensemble" (AAAI 2021).
    """

    # The arguments are not spelled out, for the reason given in `QuantizedModel`.
    def __init__(self, *args, settings=None, **kwargs):
        super().__init__(*args, settings=settings, **kwargs)
        self.draw_seed = keras.random.SeedGenerator(self.settings.seed)
        self.task_loss_tracker = keras.metrics.Mean(name="task_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        self.teacher_loss_tracker = None
        # In a namespace, so that Keras does not track them: an external teacher's weights are not
        # ours, and the training network shares all its layers with the model.
        self._untracked = types.SimpleNamespace(
            teacher=None, plan=None, next=None, loss_weights=None, said=set()
        )

    # ---- settings: settable, checked as in `wrap`; the next step is recompiled -------------------

    @property
    def distillation(self):
        """The loss against the model's own teacher; see `wrap`.

        `training_plan().method` shows what "auto" resolved to.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.distillation
            'auto'
            >>> model.distillation = keras.losses.kl_divergence
        """
        return self._settings.distillation

    @distillation.setter
    def distillation(self, method):
        check_drawable(method, self.target_quantizers)
        self._change(distillation=method)

    @property
    def teacher_distillation(self):
        """The loss against an external teacher; see `wrap`.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.teacher_distillation = "cosine"
            >>> model.teacher_distillation
            'cosine'
        """
        return self._settings.teacher_distillation

    @teacher_distillation.setter
    def teacher_distillation(self, method):
        self._change(teacher_distillation=method)

    @property
    def temperature(self):
        """T of Eq. 2.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.temperature = 4.0
            >>> model.temperature
            4.0
        """
        return self._settings.temperature

    @temperature.setter
    def temperature(self, temperature):
        self._change(temperature=temperature)

    @property
    def teacher_precision(self):
        """How the teacher's widths are drawn, a `precision.TeacherPrecision`.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.teacher_precision
            Bernoulli(quantization_probability=0.5, teacher_bits=8)
        """
        return self._settings.teacher_precision

    @teacher_precision.setter
    def teacher_precision(self, teacher_precision):
        self._change(teacher_precision=teacher_precision)

    @property
    def speq_weight(self):
        """λ of Eq. 4, or None without an external teacher.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, teacher=network)
            >>> model.speq_weight = 0.25
            >>> model.speq_weight
            0.25
        """
        return self._settings.speq_weight

    @speq_weight.setter
    def speq_weight(self, speq_weight):
        self._change(speq_weight=speq_weight_from(speq_weight, self.teacher))

    @property
    def damping(self):
        """The `OscillationDamping` of the weights, or None.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.damping = speq_keras.OscillationDamping(strength=0.1, steps=1000)
            >>> model.damping.steps
            1000
        """
        return self._settings.damping

    @damping.setter
    def damping(self, damping):
        if damping is not None:
            check_damping(damping, self.layers)
        self._change(damping=damping)

    @property
    def teacher(self):
        """The external float teacher (Eq. 3), or None. It is not saved with the model.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.teacher = model.float_model()
            >>> model.speq_weight
            0.5
        """
        return self._untracked.teacher

    @teacher.setter
    def teacher(self, teacher):
        if teacher is not None:
            check_teacher(self, teacher)
            if self.teacher_loss_tracker is None:
                self.teacher_loss_tracker = keras.metrics.Mean(name="teacher_loss")
        self._untracked.teacher = teacher
        kept = None if teacher is None else self.speq_weight
        self._change(speq_weight=speq_weight_from(kept, teacher))

    def __setattr__(self, name, value):
        # Keras tracks a model that is set as an attribute before any property sees it: the external
        # teacher would be saved and trained as part of this model.
        if name == "teacher":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _change(self, **changes):
        super()._change(**changes)
        self._forget_step()

    def _forget_step(self):
        self._untracked.plan = None
        self.train_function = None

    def _widths_changed(self):
        function, plan = self.train_function, self._untracked.plan
        if function is None or plan is None:
            return
        # Decided here: within `fit` on JAX, variables cannot be read when the next step begins.
        self._untracked.next = self._plan_for_widths(plan)

        def decide_and_train(*args):
            """Replaces the compiled step until it is called.

            Widths that were changed only for an evaluation are restored by then: nothing is
            retraced.
            """
            self.train_function = function
            plan, sentences, error = self._untracked.next
            if error is not None:
                raise error
            for sentence in sentences:
                self._say_once(sentence)
            if plan is not self._untracked.plan:
                self._untracked.plan = plan
                self.make_train_function(force=True)
            return self.train_function(*args)

        self.train_function = decide_and_train

    def _plan_for_widths(self, plan):
        """Returns `(plan, sentences, error)` for training at the current widths."""
        try:
            if plan.fits(self):
                return plan, (), None
            sentences: list = []
            return make_plan(self, warn=sentences.append), sentences, None
        except ValueError as error:
            return plan, (), error

    # ---- saving --------------------------------------------------------------------------------

    def save(self, filepath, *args, **kwargs):
        """Saves like `SafeSaving.save`, and warns if a loss is not registered: a file has its name.

        Example:
            >>> import os, speq_keras, tempfile
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save(f"{folder}/m.keras")
            ...     os.listdir(folder)
            ['m.keras']
        """
        for name in ("distillation", "teacher_distillation"):
            loss = getattr(self, name)
            if not is_registered(loss):
                self._say_once(
                    "A file contains only the name of a loss, which must be registered where "
                    f"the model is loaded. {describe(**{name: loss})} Register it with "
                    "keras.saving.register_keras_serializable(), or pass custom_objects to "
                    "load_model."
                )
        super().save(filepath, *args, **kwargs)

    # ---- training ------------------------------------------------------------------------------

    def compile(self, optimizer="rmsprop", loss=None, loss_weights=None, *args, **kwargs):
        """Compiles as `keras.Model.compile` does."""
        super().compile(optimizer, loss, loss_weights, *args, **kwargs)
        # Which outputs are distilled, and with which weights, depends on both.
        self._untracked.loss_weights = loss_weights
        self._untracked.plan = None

    def compile_from_config(self, config):
        """Compiles a loaded model like the saved one."""
        compile_from_config(self, config)

    @property
    def loss_weights(self):
        """The loss weights given to `compile`, or None.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.compile("sgd", "mse", loss_weights=[0.5])
            >>> model.loss_weights
            [0.5]
        """
        return self._untracked.loss_weights

    def training_plan(self):
        """Returns the `TrainingPlan`, after checking that the model can be trained as configured.

        Raises:
            RuntimeError: If an external teacher is missing after loading.
            ValueError: If no output can be distilled, or the widths cannot be drawn.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.distillation = None
            >>> model.training_plan().heads
            ()
        """
        if self._untracked.plan is None:
            self._untracked.plan = make_plan(self, warn=self._say_once)
        return self._untracked.plan

    def _say_once(self, message):
        if message not in self._untracked.said:
            self._untracked.said.add(message)
            warnings.warn(message, stacklevel=3)

    def fit(self, x=None, y=None, batch_size=None, *args, **kwargs):
        """Trains like `keras.Model.fit`; calibrates on the first batch if needed."""
        x = self._prepare(x, batch_size or 32)
        return super().fit(x, y, batch_size, *args, **kwargs)

    def train_on_batch(self, x, *args, **kwargs):
        """Trains like `keras.Model.train_on_batch`; calibrates on the batch if needed."""
        self._prepare(x, batch_size=None)
        return super().train_on_batch(x, *args, **kwargs)

    def _prepare(self, x, batch_size):
        """Prepares training on `x`, and returns it; `batch_size` None: `x` is one batch."""
        if not self.compiled:
            return x  # Keras reports this
        training.check_strategy(getattr(self, "distribute_strategy", None))
        plan = self._untracked.plan
        if plan is not None and not plan.fits(self):
            self._forget_step()
        self.training_plan()
        training.build_optimizer(self)
        waiting = [q for q in self.activation_quantizers if not q.follows_training]
        uncalibrated = [q for q in waiting if not q.is_calibrated]
        if not uncalibrated or x is None:
            return x
        self._say_once(
            "The activation ranges are not calibrated. They are now set from the first batch; "
            "`model.calibrate` with a few batches gives better ones."
        )
        first, x = peek(x, inputs_of(self), batch_size)
        # Training comes next, so the ranges are those with batch statistics.
        self._calibrate([packed(self, first)], uncalibrated, training=True, verbose=0, steps=1)
        return x

    def train_step(self, *args):
        """Runs the backend's step of SPEQ on a batch."""
        return training.train_step(self, *args)

    def test_step(self, *args):
        """Evaluates a batch like Keras; losses measured only in training are not logged."""
        result = super().test_step(*args)
        if isinstance(result, tuple):  # JAX: metrics and state
            logs, state = result
            return _without_training_losses(logs), state
        return _without_training_losses(result)


def _without_training_losses(logs):
    """Drops losses measured only in training; in evaluation `loss` is the task loss."""
    names = ("task_loss", "distillation_loss", "teacher_loss")
    return {name: value for name, value in logs.items() if name not in names}
