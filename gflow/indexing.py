"""Entries of arrays along saved times and batches."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
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


def shortened(module: Any, lengths: Mapping[str, int]) -> Any:
    """A module with so many first entries of each array in these fields."""
    if not lengths:
        return module
    leaves, structure = jax.tree.flatten(module)
    on_host: dict[int, np.ndarray] = {}
    for place, name in enumerate(_fields_of_leaves(structure)):
        leaf, count = leaves[place], lengths.get(name)
        if count is None or not eqx.is_array(leaf) or leaf.shape[0] <= count:
            continue
        if isinstance(leaf, Tracer) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            leaves[place] = leaf[:count]
        else:
            on_host[place] = np.asarray(leaf)[:count]
    # Other ways to make an array of JAX, `jnp.asarray` too, compile a program for each new shape.
    for place, leaf in zip(on_host, jax.device_put(list(on_host.values()))):
        leaves[place] = leaf
    return structure.unflatten(leaves)


@lru_cache(maxsize=64)
def _fields_of_leaves(structure: Any) -> list[str]:
    module = structure.unflatten(range(structure.num_leaves))
    return [path[0].name for path, _ in jax.tree_util.tree_leaves_with_path(module)]


def taken(tree: PyTree, place: Any) -> Any:
    """The tree with this entry of each array, or these."""

    def take(leaf):
        if not eqx.is_array(leaf):
            return leaf
        # As in `shortened`.
        return jax.device_put(np.asarray(leaf)[place]) if known and _is_plain(leaf) else leaf[place]

    known = is_concrete(place)
    place = np.asarray(place) if known and eqx.is_array(place) else place
    return jax.tree.map(take, tree)
