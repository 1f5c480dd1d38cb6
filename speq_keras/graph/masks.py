"""Turns the masks that Keras attaches to tensors into tensors of the graph.

A layer that asks for a mask gets it as an argument, the one that `Layer.__call__` would have found.
The masks that a layer makes (`compute_mask`) are traced like a call.
"""

import inspect

import keras
from keras import tree

from speq_keras.graph.nodes import refs_in

# A mask that cannot be traced.
UNKNOWN = object()


def mask_arguments(layer, args, kwargs, mask_of):
    """Returns the masks that a layer asks for but its call does not pass.

    Args:
        layer: The layer.
        args: Of its call, with `Ref`s.
        kwargs: Likewise.
        mask_of: Function of a leaf of these: the `Ref` of its mask, or None.

    Returns:
        {name of an argument: a `Ref`, or a structure of them with None}.
    """
    try:
        bound = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    except TypeError:  # Keras fills in arguments
        return {}
    parameters = inspect.signature(layer.call).parameters
    tensors = {name: value for name, value in bound.items() if refs_in(value)}
    found = {}
    for name, value in tensors.items():
        wanted = "mask" if len(tensors) == 1 else f"{name}_mask"
        if wanted not in parameters or bound.get(wanted) is not None:
            continue
        masks = tree.map_structure(mask_of, value, none_is_leaf=False)
        if refs_in(masks):
            found[wanted] = masks
    return found


def mask_model(layer, first, masks):
    """Returns the masks that a layer computes from the masks of its first argument.

    Args:
        layer: The layer.
        first: Its first argument, with a `KerasTensor` for each tensor.
        masks: The same structure with the tensors of the masks, or None.

    Returns:
        A Functional model of `compute_mask` whose inputs are the tensors that it reads, one of
        those tensors, None if there is no mask, or UNKNOWN if it cannot be determined.
    """
    if not getattr(layer, "supports_masking", False):
        return None
    try:
        made = layer.compute_mask(first, masks)
        made = made[0] if isinstance(made, list | tuple) and len(made) == 1 else made
        known = [x for x in tree.flatten((first, masks)) if isinstance(x, keras.KerasTensor)]
        if not isinstance(made, keras.KerasTensor) or any(made is x for x in known):
            return made if isinstance(made, keras.KerasTensor) else None
        return keras.Model(known, made)
    except Exception:  # third-party code on symbolic tensors
        return UNKNOWN
