r"""Why descent converges although the slope of ReLU is constant.

The gradient is a mean of residuals times inputs: it shrinks with the residuals, whatever the slope
of the activation. For relu(mx + b) on rows that are all active, the flow is that of least squares,

$$\theta(t) - \theta^* = e^{-2Mt}(\theta(0) - \theta^*), \quad
  M = \frac1n \sum_k (x_k,1)(x_k,1)^\top.$$
"""

import numpy as np
from matplotlib.figure import Figure
from scipy.linalg import expm

import gflow
from gflow.gallery.claims import Exhibit, at_most, equal, panels

SOURCE = "least squares, in closed form"
X = np.linspace(0.5, 2.0, 16)
BEST, START, STEP = np.array([2.0, 1.0]), np.array([0.5, 0.2]), 0.1
TRAINED = ("w", "b")


def _net(slope: float, intercept: float) -> gflow.ShallowNet:
    return gflow.ShallowNet.from_arrays([[slope]], [intercept], [1.0], 0.0)


def _lines(flow: gflow.Trajectory) -> np.ndarray:
    """Slope and intercept at the saved times."""
    return np.stack([flow.params.w[:, 0, 0], flow.params.b[:, 0]], axis=1)


def exhibit(*, long: bool = False) -> Exhibit:
    """The line, its rate, and starts with rows on both sides or all on the wrong side."""
    del long
    rows = np.stack([X, np.ones_like(X)])
    risk = gflow.EmpiricalRisk(X[:, None], BEST @ rows)
    moments = rows @ rows.T / len(X)
    slowest = np.linalg.eigvalsh(moments)[0]
    options = {"ts": np.linspace(0, 60, 121), "t1": 60.0, "trainable": TRAINED, "rtol": 1e-10}
    flow = gflow.solve_flow(risk, _net(*START), **options)
    across = gflow.solve_flow(risk, _net(2.0, -2.5), **options)
    dead = gflow.solve_flow(risk, _net(-1.0, 0.2), **options)
    last = {"num_steps": 400, "record": [399, 400], "trainable": TRAINED}
    descent = gflow.descend(risk, _net(*START), step_size=STEP, **last)

    exact = [BEST + expm(-2 * moments * t) @ (START - BEST) for t in flow.ts]
    error = np.max(np.abs(_lines(flow) - exact))
    rate = gflow.fit_rate(flow.ts, flow.risk).value
    ratio = float(descent.risk[-1] / descent.risk[-2])
    factor = (1 - 2 * STEP * slowest) ** 2
    arrived = float(np.linalg.norm(_lines(across)[-1] - BEST))
    number = int(across.stats["num_kinks"])
    joins = f"inactive rows join in, across {number} kinks: distance to the line"
    claims = (
        at_most("the flow is that of least squares: largest error", SOURCE, 1e-8, error),
        equal("the risk falls as exp(−4 λ_min(M) t)", SOURCE, 4 * slowest, rate, 1e-3),
        equal("a step h of descent: factor (1 − 2hλ_min)²", SOURCE, factor, ratio, 1e-4),
        at_most(joins, SOURCE, 1e-2, arrived),
    )
    return Exhibit(claims, _figure(flow, across, dead))


def _figure(*flows: gflow.Trajectory) -> Figure:
    figure, axes = panels(2)
    for flow, name in zip(flows, ("all active", "some active", "none active"), strict=True):
        axes[0].semilogy(flow.ts, flow.risk, label=name)
        axes[1].loglog(np.sqrt(flow.risk), flow.grad_norm, label=name)
    axes[0].set(xlabel="t", ylabel="risk")
    axes[1].set(xlabel="root mean square residual", ylabel="norm of the gradient")
    axes[0].legend(title="rows at the start")
    return figure
