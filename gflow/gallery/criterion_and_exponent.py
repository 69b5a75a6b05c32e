r"""Chatterjee's criterion before, Łojasiewicz's inequality after: what each says about one flow.

For $f = (uv - s)^2$ the ratio $\|\nabla f\|^2/f = 4(u^2 + v^2)$, and $D = u^2 - v^2$ is constant.
The criterion holds for some radius exactly if it does for $|x_0|/2$, that is, for
$(|x_0|^2/4)^2 > f(x_0)$, and there it promises the rate $\alpha = |x_0|^2$. All flows that converge
to $uv = s$ have near their limit $|f|^{1/2} \le C\|\nabla f\|$ with

$$1/C^2 = 4\sqrt{D^2 + 4s^2},$$

which is their rate. Where it is 0, s = 0 and u = v, there is no criterion, and
$|f|^{3/4} \le C\|\nabla f\|$ gives the power $t^{-2}$.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import AMBER, BLACK, BLUE, Exhibit, at_most, equal, panels

CRITERION = "Chatterjee, arXiv 2203.16462"
EXPONENT = "Łojasiewicz inequality, in closed form"
HELD, REFUSED, FLAT = (1.6, 1.2), (1.5, -0.5), (1.0, 1.0)


def _known(start: jax.Array, s: float) -> tuple[float, float, float]:
    """The largest r²α/4f, its rate α, and that of the flow."""
    value, size = (start[0] * start[1] - s) ** 2, jnp.sum(start**2)
    difference = start[0] ** 2 - start[1] ** 2
    rate = 4 * jnp.sqrt(difference**2 + 4 * s**2)
    return float((size / 4) ** 2 / value), float(size), float(rate)


def _problem(s: float) -> gflow.SumOfSquares:
    return gflow.SumOfSquares(lambda x: x[0] * x[1] - s, jacobian_lipschitz=1.0)


def exhibit(*, long: bool = False) -> Exhibit:
    """Three starts, and 100 random ones, or 1,000 if it is long."""
    figure, (axes,) = panels(1)
    claims = []
    for start, s, colour in ((HELD, 1.0, BLACK), (REFUSED, 1.0, BLUE), (FLAT, 0.0, AMBER)):
        x, f = jnp.asarray(start), _problem(s)
        ratio, alpha, rate = _known(x, s)
        words = f"(uv − {s:.0f})² from ({start[0]:g}, {start[1]:g})"
        t1 = 4.5 if s else 1e4
        ts = np.linspace(0, t1, 160) if s else np.geomspace(1e-2, t1, 160)
        flow = gflow.solve_flow(f, x, t1=t1, ts=ts, rtol=1e-11, atol=1e-16)
        after = gflow.lojasiewicz(flow, 0.0)
        axes.semilogy(flow.ts, flow.risk, color=colour, label=words)
        if after.implied_law == "power":
            claims += [
                equal(f"{words}: exponent α", EXPONENT, 0.75, after.exponent, 1e-3),
                equal(f"{words}: power of t", EXPONENT, 2.0, after.rate.value, 1e-3),
            ]
        else:
            assert after.implied is not None
            claims += [
                equal(f"{words}: 1/C²", EXPONENT, rate, after.implied.value, 2e-2),
                equal(f"{words}: rate of the flow", EXPONENT, rate, after.rate.value, 1e-2),
            ]
        before = gflow.chatterjee(f, x, jnp.linalg.norm(x) / 2, starts=0)
        claims.append(equal(f"{words}: r²α/4f", CRITERION, ratio, before.ratio, 1e-6))
        if before.verdict != "certified":
            continue
        share = before.alpha_lower / after.rate.value
        claims.append(equal(f"{words}: α over the rate", CRITERION, alpha / rate, share, 1e-2))
        axes.semilogy(ts, before.flow_envelope(ts).risk, "--", color=colour, label="promised")
    f, wrong = _problem(1.0), 0
    starts = jax.random.uniform(jax.random.key(0), (1_000 if long else 100, 2), minval=-2, maxval=2)
    for x in starts:
        wrong += (gflow.chatterjee(f, x, starts=0).rate is not None) != (_known(x, 1.0)[0] > 1)
    words = f"{len(starts)} starts: those where the criterion is not as in closed form"
    claims.append(at_most(words, CRITERION, 0, wrong))
    axes.set(xlabel="t", ylabel="f", xlim=(0, 4.5), ylim=(1e-17, 3))
    figure.legend(loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    return Exhibit(tuple(claims), figure)
