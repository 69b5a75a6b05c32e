r"""Deep linear networks: modes in closed form, plateaus at critical values, global minima.

For $L = \|W_K \cdots W_1 - S\|_F^2$ the singular values u of a balanced start that is aligned with
S follow, each with its s of S,

$$\dot u = 2K u^{2 - 2/K} (s - u), \quad \text{so} \quad
  u(t) = s / (1 + (s/u_0 - 1) e^{-4st}) \quad \text{for } K = 2,$$

and the critical values are the sums of $s_i^2$ over modes that are not learnt.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import quad
from scipy.signal import argrelmin

import gflow
from gflow.gallery.claims import BLACK, RED, Exhibit, at_most, equal, panels

MODES = "Bah, Rauhut, Terstiege, Westdickenberg, arXiv 1910.05505"
MINIMA = "Nguegnang, Rauhut, Terstiege, arXiv 2108.02040"
TARGET = np.array([3.0, 2.0, 1.0])
T1 = 300.0


def _product(weights: list[jax.Array]) -> jax.Array:
    return jnp.linalg.multi_dot(weights[::-1])


def _risk(weights: list[jax.Array]) -> jax.Array:
    return jnp.sum((_product(weights) - jnp.diag(jnp.asarray(TARGET))) ** 2)


def _random(depth: int, width: int, size: float, seed: int) -> list[jax.Array]:
    sizes = [3] + [width] * (depth - 1) + [3]
    keys = zip(jax.random.split(jax.random.key(seed), depth), sizes[1:], sizes[:-1], strict=True)
    return [size * jax.random.normal(key, (n, m)) for key, n, m in keys]


def _aligned(depth: int, modes: list[float], ts: np.ndarray) -> np.ndarray:
    """The diagonal of the product at these times, from equal layers with these modes in all."""
    layer = jnp.diag(jnp.array(modes) ** (1 / depth))
    flow = gflow.solve_flow(_risk, [layer] * depth, t1=ts[-1], ts=ts, rtol=1e-10)
    return np.array([np.diag(_product(weights)) for weights in flow])


def exhibit(*, long: bool = False) -> Exhibit:
    """6 random starts for each depth and width, or 60 if it is long."""
    ts, small = np.linspace(0, 3, 61), 1e-2
    two, three = (_aligned(depth, [small] * 3, ts) for depth in (2, 3))
    logistic = TARGET / (1 + (TARGET / small - 1) * np.exp(-4 * TARGET * ts[:, None]))
    reached = three[20, 0]
    taken = quad(lambda u: 1 / (6 * u ** (4 / 3) * (TARGET[0] - u)), small, reached)[0]
    rank_two = np.sum((_aligned(3, [0.1, 0.0, 0.1], np.array([0.0, T1]))[-1] - TARGET) ** 2)
    slow = gflow.solve_flow(_risk, _random(2, 3, 1e-6, 0), t1=12.0, ts=np.linspace(0, 12, 1201))
    rests = np.asarray(slow.risk)[argrelmin(np.asarray(slow.grad_norm))]
    critical = np.cumsum(TARGET[::-1] ** 2)[1::-1]
    error, away = (float(np.max(np.abs(a))) for a in (two - logistic, rests[:2] - critical))
    claims = [
        at_most("two layers: modes against the logistic curve", MODES, 1e-8, error),
        equal("three layers: time of the first mode", MODES, taken, float(ts[20]), 1e-6),
        equal("a start without mode 2: limit of the risk", MINIMA, TARGET[1] ** 2, rank_two, 1e-9),
        at_most("small start: rests, distance from 5 and 1", MINIMA, 1e-2, away),
    ]
    for depth, width in ((2, 3), (3, 2)):
        nets = [_random(depth, width, 0.6, seed) for seed in range(60 if long else 6)]
        ends = [gflow.solve_flow(_risk, net, t1=T1, ts=[T1]).risk[-1] for net in nets]
        best = float(np.sum(TARGET[width:] ** 2))
        away = max(abs(float(end) - best) for end in ends)
        words = f"{depth} layers of width {width}, {len(nets)} starts: distance from {best:.0f}"
        claims.append(at_most(words, MINIMA, 1e-6, away))
    figure, axes = panels(2)
    axes[0].plot(ts, two, "-", color=BLACK)
    axes[0].plot(ts[::2], logistic[::2], ".", color=RED)
    axes[0].set(xlabel="t", ylabel="singular values, and theory")
    axes[1].plot(slow.ts, slow.risk, color=BLACK)
    axes[1].hlines(critical, 0, slow.ts[-1], color=RED, linestyle="--", linewidth=0.8)
    axes[1].set(xlabel="t", ylabel="risk, and critical values")
    return Exhibit(tuple(claims), figure)
