"""Simplices in d dimensions: cuts by half-spaces, moments and quadrature, all of fixed shape.

A simplex is an array of shape (d+1, d) of vertices in positive orientation. The number of simplices
that a cut leaves is fixed: those that are not needed are single points, of volume zero.
"""

import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import roots_jacobi


@functools.cache
def cube(d: int) -> np.ndarray:
    """The d! simplices of the cube [−1, 1]^d, shape (d!, d+1, d), one for each order in which the
    coordinates go from −1 to 1 (Kuhn's triangulation)."""
    simplices = []
    for order in itertools.permutations(range(d)):
        vertices = np.full((d + 1, d), -1.0)
        for step, axis in enumerate(order):
            vertices[step + 1 :, axis] = 1.0
        if np.linalg.det(vertices[1:] - vertices[0]) < 0:
            vertices[[0, 1]] = vertices[[1, 0]]
        simplices.append(vertices)
    return np.stack(simplices)


@functools.cache
def _pieces(d: int) -> np.ndarray:
    """The simplices that make up the part z > 0 of a simplex, shape (patterns, pieces, d+1, 2).

    There is a row for each pattern of vertices with z > 0, a bit for each vertex. Vertices of the
    pieces are pairs (a, b) of vertices of the simplex: the point with z = 0 between a (z > 0) and b
    (z ≤ 0), or a itself if a = b.

    Up to a projective map, the part z > 0 of a simplex with k vertices there and m others is the
    product of simplices of dimensions k − 1 and m, with vertices (a, a) and (a, b). Staircases from
    its first to its last vertex triangulate it.
    """
    table = []
    for pattern in range(2 ** (d + 1)):
        inside = [a for a in range(d + 1) if pattern >> a & 1]
        outside = [b for b in range(d + 1) if not pattern >> b & 1]
        k, m = len(inside), len(outside)
        pieces = []
        for rises in itertools.combinations(range(d), m) if k else ():
            path = [(0, 0)]
            for step in range(d):
                i, j = path[-1]
                path.append((i, j + 1) if step in rises else (i + 1, j))
            pairs = [(inside[i], outside[j - 1] if j else inside[i]) for i, j in path]
            weights = np.zeros((d + 1, d + 1))
            for row, pair in enumerate(pairs):
                weights[row, pair] = 1.0
            if np.linalg.det(weights) < 0:
                pairs[:2] = pairs[1::-1]
            pieces.append(pairs)
        table.append(pieces)
    largest = max(map(len, table))
    point = [[(0, 0)] * (d + 1)]
    return np.array([pieces + point * (largest - len(pieces)) for pieces in table])


def cut(
    simplices: Float[Array, "simplices vertices d"], p: Float[Array, " vertices"]
) -> Float[Array, "pieces vertices d"]:
    """The part z > 0 of the simplices, z(ξ) = ⟨p, (ξ, 1)⟩, where entries of p and ξ are at most 1.

    Differentiable in both, also where a vertex lies on z = 0. Vertices with |z| up to its rounding
    error are treated as such, so that no divisor is smaller.
    """
    _, n, d = simplices.shape
    z = simplices @ p[:-1] + p[-1]
    rounding = 2 * n * jnp.finfo(z.dtype).eps
    z = z - jax.lax.stop_gradient(jnp.where(jnp.abs(z) <= rounding, z, 0.0))
    pattern = (z > 0) @ (2 ** np.arange(n))
    a, b = jnp.moveaxis(jnp.asarray(_pieces(d))[pattern], -1, 0)
    take = jax.vmap(lambda values, at: values[at])
    between = a != b
    z_a, z_b = take(z, a), take(z, b)
    fraction = jnp.where(between, z_a / jnp.where(between, z_a - z_b, 1.0), 0.0)[..., None]
    points = (1 - fraction) * take(simplices, a) + fraction * take(simplices, b)
    return points.reshape(-1, n, d)


def volumes(simplices: Float[Array, "*n vertices d"]) -> Float[Array, "*n"]:
    """The volume of each simplex."""
    edges = simplices[..., 1:, :] - simplices[..., :1, :]
    d = edges.shape[-1]
    return _determinant([[edges[..., i, j] for j in range(d)] for i in range(d)]) / math.factorial(
        d
    )


def _determinant(rows: list[list[Array]]) -> Array:
    # Written out: LU for each small matrix is slow and cannot be differentiated at zero.
    if len(rows) == 1:
        return rows[0][0]
    minors = ([row[:j] + row[j + 1 :] for row in rows[1:]] for j in range(len(rows)))
    terms = [entry * _determinant(minor) for entry, minor in zip(rows[0], minors)]
    return functools.reduce(operator.add, terms[::2]) - functools.reduce(operator.add, terms[1::2])


def second_moments(
    simplices: Float[Array, "simplices vertices d"],
) -> Float[Array, "vertices vertices"]:
    """∫ (ξ, 1) (ξ, 1)ᵀ dξ over the simplices."""
    n = simplices.shape[1]
    points = jnp.concatenate([simplices, jnp.ones_like(simplices[..., :1])], axis=-1)
    total = jnp.sum(points, axis=1, keepdims=True)
    points = jnp.concatenate([points, total], axis=1)
    weighted = (volumes(simplices) / (n * (n + 1)))[:, None, None] * points
    return weighted.reshape(-1, n).T @ points.reshape(-1, n)


@functools.cache
def rule(d: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """A quadrature rule on simplices that is exact for polynomials of this degree.

    It is the conical product of Gauss–Jacobi rules (Stroud), with nodes in barycentric coordinates
    (nodes, d+1), and weights (nodes,) that are positive with sum one.
    """
    nodes, weights = np.ones((1, 1)), np.ones(1)
    for rest in reversed(range(d)):
        t, gauss = roots_jacobi(degree // 2 + 1, rest, 0)
        t = (1 + t) / 2
        split = np.stack([t, 1 - t], axis=-1)
        last = nodes[:, None, -1:] * split
        first = np.broadcast_to(nodes[:, None, :-1], (*last.shape[:2], nodes.shape[1] - 1))
        nodes = np.concatenate([first, last], axis=-1).reshape(-1, nodes.shape[1] + 1)
        weights = np.outer(weights, gauss / gauss.sum()).ravel()
    return nodes, weights
