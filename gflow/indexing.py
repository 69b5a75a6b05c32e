"""Entries of arrays along saved times and batches."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.arguments import ArgumentError, Described, PyTree, describe, is_concrete, real_array

# Times that differ by this fraction are the same; by two roundings, where they are in float32.
_SAME_TIME = 1e-13


def increasing_indices(name: str, value: Any, size: int) -> Int[np.ndarray, " chosen"]:
    """The places among `size` that a slice, a boolean mask or a list of indices chooses.

    **Raises:** `ArgumentError` unless they are in range, increasing, and at least one.
    """
    wanted = f"a slice, a mask or increasing indices that choose some of {size}"
    if isinstance(value, slice):
        chosen = np.arange(size)[value]
    else:
        try:
            chosen = np.asarray(value)
        except (TypeError, ValueError):
            raise ArgumentError(name, value, wanted) from None
        if isinstance(value, tuple):
            raise ArgumentError(name, value, wanted)
        if chosen.dtype == bool and chosen.shape == (size,):
            chosen = np.flatnonzero(chosen)
        elif chosen.ndim != 1 or (chosen.size and not np.issubdtype(chosen.dtype, np.integer)):
            raise ArgumentError(name, value, wanted)
        else:
            if np.any((chosen < -size) | (chosen >= size)):
                raise IndexError(f"`{name}`: indices {chosen.min()} to {chosen.max()} of {size}")
            chosen = np.where(chosen < 0, chosen + size, chosen).astype(int)
    if len(chosen) == 0:
        raise ArgumentError(name, Described(f"{describe(value)}, which chooses none"), wanted)
    if np.any(np.diff(chosen) <= 0):
        raise ArgumentError(name, Described(f"{describe(value)}, not increasing"), wanted)
    return chosen


def as_times(name: str, value: Any) -> Any:
    """One time or several as an array of shape (times,).

    **Raises:** `ArgumentError` for what is no number, or has several axes.
    """
    if not is_concrete(value):
        return jnp.atleast_1d(value)
    wanted = "a time, or times of shape (times,)"
    times = np.atleast_1d(real_array(name, value, wanted))
    if times.ndim != 1 or np.isnan(times).any():
        raise ArgumentError(name, value, wanted)
    return times


def within(
    name: str, times: Any, start: float, end: float, what: str
) -> Float[np.ndarray, " times"]:
    """The times, those beyond an end by a rounding at that end.

    **Raises:** `ArgumentError` for others beyond the ends of `what`.
    """
    times = np.asarray(times, float)
    rounding = _SAME_TIME * max(abs(start), abs(end))
    if np.any((times < start - rounding) | (times > end + rounding)):
        got = Described(f"{times.min():.17g} to {times.max():.17g}")
        raise ArgumentError(name, got, f"times of {what}, {start:.6g} to {end:.6g}")
    return np.clip(times, start, end)


def saved_places(
    name: str, times: Float[np.ndarray, " times"], saved: Float[np.ndarray, " slots"], more: str
) -> Int[np.ndarray, " times"]:
    """The places of some times among the saved ones.

    **Raises:** `ArgumentError` for times that are not saved, with what there is `more`.
    """
    nearest = np.abs(saved[None, :] - times[:, None]).argmin(axis=1)
    fraction = max(_SAME_TIME, 2 * float(jnp.finfo(saved.dtype).eps))
    same = np.abs(saved[nearest] - times) <= fraction * np.abs(times)
    if not same.all():
        raise ArgumentError(name, Described(f"{times[~same][0]:.17g}"), f"saved times{more}")
    return nearest


def num_filled(ts: Float[Array, " slots"] | Float[np.ndarray, " slots"]) -> int:
    """The number of saved times without the slots past an early end. These have time inf in a flow
    and the last time again in a descent. Under a trace, all slots count."""
    if not is_concrete(ts):
        return ts.shape[0]
    times = np.asarray(ts)
    new = np.append(True, times[1:] > times[:-1])[: len(times)]
    filled = np.flatnonzero(np.isfinite(times) & new)
    return int(filled[-1]) + 1 if len(filled) else 0


def _is_plain(leaf: Any) -> bool:
    """Whether a leaf is a known array of numbers, no array of random keys."""
    keys = eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return eqx.is_array(leaf) and is_concrete(leaf) and not keys


def taken(tree: PyTree, place: Any) -> Any:
    """The tree with this entry of each array, or these."""

    def take(leaf):
        if not eqx.is_array(leaf):
            return leaf
        # By NumPy, much faster than a slice of a JAX array for each new length.
        return jnp.asarray(np.asarray(leaf)[place]) if known and _is_plain(leaf) else leaf[place]

    known = is_concrete(place)
    place = np.asarray(place) if known and eqx.is_array(place) else place
    return jax.tree.map(take, tree)
