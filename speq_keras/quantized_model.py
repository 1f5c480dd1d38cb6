"""A Functional model with quantizers in its graph, however it is trained."""

import dataclasses
import itertools
import types
import warnings

import keras
import numpy as np
from keras import ops

from speq_keras import batch_norm, calibration, float_weights, reporting
from speq_keras._checks import check_bits, check_bool, check_choice, check_count, describe
from speq_keras.data import input_batches
from speq_keras.frozen import FreezingModel
from speq_keras.graph import deep_graphs
from speq_keras.layers import weight_quantizers
from speq_keras.quantizers import ActivationQuantizer
from speq_keras.settings import Settings

_UNCHANGED = "unchanged"
_RANDOM_STATE = "random_state_"


class QuantizedModel(FreezingModel):
    """Widths, ranges, reports, saving, float weights and export of a `SPEQModel`."""

    # Classes of layers of one's own in the float model; `wrap` knows them, a loaded model does not.
    float_classes = ()

    # Arguments are those of a Functional model, because `keras.models.clone_model` builds the clone
    # from (inputs, outputs, name) alone: so that it keeps its settings, they ride on a quantizer.
    # They are not spelled out, because Keras before 3.15 takes a class that spells them out, and
    # adds one, for no Functional model, and cannot load it.
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
            settings = _settings_on(quantizers)
        self._settings = settings
        self._remember_settings()
        self._give_ranges_to_layers(settings.owners)
        if len(settings.output_names) == len(self.outputs):
            self.output_names = list(settings.output_names)

    @property
    def settings(self):
        """The `Settings`, immutable."""
        return self._settings

    def _change(self, **changes):
        self._settings = dataclasses.replace(self._settings, **changes)
        self._remember_settings()

    def _remember_settings(self):
        for quantizer in self._all_quantizers():
            quantizer.model_settings = None
        self._carrier.quantizer.model_settings = self._settings.to_json()

    # ---- quantizers and widths -----------------------------------------------------------------

    @property
    def activation_quantizers(self):
        """The activation quantizer layers, in graph order."""
        return [layer for layer in self.layers if isinstance(layer, ActivationQuantizer)]

    @property
    def weight_quantizers(self):
        """The weight quantizers, in graph order."""
        return [q for layer in self.layers for q in weight_quantizers(layer)]

    def _all_quantizers(self):
        return itertools.chain(self.activation_quantizers, self.weight_quantizers)

    @property
    def target_quantizers(self):
        """The activation quantizers that have the target width: those the teacher draws."""
        return [q for q in self.activation_quantizers if q.has_target_width]

    def weight_widths(self):
        """Returns the width variables of the weight quantizers that have the target width.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
            >>> [int(width.value) for width in model.weight_widths()]
            [2]
        """
        return [q.width for q in self.weight_quantizers if q.width is not None]

    def set_bits(self, *, weights=_UNCHANGED, activations=_UNCHANGED):
        """Changes the widths of all quantizers that have the target width, at run time.

        Ranges stay. Nothing is traced again, unless training finds that teacher and student have
        the same widths now, or no longer (`distillation="auto"`). The first and last layers,
        squeeze-excite blocks and 8-bit tensors keep their widths.

        Args:
            weights: Width in bits, 2 to 8, or None: float weights. Left out: unchanged.
            activations: Width in bits, 2 to 8, or None: clipped but not rounded. Left out:
                unchanged.

        Raises:
            TypeError, ValueError: If a width is not allowed.
            ValueError: If there is none, or no quantizer of that kind has the target width.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
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
                    f"`{name}` can be set where a quantizer has the target width, and no quantizer "
                    f"of the {name} has. {describe(**{name: bits})} Wrap the float model with a "
                    "width for that side."
                )
        for _, bits, quantizers in sides:
            for quantizer in quantizers:
                quantizer.bits = bits
        self._widths_changed()

    def _widths_changed(self):
        """Called after `set_bits`: what training does may depend on the widths."""

    # ---- calibration ---------------------------------------------------------------------------

    @property
    def is_calibrated(self):
        """Whether all activation ranges were set from data."""
        return all(quantizer.is_calibrated for quantizer in self.activation_quantizers)

    def calibrate(self, data, *, batch_size=32, steps=None, training=False, verbose="auto"):
        """Sets every activation range from a few batches, to the least squared rounding error.

        The batches run through the float network, in inference mode unless said otherwise. All
        ranges are set again, also those that were trained.

        Args:
            data: What `fit` takes: arrays, a list or dict of them for several inputs, a
                `tf.data.Dataset`, a `PyDataset`, a generator, a list or another iterable of batches
                `x`, `(x, y)` or `(x, y, sample_weight)`. Such a tuple of arrays will do, too; only
                `x` is read. A list is a list of batches, or has an array for each of several
                inputs.
            batch_size: Examples per batch, for arrays.
            steps: Number of batches; None takes all, and data without end (`repeat()`, a
                `PyDataset` whose `num_batches` is None) needs it. Of a generator no batch more than
                that is taken; None reads one to its end.
            training: Whether the network runs as in training: BatchNormalization uses the batches'
                statistics, and dropout drops. For a network whose moving statistics mean nothing
                yet, and for one with much dropout, which makes activations larger in training than
                in inference: the ranges are then those that training needs. No state changes either
                way.
            verbose: 0 shows no progress bar.

        Raises:
            TypeError: If `data` is no data, or an argument has the wrong type.
            ValueError: If there is no batch or no end, if inputs do not fit the model, or if they
                or the activations are not finite.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
            >>> model.calibrate(np.random.rand(8, 4), verbose=0)
            >>> model.is_calibrated
            True
        """
        training = check_bool("training", training)
        check_choice("verbose", verbose, ("auto", 0, 1, 2))
        check_count("batch_size", batch_size)
        batches = input_batches(self, data, batch_size=batch_size, steps=steps)
        self._calibrate(batches, self.activation_quantizers, training, verbose, steps)

    def _calibrate(self, batches, quantizers, training, verbose, steps):
        progress = None
        if verbose:
            progress = keras.utils.Progbar(steps, unit_name="batch").update
        calibration.calibrate(
            self, batches, quantizers=quantizers, training=training, progress=progress
        )
        if progress is not None and steps is None:
            print()

    def reestimate_batch_norm(self, data, *, batch_size=32, steps=None):
        """Computes the moving statistics of BatchNormalization again, at the current widths.

        Calibrate before, not after: calibration measures the network without rounding, and to that
        one these statistics do not belong.

        Args:
            data: As in `calibrate`.
            batch_size: As in `calibrate`.
            steps: As in `calibrate`.

        Returns:
            The number of layers that were set.

        Raises:
            TypeError, ValueError: As `calibrate`.

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
        check_count("batch_size", batch_size)
        batches = input_batches(self, data, batch_size=batch_size, steps=steps)
        return batch_norm.reestimate(self, batches)

    def settle(self, *, storage="int8"):
        """Lets the model take over what its file has to round: then `predict` is the file.

        The normal way is: calibrate, fit, settle, evaluate, export. Biases (β, means, offsets,
        where they are what is added) move by up to half a unit of the integer sums, scales by less
        than 1/500 of themselves to where no result lies halfway between two codes. A second call
        moves nothing. Training afterwards unsettles the model.

        Args:
            storage: The one that will be exported; see `export_tflite`. Narrow weights have coarser
                sums, so that a model is settled for one storage at a time.

        Returns:
            A `Settlement`: what moved, and sentences on what could not be settled, such as layers
            in float or mixed precision, in which `predict` computes something else.

        Raises:
            TypeError, ValueError, RuntimeError: As `export_tflite` does, if the model cannot be
                exported as it is.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
            >>> model.calibrate(np.random.rand(8, 4), verbose=0)
            >>> settlement = model.settle()
            >>> settlement.left, model.settle().biases
            ((), {})
        """
        from speq_keras.export.settle import settle  # who trains does not need the exporter

        settlement = settle(self, storage=storage)
        self._forget_compiled()
        return settlement

    def _forget_compiled(self):
        """Lets the next call compile anew: constants of the graph have changed."""
        self.train_function = self.test_function = self.predict_function = None

    # ---- plan, report --------------------------------------------------------------------------

    def plan(self):
        """Returns a `reporting.Report`: what is quantized, what it costs, what export makes of it.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
            >>> row = model.plan().row("hidden")
            >>> row.weight_quantizer, row.in_file
            ('SAWB', 'integer')
        """
        return reporting.report(self, title="plan")

    def report(self):
        """Returns `plan()` with the ranges as they are now.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
            >>> [row.bits for row in model.report().ranges]
            [8, 2, 8, 8]
        """
        return reporting.report(self, title="report", with_ranges=True)

    # ---- saving and float weights --------------------------------------------------------------

    def _random_states(self):
        """All random state: the draw's and that of every layer. Keras saves none of it."""
        weights = {id(v) for v in self.weights}
        return [v for v in self.variables if id(v) not in weights and v.dtype != "float32"]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for number, state in enumerate(self._random_states()):
            store[f"{_RANDOM_STATE}{number}"] = ops.convert_to_numpy(state)

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

        Clipping levels and scales have no place in it. Random layers start from their own seeds.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
            >>> bool((model.float_model().get_weights()[0] == network.get_weights()[0]).all())
            True
        """
        return float_weights.model_with_weights_of(self)

    def load_float_weights(self, source):
        """Takes the weights of a float checkpoint of the wrapped model; ranges stay as they are.

        Args:
            source: A model of the same architecture, or a path to a `.keras` or `.weights.h5` file.

        Raises:
            ValueError: If the weights do not fit.

        Example:
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
            >>> better = keras.models.clone_model(network)
            >>> model.load_float_weights(better)
            >>> bool((model.float_model().get_weights()[0] == better.get_weights()[0]).all())
            True
        """
        float_weights.load(self, source)

    # ---- inherited methods that would betray ---------------------------------------------------

    def quantize(self, *args, **kwargs):
        """Raises: Keras' own post-training quantization would quantize a second time."""
        raise RuntimeError(
            "A SPEQModel is quantized already; `quantize` of Keras would quantize its layers a "
            "second time. Use `set_bits` to change widths."
        )

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Exports the fake-quantized graph (floats on quantized grids), and says so.

        `format="litert"` is `export_tflite`, which writes the integers that were trained.
        """
        if format == "litert":
            kwargs.pop("verbose", None)
            return self.export_tflite(filepath, **kwargs)
        warnings.warn(
            f"format={format!r} exports the fake-quantized graph: float arithmetic on quantized "
            "values, not integers.",
            stacklevel=2,
        )
        return super().export(filepath, format=format, **kwargs)

    def export_tflite(
        self,
        path,
        *,
        storage="int8",
        io="float32",
        batch_size=1,
        softmax=True,
        data=None,
        steps=None,
        self_test=None,
        runtimes=(),
        strict=True,
    ):
        """Writes the trained integers as a TFLite file, runs it, and proves that it is the network.

        The file is compared with the trained model's own graph, node by node, and with a simulation
        of the integers, code for code; only then is it moved into place. Call `settle` before, and
        `predict` is the file.

        Args:
            path: Where the file goes; ends in ".tflite".
            storage: "int8": every weight in a byte. "int4": codes that fit go to 4 bits wherever
                the fast kernels read them (dense layers, 1×1 convolutions). "int2": as "int4", and
                2 bits in dense layers, from LiteRT 2 on. "smallest": 4 and 2 bits wherever some
                kernel reads them, most of which are slow.
            io: Type of inputs and outputs. "float32", or "int8" or "uint8" for microcontrollers.
            batch_size: The file's batch size. None: it is 1 and the file says that it may change,
                which browsers refuse and `resize_tensor_input(strict=True)` needs; without `strict`
                most files can be resized.
            softmax: False leaves out a softmax or sigmoid at the end: the outputs are logits.
            data: For the proof: data of any kind that `calibrate` takes, of which 32 examples are
                used. With labels, `(inputs, labels)` or batches of them, the report has the
                accuracy of training graph, folded network and file on all of it. None: random
                inputs that fill the trained input range, drawn until nearly all channels show more
                than one code.
            steps: Number of batches of `data`; None takes all, and data without end needs it. Of a
                generator without labels only the 32 examples are read, of one with labels all.
            self_test: Path of an .npz file with inputs and expected outputs, for the same proof on
                the device; the program that runs it is written beside it.
            runtimes: Other runtimes to run the file on, for the report: "builtin" and "reference"
                (LiteRT's own kernels), "micro" (TensorFlow Lite Micro). They round twice, so a few
                codes differ; the report says how many. The proof runs the file in LiteRT's
                interpreter ("default") and in its `CompiledModel` ("compiled").
            strict: Whether a file that does not compute the trained network is an error.

        Returns:
            An `ExportReport`: prints as a table, `to_dict()` gives plain values.

        Raises:
            ValueError, TypeError: If an argument is not allowed or layers cannot be computed with
                integers; nothing is written.
            RuntimeError: If the model is not calibrated, a runtime is not installed, or the proof
                fails; nothing is written.

        Example:
            >>> import tempfile
            >>> import speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> network = keras.Sequential([keras.Input((4,)), *dense])
            >>> model = speq_keras.wrap(network, 2, 2, distillation=None)
            >>> model.calibrate(np.random.rand(8, 4), verbose=0)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     report = model.export_tflite(f"{folder}/model.tflite")
            >>> report.proof.mismatches
            0
        """
        # Who trains needs neither the writer nor the runtime.
        from speq_keras.export.export import export_tflite

        return export_tflite(
            self,
            path,
            storage=storage,
            io=io,
            batch_size=batch_size,
            softmax=softmax,
            data=data,
            steps=steps,
            self_test=self_test,
            runtimes=runtimes,
            strict=strict,
        )


def _settings_on(quantizers):
    for quantizer in quantizers:
        if quantizer.model_settings is not None:
            return Settings.from_json(quantizer.model_settings)
    return Settings()
