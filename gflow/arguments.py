"""Checks of arguments. Each error names the argument, what was passed and what was wanted."""

import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gflow.pickling import PortableError

if TYPE_CHECKING:
    from jaxtyping import Array, Shaped

    # To type checkers jaxtyping's PyTree is unknown.
    PyTree: TypeAlias = Any
    RealScalar = float | int | np.number | Shaped[Array, ""]


def __getattr__(name: str) -> Any:
    """The types of annotations. They need JAX, for which errors about options do not wait."""
    if name not in ("PyTree", "RealScalar"):
        raise AttributeError(f"module 'gflow.arguments' has no attribute {name!r}")
    import jaxtyping

    if name == "PyTree":
        return jaxtyping.PyTree
    return float | int | np.number | jaxtyping.Shaped[jaxtyping.Array, ""]


class ArgumentError(PortableError, ValueError):
    """An argument that cannot be used. The message says what was passed and what was wanted.

    - `name`: the argument.
    """

    def __init__(self, name: str, got: Any, wanted: str):
        super().__init__(f"`{name}`: got {describe(got)}, wanted {wanted}")
        self.name = name


def describe(value: Any) -> str:
    """The value as an `ArgumentError` shows it."""
    if isinstance(value, np.ndarray) or hasattr(value, "aval"):
        return f"an array of shape {tuple(value.shape)} and type {value.dtype}"
    text = value if isinstance(value, Described) else repr(value)
    most = 400 if isinstance(value, Described) else 200
    return text if len(text) <= most else text[: most - 3] + "..."


def is_concrete(*values: Any) -> bool:
    """False if JAX traces an array among the values, so that its entries are unknown."""
    import jax
    from jax.core import Tracer

    return not any(isinstance(a, Tracer) for a in jax.tree.leaves(values))


class Described(str):
    """Text that an `ArgumentError` shows as it is, instead of the `repr` of a value."""


def positive_int(name: str, value: Any, *, minimum: int = 1) -> int:
    """The value as an `int`. Raises `ArgumentError` unless it is a whole number ≥ `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ArgumentError(name, value, f"a whole number of at least {minimum}")
    return int(value)


def positive(name: str, value: Any, *, or_zero: bool = False) -> float:
    """The value as a `float`. Raises `ArgumentError` unless it is finite and positive (or zero)."""
    wanted = "a finite number, zero or more" if or_zero else "a finite positive number"
    number = finite(name, value, wanted=wanted)
    if number < 0 or (number == 0 and not or_zero):
        raise ArgumentError(name, value, wanted)
    return number


def finite(name: str, value: Any, *, wanted: str = "a finite number") -> float:
    """The value as a `float`. Raises `ArgumentError` unless it is a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(name, value, wanted) from None
    if isinstance(value, (bool, str)) or not math.isfinite(number):
        raise ArgumentError(name, value, wanted)
    return number


def real_array(name: str, value: Any, wanted: str) -> np.ndarray:
    """The value as an array of `float`. Raises `ArgumentError` for text, dates, truth values and
    complex numbers."""
    import jax.numpy as jnp

    try:
        array = np.asarray(value)
        if array.dtype.kind in "iufO" or jnp.issubdtype(array.dtype, jnp.floating):
            return array.astype(float)
    except (TypeError, ValueError):
        pass
    raise ArgumentError(name, value, wanted)


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """The value. Raises `ArgumentError` unless it is one of these strings."""
    known = list(known)
    if value not in known:
        raise ArgumentError(name, value, "one of " + ", ".join(repr(k) for k in known))
    return value


def finite_entries(name: str, array: np.ndarray) -> None:
    """Raises `ArgumentError` if an entry is NaN or infinite, with the place of the first one."""
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        where = ", ".join(map(str, at))
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ArgumentError(
            name, Described(f"{array[at]} at [{where}]{more}"), "finite numbers only"
        )
