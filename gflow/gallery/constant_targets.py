r"""Constant targets: a Lyapunov function that the flow uses up at the rate of the risk.

For a target ξ and K affine layers with ReLU between them, on any law of the inputs,

$$V(\theta) = \sum_k (\|W_k\|^2 + k \|b_k\|^2) - 2 K \xi b_K, \qquad
  V(\theta(t)) + 4 K \int_0^t L = V(\theta(0)) .$$

It is bounded below by $-K\xi^2$, so that $L(\theta(t)) \le (V(\theta(0)) + K\xi^2)/(4Kt)$. From
θ(0) near 0 only $b_K$ moves, L is near $\xi^2 e^{-4t}$, and at t = ¼ it is 1/e of the bound.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import Exhibit, at_most, equal, panels

SOURCE = "Cheridito, Jentzen, Riekert, Rossmannek, arXiv 2102.09924"
TARGET, T1 = 0.7, 100.0
PANELS, NODES = 120, 8


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Times and weights of Gauss–Legendre quadrature in panels that grow with t, and, of weight 0,
    the end of each panel."""
    ends = np.concatenate([[0.0], np.geomspace(1e-3, T1, PANELS)])
    x, w = np.polynomial.legendre.leggauss(NODES)
    half, middle = np.diff(ends)[:, None] / 2, (ends[1:] + ends[:-1])[:, None] / 2
    return (middle + half * np.append(x, 1.0)).ravel(), (half * np.append(w, 0.0)).ravel()


def _lyapunov(net: eqx.nn.MLP) -> jax.Array:
    layers: Any = net.layers
    squares = [jnp.sum(a.weight**2) + k * jnp.sum(a.bias**2) for k, a in enumerate(layers, 1)]
    return sum(squares, start=-2 * len(layers) * TARGET * jnp.squeeze(layers[-1].bias))


def _bound(net: eqx.nn.MLP, ts: np.ndarray) -> np.ndarray:
    """Of the risk, for the flow from this network."""
    layers = len(net.layers)
    return (float(_lyapunov(net)) + layers * TARGET**2) / (4 * layers * ts)


def exhibit(*, long: bool = False) -> Exhibit:
    """One and two hidden layers; up to four if it is long."""
    x = jnp.linspace(-1, 1, 12)[:, None]
    risk = gflow.EmpiricalRisk(x, jnp.full(12, TARGET))
    ts, weights = _nodes()
    figure, (axes,) = panels(1)
    claims = []
    for hidden in (1, 2, 3, 4) if long else (1, 2):
        layers = hidden + 1
        net = eqx.nn.MLP(1, "scalar", 6, hidden, key=jax.random.key(3))
        flow = gflow.solve_flow(risk, net, t1=T1, ts=ts, rtol=1e-9, observe={"V": _lyapunov})
        start, used = float(_lyapunov(net)), 4 * layers * np.cumsum(weights * flow.risk)
        drift = np.abs(flow.observed["V"] + used - start)[NODES :: NODES + 1] / abs(start)
        near = jax.tree.map(lambda a: 1e-3 * a if eqx.is_inexact_array(a) else a, net)
        small = gflow.solve_flow(risk, near, t1=T1, ts=ts)
        bound, shares = _bound(net, ts), small.risk / _bound(near, ts)
        share = float(max(np.max(shares), np.max(flow.risk / bound)))
        words = f"{hidden} hidden layers, {int(flow.stats['num_kinks'])} kinks"
        claims += [
            at_most(f"{words}: drift of V + 4K∫L over V(0)", SOURCE, 1e-6, float(np.max(drift))),
            equal(f"{words}, and near 0: risk over its bound", SOURCE, np.exp(-1), share, 1e-3),
        ]
        (line,) = axes.loglog(ts, flow.risk, label=f"{hidden} hidden")
        axes.loglog(ts, bound, "--", color=line.get_color(), label="bound")
    axes.set(xlabel="t", ylabel="risk", ylim=(1e-7, 1e2), xlim=(1e-3, T1))
    axes.legend()
    return Exhibit(tuple(claims), figure)
