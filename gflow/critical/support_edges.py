"""Kinks at an edge of the support, where the Hessian of the true risk jumps."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from gflow.activations import PiecewiseLinear
from gflow.critical.newton import Found
from gflow.networks import ShallowNet
from gflow.risks import PopulationRisk

# Preactivations that are zero at the edge, in shares of the size of the unit.
_AT_EDGE = 1e-9


def from_inside(risk: Any, net: Any, trained: PyTree, found: Found) -> tuple[Found, np.ndarray]:
    r"""The same point with the Hessian of the inside, and normals ∇z that point there, as rows.

    A flow may take a kink to the edge e of the support, at an exponential rate. There the risk is
    not twice differentiable: the kink adds 2 r(e) p(e) v/|w| ∇z ∇zᵀ inside and nothing outside,
    and rounding decides on which side the point is. What is outside by rounding is taken inside.
    """
    terms, normals = _edge_terms(risk, net, trained, len(found.theta))
    local, before = found.local, found.before
    if not terms or (np.linalg.eigvalsh(local.hessian) < -_AT_EDGE * _size(local.hessian)).any():
        return found, np.zeros((0, len(found.theta)))
    jump = np.sum(terms, axis=0)
    # Where the last step has crossed the edge, the Hessian before it is that of the inside.
    crossed = _size(before.hessian - local.hessian) > 0.5 * min(map(_size, terms))
    if not crossed:
        before = before._replace(hessian=before.hessian + jump)
    local = local._replace(hessian=local.hessian + jump)
    return found._replace(local=local, before=before), np.array(normals)


def _size(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix))


def _edge_terms(
    risk: Any, net: Any, trained: PyTree, size: int
) -> tuple[list[Float[np.ndarray, "size size"]], list[Float[np.ndarray, " size"]]]:
    """Of each unit whose kink is at an edge, and not inside, what is missing in the Hessian, and
    the normal."""
    if not isinstance(risk, PopulationRisk) or not isinstance(net, ShallowNet) or net.b is None:
        return [], []
    activation = net.activation
    if not isinstance(activation, PiecewiseLinear) or not activation.kinked:
        return [], []
    w, b = np.asarray(net.w, float)[:, 0], np.asarray(net.b, float)
    v = net.output_scale * np.asarray(net.v, float).reshape(len(w), -1)
    targets = risk.target if isinstance(risk.target, tuple) else (risk.target,)
    low, high = risk.density.interval
    terms, normals = [], []
    for edge, inward in ((low, 1.0), (high, -1.0)):
        residual = np.ravel(net(jnp.array([edge], net.w.dtype))) - [float(f(edge)) for f in targets]
        weight = 2 * (1 - activation.negative_slope) * float(risk.density(edge)) * (v @ residual)
        near = np.abs(w * edge + b) <= _AT_EDGE * np.hypot(w, b)
        # As the risk decides it.
        with np.errstate(over="ignore"):
            kink = -b / np.where(w != 0, w, 1.0)
        outside = (w != 0) & ((kink <= low) | (kink >= high))
        for unit in np.flatnonzero(near & outside & (weight != 0)).tolist():
            normal = _normal(trained, unit, edge, size)
            terms.append(weight[unit] / abs(w[unit]) * np.outer(normal, normal))
            # A kink moves by −z'/w.
            normals.append(-inward * np.sign(w[unit]) * normal)
    return terms, normals


def _normal(trained: PyTree, unit: int, edge: float, size: int) -> np.ndarray:
    """∇z of a unit at the edge, in the trained parameters."""
    normal, begin = np.zeros(size), 0
    for name in "wbvc":
        if (array := getattr(trained, name)) is None:
            continue
        if name in "wb":
            normal[begin + unit] = edge if name == "w" else 1.0
        begin += array.size
    return normal
