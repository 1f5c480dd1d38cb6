"""A model's inputs, and how the parts of a batch are assigned to them."""

import dataclasses

from keras import tree

from speq_keras._checks import describe
from speq_keras.data.arrays import adjusted, are_numbers, finite_in, is_array, to_array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a model.

    Args:
        names: Their names.
        shapes: Their shapes without the axis of the examples; None for unknown sizes.
        dtypes: The dtypes they are converted to; None: unchanged.
        keys: The keys of the dict that a model was made with, in the same order, or ().
    """

    names: tuple
    shapes: tuple
    dtypes: tuple
    keys: tuple = ()

    def arrays(self, x, *, name="data"):
        """Converts a model's input data to a list of finite NumPy arrays, one for each input.

        Args:
            x: An array, or a list, tuple or dict of arrays.
            name: Name of the argument, for errors.

        Raises:
            TypeError: If they do not contain numbers.
            ValueError: If they do not fit the inputs, or are not finite.
        """
        parts = self.parts(x, name)
        arrays = [
            adjusted(to_array(part, name), shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]
        fits = all(
            array.ndim == len(shape) + 1
            and all(size in (None, got) for size, got in zip(shape, array.shape[1:], strict=True))
            for array, shape in zip(arrays, self.shapes, strict=True)
        )
        if not fits:
            shapes = [(None, *shape) for shape in self.shapes]
            raise ValueError(
                f"`{name}` must have inputs of the shapes {shapes}, examples first. "
                f"{describe(shapes=[array.shape for array in arrays])} A single example is a "
                "batch of one: x[None]."
            )
        if len({len(array) for array in arrays}) > 1:
            raise ValueError(
                f"`{name}` must have the same number of examples for each input. "
                f"{describe(examples=dict(zip(self.names, map(len, arrays), strict=True)))}"
            )
        return [
            finite_in(dtype, array, name) for array, dtype in zip(arrays, self.dtypes, strict=True)
        ]

    def parts(self, x, name):
        """Returns the data given for each input, a list."""
        if isinstance(x, dict):
            keys = next((k for k in (self.keys, self.names) if k and {*k} <= {*x}), None)
            if keys is None:
                raise ValueError(
                    f"`{name}` must have the inputs {list(self.keys or self.names)}. "
                    f"{describe(keys=list(x))}"
                )
            return [x[key] for key in keys]
        parts = list(x) if isinstance(x, list | tuple) and not are_numbers(x) else [x]
        if len(parts) != len(self.names):
            raise ValueError(
                f"`{name}` must have {len(self.names)} arrays for the inputs {list(self.names)}. "
                f"{describe(number_of_arrays=len(parts))}"
            )
        return parts

    def split(self, batch, name):
        """Returns `(x, y, sample_weight)` of a batch, each as it was given, or None.

        Keras takes a list or tuple as `(x, y)`; if it has an array for each of several inputs, it
        must be the inputs.
        """
        if not isinstance(batch, list | tuple) or are_numbers(batch) or self.are_in(batch):
            return batch, None, None
        if not 1 <= len(batch) <= 3:
            raise ValueError(
                f"A batch of `{name}` must be x, (x, y) or (x, y, sample_weight). "
                f"Received: a {type(batch).__name__} of {len(batch)}."
            )
        return (*batch, None, None)[:3]

    def are_in(self, parts):
        """Whether a list or tuple has an array for each of several inputs."""
        return len(parts) == len(self.names) > 1 and all(map(is_array, parts))


def inputs_of(model, dtypes=None):
    """Returns the `Inputs` of a Functional model, in the model's dtypes unless others are given.

    Example:
        >>> import keras
        >>> x = keras.Input((3,), name="x")
        >>> inputs_of(keras.Model(x, keras.layers.Dense(2)(x))).shapes
        ((3,),)
    """
    tensors = model.inputs
    found = tuple(getattr(tensor.dtype, "name", tensor.dtype) for tensor in tensors)
    struct = model.input
    return Inputs(
        names=tuple(tensor.name for tensor in tensors),
        shapes=tuple(tuple(tensor.shape)[1:] for tensor in tensors),
        dtypes=found if dtypes is None else tuple(dtypes),
        keys=tuple(sorted(struct)) if isinstance(struct, dict) else (),
    )


def packed(model, arrays):
    """Returns a list of arrays, one per input, in the structure that a model takes."""
    return tree.pack_sequence_as(model.input, arrays)
