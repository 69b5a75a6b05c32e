r"""A jump for a target: the flow runs to infinity, and its risk falls like 1/√t.

The target 1 on (½, 1], 0 before, inputs uniform in [0, 1], two units. Their difference is a ramp of
width δ about ½ with L = δ/12. Balanced units that make it have ‖θ‖² = 2√5/δ, so that

$$\delta' = -\frac{\delta^3}{6\sqrt 5}, \qquad L\sqrt t \to \frac{\sqrt{3\sqrt 5}}{12} = 0.215835,
  \qquad \|\theta\| \sim t^{1/4} .$$

The risk falls more slowly than 1/t: the theorem of that rate is on flows that do not diverge.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import RED, Exhibit, equal, panels

SOURCE = "slow manifold, in closed form; arXiv 2211.15641"
RATE_ONE = "Eberle, Jentzen, Riekert, Weiss, arXiv 2108.08106"
T1 = 1e8


def _norm(net: gflow.ShallowNet) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(a**2) for a in jax.tree.leaves(net)))


def exhibit(*, long: bool = False) -> Exhibit:
    """One flow to t = 1e8, or to 1e10 if it is long."""
    t1 = 1e10 if long else T1
    target = gflow.piecewise.PiecewisePolynomial([0.0, 0.5, 1.0], [[0.0], [1.0]])
    risk = gflow.PopulationRisk(target, gflow.piecewise.uniform(0.0, 1.0))
    net = gflow.ShallowNet.from_arrays([[2.0], [2.0]], [-0.5, -1.5], [1.5, -1.5], 0.0)
    ts = np.geomspace(1e-1, t1, 200)
    flow = gflow.solve_flow(risk, net, t1=t1, ts=ts, observe={"norm": _norm})
    late = ts > 1e-2 * t1
    law = np.polyfit(np.log(ts[late]), np.log(flow.observed["norm"][late]), 1)[0]
    scaled = np.asarray(flow.risk) * np.sqrt(ts)
    limit = np.sqrt(3 * np.sqrt(5)) / 12
    growth = np.polyfit(np.log(ts[late]), np.log((1 + ts) * flow.risk)[late], 1)[0]
    diverging = "power at which (1 + t) L grows; it is bounded for flows that converge"
    claims = (
        equal("limit of L√t", SOURCE, limit, float(scaled[-1]), 5e-5),
        equal("exponent of the norm", SOURCE, 0.25, float(law), 2e-3),
        equal(diverging, RATE_ONE, 0.5, float(growth), 2e-3),
    )
    figure, axes = panels(2)
    axes[0].semilogx(ts, scaled)
    axes[0].axhline(limit, color=RED, linestyle="--")
    axes[0].set(xlabel="t", ylabel="L √t, and its limit")
    axes[1].loglog(ts, flow.observed["norm"], "-", ts, 0.9 * ts**0.25, "--")
    axes[1].set(xlabel="t", ylabel="‖θ‖, and t to the power ¼")
    return Exhibit(claims, figure)
