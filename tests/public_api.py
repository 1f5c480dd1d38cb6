"""What of the package is public: the names that README and docstrings are about."""

import ast
import importlib
import pathlib

import speq_keras

MODULES = (
    "speq_keras",
    *(f"speq_keras.{name}" for name in ("callbacks", "configs", "export", "losses")),
    *(f"speq_keras.{name}" for name in ("precision", "quantizers", "tfmot")),
)


def public_names(module):
    """Returns the public names of one of `MODULES`: its `__all__`, or what it defines itself."""
    if module == "speq_keras.tfmot":  # which is imported where its package is installed only
        source = pathlib.Path(speq_keras.__file__).with_name("tfmot") / "__init__.py"
        (names,) = (
            node.value
            for node in ast.parse(source.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
        )
        return ast.literal_eval(names)
    content = vars(importlib.import_module(module))
    own = [
        name
        for name, thing in content.items()
        if getattr(thing, "__module__", module) == module and not name.startswith("_")
    ]
    return content.get("__all__", own)


def is_public(dotted):
    """Whether "speq_keras.quantizers.PACT" is public, or an attribute of something that is."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if module in MODULES:
            return end == len(parts) or parts[end] in public_names(module)
    return False
