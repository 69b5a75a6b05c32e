"""Derivatives of risks by automatic differentiation."""

import equinox as eqx
import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from gflow.parameters import split_trainable


@eqx.filter_jit
def risk_and_gradient(risk, net):
    return jax.value_and_grad(lambda n: risk(n))(net)


@eqx.filter_jit
def hessian_product(risk, net, direction):
    return jax.jvp(jax.grad(lambda n: risk(n)), (net,), (direction,))[1]


def hessian(risk, net, trainable=None) -> np.ndarray:
    trained, frozen = split_trainable(net, trainable)
    theta, unravel = ravel_pytree(trained)
    return np.asarray(jax.hessian(lambda t: risk(eqx.combine(unravel(t), frozen)))(theta))
