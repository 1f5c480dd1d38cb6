"""Fresh layers and operations like those of a model, and weights put into layers."""

import keras

from speq_keras._checks import describe


def copy_operation(operation, **changes):
    """Returns a fresh layer or operation with the same config but for `changes`, without weights.

    Raises:
        ValueError: If the layer cannot be made again from its config.
    """
    try:
        copy = _made_from({**operation.get_config(), **changes}, operation)
        if isinstance(operation, keras.layers.Layer) and operation.built and not copy.built:
            build_config = operation.get_build_config()
            if build_config:
                copy.build_from_config(build_config)
        return copy
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"Layer '{operation.name}' ({type(operation).__name__}) cannot be copied. A layer "
            "must be reproducible from `get_config()`: define it, and register functions and "
            "classes of your own with keras.saving.register_keras_serializable. "
            f"{describe(error=str(error))}"
        ) from error


def weights_changed(operations):
    """Has to be called after weights were assigned one by one.

    An adapted Normalization computes with what it made of its weights when they were loaded.
    """
    for operation in operations:
        if isinstance(operation, keras.layers.Normalization):
            operation.finalize_state()


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
    return type(operation).from_config(config)
