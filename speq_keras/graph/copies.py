"""Fresh layers and operations like those of a model, and weights put into layers."""

import functools
import inspect

import keras

from speq_keras._checks import describe


def copy_operation(operation, *, reads=None, **changes):
    """Returns a fresh layer or operation with the same config but for `changes`, without weights.

    Args:
        operation: The layer or operation.
        reads: Shape that the copy reads, where it is not that of the original.
        **changes: Options.

    Raises:
        ValueError: If the layer cannot be made again from its config.
    """
    try:
        copy = _made_from({**_config_of(operation), **changes}, operation)
        if isinstance(operation, keras.layers.Layer) and operation.built and not copy.built:
            build_config = operation.get_build_config()
            if reads is not None:
                copy.build(reads)
            elif build_config:
                copy.build_from_config(build_config)
            # A layer in place of an activation function brings its own, and is not built yet.
            is_alone = not isinstance(getattr(operation, "activation", None), keras.layers.Layer)
            if is_alone and copy.built and _shapes(copy) != _shapes(operation):
                raise ValueError("the copy has other weights")
        return copy
    except Exception as error:  # from code of other people
        raise _no_copy(operation, error) from error


def check_copyable(operation):
    """Raises what `copy_operation` would, without the time that it takes to make weights.

    Raises:
        ValueError: If the layer cannot be made again from its config.
    """
    if type(operation).__module__.split(".")[0] == "keras":
        return
    try:
        _made_from(_config_of(operation), operation)
    except Exception as error:  # from code of other people
        raise _no_copy(operation, error) from error


def check_has_config(operation):
    """Raises a ValueError, as `check_copyable`, for a layer of which no config can be written."""
    try:
        keras.saving.serialize_keras_object(operation)
    except Exception as error:
        raise _no_copy(operation, error) from error


def weights_changed(operations):
    """Has to be called after weights were assigned one by one.

    An adapted Normalization computes with what it made of its weights when they were loaded.
    """
    for operation in operations:
        if isinstance(operation, keras.layers.Normalization):
            operation.finalize_state()


def _no_copy(operation, error):
    return ValueError(
        f"Layer '{operation.name}' ({type(operation).__name__}) cannot be copied. A layer must be "
        "reproducible from `get_config()`: define it, and register functions and classes of your "
        "own with keras.saving.register_keras_serializable. "
        f"{describe(error=str(error))}"
    )


def _shapes(layer):
    """Returns the sizes of weights; a bias may have other axes of size 1 behind its own."""
    return [[size for size in variable.shape if size != 1] for variable in layer.weights]


def _config_of(operation):
    """Returns the config of a layer; where it has none, what its constructor asks for."""
    try:
        return operation.get_config()
    except Exception:
        # KerasHub's DeiT has a layer whose `get_config` raises. What constructors of layers ask for
        # are, as a rule, attributes of the same name.
        if not isinstance(operation, keras.layers.Layer):
            raise
        names = inspect.signature(type(operation).__init__).parameters
        config = {n: getattr(operation, n) for n in names if n != "self" and hasattr(operation, n)}
        common = {"name": operation.name, "trainable": operation.trainable}
        return {**config, **common, "dtype": operation.dtype_policy}


def _made_from(config, operation):
    """Returns a copy of `operation`; functions go over as they are.

    Through a config a function has to be registered, and a lambda is refused and loses its globals.
    """
    if isinstance(operation, keras.layers.Lambda):
        config.update(
            function=operation.function, arguments=operation.arguments, mask=operation.mask
        )
        if isinstance(config.get("output_shape"), dict):  # a serialized function
            config["output_shape"] = operation.compute_output_shape
        return type(operation)(**config)
    if isinstance(operation, keras.layers.Activation):
        config["activation"] = operation.activation
    try:
        copy = type(operation).from_config(config)
        copy.get_config()
        return copy
    except Exception:
        # KerasHub has layers whose configs tell more than their constructors take, or nothing.
        taken = set(inspect.signature(type(operation).__init__).parameters)
        taken |= set(inspect.signature(keras.layers.Layer.__init__).parameters) | {"dtype"}
        config = {name: value for name, value in config.items() if name in taken}
    copy = type(operation)(**config)
    copy.get_config = functools.partial(dict, config)  # so that what is saved can be loaded
    return copy
