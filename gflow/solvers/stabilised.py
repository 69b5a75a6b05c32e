r"""Stabilised explicit Runge–Kutta methods: long steps for stiff fields with a real spectrum.

Their stability polynomials of degree s stay below 1 on a real interval [−β(s), 0] that grows like
s², so s evaluations go as far as s² with a classical method. The Jacobian of gradient flow is minus
the Hessian, hence symmetric, and is never formed. Each step takes the smallest number of stages
with h ρ ≤ β(s), where the spectral radius ρ is kept up to date by a power iteration with
Jacobian-vector products. RKC2 and ROCK4 are own code since diffrax has no such methods.
"""

import abc
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from gflow.solvers.work import Work, nothing_done

# Products take about a twentieth of the work, as one costs about two evaluations.
_EVALUATIONS_PER_PRODUCT = 40
# The factor of the radius, which the power method approaches from below.
_SAFETY = 1.15


class StabilisedState(NamedTuple):
    """The field at the start of the next step, the spectral radius and its vector, and the work.

    `estimated` is the number of evaluations at the last product, `step` the size of the last step.
    """

    field: Float[Array, " size"]
    radius: Float[Array, ""]
    vector: Float[Array, " size"]
    estimated: Int[Array, ""]
    step: Float[Array, ""]
    work: Work


class StabilisedStep(NamedTuple):
    """The result of a step: y1 − y0, the field at y1, and the estimate of the error."""

    change: Float[Array, " size"]
    field: Float[Array, " size"]
    error: Float[Array, " size"]


class SpectralRadius(NamedTuple):
    """The radius, the normalised vector to continue from, and the number of products."""

    radius: Float[Array, ""]
    vector: Float[Array, " size"]
    num_products: Int[Array, ""]


def spectral_radius(
    product: Callable[[Array], Array],
    vector: Float[Array, " size"],
    guess: Float[Array, ""],
    *,
    tol: float = 0.001,
    max_products: int = 100,
) -> SpectralRadius:
    """The spectral radius of a symmetric linear map, from below, by the power method.

    It ends when the relative change of ‖A v‖/‖v‖ is at most `tol`. A `guess` that the first product
    confirms to a twentieth is not improved.
    """

    def unfinished(c):
        _, radius, change, count = c
        enough = jnp.where(count == 1, 0.05, tol)
        return (change > enough * radius) & (count < max_products)

    def one(c):
        v, before, _, count = c
        w = product(v)
        radius = jnp.linalg.norm(w)
        v = jnp.where(radius > 0, w / jnp.where(radius > 0, radius, 1.0), v)
        return v, radius, jnp.abs(radius - before), count + 1

    start = (_normalised(vector), guess, jnp.full_like(guess, jnp.inf), jnp.asarray(0))
    v, radius, _, count = jax.lax.while_loop(unfinished, one, start)
    return SpectralRadius(radius, v, count)


def radius_at(field: Callable[[Array], Array], theta: Float[Array, " size"]) -> Array:
    """The spectral radius of the Jacobian of a field, to a few per cent."""
    product = lambda v: jax.jvp(field, (theta,), (v,))[1]
    noise = jax.random.normal(jax.random.key(0), theta.shape, theta.dtype)
    return spectral_radius(product, noise, jnp.zeros((), theta.dtype), tol=0.02).radius


def _normalised(v: Array) -> Array:
    size = jnp.linalg.norm(v)
    return v / jnp.where(size > 0, size, 1.0)


class AbstractStabilised(diffrax.AbstractAdaptiveSolver[StabilisedState]):
    """A stabilised method; final classes define its stages.

    It keeps the field from step to step, estimates the spectral radius, and chooses the number of
    stages.
    """

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    @abc.abstractmethod
    def stages(self, z: Float[Array, ""]) -> Int[Array, ""]:
        """The smallest number of stages that is stable on [−z, 0]; 0 if there is none."""

    @abc.abstractmethod
    def advance(self, field: Callable, t0, h, y0, f0, stages: Int[Array, ""]) -> StabilisedStep:
        """One step of size h with this number of stages."""

    def init(self, terms, t0, t1, y0, args) -> StabilisedState:
        flat, field = _flat(terms, y0, args)
        f0 = field(t0, flat)
        # The gradient has large components in stiff directions, noise has components in all.
        noise = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
        zero = jnp.asarray(0)
        return StabilisedState(
            field=f0,
            radius=jnp.zeros((), flat.dtype),
            vector=_normalised(f0) + _normalised(noise),
            estimated=zero - _EVALUATIONS_PER_PRODUCT,
            step=jnp.zeros((), flat.dtype),
            work=nothing_done().plus(evaluations=1),
        )

    def step(self, terms, t0, t1, y0, args, solver_state: StabilisedState, made_jump):
        flat, field = _flat(terms, y0, args)
        _, unravel = ravel_pytree(y0)
        state, h = solver_state, jnp.asarray(t1 - t0, flat.dtype)
        f0 = jax.lax.cond(made_jump, lambda: field(t0, flat), lambda: state.field)
        evaluations = state.work.evaluations + jnp.asarray(made_jump).astype(int)

        # A step shorter than the last may follow a rejected one, of which the state has no trace.
        due = evaluations - state.estimated >= _EVALUATIONS_PER_PRODUCT
        due = due | (h < 0.9 * state.step) | made_jump
        product = lambda v: jax.jvp(lambda y: field(t0, y), (flat,), (v,))[1]
        radius, vector, products = jax.lax.cond(
            due,
            lambda: spectral_radius(product, state.vector, state.radius),
            lambda: SpectralRadius(state.radius, state.vector, jnp.asarray(0)),
        )
        stages = self.stages(_SAFETY * h * radius)
        made = self.advance(field, t0, h, flat, f0, stages)
        possible = stages > 0
        y1 = jnp.where(possible, flat + made.change, jnp.nan)
        error = jnp.where(possible, made.error, jnp.inf)
        after = evaluations + stages
        new = StabilisedState(
            field=made.field,
            radius=radius,
            # A mode that outgrows the one of the power method dominates the error, so a little of
            # the error lets the method find it.
            vector=vector + jnp.where(due, 0.1, 0.0) * _normalised(made.error),
            estimated=jnp.where(due, evaluations, state.estimated),
            step=h,
            work=state.work.plus(after - state.work.evaluations, products),
        )
        k0, k1 = unravel(h * f0), unravel(h * made.field)
        dense = {"y0": y0, "y1": unravel(y1), "k0": k0, "k1": k1}
        return unravel(y1), unravel(error), dense, new, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


def _flat(terms: diffrax.AbstractTerm, y0, args) -> tuple[Array, Callable]:
    """y0 as a flat vector, and the field as a function of flat vectors."""
    flat, unravel = ravel_pytree(y0)

    def field(t, y):
        # Backwards in time, diffrax uses terms whose unit of control is −1.
        unit = terms.contr(jnp.zeros_like(t), jnp.ones_like(t))
        return ravel_pytree(terms.vf_prod(t, unravel(y), args, unit))[0]

    return flat, field
