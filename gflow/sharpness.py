"""The largest Hessian eigenvalue, matrix-free."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from gflow.networks import split_trainable

_DENSE_UP_TO = 64


def sharpness(
    risk: Callable[[Any], Array],
    net: PyTree,
    trainable: Sequence[str] | PyTree | None = None,
    *,
    tol: float = 1e-8,
) -> float:
    """λ_max(∇²L(θ)), the largest eigenvalue of the Hessian in the trained parameters.

    Gradient descent of step size h is linearly stable while h < 2/sharpness. The Hessian of a
    ReLU network is that of the fixed activation pattern, which is the Hessian away from kinks.

    By implicitly restarted Lanczos iteration (ARPACK) on Hessian-vector products, from a fixed
    start, to the relative accuracy `tol`; the Hessian is never formed beyond 64 parameters. Runs on
    the host, so not under `jax.jit`.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    trained, frozen = split_trainable(net, trainable)
    theta, _ = ravel_pytree(trained)
    product = lambda v: np.asarray(_hessian_product(risk, trained, frozen, jnp.asarray(v)))
    size = theta.size
    if size <= _DENSE_UP_TO:
        hessian = np.stack([product(row) for row in np.eye(size, dtype=theta.dtype)])
        return float(np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1])
    start = np.random.default_rng(0).normal(size=size).astype(theta.dtype)
    if not product(start).any():
        return 0.0
    # SciPy's annotations know neither the constructor nor a fractional tolerance.
    operator = LinearOperator((size, size), matvec=product, dtype=np.dtype(theta.dtype))  # pyright: ignore
    values = eigsh(operator, k=1, which="LA", v0=start, tol=tol, return_eigenvectors=False)  # pyright: ignore
    return float(values[0])


@eqx.filter_jit
def _hessian_product(risk, trained, frozen, v: Array) -> Array:
    theta, unravel = ravel_pytree(trained)
    gradient = jax.grad(lambda p: risk(eqx.combine(unravel(p), frozen)))
    return jax.jvp(gradient, (theta,), (v,))[1]
