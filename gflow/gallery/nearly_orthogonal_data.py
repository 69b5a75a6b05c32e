r"""Nearly orthogonal data: descent finds layers of small stable rank, and equal margins.

n rows with $\|x_i\|^2 \ge C n \max_k |\langle x_i, x_k\rangle|$, one C for all n, logistic loss
and the first layer trained. The stable rank $\|W\|_F^2 / \|W\|_2^2$ of units of one sign tends to 1
for leaky ReLU, and is bounded for ReLU. The ratio of two margins $q_i = y_i N(x_i)$ tends to 1.
With $s_{ji}$ the slope of unit j at row i in the end, and outer weights ±1/√m of m units,

$$H_{ik} = y_i y_k \langle x_i, x_k\rangle \tfrac1m \sum_j s_{ji} s_{jk}, \quad He = \mathbf 1,
  \quad w_j \propto \pm\sum_k s_{jk} y_k e_k x_k, \quad q_i - \log \frac{t}{n e_i} \to 0 .$$

For ReLU a row stays with the $k_i$ units of its sign that see it at first. From them alone the
stable rank is at most $\frac m2 \sum_i k_i^{-1} \|x_i\|^{-2} / \sum_i \|x_i\|^{-2}$, about 2.
"""

import jax
import numpy as np

import gflow
from gflow.gallery.claims import BLACK, RED, Exhibit, at_least, at_most, equal, panels

SOURCE = "Kou, Chen, Gu, arXiv 2310.18935"
C, WIDTH, SLOPE, STEP, STEPS = 8.0, 32, 0.3, 30.0, 20_000
SIGNS = np.tile([1.0, -1.0], WIDTH // 2)
_stable_rank = lambda w: float(np.sum(w**2) / np.linalg.norm(w, 2) ** 2)


def _rows(number: int) -> np.ndarray:
    """Rows of these lengths, in a frame of their span, with random inner products up to C's."""
    lengths = np.linspace(0.7, 1.4, number)
    half = np.triu(np.random.default_rng(number).uniform(-1, 1, (number, number)), 1)
    half *= (1 - 1e-9) * lengths[0] ** 2 / (C * number * np.max(np.abs(half)))
    return np.linalg.cholesky(np.diag(lengths**2) + half + half.T)


def _theory(x: np.ndarray, labels: np.ndarray, slopes: np.ndarray) -> tuple[np.ndarray, ...]:
    """e, and the first layer up to its size."""
    kernel = np.outer(labels, labels) * (x @ x.T) * (slopes.T @ slopes) / len(slopes)
    e = np.linalg.solve(kernel, np.ones(len(x)))
    return e, SIGNS[:, None] * slopes * labels * e @ x


def _descent(x: np.ndarray, labels: np.ndarray, kind: str) -> gflow.Trajectory:
    w = 1e-3 * jax.random.normal(jax.random.key(len(x)), (WIDTH, len(x)))
    net = gflow.ShallowNet.from_arrays(w, None, SIGNS / WIDTH**0.5, None, activation=kind)
    risk = gflow.EmpiricalRisk(x, labels, loss="logistic")
    observe = {"margins": lambda net: labels * risk.predictions(net)}
    options: dict = {"num_steps": STEPS * max(1, len(x) // 32) ** 2, "trainable": ("w",)}
    return gflow.descend(risk, net, step_size=STEP, record=60, observe=observe, **options)


def exhibit(*, long: bool = False) -> Exhibit:
    """4, 16 and 32 rows; 64 as well if it is long."""
    (figure, axes), claims, off, bounded, alike, left = panels(2), [], [], [], [], 0
    for rows, style in list({4: "-", 16: "--", 32: ":", 64: "-."}.items())[: 4 if long else 3]:
        x, labels = _rows(rows), np.tile([1.0, -1.0], rows // 2)
        squares, like = np.sum(x**2, axis=1), np.equal.outer(SIGNS, labels)
        for kind, slope, colour in ((f"leaky_relu({SLOPE})", SLOPE, BLACK), ("relu", 0.0, RED)):
            run, words = _descent(x, labels, kind), f"{kind}, {rows} rows"
            weights, margins = np.asarray(run.params.w), np.asarray(run.observed["margins"])
            first, last = ((weights[k] @ x.T > 0) & like for k in (0, -1))
            e, layer = _theory(x, labels, np.where(last, 1.0, slope))
            *ranks, expected = (_stable_rank(w[SIGNS > 0]) for w in (*weights, layer))
            claims.append(equal(f"{words}: stable rank", SOURCE, expected, ranks[-1], 0.01))
            alike.append(np.corrcoef(layer.ravel(), weights[-1].ravel())[0, 1])
            if kind == "relu":
                seen, weighing = np.sum(first, axis=0)[labels > 0], 1 / squares[labels > 0]
                bounded.append(ranks[-1] * 2 / WIDTH / np.average(1 / seen, weights=weighing))
                left += int(np.sum(first & ~last))
            off.append(np.max(np.abs(margins[-1] - np.log(run.ts[-1] / (rows * e)))))
            ratio, late = np.max(margins, axis=1) / np.min(margins, axis=1), run.ts > 100
            axes[0].semilogx(run.ts[1:], ranks[1:], style, color=colour, label=words)
            axes[1].semilogx(run.ts[late], ratio[late], style, color=colour)
    claims.append(at_least("all: correlation of W with theory's", SOURCE, 0.97, min(alike)))
    claims.append(at_most("all: |q − log(t/(ne))| at the end", SOURCE, 0.01, max(off)))
    claims.append(at_most("relu: largest stable rank over its bound", SOURCE, 1.0, max(bounded)))
    claims.append(at_most("relu: rows lost by a unit of their sign", SOURCE, 0, left))
    axes[0].set(xlabel="t", ylabel="stable rank, units of one sign")
    axes[1].set(xlabel="t", ylabel="largest margin over the smallest")
    axes[0].legend()
    return Exhibit(tuple(claims), figure)
