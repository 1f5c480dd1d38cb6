"""The integer network, the TFLite file that holds it, and what runtimes compute from it."""
