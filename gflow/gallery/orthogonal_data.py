r"""Leaky ReLU on orthogonal data: the flow turns to the network of largest margin, of rank two.

First layer trained, outer weights ±1/√m, half of each sign, σ(z) = max(γz, z), labels ±1. The flow
turns to a KKT point of the margin problem, which is known for orthogonal rows: the units are
multiples of

$$v = \sum_{y_i = 1} \lambda_i x_i - \gamma \sum_{y_i = -1} \lambda_i x_i
  \;\text{ or }\; u = \sum_{y_i = -1} \lambda_i x_i - \gamma \sum_{y_i = 1} \lambda_i x_i, \qquad
  \lambda_i = \frac{2}{(1 + \gamma^2) \|x_i\|^2},$$

by their signs, all margins are equal and N has the sign of ⟨v − u, x⟩. Followed is the logarithm of
the risk of loss exp(−yN), whose flow has the same orbits.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gflow
from gflow.gallery.claims import BLACK, Exhibit, at_least, at_most, equal, panels

SOURCE = "Frei, Vardi, Bartlett, Srebro, Hu, arXiv 2210.07082"
SLOPE, WIDTH, INPUTS = 0.3, 10, 8
LABELS = np.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
TS = np.geomspace(1e-2, 1e5, 120)


def _data(key: jax.Array) -> np.ndarray:
    """Orthogonal rows of different lengths."""
    rows = np.linalg.qr(jax.random.normal(key, (INPUTS, INPUTS)))[0][: len(LABELS)]
    return rows * np.linspace(0.7, 1.6, len(LABELS))[:, None]


def _limit(x: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The first layer of largest margin, scaled to norm 1."""
    multipliers = 2 / ((1 + SLOPE**2) * np.sum(x**2, axis=1))
    factors = np.where(signs[:, None] * LABELS > 0, 1.0, -SLOPE)
    w = factors @ (multipliers[:, None] * x)
    return w / np.linalg.norm(w)


def _flow(x: np.ndarray, net: gflow.ShallowNet) -> gflow.Trajectory:
    """First in time, until all kinks are behind, then in the time of the logarithm."""
    risk = gflow.EmpiricalRisk(x, LABELS, loss=lambda output, label: jnp.exp(-label * output))
    first = gflow.solve_flow(risk, net, t1=100.0, trainable=("w",))
    log_risk = lambda net: jax.nn.logsumexp(-LABELS * jax.vmap(net)(x))
    return gflow.solve_flow(log_risk, first.final, t1=TS[-1], ts=TS, trainable=("w",))


def exhibit(*, long: bool = False) -> Exhibit:
    """One flow, or 10 if it is long."""
    signs = np.tile([1.0, -1.0], WIDTH // 2)
    figure, axes = panels(2)
    claims = []
    for seed in range(10 if long else 1):
        keys = jax.random.split(jax.random.key(seed), 3)
        x, w = _data(keys[0]), 0.1 * jax.random.normal(keys[1], (WIDTH, INPUTS))
        kind, limit = f"leaky_relu({SLOPE})", _limit(x, signs)
        start = gflow.ShallowNet.from_arrays(w, None, signs / WIDTH**0.5, None, activation=kind)
        flow = _flow(x, start)
        layers = np.asarray(flow.params.w)
        directions = layers / np.linalg.norm(layers, axis=(1, 2), keepdims=True)
        away = np.linalg.norm(directions - limit, axis=(1, 2))
        singular = np.linalg.svd(directions, compute_uv=False)
        margins = np.asarray(LABELS * jax.vmap(flow.final)(x))
        ratio = float(np.max(margins) / np.min(margins))
        points = np.array(jax.random.normal(keys[2], (10_000, INPUTS)))
        straight = np.sign(points @ (limit[0] - limit[1])) == np.sign(jax.vmap(flow.final)(points))
        claims += [
            at_most("distance of W/‖W‖ from the KKT point", SOURCE, 1e-3, float(away[-1])),
            at_most("third singular value of W/‖W‖", SOURCE, 1e-3, float(singular[-1, 2])),
            equal("largest margin over the smallest", SOURCE, 1.0, ratio, 1e-3),
            at_least("inputs classified as by ⟨v − u, x⟩", SOURCE, 0.999, float(np.mean(straight))),
        ]
        axes[0].loglog(TS, away, color=BLACK)
        axes[1].loglog(TS, singular, color=BLACK)
    axes[0].set(xlabel="time of the logarithm", ylabel="distance from the KKT point")
    axes[1].set(xlabel="time of the logarithm", ylabel="singular values of W/‖W‖")
    return Exhibit(tuple(claims), figure)
