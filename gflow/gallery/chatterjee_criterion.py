r"""Chatterjee's criterion: a start that proves where flow and descent go, and how fast.

If $4f(x_0) < r^2\alpha$, with α the least $\|\nabla f\|^2/f$ in the ball of radius r about $x_0$,
the flow converges inside it to f = 0, and $f \le e^{-\alpha t}f(x_0)$; descent likewise.

For $f = (uv - 1)^2$ that ratio is $4(u^2 + v^2)$, so that $\alpha = 4(|x_0| - r)^2$, and the
criterion holds for some r exactly if $|u_0v_0 - 1| < |x_0|^2/4$. Deep networks of smooth
activations meet it from starts with large outer weights and linearly independent inputs.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import BLACK, RED, Exhibit, at_least, at_most, equal, panels

SOURCE = "Chatterjee, arXiv 2203.16462"
OUTER, STEPS, RADIUS = 100.0, 400, 0.8


def _network() -> tuple[gflow.EmpiricalRisk, eqx.nn.MLP]:
    """Two tanh layers on four rows of six inputs, from the start that Chatterjee proposes."""
    rng = np.random.default_rng(0)
    risk = gflow.EmpiricalRisk(rng.normal(size=(4, 6)), rng.normal(size=4))
    net = eqx.nn.MLP(6, "scalar", 5, 2, activation=jnp.tanh, key=jax.random.key(0))
    zeros = jax.tree.map(lambda a: 0 * a if eqx.is_array(a) else a, net)
    middle, last = jnp.full((5, 5), 0.2), jnp.full((1, 5), OUTER)
    weights = lambda n: (n.layers[1].weight, n.layers[2].weight)
    return risk, eqx.tree_at(weights, zeros, (middle, last))


def exhibit(*, long: bool = False) -> Exhibit:
    """The product of two numbers, and a deep network."""
    del long
    square = gflow.SumOfSquares(lambda x: x[0] * x[1] - 1, jacobian_lipschitz=1.0)
    start = jnp.asarray([1.6, 1.2])
    product = gflow.chatterjee(square, start, RADIUS)
    risk, net = _network()
    deep = gflow.chatterjee(risk, net, starts=0)
    figure, axes = panels(2)
    alpha = 4 * (float(jnp.linalg.norm(start)) - RADIUS) ** 2
    ratio = RADIUS**2 * alpha / (4 * float(square(start)))
    words = f"(uv − 1)² about (1.6, 1.2), r = {RADIUS}"
    claims = [
        equal(f"{words}: α", SOURCE, alpha, product.alpha_lower, 1e-6),
        equal(f"{words}: r²α/4f", SOURCE, ratio, product.ratio, 1e-6),
        at_least("tanh, two layers: r²α/4f", SOURCE, 1.0, deep.ratio),
    ]
    cases = (("(uv − 1)²", square, start, product), ("tanh, two layers", risk, net, deep))
    for ax, (words, f, x, certificate) in zip(axes, cases, strict=True):
        assert certificate.rate and certificate.step_size
        ts = np.linspace(0, 4 / certificate.rate, 81)
        flow = gflow.solve_flow(f, x, t1=ts[-1], ts=ts, rtol=1e-10)
        record, size = range(STEPS + 1), certificate.step_size
        descent = gflow.descend(f, x, step_size=size, num_steps=STEPS, record=record)
        promised = certificate.flow_envelope(ts).risk
        steps = certificate.descent_envelope(np.arange(STEPS + 1)).risk
        late = 1 / certificate.rate  # at first flow and promise are both f(x₀)
        of_flow = np.max((flow.risk / promised)[ts >= late])
        of_descent = np.max((descent.risk / steps)[descent.ts >= late])
        claims += [
            at_most(f"{words}: flow over its envelope, t ≥ 1/α", SOURCE, 1.0, float(of_flow)),
            at_most(f"{words}: descent over its envelope", SOURCE, 1.0, float(of_descent)),
        ]
        ax.semilogy(ts, flow.risk, "-", ts, promised, "--", color=BLACK)
        ax.semilogy(descent.ts, descent.risk, "-", descent.ts, steps, "--", color=RED)
        ax.set(xlabel="t", ylabel=f"{words}: risk")
        ax.set(xlim=(0, ts[-1]), ylim=(1e-3 * promised[-1], None))
    axes[0].legend(["flow", "its envelope", "descent", "its envelope"])
    return Exhibit(tuple(claims), figure)
