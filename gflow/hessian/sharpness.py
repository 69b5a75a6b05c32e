"""The largest Hessian eigenvalue, matrix-free."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow.arguments import PyTree
from gflow.hessian.spectrum import Hessian, hessian_product
from gflow.parameters import split_trainable

_DENSE_UP_TO = 64


def sharpness(
    risk: Callable[[Any], Array],
    net: PyTree,
    trainable: Sequence[str] | PyTree | None = None,
    *,
    tol: float = 1e-8,
) -> float:
    """λ_max(∇²L(θ)), the largest eigenvalue of the Hessian in the trained parameters.

    Gradient descent with step size h is linearly stable for h < 2/sharpness. The Hessian of a ReLU
    network is that of the fixed activation pattern, which is the Hessian away from kinks.

    It is computed by implicitly restarted Lanczos iteration (ARPACK) on Hessian-vector products,
    from a fixed start, to the relative accuracy `tol`. Beyond 64 parameters the Hessian is never
    formed. `hessian_spectrum` needs as many products, which are cheaper for large networks, but it
    takes longer to compile. Runs on the host, so not under `jax.jit`.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    hessian = Hessian(risk, *split_trainable(net, trainable))
    theta = hessian.theta
    product = lambda v: np.asarray(hessian_product(hessian, jnp.asarray(v)))
    size = theta.size
    if size <= _DENSE_UP_TO:
        matrix = np.stack([product(row) for row in np.eye(size, dtype=theta.dtype)])
        return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
    start = np.random.default_rng(0).normal(size=size).astype(theta.dtype)
    if not product(start).any():
        return 0.0
    # SciPy's annotations lack the constructor and fractional tolerances.
    operator = LinearOperator((size, size), matvec=product, dtype=np.dtype(theta.dtype))  # pyright: ignore
    values = eigsh(operator, k=1, which="LA", v0=start, tol=tol, return_eigenvectors=False)  # pyright: ignore
    return float(values[0])
