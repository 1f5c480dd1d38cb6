"""Finds the network that a callback observes."""

from speq_keras._checks import check_speq_model
from speq_keras.co_training import CoTraining


def student_of(model, who):
    """Returns the `SPEQModel` that is trained: `model` itself, or its student.

    Args:
        model: The model whose `fit` was called.
        who: Name of the callback, for the error.

    Raises:
        TypeError: If there is nothing quantized.
    """
    student = model.student if isinstance(model, CoTraining) else model
    return check_speq_model("model", student, of=f" of {who}")
