"""What a `SPEQModel` can do after training: settle and export."""

import warnings

from speq_keras.progress import check_verbose, phases


class ExportableModel:
    """Settling and export of a quantized model; precedes the Keras model in the list of bases."""

    def settle(self, *, storage="int8", verbose="auto"):
        """Adopts the roundings of the exported file, so that `predict` equals the file.

        The usual order is: calibrate, fit, settle, evaluate, export. Biases (β, means and offsets,
        if these are what is added) move by up to half a unit of the integer sums, scales by less
        than 1/500 of their value to where no result is halfway between two codes, and slopes of
        leaky ReLUs by less than 1/50 of their value to where a single kernel has them exactly. A
        second call changes nothing. Further training unsettles the model.

        Args:
            storage: The storage for the export; see `export_tflite`. Narrow weights have coarser
                sums, so a model is settled for one storage at a time.
            verbose: "auto" reports progress on stderr if it takes longer than two seconds; 1 and 2
                report from the start, 0 never.

        Returns:
            A `Settlement`: what moved, and sentences on what could not be settled, such as layers
            in float or mixed precision, in which `predict` computes something else.

        Raises:
            TypeError, ValueError, RuntimeError: As in `export_tflite`, if the model cannot be
                exported in its current state.

        Example:
            >>> import keras, numpy as np, speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.calibrate(np.random.rand(8, 4), verbose=0)
            >>> settlement = model.settle()
            >>> settlement.left, model.settle().biases
            ((), {})
        """
        from speq_keras.export.settle import settle  # training does not need the exporter

        with phases("settle", check_verbose(verbose)) as begin:
            settlement = settle(self, storage=storage, begin=begin)
        # Compiled functions are made anew: constants of the graph have changed.
        self.train_function = self.test_function = self.predict_function = None
        return settlement

    def quantize(self, *args, **kwargs):
        """Raises an error: Keras' own post-training quantization would quantize a second time.

        Example:
            >>> import keras, speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.quantize("int8")
            Traceback (most recent call last):
            RuntimeError: A SPEQModel is quantized already; ...
        """
        raise RuntimeError(
            "A SPEQModel is quantized already; Keras' `quantize` would quantize its layers a "
            "second time. Use `set_bits` to change widths."
        )

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Exports the fake-quantized graph (floats on quantized grids), with a warning.

        `format="litert"` calls `export_tflite`, which writes the trained integers.

        Example:
            >>> import keras, numpy as np, speq_keras, tempfile
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.calibrate(np.random.rand(8, 4), verbose=0)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     report = model.export(f"{folder}/model.tflite", format="litert")
            >>> report.storage
            'int8'
        """
        if format == "litert":
            verbose = kwargs.pop("verbose", None)
            if isinstance(verbose, bool | None):
                verbose = "auto" if verbose is None else int(verbose)
            return self.export_tflite(filepath, verbose=verbose, **kwargs)
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
        verbose="auto",
    ):
        """Writes the trained integers as a TFLite file, runs it, and proves that it is the network.

        The file is compared with the trained model's own graph, node by node, and with a simulation
        of the integers, code for code, before it is moved into place. After `settle`, `predict`
        equals the file.

        Args:
            path: Path of the file; ends in ".tflite".
            storage: "int8": every weight in a byte. "int4": 4 bits for codes that fit, wherever the
                fast kernels read them (dense layers, 1×1 convolutions). "int2": as "int4", and 2
                bits in dense layers, from LiteRT 2 on. "smallest": 4 and 2 bits wherever some
                kernel reads them; most of these kernels are slow.
            io: Type of inputs and outputs. "float32", or "int8" or "uint8" for microcontrollers.
            batch_size: The file's batch size. None: it is 1 and declared as variable, which
                browsers refuse and `resize_tensor_input(strict=True)` needs; without `strict` most
                files can be resized.
            softmax: False omits a final softmax or sigmoid: the outputs are logits.
            data: Data for the proof, of any kind that `calibrate` takes; 32 examples are used. With
                labels, `(inputs, labels)` or batches of them, the report has the accuracy of
                training graph, folded network and file on all of it. None: random inputs that fill
                the trained input range, drawn until nearly all channels show more than one code.
            steps: Number of batches of `data`; None takes all. Required for infinite data. From a
                generator without labels only the 32 examples are read, from one with labels
                everything.
            self_test: Path of an .npz file with inputs and expected outputs, for the same proof on
                the device; the program that runs it is written next to it.
            runtimes: Other runtimes to run the file on, for the report: "builtin" and "reference"
                (LiteRT's own kernels), "micro" (TensorFlow Lite Micro). They round twice, so a few
                codes differ; the report says how many. The proof runs the file in LiteRT's
                interpreter ("default") and in its `CompiledModel` ("compiled").
            strict: Whether a file that does not compute the trained network is an error.
            verbose: "auto" reports progress on stderr if it takes longer than two seconds; 1 and 2
                report from the start, 0 never.

        Returns:
            An `ExportReport`: prints as a table, `to_dict()` gives plain values.

        Raises:
            ValueError, TypeError: If an argument is not allowed or layers cannot be computed with
                integers; nothing is written.
            RuntimeError: If the model is not calibrated, a runtime is not installed, or the proof
                fails; nothing is written.

        Example:
            >>> import keras, numpy as np, speq_keras, tempfile
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.calibrate(np.random.rand(8, 4), verbose=0)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     report = model.export_tflite(f"{folder}/model.tflite")
            >>> report.proof.mismatches
            0
        """
        # Training needs neither the writer nor the runtime.
        from speq_keras.export.export import export_tflite

        with phases("export_tflite", check_verbose(verbose)) as begin:
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
                begin=begin,
            )
