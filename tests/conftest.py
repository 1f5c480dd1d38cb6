"""Has to run before anything imports Keras: `pytest` without `tests/run` sees the same settings."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # whatever ~/.keras/keras.json says
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
