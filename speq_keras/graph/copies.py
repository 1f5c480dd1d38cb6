"""Makes fresh layers and operations like those of a model, and assigns weights to layers."""

import functools
import inspect

import keras

from speq_keras._checks import describe


def copy_operation(operation, *, reads=None, **changes):
    """Returns a fresh layer or operation with the same config but for `changes`, without weights.

    Args:
        operation: The layer or operation.
        reads: Input shape of the copy, if it differs from the original's.
        **changes: Options.

    Raises:
        ValueError: If the layer cannot be recreated from its config.
    """
    try:
        copy = _made_from({**_config_of(operation), **changes}, operation)
        if isinstance(operation, keras.layers.Layer) and operation.built and not copy.built:
            build_config = operation.get_build_config()
            if reads is not None:
                copy.build(reads)
            elif build_config:
                copy.build_from_config(build_config)
            # A layer used as activation function has its own weights, and is not built yet.
            is_alone = not isinstance(getattr(operation, "activation", None), keras.layers.Layer)
            if is_alone and copy.built and _shapes(copy) != _shapes(operation):
                raise ValueError("the copy has other weights")
        return copy
    except Exception as error:  # from third-party code
        raise _no_copy(operation, error) from error


def check_copyable(operation):
    """Raises the errors of `copy_operation`, without spending time on making weights.

    Raises:
        ValueError: If the layer cannot be recreated from its config.
    """
    if type(operation).__module__.split(".")[0] == "keras":
        return
    try:
        _made_from(_config_of(operation), operation)
    except Exception as error:  # from third-party code
        raise _no_copy(operation, error) from error


def check_has_config(operation):
    """Raises a ValueError, like `check_copyable`, for a layer that cannot be serialized."""
    try:
        keras.saving.serialize_keras_object(operation)
    except Exception as error:
        raise _no_copy(operation, error) from error


def weights_changed(operations):
    """Must be called after weights were assigned one by one.

    An adapted Normalization uses values that it derived from its weights when they were loaded.
    """
    for operation in operations:
        if isinstance(operation, keras.layers.Normalization):
            operation.finalize_state()


def _no_copy(operation, error):
    return ValueError(
        f"Layer '{operation.name}' ({type(operation).__name__}) cannot be copied. A layer must be "
        "reproducible from `get_config()`: define it, and register custom functions and "
        "classes with keras.saving.register_keras_serializable. "
        f"{describe(error=str(error))}"
    )


def _shapes(layer):
    """Returns the sizes of weights; a bias may have extra trailing axes of size 1."""
    return [[size for size in variable.shape if size != 1] for variable in layer.weights]


def _config_of(operation):
    """Returns a layer's config, or if it has none, its constructor's arguments."""
    try:
        return operation.get_config()
    except Exception:
        # KerasHub's DeiT has a layer whose `get_config` raises. The arguments of a layer's
        # constructor are usually attributes of the same name.
        if not isinstance(operation, keras.layers.Layer):
            raise
        names = inspect.signature(type(operation).__init__).parameters
        config = {n: getattr(operation, n) for n in names if n != "self" and hasattr(operation, n)}
        common = {"name": operation.name, "trainable": operation.trainable}
        return {**config, **common, "dtype": operation.dtype_policy}


def _made_from(config, operation):
    """Returns a copy of `operation`; functions are passed on unchanged.

    To go through a config, a function would have to be registered; lambdas are refused or lose
    their globals.
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
        # KerasHub has layers whose configs hold more than their constructors take, or nothing.
        taken = set(inspect.signature(type(operation).__init__).parameters)
        taken |= set(inspect.signature(keras.layers.Layer.__init__).parameters) | {"dtype"}
        config = {name: value for name, value in config.items() if name in taken}
    copy = type(operation)(**config)
    copy.get_config = functools.partial(dict, config)  # so that a saved model can be loaded
    return copy
