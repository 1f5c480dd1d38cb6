"""How the package is built: nothing long, no circle, and examples of all that is public."""

import ast
import importlib
import inspect
import pathlib
import pkgutil

import speq_keras

PACKAGE = pathlib.Path(speq_keras.__file__).parent
MOST_LINES = 400  # of a file
MOST_LINES_OF_CODE = 50  # of a function, without its docstring
PATHS = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef

# ---- sizes -----------------------------------------------------------------------------------


def lines_of_code(function):
    """Returns the lines of a function, without its docstring."""
    count = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is None:
        return count
    docstring = function.body[0]
    return count - (docstring.end_lineno - docstring.lineno + 1)


def long_functions(tree):
    """Returns the names of the functions in a file that are too long."""
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    return [f.name for f in functions if lines_of_code(f) > MOST_LINES_OF_CODE]


def test_no_file_is_longer_than_400_lines():
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in PATHS.items()
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_no_function_is_longer_than_50_lines_without_its_docstring():
    found = {name: long_functions(tree) for name, tree in TREES.items()}
    assert {name: functions for name, functions in found.items() if functions} == {}


def test_a_long_function_is_found_and_a_long_docstring_is_not():
    lines = ["def f():", '    """One.', *["    more"] * 60, '    """', *["    x = 1"] * 49]
    assert long_functions(ast.parse("\n".join(lines))) == []
    assert long_functions(ast.parse("\n".join([*lines, "    x = 1"]))) == ["f"]


# ---- circles ---------------------------------------------------------------------------------


def module_of(name):
    """Returns the module of a file: "graph/__init__.py" is "speq_keras.graph"."""
    return ".".join(["speq_keras", *name.removesuffix(".py").split("/")]).removesuffix(".__init__")


MODULES = {module_of(name): tree for name, tree in TREES.items()}


def imports_of(tree):
    """Returns the modules of the package that a file imports, in functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in full}
    return found & set(MODULES)


def circles(imports):
    """Returns the modules on circles, or between two: those left when all loose ends are off."""
    left = dict(imports)
    while True:
        ends = {name for name, targets in left.items() if not targets & set(left)}
        ends |= set(left) - {target for targets in left.values() for target in targets}
        if not ends:
            return sorted(left)
        left = {name: targets for name, targets in left.items() if name not in ends}


def test_no_module_imports_itself_by_way_of_others():
    assert circles({name: imports_of(tree) for name, tree in MODULES.items()}) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]


# ---- docstrings ------------------------------------------------------------------------------

# Programs of their own, and the step of another backend.
_NOT_IMPORTED = ("__main__", "runner", "compiled_worker", "jax")


def loaded_modules():
    """Returns {name: module} of the package, without `tfmot` where that cannot be imported."""
    found = {}
    for module in pkgutil.walk_packages(
        speq_keras.__path__, "speq_keras.", onerror=lambda name: None
    ):
        if module.name.split(".")[-1] in _NOT_IMPORTED:
            continue
        try:
            found[module.name] = importlib.import_module(module.name)
        except ImportError:
            if ".tfmot" not in module.name:
                raise
    return found


LOADED = loaded_modules()


def is_public(name):
    return not name.startswith("_")


def is_method(value):
    return inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)


def methods_of(cls):
    """Yields (name, function or property) of what a class defines for others."""
    for name, value in vars(cls).items():
        if is_public(name) and is_method(value):
            yield name, getattr(cls, name)


def members_of(module):
    """Yields (name, object) of the public classes, functions and methods that a module defines."""
    for name, value in vars(module).items():
        is_code = inspect.isclass(value) or inspect.isfunction(value)
        if is_public(name) and is_code and value.__module__ == module.__name__:
            yield name, value
            if inspect.isclass(value):
                yield from ((f"{name}.{own}", method) for own, method in methods_of(value))


def test_what_is_public_has_a_docstring_or_that_of_what_it_overrides():
    missing = [
        f"{module.__name__}: {name}"
        for module in LOADED.values()
        for name, value in members_of(module)
        if not inspect.getdoc(value)
    ]
    assert missing == []


# ---- examples --------------------------------------------------------------------------------

PUBLIC_MODULES = (
    "bit_search callbacks co_training configs damping export layers losses precision progressive "
    "quantizers tfmot"
).split()
# Public, and without an example: why.
BY_KERAS = "Keras calls it"
IN_CLASS = "in the example of the class"
WITHOUT_EXAMPLE = {
    "BitSearch": "`search_bits` makes it, and prints it in its example",
    "MaskedOutput": "`wrap` makes it, where a loss would lose a mask",
    "CoTraining": "a base class: its subclasses `Apprentice` and `CoStudy` have examples",
    "Quantizer": "a base class: its subclasses for weights and activations have examples",
    "SPEQModel.compile": IN_CLASS,
    "SPEQModel.fit": IN_CLASS,
    "SPEQModel.train_on_batch": "as `fit`",
    "SPEQModel.compile_from_config": BY_KERAS,
    "SPEQModel.load_own_variables": BY_KERAS,
    "SPEQModel.non_trainable_variables": "the others of `trainable_variables`",
    "SPEQModel.non_trainable_weights": "the others of `trainable_weights`",
    "SPEQModel.save_own_variables": BY_KERAS,
    "SPEQModel.test_step": BY_KERAS,
    "SPEQModel.train_step": BY_KERAS,
    "SPEQModel.trainable_weights": "as `trainable_variables`",
}


def public_names(module):
    """Returns the names that a public module offers."""
    own = [name for name, _ in members_of(module) if "." not in name]
    return getattr(module, "__all__", own)


def what_is_public():
    """Yields (name, object) of the public classes and functions, and the methods of a model."""
    for room in ("", *PUBLIC_MODULES):
        module = LOADED.get(f"speq_keras.{room}") if room else speq_keras
        for name in public_names(module) if module else ():
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield name, value
    for cls in speq_keras.SPEQModel.__mro__:
        if cls.__module__.startswith("speq_keras"):
            for name, _ in methods_of(cls):
                yield f"SPEQModel.{name}", getattr(speq_keras.SPEQModel, name)


def test_what_is_public_has_an_example_or_a_reason_why_not():
    without = {name for name, value in what_is_public() if ">>>" not in (value.__doc__ or "")}
    assert without == set(WITHOUT_EXAMPLE)
