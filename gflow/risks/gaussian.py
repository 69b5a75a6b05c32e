"""The exact population risk for standard normal input and a teacher network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.activations import PiecewiseLinear, SmoothActivation
from gflow.arguments import ArgumentError, Described, finite_entries, is_concrete
from gflow.networks import ShallowNet
from gflow.risks.base import Risk
from gflow.risks.gaussian_kernels import erf_means, erf_pairs, relu_means, relu_pairs


class GaussianRisk(Risk):
    r"""The population risk of a student network for standard normal input and a teacher network,

    $$L(\theta) = E\,\|N_\theta(X) - N_{\text{teacher}}(X)\|^2, \qquad X \sim N(0, I_d),$$

    in closed form, without sampling, for `ShallowNet`s of any width and input size, with or without
    biases, with scalar or vector output. The activations of both are piecewise linear (ReLU, leaky
    ReLU, identity, of any slopes), or both are erf.

    For units $z = \langle u, X\rangle$, $z' = \langle v, X\rangle$ with the angle $\varphi$
    between u and v (Cho and Saul, Kernel methods for deep learning, 2009),

    $$E[\mathrm{relu}(z)\,\mathrm{relu}(z')] = \frac{\|u\|\|v\|}{2\pi}
      \bigl(\sin\varphi + (\pi - \varphi)\cos\varphi\bigr);$$

    Biases lead to the bivariate normal distribution (with errors of 2e-16), and erf to the arcsine
    of Saad and Solla (Phys. Rev. E 52, 1995). Time is O(W² d) and memory O(W²) for W units of
    student and teacher together.

    The gradient and Hessian-vector products of JAX are closed forms as well, also at aligned,
    opposite and zero weights and at the teacher itself. ReLU'(0) = 0: a unit with w = 0 and b = 0
    (or None) has zero gradient in w and b and remains so, as in the class of flows that the theory
    proves unique.

    The terms of the risk cancel near the teacher: its error is about 1e-16 of
    $\sum_{ij} |a_i a_j| E|\sigma(z_i)\sigma(z_j)|$ over all units of student and teacher. Smaller
    values are rounding errors, and can be negative. At the teacher the gradient is zero up to
    rounding of the same relative size.

    **Arguments:**

    - `teacher`: a `ShallowNet`.

    **Raises:** `ArgumentError` (a `ValueError`) for a teacher or a network without closed form, and
    for networks whose input or output size is not the teacher's.

    ??? example

        ```python
        teacher = gflow.ShallowNet(5, 2, key=jax.random.key(0), use_bias=False)
        student = gflow.ShallowNet(5, 8, key=jax.random.key(1), use_bias=False)
        gflow.GaussianRisk(teacher)(student)
        ```
    """

    teacher: ShallowNet

    def __init__(self, teacher: Any):
        _check_network("teacher", teacher)
        self.teacher = teacher

    def __call__(self, net: Any) -> Float[Array, ""]:
        teacher = self.teacher
        _check_network("net", net)
        _check_pair(net, teacher)
        biased = net.b is not None or teacher.b is not None
        student, teacher = _unit_sum(net, biased), _unit_sum(teacher, biased)
        if isinstance(net.activation, PiecewiseLinear):
            return _piecewise_linear_risk(student, teacher)
        return _erf_risk(student, teacher)


class _UnitSum(NamedTuple):
    """A network c + Σ a_i σ(⟨w_i, X⟩ + b_i), where a includes the output scale.

    `slope` is σ' on the inactive side; b is None if neither student nor teacher has biases.
    """

    w: Float[Array, "width in"]
    b: Float[Array, " width"] | None
    a: Float[Array, "width out"]
    c: Float[Array, " out"]
    slope: float


def _unit_sum(net: ShallowNet, biased: bool) -> _UnitSum:
    a = net.output_scale * net.v.reshape(net.width, -1)
    b = jnp.zeros_like(net.w[:, 0]) if biased and net.b is None else net.b
    c = jnp.zeros_like(a[0]) if net.c is None else net.c.reshape(-1)
    return _UnitSum(net.w, b, a, c, getattr(net.activation, "negative_slope", 0.0))


def _piecewise_linear_risk(student: _UnitSum, teacher: _UnitSum) -> Array:
    """By σ(z) = αz + (1 − α) relu(z), a network is a constant, a linear function and relus of X."""
    (relus, *rest), (relus2, *rest2) = (_split(units) for units in (student, teacher))
    constant, linear = (one - two for one, two in zip(rest, rest2))
    risk = _quadratic(relu_pairs, relus, relus2) + jnp.sum(constant**2) + jnp.sum(linear**2)
    for units, sign in ((relus, 2), (relus2, -2)):
        mean, with_x = relu_means(units.w, units.b)
        cross = jnp.sum((mean @ units.a) * constant) + jnp.sum((with_x.T @ units.a) * linear)
        risk = risk + sign * cross
    return risk


def _split(units: _UnitSum) -> tuple[_UnitSum, Array, Array]:
    """The relus of the network, its constant (out,), and its linear part (in, out)."""
    slope = units.slope
    constant = units.c if units.b is None else units.c + slope * (units.b @ units.a)
    linear = slope * (units.w.T @ units.a)
    return units._replace(a=(1 - slope) * units.a), constant, linear


def _erf_risk(student: _UnitSum, teacher: _UnitSum) -> Array:
    constant = student.c - teacher.c
    means = [erf_means(units.w, units.b) @ units.a for units in (student, teacher)]
    cross = 2 * jnp.sum((means[0] - means[1]) * constant)
    return _quadratic(erf_pairs, student, teacher) + jnp.sum(constant**2) + cross


def _quadratic(pairs: Callable, student: _UnitSum, teacher: _UnitSum) -> Array:
    """E ‖Σ a_i σ(z_i) − Σ a*_k σ(z*_k)‖²."""
    join = lambda one, two: None if one is None else jnp.concatenate([one, two])
    rows = pairs(student.w, student.b, join(student.w, teacher.w), join(student.b, teacher.b))
    fixed = pairs(teacher.w, teacher.b, teacher.w, teacher.b)
    # E[σ(z) (N − N_teacher)] for the units of both networks. It is small near the teacher, so the
    # sums of the last line do not cancel there.
    error = rows @ join(student.a, -teacher.a)
    error2 = rows[:, student.w.shape[0] :].T @ student.a - fixed @ teacher.a
    return jnp.sum(student.a * error) - jnp.sum(teacher.a * error2)


def _check_network(name: str, net: Any) -> None:
    if not isinstance(net, ShallowNet):
        raise ArgumentError(name, Described(type(net).__name__), "a ShallowNet")
    if not isinstance(net.activation, PiecewiseLinear) and not _is_erf(net):
        raise ArgumentError(
            name,
            Described(f"activation {net.activation.name}"),
            "relu, leaky_relu, identity or erf, which have closed forms",
        )
    if name == "teacher" and is_concrete(net):
        for field in "wbvc":
            value = getattr(net, field)
            if value is not None:
                finite_entries(f"teacher.{field}", np.asarray(value))


def _is_erf(net: ShallowNet) -> bool:
    activation = net.activation
    return isinstance(activation, SmoothActivation) and activation.function is jax.scipy.special.erf


def _check_pair(net: ShallowNet, teacher: ShallowNet) -> None:
    if net.in_size != teacher.in_size:
        got = Described(f"a network of {net.in_size} inputs")
        raise ArgumentError("net", got, f"{teacher.in_size}, as for the teacher")
    if net.out_size != teacher.out_size:
        got = Described(f"out_size={net.out_size!r}")
        raise ArgumentError("net", got, f"out_size={teacher.out_size!r}, as for the teacher")
    if _is_erf(net) != _is_erf(teacher):
        got = Described(f"activation {net.activation.name}")
        raise ArgumentError(
            "net", got, f"one with a closed form beside the teacher's {teacher.activation.name}"
        )
