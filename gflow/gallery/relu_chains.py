r"""Chains of ReLUs: power laws of any exponent above 1, from the Łojasiewicz inequality.

For N = w_K ⋯ w_1 at the input 1, equal weights w(0) > 0 and the risk L = N²/2,

$$w(t) = \bigl(w(0)^{-(2K-2)} + (2K-2)t\bigr)^{-1/(2K-2)}, \qquad L \sim t^{-K/(K-1)}, \qquad
  \alpha = 1 - \frac{1}{2K},$$

with α the exponent in $L^\alpha \le C\|\nabla L\|$. The risk always falls faster than 1/t, the rate
that holds for all flows which converge; with the depth it comes as near as one likes.
"""

import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import Exhibit, at_most, equal, panels

SOURCE = "Łojasiewicz inequality, in closed form"
RATE_ONE = "Eberle, Jentzen, Riekert, Weiss, arXiv 2108.08106"
START, T1 = 0.9, 1e8


def exhibit(*, long: bool = False) -> Exhibit:
    """Chains of 2, 3 and 5 weights; of 2 to 10 if it is long."""
    figure, (axes,) = panels(1)
    ts = np.concatenate([[0.0], np.geomspace(1e-2, T1, 120)])
    claims = []
    for depth in range(2, 11) if long else (2, 3, 5):
        risk = lambda w: 0.5 * jnp.prod(jnp.maximum(w, 0.0)) ** 2
        flow = gflow.solve_flow(risk, jnp.full(depth, START), t1=T1, ts=ts)
        power = 2 * depth - 2
        exact = (START**-power + power * ts) ** (-1 / power)
        error = np.max(np.abs(flow.params[:, 0] / exact - 1))
        found = gflow.lojasiewicz(flow, 0.0)
        scaled = (1 + ts) * np.asarray(flow.risk)
        late = ts > 1e-2 * T1
        fall = -np.polyfit(np.log(ts[late]), np.log(scaled[late]), 1)[0]
        law = depth / (depth - 1)
        words = f"K = {depth}"
        claims += [
            at_most(f"{words}: largest relative error of w", SOURCE, 1e-5, float(error)),
            equal(f"{words}: exponent of the risk", SOURCE, law, found.rate.value, 1e-3),
            equal(f"{words}: α", SOURCE, 1 - 1 / (2 * depth), found.exponent, 1e-3),
            equal(f"{words}: power of 1/t in (1 + t) L", RATE_ONE, 1 / (depth - 1), fall, 1e-3),
        ]
        axes.loglog(ts[1:], scaled[1:], label=words)
    axes.set(xlabel="t", ylabel="(1 + t) · risk")
    axes.legend()
    return Exhibit(tuple(claims), figure)
