"""The names under which programs for earlier versions know `speq_keras.files`."""

from speq_keras.files import check_path, write_safely

__all__ = ["check_path", "write_safely"]
