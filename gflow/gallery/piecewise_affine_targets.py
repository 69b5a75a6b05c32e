r"""Piecewise affine targets: with positive probability the risk falls to 0 exponentially.

The target is a tent on [−1, 1], inputs are uniform, θ(0) is standard normal. The minima with one
unit active everywhere and one with its kink at the tip form a manifold, on which the Hessian of L
has the largest rank that it can have, one for each of slope, jump of slope, tip and height: 4. With
λ its smallest eigenvalue that is not 0,

$$L(\theta(t)) \sim C e^{-2\lambda t}, \qquad L(\theta_k) \sim C (1 - h\lambda)^{2k} .$$

A unit whose kink is left inside, δ from an edge, has L ~ δ³ and δ' ~ −δ², and so L ~ t⁻³.
"""

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import gflow
from gflow.gallery.claims import AMBER, BLACK, BLUE, RED, Exhibit, at_least, at_most, equal, panels

SOURCE = "Jentzen, Riekert, arXiv 2108.04620"
T1, WIDTH, STEP = 1e4, 2, 0.05
COLOURS = {"exponential": RED, "power": BLUE, "undecided": BLACK}


def _start(seed: int) -> gflow.ShallowNet:
    return gflow.ShallowNet(1, WIDTH, key=jax.random.key(seed), init="standard_normal")


def exhibit(*, long: bool = False) -> Exhibit:
    """24 random starts of 2 units, or 240 if it is long."""
    risk = gflow.PopulationRisk(gflow.piecewise.tent(), gflow.piecewise.uniform(-1.0, 1.0))
    ts = np.geomspace(1e-1, T1, 100)
    hessian = jax.jit(jax.hessian(lambda theta: risk(ravel_pytree(_start(0))[1](theta))))
    figure, (axes,) = panels(1)
    number = 240 if long else 24
    off, ranks, powers, fast, told = [], [], [], [], []
    for seed in range(number):
        flow = gflow.solve_flow(risk, _start(seed), t1=T1, ts=ts)
        fitted = gflow.fit_rate(flow.ts, flow.risk) if flow.risk[-1] < 1e-8 else None
        law = fitted.law if fitted else "other minima"
        if fitted and law == "exponential":
            values = np.linalg.eigvalsh(hessian(ravel_pytree(flow.final)[0]))
            kept = values[values > 1e-9 * values[-1]]
            ranks.append(len(kept))
            off.append(abs(fitted.value / (2 * kept[0]) - 1))
            fast.append((seed, kept[0]))
        if fitted and law == "power":
            powers.append(fitted.value)
        style = {"color": COLOURS.get(law, AMBER), "label": None if law in told else law}
        axes.loglog(ts, flow.risk, linewidth=0.8, **style)
        told.append(law)
    seed, smallest = fast[0]
    steps = round(20 / (smallest * STEP))
    record = [steps // 2, steps]
    descent = gflow.descend(risk, _start(seed), step_size=STEP, num_steps=steps, record=record)
    fall = -np.log(descent.risk[-1] / descent.risk[-2]) / (steps - steps // 2)
    theory = -2 * np.log(1 - STEP * smallest)
    words = f"{number} starts of {WIDTH} units"
    claims = (
        at_least(f"{words}: exponential flows to 0", SOURCE, 1, len(fast)),
        equal("rank of the Hessian at their ends", SOURCE, 4, float(np.median(ranks)), 1e-9),
        at_most("their rates off 2λ, relative", SOURCE, 2e-2, max(off)),
        equal("descent: log factor of a step", SOURCE, theory, float(fall), 1e-3),
        equal(f"{len(powers)} others to 0: power", "L ~ δ³ at an edge", 3, min(powers), 2e-2),
    )
    axes.set(xlabel="t", ylabel="risk", ylim=(1e-26, 30))
    axes.legend()
    return Exhibit(claims, figure)
