"""The minimal-norm element of the Clarke subdifferential of a risk on data."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from gflow.arguments import ArgumentError, Described, PyTree, RealScalar, is_concrete, positive
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.deep.subdifferential import minimal_element
from gflow.nonsmooth.gradients import generalized_gradient
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.nonsmooth.shallow.subdifferential import with_minimal_blocks
from gflow.parameters import Net, split_trainable
from gflow.risks import EmpiricalRisk, without_penalty


def clarke_gradient(
    risk: Callable[[Any], Array],
    net: Net,
    *,
    tol: RealScalar | None = None,
    trainable: Sequence[str] | PyTree | None = None,
) -> Net:
    r"""The minimal-norm element of the Clarke subdifferential of the risk,

    $$\arg\min\{\|g\| : g \in \partial^\circ L(\theta)\}, \qquad
      \partial^\circ L(\theta) = \mathrm{conv}\{\lim \nabla L(\theta_k) : \theta_k \to \theta\},$$

    for any network with smooth loss: the kinks of all its layers are found in its own computation.
    Where no preactivation of a kink is 0 it is the gradient. Minus it is the velocity of
    `solve_flow` along slides, except that the flow keeps units with w = b = 0 where they are. The
    generalized gradient always takes the inactive side: it need not vanish at critical points on
    kinks, and can vanish where the risk is smooth and has a slope.

    It is zero exactly at the Clarke critical points. Otherwise −g/‖g‖ is a direction of descent:
    along it the risk falls at a rate of at least ‖g‖.

    **Arguments:**

    - `risk`: an `EmpiricalRisk`, or a `PenalisedRisk` of one. `net`: any network.
    - `tol`: preactivations count as 0 up to |z_in| ≤ tol · ‖(x_n, 1)‖ · max_j ‖(w_j, b_j)‖ (x_n and
      w_j without biases) for a `ShallowNet`; up to tol times the largest |z| of the unit on the
      data for other networks, or a thousandth of the largest of its layer if that is more. By
      default 1e-9 for float64 parameters, 1e-5 for float32.
    - `trainable`: as in `solve_flow`.

    **Returns:** a network of the same structure that holds the element, None where a leaf is not
    trained.

    **What is exact.** Equal rows have one kink. If the normals ∇z of all ties are linearly
    independent, every side of each occurs with every side of the others. Within one layer the
    minimum is then that over weights λ in [0, 1] of the active sides. Slopes of several layers in
    one row multiply, so that gradients with all λ are no convex set; the minimum is that over the
    hull of the patterns, which is larger. Where the minimum over their span has weights in [0, 1],
    as on slides, it is the minimum over both.

    Where normals are dependent (a unit with w = b = 0, opposite rows without biases, rows on which
    all lower units are inactive) only the patterns that occur are allowed. In one layer this is
    exact. Across layers these are the patterns that occur to first order. Kinks that touch can have
    more: then this is a subset of the subdifferential, and the norm can be too large. Where the
    patterns are too many to list (some thousands in one group of ties), all λ in [0, 1] are
    allowed, with a warning: a superset, so that the norm can be too small.

    The minimum over λ is found by an active-set method, that over listed patterns by Wolfe's
    algorithm (to about 1e-8 of the largest gradient); both run on the host, not under `jax.jit`.

    By the chain rule for subdifferentials (Lyu and Li, arXiv 1906.05890; Davis, Drusvyatskiy,
    Kakade and Lee, Found. Comput. Math. 2020), a curve with dθ/dt ∈ −∂°L(θ) moves with minus this
    element at almost all times. The generalized gradient is that of Eberle, Jentzen, Riekert and
    Weiss (arXiv 2108.08106).

    **Raises:** `ArgumentError` for other risks, for traced arrays, and if `tol` is not a finite
    number of at least zero.

    ??? example

        ```python
        risk = gflow.EmpiricalRisk(jnp.array([[1.0], [-1.0]]), jnp.array([1.0, -1.0]))
        net = gflow.ShallowNet.from_arrays([[0.0]], None, [1.0], None)
        # The risk, as a function of w, is ((w − 1)² + 1)/2 on both sides of w = 0.
        assert gflow.generalized_gradient(risk, net).w == 0
        assert gflow.clarke_gradient(risk, net).w == -1
        ```
    """
    trained, frozen = split_trainable(net, trainable)
    tol = _checked(risk, net, trained, tol)
    gradient = generalized_gradient(risk, net, trainable)
    shallow = ShallowPatternRisk.of(risk, trained, frozen)
    if shallow is not None:
        return with_minimal_blocks(shallow, gradient, tol)
    deep = DeepPatternRisk.of(risk, trained, frozen)
    if deep is None:
        return gradient
    theta, unravel = ravel_pytree(trained)
    found = minimal_element(deep, np.asarray(theta), tol)
    return gradient if found is None else unravel(jnp.asarray(found, theta.dtype))


def _checked(risk: Any, net: Any, trained: PyTree, tol: RealScalar | None) -> float:
    if not isinstance(without_penalty(risk), EmpiricalRisk):
        raise ArgumentError("risk", Described(type(risk).__name__), "an EmpiricalRisk")
    if not callable(net):
        raise ArgumentError("net", Described(type(net).__name__), "a network that can be called")
    if not is_concrete(risk, net):
        raise ArgumentError("net", Described("traced arrays"), "known ones: outside jax.jit")
    if tol is None:
        return 1e-9 if jax.tree.leaves(trained)[0].dtype == jnp.float64 else 1e-5
    return positive("tol", tol, or_zero=True)
