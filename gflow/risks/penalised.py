"""A risk and a penalty of the parameters."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gflow.arguments import ArgumentError, Described, PyTree, RealScalar, is_concrete, positive
from gflow.networks import ShallowNet
from gflow.risks.base import Risk


class Penalty(eqx.Module):
    r"""The sum of functions of a network and of its weight decay,
    $P(\theta) = \sum_k P_k(\theta) + \frac\lambda2 \|\theta\|^2$."""

    functions: tuple[Callable, ...]
    weight_decay: Float[Array, ""]

    def __call__(self, net: PyTree) -> Float[Array, ""]:
        """The penalty of the network."""
        arrays = [a for a in jax.tree.leaves(net) if eqx.is_inexact_array(a)]
        decay = self.weight_decay.astype(arrays[0].dtype)
        squares = [jnp.sum(a**2) for a in arrays]
        return decay / 2 * sum(squares) + sum(_value(function, net) for function in self.functions)

    @property
    def only_decays(self) -> bool:
        """Whether it is weight decay and nothing else."""
        return not self.functions

    def moves_zero_units(self, net: ShallowNet) -> Bool[Array, ""] | None:
        """Whether units with w = b = 0 have a slope; None if it is known that they have none."""
        return None if self.only_decays else _moves_zero_units(self, net)


@eqx.filter_jit
def _moves_zero_units(penalty: Penalty, net: ShallowNet) -> Bool[Array, ""]:
    zeros = lambda a: None if a is None else jnp.zeros_like(a)
    names = lambda n: (n.w, n.b)
    zero = eqx.tree_at(names, net, tuple(map(zeros, names(net))), is_leaf=lambda a: a is None)
    slope = eqx.filter_grad(penalty)(zero)
    return jnp.any(jnp.array([jnp.any(a != 0) for a in names(slope) if a is not None]))


class PenalisedRisk(Risk):
    r"""A risk plus a penalty of the parameters,

    $$L(\theta) + P(\theta) + \frac\lambda2 \|\theta\|^2 .$$

    **Arguments:**

    - `risk`: L, any risk or other function of the network to a scalar.
    - `penalty`: P, a function of the network to a scalar that is twice continuously differentiable:
      `lambda net: jnp.sum(net.w**4)`. An equinox module can hold arrays, which are traced.
    - `weight_decay`: λ, not negative. The norm is over all floating-point arrays of the network,
      biases included; those that are not trained add a constant. The flow of the penalty alone is
      $\dot\theta = -\lambda\theta$.

    Kinks are those of `risk`: where `solve_flow` locates them, it does so with the penalty, whose
    gradient is continuous there. Kinks of P itself, as of $|w|$, are not located. `refine`,
    `clarke_gradient`, `descend` with minibatches and all others take it like `risk`, too.

    The fields `risk` and `penalty` are the two parts, functions of the network:
    `observe={"data": r.risk, "penalty": r.penalty}`. A penalty of a penalised risk is added to the
    first one.

    **Raises:** `ArgumentError` for a penalty that is no function to a real scalar, and a
    `weight_decay` that is negative or not finite.

    ??? example

        ```python
        risk = gflow.EmpiricalRisk(jnp.array([[1.0], [2.0]]), jnp.array([1.0, 0.0]))
        net = gflow.ShallowNet.from_arrays([[1.0]], [0.0], [2.0], 1.0)
        penalised = gflow.PenalisedRisk(risk, weight_decay=0.1)
        assert penalised(net) == risk(net) + 0.05 * 6
        ```
    """

    risk: Callable
    penalty: Penalty

    def __init__(
        self,
        risk: Callable[[Any], Array],
        penalty: Callable[[Any], Any] | None = None,
        *,
        weight_decay: RealScalar = 0.0,
    ):
        for name, function in (("risk", risk), ("penalty", penalty)):
            if not callable(function) and (name, function) != ("penalty", None):
                raise ArgumentError(name, function, "a function of the network to a scalar")
        functions = () if penalty is None else (_as_pytree(penalty),)
        decay = weight_decay
        if is_concrete(decay):
            decay = jax.device_put(
                np.asarray(positive("weight_decay", decay, or_zero=True), jnp.result_type(float))
            )
        if isinstance(risk, PenalisedRisk):
            functions = risk.penalty.functions + functions
            decay = risk.penalty.weight_decay + decay
        self.risk = _as_pytree(without_penalty(risk))
        self.penalty = Penalty(functions, jnp.asarray(decay))

    def __call__(self, net: Callable[[Any], Array]) -> Float[Array, ""]:
        return self.risk(net) + self.penalty(net)

    @property
    def num_data(self) -> int:
        """That of `risk`, if it has one."""
        return self.risk.num_data  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def minibatch(self) -> Callable[[Any, Int[Array, " batch"]], Array]:
        """That of `risk`, if it has one, and the penalty."""
        of_data = self.risk.minibatch  # pyright: ignore[reportFunctionMemberAccess]
        return lambda net, rows: of_data(net, rows) + self.penalty(net)


def without_penalty(risk: Any) -> Any:
    """The risk, without its penalty if it has one."""
    return risk.risk if isinstance(risk, PenalisedRisk) else risk


def penalty_of(risk: Any) -> Penalty | None:
    """The penalty of a `PenalisedRisk`, None of others."""
    return risk.penalty if isinstance(risk, PenalisedRisk) else None


def _as_pytree(function: Callable) -> Callable:
    """A function that `jax.jit` and `jax.vmap` take as an argument, too."""
    if isinstance(function, functools.partial):
        if isinstance(function, jax.tree_util.Partial):
            return function
        return jax.tree_util.Partial(function.func, *function.args, **function.keywords)
    is_leaf = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if is_leaf else function


def _value(function: Callable, net: PyTree) -> Float[Array, ""]:
    value = function(net)
    if not eqx.is_array_like(value) or np.shape(value) != ():
        got = f"values of shape {np.shape(value)}" if eqx.is_array_like(value) else repr(value)
        raise ArgumentError("penalty", Described(got), "a real scalar for a network")
    return jnp.asarray(value)
