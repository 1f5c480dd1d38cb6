"""The user's functions and classes, which configs only name and live layers contain.

In a config a Lambda's function is code, which Keras does not run for safety, and an unregistered
function or class is only a name. A wrapped model has the objects themselves in its layers: they are
substituted, and no code from a config is run.
"""

import keras

from speq_keras.layers import QuantizedLayer

_OWN = "speq_keras_live>"  # a name that nobody registers


def own_classes(model):
    """Returns the classes, other than Keras' own, of all layers in a model and nested models."""
    classes = set()
    for layer in model.layers:
        if hasattr(layer, "layers"):
            classes |= own_classes(layer)
        classes |= {
            type(part)
            for part in _with_inner(layer)
            if type(part).__module__.split(".")[0] not in ("keras", "speq_keras")
        }
    return classes


def with_live_objects(config, layers, classes=()):
    """Returns a config with functions replaced by names, and `custom_objects` for these names.

    Args:
        config: A float model's config from `serialize_keras_object`; it is changed.
        layers: The layers of the model made from it.
        classes: Classes of layers that this model no longer contains.
    """
    layers = [part for layer in layers for part in _with_inner(layer)]
    lambdas = [layer for layer in layers if isinstance(layer, keras.layers.Lambda)]
    objects, functions = {}, {}
    for layer in lambdas:
        for field in ("function", "mask"):
            objects[f"{_OWN}{layer.name}>{field}"] = getattr(layer, field)
    for function in (getattr(layer, "activation", None) for layer in layers):
        if hasattr(function, "__name__"):
            functions.setdefault(function.__name__, set()).add(function)
    # If two have the same name, the config does not say which one is meant.
    functions = {name: found.pop() for name, found in functions.items() if len(found) == 1}
    objects.update((f"{_OWN}{name}", function) for name, function in functions.items())
    named = {}
    for cls in {*map(type, layers), *classes}:
        named.setdefault(keras.saving.get_registered_name(cls), set()).add(cls)
    objects.update((name, found.pop()) for name, found in named.items() if len(found) == 1)
    _put_names(config, {layer.name for layer in lambdas}, set(functions), "")
    return config, objects


def _with_inner(layer):
    """Yields a layer, and the layers it wraps."""
    yield layer
    if isinstance(layer, QuantizedLayer | keras.layers.Wrapper):
        yield from _with_inner(layer.layer)


def _put_names(config, lambdas, functions, prefix):
    """Replaces functions in a config with names of live ones, in place.

    Args:
        config: A config, or a part of one.
        lambdas: Names of the live Lambda layers.
        functions: Names of the live functions.
        prefix: Prefix of the layers' names here: those of nested models, with dots.
    """
    parts = config.values() if isinstance(config, dict) else config
    if isinstance(config, dict):
        inner = config.get("config")
        kind = config.get("class_name")
        if kind == "function" and inner in functions and config.get("module") == "builtins":
            config.update(_named(f"{_OWN}{inner}"))
            return
        if kind == "Lambda" and config.get("registered_name") is None:
            _name_functions(inner, lambdas, prefix)
            return
        if isinstance(inner, dict) and "layers" in inner:
            prefix = f"{prefix}{inner['name']}." if config.get("inbound_nodes") else prefix
    for part in parts:
        if isinstance(part, dict | list):
            _put_names(part, lambdas, functions, prefix)


def _name_functions(config, lambdas, prefix):
    candidates = (f"{prefix}{config['name']}", config["name"])
    name = next((name for name in candidates if name in lambdas), None)
    if name is None:
        return
    for field in ("function", "mask"):
        if isinstance(config.get(field), dict):
            config[field] = _named(f"{_OWN}{name}>{field}")


def _named(name):
    return {"module": "builtins", "class_name": "function", "config": name, "registered_name": name}
