"""The point of minimal norm in a polytope, and in the image of a box."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.optimize import lsq_linear

# A gap ⟨p, p − vertex⟩ counts as none below this part of ‖p‖ and the largest norm of a vertex.
_ROUNDING = 1e-15


def box_constrained_weights(
    start: Float[np.ndarray, " dim"], jumps: Float[np.ndarray, "kinks dim"]
) -> Float[np.ndarray, " kinks"]:
    r"""Weights $\lambda \in [0, 1]^{kinks}$ that minimise $\|start + \sum_n \lambda_n j_n\|$.

    By the active-set method of Stark and Parker (Computational Statistics 10, 1995), on jumps of
    unit length. Wolfe's algorithm solves the same problem, but compares squared norms: with nearly
    dependent jumps, or jumps of very different lengths, its point is off by up to 1e-8, this one by
    1e-15 mostly.
    """
    lengths = np.linalg.norm(jumps, axis=1)
    scale = max(float(np.linalg.norm(start)), float(np.max(lengths, initial=0.0)))
    if len(jumps) == 0 or scale == 0:
        return np.zeros(len(jumps))
    # The tolerance of `lsq_linear` is absolute, so that the problem is brought to size 1 first.
    lengths = np.where(lengths > 0, lengths, scale)
    upper = lengths / scale
    found = lsq_linear(
        (jumps / lengths[:, None]).T,
        -start / scale,
        (0.0, upper),
        method="bvls",
        tol=1e-16,
        max_iter=10 * len(jumps) + 100,
    )
    return np.clip(found.x / upper, 0.0, 1.0)


def minimal_norm(
    lowest: Callable[[np.ndarray], np.ndarray], start: Float[np.ndarray, " dim"]
) -> Float[np.ndarray, " dim"]:
    """The point of minimal norm in a polytope, by Wolfe's algorithm (Math. Programming 11, 1976).

    `lowest(p)` is a vertex that minimises ⟨p, ·⟩, `start` any vertex. The corral is a simplex of
    vertices with the minimal-norm point of its affine hull inside it. Each vertex that joins lowers
    the norm, so that no corral comes twice and the algorithm ends.
    """
    corral, weights = start[None], np.ones(1)
    p, largest = start, np.linalg.norm(start)
    while True:
        vertex = lowest(p)
        largest = max(largest, np.linalg.norm(vertex))
        if p @ p - p @ vertex <= _ROUNDING * np.linalg.norm(p) * largest:
            return p
        corral, weights = _inside(np.vstack([corral, vertex]), np.append(weights, 0.0))
        nearer = weights @ corral
        if nearer @ nearer >= p @ p:
            return p
        p = nearer


def _inside(corral: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corral and weights after a move to the minimal-norm point of the affine hull; vertices whose
    weight becomes 0 on the way are dropped."""
    while True:
        edges = (corral[1:] - corral[0]).T
        rest = np.linalg.lstsq(edges, -corral[0])[0]
        nearest = np.append(1 - rest.sum(), rest)
        if np.all(nearest > 0):
            return corral, nearest
        falls = np.flatnonzero(nearest <= 0)
        drop = weights[falls] - nearest[falls]
        fractions = np.divide(weights[falls], drop, out=np.zeros(len(falls)), where=drop > 0)
        weights = weights + fractions.min() * (nearest - weights)
        kept = np.arange(len(weights)) != falls[np.argmin(fractions)]
        corral, weights = corral[kept], weights[kept] / weights[kept].sum()
