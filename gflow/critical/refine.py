"""From the end of a trajectory to the critical point it leads to."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from gflow.arguments import ArgumentError, Described, RealScalar, finite, is_concrete, positive
from gflow.critical.active_set import (
    MOST_PATTERNS,
    along_kinks,
    pattern_at,
    touched as touched_kinks,
)
from gflow.critical.classify import LOWER, Kinks, Level, Verdict, classified, explained_zeros
from gflow.critical.degenerate_units import entries_at_zero, fall_at_corners
from gflow.critical.landscapes import Landscape, OfPattern, Smooth
from gflow.critical.newton import Found, Spectral, newton, spectral, unsettled
from gflow.critical.point import MINIMA, CriticalKind, CriticalPoint, NotFoundError, Sliding, as_net
from gflow.critical.support_edges import from_inside
from gflow.critical.units import list_units
from gflow.networks import ShallowNet
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import split_trainable
from gflow.risks import BoxRisk, GaussianRisk
from gflow.trajectory import Trajectory

# Modes that carry less of the gap of the risk say nothing of its rate.
_CARRIED, _APART = 0.1, 1e-7
# The Hessian is a dense matrix.
_MOST_PARAMETERS = 4000


def refine(
    risk: Callable[[Any], Any],
    net: PyTree,
    *,
    radius: RealScalar = 0.1,
    optimum: RealScalar = 0.0,
    trainable: Sequence[str] | PyTree | None = None,
    throw: bool = True,
) -> CriticalPoint:
    r"""The critical point near a network, to rounding, and of what kind it is.

    Newton's method, in the form of Levenberg and Marquardt, on ∇L = 0. It converges quadratically
    where critical points form a manifold, too, as those of ReLU networks do, and ends at critical
    points of every kind. On the data of a `ShallowNet` with ReLU or leaky ReLU, it is that of the
    Karush–Kuhn–Tucker conditions

    $$\nabla L_S(\theta) + \sum_{k \in K} \lambda_k j_k \nabla z_k = 0, \qquad
      z_k(\theta) = 0, \qquad 0 \le \lambda_k \le 1,$$

    with $L_S$ the risk of an activation pattern in which the pairs K of unit and datum are
    inactive, and j_k the jump of the slope across z_k = 0: that is 0 in the Clarke subdifferential.
    Pairs within 1e-9 of their kink, relative to unit and row, are there; where a step meets another
    kink, the point goes on along it if that attracts, and crosses it otherwise; a kink whose
    multiplier is not inside (0, 1) is left. After 60 such changes the search ends.

    **Arguments:**

    - `risk`: any function of the network to a scalar; its Hessian is made by JAX, or, on data with
      kinks, of the pattern in closed form. At most 4,000 parameters are trained.
    - `net`: the start: the end of a flow or of a descent, `flow.final`. The search is in float64,
      into which a network in float32 is taken.
    - `radius`: how far the search may go, as a share of ‖θ‖ (of 1 at θ = 0).
    - `optimum`: the least risk there is, if it is known: the global minimum is recognised by it.
    - `trainable`: as in `solve_flow`.
    - `throw`: raise a `NotFoundError` where no critical point is found; with False a
      `CriticalPoint` of kind "not found" is returned, with where the search ended.

    **Returns:** a `CriticalPoint`. Its kind is a global minimum if the risk is `optimum` to
    rounding; a saddle if the Hessian has a negative eigenvalue along the kinks it is on, or one of
    these repels; a local minimum if all eigenvalues are positive, but for zeros that dead units and
    rescaling explain, or along which the same risk and critical points were found; degenerate
    otherwise. Eigenvalues below 100 P ε of the largest, P in number, count as zero, and so do those
    that the last step of the search changed by a tenth.

    **Raises:** `NotFoundError` if there is no critical point within `radius`, as for a flow that
    still travels or diverges; `ArgumentError` for what cannot be used.

    Yamashita and Fukushima, Computing Suppl. 15 (2001) 239, for the convergence; Cheridito, Jentzen
    and Rossmannek, J. Nonlinear Sci. 32 (2022) 64, for the critical points of an affine target.
    """
    if isinstance(net, Trajectory):
        raise ArgumentError("net", Described("a Trajectory"), "a network: its `final`")
    if not callable(risk):
        raise ArgumentError("risk", Described(type(risk).__name__), "a function of the network")
    if not is_concrete(net, risk):
        raise ArgumentError("net", Described("traced arrays"), "known ones: outside jax.jit")
    net = _in_float64(net)
    trained, frozen = split_trainable(net, trainable)
    radius, optimum = positive("radius", radius), finite("optimum", optimum)
    theta = np.asarray(ravel_pytree(trained)[0])
    if len(theta) > _MOST_PARAMETERS:
        got = Described(f"{len(theta):,} trained parameters")
        raise ArgumentError("net", got, f"at most {_MOST_PARAMETERS:,}, for a dense Hessian")
    begin = _value(risk, net)
    if not np.isfinite(begin) or not np.isfinite(theta).all():
        raise ArgumentError("net", Described("a network with a risk that is not finite"), "one")
    reach = radius * (float(np.linalg.norm(theta)) or 1.0)
    land, found, patterns = _search(risk, trained, frozen, theta, reach)
    point = _described(risk, net, trained, frozen, theta, land, found, patterns, optimum, begin)
    if throw and not point.found:
        raise NotFoundError(point)
    return point


def _value(risk, net: PyTree) -> float:
    value = risk(net)
    if np.shape(value) != ():
        got = Described(f"a function with values of shape {np.shape(value)}")
        raise ArgumentError("risk", got, "a function of the network to a scalar")
    return float(value)


def _in_float64(net: PyTree) -> PyTree:
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        got = Described("a network where JAX runs in float32")
        wanted = 'float64: jax.config.update("jax_enable_x64", True)'
        raise ArgumentError("net", got, wanted)
    return jax.tree.map(lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, net)


def _search(risk, trained, frozen, theta, reach) -> tuple[Landscape, Found, int]:
    known = ShallowPatternRisk.of(risk, trained, frozen)
    if known is not None:
        return along_kinks(pattern_at(known, theta), theta, reach)
    land = Smooth(risk, trained, frozen, entries_at_zero(trained, eqx.combine(trained, frozen)))
    return land, newton(land, theta, near=theta, radius=reach), 1


def _described(
    risk, net, trained, frozen, theta, land, found, patterns, optimum, begin
) -> CriticalPoint:
    """The point where the search ended."""
    end = eqx.combine(as_net(trained, found.theta), frozen)
    value, scale = float(risk(end)), _scale(risk, end, begin)
    # At the origin there is nothing else to measure by.
    size = float(max(np.linalg.norm(theta), np.linalg.norm(found.theta))) or 1.0
    found, edges = from_inside(risk, end, trained, found)
    now = spectral(found.local, land.basis)
    moving = unsettled(found, now)
    now = now._replace(zero=now.zero | moving)
    none = np.zeros((0, len(theta)))
    kinks, residual = Kinks(np.zeros(0), none, edges, np.zeros(len(edges))), now.norm
    sliding: tuple[Sliding, ...] = ()
    touched: tuple[tuple[int, int], ...] = ()
    if isinstance(land, OfPattern):
        datum = np.asarray(land.risk.first_datum)
        weights, jumps, residual = land.weights(found.theta)
        sliding = tuple(
            Sliding(unit, int(datum[row]), float(weight))
            for (unit, row), weight in zip(land.held, weights)
        )
        ties = touched_kinks(land, found.theta)
        touched = tuple((unit, int(datum[row])) for unit, row in ties)
        normals = land.gradients_of_kinks(land.held), land.sides_of_kinks(ties)
        kinks = Kinks(jumps, *normals, land.jumps(found.theta, ties))
    units = list_units(risk, end, frozenset(kink.unit for kink in sliding))
    zeros = explained_zeros(now, end, trained, units)
    if found.converged:
        rounding = _rounding(risk, scale, optimum, exact=not moving.any())
        corner = fall_at_corners(risk, trained, frozen, found.theta, LOWER * scale)
        at = lambda p: float(risk(eqx.combine(as_net(trained, p), frozen)))
        level = Level(at, value, scale, size)
        verdict = classified(
            land, found, now, zeros, kinks, corner, level, optimum=optimum, rounding=rounding
        )
    else:
        verdict = Verdict(CriticalKind.NOT_FOUND, _why(found, patterns), np.zeros((len(theta), 0)))
    return CriticalPoint(
        net=end,
        risk=value,
        residual=residual,
        kind=verdict.kind,
        message=verdict.message,
        distance=float(np.linalg.norm(found.theta - theta)),
        risk_change=value - begin,
        spectrum=now.values,
        zeros=zeros,
        rate=_rate(now, theta - found.theta, size) if verdict.kind in MINIMA else None,
        sliding=sliding,
        touched=touched,
        negative=tuple(as_net(trained, direction) for direction in verdict.falls.T),
        units=units,
        num_steps=found.steps,
        num_patterns=patterns,
    )


def _rate(now: Spectral, off: np.ndarray, size: float) -> float | None:
    """Twice the least positive eigenvalue of the modes that carry the gap of the risk."""
    positive = ~now.zero & (now.values > 0)
    if not positive.any():
        return None
    if np.linalg.norm(off) > _APART * size:
        gaps = np.where(positive, now.values * (now.vectors.T @ off) ** 2, 0.0)
        positive &= gaps >= _CARRIED * np.sum(gaps)
    return float(2 * np.min(now.values[positive]))


def _why(found: Found, patterns: int) -> str:
    if patterns > MOST_PATTERNS:
        return (
            f"The search passed through {patterns - 1} activation patterns and found none, with a "
            f"subgradient of {found.residual:.1e} at the end. Follow the flow further."
        )
    if found.far:
        return (
            "There is none nearby: the flow still travels, or diverges. The norm of the "
            f"subgradient came down to {found.residual:.1e}. Give a larger `radius`, or follow the "
            "flow further."
        )
    return (
        f"The search found none: the norm of the subgradient stays at {found.residual:.1e}. "
        "Follow the flow further."
    )


def _scale(risk, net, begin: float) -> float:
    """The size of the risk: that of the zero network where there is one."""
    if not isinstance(net, ShallowNet):
        return max(begin, np.finfo(float).tiny)
    like = lambda a: None if a is None else jnp.zeros_like(a)
    nothing = eqx.tree_at(
        lambda n: (n.v, n.c), net, (like(net.v), like(net.c)), is_leaf=lambda a: a is None
    )
    return max(float(risk(nothing)), begin, np.finfo(float).tiny)


def _rounding(risk, scale: float, optimum: float, *, exact: bool) -> float:
    """Up to where risks count as the optimum. Sums of squares of residuals that are roundings are
    far below the roundings of other sums, at points that were reached exactly."""
    squares = optimum == 0 and not isinstance(risk, (BoxRisk, GaussianRisk))
    return scale * ((1e-20 if exact else 1e-15) if squares else 1e-13)
