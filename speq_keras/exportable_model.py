"""From a trained model to its file: what a `SPEQModel` can do when training is over."""

import warnings

from speq_keras.progress import check_verbose, phases


class ExportableModel:
    """Settling and export of a quantized model; goes before the Keras model among the bases."""

    def settle(self, *, storage="int8", verbose="auto"):
        """Lets the model take over what its file has to round: then `predict` is the file.

        The normal way is: calibrate, fit, settle, evaluate, export. Biases (β, means, offsets,
        where they are what is added) move by up to half a unit of the integer sums, scales by less
        than 1/500 of themselves to where no result lies halfway between two codes, and slopes of
        leaky ReLUs by less than 1/50 of themselves to where one operation of the file has them
        exactly. A second call moves nothing. Training afterwards unsettles the model.

        Args:
            storage: The one that will be exported; see `export_tflite`. Narrow weights have coarser
                sums, so that a model is settled for one storage at a time.
            verbose: "auto" tells on stderr what it does if it takes longer than two seconds; 1 and
                2 tell it from the start, 0 never.

        Returns:
            A `Settlement`: what moved, and sentences on what could not be settled, such as layers
            in float or mixed precision, in which `predict` computes something else.

        Raises:
            TypeError, ValueError, RuntimeError: As `export_tflite` does, if the model cannot be
                exported as it is.

        Example:
            >>> import keras, numpy as np, speq_keras
            >>> dense = [keras.layers.Dense(4, name=name) for name in ("first", "hidden", "last")]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.calibrate(np.random.rand(8, 4), verbose=0)
            >>> settlement = model.settle()
            >>> settlement.left, model.settle().biases
            ((), {})
        """
        from speq_keras.export.settle import settle  # who trains does not need the exporter

        with phases("settle", check_verbose(verbose)) as begin:
            settlement = settle(self, storage=storage, begin=begin)
        # What is called next is compiled anew: constants of the graph have changed.
        self.train_function = self.test_function = self.predict_function = None
        return settlement

    def quantize(self, *args, **kwargs):
        """Raises: Keras' own post-training quantization would quantize a second time.

        Example:
            >>> import keras, speq_keras
            >>> dense = [keras.layers.Dense(4) for _ in range(3)]
            >>> model = speq_keras.wrap(keras.Sequential([keras.Input((4,)), *dense]), 2, 2)
            >>> model.quantize("int8")
            Traceback (most recent call last):
            RuntimeError: A SPEQModel is quantized already; ...
        """
        raise RuntimeError(
            "A SPEQModel is quantized already; `quantize` of Keras would quantize its layers a "
            "second time. Use `set_bits` to change widths."
        )

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Exports the fake-quantized graph (floats on quantized grids), and says so.

        `format="litert"` is `export_tflite`, which writes the integers that were trained.

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
            verbose: "auto" tells on stderr what it does if it takes longer than two seconds; 1 and
                2 tell it from the start, 0 never.

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
        # Who trains needs neither the writer nor the runtime.
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
