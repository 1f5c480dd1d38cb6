"""One reader for every kind of data that Keras takes.

    arrays             NumPy's, what converts to them (pandas, nested lists of numbers), tensors
    several inputs     a list, tuple or dict of arrays: by position, or by the names of the inputs
    with labels        (inputs, labels) or (inputs, labels, sample_weight)
    batches            a `tf.data.Dataset`, a `keras.utils.PyDataset`, a generator, an iterator, a
                       list, or anything else that yields any of the above

Infinite data is refused unless `steps` limits the number of batches, and from data that can be read
only once, no more batches are taken than requested. Batches are NumPy arrays in the order, dtype
and rank of the model's inputs; data that does not fit raises a one-sentence error. TensorFlow is
not imported.
"""

from speq_keras.data.arrays import class_numbers, is_array, to_array
from speq_keras.data.evaluation import evaluation_of
from speq_keras.data.inputs import Inputs, inputs_of, packed
from speq_keras.data.reading import (
    Batch,
    check_data,
    check_numbers,
    first_batch,
    input_batches,
    is_endless,
    peek,
    read,
)

__all__ = [
    "Batch",
    "Inputs",
    "check_data",
    "check_numbers",
    "class_numbers",
    "input_batches",
    "evaluation_of",
    "first_batch",
    "inputs_of",
    "is_array",
    "is_endless",
    "packed",
    "peek",
    "read",
    "to_array",
]
