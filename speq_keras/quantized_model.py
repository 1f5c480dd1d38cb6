"""A Functional model with quantizers in its graph, however it is trained."""

import dataclasses
import itertools
import types

import keras
import numpy as np

from speq_keras import batch_norm, calibration, float_weights, reporting
from speq_keras._checks import check_bits, check_bool, check_count, describe
from speq_keras.data import input_batches
from speq_keras.exportable_model import ExportableModel
from speq_keras.frozen import FreezingModel
from speq_keras.graph import deep_graphs
from speq_keras.layers import activation_quantizers, weight_quantizers
from speq_keras.progress import check_verbose, counted
from speq_keras.settings import SettingsText

_UNCHANGED = "unchanged"
_RANDOM_STATE = "random_state_"


class QuantizedModel(ExportableModel, FreezingModel):
    """Widths, ranges, reports, saving and float weights of a `SPEQModel`."""

    # The user's layer classes in the float model; a loaded model does not know them.
    float_classes = ()

    # Arguments are those of a Functional model, because `keras.models.clone_model` builds the clone
    # from (inputs, outputs, name) alone, and the config of a Functional model cannot hold more.
    # Clones and files contain the configs of layers, so the settings are stored in that of a
    # quantizer. The arguments are not spelled out, because Keras before 3.15 does not recognize a
    # class that spells them out and adds one as a Functional model, and cannot load it.
    def __init__(self, *args, settings=None, **kwargs):
        with deep_graphs():
            super().__init__(*args, **kwargs)
        quantizers = list(self._all_quantizers())
        if not quantizers:
            raise ValueError(
                "A SPEQModel needs quantizer layers in its graph. Received: a model without any. "
                "Make it with `speq_keras.wrap(keras_model)`."
            )
        self._carrier = types.SimpleNamespace(quantizer=quantizers[0])
        if settings is None:
            texts = (quantizer.model_settings for quantizer in quantizers)
            settings = next((text for text in texts if text is not None), None)
        self._settings, self._provenance = SettingsText.read(settings)
        self._remember_settings()
        self._give_ranges_to_layers(self.provenance.owners)
        if len(self.provenance.output_names) == len(self.outputs):
            self.output_names = list(self.provenance.output_names)

    @property
    def settings(self):
        """The `TrainingSettings`, immutable; the model's properties change them.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.settings.temperature
            2.0
        """
        return self._settings

    @property
    def provenance(self):
        """The `Provenance`, immutable: what the layers were in the float model.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.provenance.reasons
            ()
        """
        return self._provenance

    def _change(self, **changes):
        self._settings = dataclasses.replace(self._settings, **changes)
        self._remember_settings()

    def _remember_settings(self):
        for quantizer in self._all_quantizers():
            quantizer.model_settings = None
        self._carrier.quantizer.model_settings = SettingsText.of(self.settings, self.provenance)

    # ---- quantizers and widths -----------------------------------------------------------------

    @property
    def activation_quantizers(self):
        """The activation quantizers in graph order: layers, and those inside recurrent layers.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> [quantizer.bits for quantizer in model.activation_quantizers]
            [8, 2, 8, 8]
        """
        return [q for layer in self.layers for q in activation_quantizers(layer)]

    @property
    def weight_quantizers(self):
        """The weight quantizers, in graph order.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> [type(quantizer).__name__ for quantizer in model.weight_quantizers]
            ['MinMax', 'SAWB', 'MinMax']
        """
        return [q for layer in self.layers for q in weight_quantizers(layer)]

    def _all_quantizers(self):
        return itertools.chain(self.activation_quantizers, self.weight_quantizers)

    @property
    def target_quantizers(self):
        """The activation quantizers with the target width: those drawn for the teacher.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> len(model.target_quantizers)
            1
        """
        return [q for q in self.activation_quantizers if q.has_target_width]

    def weight_widths(self):
        """Returns the width variables of the weight quantizers with the target width.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> [int(width.value) for width in model.weight_widths()]
            [2]
        """
        return [q.width for q in self.weight_quantizers if q.width is not None]

    def set_bits(self, *, weights=_UNCHANGED, activations=_UNCHANGED):
        """Changes the widths of all quantizers with the target width, at run time.

        Ranges are kept. Nothing is retraced, unless teacher and student start or stop having the
        same widths (`distillation="auto"`). The first and last layers, squeeze-excite blocks and
        8-bit tensors keep their widths.

        Args:
            weights: Width in bits, 2 to 8, or None: float weights. Omitted: unchanged.
            activations: Width in bits, 2 to 8, or None: clipped but not rounded. Omitted:
                unchanged.

        Raises:
            TypeError, ValueError: If a width is not allowed.
            ValueError: If neither is given, or no quantizer of that kind has the target width.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.set_bits(weights=4, activations=None)
            >>> model.plan().row("hidden").w_bits
            4
        """
        sides = [
            ("weights", weights, [q for q in self.weight_quantizers if q.has_target_width]),
            ("activations", activations, self.target_quantizers),
        ]
        sides = [side for side in sides if side[1] is not _UNCHANGED]
        if not sides:
            raise ValueError(
                "At least one of `weights` and `activations` must be given. Received: neither. "
                "Pass a width from 2 to 8, or None for floating point."
            )
        for name, bits, quantizers in sides:
            check_bits(name, bits)
            if not quantizers:
                raise ValueError(
                    f"`{name}` can only be set if a quantizer has the target width, and none of "
                    f"the {name} has. {describe(**{name: bits})} Wrap the float model with a "
                    "width for that side."
                )
        for _, bits, quantizers in sides:
            for quantizer in quantizers:
                quantizer.bits = bits
        self._widths_changed()

    def _widths_changed(self):
        """Called after `set_bits`: training may depend on the widths."""

    # ---- calibration ---------------------------------------------------------------------------

    @property
    def is_calibrated(self):
        """Whether all activation ranges were set from data.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.is_calibrated
            False
        """
        return all(quantizer.is_calibrated for quantizer in self.activation_quantizers)

    def calibrate(self, data, *, batch_size=32, steps=None, training=False, verbose="auto"):
        """Sets every activation range from a few batches, by the least squared rounding error.

        The batches run through the float network, by default in inference mode. All ranges are set
        again, even trained ones.

        Args:
            data: What `fit` takes: arrays, a list or dict of them for several inputs, a
                `tf.data.Dataset`, a `PyDataset`, a generator, a list or another iterable of batches
                `x`, `(x, y)` or `(x, y, sample_weight)`. Such a tuple of arrays is accepted, too;
                only `x` is read. A list is a list of batches, or has an array for each of several
                inputs.
            batch_size: Examples per batch, for arrays.
            steps: Number of batches; None takes all. Required for infinite data (`repeat()`, a
                `PyDataset` whose `num_batches` is None). From a generator no more batches than that
                are taken; None exhausts it.
            training: Whether the network runs in training mode: BatchNormalization uses the
                batches' statistics, and dropout is active. For a network whose moving statistics
                are not meaningful yet, and for one with much dropout, which makes activations
                larger in training than in inference: the ranges then fit training. No state changes
                either way.
            verbose: "auto" shows a progress bar if it takes longer than two seconds; 1 and 2 as in
                `fit`; 0 shows nothing.

        Raises:
            TypeError: If `data` is not data, or an argument has the wrong type.
            ValueError: If there is no batch, the data is infinite, inputs do not fit the model, or
                they or the activations are not finite.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.calibrate(np.random.rand(8, 4), verbose=0)
            >>> model.is_calibrated
            True
        """
        training = check_bool("training", training)
        check_verbose(verbose)
        check_count("batch_size", batch_size)
        batches = input_batches(self, data, batch_size=batch_size, steps=steps)
        self._calibrate(batches, self.activation_quantizers, training, verbose, steps)

    def _calibrate(self, batches, quantizers, training, verbose, steps):
        batches = counted(batches, steps, unit="batch", verbose=verbose)
        calibration.calibrate(self, batches, quantizers=quantizers, training=training)

    def reestimate_batch_norm(self, data, *, batch_size=32, steps=None, verbose="auto"):
        """Recomputes the moving statistics of BatchNormalization at the current widths.

        Calibrate before, not after: calibration measures the network without rounding, for which
        these statistics are wrong.

        Args:
            data: As in `calibrate`.
            batch_size: As in `calibrate`.
            steps: As in `calibrate`.
            verbose: As in `calibrate`.

        Returns:
            The number of layers that were set.

        Raises:
            TypeError, ValueError: As in `calibrate`.

        Example:
            >>> import speq_keras
            >>> norms = [keras.layers.Dense(4), keras.layers.BatchNormalization()]
            >>> network = keras.Sequential([keras.Input((4,)), *norms, keras.layers.Dense(2)])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
            >>> x = np.random.rand(8, 4)
            >>> model.calibrate(x, verbose=0)
            >>> model.reestimate_batch_norm(x)
            1
        """
        check_verbose(verbose)
        check_count("batch_size", batch_size)
        batches = input_batches(self, data, batch_size=batch_size, steps=steps)
        batches = counted(batches, steps, unit="batch", verbose=verbose)
        return batch_norm.reestimate(self, batches)

    # ---- plan, report --------------------------------------------------------------------------

    def plan(self):
        """Returns a `reporting.Report`: what is quantized, what it costs, how it is exported.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> row = model.plan().row("hidden")
            >>> row.weight_quantizer, row.in_file
            ('SAWB', 'integer')
        """
        return reporting.report(self, title="plan")

    def report(self):
        """Returns `plan()` with the current ranges.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> [row.bits for row in model.report().ranges]
            [8, 2, 8, 8]
        """
        return reporting.report(self, title="report", with_ranges=True)

    # ---- saving and float weights --------------------------------------------------------------

    def _random_states(self):
        """All random state: that of the draws and of every layer. Keras saves none of it."""
        weights = {id(v) for v in self.weights}
        return [v for v in self.variables if id(v) not in weights and v.dtype != "float32"]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for number, state in enumerate(self._random_states()):
            store[f"{_RANDOM_STATE}{number}"] = keras.ops.convert_to_numpy(state)

    def load_own_variables(self, store):
        names = set(store.keys())
        own = {name: store[name] for name in names if not name.startswith(_RANDOM_STATE)}
        super().load_own_variables(own)
        for number, state in enumerate(self._random_states()):
            name = f"{_RANDOM_STATE}{number}"
            if name in names:
                state.assign(np.asarray(store[name]))

    def float_model(self):
        """Returns the float model that was wrapped, with this model's weights.

        It has no clipping levels and scales. Random layers start from their own seeds.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> len(model.float_model().layers), len(model.layers)
            (4, 8)
        """
        return float_weights.model_with_weights_of(self)

    def load_float_weights(self, source):
        """Loads the weights of a float checkpoint of the wrapped model; ranges are kept.

        Args:
            source: A model of the same architecture, or a path to a `.keras` or `.weights.h5` file.

        Raises:
            ValueError: If the weights do not fit.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> better = model.float_model()
            >>> better.set_weights([weight + 1 for weight in better.get_weights()])
            >>> model.load_float_weights(better)
        """
        float_weights.load(self, source)
