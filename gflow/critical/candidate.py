"""Where a search ended, with all that its kind is decided from."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gflow.critical.active_set import SearchResult, have_jumps, unheld
from gflow.critical.deep_landscape import DeepLandscape
from gflow.critical.deep_structure import groups_of_units, marginal_units_of, symmetries_of
from gflow.critical.landscapes import AbstractLandscape, FlatRisk, Kink
from gflow.critical.marginal_units import MarginalUnit, marginal_units_of_one_layer
from gflow.critical.newton import Eigensystem, unsettled
from gflow.critical.pattern_landscape import AbstractPatternLandscape
from gflow.critical.point import ActiveKink, Zeros
from gflow.critical.support_edges import from_inside
from gflow.critical.symmetries import Symmetries, explained_zeros, symmetries_of_one_layer
from gflow.critical.units import UnitGroups, list_units
from gflow.networks import ShallowNet
from gflow.parameters import ParameterLayout
from gflow.risks import EmpiricalRisk


class Start(NamedTuple):
    """Where a search begins, and the risk there."""

    theta: Float[np.ndarray, " size"]
    value: float


class KinksAtPoint(NamedTuple):
    """Some kinks where a point is, the jump of ∂L/∂z across each, and the normals ∂z/∂θ as rows.

    `kinks` lists those on data; those at an edge of the support have only a jump and a normal.
    """

    kinks: tuple[ActiveKink, ...]
    jumps: Float[np.ndarray, " kinks"]
    normals: Float[np.ndarray, "kinks size"]


class _PatternKinks(NamedTuple):
    """The kinks that are held, the others, directions across concave ones of these, normals of
    those without a jump, and the norm of the minimal-norm subgradient."""

    held: KinksAtPoint
    weak: KinksAtPoint
    beyond: Float[np.ndarray, "concave size"]
    without_jump: Float[np.ndarray, "kinks size"]
    residual: float


@dataclass(frozen=True)
class Candidate:
    """Where a search for a critical point ended.

    - `risk`: the risk as a function of θ. `net`, `value`: the network there, and its risk.
    - `search`: the landscape, and where Newton's method ended on it, with the Hessian of the inside
      where kinks are at an edge of the support.
    - `eigen`: the eigenvalues of its Hessian; those that the last step changed by a tenth count as
      zero, and with none of these it is `settled`. `zeros`: how many are zero, and why.
    - `held`: the kinks along which the point is critical. `weak`: those for one side of which it
      is, with normals that point to this side; `beyond`: directions to the other side of those
      across which the risk is concave; `without_jump`: the normals of kinks on rows of zero slope,
      across which only the Hessian jumps.
    - `residual`: the norm of the minimal-norm subgradient. `units`: the hidden units in groups;
      `marginal`: those that a small step can make active.
    - `risk_scale`, `size`: changes of the risk, and of θ, are measured by these.
    """

    risk: FlatRisk
    net: Any
    value: float
    search: SearchResult
    eigen: Eigensystem
    settled: bool
    zeros: Zeros
    held: KinksAtPoint
    weak: KinksAtPoint
    beyond: Float[np.ndarray, "concave size"]
    without_jump: Float[np.ndarray, "kinks size"]
    residual: float
    units: UnitGroups | None
    marginal: list[MarginalUnit]
    risk_scale: float
    size: float

    @classmethod
    def of(cls, risk: FlatRisk, search: SearchResult, start: Start) -> "Candidate":
        """The candidate where a search ended."""
        theta, land = search.newton.theta, search.landscape
        net = risk.net(theta)
        newton, edges = from_inside(risk, search.newton)
        eigen = Eigensystem.of(newton.expansion)
        moving = unsettled(newton, eigen)
        eigen = eigen._replace(zero=eigen.zero | moving)
        if isinstance(land, AbstractPatternLandscape):
            kinks = _kinks_of_pattern(land, theta)
        else:
            held = KinksAtPoint((), np.zeros(0), np.zeros((0, len(theta))))
            weak = KinksAtPoint((), np.zeros(len(edges)), edges)
            kinks = _PatternKinks(held, weak, held.normals, held.normals, eigen.norm)
        known = _structure(risk, land, theta, net, kinks.held)
        return cls(
            risk=risk,
            net=net,
            value=risk(theta),
            search=search._replace(newton=newton),
            eigen=eigen,
            settled=not moving.any(),
            zeros=explained_zeros(eigen, known.symmetries),
            held=kinks.held,
            weak=kinks.weak,
            beyond=kinks.beyond,
            without_jump=kinks.without_jump,
            residual=kinks.residual,
            units=known.units,
            marginal=known.marginal,
            risk_scale=size_of_risk(risk, net, start.value),
            # At the origin there is nothing else to measure by.
            size=float(max(np.linalg.norm(start.theta), np.linalg.norm(theta))) or 1.0,
        )

    @property
    def theta(self) -> Float[np.ndarray, " size"]:
        return self.search.newton.theta


class _Structure(NamedTuple):
    """What is known of the units of a network, and of its symmetries."""

    units: UnitGroups | None
    symmetries: Symmetries | None
    marginal: list[MarginalUnit]


def _structure(
    risk: FlatRisk, land: AbstractLandscape, theta: np.ndarray, net: Any, held: KinksAtPoint
) -> _Structure:
    if isinstance(land, DeepLandscape):
        return _Structure(
            groups_of_units(land), symmetries_of(land, theta), marginal_units_of(land, theta)
        )
    units = list_units(risk.risk, net, frozenset(kink.unit for kink in held.kinks))
    if units is None:
        return _Structure(None, None, [])
    layout = ParameterLayout(risk.trained)
    symmetries = symmetries_of_one_layer(net, layout, units)
    return _Structure(units, symmetries, marginal_units_of_one_layer(risk, net))


def _kinks_of_pattern(land: AbstractPatternLandscape, theta: np.ndarray) -> _PatternKinks:
    slopes = land.slopes(theta)
    weights, held_jumps, residual = land.multipliers(theta, slopes)
    held = KinksAtPoint(
        tuple(map(land.named, land.held, weights)), held_jumps, land.normals(theta, land.held)
    )
    others = unheld(land, theta)
    jumps = have_jumps(land, theta, slopes, others)
    ties: list[Kink] = [kink for kink, jump in zip(others, jumps) if jump]
    weak = KinksAtPoint(
        tuple(land.named(kink, land.active[kink]) for kink in ties),
        land.jumps(theta, slopes, ties),
        land.sides_of_kinks(theta, ties),
    )
    concave = np.flatnonzero(weak.jumps < 0).tolist()
    beyond = np.reshape([land.across(theta, ties, place) for place in concave], (-1, len(theta)))
    still = land.normals(theta, [kink for kink, jump in zip(others, jumps) if not jump])
    return _PatternKinks(held, weak, beyond, still, residual)


def size_of_risk(risk: FlatRisk, net: Any, at_start: float) -> float:
    """The size of the risk: at least that of the start, and of the zero network if there is one."""
    at_start = max(at_start, np.finfo(float).tiny)
    if isinstance(net, ShallowNet):
        like = lambda a: None if a is None else jnp.zeros_like(a)
        zero = eqx.tree_at(
            lambda n: (n.v, n.c), net, (like(net.v), like(net.c)), is_leaf=lambda a: a is None
        )
    elif isinstance(risk.risk, EmpiricalRisk):
        zero = lambda x: jax.tree.map(jnp.zeros_like, net(x))
    else:
        return at_start
    return max(float(risk.risk(zero)), at_start)
