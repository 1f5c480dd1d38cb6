"""Imports modules in all orders that are asked for, and says what `tf.keras` is afterwards.

Processes share what the orders have in common. "tf.keras" uses it, "NAME=value" sets a variable.
"""

import importlib
import json
import os
import sys


def state():
    """Returns [the variable, the package that `tf.keras` is]."""
    import tensorflow as tf

    return [os.environ.get("TF_USE_LEGACY_KERAS"), tf.keras.Model.__module__.split(".")[0]]


def do(step):
    if "=" in step:
        name, value = step.split("=")
        os.environ[name] = value
    elif step == "tf.keras":
        state()
    else:
        importlib.import_module(step)


def walk(done, orders):
    """Prints `[order, state]` as JSON, a line for each order."""
    for step in dict.fromkeys(order[0] if order else None for order in orders):
        process = os.fork()
        if process:
            if os.waitpid(process, 0)[1]:
                raise RuntimeError(f"The process failed: {done} {step}")
            continue
        if step is None:
            print(json.dumps([done, state()]), flush=True)
        else:
            do(step)
            walk([*done, step], [order[1:] for order in orders if order and order[0] == step])
        os._exit(0)


def main():
    import tensorflow  # noqa: F401  # every order would import it, and take two seconds

    walk([], json.loads(sys.argv[1]))


if __name__ == "__main__":
    main()
