"""The rows of data as kinks see them: equal ones as one, and those whose normals are parallel."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gflow.arguments import is_concrete

# Unit normals that differ by less count as the same.
_PARALLEL = 1e-13
_FEW_COLUMNS = 4
# Distinct rows this near, relative to the range of the data, are warned of if their targets differ
# by more than this fraction of the range of the targets.
_NEAR, _UNLIKE = 1e-7, 1e-4


class NormalLines(NamedTuple):
    """The lines through 0 that the normals lie on: `line` numbers them, and a row's normal is
    `along` times the direction of its line.

    Kinks of a unit at rows of one line can be the same hyperplane, as those of x and −x are without
    biases; rows whose preactivations are below `reach` then belong to it. `line` is None if each
    row has its own, with the directions of the normals.
    """

    line: Int[Array, " rows"] | None
    along: Float[Array, " rows"]
    reach: Float[Array, " rows"]

    def total(self, values: Float[Array, " rows"]) -> Float[Array, " rows"]:
        """For each row the sum over the rows of its line."""
        if self.line is None:
            return values
        return jax.ops.segment_sum(values, self.line, len(values))[self.line]

    def members(self, row: Int[Array, ""]) -> Bool[Array, " rows"]:
        """Which rows are on the line of a row."""
        if self.line is None:
            return jnp.arange(len(self.along)) == row
        return self.line == self.line[row]

    def aligned(self, row: Int[Array, ""]) -> Bool[Array, " rows"]:
        """Which rows, of those on the line of one, are on the active side where that row is."""
        ahead = self.along > 0
        return ahead == ahead[row]


def normal_lines(normals: np.ndarray | Array, sizes: np.ndarray | Array) -> NormalLines:
    """From the rows' normals (rows, dim), and what their preactivations are measured by.

    Normals that are traced are taken not to be parallel.
    """
    like = np if is_concrete(normals) else jnp
    along = like.linalg.norm(normals, axis=1)
    line = _numbered(np.asarray(normals), np.asarray(along)) if is_concrete(normals) else None
    # A row of zeros has no kink.
    along = like.where(along > 0, along, 1.0)
    reach = sizes
    if line is not None:
        first = np.array([np.flatnonzero(line == k)[0] for k in range(line.max() + 1)])
        turned = np.sum(normals * normals[first[line]], axis=1) < 0
        along = np.where(turned, -along, along)
        widest = np.zeros(len(first))
        np.maximum.at(widest, line, sizes / np.abs(along))
        reach = np.abs(along) * widest[line]
        line = jax.device_put(line)
    dtype = normals.dtype
    return NormalLines(line, on_device(along, dtype), on_device(reach, dtype))


def on_device(array: Any, dtype: Any) -> Array:
    """An array of JAX; from one of NumPy, without a program for each new shape."""
    if is_concrete(array):
        return jax.device_put(np.asarray(array, dtype))
    return array.astype(dtype)


def _numbered(normals: np.ndarray, sizes: np.ndarray) -> np.ndarray | None:
    """The number of each normal's line; None if no two are parallel."""
    normals, sizes = np.asarray(normals, float), np.asarray(sizes, float)
    places = np.arange(len(sizes))
    some = places[sizes > 0]
    unit = normals[some] / sizes[some, None]
    # Parallel normals are neighbours in the order of their distance from some hyperplane.
    probe = np.random.default_rng(0).standard_normal(normals.shape[1])
    height = np.abs(unit @ probe)
    order = np.argsort(height)
    unit = unit[order] * np.where(unit[order] @ probe < 0, -1.0, 1.0)[:, None]
    same = np.max(np.abs(np.diff(unit, axis=0)), axis=1, initial=0.0) < _PARALLEL
    if not same.any():
        return None
    line = np.zeros(len(sizes), int)
    line[some[order]] = np.cumsum(np.append(0, ~same))
    line[sizes == 0] = 1 + len(some) + np.arange(len(sizes) - len(some))
    return np.unique(line, return_inverse=True)[1].ravel()


def distinct_rows(x: Array) -> tuple[Array, Array, Array | None]:
    """The distinct rows, the first datum of each, and to which each datum belongs (None if all are
    distinct). Data that are traced are taken to be distinct."""
    n = x.shape[0]
    if not is_concrete(x):
        return x, jax.device_put(np.arange(n)), None
    _, first, group = np.unique(np.asarray(x), axis=0, return_index=True, return_inverse=True)
    if len(first) == n:
        return x, jax.device_put(np.arange(n)), None
    # In the order of the data.
    order = np.argsort(first)
    rank = np.empty(len(first), int)
    rank[order] = np.arange(len(first))
    kept = np.sort(first)
    return jax.device_put((np.asarray(x)[kept], kept, rank[group.ravel()]))


def words_on_near_rows(x: np.ndarray, y: np.ndarray, data: np.ndarray) -> str | None:
    """A warning of distinct rows that nearly agree and whose targets do not, None if there are
    none; `data` numbers them.

    The flow can slide on the kink of one of the two, within a strip that no step of a descent
    resolves.
    """
    reach = _NEAR * float(np.ptp(x, axis=0).max(initial=0.0))
    # Rows that are near are neighbours in the order of their distance from some hyperplane.
    order = np.argsort(x @ np.random.default_rng(0).standard_normal(x.shape[1]), kind="stable")
    apart = np.linalg.norm(np.diff(x[order], axis=0), axis=1)
    targets = y.reshape(len(y), -1)
    jump = np.max(np.abs(np.diff(targets[order], axis=0)), axis=1, initial=0.0)
    found = np.flatnonzero((apart <= reach) & (jump > _UNLIKE * np.ptp(targets)))
    if not len(found):
        return None
    pairs = [sorted(data[order[k : k + 2]].tolist()) for k in found[:3]]
    words = "; ".join(
        f"{i} and {j} differ by {apart[k]:.1e}, their targets by {jump[k]:.3g}"
        for (i, j), k in zip(pairs, found)
    )
    more = f"; and {len(found) - 3} more pairs" if len(found) > 3 else ""
    return (
        f"rows of x nearly agree and have other targets: {words}{more}. A flow that locates kinks "
        "can slide between them, which gradient descent sees at no practical step size. Rows that "
        "are equal have one kink: round x to make them so."
    )


def by_normals(pairs: Float[Array, "width rows"], normals: Float[Array, "rows dim"]) -> Array:
    """The product, column by column where they are few: XLA's product is then half as fast."""
    dim = normals.shape[1]
    if dim > _FEW_COLUMNS:
        return pairs @ normals
    return jnp.stack([pairs @ normals[:, j] for j in range(dim)], axis=1)
