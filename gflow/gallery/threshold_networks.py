r"""Threshold networks: the flow of the outer layers finds what a convex program finds.

Units $s_j 1\{\langle h_j, x\rangle \ge 0\}$ have no slope in h. With weight decay on the amplitudes
s and the outer weights v, and D the matrix of all activation patterns on the rows, training is

$$\min_w \tfrac12 \|Dw - y\|^2 + \beta \|w\|_1, \qquad w_j = s_j v_j .$$

If all of $\{0, 1\}^n$ are patterns, the fit is y, clipped at two levels that y exceeds by β in sum.
"""

from collections.abc import Iterator
from itertools import combinations, product

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

import gflow
from gflow.gallery.claims import RED, Exhibit, at_most, equal, panels

SOURCE = "Ergen, Gulluk, Lacotte, Pilanci, arXiv 2303.03382"
BETA, TS = 0.3, np.geomspace(1e-2, 1e3, 120)
_lasso = lambda d, y, w: float(np.sum((d @ w - y) ** 2) / 2 + BETA * np.sum(np.abs(w)))


def _convex_program(d: np.ndarray, y: np.ndarray) -> float:
    """Its minimum, over the positive and negative parts of w."""
    parts = np.concatenate([d, -d], axis=1)
    value = lambda w: (_lasso(parts, y, w), parts.T @ (parts @ w - y) + BETA)
    bounds = [(0, None)] * parts.shape[1]
    return minimize(value, np.ones(len(bounds)), jac=True, bounds=bounds, tol=1e-15).fun


def _networks(d: np.ndarray, y: np.ndarray) -> Iterator[float]:
    """The objective of the best network with each set of patterns, and signs of its units."""
    for units in range(1, len(y) + 1):
        for part in (np.stack(chosen, axis=1) for chosen in combinations(d.T, units)):
            if np.linalg.matrix_rank(part) == units:
                for signs in product((-BETA, BETA), repeat=units):
                    yield _lasso(part, y, np.linalg.solve(part.T @ part, part.T @ y - signs))


def _flows(d: np.ndarray, y: np.ndarray, number: int) -> list[gflow.Trajectory]:
    """Flows of amplitudes and outer weights, the two rows of an array, from random starts."""
    risk = lambda sv: jnp.sum((d @ (sv[0] * sv[1]) - y) ** 2) / 2 + BETA / 2 * jnp.sum(sv**2)
    starts = 0.3 * jax.random.normal(jax.random.key(0), (number, 2, d.shape[1]))
    return [gflow.solve_flow(risk, start, t1=TS[-1], ts=TS) for start in starts]


def exhibit(*, long: bool = False) -> Exhibit:
    """6 flows for each of the two sets of patterns, or 60 if it is long."""
    x, y = np.array([-0.8, -0.4, 0.0, 0.4, 0.8]), np.array([1.5, 0.2, -0.7, 0.4, 1.6])
    h, b = np.tile([[1.0], [-1.0]], (5, 1)), np.tile([-1.0, 1.0], 5) * np.repeat(x - 0.2, 2)
    step = lambda z: jnp.where(z >= 0, 1.0, 0.0)
    net = lambda h, b: gflow.ShallowNet.from_arrays(h, b, np.ones(10), 0.0, activation=step)
    risk, moves = gflow.EmpiricalRisk(x[:, None], y), np.random.default_rng(0).random((20, 2, 10))
    risks = [float(risk(net(h + dh[:, None], b + db))) for dh, db in 0.2 * moves - 0.1]
    d = np.asarray(step(x[:, None] @ h.T + b))
    every = np.array(list(product((0.0, 1.0), repeat=5)))[1:].T
    flows, clipping = (_flows(patterns, y, 60 if long else 6) for patterns in (d, every))
    best, worst = min(_networks(d, y)), max(float(flow.risk[-1]) for flow in flows)
    levels = y[2] + BETA, (y[0] + y[4] - BETA) / 2
    fits = [every @ np.prod(flow.final, axis=0) for flow in clipping]
    away = float(np.max(np.abs(fits - np.clip(y, *levels))))
    claims = (
        at_most("20 moves of all h by up to 0.1: risks differ by", SOURCE, 0.0, np.ptp(risks)),
        equal("the convex program, and all networks", SOURCE, best, _convex_program(d, y), 1e-9),
        equal(f"limit of the risk, the worst of {len(flows)} flows", SOURCE, best, worst, 1e-9),
        at_most("all patterns: fit, off the clipped targets", SOURCE, 1e-6, away),
    )
    figure, axes = panels(2)
    axes[0].loglog(TS, np.transpose([flow.risk - best for flow in flows]), "k-", linewidth=0.8)
    axes[0].set(xlabel="t", ylabel="risk above the optimum", ylim=(1e-13, 10))
    axes[1].plot(x, y, "o", x, fits[0], ".")
    axes[1].hlines(levels, -1, 1, color=RED, linestyle="--", linewidth=0.8)
    axes[1].legend(["targets", "fit by units of all patterns", "two levels"])
    axes[1].set(xlabel="x", ylabel="y", ylim=(-1.0, 3.0))
    return Exhibit(claims, figure)
