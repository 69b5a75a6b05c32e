"""Smooth risks as functions of the flat vector θ of trained parameters, on the host."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from gflow.arguments import PyTree
from gflow.parameters import unflat

# Products of so many directions with the Hessian are made at once.
_AT_ONCE = 128


class FlatRisk(eqx.Module):
    """A risk as a function of θ."""

    risk: Callable[[Any], Any]
    trained: PyTree
    frozen: PyTree

    def net(self, theta: Float[np.ndarray, " size"]) -> Any:
        return eqx.combine(unflat(self.trained, jnp.asarray(theta)), self.frozen)

    def __call__(self, theta: Float[np.ndarray, " size"]) -> float:
        return float(self.risk(self.net(theta)))


class Expansion(NamedTuple):
    """The risk to second order at one θ. Parameters move along the orthonormal columns of
    `basis`."""

    value: float
    gradient: Float[np.ndarray, " size"]
    hessian: Float[np.ndarray, "size size"]
    basis: Float[np.ndarray, "size free"]


class Kink(NamedTuple):
    """z = 0 of a unit, of any layer, at a row of the data."""

    unit: int
    row: int


class FirstKink(NamedTuple):
    """The first kink on a step, and the fraction of the step at which it is met."""

    fraction: float = np.inf
    kink: Kink | None = None


class AbstractLandscape(abc.ABC):
    """A smooth risk."""

    @abc.abstractmethod
    def expansion(self, theta: Float[np.ndarray, " size"]) -> Expansion: ...

    def moved(
        self, theta: Float[np.ndarray, " size"], step: Float[np.ndarray, " size"]
    ) -> Float[np.ndarray, " size"]:
        """Where a step leads."""
        return theta + step

    @abc.abstractmethod
    def first_kink(
        self, theta: Float[np.ndarray, " size"], step: Float[np.ndarray, " size"]
    ) -> FirstKink:
        """The first kink between θ and θ + step."""


class SmoothLandscape(AbstractLandscape):
    """A risk as it is, with some entries of θ held."""

    def __init__(self, risk: FlatRisk, held: Bool[np.ndarray, " size"]):
        self.risk = risk
        self._basis = np.eye(len(held))[:, ~held]

    def expansion(self, theta: np.ndarray) -> Expansion:
        found = _expansion(self.risk, jnp.asarray(theta))
        # The second derivative of a ReLU at w = b = 0 may be undefined; such entries are held.
        value, gradient, hessian = map(np.asarray, found)
        hessian = np.where(np.isfinite(hessian), hessian, 0.0)
        return Expansion(float(value), gradient, hessian, self._basis)

    def first_kink(self, theta: np.ndarray, step: np.ndarray) -> FirstKink:
        return FirstKink()


@eqx.filter_jit
def _expansion(risk: FlatRisk, theta: Array):
    _, unravel = ravel_pytree(risk.trained)
    value = lambda p: risk.risk(eqx.combine(unravel(p), risk.frozen))
    product = lambda v: jax.jvp(jax.grad(value), (theta,), (v,))[1]
    directions = jnp.eye(len(theta), dtype=theta.dtype)
    if len(theta) <= _AT_ONCE:
        hessian = jax.vmap(product)(directions)
    else:
        hessian = jax.lax.map(product, directions, batch_size=_AT_ONCE)
    return *jax.value_and_grad(value)(theta), (hessian + hessian.T) / 2
