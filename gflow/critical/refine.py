"""From the end of a trajectory to the critical point it leads to."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gflow.arguments import (
    ArgumentError,
    Described,
    PyTree,
    RealScalar,
    finite,
    is_concrete,
    positive,
)
from gflow.critical.active_set import MAX_PATTERNS, SearchResult, along_kinks
from gflow.critical.candidate import Candidate, Start
from gflow.critical.classify import classify
from gflow.critical.deep_landscape import DeepLandscape
from gflow.critical.landscapes import FlatRisk, SmoothLandscape
from gflow.critical.marginal_units import degenerate_entries
from gflow.critical.matrix_free import matrix_free_point
from gflow.critical.modes import came_from, modes_of
from gflow.critical.newton import SearchLimits, newton
from gflow.critical.point import MINIMA, CriticalKind, CriticalPoint, NotFoundError
from gflow.critical.shallow_landscape import ShallowLandscape
from gflow.hessian import Spectrum
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.parameters import flat, split_trainable, unflat
from gflow.trajectory import Trajectory, single_trajectory

# Below this norm θ is at the origin, where there is nothing to measure distances by.
_AT_ORIGIN = 1e-8
# Up to this number the Hessian is a dense matrix.
_MAX_PARAMETERS = 4000


def refine(
    risk: Callable[[Any], Any],
    net: PyTree,
    *,
    radius: RealScalar = 0.1,
    optimum: RealScalar = 0.0,
    trainable: Sequence[str] | PyTree | None = None,
    approach: Trajectory[Any] | None = None,
    throw: bool = True,
) -> CriticalPoint:
    r"""The critical point near a network, to rounding, and its kind.

    Newton's method, in the form of Levenberg and Marquardt, on ∇L = 0. It ends at critical points
    of every kind. It converges quadratically where critical points form a manifold, too, as those
    of ReLU networks do. On data, for a network with kinks in any layers, it solves the
    Karush–Kuhn–Tucker conditions

    $$\nabla L_S(\theta) + \sum_{k \in K} \lambda_k q_k \nabla z_k = 0, \qquad
      z_k(\theta) = 0, \qquad 0 \le \lambda_k \le 1,$$

    with $L_S$ the risk of an activation pattern in which the pairs K of unit and datum are
    inactive, and q_k the jump of the slope across z_k = 0, with the weights λ in higher layers: so
    0 is in the Clarke subdifferential, by slopes that a slide of the flow would have. If all q_k
    are positive, the risk falls in no direction across the kinks.
    Pairs within 1e-9 of their kink, relative to the unit (and to the row, for a `ShallowNet`),
    count as on it. Where a step meets another kink, the search goes on along it if that attracts,
    and crosses it otherwise; it leaves kinks whose multiplier is not inside (0, 1). After 60 such
    changes it ends. Kinks of higher layers are curved: the Hessian is that of the Lagrangian along
    them, and each step is put back on them.

    **Arguments:**

    - `risk`: any function of the network to a scalar. Its Hessian is made by JAX; on data with
      kinks it is that of the pattern. For more than 4,000 trained parameters it is not formed: the
      steps come from its products, the kind from its outermost eigenvalues by Lanczos iteration,
      kinks are not looked for, and there is no `rate`.
    - `net`: the start: the end of a flow or of a descent, `flow.final`. The search is in float64,
      to which a network in float32 is converted; where JAX runs in float32, the network that is
      found is rounded to it.
    - `radius`: how far the search may go, as a fraction of ‖θ‖ (of 1 where ‖θ‖ is below 1e-8).
    - `optimum`: the minimum of the risk, if it is known: it identifies global minima.
    - `trainable`: as in `solve_flow`.
    - `approach`: the trajectory of which `net` is the end. Where `net` is the point to 1e-7, or up
      to the error of a solver that has come to rest, a saved state before decides along which kinks
      it slid there, and which modes carried the gap, for `modes` and `rate`.
    - `throw`: raise a `NotFoundError` if no critical point is found. With False the result is a
      `CriticalPoint` of kind "not found", where the search ended.

    **Returns:** a `CriticalPoint`. Its kind is

    - a global minimum if the risk is `optimum` to rounding;
    - a saddle if the risk falls in some direction: along an eigenvector of a negative eigenvalue,
      across a kink that repels, or as seen at points nearby;
    - a local minimum if all eigenvalues are positive, except zeros that dead units and rescaling
      explain, or along which critical points of the same risk were found;
    - degenerate otherwise.

    Eigenvalues below 100 P ε of the largest, P in number, count as zero, and so do those that the
    last step of the search changed by a tenth.

    **Raises:** `NotFoundError` if there is no critical point within `radius`, as for a flow that
    has not yet converged, or diverges; `ArgumentError` for arguments that cannot be used.

    Yamashita and Fukushima, Computing Suppl. 15 (2001) 239, for the convergence; Cheridito, Jentzen
    and Rossmannek, J. Nonlinear Sci. 32 (2022) 64, for the critical points of an affine target.
    """
    if not callable(risk):
        raise ArgumentError("risk", Described(type(risk).__name__), "a function of the network")
    if not is_concrete(net, risk):
        raise ArgumentError("net", Described("traced arrays"), "known ones: outside jax.jit")
    radius, optimum = positive("radius", radius), finite("optimum", optimum)
    if approach is not None:
        approach = single_trajectory("approach", approach)
    refined = _refined if jax.config.jax_enable_x64 else _refined_in_float64  # pyright: ignore[reportAttributeAccessIssue]
    point = refined(risk, net, radius, optimum, trainable, approach)
    if throw and not point.found:
        raise NotFoundError(point)
    return point


def _refined_in_float64(*given: Any) -> CriticalPoint:
    """The point where JAX runs in float32, as whose numbers the network is returned."""
    with jax.enable_x64(True):
        point = _refined(*given)
        single = lambda tree: jax.tree.map(
            lambda a: a.astype(jnp.float32) if eqx.is_inexact_array(a) else a, tree
        )
        found, descents = single(point.net), tuple(map(single, point.descent_directions))
    message = f"{point.message} Searched in float64; `net` is rounded to float32."
    return replace(point, net=found, descent_directions=descents, message=message)


def _refined(
    risk: Callable[[Any], Any],
    net: PyTree,
    radius: float,
    optimum: float,
    trainable: Any,
    approach: Trajectory | None,
) -> CriticalPoint:
    net = _in_float64(net)
    trained, frozen = split_trainable(net, trainable)
    theta = np.asarray(flat(trained))
    start = Start(theta, _value(risk, net))
    if not np.isfinite(start.value) or not np.isfinite(theta).all():
        got = Described("a network whose risk or parameters are not finite")
        raise ArgumentError("net", got, "a network of finite risk")
    of_theta = FlatRisk(risk, trained, frozen)
    norm = float(np.linalg.norm(theta))
    size = norm if norm > _AT_ORIGIN else 1.0
    if len(theta) > _MAX_PARAMETERS:
        return matrix_free_point(of_theta, start, radius * size, size, optimum)
    limits = SearchLimits(theta, radius * size)
    search = SearchResult.checked(_search(of_theta, theta, radius * size), size, limits)
    end = Candidate.of(of_theta, search, start)
    states = None if approach is None else _states(approach, trainable, len(theta))
    return _critical_point(end, start, optimum, came_from(end, start, states))


def _states(approach: Trajectory, trainable: Any, size: int) -> Float[np.ndarray, "times size"]:
    """θ at the saved times of a trajectory."""
    arrays = jax.tree.leaves(split_trainable(approach.params, trainable)[0])
    rows = [np.asarray(a, float).reshape(len(approach), -1) for a in arrays]
    states = np.concatenate(rows, axis=1)
    if states.shape[1] != size:
        got = Described(f"a trajectory of {states.shape[1]} trained parameters")
        raise ArgumentError("approach", got, f"one of the {size} of `net`")
    return states


def _value(risk, net: PyTree) -> float:
    value = risk(net)
    if np.shape(value) != ():
        got = Described(f"a function with values of shape {np.shape(value)}")
        raise ArgumentError("risk", got, "a function of the network to a scalar")
    return float(value)


def _in_float64(net: PyTree) -> PyTree:
    return jax.tree.map(lambda a: a.astype(float) if eqx.is_inexact_array(a) else a, net)


def _search(risk: FlatRisk, theta: Float[np.ndarray, " size"], radius: float) -> SearchResult:
    known = ShallowPatternRisk.of(risk.risk, risk.trained, risk.frozen)
    if known is not None:
        return along_kinks(ShallowLandscape.at(known, theta), theta, radius)
    deep = DeepPatternRisk.of(risk.risk, risk.trained, risk.frozen)
    if deep is not None:
        return along_kinks(DeepLandscape.at(deep, theta), theta, radius)
    land = SmoothLandscape(risk, degenerate_entries(risk, theta))
    return SearchResult(land, newton(land, theta, SearchLimits(theta, radius)))


def _critical_point(
    end: Candidate, start: Start, optimum: float, origin: Float[np.ndarray, " size"]
) -> CriticalPoint:
    found = end.search.newton
    if found.converged:
        kind, message, descents = classify(end, optimum)
    else:
        kind, message = CriticalKind.NOT_FOUND, _why(end.search)
        descents = np.zeros((len(end.theta), 0))
    return CriticalPoint(
        net=end.net,
        risk=end.value,
        residual=end.residual,
        kind=kind,
        message=message,
        distance=float(np.linalg.norm(end.theta - start.theta)),
        risk_change=end.value - start.value,
        spectrum=Spectrum.complete_of(end.eigen.values),
        zeros=end.zeros,
        modes=modes_of(end, origin) if kind in MINIMA else None,
        active_kinks=end.held.kinks,
        weakly_active=end.weak.kinks,
        descent_directions=tuple(unflat(end.risk.trained, jnp.asarray(d)) for d in descents.T),
        units=end.units,
        num_steps=found.steps,
        num_patterns=end.search.num_patterns,
    )


def _why(search: SearchResult) -> str:
    """Why no critical point was found, and what to try."""
    norm = f"the final subgradient norm is {search.newton.residual:.1e}"
    if (falls := search.valley) is not None and falls.endless and falls.outward:
        return (
            "The parameters run to infinity, as far as can be seen from here: the risk falls "
            f"outwards with slope {falls.slope:.1e}, which halves over lengths that do not shrink. "
            "`gflow.asymptotics(flow, risk)` follows the flow."
        )
    if falls is not None and search.newton.small:
        return (
            "The gradient is small, but not zero: the risk still falls with slope "
            f"{falls.slope:.1e} in a direction of little curvature. The flow has not yet "
            "converged, or diverges; `gflow.asymptotics(flow, risk)` says which."
        )
    if search.num_patterns > MAX_PATTERNS:
        return (
            f"The search passed through {search.num_patterns - 1} activation patterns and found no "
            f"critical point; {norm}. Follow the flow further."
        )
    if search.newton.far:
        return (
            "There is no critical point nearby: the flow has not yet converged, or diverges; "
            f"{norm}. Give a larger `radius`, or follow the flow further."
        )
    return f"The search found no critical point; {norm}. Follow the flow further."
