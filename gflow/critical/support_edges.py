"""Kinks at an edge of the support, where the Hessian of the true risk jumps."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gflow.activations import PiecewiseLinear
from gflow.critical.landscapes import FlatRisk
from gflow.critical.newton import NewtonResult
from gflow.networks import ShallowNet
from gflow.parameters import ParameterLayout
from gflow.risks import PopulationRisk, without_penalty

# Preactivations count as zero at the edge below this, relative to the size of the unit.
_AT_EDGE = 1e-9


class InsideResult(NamedTuple):
    """The end of a search with the Hessian of the inside, and the normals ∇z of the kinks at an
    edge that point there, as rows."""

    newton: NewtonResult
    normals: Float[np.ndarray, "kinks size"]


class _EdgeTerm(NamedTuple):
    """The Hessian term that a kink at an edge lacks outside the support, and the normal."""

    hessian: Float[np.ndarray, "size size"]
    normal: Float[np.ndarray, " size"]


def from_inside(risk: FlatRisk, found: NewtonResult) -> InsideResult:
    r"""The same point with the Hessian of the inside.

    A flow may take a kink to the edge e of the support, at an exponential rate. There the risk is
    not twice differentiable: the kink adds 2 r(e) p(e) v/|w| ∇z ∇zᵀ inside and nothing outside,
    and rounding decides on which side the point is. Kinks that are outside only by rounding count
    as inside.
    """
    terms = _edge_terms(risk, found.theta)
    here, previous = found.expansion, found.previous
    if not terms or (np.linalg.eigvalsh(here.hessian) < -_AT_EDGE * _size(here.hessian)).any():
        return InsideResult(found, np.zeros((0, len(found.theta))))
    jump = np.sum([term.hessian for term in terms], axis=0)
    # Where the last step has crossed the edge, the Hessian before it is that of the inside.
    smallest = min(_size(term.hessian) for term in terms)
    crossed = _size(previous.hessian - here.hessian) > 0.5 * smallest
    if not crossed:
        previous = previous._replace(hessian=previous.hessian + jump)
    here = here._replace(hessian=here.hessian + jump)
    normals = np.array([term.normal for term in terms])
    return InsideResult(found._replace(expansion=here, previous=previous), normals)


def _size(matrix: np.ndarray) -> float:
    return float(np.linalg.norm(matrix))


def _edge_terms(risk: FlatRisk, theta: np.ndarray) -> list[_EdgeTerm]:
    """One for each unit whose kink is at an edge, and not inside."""
    net, population = risk.net(theta), without_penalty(risk.risk)
    if not isinstance(population, PopulationRisk) or not isinstance(net, ShallowNet):
        return []
    activation = net.activation
    if net.b is None or not isinstance(activation, PiecewiseLinear) or not activation.kinked:
        return []
    w, b = np.asarray(net.w, float)[:, 0], np.asarray(net.b, float)
    v = net.output_scale * np.asarray(net.v, float).reshape(len(w), -1)
    target, density = population.target, population.density
    targets = target if isinstance(target, tuple) else (target,)
    low, high = density.interval
    layout, terms = ParameterLayout(risk.trained), []
    for edge, inward in ((low, 1.0), (high, -1.0)):
        residual = np.ravel(net(jnp.array([edge], net.w.dtype))) - [float(f(edge)) for f in targets]
        weight = 2 * (1 - activation.negative_slope) * float(density(edge)) * (v @ residual)
        near = np.abs(w * edge + b) <= _AT_EDGE * np.hypot(w, b)
        # The same arithmetic as in the risk, which decides by it on which side the kink is.
        with np.errstate(over="ignore"):
            kink = -b / np.where(w != 0, w, 1.0)
        outside = (w != 0) & ((kink <= low) | (kink >= high))
        for unit in np.flatnonzero(near & outside & (weight != 0)).tolist():
            normal = _normal(layout, unit, edge)
            hessian = weight[unit] / abs(w[unit]) * np.outer(normal, normal)
            # A kink moves by −z'/w.
            terms.append(_EdgeTerm(hessian, -inward * np.sign(w[unit]) * normal))
    return terms


def _normal(layout: ParameterLayout, unit: int, edge: float) -> Float[np.ndarray, " size"]:
    """∇z of a unit at the edge, in the trained parameters."""
    normal = np.zeros(layout.size)
    for places, value in ((layout.places.w, edge), (layout.places.b, 1.0)):
        if places is not None:
            normal[places[unit]] = value
    return normal
