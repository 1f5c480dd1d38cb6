"""What importing the package brings along, and who imports whom inside it."""

import ast
import importlib.util
import pathlib

import pytest
from fresh_process import result_of

import speq_keras

PACKAGE = pathlib.Path(speq_keras.__file__).parent

# ---- in a fresh process ----------------------------------------------------------------------

IMPORT = """
import json, os, sys
import keras, tensorflow as tf

before = {"flag": os.environ.get("TF_USE_LEGACY_KERAS"), "model": tf.keras.Model}
modules = set(sys.modules)
import speq_keras

added = {name.split(".")[0] for name in set(sys.modules) - modules}
print(json.dumps({
    "added": sorted(added - set(sys.stdlib_module_names)),
    "flag": [before["flag"], os.environ.get("TF_USE_LEGACY_KERAS")],
    "same_tf_keras": tf.keras.Model is before["model"],
    "keras_3": tf.keras.Model is keras.Model,
    "modules": sorted({name.split(".")[0] for name in sys.modules}),
}))
"""


@pytest.fixture(scope="module")
def fresh():
    return result_of(IMPORT, TF_USE_LEGACY_KERAS="0")


def test_import_adds_no_package_to_keras_and_tensorflow(fresh):
    assert fresh["added"] == ["speq_keras"]


@pytest.mark.parametrize(
    "name",
    ["ai_edge_litert", "tensorflow_datasets", "tensorflow_model_optimization", "tf_keras"],
)
def test_import_brings_no_optional_package(fresh, name):
    assert name not in fresh["modules"]


def test_import_leaves_the_legacy_keras_flag_alone(fresh):
    assert fresh["flag"] == ["0", "0"]


def test_import_leaves_tf_keras_alone(fresh):
    assert fresh["same_tf_keras"]
    assert fresh["keras_3"]


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_import_on_jax_brings_no_tensorflow():
    code = "import json, sys; import speq_keras; print(json.dumps('tensorflow' in sys.modules))"
    assert result_of(code, KERAS_BACKEND="jax") is False


# ---- inside the package ----------------------------------------------------------------------

STAIRCASE = [
    "_version",
    "_checks",
    "data",
    "text_tables",
    "files",
    "processes",
    "progress",
    "saving",
    "ops",
    "html",
    "losses",
    "precision",
    "quantizers",
    "own_weights",
    "configs",
    "layers",
    "damping",
    "fused_batch_norm",
    "operations",
    "merged_batches",
    "graph",
    "recurrent",
    "wrapping",
    "export",
    "calibration",
    "batch_norm",
    "provenance",
    "settings",
    "reporting",
    "live_objects",
    "float_weights",
    "frozen",
    "exportable_model",
    "quantized_model",
    "training",
    "model",
    "co_training",
    "progressive",
    "bit_search",
    "callbacks",
    "entry",
    "tfmot",
    "__main__",
]


def room_of(module):
    """Returns the first name below the package: "speq_keras.quantizers.pact" is in "quantizers"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def sources():
    """Yields (path in the package, its room, its syntax tree)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        yield (
            relative.as_posix(),
            relative.parts[0].removesuffix(".py"),
            ast.parse(path.read_text()),
        )


def imported_modules(tree):
    """Yields (module, whether the import stands in a function) of all imports, dotted names too."""
    in_functions = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef)
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and str(node.value).startswith("speq_keras."):
            names = [node.value]  # for importlib
        else:
            continue
        for name in names:
            yield name, id(node) in in_functions


def test_every_room_of_the_package_has_its_step_on_the_staircase():
    rooms = {room for _, room, _ in sources()} - {"__init__"}
    assert rooms == set(STAIRCASE)


def test_rooms_import_only_from_below():
    upward = []
    for path, room, tree in sources():
        if room == "__init__":
            continue
        for module, _ in imported_modules(tree):
            if not module.startswith("speq_keras"):
                continue
            step = STAIRCASE.index(room_of(module))
            if step > STAIRCASE.index(room):
                upward.append(f"{path} imports {module}")
    assert not upward


def files_that_import(package):
    """Returns {path: whether all its imports of `package` stand in functions}."""
    found = {}
    for path, _, tree in sources():
        for module, in_function in imported_modules(tree):
            if module.split(".")[0] == package:
                found[path] = found.get(path, True) and in_function
    return found


def test_tensorflow_is_imported_where_it_is_the_backend_only():
    assert files_that_import("tensorflow") == {
        "callbacks/snapshot.py": True,  # for TensorBoard's events, on every backend
        "fused_batch_norm.py": True,
        "ops.py": True,
        "quantizers/lsq_plus.py": True,
        "training/tensorflow.py": False,
        "export/runner.py": True,  # a program for the device, which the package never imports
        "tfmot/importing.py": False,
        "tfmot/legacy.py": False,
        "tfmot/legacy_configs.py": False,
        "tfmot/quantizers.py": False,
    }


def test_tfmot_is_imported_by_name_only():
    assert files_that_import("tensorflow_model_optimization") == {}
    assert files_that_import("tf_keras") == {}


def test_nothing_imports_speq_keras_tfmot_but_itself():
    found = {
        path
        for path, room, tree in sources()
        for module, _ in imported_modules(tree)
        if module.startswith("speq_keras.tfmot") and room != "tfmot"
    }
    assert not found


def test_jax_is_imported_where_it_is_the_backend_only():
    assert files_that_import("jax") == {"processes.py": True, "training/jax.py": False}


def test_the_runtime_is_imported_at_the_first_export_only():
    assert all(files_that_import("ai_edge_litert").values())


def test_private_modules_of_the_frameworks_are_not_imported():
    private = ("keras.src", "tensorflow.python", "tensorflow.keras")
    found = [
        f"{path} imports {module}"
        for path, _, tree in sources()
        for module, _ in imported_modules(tree)
        if module.startswith(private)
    ]
    assert not found


def test_user_input_is_not_checked_by_assert():
    found = [
        f"{path}:{node.lineno}"
        for path, _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert not found
