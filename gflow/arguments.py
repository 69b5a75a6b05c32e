"""Checks of what users pass in: each names the argument, what came and what was wanted."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.core
import numpy as np
from jaxtyping import Array, Shaped

RealScalar = float | int | np.number | Shaped[Array, ""]


class ArgumentError(ValueError):
    """An argument that cannot be used. The message names it, says what came and what was wanted."""

    def __init__(self, name: str, got: Any, wanted: str):
        super().__init__(f"`{name}`: got {_describe(got)}, wanted {wanted}")
        self.name = name


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray) or hasattr(value, "aval"):
        return f"an array of shape {tuple(value.shape)} and type {value.dtype}"
    text = value if isinstance(value, Described) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def is_concrete(*values: Any) -> bool:
    """False if an array among the values is traced by JAX, so that its entries are not known."""
    return not any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(values))


class Described(str):
    """Text for the "got" part of an `ArgumentError` that is shown as it stands."""


def positive_int(name: str, value: Any, *, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ArgumentError(name, value, f"a whole number of at least {minimum}")
    return int(value)


def positive(name: str, value: Any, *, or_zero: bool = False) -> float:
    wanted = "a finite number, zero or more" if or_zero else "a finite positive number"
    number = finite(name, value, wanted=wanted)
    if number < 0 or (number == 0 and not or_zero):
        raise ArgumentError(name, value, wanted)
    return number


def finite(name: str, value: Any, *, wanted: str = "a finite number") -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(name, value, wanted) from None
    if isinstance(value, (bool, str)) or not math.isfinite(number):
        raise ArgumentError(name, value, wanted)
    return number


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    known = list(known)
    if value not in known:
        raise ArgumentError(name, value, "one of " + ", ".join(repr(k) for k in known))
    return value


def finite_entries(name: str, array: np.ndarray) -> None:
    """Raises if `array` has an entry that is NaN or infinite, and says where the first one is."""
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        where = ", ".join(map(str, at))
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ArgumentError(
            name, Described(f"{array[at]} at [{where}]{more}"), "finite numbers only"
        )
