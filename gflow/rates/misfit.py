"""Whether deviations from a law are noise, or what the law lacks."""

import numpy as np

from gflow.rates.estimates import Tail, longest_tail
from gflow.rates.laws import Law, at_ends

# Increments of an autoregressive process of order one differ by √2 to √3 times their own size, and
# those of a curve through many points hardly.
_ROUGHNESS = 0.9
# The fractions of the points that earlier tails end at.
_EARLIER = (0.67, 0.85)


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
    """The largest difference between the value of a law and those that were found at earlier times,
    by tails that end at two thirds and at five sixths of the points."""
    found: list[Tail] = []
    for fraction in _EARLIER:
        count = int(fraction * len(logs))
        tail = longest_tail(forms, ends[:count] / ends[count - 1, -1], logs[:count])
        if tail is not None:
            found.append(tail)
    return max((abs(tail.value - value) for tail in found), default=0.0)
