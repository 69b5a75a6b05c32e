r"""The minimal-norm element of the Clarke subdifferential, for data and a shallow net.

At a tie $z_{in} = 0$ the activation is 0 on both sides, so that only the gradient in
$u_i = (w_i, b_i)$ depends on the side, and units do not interact. With the tied rows of unit i
that are distinct, their normals $m_n = (x_n, 1)$ and $q_n = \partial L/\partial a_{in}$, its
gradients are

$$g_i(S) = f_i + \sum_n q_n (\alpha + (1-\alpha) S_n) m_n, \qquad S \in \{0, 1\}^{ties},$$

for those S that occur next to $u_i$: $S_n = 1$ where $\langle d, m_n\rangle > 0$, for some
direction d. The Clarke subdifferential is the product over the units of their convex hulls.
"""

import warnings
from itertools import combinations
from math import comb

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.arguments import PyTree
from gflow.nonsmooth.minimal_norm import box_constrained_weights, minimal_norm
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import flat

# Patterns are listed up to about so many candidates.
_MAX_CANDIDATES = 20_000
# Unit normals count as dependent below this.
_DEPENDENT = 1e-9


def with_minimal_blocks(risk: ShallowPatternRisk, gradient: PyTree, tol: float) -> PyTree:
    """The generalized gradient with the blocks of units at ties replaced by those of minimal norm;
    preactivations count as 0 up to `tol`, relative to row and largest unit."""
    theta = flat(risk.trained)
    net = risk.net(theta)
    z = np.asarray(risk.z(net))
    largest = np.sqrt(np.max(np.asarray(net.incoming_squares())))
    ties = np.abs(z) <= tol * largest * np.asarray(risk.sizes)
    if not ties.any():
        return gradient
    split = _at_ties(risk, theta, jnp.asarray(ties))
    force, q = (np.asarray(a, float) for a in split)
    normals = np.asarray(risk.normals, float)
    units = np.flatnonzero(ties.any(axis=1)).tolist()
    blocks = [
        _of_unit(force[i], q[i, ties[i]], normals[ties[i]], risk.negative_slope, unit=i)
        for i in units
    ]
    return _with_blocks(gradient, units, jnp.asarray(np.stack(blocks), z.dtype))


@eqx.filter_jit
def _at_ties(risk: ShallowPatternRisk, theta: Array, ties: Bool[Array, "width rows"]):
    """The gradient of each (w_i, b_i) without the ties, and ∂L/∂a of every pair."""
    start = risk.start(theta)
    pattern = eqx.tree_at(lambda p: (p.active, p.sliding), start, (start.active & ~ties, ties))
    parts = risk.evaluate(theta, pattern)
    return parts.force, parts.q


def _with_blocks(gradient: PyTree, units: list[int], blocks: Float[Array, "units dim"]) -> PyTree:
    """The gradient with the trained part of (w_i, b_i) replaced, for some units."""
    rows = np.array(units)
    if gradient.w is not None:
        w = gradient.w.at[rows].set(blocks[:, : gradient.w.shape[1]])
        gradient = eqx.tree_at(lambda g: g.w, gradient, w)
    if gradient.b is not None:
        gradient = eqx.tree_at(lambda g: g.b, gradient, gradient.b.at[rows].set(blocks[:, -1]))
    return gradient


def _of_unit(
    force: Float[np.ndarray, " dim"],
    q: Float[np.ndarray, " ties"],
    normals: Float[np.ndarray, "ties dim"],
    slope: float,
    unit: int,
) -> Float[np.ndarray, " dim"]:
    """The minimal-norm element of conv{force + Σ q_n (slope + (1 − slope) S_n) m_n}."""
    start, jumps = force + slope * (q @ normals), (1 - slope) * q[:, None] * normals
    # A tie without a jump has no kink: q = 0, or a row that is 0 in a net without biases.
    matters = np.any(jumps != 0, axis=1)
    jumps, q, normals = jumps[matters], q[matters], normals[matters]
    ties, rank = len(q), _span(normals).shape[1]
    free = bool(np.all(q > 0) or np.all(q < 0) or rank == ties)
    if not free and comb(ties, rank - 1) * 2**rank <= _MAX_CANDIDATES:
        vertices = start + patterns(normals) @ jumps
        return minimal_norm(lambda p: vertices[np.argmin(vertices @ p)], vertices[0])
    if not free:
        warnings.warn(
            f"unit {unit} has {ties} ties with dependent normals, whose patterns are too many to "
            "list: the norm of its Clarke element can be too small.",
            stacklevel=4,
        )
    return start + box_constrained_weights(start, jumps) @ jumps


def _span(normals: np.ndarray) -> np.ndarray:
    """The unit normals in an orthonormal basis of their span: (ties, rank)."""
    if len(normals) == 0:
        return np.zeros((0, 0))
    unit = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    _, sizes, axes = np.linalg.svd(unit, full_matrices=False)
    return unit @ axes[sizes > _DEPENDENT * sizes[0]].T


def patterns(normals: Float[np.ndarray, "ties dim"]) -> Bool[np.ndarray, "patterns ties"]:
    """The values of (⟨d, m_n⟩ > 0)_n over the directions d that are orthogonal to no m_n.

    These are the cells of an arrangement of hyperplanes through the origin. In the span of the
    normals, of dimension k, every cell touches a ray where k − 1 independent hyperplanes meet; next
    to a ray the cells are those of the hyperplanes through it.
    """
    unit = _span(normals)
    ties, rank = unit.shape
    if rank == ties:
        return (np.arange(2**ties)[:, None] >> np.arange(ties)) % 2 == 1
    found: list[np.ndarray] = []
    for ray in _rays(unit):
        beside = patterns(unit[ray == 0])
        cells = np.broadcast_to(ray > 0, (len(beside), ties)).copy()
        cells[:, ray == 0] = beside
        found.append(cells)
    return np.unique(np.concatenate(found), axis=0)


def _rays(unit: np.ndarray) -> np.ndarray:
    """For each ray where rank − 1 independent hyperplanes meet, the signs of its products with the
    normals."""
    ties, rank = unit.shape
    if rank == 1:
        lines = np.ones((1, 1))
    else:
        _, sizes, axes = np.linalg.svd(unit[np.array(list(combinations(range(ties), rank - 1)))])
        lines = axes[sizes[:, -1] > _DEPENDENT, -1]
    products = lines @ unit.T
    signs = np.where(np.abs(products) > _DEPENDENT, np.sign(products), 0.0)
    return np.unique(np.concatenate([signs, -signs]), axis=0)
