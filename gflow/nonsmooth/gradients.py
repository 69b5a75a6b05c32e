"""Gradients of a risk in the parameters of a network."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.arguments import PyTree
from gflow.parameters import Net, split_trainable


def generalized_gradient(
    risk: Callable[[Any], Array], net: Net, trainable: Sequence[str] | PyTree | None = None
) -> Net:
    r"""The generalized gradient G(θ), with ReLU'(0) = 0.

    For the squared loss and a `ShallowNet` with scalar output, on data of weights $\omega_k$ with
    residuals $r_k = N(x_k) - y_k$ and the active rows $I_i = \{k : z_{ik} > 0\}$ of unit i,

    $$G_{w_i} = 2 s v_i \sum_{k\in I_i} \omega_k r_k x_k, \quad
      G_{b_i} = 2 s v_i \sum_{k\in I_i} \omega_k r_k, \quad
      G_{v_i} = 2 s \sum_k \omega_k r_k \max(z_{ik}, 0), \quad
      G_c = 2 \sum_k \omega_k r_k.$$

    It is the limit of gradients of smoothed risks and a limiting Fréchet subgradient (Eberle,
    Jentzen, Riekert and Weiss, arXiv 2108.08106; Dereich, Do, Jentzen and Weber, arXiv 2501.15646).
    It equals the gradient where no preactivation is 0, and, with biases, wherever the risk is
    differentiable.

    **Arguments:** `risk`, any function of the network to a scalar; `net`; `trainable` as in
    `solve_flow`.

    **Returns:** a network of the same structure that holds the gradient, None where a leaf is not
    trained.
    """
    trained, frozen = split_trainable(net, trainable)
    return jax.grad(lambda p: risk(eqx.combine(p, frozen)))(trained)


def norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm over all array entries of a pytree."""
    return jnp.sqrt(squared_norm(tree))


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """The sum of squares over all array entries of a pytree."""
    leaves = [a for a in jax.tree.leaves(tree) if eqx.is_inexact_array(a)]
    return jnp.asarray(sum(jnp.sum(a**2) for a in leaves))
