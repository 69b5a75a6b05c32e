r"""Stabilised explicit Runge–Kutta methods: long steps for stiff fields with a real spectrum.

Their stability polynomials of degree s stay below 1 on a real interval [−β(s), 0] that grows like
s², so s evaluations go as far as s² would with a classical method. The Jacobian of gradient flow is
minus the Hessian, symmetric, and neither is ever formed: each step takes the least number of stages
with h ρ ≤ β(s), where the spectral radius ρ is kept up to date by a power iteration of
Jacobian-vector products.
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

# A product is made after so many evaluations: a twentieth of the work, a product counted as two.
_EVALUATIONS_PER_PRODUCT = 40
# The power method finds the radius from below.
_SAFETY = 1.15


class StabilisedState(NamedTuple):
    """The field where the step starts, the spectral radius and its vector, and the work done.

    `estimated` counts the evaluations up to the last product, `step` is the size of the last step.
    """

    field: Float[Array, " size"]
    radius: Float[Array, ""]
    vector: Float[Array, " size"]
    estimated: Int[Array, ""]
    step: Float[Array, ""]
    work: Work


class Outcome(NamedTuple):
    """What a step made: y1 − y0, the field at y1, and the estimate of the error."""

    change: Float[Array, " size"]
    field: Float[Array, " size"]
    error: Float[Array, " size"]


def spectral_radius(
    product: Callable[[Array], Array],
    vector: Float[Array, " size"],
    guess: Float[Array, ""],
    *,
    tol: float = 0.001,
    most: int = 100,
) -> tuple[Float[Array, ""], Float[Array, " size"], Int[Array, ""]]:
    """The spectral radius of a symmetric linear map, from below, by the power method.

    It ends when ‖A v‖/‖v‖ changes by the share `tol` at most. A `guess` that proves right to a
    twentieth, at the first product, is not improved on.

    **Returns:** the radius, the normalised vector to go on from, and the number of products.
    """

    def unfinished(c):
        _, radius, change, count = c
        enough = jnp.where(count == 1, 0.05, tol)
        return (change > enough * radius) & (count < most)

    def one(c):
        v, before, _, count = c
        w = product(v)
        radius = jnp.linalg.norm(w)
        v = jnp.where(radius > 0, w / jnp.where(radius > 0, radius, 1.0), v)
        return v, radius, jnp.abs(radius - before), count + 1

    start = (_normalised(vector), guess, jnp.full_like(guess, jnp.inf), jnp.asarray(0))
    v, radius, _, count = jax.lax.while_loop(unfinished, one, start)
    return radius, v, count


def radius_at(field: Callable[[Array], Array], theta: Float[Array, " size"]) -> Array:
    """The spectral radius of the Jacobian of a field, to a few per cent."""
    product = lambda v: jax.jvp(field, (theta,), (v,))[1]
    noise = jax.random.normal(jax.random.key(0), theta.shape, theta.dtype)
    return spectral_radius(product, noise, jnp.zeros((), theta.dtype), tol=0.02)[0]


def _normalised(v: Array) -> Array:
    size = jnp.linalg.norm(v)
    return v / jnp.where(size > 0, size, 1.0)


class AbstractStabilised(diffrax.AbstractAdaptiveSolver[StabilisedState]):
    """What stabilised methods share: the field kept from step to step, the spectral radius, and the
    number of stages."""

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., diffrax.AbstractLocalInterpolation]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    @abc.abstractmethod
    def stages(self, z: Float[Array, ""]) -> Int[Array, ""]:
        """The least number of stages that is stable on [−z, 0]; 0 if there is none."""

    @abc.abstractmethod
    def advance(self, field: Callable, t0, h, y0, f0, stages: Int[Array, ""]) -> Outcome:
        """One step with that many stages, after which the field at its end is known."""

    def init(self, terms, t0, t1, y0, args) -> StabilisedState:
        flat, field = _flat(terms, y0, args)
        f0 = field(t0, flat)
        # The gradient has a large part along the stiff directions; noise, a part along all.
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

        # A step that is shorter than the last may follow a rejected one, of which nothing is left.
        due = evaluations - state.estimated >= _EVALUATIONS_PER_PRODUCT
        due = due | (h < 0.9 * state.step) | made_jump
        product = lambda v: jax.jvp(lambda y: field(t0, y), (flat,), (v,))[1]
        radius, vector, products = jax.lax.cond(
            due,
            lambda: spectral_radius(product, state.vector, state.radius),
            lambda: (state.radius, state.vector, jnp.asarray(0)),
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
            # A mode that outgrows the one that the power method has found shows in the error: a
            # little of it keeps the method from missing that.
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
    """y0 and the field as functions of flat vectors."""
    flat, unravel = ravel_pytree(y0)

    def field(t, y):
        # diffrax runs backwards in time by terms whose unit of control is −1.
        unit = terms.contr(jnp.zeros_like(t), jnp.ones_like(t))
        return ravel_pytree(terms.vf_prod(t, unravel(y), args, unit))[0]

    return flat, field
