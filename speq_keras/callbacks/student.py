"""Which network a callback looks at."""

from speq_keras._checks import describe
from speq_keras.co_training import CoTraining
from speq_keras.model import SPEQModel


def student_of(model, who):
    """Returns the `SPEQModel` that is trained: `model` itself, or its student.

    Args:
        model: What `fit` was called on.
        who: Name of the callback, for the error.

    Raises:
        TypeError: If nothing is quantized there.
    """
    student = model.student if isinstance(model, CoTraining) else model
    if not isinstance(student, SPEQModel):
        raise TypeError(
            f"`{who}` must be used with a SPEQModel. {describe(model=type(model).__name__)} Train "
            "what `speq_keras.wrap` makes of the float model."
        )
    return student
