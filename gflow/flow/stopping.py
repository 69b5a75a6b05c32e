"""Criteria that end a flow early."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gflow.arguments import ArgumentError, positive
from gflow.results import RESULTS


class Stop(eqx.Module):
    r"""Ends a flow after the first step at whose end one of these holds; None leaves it out.

    - `grad_norm`: ‖G(θ)‖ is at most this.
    - `risk`: L(θ) is at most this.
    - `progress`: at its present speed the risk would fall by at most this share of itself while t
      grows tenfold, $\ln(10)\, t\, \|G\|^2 \le \text{progress} \cdot L$ with t from the start, and
      the flow has slowed down, to a tenth of the mean of ‖G‖² so far. A risk that falls to 0 like
      $t^{-k}$ goes on while progress < k ln 10.
    - `param_norm`: ‖θ‖ over the trained parameters is at least this. The risk falls along every
      flow, so weights that grow to a bound far beyond their start are on their way to infinity.

    The state where it stopped becomes the last saved one.
    """

    grad_norm: float | Float[Array, ""] | None = None
    risk: float | Float[Array, ""] | None = None
    progress: float | Float[Array, ""] | None = None
    param_norm: float | Float[Array, ""] | None = None

    def __check_init__(self):
        given = {n: x for n, x in vars(self).items() if isinstance(x, (int, float))}
        for name, value in given.items():
            positive(f"stop.{name}", value, or_zero=True)

    def conditions(self, risk_and_grad_norm: Callable, t0) -> dict[str, Callable]:
        """For each criterion in use, the name of its `RESULTS` member and a condition of t and
        (θ, ∫‖G‖²)."""
        conditions: dict[str, Callable] = {}
        of = lambda y: risk_and_grad_norm(y[:-1])
        if self.grad_norm is not None:
            conditions["reached_grad_norm"] = lambda t, y: of(y)[1] <= self.grad_norm
        if self.risk is not None:
            conditions["reached_risk"] = lambda t, y: of(y)[0] <= self.risk
        if self.progress is not None:
            conditions["reached_progress"] = lambda t, y: self._slow(t - t0, of(y), y[-1])
        if (bound := self.param_norm) is not None:
            conditions["reached_param_norm"] = lambda t, y: jnp.sqrt(jnp.sum(y[:-1] ** 2)) >= bound
        return conditions

    def _slow(self, t, risk_and_grad_norm, dissipated) -> Bool[Array, ""]:
        risk, grad_norm = risk_and_grad_norm
        in_a_decade = jnp.log(10.0) * t * grad_norm**2
        # Nothing has happened yet at the start, and the flow has not slowed down.
        slowed = (t > 0) & (t * grad_norm**2 <= 0.1 * dissipated)
        return slowed & (in_a_decade <= self.progress * risk)


def as_stop(stop: Stop | None) -> Stop:
    if stop is None:
        return Stop()
    if not isinstance(stop, Stop):
        raise ArgumentError("stop", stop, "a gflow.Stop, such as Stop(grad_norm=1e-8), or None")
    return stop


def stop_result(fired: dict[str, Array]) -> RESULTS:
    """The `RESULTS` member of the first criterion that fired."""
    result = RESULTS.successful
    for name in reversed(list(fired)):
        result = RESULTS.where(fired[name], getattr(RESULTS, name), result)
    return result
