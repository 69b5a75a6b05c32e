r"""Affine targets: flows end at critical values from a list, and below a threshold at 0.

For f(x) = αx + β and the uniform law on $[T_0, T_1]$ the critical values of H units are 0 and

$$\frac{\alpha^2 (T_1 - T_0)^2}{12 (n + 1)^4}, \qquad n \in \{0, 2, 4, \dots\}, \quad n \le H,$$

of which only that of n = 0, no active unit, belongs to local minima that are not global.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import gflow
from gflow.gallery.claims import BLACK, RED, Exhibit, at_most, equal, panels

SOURCE = "Cheridito, Jentzen, Rossmannek, arXiv 2103.10922"
THRESHOLD = "Jentzen, Riekert, arXiv 2107.04479"
SLOPE, LEFT, RIGHT = 1.0, 0.0, 1.0
T1, WIDTH = 1e5, 3


def _critical_value(n: int) -> float:
    return SLOPE**2 * (RIGHT - LEFT) ** 2 / (12 * (n + 1) ** 4)


def _zigzag(n: int) -> gflow.ShallowNet:
    """The saddle with n kinks, in closed form."""
    kinks = LEFT + (RIGHT - LEFT) * jnp.arange(1, n + 1) / (n + 1)
    signs = jnp.where(jnp.arange(n) % 2 == 0, 1.0, -1.0)
    outer = signs * 2 * SLOPE / (n + 1)
    middle = SLOPE * (LEFT + RIGHT) / 2
    return gflow.ShallowNet.from_arrays(signs[:, None], -signs * kinks, outer, middle)


def _below_saddle(risk: gflow.PopulationRisk) -> list[gflow.ShallowNet]:
    """The zig-zag of two units, which rests, and networks beside it, if below the threshold."""
    theta, net = ravel_pytree(_zigzag(2))
    _, directions = jnp.linalg.eigh(jax.hessian(lambda theta: risk(net(theta)))(theta))
    nets = [net(theta + size * directions[:, 0]) for size in (-0.1, -0.05, 0.0, 0.05, 0.1)]
    return [net for net in nets if risk(net) < _critical_value(2) * (1 - 1e-9)]


def _largest(tree: gflow.ShallowNet) -> float:
    return max(float(jnp.max(jnp.abs(a))) for a in jax.tree.leaves(tree))


def exhibit(*, long: bool = False) -> Exhibit:
    """24 random flows, or 200 if it is long."""
    target = gflow.piecewise.through([LEFT, RIGHT], [SLOPE * LEFT, SLOPE * RIGHT])
    risk = gflow.PopulationRisk(target, gflow.piecewise.uniform(LEFT, RIGHT))
    claims, flows = [], []
    for n in (2, 4):
        found, words = float(risk(_zigzag(n))), f"the zig-zag of {n} units"
        slope = _largest(gflow.generalized_gradient(risk, _zigzag(n)))
        claims += [
            equal(f"{words}: its risk", SOURCE, _critical_value(n), found, 1e-12),
            at_most(f"{words}: its generalized gradient", SOURCE, 1e-13, slope),
        ]
    for seed in range(200 if long else 24):
        net = gflow.ShallowNet(1, WIDTH, key=jax.random.key(seed), init="standard_normal")
        flows.append(gflow.solve_flow(risk, net, t1=T1, ts=np.geomspace(1e-2, T1, 80)))
    ends = np.array([float(flow.risk[-1]) for flow in flows])
    values = np.array([0.0] + [_critical_value(n) for n in (0, 2)])
    away = np.min(np.abs(ends[:, None] - values), axis=1)
    low = [float(gflow.solve_flow(risk, net, t1=1e3).risk[-1]) for net in _below_saddle(risk)]
    words = f"{len(ends)} flows, {np.sum(ends > 1e-4)} not to 0: distance from the list"
    claims += [
        at_most(words, SOURCE, 1e-6, float(np.max(away))),
        at_most(f"{len(low)} flows from below 1/972: risk", THRESHOLD, 1e-6, max(low, default=1)),
    ]
    figure, (axes,) = panels(1)
    for k, flow in enumerate(flows):
        axes.loglog(flow.ts, flow.risk, color=BLACK, linewidth=0.6, label=None if k else "flows")
    for value, style in zip(values[1:], ("--", ":"), strict=True):
        axes.axhline(value, color=RED, linestyle=style, label=f"critical: 1/{1 / value:.0f}")
    axes.set(xlabel="t", ylabel="risk", ylim=(1e-12, 30))
    axes.legend()
    return Exhibit(tuple(claims), figure)
