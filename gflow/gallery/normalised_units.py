r"""Normalised units: on networks with |(w_i, b_i)| = 1 every flow stays bounded.

All functions of a shallow network are still made, as |(w, b)| can be moved into v. With
$u_i = (w_i, b_i)$ the flow on this manifold is

$$\dot u_i = -(I - u_i u_i^\top) G_{u_i}, \qquad \dot v = -G_v, \qquad \dot c = -G_c,$$

which is the gradient flow of the risk as a function of directions: it keeps |u_i| by itself. For
Lipschitz targets it is bounded, which is open for the plain flow.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import Exhibit, at_most, panels

SOURCE = "Eberle, Jentzen, Riekert, Weiss, arXiv 2207.06246"
T1, WIDTH = 1e5, 4


def _lengths(net: gflow.ShallowNet) -> jax.Array:
    assert net.b is not None
    return jnp.sqrt(net.w[:, 0] ** 2 + net.b**2)


def _directed(net: gflow.ShallowNet) -> gflow.ShallowNet:
    """The network with units of length 1."""
    assert net.b is not None
    lengths = _lengths(net)
    units = net.w / lengths[:, None], net.b / lengths
    return eqx.tree_at(lambda n: (n.w, n.b), net, units)


def _of_directions(risk: gflow.PopulationRisk) -> Callable[[gflow.ShallowNet], jax.Array]:
    return lambda net: risk(_directed(net))


def _norm(net: gflow.ShallowNet) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(a**2) for a in jax.tree.leaves(net)))


def exhibit(*, long: bool = False) -> Exhibit:
    """Four random starts, or forty if it is long."""
    risk = gflow.PopulationRisk(gflow.piecewise.tent(), gflow.piecewise.uniform(-1.0, 1.0))
    on_manifold = _of_directions(risk)
    ts = np.geomspace(1e-1, T1, 100)
    figure, axes = panels(2)
    lengths, growth, ends = [], [], []
    for seed in range(40 if long else 4):
        start = _directed(gflow.ShallowNet(1, WIDTH, key=jax.random.key(seed)))
        observed = {"norm": _norm, "lengths": _lengths}
        flow = gflow.solve_flow(on_manifold, start, t1=T1, ts=ts, rtol=1e-8, observe=observed)
        lengths.append(np.max(np.abs(flow.observed["lengths"] - 1)))
        norm = np.asarray(flow.observed["norm"])
        growth.append(norm.max() / norm[ts < T1 / 10].max())
        ends.append(flow.risk[-1])
        axes[0].loglog(ts, flow.risk, "k", linewidth=0.8)
        axes[1].semilogx(ts, norm, "k", linewidth=0.8)
    axes[0].set(xlabel="t", ylabel="risk")
    axes[1].set(xlabel="t", ylabel="‖θ‖")
    words = f"{len(ends)} flows"
    claims = (
        at_most(f"{words}: largest change of |u_i|", SOURCE, 1e-8, float(max(lengths))),
        at_most(f"{words}: growth of ‖θ‖ in the last decade", SOURCE, 1.01, float(max(growth))),
        at_most(f"{words}: smallest risk", "the target is a network", 1e-10, float(min(ends))),
    )
    return Exhibit(claims, figure)
