r"""Normalised units: on networks with |(w_i, b_i)| = 1 every flow stays bounded.

All functions of a shallow network are still made, as |(w, b)| can be moved into v. With
$u_i = (w_i, b_i)$ the flow on this manifold is

$$\dot u_i = -(I - u_i u_i^\top) G_{u_i}, \qquad \dot v = -G_v, \qquad \dot c = -G_c,$$

which is the gradient flow of the risk as a function of directions: it keeps |u_i| by itself, and
here it is followed as that; the equations are integrated along the trajectory. For
Lipschitz targets it is bounded, which is open for the plain flow.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import gflow
from gflow.gallery.claims import Exhibit, at_most, panels

SOURCE = "Eberle, Jentzen, Riekert, Weiss, arXiv 2207.06246"
T1, WIDTH, EARLY = 1e5, 4, 401  # EARLY: times until t = 1


def _lengths(net: gflow.ShallowNet) -> jax.Array:
    w, b, *_ = jax.tree.leaves(net)
    return jnp.sqrt(w[:, 0] ** 2 + b**2)


def _directed(net: gflow.ShallowNet) -> gflow.ShallowNet:
    """The network with units of length 1."""
    (w, b, *_), lengths = jax.tree.leaves(net), _lengths(net)
    return eqx.tree_at(lambda n: (n.w, n.b), net, (w / lengths[:, None], b / lengths))


def _of_directions(risk: gflow.PopulationRisk, net: gflow.ShallowNet) -> jax.Array:
    return risk(_directed(net))


def _equations(risk: gflow.PopulationRisk, net: gflow.ShallowNet) -> tuple[jax.Array, jax.Array]:
    """The parameters in a row, and the right-hand sides of the equations."""
    (w, b, *others), (slope_w, slope_b, *slopes) = map(jax.tree.leaves, (net, jax.grad(risk)(net)))
    u, slope = jnp.column_stack([w, b]), jnp.column_stack([slope_w, slope_b])
    along = jnp.sum(u * slope, axis=1, keepdims=True)
    return ravel_pytree((u, *others))[0], -ravel_pytree((slope - along * u, *slopes))[0]


def exhibit(*, long: bool = False) -> Exhibit:
    """Four random starts, or forty if it is long."""
    risk = gflow.PopulationRisk(gflow.piecewise.tent(), gflow.piecewise.uniform(-1.0, 1.0))
    on_manifold, equations = partial(_of_directions, risk), jax.vmap(partial(_equations, risk))
    ts = np.concatenate([np.linspace(0, 1, EARLY), np.geomspace(1.1, T1, 100)])
    figure, axes = panels(2)
    lengths, growth, ends, errors = [], [], [], []
    for seed in range(40 if long else 4):
        start = _directed(gflow.ShallowNet(1, WIDTH, key=jax.random.key(seed)))
        flow = gflow.solve_flow(on_manifold, start, t1=T1, ts=ts, rtol=1e-8)
        lengths.append(np.max(np.abs(jax.vmap(_lengths)(flow.params) - 1)))
        theta, field = equations(flow.params)
        moved = theta[EARLY - 1] - theta[0]
        off = moved - np.trapezoid(field[:EARLY], ts[:EARLY], axis=0)
        errors.append(float(np.linalg.norm(off) / np.linalg.norm(moved)))
        norm = np.linalg.norm(theta, axis=1)
        growth.append(norm.max() / norm[ts < T1 / 10].max())
        ends.append(flow.risk[-1])
        axes[0].loglog(ts, flow.risk, "k", linewidth=0.8)
        axes[1].semilogx(ts, norm, "k", linewidth=0.8)
    axes[0].set(xlabel="t", ylabel="risk")
    axes[1].set(xlabel="t", ylabel="‖θ‖")
    words = f"{len(ends)} flows"
    claims = (
        at_most(f"{words}: θ(1) − θ(0) − ∫ theory's field, relative", SOURCE, 1e-4, max(errors)),
        at_most(f"{words}: largest change of |u_i|", SOURCE, 1e-8, float(max(lengths))),
        at_most(f"{words}: growth of ‖θ‖ in the last decade", SOURCE, 1.01, float(max(growth))),
        at_most(f"{words}: smallest risk", "the target is a network", 1e-10, float(min(ends))),
    )
    return Exhibit(claims, figure)
