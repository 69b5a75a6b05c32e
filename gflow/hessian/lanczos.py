r"""Extreme eigenvalues and spectral measures of symmetric maps, from their products with vectors.

The Lanczos iteration is matfree's, with full reorthogonalisation. The thick restarts are own code:
matfree has none, and ARPACK calls the host for each product and finds no repeated eigenvalues.

Where the Krylov space is exhausted, matfree's iteration goes on and divides by a length that is a
rounding error, which creates false eigenvalues: ±52 for a Hessian of rank two with eigenvalues 3
and −5. So only vectors that are orthonormal are used, up to the first invariant subspace.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from matfree.decomp import hessenberg
from matfree.stochtrace import sampler_sphere

# Lanczos steps between two computations of the eigenvalues.
STEPS = 20
# Off-diagonal entries count as 0 below this multiple of the rounding unit times the largest entry.
ROUNDINGS = 100.0


class SymmetricOperator(eqx.Module):
    """A symmetric linear map A, given by its products."""

    @abc.abstractmethod
    def prepared(self) -> Callable[[Array], Array]:
        """v ↦ Av, after everything that all products share is computed once."""


class Extremes(NamedTuple):
    """The outermost eigenpairs, ascending; `checked`: a search for further copies found none."""

    values: Float[np.ndarray, " wanted"]
    vectors: Float[Array, "wanted size"]
    residuals: Float[np.ndarray, " wanted"]
    num_products: int
    checked: bool


class LanczosRun(NamedTuple):
    """Lanczos vectors and the tridiagonal matrix of A in their span.

    - `rows`: the vectors; `diagonal`, `off`: the entries of the matrix. The last entry of `off`
      belongs to the next vector, which is `rest` before normalisation.
    - `overlaps`: of each vector with those before it and with the basis, and the error of its
      length.
    """

    rows: Float[Array, "steps size"]
    diagonal: Float[Array, " steps"]
    off: Float[Array, " steps"]
    overlaps: Float[Array, " steps"]
    rest: Float[Array, " size"]


@eqx.filter_jit
def lanczos_run(
    operator: SymmetricOperator, basis: Float[Array, "kept size"], start: Array, num: int
) -> LanczosRun:
    """Lanczos steps in the orthogonal complement of the rows of `basis`, some of which may be 0."""
    product = operator.prepared()
    outside = lambda v: v - (basis @ v) @ basis
    for _ in range(2):
        start = outside(start)
        start = start / jnp.linalg.norm(start)
    iterate = hessenberg(num, reortho="full", custom_vjp=False)
    found: Any = iterate(lambda v: outside(product(v)), outside(start))
    rows, h = found.Q_tall, found.J_small
    within = jnp.tril(jnp.abs(rows @ rows.T - jnp.eye(num, dtype=rows.dtype)))
    overlaps = jnp.concatenate([within, jnp.abs(rows @ basis.T)], axis=1).max(axis=1)
    # The upper triangle may belong to vectors that are not orthonormal.
    off = jnp.append(jnp.diagonal(h, -1), jnp.linalg.norm(found.residual))
    return LanczosRun(rows, jnp.diagonal(h), off, overlaps, found.residual)


def _usable(run: LanczosRun, scale: float) -> tuple[int, bool]:
    """The number of vectors to use, and whether they and the basis span an invariant subspace.

    `scale` is a lower bound of the largest absolute eigenvalue.
    """
    diagonal, off, overlaps = (np.asarray(a) for a in (run.diagonal, run.off, run.overlaps))
    eps = float(np.finfo(diagonal.dtype).eps)
    for j in range(len(diagonal)):
        if not overlaps[j] <= eps**0.75:
            return j, j == 0
        scale = max(scale, abs(float(diagonal[j])), float(off[j - 1]) if j else 0.0)
        if off[j] <= ROUNDINGS * eps * scale:
            return j + 1, True
    return len(diagonal), False


@eqx.filter_jit
def _rotated(basis: Array, rows: Array, used: Array, rotation: Array) -> Array:
    rows = jnp.where(jnp.arange(len(rows))[:, None] < used, rows, 0.0)
    return rotation @ jnp.concatenate([basis, rows])


@eqx.filter_jit
def rayleigh_quotients(operator: SymmetricOperator, vectors: Float[Array, "wanted size"]):
    """Rayleigh quotients ρ, the normalised vectors v, and ‖Av − ρv‖."""
    vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
    images = jax.lax.map(operator.prepared(), vectors)
    values = jnp.sum(vectors * images, axis=1)
    return values, vectors, jnp.linalg.norm(images - values[:, None] * vectors, axis=1)


def extremes(
    operator: SymmetricOperator,
    like: Float[Array, " size"],
    largest: int,
    smallest: int,
    *,
    tol: float,
    max_products: int,
    copies: bool,
    key: PRNGKeyArray,
) -> Extremes:
    """The `largest` and `smallest` eigenvalues with their vectors, of the size and type of `like`.

    Lanczos iteration with thick restarts (Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 2000) until
    the residuals are at most `tol` times the largest absolute eigenvalue. One start finds one copy
    of each eigenvalue. With `copies`, runs from new random vectors, orthogonal to those found,
    follow until one finds nothing new. The returned residuals are computed from further products.

    **Raises:** `FloatingPointError` if the first product is NaN or infinite.
    """
    search = _RestartedLanczos(operator, like, largest, smallest, tol, key)
    budget = max_products - search.wanted
    while not search.finished(copies) and search.num_products + search.steps <= budget:
        search.advance()
    while len(search.values) < search.wanted:
        search.advance()
    vectors = search.basis[search.chosen(len(search.values))]
    values, vectors, residuals = rayleigh_quotients(operator, vectors)
    order = np.argsort(np.asarray(values), kind="stable")
    return Extremes(
        np.asarray(values)[order],
        vectors[order],
        np.asarray(residuals)[order],
        search.num_products + search.wanted,
        search.checked,
    )


class _RestartedLanczos:
    """Lanczos iteration with thick restarts.

    - `basis`: the Ritz vectors that were kept, padded with 0; `values`: the Ritz values, ascending.
    - `couplings`: the products ⟨u, A start⟩ of the Ritz vectors u with the next start.
    - `fresh`: whether the next start is random; otherwise it continues the last run.
    """

    def __init__(self, operator, like: Array, largest: int, smallest: int, tol: float, key):
        self.operator, self.like, self.key, self.tol = operator, like, key, tol
        self.largest, self.smallest, self.wanted = largest, smallest, largest + smallest
        self.capacity, self.steps = 2 * self.wanted + STEPS, min(STEPS, like.size)
        self.basis = jnp.zeros((self.capacity, like.size), like.dtype)
        self.values = self.couplings = np.zeros(0)
        self.start, self.fresh, self.before = like, True, None
        self.num_products, self.checked = 0, False

    def finished(self, copies: bool) -> bool:
        return self.checked if copies else self.checked or self.before is not None

    def chosen(self, count: int, number: int | None = None) -> np.ndarray:
        """The indices of the outermost `number` of `count` ascending values.

        By default these are the wanted ones. A larger number is split between the ends in the same
        proportion.
        """
        number = self.wanted if number is None else min(number, count)
        if number >= count:
            return np.arange(count)
        low = self.smallest + (number - self.wanted) * self.smallest // self.wanted
        return np.r_[:low, count - number + low : count]

    def advance(self) -> None:
        """One Lanczos run and the restart after it."""
        fresh = self.fresh
        start = self._random(1)[0] if fresh else self.start
        run = lanczos_run(self.operator, self.basis, start, self.steps)
        self.num_products += self.steps
        if self.num_products == self.steps and not np.isfinite(run.diagonal[0]):
            raise FloatingPointError("a product is NaN or infinite")
        used, closed = _usable(run, float(np.abs(self.values).max(initial=0.0)))
        values, turn = self._ritz(run, used)
        ahead = 0.0 if closed else float(run.off[used - 1])
        bounds = ahead * np.abs(turn[-1]) if used else np.zeros(len(values))
        limit = self.tol * np.abs(values).max(initial=0.0)
        outer = self.chosen(len(values))
        found = len(values) >= self.wanted and bool(np.all(bounds[outer] <= limit))
        # A random start that is an eigenvector: A is a multiple of 1 on the complement.
        alike = fresh and closed and used == 1
        whole = used == 0 or len(values) == self.like.size
        keep = self.chosen(len(values), self.capacity - (self.wanted if alike else 0))
        self.fresh = closed or found
        if found and not closed:
            keep = keep[bounds[keep] <= limit]
        self._rotate(run, used, values[keep], turn[:, keep])
        self.couplings = np.where(self.fresh, 0.0, ahead * turn[-1, keep])
        self.start = run.rest if used == self.steps else run.rows[used]
        if alike:
            self._fill(float(run.diagonal[0]))
        same = self.before is not None and np.allclose(
            values[outer], self.before, rtol=0.0, atol=limit
        )
        self.checked = alike or whole or (found and same)
        self.before = values[outer] if found else self.before

    def _random(self, number: int) -> Array:
        self.key, key = jax.random.split(self.key)
        return sampler_sphere(self.like, num=number)(key)

    def _ritz(self, run: LanczosRun, used: int) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values and vectors of A in the span of the basis and the vectors of the run."""
        kept = len(self.values)
        matrix = np.diag(np.append(self.values, np.asarray(run.diagonal)[:used]))
        rows = kept + np.arange(used - 1) if used else np.arange(0)
        matrix[rows + 1, rows] = np.asarray(run.off)[: len(rows)]
        if used:
            matrix[kept, :kept] = self.couplings
        values, turn = np.linalg.eigh(matrix, UPLO="L")
        return values, turn

    def _rotate(self, run: LanczosRun, used: int, values: np.ndarray, turn: np.ndarray) -> None:
        kept = len(self.values)
        rotation = np.zeros((self.capacity, self.capacity + self.steps), self.like.dtype)
        rotation[: len(values), :kept] = turn[:kept].T
        rotation[: len(values), self.capacity : self.capacity + used] = turn[kept:].T
        self.basis = _rotated(self.basis, run.rows, jnp.asarray(used), jnp.asarray(rotation))
        self.values = values

    def _fill(self, value: float) -> None:
        """Adds as many copies of an eigenvalue as may be wanted."""
        kept = len(self.values)
        copies = min(self.wanted, self.like.size - kept)
        rows = self._random(copies) if copies else self.basis[:0]
        for _ in range(2):
            rows = rows - (rows @ self.basis.T) @ self.basis
            rows = jnp.linalg.qr(rows.T)[0].T
        order = np.argsort(np.append(self.values, np.full(copies, value)), kind="stable")
        self.basis = self.basis.at[kept : kept + copies].set(rows)
        self.basis = self.basis.at[: len(order)].set(self.basis[order])
        self.values = np.append(self.values, np.full(copies, value))[order]
        self.couplings = np.zeros(len(order))


def measures(
    operator: SymmetricOperator,
    like: Float[Array, " size"],
    probes: int,
    depth: int,
    *,
    key: PRNGKeyArray,
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, each (probes, depth), of Gauss quadratures of the spectral measures
    Σ ⟨u_i, v⟩² δ(λ_i) of random unit vectors v, whose mean is the spectral density.

    They are exact for polynomials of degree below 2 · `depth`, by Lanczos iteration (Golub and
    Welsch; Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38, 2017). Weights are 0 where the
    Krylov space is exhausted.
    """
    depth = min(depth, like.size)
    runs = _probe_runs(operator, sampler_sphere(like, num=probes)(key), depth)
    nodes, weights = np.zeros((2, probes, depth), like.dtype)
    for k in range(probes):
        run = LanczosRun(*(a[k] for a in runs))
        used, _ = _usable(run, 0.0)
        diagonal, off = np.asarray(run.diagonal)[:used], np.asarray(run.off)[: used - 1]
        nodes[k, :used], turn = np.linalg.eigh(np.diag(diagonal) + np.diag(off, -1), UPLO="L")
        weights[k, :used] = turn[0] ** 2
    return nodes, weights


@eqx.filter_jit
def _probe_runs(
    operator: SymmetricOperator, starts: Float[Array, "probes size"], depth: int
) -> LanczosRun:
    """Lanczos runs, one after the other, without their vectors."""
    none = starts[:0]
    drop = lambda run: run._replace(rows=run.rows[:0], rest=run.rest[:0])
    return jax.lax.map(lambda start: drop(lanczos_run(operator, none, start, depth)), starts)
