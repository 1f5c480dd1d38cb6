"""Masks that Keras hands on behind the tensors, as tensors of the graph.

A layer that asks for a mask gets it as an argument, as `Layer.__call__` would have found it; what a
layer makes of masks (`compute_mask`) is traced like a call.
"""

import inspect

import keras
from keras import tree

from speq_keras.graph.nodes import refs_in

# A mask that cannot be traced.
UNKNOWN = object()


def mask_arguments(layer, args, kwargs, mask_of):
    """Returns the masks that a layer asks for and that its call does not name.

    Args:
        layer: The layer.
        args: Of its call, with `Ref`s.
        kwargs: Likewise.
        mask_of: Function of a leaf of them: the `Ref` of its mask, or None.

    Returns:
        {name of an argument: a `Ref`, or a structure of them with None}.
    """
    try:
        bound = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    except TypeError:  # a call that Keras completes itself
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
    """Returns what a layer makes of the masks of its first argument.

    Args:
        layer: The layer.
        first: Its first argument, with a `KerasTensor` where a tensor goes.
        masks: The same structure with the tensors of the masks, or None.

    Returns:
        A Functional model of `compute_mask` with the tensors that it reads as inputs, one of those
        tensors, None where there is no mask, or UNKNOWN where nobody can say.
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
    except Exception:  # of other people's code, on tensors it may not know
        return UNKNOWN
