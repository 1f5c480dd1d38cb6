"""Installation; `pip install -e '.[test]'` prepares a checkout for `tests/run`."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
# Read as text: importing the package would need what is about to be installed.
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "speq_keras" / "_version.py").read_text(), re.MULTILINE
)[1]

# The lower bounds are one set that runs together; older Keras cannot name an operation.
REQUIREMENTS = [
    "absl-py>=1.0",
    "ai-edge-litert>=2.1",  # the first with wheels for Python 3.13
    "keras>=3.11.3",
    "numpy>=1.26",
    "tensorflow>=2.20",
]
EXAMPLES = [
    "importlib_resources>=6.0",  # tensorflow-datasets imports it for some data sets, SQuAD too
    "matplotlib>=3.8",
    "scikit-learn>=1.4",
    "tensorboard>=2.20",
    "tensorflow-datasets>=4.9.10",  # older ones fail under protobuf 7, which TensorFlow 2.20 allows
]
# For examples/bert_squad.py. It needs tensorflow-text, which has no wheels for Python 3.14 yet.
HUB = ["keras-hub>=0.32; python_version < '3.14'"]
# For speq_keras.tfmot.
TFMOT = ["tensorflow-model-optimization>=0.8", "tf_keras>=2.20"]
# Reads what `ExportReport.to_model_explorer` writes; half a gigabyte, so the tests do without.
MODEL_EXPLORER = ["ai-edge-model-explorer>=0.1.30"]
# Pinned are the tools whose verdict changes with their version.
TEST = [
    "jax>=0.6",
    "mypy==2.4.1",
    "pytest>=8.0",
    "pytest-timeout>=2.3.1",
    "pytest-xdist>=3.7",
    "ruff==0.17.5",
    # Only pre-releases exist; the bound names one, so that pip takes them.
    "tflite-micro>=0.dev20251001; sys_platform == 'linux' and platform_machine == 'x86_64' "
    "and python_version < '3.14'",
]

setup(
    name="speq-keras",
    version=VERSION,
    description="Quantization-aware training for Keras 3 with the SPEQ method, exported to TFLite",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=["speq_keras", "speq_keras.*"]),
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        "examples": EXAMPLES,
        "hub": HUB,
        "jax": ["jax>=0.6"],
        "model_explorer": MODEL_EXPLORER,
        "tfmot": TFMOT,
        "test": EXAMPLES + HUB + TFMOT + TEST,  # the tests run the examples
    },
)
