"""The largest eigenvalue of a symmetric map as a JAX program, under `jax.jit` and `jax.vmap`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gflow.hessian.lanczos import ROUNDINGS, SymmetricOperator, lanczos_run

# Ritz vectors that are kept at a restart, and Lanczos steps between two.
_KEPT, _STEPS = 8, 24
_MAX_RESTARTS = 100


class _Search(NamedTuple):
    """Lanczos iteration with thick restarts.

    - `basis`, `values`: the Ritz vectors that were kept, 0 where there are none, and their values.
    - `couplings`: the products ⟨u, A start⟩ of the Ritz vectors u with the next start.
    - `largest`: the largest Ritz value; `restarts`: how many there were.
    """

    basis: Float[Array, "kept size"]
    values: Float[Array, " kept"]
    couplings: Float[Array, " kept"]
    start: Float[Array, " size"]
    largest: Float[Array, ""]
    restarts: Int[Array, ""]
    converged: Bool[Array, ""]


def largest_eigenvalue(
    operator: SymmetricOperator, start: Float[Array, " size"], *, tol: float
) -> Float[Array, ""]:
    """λ_max, by Lanczos iteration with thick restarts from `start`, until the residual is at most
    `tol` times the largest absolute Ritz value."""
    dtype, size = start.dtype, start.size
    kept = min(_KEPT, size - 1)
    steps = min(_STEPS, size - kept)
    none = jnp.zeros(kept, dtype)
    first = _Search(
        jnp.zeros((kept, size), dtype),
        none,
        none,
        start,
        jnp.zeros((), dtype),
        jnp.asarray(0),
        jnp.asarray(False),
    )
    unfinished = lambda s: ~s.converged & (s.restarts < _MAX_RESTARTS)
    advance = lambda s: _restarted(operator, s, steps, tol)
    return jax.lax.while_loop(unfinished, advance, first).largest


def _restarted(operator: SymmetricOperator, s: _Search, steps: int, tol: float) -> _Search:
    """One Lanczos run and the restart after it."""
    run, kept = lanczos_run(operator, s.basis, s.start, steps), len(s.values)
    eps, known = jnp.finfo(s.values.dtype).eps, jnp.broadcast_to(s.restarts > 0, (kept,))
    scale = jnp.max(jnp.abs(jnp.concatenate([s.values, run.diagonal[:1], run.off[:1]])))
    # The Krylov space ends where the next vector is a rounding error. Vectors are used up to there,
    # or as long as they are orthonormal.
    last = run.off <= ROUNDINGS * eps * scale
    end = jnp.where(jnp.any(last), 1 + jnp.argmax(last), steps + 1)
    good = jnp.sum(jnp.cumprod(run.overlaps <= eps**0.75))
    count = jnp.minimum(good, end)
    used, exhausted = jnp.arange(steps) < count, (end <= good) | (good == 0)
    # What is not there gets a value below all others.
    there, diagonal = jnp.append(known, used), jnp.append(s.values, run.diagonal)
    scale = jnp.max(jnp.abs(jnp.where(there, diagonal, 0.0)))
    diagonal = jnp.where(there, diagonal, -4 * (scale + jnp.max(jnp.where(used, run.off, 0.0)) + 1))
    off = jnp.where(used[1:], run.off[:-1], 0.0)
    matrix = jnp.diag(diagonal)
    matrix = matrix.at[kept + jnp.arange(1, steps), kept + jnp.arange(steps - 1)].set(off)
    matrix = matrix.at[kept, :kept].set(s.couplings)
    values, turn = jnp.linalg.eigh(matrix + jnp.tril(matrix, -1).T, symmetrize_input=False)
    values, turn = values[-kept:], turn[:, -kept:]
    rows = jnp.where(used[:, None], run.rows, 0.0)
    couplings = run.off[count - 1] * turn[kept + count - 1]
    following = jnp.concatenate([run.rows, run.rest[None]])[count]
    settled = jnp.abs(couplings[-1]) <= tol * jnp.max(jnp.abs(values))
    return _Search(
        turn.T @ jnp.concatenate([s.basis, rows]),
        values,
        couplings,
        following,
        values[-1],
        s.restarts + 1,
        exhausted | settled,
    )
