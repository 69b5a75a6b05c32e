r"""The squared risk of one-input data of any size, from tables of running sums over sorted rows.

Over neighbouring rows on which N is affine, the sum of squared residuals needs only the sums of
1, x, x², y, xy and y² up to each row. Their differences cancel, so the sums are kept as pairs. Then
the risk is as accurate as the plain sum of squares, down to about 1e-30.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float, Int

from gflow.risks.compensated import (
    FloatPair,
    add,
    exact_levels,
    joined,
    multiply,
    subtract,
    two_product,
    two_sum,
    value,
)
from gflow.risks.one_input import Cells, Knots, Measure, OneInputUnits

# Rows summed at once: they and their products fit into a processor's cache.
_ROWS = 8192
# Rows compared in each round of the search.
_FAN = 4
# The largest number of look-ups that are made one after the other.
_FEW = 500
# The largest range of x in interquartile ranges. Beyond it, outliers cost the other rows digits.
_MAX_RANGE = 1e5


class SortedData(Measure):
    """Rows in order of x, and running sums over them.

    Row k of `table` holds sums over the first k rows of data: of ω, ωx, ωx², ωy², then ωy and ωxy
    for each output, with x measured from `centre`; first the high parts of all pairs, then the low
    ones. With `equal` weights of 1/n, ω is 1 in the table.
    """

    x: Float[Array, " n"]
    centre: Float[Array, ""]
    table: Float[Array, "n+1 sums"]
    equal: bool = eqx.field(static=True)

    def knots(self, units: OneInputUnits) -> Knots:
        n = self.x.shape[0]
        keys = jnp.append(jnp.array([0, n]), self._rows_left_of_kinks(units))
        first, last = self.x[0], self.x[-1]
        x = jnp.append(jnp.stack([first, last]), units.kinks(first, last))
        return Knots(keys, x[None])

    def _rows_left_of_kinks(self, units: OneInputUnits) -> Int[Array, " width"]:
        """The number of rows to the left of each unit's kink.

        It compares the sign of the computed preactivation, which is monotone in x, rather than x
        with −b/w: a row is on a kink exactly where the plain evaluation has z = 0.
        """
        return _rows_before(self.x, units.w[0], units.b[0], units.rightward[0])

    def cells(self, order: Array, knots: Knots, slopes: FloatPair, intercepts: FloatPair) -> Cells:
        rows = _rows_at(self.table, knots.keys).T
        steps = FloatPair(*jnp.split(jnp.append(rows[:, 1:], rows[:, -1:], axis=1), 2))
        sums = subtract(steps, FloatPair(*jnp.split(rows, 2)))
        m0, m1, m2, yy = (sums.part(slice(i, i + 1)) for i in range(4))
        y, xy = (sums.part(slice(i, None, 2)) for i in (4, 5))
        outputs = y.hi.shape
        wide = lambda a: FloatPair(*(jnp.broadcast_to(part, outputs) for part in a))
        # N as a function of x − centre; then the moments of the residual, and its squares.
        intercepts = add(intercepts, multiply(slopes, jnp.broadcast_to(self.centre, outputs)))
        r0 = subtract(add(multiply(slopes, wide(m1)), multiply(intercepts, wide(m0))), y)
        r1 = subtract(add(multiply(slopes, wide(m2)), multiply(intercepts, wide(m1))), xy)
        fitted = add(multiply(slopes, subtract(r1, xy)), multiply(intercepts, subtract(r0, y)))
        squares = yy
        for k in range(outputs[0]):
            squares = add(squares, fitted.part(slice(k, k + 1)))
        to_left = two_sum(knots.x, -jnp.broadcast_to(self.centre, knots.x.shape))
        m1_left = subtract(m1, multiply(to_left, m0))
        m2_left = subtract(m2, multiply(to_left, add(m1, m1_left)))
        cells = Cells(
            squares=jnp.maximum(value(squares)[0], 0.0),
            r0=value(r0),
            r1=value(subtract(r1, multiply(wide(to_left), r0))),
            m0=value(m0),
            m1=value(m1_left),
            m2=value(m2_left),
            left_end=jnp.zeros(outputs, knots.x.dtype),
        )
        n = self.x.shape[0]
        return jax.tree.map(lambda a: a / n, cells) if self.equal else cells


def _one_axis(look_up):
    """A look-up whose batches, under `vmap` with one table, become one longer list of places."""

    def batched(size, is_batched, table, *places):
        if is_batched[0]:
            return jax.vmap(look_up, [0 if a else None for a in is_batched])(table, *places), True
        places = [
            a if each else jnp.broadcast_to(a, (size, *a.shape))
            for a, each in zip(places, is_batched[1:])
        ]
        found = mapped(table, *(a.reshape(-1) for a in places))
        return found.reshape(size, -1, *found.shape[1:]), True

    mapped = custom_vmap(look_up)
    mapped.def_vmap(batched)
    return mapped


def _few(places: Array, in_a_loop: Callable, at_once: Callable) -> Any:
    """Look-ups, made in a loop on the CPU if they are few.

    XLA's CPU backend estimates the cost of a look-up by the size of the table and splits it among
    threads, which costs far more than the look-up. It compiles a loop over the places as one piece
    of work.
    """
    if places.shape[0] > _FEW:
        return at_once()
    return jax.lax.platform_dependent(cpu=in_a_loop, default=at_once)


@_one_axis
def _rows_at(table: Float[Array, "rows sums"], places: Int[Array, " n"]) -> Float[Array, "n sums"]:
    """table[places]."""
    at = lambda place: jax.lax.dynamic_index_in_dim(table, place, keepdims=False)
    return _few(places, lambda: jax.lax.map(at, places), lambda: table[places])


@_one_axis
def _rows_before(
    x: Float[Array, " n"],
    w: Float[Array, " width"],
    b: Float[Array, " width"],
    rightward: Bool[Array, " width"],
) -> Int[Array, " width"]:
    """For each unit, the number of sorted x to the left of its kink."""
    n = x.shape[0]

    def is_left(place, w, b, rightward):
        return (place <= n) & ((w * x[jnp.minimum(place, n) - 1] + b > 0) != rightward)

    def by_halves(unit):
        def halve(k, found):
            ahead = found + (1 << rounds - 1 - k)
            return jnp.where(is_left(ahead, *unit), ahead, found)

        rounds = n.bit_length()
        return jax.lax.fori_loop(0, rounds, halve, 0)

    def by_fans():
        found = jnp.zeros(w.shape, int)
        stride = _FAN ** max(0, (n - 1).bit_length() // (_FAN - 1).bit_length())
        steps = jnp.arange(1, _FAN)[:, None]
        while stride:
            left = is_left(found[None] + stride * steps, w[None], b[None], rightward[None])
            found = found + stride * jnp.sum(left, axis=0)
            stride //= _FAN
        return found

    return _few(w, lambda: jax.lax.map(by_halves, (w, b, rightward)), by_fans)


def sorted_data(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> SortedData | None:
    """The `SortedData` of x (n,), y (n,) or (n, out) and weights (n,), equal if None; all float64.

    None for data with outliers so far away that their squares would absorb the other rows.
    """
    order = np.argsort(x)
    x, y = x[order], y.reshape(len(x), -1)[order]
    if x[-1] - x[0] > _MAX_RANGE * (x[3 * len(x) // 4] - x[len(x) // 4]):
        return None
    omega = np.ones_like(x) if weights is None else weights[order]
    centre = x[0] / 2 + x[-1] / 2
    n, sums = len(x), 4 + 2 * y.shape[1]
    table = np.zeros((n + 1, 2 * sums))
    reached = FloatPair(np.zeros((sums, 1)), np.zeros((sums, 1)))
    for first in range(0, n, _ROWS):
        rows = slice(first, min(first + _ROWS, n))
        terms = _terms(x[rows], y[rows].T, omega[rows], centre)
        running = joined(*(np.cumsum(level, axis=1) for level in exact_levels(terms)))
        running = add(running, reached)
        table[1 + rows.start : 1 + rows.stop] = np.concatenate(running).T
        reached = running.part(np.s_[:, -1:])
    arrays = (jnp.asarray(a) for a in (x, centre, table))
    return SortedData(*arrays, equal=weights is None)


def _terms(x: np.ndarray, y: np.ndarray, omega: np.ndarray, centre: float) -> FloatPair:
    """The rows ω, ωx, ωx², ωy², then ωy and ωxy for each output."""
    from_centre, nothing = two_sum(x, -centre), np.zeros_like(x)
    omega_x = multiply(from_centre, omega)
    squares, of_outputs = FloatPair(nothing, nothing), []
    for one in y:
        omega_y = two_product(one, omega)
        squares = add(squares, multiply(omega_y, one))
        of_outputs += [omega_y, multiply(omega_x, one)]
    omega_xx = multiply(omega_x, from_centre)
    terms = [FloatPair(omega, nothing), omega_x, omega_xx, squares, *of_outputs]
    return FloatPair(*(np.stack(parts) for parts in zip(*terms)))
