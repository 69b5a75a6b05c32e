r"""Nearly orthogonal data: descent finds layers of small stable rank, and equal margins.

n rows with $\|x_i\|^2 \ge C n \max_k |\langle x_i, x_k\rangle|$, first layer trained, logistic
loss. The stable rank $\|W\|_F^2 / \|W\|_2^2$ of the units of one sign tends to 1 for leaky ReLU and
is bounded for ReLU. The ratio of any two margins $q_i = y_i N(x_i)$ tends to 1. For leaky ReLU of
slope γ, with $H_{ik} = \langle x_i, x_k\rangle (1 + \gamma^2)/2$ for rows of one label and
$-\gamma\langle x_i, x_k\rangle$ for others, $\dot q \propto H (e^{-q_k})_k$ in the end, so that

$$q_i - q_k \to \log(e_k / e_i), \quad He = (1, \dots, 1)^\top, \qquad q_i \approx \log t,
  \qquad q_i / q_k - 1 = O(1 / \log t).$$
"""

import jax
import numpy as np

import gflow
from gflow.gallery.claims import Exhibit, at_most, equal, panels

SOURCE = "Kou, Chen, Gu, arXiv 2310.18935"
INPUTS, WIDTH, SLOPE = 1_000, 16, 0.3
STEP, STEPS = 30.0, 10_000
SIGNS = np.tile([1.0, -1.0], WIDTH // 2)


def _spread(x: np.ndarray, labels: np.ndarray) -> float:
    """By how much margins of leaky ReLU differ in the end."""
    alike = np.equal.outer(labels, labels)
    kernel = x @ x.T * np.where(alike, (1 + SLOPE**2) / 2, -SLOPE)
    return float(np.ptp(np.log(np.linalg.solve(kernel, np.ones(len(x))))))


def _descent(rows: int, activation: str) -> tuple[gflow.Trajectory, np.ndarray, np.ndarray, float]:
    """With the stable ranks, the margins (times, rows), and by how much they should differ."""
    keys, more = jax.random.split(jax.random.key(rows)), max(1, rows // 16)
    inputs = INPUTS * more**2  # as many as keep n |⟨x_i, x_k⟩|
    x = np.array(jax.random.normal(keys[0], (rows, inputs))) / inputs**0.5
    x *= (np.linspace(0.7, 1.4, rows) / np.linalg.norm(x, axis=1))[:, None]
    labels = np.tile([1.0, -1.0], rows // 2)
    w = 1e-3 * jax.random.normal(keys[1], (WIDTH, inputs))
    net = gflow.ShallowNet.from_arrays(w, None, SIGNS / WIDTH**0.5, None, activation=activation)
    risk = gflow.EmpiricalRisk(x, labels, loss="logistic")
    options = {"step_size": STEP, "num_steps": STEPS * more, "record": 60, "trainable": ("w",)}
    run = gflow.descend(risk, net, **options)
    singular = np.linalg.svd(np.asarray(run.params.w)[:, SIGNS > 0], compute_uv=False)
    margins = np.array([labels * risk.predictions(one) for one in run])
    ranks = np.sum(singular**2, axis=1) / singular[:, 0] ** 2
    return run, ranks, margins, _spread(x, labels)


def exhibit(*, long: bool = False) -> Exhibit:
    """4, 8 and 16 rows; 32 as well if it is long."""
    figure, axes = panels(2)
    claims, largest = [], 0.0
    for kind, colour in ((f"leaky_relu({SLOPE})", "black"), ("relu", "#c44536")):
        bound = 2.0 if kind == "relu" else 1.01
        for rows in (4, 8, 16, 32) if long else (4, 8, 16):
            run, ranks, margins, expected = _descent(rows, kind)
            words = f"{kind}, {rows} rows"
            claims.append(at_most(f"{words}: stable rank", SOURCE, bound, float(ranks[-1])))
            label = kind if rows == 4 else None
            late = run.ts > 100
            axes[0].semilogx(run.ts[1:], ranks[1:], color=colour, label=label)
            ratio = np.max(margins, axis=1) / np.min(margins, axis=1)
            axes[1].semilogx(run.ts[late], ratio[late], color=colour, label=label)
            largest = max(largest, float(ratio[-1]))
            if kind != "relu":
                differ = float(np.ptp(margins[-1]))
                claims.append(equal(f"{words}: margins differ by", SOURCE, expected, differ, 0.05))
    words = f"all runs, t ≥ {STEP * STEPS:.0e}: largest margin over the smallest"
    claims.append(at_most(words, SOURCE, 1.4, largest))
    axes[0].set(xlabel="t", ylabel="stable rank, units of one sign")
    axes[1].set(xlabel="t", ylabel="largest margin over the smallest")
    axes[1].legend()
    return Exhibit(tuple(claims), figure)
