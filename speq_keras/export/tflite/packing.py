"""Packing of codes narrower than a byte in a TFLite file."""

import numpy as np


def pack_codes(codes, bits):
    """Packs integers into bytes, 8 / `bits` of them in each, the first in the lowest bits.

    Example:
        >>> pack_codes(np.array([1, -2, 7]), 4).tolist()
        [225, 7]
    """
    codes = (np.asarray(codes, np.int16).reshape(-1) & (2**bits - 1)).astype(np.uint8)
    per_byte = 8 // bits
    codes = np.pad(codes, (0, -len(codes) % per_byte)).reshape(-1, per_byte)
    return np.bitwise_or.reduce(codes << _places(bits), axis=1)


def unpack_codes(data, bits, count):
    """Returns the first `count` signed codes of packed bytes, one per int8.

    Example:
        >>> unpack_codes(np.array([225, 7], np.uint8), 4, 3).tolist()
        [1, -2, 7]
    """
    codes = (np.asarray(data, np.uint8)[:, None] >> _places(bits)).reshape(-1)[:count]
    # Shifted to the top of the byte and back: the right shift copies the sign.
    return (codes << (8 - bits)).view(np.int8) >> (8 - bits)


def _places(bits):
    return np.arange(0, 8, bits, dtype=np.uint8)
