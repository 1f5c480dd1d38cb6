"""Flags that the example programs have in common."""

import pathlib

import keras
from absl import flags

import speq_keras

FLAGS = flags.FLAGS
WIDTHS = ("2", "3", "4", "5", "6", "7", "8", "float")
# All that are registered, including custom quantizers.
WEIGHT_QUANTIZERS = list(speq_keras.quantizers.WEIGHT_QUANTIZERS)
ACTIVATION_QUANTIZERS = list(speq_keras.quantizers.ACTIVATION_QUANTIZERS)
DISTILLATIONS = list(speq_keras.losses.METHODS)
STORAGES = list(speq_keras.export.STORAGES)


def bits(flag):
    """Returns the width that `speq_keras` expects: a number of bits, or None for float."""
    return None if flag == "float" else int(flag)


def own_flags(module):
    """Returns the flags that a program defines, by name; `module` is its `__name__`."""
    return {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(module)}


def set_defaults(values):
    """Changes the defaults of flags; a flag given by the user keeps its value."""
    for name, value in values.items():
        FLAGS.set_default(name, value)


def check_words(name, known):
    """Ends the program if the list `--name` contains unknown words."""
    unknown = sorted(set(FLAGS[name].value or ()) - set(known))
    if unknown:
        raise SystemExit(f"--{name} takes {', '.join(known)}. Received: {', '.join(unknown)}.")


def check_file(name, allowed="a file", *, words=()):
    """Ends the program if `--name` is given and is neither one of the words nor a file."""
    path = FLAGS[name].value
    if path and path not in words and not pathlib.Path(path).expanduser().is_file():
        raise SystemExit(f"--{name} takes {allowed}. Received: {path}, not a file.")


def check_processes():
    """Ends the program if `--num_processes`, `--process_id` and the backend are inconsistent."""
    if FLAGS.num_processes > 1 and keras.backend.backend() != "jax":
        raise SystemExit(
            "--num_processes needs the JAX backend: set KERAS_BACKEND=jax. Received: "
            f"{keras.backend.backend()}."
        )
    if FLAGS.process_id >= FLAGS.num_processes:
        raise SystemExit(
            f"--process_id must be below --num_processes. Received: {FLAGS.process_id}."
        )
