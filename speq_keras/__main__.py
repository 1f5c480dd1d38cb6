"""The command line: `python -m speq_keras` with `plan`, `export` and `inspect`."""

import argparse
import os
import sys

import keras

from speq_keras._checks import describe
from speq_keras.entry import wrap
from speq_keras.export.c_array import check_c_array_path
from speq_keras.export.fold import IO_TYPES
from speq_keras.export.storage import STORAGES
from speq_keras.export.tflite.inspect import inspect
from speq_keras.export.tflite.runtimes import RUNTIMES
from speq_keras.files import check_path
from speq_keras.model import SPEQModel
from speq_keras.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS

WRAP_OPTIONS = (
    "w_bits",
    "a_bits",
    "boundary_bits",
    "weight_quantizer",
    "activation_quantizer",
    "skip",
)
EXIT_CODE_OF_ERRORS = 2  # as in argparse


def main(arguments=None):
    """Runs one command.

    Args:
        arguments: List of strings; None: those of the process.

    Returns:
        The exit code: 0, or 2 after an error, which is one sentence on stderr.
    """
    options = _parser().parse_args(arguments)
    try:
        print(options.command(options))
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"{options.program}: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_CODE_OF_ERRORS
    return 0


def _plan(options):
    if options.html is not None:
        check_path(options.html, name="html", suffix=".html")  # before the model is loaded
    model = _load(options.model, "The model must be a .keras file of a SPEQModel or a float model.")
    given = {name: getattr(options, name) for name in WRAP_OPTIONS if hasattr(options, name)}
    if not isinstance(model, SPEQModel):
        model = wrap(model, distillation=None, **given)
    elif given:
        raise ValueError(
            "Widths and quantizers are options for float models, and this one is already wrapped. "
            f"{describe(**given)} Omit them: its plan uses those it was wrapped with."
        )
    plan = model.plan()
    if options.html is None:
        return plan
    plan.to_html(options.html)
    return f"Wrote {options.html}\n\n{plan}"  # the verdict is the last line


def _export(options):
    check_path(options.output)  # before the slow loading of the model
    if options.c_array is not None:
        source, header = check_c_array_path(options.c_array, name="c_array")
    rule = "The model must be a .keras file that a SPEQModel was saved to."
    model = _load(options.model, rule)
    if not isinstance(model, SPEQModel):
        raise ValueError(
            f"{rule} {describe(model=options.model)} It holds a {type(model).__name__}. Train what "
            "`speq_keras.wrap` returns for it, and save that."
        )
    report = model.export_tflite(
        options.output,
        storage=options.storage,
        io=options.io,
        batch_size=options.batch_size,
        softmax=not options.logits,
        runtimes=options.runtime,
    )
    if options.c_array is None:
        return report
    report.to_c_array(source)
    return f"Wrote {source} and {header}\n\n{report}"


def _load(path, rule):
    received = describe(model=path)
    if not os.path.isfile(path):
        raise ValueError(f"{rule} {received} There is no such file.")
    try:
        # Not compiled: the user's losses and metrics need not be importable here.
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # any error of Keras for damaged files or unknown layers
        raise ValueError(f"{rule} {received} Keras cannot load it: {error}") from error


def _inspect(options):
    return inspect(options.file)


def _batch_size(text):
    if text == "any":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number or 'any', not {text!r}") from None


def _parser():
    parser = argparse.ArgumentParser(prog="python -m speq_keras", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_plan(commands)
    export = commands.add_parser("export", help="write a trained model as an integer TFLite file")
    export.add_argument("model", metavar="MODEL.keras", help="file that a SPEQModel was saved to")
    export.add_argument("output", metavar="OUT.tflite", help="file to write")
    export.add_argument(
        "--storage", choices=STORAGES, default="int8", help="containers of the weights"
    )
    export.add_argument(
        "--io", choices=IO_TYPES, default="float32", help="type of inputs and outputs"
    )
    export.add_argument(
        "--batch_size",
        type=_batch_size,
        default=1,
        metavar="N",
        help="examples per batch in the file; any: one, declared as variable",
    )
    export.add_argument("--logits", action="store_true", help="omit the final softmax")
    export.add_argument(
        "--runtime",
        choices=RUNTIMES,
        action="append",
        default=[],
        help="compare with this runtime too; can be given several times",
    )
    export.add_argument(
        "--c_array",
        metavar="OUT.cc",
        help="also write the file as a C array with a header, for microcontrollers",
    )
    export.set_defaults(command=_export, program=export.prog)
    look = commands.add_parser("inspect", help="list the tensors of a TFLite file, with totals")
    look.add_argument("file", metavar="FILE.tflite", help="file to read")
    look.set_defaults(command=_inspect, program=look.prog)
    return parser


def _add_plan(commands):
    # Omitted options are absent: `wrap` has the defaults.
    plan = commands.add_parser(
        "plan",
        help="show what is or would be quantized in a model, what it costs, and what export would "
        "write; the last line says whether the model can be exported",
        argument_default=argparse.SUPPRESS,
    )
    plan.add_argument("model", metavar="MODEL.keras", help="file of a SPEQModel or a float model")
    for name, meaning in (
        ("--w_bits", "the weights"),
        ("--a_bits", "the activations"),
        ("--boundary_bits", "the first and last layers"),
    ):
        plan.add_argument(
            name, type=_width, metavar="BITS", help=f"width of {meaning}, 2 to 8 or 'float'"
        )
    plan.add_argument("--weight_quantizer", choices=WEIGHT_QUANTIZERS, help="of a float model")
    plan.add_argument(
        "--activation_quantizer", choices=ACTIVATION_QUANTIZERS, help="of a float model"
    )
    plan.add_argument(
        "--skip",
        action="append",
        metavar="PATTERN",
        help="layers to leave in float; can be given several times",
    )
    plan.add_argument(
        "--html", default=None, metavar="OUT.html", help="also write the plan as a web page"
    )
    plan.set_defaults(command=_plan, program=plan.prog)


def _width(text):
    if text == "float":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number or 'float', not {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
