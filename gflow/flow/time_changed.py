r"""Gradient flow in another time.

Where $ds = dt/\sigma$ with a positive speed σ(L, ‖∇L‖), the flow $d\theta/dt = -\nabla L$ becomes

$$\frac{d\theta}{ds} = -\sigma\,\nabla L, \qquad \frac{dt}{ds} = \sigma .$$

The orbit is the same, and so are its kinks and slides. The dissipated energy $\int \sigma
\|\nabla L\|^2 ds$ is still the fall of the risk.
"""

from collections.abc import Callable, Collection
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gflow.arguments import ArgumentError, Described, RealScalar, is_concrete, positive
from gflow.trajectory import Trajectory

# The fraction of the flow time in a step above which it is the changed time that runs out.
_AFLOAT = 1e-8
# A field that is this much smaller, and the fraction of its speed below which a flow comes to rest.
_NEARER, _SLOWER = 1e-3, 0.5


class TimeChanged(eqx.Module):
    r"""Gradient flow in another time s, at a speed σ(L, ‖∇L‖) > 0:

    $$\frac{d\theta}{ds} = -\sigma\,\nabla L(\theta), \qquad \frac{dt}{ds} = \sigma .$$

    `solve_flow(..., model=TimeChanged(speed))` follows the same orbit as without it. Its times
    `ts` are s, and `trajectory.observed["flow_time"]` is t, the time of gradient flow.

    - `TimeChanged.clipped(c)`: σ = min(1, c/‖∇L‖), away from slides the limit of descent with
      clipped gradients.
    - `TimeChanged.normalised()`: σ = 1/‖∇L‖; s is the length of the orbit.
    - `TimeChanged.log_risk()`: σ = 1/L, the gradient flow of log L; where L ~ 1/t, s ~ log t.

    **Arguments:** `speed`: a function of risk and gradient norm to a positive number, continuously
    differentiable where the flow is to have the full order of its solver. An equinox module can
    hold arrays, which are traced: another number compiles nothing.

    **Raises:** `ArgumentError` for what is no such function.

    ??? example

        ```python
        risk = gflow.EmpiricalRisk(jnp.array([[1.0], [2.0]]), jnp.array([1.0, 2.0]))
        net = gflow.ShallowNet.from_arrays([[1.0]], [0.0], [2.0], 0.0)
        model = gflow.TimeChanged(lambda risk, grad_norm: 1 / (1 + grad_norm))
        flow = gflow.solve_flow(risk, net, t1=1.0, model=model)
        assert flow.observed["flow_time"][-1] < 1.0
        ```
    """

    speed: Callable[[Any, Any], Any]

    def __check_init__(self):
        wanted = "a function of risk and gradient norm to one positive number"
        if not callable(self.speed):
            raise ArgumentError("model.speed", self.speed, wanted)
        number = jax.ShapeDtypeStruct((), jnp.result_type(float))
        try:
            found = eqx.filter_eval_shape(self.speed, number, number)
        except Exception as error:  # those of a function of one's own are of any type
            got = Described(f"a function that cannot be traced ({error})")
            raise ArgumentError("model.speed", got, wanted + ", of jax.numpy") from error
        if not eqx.is_array_like(found) and not isinstance(found, jax.ShapeDtypeStruct):
            raise ArgumentError("model.speed", Described(f"values {found!r}"), wanted)
        if np.shape(found) != () or jnp.issubdtype(jnp.result_type(found), jnp.complexfloating):
            kind = f"values of shape {np.shape(found)} and type {jnp.result_type(found)}"
            raise ArgumentError("model.speed", Described(kind), wanted)

    @classmethod
    def clipped(cls, threshold: RealScalar, *, floor: RealScalar = 0.0) -> "TimeChanged":
        r"""σ = min{1, max{δ, γ/‖∇L‖}} with the `threshold` γ > 0 and the `floor` δ ≥ 0.

        Descent whose gradients are clipped to the norm γ follows it as its steps go to 0; its time
        is s = k·h. δ > 0 is regularised clipping (arXiv 2404.08624); δ = 1 is gradient flow. Along
        slides descent clips the gradients of both sides, which are longer than the flow's: where γ
        is less than these it follows the same orbit, but more slowly.
        """
        return cls(_Clipped(_number("threshold", threshold), _number("floor", floor, or_zero=True)))

    @classmethod
    def normalised(cls) -> "TimeChanged":
        """σ = 1/‖∇L‖: the flow moves at speed 1, and reaches critical points at a finite s, where
        it ends with the result "changed_time_ended"."""
        return cls(_one_over_grad_norm)

    @classmethod
    def log_risk(cls) -> "TimeChanged":
        """σ = 1/L for a positive risk: gradient flow of log L."""
        return cls(_one_over_risk)

    def rate(self, risk: Float[Array, ""], grad_norm: Float[Array, ""]) -> Float[Array, ""]:
        """σ; NaN where it is not positive, and 0 at critical points where it is infinite."""
        found, moves = jnp.asarray(self.speed(risk, grad_norm), grad_norm.dtype), grad_norm > 0
        found = jnp.where(moves | jnp.isfinite(found), found, 0.0)
        return jnp.where(~moves | (found > 0), found, jnp.nan)

    def field(
        self, risk: Float[Array, ""], velocity: Float[Array, " size"], clock: Float[Array, ""]
    ) -> Float[Array, " size_and_two"]:
        """d/ds of (θ, log(1 + t), ∫σ‖∇L‖² ds), where −∇L is `velocity`, t counts from the start,
        and the second entry is `clock`.

        t itself may grow like e^s, beyond what linear algebra bears beside θ.
        """
        norm = length(velocity)
        rate = self.rate(risk, norm)
        of_clock = rate * jnp.exp(-clock)
        return jnp.concatenate([rate * velocity, jnp.stack([of_clock, rate * norm * norm])])

    def jacobian(
        self,
        risk: Float[Array, ""],
        velocity: Float[Array, " size"],
        of_velocity: Float[Array, "size size"],
        clock: Float[Array, ""],
    ) -> Float[Array, "size_and_two size_and_two"]:
        """That of `field`, from that of the velocity in θ."""
        norm, slowing = length(velocity), jnp.exp(-clock)
        of_norm = velocity / jnp.where(norm > 0, norm, 1.0) @ of_velocity
        rate = self.rate(risk, norm)
        # The gradient of the risk is minus the velocity. Derivatives by the risk alone, such as
        # −1/L², may be beyond all numbers.
        along = lambda *by: jax.jvp(self.rate, (risk, norm), by)[1]
        of_rate = jax.vmap(along)(-velocity, of_norm)
        rows = [
            rate * of_velocity + jnp.outer(velocity, of_rate),
            (of_rate * slowing)[None],
            ((2 * rate * norm) * of_norm + (norm * of_rate) * norm)[None],
        ]
        found = jnp.pad(jnp.concatenate(rows), ((0, 0), (0, 2)))
        return found.at[-2, -2].set(-rate * slowing)

    def ends(
        self,
        risk: Float[Array, ""],
        velocity: Float[Array, " size"],
        tolerance: Float[Array, " size"],
        after: Callable[[Array], Float[Array, " size"]],
    ) -> Bool[Array, ""]:
        """Whether the flow cannot be followed farther: within the `tolerance` ahead the field turns
        back, and the speed does not fall where the gradient vanishes.

        `after` is the velocity after a displacement.
        """
        norm = length(velocity)
        moves = norm > 0
        ahead = velocity / jnp.where(moves, norm, 1.0)
        # What has a norm of 1 in the estimate of the error of a step.
        size = jnp.sqrt(jnp.mean((ahead / tolerance) ** 2))
        reach = 1 / jnp.where(moves, size, 1.0)
        # A risk that is itself as small as what it can still fall by goes to 0.
        left = jnp.where(risk > reach * norm, risk, _NEARER**2 * risk)
        later = self.rate(left, _NEARER * norm) * _NEARER
        goes_on = later < _SLOWER * self.rate(risk, norm)
        turns = lambda: after(reach * ahead) @ ahead <= 0
        ends = jax.lax.cond(moves & ~goes_on, turns, lambda: jnp.asarray(False))
        return jnp.where(moves, ends, ~jnp.isfinite(self.speed(risk, jnp.zeros_like(norm))))


class _Clipped(eqx.Module):
    """min{1, max{δ, γ/‖∇L‖}}, of an equinox module: its numbers are traced."""

    threshold: Array
    floor: Array

    def __call__(self, risk: Float[Array, ""], grad_norm: Float[Array, ""]) -> Float[Array, ""]:
        threshold = self.threshold.astype(grad_norm.dtype)
        clipped = threshold / jnp.maximum(grad_norm, threshold)
        return jnp.minimum(1.0, jnp.maximum(self.floor.astype(grad_norm.dtype), clipped))


def _one_over_grad_norm(risk: Float[Array, ""], grad_norm: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.exp(-jnp.log(grad_norm))


def _one_over_risk(risk: Float[Array, ""], grad_norm: Float[Array, ""]) -> Float[Array, ""]:
    # The derivative of 1/L is computed with L², which vanishes from L = 1e-154 on.
    return jnp.exp(-jnp.log(risk))


def _number(name: str, value: Any, *, or_zero: bool = False) -> Array:
    if is_concrete(value):
        value = positive(name, value, or_zero=or_zero)
    return jnp.asarray(value, jnp.result_type(float))


def length(v: Float[Array, " size"]) -> Float[Array, ""]:
    """‖v‖, also where its square is too small for a number: risks go to 0 like e^−s."""
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(v)))
    moves = scale > 0
    square = jnp.sum((v / jnp.where(moves, scale, 1.0)) ** 2)
    return jnp.where(moves, scale * jnp.sqrt(jnp.where(moves, square, 1.0)), 0.0 * scale)


def runs_out(
    rate: Float[Array, ""], step: Float[Array, ""], flow_time: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether a step of the changed time below its rounding is none in flow time: the changed time
    comes to an end."""
    return rate * step > _AFLOAT * flow_time


def as_model(model: Any, observed: Collection[str]) -> TimeChanged | None:
    """A model that `solve_flow` knows, or None. What it records is `observed` by nobody else."""
    if model is not None and not isinstance(model, TimeChanged):
        wanted = "a gflow.TimeChanged(speed), or None for gradient flow"
        raise ArgumentError("model", model, wanted)
    if model is not None and "flow_time" in observed:
        raise ArgumentError("observe", Described("'flow_time'"), "other names with a model")
    return model


def check_speed(model: TimeChanged, trajectory: Trajectory) -> None:
    """Raises `ArgumentError` where a flow failed, and its speed was not positive at the first saved
    time, away from critical points."""
    if not is_concrete(trajectory) or trajectory.batch_shape or trajectory.succeeded:
        return
    risk, norm = trajectory.risk[0], trajectory.grad_norm[0]
    speed = float(model.speed(risk, norm))
    if np.isfinite(risk) and 0 < norm < np.inf and not (0 < speed < np.inf):
        got = f"a speed of {speed:g} for risk {risk:g} and grad_norm {norm:g}, at the start"
        raise ArgumentError("model", Described(got), "a positive speed")
