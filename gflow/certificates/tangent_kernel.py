r"""The tangent kernel of a network on the data of a risk, and Polyak–Łojasiewicz constants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from gflow.arguments import ArgumentError, Described, PyTree
from gflow.display import Shown
from gflow.parameters import split_trainable
from gflow.risks import EmpiricalRisk, penalty_of
from gflow.risks.empirical import squared_loss
from gflow.trajectory import Trajectory, single_trajectory


def tangent_kernel(
    risk: Callable[[Any], Array], net: PyTree, trainable: Sequence[str] | PyTree | None = None
) -> Float[Array, "outputs outputs"]:
    r"""The neural tangent kernel of a network on the rows of a risk, as a matrix,

    $$K = J J^\top, \qquad
      J = \frac{\partial (N_\theta(x_1), \dots, N_\theta(x_n))}{\partial\theta},$$

    in the trained parameters (Jacot, Gabriel and Hongler, arXiv 1806.07572). Along the gradient
    flow of the mean of squares, the residuals $e_k = N(x_k) - y_k$ follow $\dot e = -\frac2n K e$.

    **Arguments:** `risk`: an `EmpiricalRisk`; `net`, `trainable`: as in `solve_flow`.

    **Returns:** K, of shape (n, n), or (n·k, n·k) for output of shape (k,), rows of one datum
    together. ReLU'(0) = 0. Jittable and vmappable.

    **Raises:** `ArgumentError` for other risks.
    """
    jacobian = output_jacobian(risk, net, trainable)
    return jacobian @ jacobian.T


def output_jacobian(
    risk: Any, net: PyTree, trainable: Sequence[str] | PyTree | None = None
) -> Float[Array, "outputs parameters"]:
    """The Jacobian of all outputs on the rows of the risk in the trained parameters."""
    if not isinstance(risk, EmpiricalRisk):
        wanted = "an EmpiricalRisk" + "; `risk.risk` is the one without its penalty" * (
            penalty_of(risk) is not None
        )
        raise ArgumentError("risk", Described(type(risk).__name__), wanted)
    trained, frozen = split_trainable(net, trainable)
    theta, unravel = ravel_pytree(trained)
    outputs = lambda p: risk.predictions(eqx.combine(unravel(p), frozen)).reshape(-1)
    return jax.jacrev(outputs)(theta)


def tangent_kernel_min_eigenvalue(
    risk: Callable[[Any], Array], net: PyTree, trainable: Sequence[str] | PyTree | None = None
) -> Float[Array, ""]:
    """λ_min(K) of the `tangent_kernel`.

    It is computed from the singular values of J: √λ_min(K) has an error of a few roundings of ‖J‖,
    so that small eigenvalues keep their digits. Jittable and vmappable.
    """
    return _min_eigenvalue(output_jacobian(risk, net, trainable))


def _min_eigenvalue(jacobian: Float[Array, "outputs parameters"]) -> Float[Array, ""]:
    rows, columns = jacobian.shape
    if rows > columns:
        return jnp.zeros((), jacobian.dtype)
    return jnp.linalg.svd(jacobian, compute_uv=False)[-1] ** 2


@dataclass(frozen=True, repr=False, eq=False)
class PLConstants(Shown):
    """The Polyak–Łojasiewicz ratio along a trajectory.

    - `ts`, shape (times,): the saved times.
    - `ratio`, shape (times,): ‖∇L‖²/L, inf where L = 0. Along the flow d log L / dt = −‖∇L‖²/L, so
      it is the rate at which the risk falls.
    - `kernel_bound`, shape (times,): the lower bound 4 λ_min(Ω^{1/2} K Ω^{1/2}) of the ratio, with
      the weights Ω = diag(ω) of the rows; (4/n) λ_min(K) for equal weights. None unless the risk is
      an `EmpiricalRisk` with squared loss.
    """

    ts: np.ndarray
    ratio: np.ndarray
    kernel_bound: np.ndarray | None

    @property
    def min_ratio(self) -> float:
        """The smallest ratio over the saved times. L falls at least like e^{−min_ratio·t} if the
        ratio is not smaller between them."""
        return float(np.min(self.ratio))

    def title(self) -> str:
        """At how many times."""
        return f"PLConstants at {len(self.ts)} times"

    def summary(self) -> dict[str, str]:
        """The main facts in words, by name."""
        k, ratio, bound = int(np.argmin(self.ratio)), self.ratio, self.kernel_bound
        smallest = f"minimum {self.min_ratio:.4g} at t = {self.ts[k]:.4g}"
        facts = {"‖∇L‖²/L": f"{ratio[0]:.4g} → {ratio[-1]:.4g}, {smallest}"}
        if bound is not None:
            change = f"{bound[0]:.4g} → {bound[-1]:.4g}, minimum {np.min(bound):.4g}"
            facts["(4/n) λ_min(K)"] = change
        return facts


def pl_constants(
    risk: Callable[[Any], Array],
    trajectory: Trajectory,
    trainable: Sequence[str] | PyTree | None = None,
) -> PLConstants:
    """The ratio ‖∇L‖²/L at the saved times of a trajectory, and the bound from the tangent kernel.

    **Arguments:** `risk`, `trainable`: those of the trajectory. ‖∇L‖ is the gradient norm that the
    trajectory recorded; if its kinks were located, that of the minimal-norm Clarke element.

    **Returns:** `PLConstants`. Runs on the host, so not under `jax.jit`.
    """
    trajectory = single_trajectory("trajectory", trajectory)
    risks, norms = np.asarray(trajectory.risk, float), np.asarray(trajectory.grad_norm, float)
    ratio = np.divide(norms**2, risks, out=np.full(len(risks), np.inf), where=risks > 0)
    bound = None
    if isinstance(risk, EmpiricalRisk) and risk.loss is squared_loss:
        bound = np.asarray(_kernel_bounds(risk, trajectory.params, trainable))
    return PLConstants(np.asarray(trajectory.ts), ratio, bound)


@eqx.filter_jit
def _kernel_bounds(risk: EmpiricalRisk, nets: PyTree, trainable) -> Float[Array, " times"]:
    arrays, rest = eqx.partition(nets, eqx.is_array)

    def bound(part):
        jacobian = output_jacobian(risk, eqx.combine(part, rest), trainable)
        outputs = jacobian.shape[0] // risk.num_data
        if risk.weights is None:
            return 4 * _min_eigenvalue(jacobian) / risk.num_data
        return 4 * _min_eigenvalue(jnp.sqrt(jnp.repeat(risk.weights, outputs))[:, None] * jacobian)

    return jax.lax.map(bound, arrays)
