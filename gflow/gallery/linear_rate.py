r"""Descent of wide networks: the risk falls at a linear rate, set by the smallest eigenvalue of H.

One hidden layer of ReLU with biases, all parameters trained, no two rows $\tilde x = (x, 1)$
parallel, in the scaling 1/√m. The tangent kernel of width m tends to

$$H_{ij} = \frac{(\pi - \varphi) \tilde x_i \cdot \tilde x_j}{2\pi}
  + \frac{|\tilde x_i| |\tilde x_j|}{2\pi} (\sin\varphi + (\pi - \varphi) \cos\varphi) + 1 ,$$

φ the angle of the rows, and a step h of descent multiplies the risk by $(1 - 2hλ_{\min}(H)/n)^2$.
"""

import jax
import numpy as np

import gflow
from gflow.gallery.claims import AMBER, BLACK, RED, Exhibit, at_most, equal, panels

SOURCE = "Jentzen, Kröger, arXiv 2102.11840"
X = np.array([[1.0, 0.0], [0.3, 1.1], [-0.9, 0.6], [-0.5, -1.0], [0.6, -0.8]])
Y = np.array([1.0, -0.5, 0.8, -1.0, 0.3])
STEP, STEPS, WIDTHS = 0.3, 400, (128, 2_048, 32_768)


def _smallest_eigenvalue() -> float:
    """λ_min(H), of the kernel of infinite width."""
    rows = np.column_stack([X, np.ones(len(X))])
    norms, products = np.linalg.norm(rows, axis=1), rows @ rows.T
    sizes = np.outer(norms, norms)
    angle = np.arccos(np.clip(products / sizes, -1, 1))
    means = sizes * (np.sin(angle) + (np.pi - angle) * np.cos(angle))
    return float(np.linalg.eigvalsh(((np.pi - angle) * products + means) / (2 * np.pi) + 1)[0])


def _descent(x: np.ndarray, y: np.ndarray, width: int, seed: int) -> gflow.Trajectory:
    net = gflow.ShallowNet(2, width, key=jax.random.key(seed), init="ntk")
    risk, every = gflow.EmpiricalRisk(x, y), np.arange(0, STEPS + 1, 10)
    return gflow.descend(risk, net, step_size=STEP, num_steps=STEPS, record=every)


def exhibit(*, long: bool = False) -> Exhibit:
    """6 starts for each width, or 60 if it is long."""
    smallest, steps = _smallest_eigenvalue(), np.arange(0, STEPS + 1, 10)
    factor = (1 - 2 * STEP * smallest / len(X)) ** 2
    figure, axes = panels(2)
    above, claims = 0.0, []
    for width, colour in zip(WIDTHS, (RED, AMBER, BLACK), strict=True):
        runs = [_descent(X, Y, width, seed) for seed in range(60 if long else 6)]
        falls = np.array([run.risk / run.risk[0] for run in runs])
        late = -np.log(falls[:, -1] / falls[:, 20]) / (steps[-1] - steps[20])
        above = max(above, float(np.max(falls[:, 1:] / factor ** (steps[1:] / 2))))
        words = f"{width} units: log factor of a step, mean of {len(runs)} starts"
        claims.append(equal(words, SOURCE, -np.log(factor), float(np.mean(late)), 3 * width**-0.5))
        lines = axes[0].semilogy(steps, falls.T, color=colour, linewidth=0.8)
        lines[0].set_label(f"{width:,d} units")
        axes[1].semilogx(np.full(len(late), width), late, "o", color=colour, markersize=3)
    limit = float(_descent(np.append(X, X[:1], 0), np.append(Y, 0.0), WIDTHS[1], 0).risk[-1])
    claims += [
        at_most("any width: risk over that of half the rate", SOURCE, 1.0, above),
        equal("a row twice, with y = 1 and 0: limit of the risk", SOURCE, 1 / 12, limit, 1e-9),
    ]
    axes[0].semilogy(steps, factor**steps, "--", color=BLACK, linewidth=0.8, label="theory")
    axes[0].legend()
    axes[0].set(xlabel="step", ylabel="risk over that at the start")
    axes[1].axhline(-np.log(factor), color=BLACK, linestyle="--", linewidth=0.8)
    axes[1].set(xlabel="units", ylabel="rate per step, and theory")
    return Exhibit(tuple(claims), figure)
