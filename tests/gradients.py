"""Gradients on whatever backend Keras runs on."""

import keras
from keras import ops


def tensor(x):
    """Returns float32 numbers as a tensor of the backend."""
    return ops.convert_to_tensor(x, dtype="float32")


def gradients_of(function, inputs, variables=()):
    """Differentiates a scalar function.

    Args:
        function: Function of the tensors in `inputs`; returns a scalar tensor.
        inputs: Arrays; they become float32 tensors.
        variables: Keras variables that the function reads.

    Returns:
        NumPy arrays: the gradients to the inputs, then those to the variables.
    """
    inputs = [tensor(x) for x in inputs]
    variables = list(variables)
    if keras.config.backend() == "jax":
        import jax

        def of_values(values):
            mapping = list(zip(variables, values[len(inputs) :], strict=True))
            with keras.StatelessScope(mapping):
                return function(*values[: len(inputs)])

        gradients = jax.grad(of_values)([*inputs, *(variable.value for variable in variables)])
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            total = function(*inputs)
        gradients = tape.gradient(total, [*inputs, *variables])
    return [ops.convert_to_numpy(gradient) for gradient in gradients]
