r"""Averaged stochastic descent in the tangent kernel regime attains the minimax rate.

Inputs on the circle, the eigenfunctions of the ReLU tangent kernel with $\mu_i \sim i^{-\beta}$,
β = 2; a target $c_i \propto \mu_i^r i^{-1/2}$ is seen with noise of variance σ². The mean of T
steps on one row each, with weight decay $λ \sim T^{-\beta / (2r\beta + 1)}$, is off by the square

$$\sum_i (λ^2 c_i^2 + μ_i^2 σ^2 / T) / (λ + μ_i)^2 \sim T^{-2rβ / (2rβ + 1)} .$$

λ is such that bias and variance are alike at these T, where the power shows to 10 %. The sum leaves
out the noise of inputs. The last iterate stays at hσ²/(1 − h), as the kernel is 1 on the diagonal.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gflow
from gflow.gallery.claims import Exhibit, equal, panels

SOURCE = "Nitanda, Suzuki, arXiv 2006.12297"
ROWS, HARMONICS, NOISE, STEP, BETA = 65_536, 128, 0.5, 0.2, 2.0
TIMES, STAYS = np.array([1_024, 4_096, 16_384]), STEP * NOISE**2 / (1 - STEP)


def _moves(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    """Descent in the first row, whose mean is the second one; the state counts steps."""
    now, mean = params.w[0] - STEP * updates.w[0], params.w[1]
    moved = jnp.stack([now, mean + (now - mean) / (state + 1)])
    return jax.tree.map(lambda w: moved - w, params), state + 1


def _basis(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of the kernel of both layers, falling, and the eigenfunctions there."""
    grid = np.linspace(-np.pi, np.pi, 2**14, endpoint=False)
    kernel = (2 * (np.pi - abs(grid)) * np.cos(grid) + np.sin(abs(grid))) / (2 * np.pi)
    values = np.abs(np.fft.rfft(kernel))[:HARMONICS] / len(grid)
    k = np.repeat([0, 1, *range(2, HARMONICS, 2)], 2)[1:]  # the others are not in the kernel
    waves = np.cos(k * angle[:, None] - np.pi / 2 * (np.arange(len(k)) % 2))
    return values[k], np.sqrt(1 + (k > 0)) * waves


def exhibit(*, long: bool = False) -> Exhibit:
    """16 descents for each number of steps, or 200 if it is long."""
    keys = jax.random.split(jax.random.key(2), 200 if long else 16)
    mu, basis = _basis(np.array(jax.random.uniform(keys[0], (ROWS,), maxval=2 * np.pi)))
    noise = NOISE * np.array(jax.random.normal(keys[1], (ROWS,)))
    noise -= basis @ np.linalg.solve(basis.T @ basis, basis.T @ noise)
    arrays = np.zeros((2, len(mu))), None, [1.0, 0.0], None
    net = gflow.ShallowNet.from_arrays(*arrays, activation="identity")
    options = {"step_size": STEP, "batch_size": 1, "record": [0], "trainable": ("w",)}
    optimiser = optax.GradientTransformation(lambda params: jnp.zeros(()), _moves)
    claims, (figure, (axes,)) = [], panels(1)
    for r, factor, colour in ((0.5, 1.0, "black"), (1.0, 0.3, "#c44536")):
        target = mu**r / np.arange(1, len(mu) + 1) ** 0.5
        target /= np.linalg.norm(target)
        data = gflow.EmpiricalRisk(basis * np.sqrt(mu), basis @ target + noise)
        rate, gaps, theory = 2 * r * BETA / (2 * r * BETA + 1), [], []
        for steps in TIMES.tolist():
            decay = factor * steps ** (-rate / (2 * r))
            risk = gflow.PenalisedRisk(data, weight_decay=2 * decay)
            run = partial(gflow.descend, risk, net, optimiser, num_steps=steps, **options)
            found = np.sqrt(mu) * np.array([run(key=key).final.w for key in keys])
            gaps.append(np.mean(np.sum((found - target) ** 2, axis=2), axis=0))
            kept, lost = mu / (mu + decay), decay / (mu + decay)
            theory.append(np.sum((lost * target) ** 2 + (NOISE * kept) ** 2 / steps))
        last, mean = np.array(gaps).T
        power = -float(np.polyfit(np.log(TIMES), np.log(mean), 1)[0])
        claims += [
            equal(f"r = {r}: power of 1/T from T = 1,024, to 10 %", SOURCE, rate, power, 0.1),
            equal(f"r = {r}: distance at the end, to 30 %", SOURCE, theory[-1], mean[-1], 0.3),
            equal(f"r = {r}: the last iterate", "stationary law", STAYS, float(np.mean(last)), 0.2),
        ]
        axes.loglog(TIMES, mean, "o", TIMES, theory, "-", TIMES, last, "x", color=colour)
    axes.legend(["mean, r = ½ and 1", "theory", "last iterate"])
    axes.set(xlabel="steps", ylabel="squared distance", ylim=(4e-4, 0.3))
    return Exhibit(tuple(claims), figure)
