r"""Polynomial targets: smooth networks fit them at infinity only, and the flow goes there.

One unit v tanh(wx), inputs uniform in [−1, 1], target x: it fits for w → 0 with vw → 1, and then
$L = Cw^4$ with $9C = 1/7 - 3/25$. As v = 1/w moves most, $w' = -4Cw^7$, so that

$$L\,t^{2/3} \to C^{1/3} 24^{-2/3}, \qquad \|\theta\|\,t^{-1/6} \to (24C)^{1/6} .$$

Two softplus units fit x² by their second difference at a bias with σ'''' = 0: with w = ε they have
$L \sim ε^8$, $v \sim ε^{-2}$ and $ε' \sim -ε^{13}$, hence the same powers of t.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import BLACK, BLUE, RED, Exhibit, at_most, equal, panels

SOURCE = "Kranz, Gallon, Dereich, Jentzen, arXiv 2505.09572"
SLOW = "slow manifold, in closed form"
T1 = 1e10


def _norm(net: gflow.ShallowNet) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(a**2) for a in jax.tree.leaves(net)))


def exhibit(*, long: bool = False) -> Exhibit:
    """Flows to t = 1e10, or to 1e12 if it is long."""
    t1 = 100 * T1 if long else T1
    ts, (x, weights) = np.geomspace(1e-1, t1, 140), np.polynomial.legendre.leggauss(12)
    tanh = gflow.ShallowNet.from_arrays([[1.0]], [0.0], [1.0], 0.0, activation="tanh")
    pair = [[1.0], [-1.0]], [0.0, 0.0], [1.0, 1.0], 0.0
    softplus = gflow.ShallowNet.from_arrays(*pair, activation="softplus")
    flows, risks = [], []
    for net, power in ((tanh, 1), (softplus, 2)):
        risks.append(gflow.EmpiricalRisk(x[:, None], x**power, weights / 2))
        flows.append(gflow.solve_flow(risks[-1], net, t1=t1, ts=ts, observe={"norm": _norm}))
    constant = (1 / 7 - 3 / 25) / 9
    of_risk, of_norm = constant ** (1 / 3) * 24 ** (-2 / 3), (24 * constant) ** (1 / 6)
    risk, norm = flows[0].risk[-1] * t1 ** (2 / 3), flows[0].observed["norm"][-1] / t1 ** (1 / 6)
    where = gflow.asymptotics(flows[1], risks[1])
    assert where.risk_rate is not None and where.norm_exponent is not None
    claims = (
        equal("tanh on x: limit of L t^⅔", SLOW, of_risk, float(risk), 1e-3),
        equal("tanh on x: limit of ‖θ‖ t^−⅙", SLOW, of_norm, float(norm), 1e-3),
        at_most("softplus on x²: limit of the risk", SOURCE, 1e-6, abs(where.risk_limit)),
        equal("softplus on x²: power of the risk", SLOW, 2 / 3, where.risk_rate.value, 1e-2),
        equal("softplus on x²: power of the norm", SLOW, 1 / 6, where.norm_exponent, 3e-2),
    )
    figure, axes = panels(2)
    for flow, colour, words in zip(flows, (BLACK, BLUE), ("tanh, x", "softplus, x²")):
        axes[0].loglog(ts, flow.risk, color=colour, label=words)
        axes[1].loglog(ts, flow.observed["norm"], color=colour)
    axes[0].loglog(ts, of_risk * ts ** (-2 / 3), "--", color=RED, label="theory for tanh")
    axes[1].loglog(ts, of_norm * ts ** (1 / 6), "--", color=RED)
    axes[0].set(xlabel="t", ylabel="risk")
    axes[1].set(xlabel="t", ylabel="‖θ‖")
    axes[0].legend()
    return Exhibit(claims, figure)
