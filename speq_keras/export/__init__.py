"""Integer TFLite export: fold, simulate, write, prove."""
