"""Criteria that end a flow early."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.arguments import ArgumentError, is_concrete, positive
from gflow.results import RESULTS


class FlowPoint(NamedTuple):
    """What criteria look at: the time since the start, θ, ∫‖G‖² so far, L(θ) and ‖G(θ)‖."""

    elapsed: Float[Array, ""]
    theta: Float[Array, " size"]
    dissipated: Float[Array, ""]
    risk: Float[Array, ""]
    grad_norm: Float[Array, ""]


class Criterion(NamedTuple):
    """The result of a flow that ends where the criterion `holds`."""

    result: RESULTS
    holds: Callable[[FlowPoint], Bool[Array, ""]]


class Stop(eqx.Module):
    r"""Ends a flow after the first step at whose end one of these holds; None leaves it out.

    - `grad_norm`: ‖G(θ)‖ is at most this.
    - `risk`: L(θ) is at most this.
    - `progress`: at its present speed the risk would fall by at most this fraction of itself while
      t grows tenfold, $\ln(10)\, t\, \|G\|^2 \le \text{progress} \cdot L$ with t from the start,
      and the flow has slowed down, to a tenth of the mean of ‖G‖² so far. A risk that falls to 0
      like $t^{-k}$ goes on while progress < k ln 10.
    - `param_norm`: ‖θ‖ over the trained parameters is at least this. The risk falls along every
      flow, so weights that grow to a bound far beyond their start diverge.

    - `seconds`: so many seconds have passed since the solve began, compilation included. Looked at
      between pieces of steps, about every two seconds; not for flows that JAX traces.

    The state where it stopped becomes the last saved one.
    """

    grad_norm: float | Float[Array, ""] | None = None
    risk: float | Float[Array, ""] | None = None
    progress: float | Float[Array, ""] | None = None
    param_norm: float | Float[Array, ""] | None = None
    seconds: float | None = None

    def __check_init__(self):
        for name, value in vars(self).items():
            if value is not None and is_concrete(value):
                # One entry for each flow of a batch.
                for bound in np.ravel(value) if hasattr(value, "shape") else (value,):
                    positive(f"stop.{name}", bound, or_zero=True)

    @property
    def criteria(self) -> list[Criterion]:
        """Those in use, in the order in which they count."""
        every = [
            (RESULTS.reached_grad_norm, _is_small, self.grad_norm),
            (RESULTS.reached_risk, _is_low, self.risk),
            (RESULTS.reached_progress, _is_slow, self.progress),
            (RESULTS.reached_param_norm, _is_far, self.param_norm),
        ]
        return [
            Criterion(result, partial(holds, bound))
            for result, holds, bound in every
            if bound is not None
        ]

    def fired(self, point: FlowPoint) -> RESULTS:
        """The result of the first criterion that holds; `RESULTS.successful` if none does."""
        return first_result((c.result, c.holds(point)) for c in self.criteria)


def _is_small(bound, point: FlowPoint) -> Bool[Array, ""]:
    return point.grad_norm <= bound


def _is_low(bound, point: FlowPoint) -> Bool[Array, ""]:
    return point.risk <= bound


def _is_slow(bound, point: FlowPoint) -> Bool[Array, ""]:
    t = point.elapsed
    in_a_decade = jnp.log(10.0) * t * point.grad_norm**2
    # Nothing has happened yet at the start, and the flow has not slowed down.
    slowed = (t > 0) & (t * point.grad_norm**2 <= 0.1 * point.dissipated)
    return slowed & (in_a_decade <= bound * point.risk)


def _is_far(bound, point: FlowPoint) -> Bool[Array, ""]:
    return jnp.sqrt(jnp.sum(point.theta**2)) >= bound


_NO_STOP = Stop()


def as_stop(stop: Stop | None, dtype: Any) -> Stop:
    """The criteria that a compiled solve looks at, as arrays, so that other numbers compile
    nothing."""
    if stop is None:
        return _NO_STOP
    if not isinstance(stop, Stop):
        raise ArgumentError("stop", stop, "a gflow.Stop, such as Stop(grad_norm=1e-8), or None")
    compiled = dataclasses.replace(stop, seconds=None)
    for name, bound in vars(compiled).items():
        if np.ndim(bound):
            raise ArgumentError(
                f"stop.{name}", bound, "one number; jax.vmap takes one for each flow"
            )
    return jax.tree.map(lambda bound: jnp.asarray(bound, dtype), compiled)


def first_result(pairs: Iterable[tuple[RESULTS, Bool[Array, ""]]]) -> RESULTS:
    """The first of these results whose flag is set; `RESULTS.successful` if none is."""
    found = RESULTS.successful
    for result, flag in reversed(list(pairs)):
        found = RESULTS.where(flag, result, found)
    return found
