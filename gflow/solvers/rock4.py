r"""The orthogonal Runge–Kutta–Chebyshev method of fourth order, ROCK4.

With s stages the stability polynomial is $R(z) = w(x)\,P(x) / (w(a)\,P(a))$ at $x = a + d z$, where
$w$, of degree 4, has two pairs of complex roots near x = 1, and $P$, of degree s − 4, is
orthogonal on [−1, 1] with the weight $w^2/\sqrt{1-x^2}$, so that $wP$ nearly equioscillates there.
The three-term recurrence of P makes the first s − 4 stages. A Runge–Kutta method of four stages
makes the rest; its coefficients solve the order conditions of the composition, by its B-series.

The roots of w and the place a of z = 0 maximise the length of the stability interval under
R = 1 + z + z²/2 + z³/6 + z⁴/24 + O(z⁵) and |R| ≤ 0.95 beyond its first decay. They are smooth in
1/s², and given here as polynomials fitted to it. The order does not depend on their digits.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.arguments import ArgumentError, positive_int
from gflow.solvers.stabilised import AbstractStabilised, StabilisedStep

# w has its roots at x = 1 − (u ± iv)/s², and z = 0 is at x = 1 + g/s²; each row is a polynomial in
# (5/s)²: those of u, v of the first pair, u, v of the second, and g.
_SHAPE = np.array(
    [
        [1.4560, -0.9381, 0.8630, 0.0551],
        [20.4277, 2.1771, 0.6202, 0.8146],
        [13.9611, 1.7674, 0.3957, 0.3728],
        [7.5108, 1.3992, 0.1735, 0.0646],
        [0.2923, 0.0976, 0.0206, 0.0212],
    ]
)
# A rounding error u in the last stages grows to 6e-4 s⁸ u in the stiffest modes.
_MIN_STAGES, _MAX_STAGES = 5, 150
# The second and third of the last four stages, as fractions of the rest of the step after the
# recurrence, for a nearly minimal error and coefficients up to about 1.
_SECOND, _THIRD = 0.25, 0.55
# The factor that makes the coefficients of the error estimate as large as those of the error.
_ESTIMATE = 0.05

# Sums of the eight trees of up to four vertices are kept in the order
# •, [•], [••], [[•]], [•••], [•[•]], [[••]], [[[•]]]; these are the densities γ.
_DENSITIES = np.array([1.0, 2.0, 3.0, 6.0, 4.0, 8.0, 12.0, 24.0])


class ROCK4Coefficients(NamedTuple):
    """The coefficients of one number of stages, with the stability interval [−reach, 0].

    The increments d_j = Y_j − y0 of the first stages, at `times`, are
    d_j = mu h F_{j−1} + nu d_{j−1} + (1 − nu) d_{j−2}. Stage k of the last, at `last_times`, adds
    last[:, k] h F_k to the increments of the last four stages, of y1, and to the error, in this
    order.
    """

    reach: float
    mu: np.ndarray
    nu: np.ndarray
    times: np.ndarray
    last: np.ndarray
    last_times: np.ndarray


@cache
def coefficients(s: int) -> ROCK4Coefficients:
    """The coefficients of s ≥ 5 stages."""
    u1, v1, u2, v2, g = _SHAPE @ (_MIN_STAGES / s) ** (2 * np.arange(4)) / s**2
    roots = np.array([1 - u1 + 1j * v1, 1 - u2 + 1j * v2])
    a = 1 + g
    diagonal, ratios, logarithmic = _orthogonal(roots, a, s - 4)
    # R'(0) = 1.
    d = 1 / (logarithmic + np.sum(2 * np.real(1 / (a - roots))))
    mu, nu = d * ratios, (a - diagonal) * ratios
    old, new, times = np.zeros(8), np.zeros(8), []
    for m, n in zip(mu, nu):
        times.append(new[0])
        old, new = new, m * _of_field(new) + n * new + (1 - n) * old
    last, last_times = _finish(new)
    return ROCK4Coefficients((1 + a) / d, mu, nu, np.array(times), last, last_times)


def _orthogonal(roots: np.ndarray, a: float, degree: int):
    """The diagonal of the recurrence of the orthonormal polynomials p_k, the ratios
    p_k(a)/(r_k p_{k+1}(a)) with its off-diagonal r, and p'(a)/p(a) of the last polynomial.

    By Stieltjes' procedure with Gauss–Chebyshev quadrature, which is exact here.
    """
    n = degree + 8
    x = np.cos((np.arange(n) + 0.5) * np.pi / n)
    weight = np.prod(np.abs(x - roots[:, None]) ** 4, axis=0)
    old, new = np.zeros(n), np.full(n, 1 / np.sqrt(weight.sum()))
    # Values and derivatives at a.
    at_old, at_new = np.zeros(2), np.array([new[0], 0.0])
    diagonal, ratios, off = np.zeros(degree), np.zeros(degree), 0.0
    for k in range(degree):
        diagonal[k] = weight @ (x * new**2)
        after = (x - diagonal[k]) * new - off * old
        at_after = (a - diagonal[k]) * at_new - off * at_old + np.array([0.0, at_new[0]])
        off = np.sqrt(weight @ after**2)
        old, new = new, after / off
        at_old, at_new = at_new, at_after / off
        ratios[k] = at_old[0] / (off * at_new[0])
    return diagonal, ratios, at_new[1] / at_new[0]


def _of_field(y: np.ndarray) -> np.ndarray:
    """The sums of h F(Y) for a stage Y."""
    return np.array([1, y[0], y[0] ** 2, y[1], y[0] ** 3, y[0] * y[1], y[2], y[3]])


def _finish(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last four stages after a start with the sums p, as in `ROCK4Coefficients`.

    The order conditions of the composition are first turned into those of the four stages alone,
    which are named by the factors of b: `cac` is Σ b_i c_i a_ij c_j. They are then solved as Kutta
    did for four stages.
    """
    p1, p2, p31, p32, *_ = p
    one, q2, q31, q32, q41, q42, q43, q44 = 1 / _DENSITIES - p
    c = q2 - p1 * one
    cc = q31 - 2 * p1 * q2 + p1**2 * one
    ccc = q41 - 3 * p1 * q31 + 3 * p1**2 * q2 - p1**3 * one
    ac = q32 - p2 * one - p1 * c
    cac = q42 - p1 * q32 - p2 * c - p1 * cc
    acc = q43 - p31 * one - p1**2 * c - 2 * p1 * ac
    aac = q44 - p32 * one - p2 * c - p1 * ac

    c2, c3 = _SECOND * one, _THIRD * one
    rest = acc - c2 * ac
    c4 = (cac * rest - (ccc - c2 * cc) * aac) / (ac * rest - (cc - c2 * c) * aac)
    nodes = np.array([0, c2, c3, c4])
    b = np.linalg.solve(np.vander(nodes, increasing=True).T, [one, c, cc, ccc])
    ac3, ac4 = np.linalg.solve([[b[2], b[3]], [b[2] * c3, b[3] * c4]], [ac, cac])
    a43 = aac / (b[3] * ac3)
    a32, a42 = ac3 / c2, (ac4 - a43 * c3) / c2
    rows = [[0, 0, 0], [c2, 0, 0], [c3 - a32, a32, 0], [c4 - a42 - a43, a42, a43]]
    rows = np.array([*rows, b[:3]])

    sums = []
    for k in range(5):
        weights = b if k == 4 else rows[k]
        sums.append(_of_field(p + sum((w * f for w, f in zip(weights, sums)), np.zeros(8))))
    # The only combination of the four stages and the field at y1 that vanishes to third order.
    null = np.linalg.solve(np.array(sums[:4])[:, :4].T, -sums[4][:4])
    last = np.zeros((6, 5))
    last[:5, :3], last[4, 3] = rows, b[3]
    last[5] = _ESTIMATE * np.append(null, 1.0)
    return last, p1 + np.append(nodes, one)


class _Tables(NamedTuple):
    """The coefficients of all numbers of stages in use, with the recurrences concatenated."""

    stages: np.ndarray
    reach: np.ndarray
    start: np.ndarray
    recurrence: np.ndarray
    last: np.ndarray
    last_times: np.ndarray


@cache
def _tables() -> _Tables:
    """Every number of stages up to 20, and beyond numbers that grow by a twentieth."""
    stages = list(range(_MIN_STAGES, 21))
    while stages[-1] < _MAX_STAGES:
        stages.append(min(_MAX_STAGES, round(1.05 * stages[-1])))
    all_ = [coefficients(s) for s in stages]
    lengths = np.array([len(c.mu) for c in all_])
    return _Tables(
        stages=np.array(stages),
        reach=np.array([c.reach for c in all_]),
        start=np.cumsum(lengths) - lengths,
        recurrence=np.concatenate([np.stack([c.mu, c.nu, c.times], axis=1) for c in all_]),
        last=np.stack([c.last for c in all_]),
        last_times=np.stack([c.last_times for c in all_]),
    )


@final
class ROCK4(AbstractStabilised):
    r"""The fourth-order orthogonal Runge–Kutta–Chebyshev method, stable on [−β(s), 0] with s
    stages, β(s) ≈ 0.35 s² (0.24 s² for s = 5).

    The first s − 4 stages are a three-term recurrence, the rest a Runge–Kutta method of four
    stages; an embedded method of third order estimates the error.

    It needs the memory of some dozen vectors for any number of stages, and no Jacobian. It is for
    stiff fields whose Jacobian has a real spectrum, such as gradient flows; small positive
    eigenvalues do no harm.

    It is cheaper than `RKC2` for accurate solutions. For loose tolerances and very stiff fields
    `RKC2` is the better choice, since rounding errors in the stiffest modes grow like s⁸ here. The
    error estimate sees them, and keeps the stages near 50 at a tolerance of 1e-4 and near 20 at
    1e-8 in float64. In float32 no more than ten can be used.

    **Arguments:**

    - `max_stages`: from 5 to 150; steps that need more are rejected.

    Abdulle, SIAM J. Sci. Comput. 23 (2002) 2041. The coefficients are computed anew.
    """

    max_stages: int = _MAX_STAGES

    def __check_init__(self):
        if positive_int("max_stages", self.max_stages, minimum=_MIN_STAGES) > _MAX_STAGES:
            raise ArgumentError("max_stages", self.max_stages, f"at most {_MAX_STAGES}")

    def order(self, terms) -> int:
        return 4

    def error_order(self, terms) -> int:
        return 4

    def stages(self, z: Float[Array, ""]) -> Int[Array, ""]:
        tables = _tables()
        usable = tables.stages <= self.max_stages
        stages, reach = tables.stages[usable], tables.reach[usable]
        index = jnp.searchsorted(jnp.asarray(reach, z.dtype), z)
        return jnp.append(jnp.asarray(stages), 0)[index]

    def advance(self, field: Callable, t0, h, y0, f0, stages: Int[Array, ""]) -> StabilisedStep:
        tables, as_table = _tables(), lambda a: jnp.asarray(a, h.dtype)
        row = jnp.searchsorted(jnp.asarray(tables.stages), stages)
        start = jnp.asarray(tables.start)[row]
        recurrence = as_table(tables.recurrence)
        last, last_times = as_table(tables.last)[row], as_table(tables.last_times)[row]

        def recur(j, c):
            d, old = c
            mu, nu, time = recurrence[start + j]
            f = field(t0 + time * h, y0 + d)
            return mu * h * f + nu * d + (1 - nu) * old, d

        first = recurrence[start, 0] * h * f0
        d, _ = jax.lax.fori_loop(1, jnp.maximum(stages - 4, 1), recur, (first, 0 * first))

        def finish(k, c):
            made, _ = c
            f = field(t0 + last_times[k] * h, y0 + made[k])
            return made + jnp.outer(h * last[:, k], f), f

        made = jnp.stack([d] * 5 + [0 * d])
        # Nothing is evaluated for an impossible step.
        rounds = jnp.where(stages > 0, 5, 0)
        made, f1 = jax.lax.fori_loop(0, rounds, finish, (made, f0))
        return StabilisedStep(made[4], f1, made[5])
