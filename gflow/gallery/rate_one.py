r"""Flows that do not diverge converge, and their risk falls at least like 1/t.

For piecewise polynomial targets and densities every flow of bounded θ has a limit ϑ with G(ϑ) = 0,
and there are C and β with, for all t,

$$\|\theta(t) - \vartheta\| \le C (1 + t)^{-\beta}, \quad L(\theta(t)) - L(\vartheta) \le C/(1+t).$$

Theory names no β; here ½ is enough. A bound holds if C is attained before the end. On piecewise
affine targets a kink left inside, δ from an edge, makes L ~ δ³ and δ' ~ −δ²: L ~ t⁻³, δ ~ t⁻¹.
"""

import jax
import numpy as np

import gflow
from gflow.gallery.claims import AMBER, BLACK, BLUE, RED, Exhibit, at_least, at_most, equal, panels

SOURCE = "Eberle, Jentzen, Riekert, Weiss, arXiv 2108.08106"
T1, WIDTH = 1e8, 3
NOISE = 1e-15  # rounding of the risk


def _distances(flow: gflow.Trajectory, net: gflow.ShallowNet) -> np.ndarray:
    """Distances from a network, at the saved times."""
    moved = jax.tree.map(lambda a, b: (a - b).reshape(len(a), -1), flow.params, net)
    return np.linalg.norm(np.concatenate(jax.tree.leaves(moved), axis=1), axis=1)


def exhibit(*, long: bool = False) -> Exhibit:
    """Six random starts for each of four problems, or thirty if it is long."""
    uniform, triangular = gflow.piecewise.uniform(-1, 1), gflow.piecewise.triangular(-1, 1, 0.25)
    problems = {
        "parabola": (gflow.piecewise.parabola(), uniform),
        "tent": (gflow.piecewise.tent(), uniform),
        "zig-zag": (gflow.piecewise.zigzag(), uniform),
        "wave, triangular law": (gflow.piecewise.wave(), triangular),
    }
    ts, number = np.geomspace(1e-1, T1, 160), 30 if long else 6
    late = (ts > 1e3) & (ts < 1e5)
    claims, (figure, axes) = [], panels(2)
    for name, colour in zip(problems, (BLACK, RED, AMBER, BLUE), strict=True):
        risk, found, latest, powers = gflow.PopulationRisk(*problems[name]), [], [], []
        for seed in range(number):
            net = gflow.ShallowNet(1, WIDTH, key=jax.random.key(seed))
            flow = gflow.solve_flow(risk, net, t1=T1, ts=ts)
            point = gflow.refine(risk, flow.final, throw=False)
            if point.kind != "not found":
                found.append(gflow.lojasiewicz(flow, point.risk, point.net))
                away = _distances(flow, flow.final)
                latest.append(ts[np.argmax(np.sqrt(1 + ts) * away * (ts < T1 / 10))])
                axes[1].loglog(ts[:-1], away[:-1], color=colour, linewidth=0.8)
                if found[-1].rate.law == "power":
                    left = np.log(1 / ts[late] - 1 / T1)
                    slope = np.polyfit(left, np.log(away[late]), 1)[0]
                    powers.append((found[-1].rate.value, float(slope)))
            gap = np.abs(np.asarray(flow.risk) - point.risk)
            shown = np.where(gap > NOISE, gap, np.nan)
            label = None if seed else name.partition(",")[0]
            axes[0].loglog(ts, shown, color=colour, linewidth=0.8, label=label)
        largest = max((of.risk_bound.at for of in found), default=np.inf)
        latest = max(latest, default=np.inf)
        words = f"{name}, {number} flows"
        claims += [
            at_least(f"{words}: critical points at their ends", SOURCE, number, len(found)),
            at_most(f"{words}: time of the largest (1 + t)(L − L∞)", SOURCE, T1 / 100, largest),
            at_most(f"{words}: time of the largest √(1 + t)‖θ − θ(T)‖", SOURCE, T1 / 100, latest),
        ]
        if name in ("tent", "zig-zag"):
            words = f"{words}: median exponent of {len(powers)} power laws of"
            of_risk, of_distance = np.median(powers, axis=0)
            claims.append(equal(f"{words} the risk", "L ~ δ³ at an edge", 3.0, of_risk, 2e-2))
            claims.append(equal(f"{words} ‖θ − θ(T)‖", "δ ~ 1/t there", 1.0, of_distance, 0.1))
    axes[0].loglog(ts, 1 / ts, "k--", label="1/t")
    axes[0].set(xlabel="t", ylabel="risk − its limit", ylim=(NOISE, 10))
    axes[0].legend(loc="lower left")
    axes[1].loglog(ts, ts**-0.5, "k--", label="1/√t")
    axes[1].set(xlabel="t", ylabel="‖θ − θ(T)‖", ylim=(1e-8, 10))
    axes[1].legend()
    return Exhibit(tuple(claims), figure)
