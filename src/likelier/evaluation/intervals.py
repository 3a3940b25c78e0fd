"""Intervals of shares. Imports no torch: the report and the checks of data use it, too."""

import math

Z95 = 1.959963984540054


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share observed over ``n`` independent trials (Wilson 1927).

    Neither ``n`` nor ``share * n`` must be whole: ties count as a half, and trials that depend on
    each other count as fewer.
    """
    scale = 1 + Z95**2 / n
    middle = (share + Z95**2 / (2 * n)) / scale
    spread = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n)) / scale
    # At 0 and 1 the interval ends there, which rounding would miss by a hair.
    return max(0.0, min(share, middle - spread)), min(1.0, max(share, middle + spread))
