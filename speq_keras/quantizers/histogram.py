"""A histogram of a quantizer's inputs, and least-squares ranges from it (NumPy)."""

import numpy as np

# 2^(-1/16) between candidates: the error of the best clip changes by less than 0.1 % within a step.
_FRACTIONS = 2.0 ** (-np.arange(160) / 16.0)


class Histogram:
    """Counts of values between the smallest and the largest one seen.

    Args:
        values: Float array of any shape; must be finite.
        bins: Number of bins. 2048 gives 8 bins per step of an 8-bit code.
    """

    def __init__(self, values, bins=2048):
        # In float64: float32 cannot represent bin edges between almost equal values.
        values = np.asarray(values, "float32").astype("float64").ravel()
        self.low, self.high = float(values.min()), float(values.max())
        if self.low == self.high:  # NumPy would widen the range, which fails for large values
            self.counts, self.centers = np.array([float(values.size)]), values[:1]
            return
        counts, edges = np.histogram(values, bins=bins, range=(self.low, self.high))
        self.counts = counts.astype("float64")
        self.centers = (edges[:-1] + edges[1:]) / 2

    def error(self, low_code, high_code, scales):
        """Returns the summed squared rounding error for each scale in `scales` (1-d array)."""
        codes = np.round(self.centers / scales[:, None])
        rounded = np.clip(codes, low_code, high_code) * scales[:, None]
        return ((rounded - self.centers) ** 2) @ self.counts

    def best_scale(self, low_code, high_code):
        """Returns `(scale, error)` with the least squared error for codes low_code ... high_code.

        The candidates reach from the scale that clips nothing down to a thousandth of it.
        """
        widest = max(
            self.high / high_code if high_code > 0 else 0.0,
            self.low / low_code if low_code < 0 else 0.0,
        )
        if not widest > 0:
            return None, np.inf
        scales = widest * _FRACTIONS
        errors = self.error(low_code, high_code, scales)
        best = int(np.argmin(errors))
        return float(scales[best]), float(errors[best])
