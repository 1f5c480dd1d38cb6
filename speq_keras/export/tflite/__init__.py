"""The integer network, its TFLite file, and what runtimes compute from it."""
