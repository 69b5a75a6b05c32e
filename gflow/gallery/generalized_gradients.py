r"""Generalized gradients are limits of gradients of smoothings, and of gradients nearby.

Let $R_r$ be $C^1$ and agree with ReLU and its slope (0 at 0) at every point from some r on. The
gradients of the smoothed risks reach G(θ), at any depth, also on kinks of several layers.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import Claim, Exhibit, at_least, at_most, equal, panels

SOURCE = "Dereich, Do, Jentzen, Weber, arXiv 2501.15646"
SCALES = 2.0 ** np.arange(0, 15)
LOWERED = 10.0 ** -np.arange(1.0, 7.0)
ROWS = np.array([[-1.0], [0.0], [0.5], [2.0]])


def _on_kinks(depth: int) -> eqx.nn.MLP:
    """A network with small integers for weights, so that rows are on kinks of all layers."""
    net = eqx.nn.MLP(1, "scalar", 4, depth, key=jax.random.key(2))
    whole = lambda a: jnp.round(3 * a) if eqx.is_inexact_array(a) else a
    return jax.tree.map(whole, net)


def _distance(a, b) -> float:
    leaves = lambda tree: jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return float(
        sum(jnp.sum((x - y) ** 2) for x, y in zip(leaves(a), leaves(b), strict=True)) ** 0.5
    )


def _softplus(net: eqx.nn.MLP, beta: float) -> eqx.nn.MLP:
    return eqx.tree_at(lambda n: n.activation, net, lambda x: jax.nn.softplus(beta * x) / beta)


def exhibit(*, long: bool = False) -> Exhibit:
    """Two layers, and four if it is long."""
    risk = gflow.EmpiricalRisk(ROWS, jnp.asarray([1.0, -1.0, 2.0, 0.5]))
    claims: list[Claim] = []
    figure, (axes,) = panels(1)
    for depth in (2, 4) if long else (2,):
        net = _on_kinks(depth)
        gradient = gflow.generalized_gradient(risk, net)
        admissible = [_distance(gflow.smoothed_gradient(risk, net, r), gradient) for r in SCALES]
        softplus = [_distance(eqx.filter_grad(risk)(_softplus(net, b)), gradient) for b in SCALES]
        nearby = [
            _distance(gflow.generalized_gradient(risk, gflow.lowered_biases(net, eps)), gradient)
            for eps in LOWERED
        ]
        claims += [
            at_most(f"{depth} layers: smoothings reach G(θ)", SOURCE, 0.0, admissible[-1]),
            at_most("G(θ) is a limit of gradients: distance", SOURCE, 1e-4, nearby[-1]),
            at_least("softplus(βx)/β is not admissible: distance", SOURCE, 1e-2, softplus[-1]),
        ]
        axes.loglog(
            SCALES, np.maximum(admissible, 1e-17), ".-", label=f"admissible, {depth} layers"
        )
        axes.loglog(SCALES, softplus, ".--", label=f"softplus, {depth} layers")
    axes.set(xlabel="r, β", ylabel="distance to G(θ) (1e-17 for 0)")
    axes.legend()
    return Exhibit((*claims, *_without_biases()), figure)


def _without_biases() -> list[Claim]:
    """relu(wx) on (1, 1), (−1, −1): the risk is (w − 1)²/2 + 1/2, and autodiff is 0 at w = 0."""
    risk = gflow.EmpiricalRisk(jnp.asarray([[1.0], [-1.0]]), jnp.asarray([1.0, -1.0]))
    net = gflow.ShallowNet.from_arrays([[0.0]], [0.0], [1.0], 0.0)
    slope = lambda of: float(of(risk, net, trainable=("w",)).w[0, 0])
    words = "a C¹ risk without biases: its slope at w = 0, by `clarke_gradient`"
    reason = "without biases G(θ) need not be the gradient of a risk that is C¹"
    clarke, autodiff = slope(gflow.clarke_gradient), slope(gflow.generalized_gradient)
    return [
        equal(words, "calculus", -1.0, clarke, 1e-12),
        equal("the same by autodiff", SOURCE, -1.0, autodiff, 1e-12).because(reason),
    ]
