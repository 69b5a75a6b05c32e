"""Chatterjee's criterion: a proof, before any training, that the flow converges to risk zero."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
from gflow.certificates.criterion import CriterionProblem, SmallestRatio, criterion
from gflow.display import Shown
from gflow.pickling import Portable

CertificateVerdict = Literal["certified", "refuted", "undecided"]


class Envelope(NamedTuple):
    """Upper bounds of the risk and of the distance to the limit."""

    risk: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True, repr=False, eq=False)
class Certificate(Shown, Portable):
    r"""Whether Chatterjee's criterion 4 f(x⁰) < r² α(x⁰, r) is proved, with what follows from it.

    - `verdict`: "certified", "refuted" or "undecided"; `reason` explains it.
    - `radius`: r; `min_radius`: the smallest radius found for which the criterion is proved.
    - `alpha_lower`: a proved lower bound of α(x⁰, r).
    - `alpha_upper`: the smallest ratio ‖∇f‖²/f that was found in the ball, at the point `witness`
      (inf and None without a search).
    - `initial_risk`: f(x⁰), rounded up.
    - `step_size`: η of gradient descent, and `contraction`: the factor 1 − δ of the risk in every
      step; None without a certificate, or without a bound of the Hessian.
    - `curvature`: the proved upper bound of ‖∇²f‖ over the ball where f ≤ f(x⁰), or None.
    """

    verdict: CertificateVerdict
    reason: str
    radius: float
    min_radius: float | None
    alpha_lower: float
    alpha_upper: float
    initial_risk: float
    curvature: float | None
    step_size: float | None
    contraction: float | None
    witness: PyTree | None

    @property
    def ratio(self) -> float:
        """The proved r² α/(4 f(x⁰)). The criterion holds if it is above 1."""
        return criterion(self.radius, self.alpha_lower, self.initial_risk)

    @property
    def rate(self) -> float | None:
        """α: the risk falls at least like e^{−αt}. None if not certified."""
        return self.alpha_lower if self.verdict == "certified" else None

    def flow_envelope(self, t: Any) -> Envelope:
        """Bounds of the risk and of the distance to the limit at times t of the gradient flow.

        They are f(x⁰) e^{−αt} and 2 √(f(x⁰)/α) e^{−αt/2} < r e^{−αt/2}.

        **Raises:** `ArgumentError` without a certificate.
        """
        self._require_certified()
        decay = np.exp(-self.alpha_lower * np.asarray(t, dtype=float) / 2)
        length = 2 * (self.initial_risk / self.alpha_lower) ** 0.5
        return Envelope(self.initial_risk * decay**2, length * decay)

    def descent_envelope(self, step: Any) -> Envelope:
        """Bounds of the risk and of the distance to the limit after k steps of gradient descent.

        They are (1 − δ)^k f(x⁰) and (1 − δ)^{k/2} r, for the step size `step_size`.

        **Raises:** `ArgumentError` without a certificate, or without a bound of the Hessian.
        """
        self._require_certified()
        if self.contraction is None:
            got = Described("no bound of the Hessian in `chatterjee`")
            raise ArgumentError("curvature_bound", got, "one, from which a step size follows")
        decay = self.contraction ** (np.asarray(step, dtype=float) / 2)
        return Envelope(self.initial_risk * decay**2, self.radius * decay)

    def _require_certified(self) -> None:
        if self.verdict != "certified":
            raise ArgumentError("verdict", self.verdict, "'certified': no envelope is proved")

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        facts = {
            "verdict": f"{self.verdict}: {self.reason}",
            "radius": f"{self.radius:.6g}",
            "α(x⁰, r)": f"at least {self.alpha_lower:.6g}, at most {self.alpha_upper:.6g}",
            "risk": f"{self.initial_risk:.6g} at the start",
            "r² α/(4 risk)": f"at least {self.ratio:.4g}",
        }
        if self.min_radius is not None:
            facts["radius"] += f" (proved from {self.min_radius:.6g} on)"
        if self.rate is not None:
            facts["flow"] = f"risk ≤ {self.initial_risk:.4g} exp(-{self.rate:.4g} t)"
            facts["descent"] = "no step size: no bound of the Hessian is known"
        if self.step_size is not None and self.contraction is not None:
            fall = 1 - self.contraction
            facts["descent"] = f"step size {self.step_size:.4g}, risk falls by {fall:.2g} a step"
        return facts


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
    least $(1-\varepsilon)\frac{\sqrt\alpha}2$ times its length. As above, the polygon stays in
    the ball, $f(x_k) \le (1-\delta)^k f(x_0)$, $\|x_k - x^*\| \le (1-\delta)^{k/2} r$ and
    $\delta = (1-\varepsilon)\alpha\eta$.

    **Lower bounds** of α are proved

    - for an `EmpiricalRisk` with squared loss and a `ShallowNet` or an `equinox.nn.MLP`, by bounds
      of the tangent kernel over the ball (`NetworkBounds` in gflow/certificates/bounds.py).
      Activations: tanh, sigmoid, softplus, erf, arctan, identity; others, such as z + tanh(z), with
      `slopes`; ReLU and leaky ReLU only if no preactivation can change its sign in the ball and,
      for ReLU, no unit is dead;
    - for a `SumOfSquares`, by the Lipschitz constant of its Jacobian;
    - for any other f by `alpha_bound`, which the user guarantees.

    They are computed in float64 on the host, and every operation is rounded to the safe side by a
    relative margin of 100 ε (p + m) K, where ε = 2.2e-16, p is the longest layer, m the number of
    outputs on all rows (sums are no longer than these) and K the number of layers. This assumes
    that NumPy's singular values and elementary functions are accurate to that margin.

    **Upper bounds** come from a search: `witness` is a point of the ball, and its ratio is accurate
    to √ε.

    **Verdict.** "certified": the criterion is proved for this radius. "refuted": it fails at this
    radius or, for `radius=None`, at every radius. It fails up to 2 f(x⁰)/‖∇f(x⁰)‖; at and beyond
    the distance of a critical point with f > 0, such as the constant network; and where a point
    with a small ratio is found (α falls with r, so a point also refutes slightly larger radii).
    "undecided": anything else. The flow may converge although the criterion fails.

    **Arguments:**

    - `risk`: f ≥ 0, any function of `net`.
    - `net`: x⁰, a network or any pytree of arrays.
    - `radius`: r. By default the one with the largest proved r² α/(4 f(x⁰)), or the smallest with
      r² α ≥ 16 f(x⁰), as a larger one allows no larger step. `Certificate.min_radius` gives the
      largest rate.
    - `trainable`: as in `solve_flow`; the ball is that of the trained parameters.
    - `slopes`: `SlopeBounds` of an activation that gflow does not know.
    - `alpha_bound`: a function that maps r to a proved lower bound of α(x⁰, r).
    - `curvature_bound`: a function that maps r to a proved upper bound of ‖∇²f‖ on the ball. With
      `alpha_bound` it replaces the bounds of gflow.
    - `critical_point`: a point with ∇f = 0 and f > 0, in the form of `net`, for refutation.
    - `starts`: the number of random starts of the search in each ball, 0 for no search.
    - `key`: the random key of the search.

    **Returns:** a `Certificate`. Runs on the host, so not under `jax.jit`.

    **Raises:** `ArgumentError` for a risk that is negative or not finite, or is 0 with
    `radius=None`, for traced arrays, and for bounds or a `critical_point` that prove wrong.

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
    bounds = lambda: _chosen_bounds(risk, net, trainable, slopes, alpha_bound, curvature_bound)
    problem = CriterionProblem.of(risk, net, trainable, bounds)
    if critical_point is not None:
        problem = problem._replace(critical=problem.distance_to(critical_point))
    if radius is None and problem.value == 0:
        raise ArgumentError("radius", None, "a radius, since the risk is 0 at `net`")
    if radius is None and problem.gradient == 0:
        start = SmallestRatio(0.0, 0.0, net)
        return _not_certified("refuted", "the start is a critical point", problem, start)
    r = problem.best_radius() if radius is None else positive("radius", radius)
    if problem.criterion(r) > 1:
        return _certified(problem, problem.search([r], starts, key)[0])
    if radius is None:
        return _for_all_radii(problem, r, starts, key)
    found = problem.search([r], starts, key)[0]
    if problem.fails(found):
        return _not_certified("refuted", "4 f(x⁰) ≥ r² ‖∇f‖²/f at the witness", problem, found)
    if problem.critical is not None and r >= problem.critical:
        found = found._replace(ratio=0.0, witness=None)
        reason = f"a critical point with positive risk is at distance {problem.critical:.6g}"
        return _not_certified("refuted", reason, problem, found)
    return _not_certified("undecided", _why_not(problem, found), problem, found)


def _chosen_bounds(risk, net, trainable, slopes, alpha_bound, curvature_bound) -> Bounds:
    if alpha_bound is not None:
        return GivenBounds(alpha_bound, curvature_bound, None)
    if isinstance(risk, SumOfSquares):
        return SquaresBounds(risk, net, trainable)
    return network_bounds(risk, net, trainable, slopes)


def _why_not(problem: CriterionProblem, found: SmallestRatio) -> str:
    return problem.bounds.obstacle(found.radius) or (
        f"only r² α/(4 f) ≥ {problem.criterion(found.radius):.4g} is proved, more than 1 is needed"
    )


def _for_all_radii(
    problem: CriterionProblem, r: float, starts: int, key: PRNGKeyArray
) -> Certificate:
    """The verdict for every radius, refuted or undecided, reported at the most promising one."""
    rows, until = problem.scan(r, starts, key)
    if problem.bounds.alpha(r) > 0:
        nearest = next(row for row in rows if row.radius == r)
    else:
        nearest = max(rows, key=lambda row: row.radius**2 * row.ratio)
    if until == np.inf:
        reason = "4 f(x⁰) ≥ r² α for every radius r"
        if problem.critical is not None:
            reason += f"; a critical point with positive risk is at {problem.critical:.6g}"
        return _not_certified("refuted", reason, problem, nearest)
    reason = _why_not(problem, nearest)
    if until > problem.too_small:
        reason += f" (refuted for all radii up to {until:.4g})"
    return _not_certified("undecided", reason, problem, nearest)


def _not_certified(
    verdict: CertificateVerdict, reason: str, problem: CriterionProblem, found: SmallestRatio
) -> Certificate:
    return Certificate(
        verdict=verdict,
        reason=reason,
        radius=found.radius,
        min_radius=None,
        alpha_lower=problem.bounds.alpha(found.radius),
        alpha_upper=found.ratio,
        initial_risk=problem.value,
        curvature=None,
        step_size=None,
        contraction=None,
        witness=found.witness,
    )


def _bounding_argument(bounds: Bounds) -> str:
    """The argument from which a bound follows."""
    names = {GivenBounds: "alpha_bound", SquaresBounds: "jacobian_lipschitz"}
    return names.get(type(bounds), "slopes")


def _certified(problem: CriterionProblem, found: SmallestRatio) -> Certificate:
    r, value = found.radius, problem.value
    alpha = problem.bounds.alpha(r)
    if found.ratio < (1 - 1e-6) * alpha:
        got = Described(
            f"a bound α(x⁰, {r:.6g}) ≥ {alpha:.6g}, above a ratio of {found.ratio:.6g} in the ball"
        )
        raise ArgumentError(
            _bounding_argument(problem.bounds), got, "a bound that holds on the whole ball"
        )
    curvature = problem.bounds.curvature(r, value)
    step_size = contraction = None
    if curvature is not None:
        # (1 - ε)² r² α > 4 f must hold strictly. Beyond one half, ε would make δ smaller.
        eps = min(0.5, (1 - 1e-9) * (1 - criterion(r, alpha, value) ** -0.5))
        step_size = 2 * eps / curvature
        contraction = max(1 - (1 - eps) * alpha * step_size, 0.0)
    return Certificate(
        verdict="certified",
        reason="4 f(x⁰) < r² α is proved",
        radius=r,
        min_radius=problem.min_radius(r) if value > 0 else r,
        alpha_lower=alpha,
        alpha_upper=found.ratio,
        initial_risk=value,
        curvature=curvature,
        step_size=step_size,
        contraction=contraction,
        witness=found.witness,
    )
