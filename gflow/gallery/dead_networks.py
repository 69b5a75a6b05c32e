r"""Dead networks: with probability (3/8)^H all H units start dead, and only the mean is learned.

For inputs in [0, 1] and standard normal weights and biases a unit is dead with probability 3/8.
If all are, and f is the target with mean m under the law of the inputs,

$$c(t) = m + (c(0) - m) e^{-2t}, \qquad L(t) = \mathrm{Var} f + (c(0) - m)^2 e^{-4t} .$$
"""

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import BLACK, RED, Exhibit, at_most, panels

SOURCE = "Do, Jentzen, Riekert, arXiv 2503.01660"
WIDTH, T1 = 2, 5.0
MEAN, VARIANCE = 1 / 3, 4 / 45  # of x² on [0, 1]


def _nets(seeds: np.ndarray) -> gflow.ShallowNet:
    draw = lambda key: gflow.ShallowNet(1, WIDTH, key=key, init="standard_normal")
    return jax.vmap(draw)(jax.vmap(jax.random.key)(seeds))


def _dead(nets: gflow.ShallowNet) -> np.ndarray:
    """Which units no input in [0, 1] activates."""
    assert nets.b is not None
    return np.asarray((nets.b <= 0) & (nets.w[..., 0] + nets.b <= 0))


def exhibit(*, long: bool = False) -> Exhibit:
    """40,000 random networks, or 4,000,000 if it is long, and flows of dead ones."""
    number = 4_000_000 if long else 40_000
    nets = _nets(np.arange(number))
    units = _dead(nets)
    networks = units.all(axis=1)
    chances = 3 / 8, (3 / 8) ** WIDTH
    errors = [
        abs(found.mean() - p) / np.sqrt(p * (1 - p) / found.size)
        for p, found in zip(chances, (units, networks), strict=True)
    ]

    risk = gflow.PopulationRisk(
        gflow.piecewise.PiecewisePolynomial([0.0, 1.0], [[0.0, 0.0, 1.0]]),
        gflow.piecewise.uniform(0.0, 1.0),
    )
    ts = np.linspace(0, T1, 60)
    figure, (axes,) = panels(1)
    mistakes = []
    for k in np.flatnonzero(networks)[:6]:
        net = jax.tree.map(lambda a, k=k: a[k], nets)
        flow = gflow.solve_flow(risk, net, t1=T1, ts=ts, rtol=1e-10)
        start = float(net.c) - MEAN
        exact = VARIANCE + start**2 * np.exp(-4 * ts)
        mistakes.append(np.max(np.abs(flow.risk - exact) / exact))
        mistakes.append(jnp.max(jnp.abs(flow.params.c - MEAN - start * np.exp(-2 * ts))))
        axes.semilogy(ts, flow.risk, color=BLACK)
        axes.semilogy(ts, exact, "--", color=RED)
    axes.set(xlabel="t", ylabel="risk of dead networks, and theory")
    words = "standard errors between the fraction of dead"
    claims = (
        at_most(f"{words} units and 3/8", SOURCE, 3.0, float(errors[0])),
        at_most(
            f"{words} networks of {WIDTH} units and (3/8)^{WIDTH}", SOURCE, 3.0, float(errors[1])
        ),
        at_most(
            "flows of 6 dead networks: largest error of c and L", SOURCE, 1e-8, float(max(mistakes))
        ),
    )
    return Exhibit(claims, figure)
