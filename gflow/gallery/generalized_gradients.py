r"""Generalized gradients are limits of gradients of smoothings, and of gradients nearby.

Let $R_r$ be $C^1$ and agree with ReLU and its slope (0 at 0) at every point from some r on. The
gradients of the smoothed risks reach G(θ), at any depth, also on kinks of several layers. Where the
risk is $C^1$, G(θ) is its gradient.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import gflow
from gflow.gallery.claims import AMBER, BLACK, RED, Claim, Exhibit, at_least, at_most, equal, panels

SOURCE = "Dereich, Do, Jentzen, Weber, arXiv 2501.15646"
REASON = "without biases G(θ) need not be the gradient of a risk that is C¹"
SCALES = 2.0 ** np.arange(0, 15)
ROWS = np.array([[-1.0], [0.0], [0.5], [2.0]])
_softplus = lambda beta: lambda x: jax.nn.softplus(beta * x) / beta
_flat = lambda net: ravel_pytree(eqx.filter(net, eqx.is_inexact_array))


def _on_kinks(depth: int) -> eqx.nn.MLP:
    """A network with small integers for weights, so that rows are on kinks of each layer."""
    whole = lambda a: jnp.round(3 * a) if eqx.is_inexact_array(a) else a
    return jax.tree.map(whole, eqx.nn.MLP(1, "scalar", 4, depth, key=jax.random.key(1)))


def _off(risk: gflow.EmpiricalRisk | gflow.PopulationRisk, net: eqx.Module) -> float:
    """The distance of G(θ) from ∇L(θ), by central differences."""
    theta, network = _flat(net)
    at = lambda moved: float(risk(eqx.combine(network(moved), net)))
    slopes = [(at(theta + e) - at(theta - e)) / 2e-5 for e in 1e-5 * np.eye(len(theta))]
    return float(np.linalg.norm(_flat(gflow.generalized_gradient(risk, net))[0] - np.array(slopes)))


def exhibit(*, long: bool = False) -> Exhibit:
    """Two and three layers, and four if it is long."""
    risk = gflow.EmpiricalRisk(ROWS, jnp.asarray([1.0, -1.0, 2.0, 0.5]))
    (figure, (axes,)), claims = panels(1), []
    for depth, colour in zip((2, 3, 4) if long else (2, 3), (BLACK, RED, AMBER), strict=False):
        net = _on_kinks(depth)
        gradient = gflow.generalized_gradient(risk, net)
        away = lambda other, of=gradient: float(np.linalg.norm(_flat(other)[0] - _flat(of)[0]))
        admissible = [away(gflow.smoothed_gradient(risk, net, r)) for r in SCALES]
        smooth = [eqx.tree_at(lambda n: n.activation, net, _softplus(beta)) for beta in SCALES]
        softplus = [away(eqx.filter_grad(risk)(other)) for other in smooth]
        near = gflow.generalized_gradient(risk, gflow.lowered_biases(net, 1e-6))
        claims += [
            at_most(f"{depth} layers: smoothings reach G(θ)", SOURCE, 0.0, admissible[-1]),
            at_most("G(θ) is a limit of gradients: distance", SOURCE, 1e-4, away(near)),
            at_least("softplus(βx)/β is not admissible: distance", SOURCE, 1e-2, softplus[-1]),
        ]
        shown = np.maximum(admissible, 1e-17)
        axes.loglog(SCALES, shown, ".-", SCALES, softplus, ".--", color=colour)
    true = gflow.PopulationRisk(gflow.piecewise.parabola(), gflow.piecewise.uniform())
    key = jax.random.key(0)
    shallow, deep = gflow.ShallowNet(1, 4, key=key), eqx.nn.MLP(1, "scalar", 4, 3, key=key)
    claims += [
        at_most("true risk, which is C¹: G(θ) − ∇L", SOURCE, 1e-8, _off(true, shallow)),
        at_most("3 layers, no row on a kink: G(θ) − ∇L", SOURCE, 1e-8, _off(risk, deep)),
        *_without_biases(),
    ]
    axes.set(xlabel="r, β", ylabel="distance to G(θ) (1e-17 for 0)")
    axes.legend([f"{of}, {k} layers" for k in (2, 3, 4) for of in ("admissible", "softplus")])
    return Exhibit(tuple(claims), figure)


def _without_biases() -> list[Claim]:
    """relu(wx) on (1, 1), (−1, −1): the risk is (w − 1)²/2 + 1/2, and autodiff is 0 at w = 0."""
    risk = gflow.EmpiricalRisk(np.array([[1.0], [-1.0]]), np.array([1.0, -1.0]))
    net = gflow.ShallowNet.from_arrays([[0.0]], [0.0], [1.0], 0.0)
    slope = lambda of: float(of(risk, net, trainable=("w",)).w[0, 0])
    words = "a C¹ risk without biases: its slope at w = 0, by `clarke_gradient`"
    true, found = -1.0, slope(gflow.generalized_gradient)
    clarke = equal(words, "calculus", true, slope(gflow.clarke_gradient), 1e-12)
    autodiff = equal("the same by autodiff", SOURCE, true, found, 1e-12)
    return [clarke, autodiff.because(REASON, seen=found - true == 1)]
