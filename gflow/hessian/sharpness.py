"""The largest Hessian eigenvalue, matrix-free."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.arguments import PyTree, is_concrete
from gflow.hessian.spectrum import Hessian, hessian_columns, hessian_product, not_finite
from gflow.hessian.traced import largest_eigenvalue
from gflow.parameters import split_trainable

_DENSE_UP_TO = 64


def sharpness(
    risk: Callable[[Any], Array],
    net: PyTree,
    trainable: Sequence[str] | PyTree | None = None,
    *,
    tol: float = 1e-8,
) -> float | Float[Array, ""]:
    """λ_max(∇²L(θ)), the largest eigenvalue of the Hessian in the trained parameters.

    Gradient descent with step size h is linearly stable for h < 2/sharpness. The Hessian of a ReLU
    network is that of the fixed activation pattern, which is the Hessian away from kinks.

    It is computed by implicitly restarted Lanczos iteration (ARPACK) on Hessian-vector products,
    from a fixed start, to the relative accuracy `tol`. Beyond 64 parameters the Hessian is never
    formed. `hessian_spectrum` needs as many products, which are cheaper for large networks, but it
    takes longer to compile.

    **Returns:** a number; under `jax.jit`, `jax.vmap` and `jax.lax.map` an array, by Lanczos
    iteration with thick restarts to the same accuracy.

    **Raises:** `ArgumentError` if the Hessian is NaN or infinite.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    hessian = Hessian(risk, *split_trainable(net, trainable))
    theta = hessian.theta
    size = theta.size
    start = np.random.default_rng(0).normal(size=size).astype(theta.dtype)
    first = hessian_product(hessian, jnp.asarray(start))
    if not is_concrete(first):
        return _traced(hessian, start, tol)
    if not np.isfinite(first).all():
        raise not_finite()
    product = lambda v: np.asarray(hessian_product(hessian, jnp.asarray(v)))
    if size <= _DENSE_UP_TO:
        matrix = np.stack([product(row) for row in np.eye(size, dtype=theta.dtype)])
        return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])
    if not np.any(first):
        return 0.0
    # SciPy's annotations lack the constructor and fractional tolerances.
    operator = LinearOperator((size, size), matvec=product, dtype=np.dtype(theta.dtype))  # pyright: ignore
    values = eigsh(operator, k=1, which="LA", v0=start, tol=tol, return_eigenvectors=False)  # pyright: ignore
    return float(values[0])


def _traced(hessian: Hessian, start: np.ndarray, tol: float) -> Float[Array, ""]:
    if start.size > _DENSE_UP_TO:
        return largest_eigenvalue(hessian, jnp.asarray(start), tol=tol)
    matrix = hessian_columns(hessian)
    return jnp.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]
