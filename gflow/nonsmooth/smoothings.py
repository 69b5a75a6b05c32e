"""Smoothings of ReLU networks whose gradients reach the generalized gradient."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow.activations import Activation, PiecewiseLinear, as_activation
from gflow.arguments import ArgumentError, Described, PyTree, RealScalar, positive
from gflow.networks import ShallowNet
from gflow.nonsmooth.gradients import generalized_gradient
from gflow.parameters import Net


class EventuallyExact(Activation):
    r"""A $C^1$ function R_r that approximates ReLU, or leaky ReLU of negative slope α,

    $$R_r(x) = \alpha x + (1-\alpha)\begin{cases} 0 & r x \le 1,\\
      (5 s^2 - 3 s^3)/r,\ s = r x - 1 & 1 < r x < 2,\\ x & r x \ge 2.\end{cases}$$

    The middle is the cubic Hermite interpolation. For every x, R_r(x) and R_r'(x) equal σ(x) and
    σ'(x), with σ'(0) = α, as soon as r > 2/|x| (for any r at 0), and 0 ≤ R_r' ≤ 25/9 for α = 0. So
    the family is admissible in the sense of Dereich, Do, Jentzen and Weber (arXiv 2501.15646).
    softplus(βx)/β is not: its slope at 0 is ½ for every β.

    It applies to arrays of any shape, as an activation of `ShallowNet`, `eqx.nn.MLP` and others.

    **Arguments:** `r`, a finite positive number; `negative_slope`, α.

    **Raises:** `ArgumentError` if `r` is not a finite positive number.
    """

    r: float = eqx.field(static=True)
    negative_slope: float = eqx.field(static=True)
    name: str = eqx.field(static=True)
    kinked: bool = eqx.field(static=True)
    homogeneous: bool = eqx.field(static=True)

    def __init__(self, r: RealScalar, negative_slope: float = 0.0):
        self.r = positive("r", r)
        self.negative_slope = float(negative_slope)
        self.name = f"smoothed {PiecewiseLinear(negative_slope).name}, r = {self.r:g}"
        self.kinked = False
        self.homogeneous = False

    def __call__(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        # Cases of z alone, so that flows see that the pieces meet smoothly.
        below = z < 2 / self.r
        s = jnp.where(below, self.r * z - 1, 1.0)
        middle = jnp.where(below, s**2 * (5 - 3 * s) / self.r, z)
        smoothed = jnp.where(z > 1 / self.r, middle, 0.0)
        return self.negative_slope * z + (1 - self.negative_slope) * smoothed

    def slope(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        s = jnp.clip(self.r * z - 1, 0.0, 1.0)
        return self.negative_slope + (1 - self.negative_slope) * s * (10 - 9 * s)


def smoothed(net: Net, r: RealScalar) -> Net:
    """The network with every ReLU and leaky ReLU replaced by its `EventuallyExact` smoothing.

    The replaced activations are the leaves `jax.nn.relu`, `jax.nn.leaky_relu` and
    `PiecewiseLinear` of the pytree, as in `ShallowNet`, `eqx.nn.MLP` and `eqx.nn.Lambda`. An
    activation that a method calls by name, or that is a static field, is not found. All smoothings
    have the slope α of the inactive side at 0, also that of `jax.nn.leaky_relu`, which itself has
    slope 1 there.

    **Arguments:** `net`, any pytree; `r` as in `EventuallyExact`.

    **Returns:** a network of the same structure.

    **Raises:** `ArgumentError` if the network has no such leaf, or r is not a finite positive
    number.
    """
    r = positive("r", r)
    found = [a for a in jax.tree.leaves(net, is_leaf=_is_activation) if _kinked(a) is not None]
    if not found:
        wanted = "a network that holds jax.nn.relu, jax.nn.leaky_relu or PiecewiseLinear as a field"
        raise ArgumentError("net", Described(f"a {type(net).__name__} without a ReLU"), wanted)

    def replaced(leaf):
        kinked = _kinked(leaf)
        return leaf if kinked is None else EventuallyExact(r, kinked.negative_slope)

    return jax.tree.map(replaced, net, is_leaf=_is_activation)


def _is_activation(leaf: Any) -> bool:
    return isinstance(leaf, Activation)


def _kinked(leaf: Any) -> PiecewiseLinear | None:
    activation = as_activation(leaf) if callable(leaf) else None
    if isinstance(activation, PiecewiseLinear) and activation.kinked:
        return activation
    return None


def smoothed_gradient(
    risk: Callable[[Any], Array],
    net: Net,
    r: RealScalar,
    trainable: Sequence[str] | PyTree | None = None,
) -> Net:
    r"""∇L_r(θ): the gradient of the risk of the network whose ReLUs are smoothed by R_r.

    It equals the generalized gradient G(θ) as soon as every positive preactivation is at least 2/r,
    by induction over the layers: for networks of any depth, and on kinks of several layers
    (Dereich, Do, Jentzen and Weber, arXiv 2501.15646; for one hidden layer Eberle, Jentzen, Riekert
    and Weiss, arXiv 2108.08106).

    **Arguments:** `risk`, `net` and `trainable` as in `generalized_gradient`; `r` as in
    `EventuallyExact`. `smoothed` says which activations are replaced.

    **Returns:** a network of the structure that `generalized_gradient` returns.

    **Raises:** `ArgumentError` as `smoothed` does.

    ??? example

        ```python
        risk = gflow.EmpiricalRisk(jnp.ones((1, 1)), jnp.ones(1))
        net = gflow.ShallowNet.from_arrays([[1.0]], [-1.0], [2.0], 0.0)  # on the kink
        assert gflow.smoothed_gradient(risk, net, r=10.0).w == 0
        ```
    """
    return generalized_gradient(lambda n: risk(smoothed(n, r)), net, trainable)


def lowered_biases(net: Net, eps: RealScalar) -> Net:
    r"""θ^ε: the network with the biases of hidden layer k of K lowered by $\varepsilon^{K+1-k}$.

    These are ε for one hidden layer, and ε² and ε for two: the biases of each layer move by much
    more than its inputs do. For small ε every preactivation that is 0 becomes negative, and no
    other changes its sign, so that with ReLU'(0) = 0

    $$\nabla L(\theta^\varepsilon) \to G(\theta), \qquad \varepsilon \to 0,$$

    with ordinary gradients on the left: G(θ) is a limiting Fréchet subgradient (Dereich, Do,
    Jentzen and Weber, arXiv 2501.15646). Without biases it need not be one.

    **Arguments:** `net`, a `ShallowNet` or `eqx.nn.MLP`; `eps`, ε in (0, 1).

    **Returns:** the network with the lowered biases.

    **Raises:** `ArgumentError` for other networks, for networks without biases in their hidden
    layers, and for ε outside (0, 1).
    """
    eps = positive("eps", eps)
    if eps >= 1:
        raise ArgumentError("eps", eps, "a number between 0 and 1")
    if isinstance(net, ShallowNet):
        where = lambda n: [n.b]
    elif isinstance(net, eqx.nn.MLP):
        where = lambda n: [layer.bias for layer in n.layers[:-1]]
    else:
        raise ArgumentError("net", Described(type(net).__name__), "a ShallowNet or an eqx.nn.MLP")
    biases: list[Array] = [b for b in where(net) if b is not None]
    if not biases or len(biases) < len(where(net)):
        raise ArgumentError("net", net, "a network with biases in its hidden layers")
    # With `scan`, an MLP stacks its inner layers, so that their biases have a leading axis.
    counts = [b.shape[0] if b.ndim == 2 else 1 for b in biases]
    steps = np.split(eps ** np.arange(sum(counts), 0, -1), np.cumsum(counts)[:-1])
    lowered = [
        b - jnp.asarray(e[:, None] if b.ndim == 2 else e, b.dtype) for b, e in zip(biases, steps)
    ]
    return eqx.tree_at(where, net, lowered)
