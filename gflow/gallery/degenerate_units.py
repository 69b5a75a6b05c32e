r"""Degenerate units: a unit can reach w = b = 0 in finite time, and stays there.

One unit with inputs uniform in [−1, 1] and the target 0, from (w, b, v, c) = (0, ½, 1, 1): the flow
is symmetric, w stays 0, and b and c fall together until at

$$t^* = 0.322181529585, \qquad v = \tfrac12\sqrt 3, \qquad c = 1 - \tfrac12 \ln 3$$

b is 0. Of the solutions from there the theory singles out the one on which the unit stays
degenerate: then c falls as exp(−2(t − t*)).
"""

import numpy as np

import gflow
from gflow.gallery.claims import BLACK, Exhibit, at_most, equal, panels

SOURCE = "Eberle, Jentzen, Riekert, Weiss, arXiv 2108.08106, in closed form"
COLLAPSE, T1 = 0.322181529585, 3.0


def exhibit(*, long: bool = False) -> Exhibit:
    """One flow."""
    del long
    density = gflow.piecewise.uniform(-1.0, 1.0)
    risk = gflow.PopulationRisk(gflow.piecewise.constant(0.0, -1.0, 1.0), density)
    net = gflow.ShallowNet.from_arrays([[0.0]], [0.5], [1.0], 1.0)
    ts = np.linspace(0.0, T1, 301)
    flow = gflow.solve_flow(risk, net, t1=T1, ts=ts, rtol=1e-10)
    after = ts > COLLAPSE
    assert flow.params.b is not None
    unit = np.abs(np.stack([flow.params.w[after, 0, 0], flow.params.b[after, 0]]))
    v, c = flow.params.v[:, 0], np.asarray(flow.params.c)
    at_collapse = 1 - np.log(3) / 2
    # The constant decays from its value at the collapse, which tells when that was.
    time = T1 + 0.5 * np.log(c[-1] / at_collapse)
    rate = -np.polyfit(ts[after], np.log(c[after]), 1)[0]
    claims = (
        equal("the time at which the unit collapses", SOURCE, COLLAPSE, float(time), 1e-9),
        equal("v from then on", SOURCE, np.sqrt(3) / 2, float(v[-1]), 1e-10),
        at_most("w and b from then on", SOURCE, 0.0, float(unit.max())),
        equal("the rate of the constant", SOURCE, 2.0, float(rate), 1e-8),
    )
    figure, (axes,) = panels(1)
    for values, name in ((flow.params.b[:, 0], "b"), (v, "v"), (c, "c")):
        axes.plot(ts, values, label=name)
    axes.axvline(COLLAPSE, color=BLACK, linewidth=0.8, linestyle="--")
    axes.set(xlabel="t", ylabel="parameters; t* dashed")
    axes.legend()
    return Exhibit(claims, figure)
