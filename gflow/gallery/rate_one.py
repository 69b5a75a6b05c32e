r"""Flows that do not diverge converge, and their risk falls at least like 1/t.

For piecewise polynomial targets and densities every flow of bounded θ has a limit ϑ with G(ϑ) = 0,
and there are C and β with, for all t,

$$\|\theta(t) - \vartheta\| \le C (1 + t)^{-\beta}, \quad L(\theta(t)) - L(\vartheta) \le C/(1+t).$$
"""

import jax
import numpy as np

import gflow
from gflow.gallery.claims import Exhibit, at_least, at_most, panels

SOURCE = "Eberle, Jentzen, Riekert, Weiss, arXiv 2108.08106"
T1, WIDTH = 1e6, 3


def exhibit(*, long: bool = False) -> Exhibit:
    """Six random starts for each of three targets, or thirty if it is long."""
    targets = {
        "parabola": gflow.piecewise.parabola(),
        "tent": gflow.piecewise.tent(),
        "zig-zag": gflow.piecewise.zigzag(),
    }
    ts = np.geomspace(1e-1, T1, 160)
    figure, (axes,) = panels(1)
    claims = []
    for k, (name, target) in enumerate(targets.items()):
        risk = gflow.PopulationRisk(target, gflow.piecewise.uniform(-1.0, 1.0))
        found = []
        number = 30 if long else 6
        for seed in range(number):
            net = gflow.ShallowNet(1, WIDTH, key=jax.random.key(seed))
            flow = gflow.solve_flow(risk, net, t1=T1, ts=ts)
            point = gflow.refine(risk, flow.final, throw=False)
            if point.kind != "not found":
                found.append(gflow.lojasiewicz(flow, point.risk, point.net))
            gap = np.abs(np.asarray(flow.risk) - point.risk)
            axes.loglog(ts, gap, color=f"C{k}", linewidth=0.8, label=None if seed else name)
        powers = [of.rate.value for of in found if of.rate.law == "power"]
        largest = max(of.risk_bound.at for of in found)
        words = f"{name}, {number} flows"
        claims += [
            at_least(
                f"{words}: those with a critical point at the end", SOURCE, number, len(found)
            ),
            at_most(f"{words}: time of the largest (1 + t)(L − L∞)", SOURCE, T1 / 100, largest),
        ]
        if powers:
            words = f"{words}: smallest exponent of {len(powers)} power laws called"
            claims.append(at_least(words, SOURCE, 1.0, min(powers)))
    axes.loglog(ts, 1 / ts, "k--", label="1/t")
    axes.set(xlabel="t", ylabel="risk − its limit", ylim=(1e-17, 10))
    axes.legend()
    return Exhibit(tuple(claims), figure)
