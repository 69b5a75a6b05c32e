"""Whether deviations from a law are noise, or what the law lacks."""

import numpy as np

from gflow.rates.estimates import longest_tail
from gflow.rates.laws import Law, at_ends

# Increments of an autoregressive process of order one differ by √2 to √3 times their own size, and
# those of a curve through many points hardly.
_ROUGHNESS = 0.9
# The fraction of the points that the earlier tail ends at.
_EARLIER = 0.85


def is_noise(deviations: np.ndarray) -> bool:
    """Whether neighbouring increments of the deviations differ as those of an autoregressive
    process do: those of what a law lacks are nearly equal."""
    increments = np.diff(deviations)
    changes = np.mean(np.diff(increments) ** 2)
    return bool(changes > _ROUGHNESS**2 * np.mean(increments**2))


def deviations_from(law: Law, params: np.ndarray, u: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Logs less those of the law."""
    return logs - at_ends(law, params, u)[0]


def drift(forms: tuple[Law, ...], ends: np.ndarray, logs: np.ndarray, value: float) -> float:
    """How far the value of a law is from the one found earlier, without the last 15 % of points."""
    count = int(_EARLIER * len(logs))
    tail = longest_tail(forms, ends[:count] / ends[count - 1, -1], logs[:count])
    return 0.0 if tail is None else abs(tail.value - value)
