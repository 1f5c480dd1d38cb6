"""The notation of graphs in `Model.get_config()`.

A tensor is identified by its key: the layer that makes it, the index of the call, the index of the
output.
"""

import keras


def _is_tensor(data):
    return isinstance(data, dict) and data.get("class_name") == "__keras_tensor__"


def keys_in(data):
    """Returns the keys of all tensors in a serialized call."""
    if _is_tensor(data):
        return [tuple(data["config"]["keras_history"])]
    if isinstance(data, dict):
        return [key for value in data.values() for key in keys_in(value)]
    if isinstance(data, list | tuple):
        return [key for value in data for key in keys_in(value)]
    return []


def fill_in(data, values):
    """Turns a serialized argument into the argument, with `values` (by key) for its tensors."""
    if _is_tensor(data):
        return values[tuple(data["config"]["keras_history"])]
    if isinstance(data, dict) and "class_name" in data:
        return keras.saving.deserialize_keras_object(data)
    if isinstance(data, dict):
        return {name: fill_in(value, values) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [fill_in(value, values) for value in data]
    return data


def _is_key(data):
    return isinstance(data, list) and len(data) == 3 and isinstance(data[0], str)


def map_outputs(data, values, nested):
    """Returns the model's outputs, with `values` (by key) for its tensors.

    Args:
        data: The config's "output_layers".
        values: {key: anything}.
        nested: Names of the Functional models that are used as layers. Keras counts the call that
            defines them only in the list of outputs.
    """
    if _is_key(data):
        name, call, output = data
        return values[(name, call - (name in nested), output)]
    if isinstance(data, dict):
        return {name: map_outputs(value, values, nested) for name, value in data.items()}
    return [map_outputs(value, values, nested) for value in data]


def input_keys(data):
    """Returns the keys in the config's "input_layers", in the order of the flattened inputs."""
    if _is_key(data):
        return [tuple(data)]
    if isinstance(data, dict):
        return [key for name in sorted(data) for key in input_keys(data[name])]
    return [key for value in data for key in input_keys(value)]


def config_of(model):
    """Returns the config of a Functional; layers without a config are listed by name."""
    try:
        return model.get_config()
    except Exception:  # from third-party code
        silent = [operation for operation in model.operations if not _has_config(operation)]
        if not silent:
            raise
    try:
        for operation in silent:
            operation.get_config = dict
        return model.get_config()
    finally:
        for operation in silent:
            del operation.get_config


def _has_config(operation):
    try:
        keras.saving.serialize_keras_object(operation)
    except Exception:
        return False
    return True
