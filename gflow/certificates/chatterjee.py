"""Chatterjee's criterion: proofs, before any training, that a flow converges to risk zero."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from gflow.arguments import ArgumentError, Described, PyTree, RealScalar, is_concrete, positive
from gflow.certificates.activation_bounds import SlopeBounds
from gflow.certificates.bounds import (
    Bounds,
    GivenBounds,
    SquaresBounds,
    SumOfSquares,
    network_bounds,
)
from gflow.certificates.criterion import Found, Problem, criterion
from gflow.display import fact_lines, fact_table


class Envelope(NamedTuple):
    """Upper bounds of the risk, and of the distance to the limit."""

    risk: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True, repr=False, eq=False)
class Certificate:
    r"""What is known of Chatterjee's criterion 4 f(x⁰) < r² α(x⁰, r).

    - `verdict`: "certified", "refuted" or "undecided"; `reason` says it in words.
    - `radius`: r; `least_radius`: the smallest radius found for which the criterion is proved.
    - `alpha_lower`: a proved lower bound of α(x⁰, r); `alpha_upper`: the ratio ‖∇f‖²/f at the worst
      point that was found in the ball, `witness` (inf and None without a search).
    - `initial_risk`: f(x⁰), rounded up.
    - `step_size`: η of gradient descent, and `contraction`: the factor 1 − δ of the risk in every
      step; None without a certificate, or without a bound of the Hessian.
    - `curvature`: the proved upper bound of ‖∇²f‖ over the ball where f ≤ f(x⁰), or None.
    """

    verdict: str
    reason: str
    radius: float
    least_radius: float | None
    alpha_lower: float
    alpha_upper: float
    initial_risk: float
    curvature: float | None
    step_size: float | None
    contraction: float | None
    witness: PyTree | None

    @property
    def ratio(self) -> float:
        """r² α/(4 f(x⁰)), as far as proved: above 1 the criterion holds."""
        return criterion(self.radius, self.alpha_lower, self.initial_risk)

    @property
    def rate(self) -> float | None:
        """α: the risk falls at least like e^{−αt}. None if not certified."""
        return self.alpha_lower if self.verdict == "certified" else None

    def flow_envelope(self, t: Any) -> Envelope:
        """At times t: f(x⁰) e^{−αt} and 2 √(f(x⁰)/α) e^{−αt/2} < r e^{−αt/2}, below which the risk
        and the distance to the limit are along the gradient flow."""
        if self.verdict != "certified":
            raise ArgumentError("certificate", Described(self.verdict), "a certified one")
        decay = np.exp(-self.alpha_lower * np.asarray(t, dtype=float) / 2)
        length = 2 * (self.initial_risk / self.alpha_lower) ** 0.5
        return Envelope(self.initial_risk * decay**2, length * decay)

    def descent_envelope(self, step: Any) -> Envelope:
        """After so many steps: (1 − δ)^k f(x⁰) and (1 − δ)^{k/2} r, for gradient descent of
        `step_size`."""
        if self.contraction is None:
            raise ArgumentError("certificate", Described("no step size"), "one with a step size")
        decay = self.contraction ** (np.asarray(step, dtype=float) / 2)
        return Envelope(self.initial_risk * decay**2, self.radius * decay)

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        facts = {
            "verdict": f"{self.verdict}: {self.reason}",
            "radius": f"{self.radius:.6g}",
            "α(x⁰, r)": f"at least {self.alpha_lower:.6g}, at most {self.alpha_upper:.6g}",
            "risk": f"{self.initial_risk:.6g} at the start",
            "r² α/(4 risk)": f"at least {self.ratio:.4g}",
        }
        if self.least_radius is not None:
            facts["radius"] += f" (proved from {self.least_radius:.6g} on)"
        if self.rate is not None:
            facts["flow"] = f"risk ≤ {self.initial_risk:.4g} exp(-{self.rate:.4g} t)"
            facts["descent"] = "no step size: no bound of the Hessian is known"
        if self.step_size is not None and self.contraction is not None:
            fall = 1 - self.contraction
            facts["descent"] = f"step size {self.step_size:.4g}, risk falls by {fall:.2g} a step"
        return facts

    def __repr__(self) -> str:
        return fact_lines("Certificate", self.summary())

    def _repr_html_(self) -> str:
        return fact_table(self.summary(), caption="Certificate")


def chatterjee(
    risk: Callable[[Any], Array],
    net: PyTree,
    radius: RealScalar | None = None,
    *,
    trainable: Sequence[str] | PyTree | None = None,
    slopes: SlopeBounds | None = None,
    alpha_bound: Callable[[float], Any] | None = None,
    curvature_bound: Callable[[float], Any] | None = None,
    critical_point: PyTree | None = None,
    starts: int = 4,
    key: PRNGKeyArray | None = None,
) -> Certificate:
    r"""Chatterjee's criterion for convergence to a global minimum, from the start alone. For f ≥ 0,

    $$\alpha(x_0, r) = \inf_{\|x - x_0\| \le r,\ f(x) \ne 0} \frac{\|\nabla f(x)\|^2}{f(x)}, \qquad
      4 f(x_0) < r^2 \alpha(x_0, r)$$

    implies that the gradient flow from $x_0$ stays in the ball, converges to some $x^*$ with
    $f(x^*) = 0$, and $f \le e^{-\alpha t} f(x_0)$, $\|x - x^*\| \le r e^{-\alpha t/2}$ (Chatterjee,
    arXiv 2203.16462). The reason: $\frac{d}{dt}\sqrt f \le -\frac{\sqrt\alpha}2 \|\nabla f\|$, so
    that the path is no longer than $2\sqrt{f(x_0)/\alpha} < r$, and from time t on no longer than
    $2\sqrt{f(x(t))/\alpha}$.

    **Gradient descent.** Let M bound ‖∇²f‖ over the ball where $f \le f(x_0)$, let
    $4f(x_0) < (1-\varepsilon)^2 r^2\alpha$ and $\eta = 2\varepsilon/M$. A step, or a part of it of
    size s ≤ η, lowers f by at least $(1-\varepsilon)\,s\,\|\nabla f\|^2$, and so $\sqrt f$ by at
    least $(1-\varepsilon)\frac{\sqrt\alpha}2$ times the way made. As above, the polygon stays
    within the ball, $f(x_k) \le (1-\delta)^k f(x_0)$, $\|x_k - x^*\| \le (1-\delta)^{k/2} r$ and
    $\delta = (1-\varepsilon)\alpha\eta$.

    **What is proved.** Lower bounds of α come

    - for an `EmpiricalRisk` with squared loss and a `ShallowNet` or an `equinox.nn.MLP`, from those
      of the tangent kernel over the ball (`NetworkBounds` in gflow/bounds.py has the formulas).
    Activations: tanh, sigmoid, softplus, erf, arctan, identity; others, such as z + tanh(z), with
      `slopes`. ReLU and leaky ReLU only if no preactivation can change its sign within the ball
      and, for ReLU, no unit is dead;
    - for a `SumOfSquares`, from the Lipschitz constant of its Jacobian;
    - for any other f from `alpha_bound`, which the user vouches for.

    They are computed in float64 on the host, and every operation is rounded to the safe side by a
    relative margin of 100 ε (p + m) K, with ε = 2.2e-16, p the longest layer, m the number of
    outputs on all rows (sums are no longer than these) and K the number of layers; this takes
    NumPy's singular values and elementary functions for accurate to that margin.

    Upper bounds come from a search: `witness` is a point of the ball, and its ratio is exact to √ε.

    **Verdict.** "certified": the criterion is proved for this radius. "refuted": it fails at this
    radius, or, for `radius=None`, at all. That takes points found in a sequence of balls (α falls
    with r, so that the point found in one also serves radii a little larger), 2 f(x⁰)/‖∇f(x⁰)‖, up
    to which the criterion always fails, and a critical point with f > 0, at and beyond the distance
    of which it does; that of the constant network is known. "undecided": anything else. Where the
    criterion fails the flow may converge nevertheless.

    **Arguments:**

    - `risk`: f ≥ 0, any function of `net`; `net`: x⁰, a network or any pytree of arrays.
    - `radius`: r; None for the one with the largest proved r² α/(4 f(x⁰)), or the smallest with
      r² α ≥ 16 f(x⁰), from which on a larger one promises no larger step. `least_radius` gives the
      largest rate.
    - `trainable`: as in `solve_flow`; the ball is that of the trained parameters.
    - `slopes`: `SlopeBounds` of an activation that gflow does not know.
    - `alpha_bound`: r ↦ a proved lower bound of α(x⁰, r); `curvature_bound`: r ↦ a proved bound of
      ‖∇²f‖ on the ball. They replace those of gflow.
    - `critical_point`: a point with ∇f = 0 and f > 0, in the form of `net`, to refute with.
    - `starts`: random starts of the search in each ball; 0 for no search. `key`: for them.

    **Returns:** a `Certificate`. Runs on the host, so not under `jax.jit`.

    **Raises:** `ArgumentError` for a risk that is not finite or negative, or is 0 with
    `radius=None`, traced arrays, `slopes` or a `critical_point` that are seen to be wrong.

    ??? example

        ```python
        f = gflow.SumOfSquares(lambda x: x[0] * x[1] - 1, jacobian_lipschitz=1.0)
        certificate = gflow.chatterjee(f, jnp.array([1.6, 1.2]))
        assert certificate.verdict == "certified"
        ```
    """
    if not is_concrete(risk, net):
        raise ArgumentError("net", Described("traced arrays"), "known ones: outside jax.jit")
    key = jax.random.key(0) if key is None else key
    bounds = lambda: _bounds(risk, net, trainable, slopes, alpha_bound, curvature_bound)
    problem = Problem.of(risk, net, trainable, bounds)
    if critical_point is not None:
        problem = problem._replace(critical=problem.distance_to(critical_point))
    if radius is None and problem.value == 0:
        raise ArgumentError("radius", None, "a radius, since the risk is 0 at `net`")
    if radius is None and problem.gradient == 0:
        start = Found(0.0, 0.0, net)
        return _without("refuted", "the start is a critical point", problem, start)
    r = problem.best_radius() if radius is None else positive("radius", radius)
    if problem.criterion(r) > 1:
        return _certified(problem, problem.search([r], starts, key)[0])
    if radius is None:
        return _for_all_radii(problem, r, starts, key)
    found = problem.search([r], starts, key)[0]
    if problem.fails(found):
        return _without("refuted", "4 f(x⁰) ≥ r² ‖∇f‖²/f at the witness", problem, found)
    if problem.critical is not None and r >= problem.critical:
        found = found._replace(ratio=0.0, witness=None)
        reason = f"a critical point with positive risk is at distance {problem.critical:.6g}"
        return _without("refuted", reason, problem, found)
    return _without("undecided", _why_not(problem, found), problem, found)


def _bounds(risk, net, trainable, slopes, alpha_bound, curvature_bound) -> Bounds:
    if alpha_bound is not None:
        return GivenBounds(alpha_bound, curvature_bound, None)
    if isinstance(risk, SumOfSquares):
        return SquaresBounds(risk, net, trainable)
    return network_bounds(risk, net, trainable, slopes)


def _why_not(problem: Problem, found: Found) -> str:
    return problem.bounds.obstacle(found.radius) or (
        f"proved is r² α/(4 f) ≥ {problem.criterion(found.radius):.4g}, and above 1 is wanted"
    )


def _for_all_radii(problem: Problem, r: float, starts: int, key: PRNGKeyArray) -> Certificate:
    """Refuted for every radius, or undecided, at the radius that comes nearest."""
    rows, until = problem.scan(r, starts, key)
    if problem.bounds.alpha(r) > 0:
        nearest = next(row for row in rows if row.radius == r)
    else:
        nearest = max(rows, key=lambda row: row.radius**2 * row.ratio)
    if until == np.inf:
        reason = "4 f(x⁰) ≥ r² α for every radius r"
        if problem.critical is not None:
            reason += f"; a critical point with positive risk is at {problem.critical:.6g}"
        return _without("refuted", reason, problem, nearest)
    reason = _why_not(problem, nearest)
    if until > problem.too_small:
        reason += f" (refuted for all radii up to {until:.4g})"
    return _without("undecided", reason, problem, nearest)


def _without(verdict: str, reason: str, problem: Problem, found: Found) -> Certificate:
    return Certificate(
        verdict=verdict,
        reason=reason,
        radius=found.radius,
        least_radius=None,
        alpha_lower=problem.bounds.alpha(found.radius),
        alpha_upper=found.ratio,
        initial_risk=problem.value,
        curvature=None,
        step_size=None,
        contraction=None,
        witness=found.witness,
    )


def _given(bounds: Bounds) -> str:
    """The argument that a bound rests on."""
    names = {GivenBounds: "alpha_bound", SquaresBounds: "jacobian_lipschitz"}
    return names.get(type(bounds), "slopes")


def _certified(problem: Problem, found: Found) -> Certificate:
    r, value = found.radius, problem.value
    alpha = problem.bounds.alpha(r)
    if found.ratio < (1 - 1e-6) * alpha:
        got = Described(f"a bound α(x⁰, {r:.6g}) ≥ {alpha:.6g}, below which is {found.ratio:.6g}")
        raise ArgumentError(_given(problem.bounds), got, "a bound that holds on the whole ball")
    curvature = problem.bounds.curvature(r, value)
    step_size = contraction = None
    if curvature is not None:
        # (1 - ε)² r² α > 4 f has to hold strictly; beyond one half, ε would make δ smaller.
        eps = min(0.5, (1 - 1e-9) * (1 - criterion(r, alpha, value) ** -0.5))
        step_size = 2 * eps / curvature
        contraction = max(1 - (1 - eps) * alpha * step_size, 0.0)
    return Certificate(
        verdict="certified",
        reason="4 f(x⁰) < r² α is proved",
        radius=r,
        least_radius=problem.least_radius(r) if value > 0 else r,
        alpha_lower=alpha,
        alpha_upper=found.ratio,
        initial_risk=value,
        curvature=curvature,
        step_size=step_size,
        contraction=contraction,
        witness=found.witness,
    )
