r"""Averaged stochastic descent in the tangent kernel regime attains the minimax rate.

Inputs on the circle, the eigenfunctions of the ReLU tangent kernel with $\mu_i \sim i^{-\beta}$,
β = 2; a target $c_i \propto \mu_i^r i^{-1/2}$ is seen with noise of variance σ². The mean of T
steps on one row each, with weight decay $λ \sim T^{-\beta / (2r\beta + 1)}$, is off by the square

$$\sum_i (λ^2 c_i^2 + μ_i^2 σ^2 / T) / (λ + μ_i)^2 \sim T^{-2rβ / (2rβ + 1)}$$

and by the noise of inputs: variances grow in a step h by $4h^2 μ_i^2$(σ² + squared distance).
"""

import jax
import numpy as np
import optax

import gflow
from gflow.gallery.claims import BLACK, RED, Exhibit, equal, panels

SOURCE = "Nitanda, Suzuki, arXiv 2006.12297"
ROWS, HARMONICS, NOISE, STEP, BETA, TIMES = 2**16, 128, 0.5, 0.2, 2.0, (2**10, 2**12, 2**14)


def _moves(updates, state, params=None):
    """Descent in the first row, whose mean is the second one; the state counts steps."""
    (now, mean), (slope, _) = jax.tree.leaves((params, updates))
    moved = jax.numpy.stack([now - STEP * slope, mean + (now - STEP * slope - mean) / (state + 1)])
    return jax.tree.map(lambda w: moved - w, params), state + 1


def _theory(mu: np.ndarray, target: np.ndarray, decay: float, steps: int) -> np.ndarray:
    """Expected squared distances of the last iterate and of the mean of all from the target."""
    limit, stays = mu / (mu + decay) * target, 1 - 2 * STEP * (mu + decay)
    now, mean, varies, of_mean = np.zeros((4, len(mu)))
    for left in reversed(range(steps)):
        off = varies + (now - target) ** 2
        varies = stays**2 * varies + (2 * STEP * mu) ** 2 * (NOISE**2 + np.sum(off) - off)
        now = limit + stays * (now - limit)
        mean = mean + now / steps
        of_mean = of_mean + varies * (1 + stays - 2 * stays ** (left + 1)) / (1 - stays) / steps**2
    return np.sum([(now - target) ** 2 + varies, (mean - target) ** 2 + of_mean], axis=1)


def exhibit(*, long: bool = False) -> Exhibit:
    """64 descents for each number of steps, or 200 if it is long."""
    keys = jax.random.split(jax.random.key(2), 200 if long else 64)
    k = np.repeat([0, 1, *range(2, HARMONICS, 2)], 2)[1:]  # the others are not in the kernel
    mu = np.where(k == 1, 0.25, (k**2 + 3) / (np.pi * (k**2 - 1 + (k == 1))) ** 2)
    angle = np.array(jax.random.uniform(keys[0], (ROWS, 1), maxval=2 * np.pi))
    basis = ROWS**0.5 * np.linalg.qr(np.cos(k * angle - np.pi / 2 * (np.arange(len(k)) % 2)))[0]
    noise = NOISE * np.array(jax.random.normal(keys[1], (ROWS,)))
    noise -= basis @ (basis.T @ noise) / ROWS
    arrays = np.zeros((2, len(mu))), None, [1.0, 0.0], None
    net = gflow.ShallowNet.from_arrays(*arrays, activation="identity")
    options: dict = {"step_size": STEP, "batch_size": 1, "trainable": ("w",)}
    rule = optax.GradientTransformation(lambda params: jax.numpy.zeros(()), _moves)
    claims, (figure, (axes,)) = [], panels(1)
    for r, factor, colour in ((0.5, 1.0, BLACK), (1.0, 0.3, RED)):
        target = mu**r / np.arange(1, len(mu) + 1) ** 0.5
        target /= np.linalg.norm(target)
        data = gflow.EmpiricalRisk(basis * np.sqrt(mu), basis @ target + noise)
        rate, gaps, theory = 2 * r * BETA / (2 * r * BETA + 1), [], []
        for steps in TIMES:
            decay = factor * steps ** (-rate / (2 * r))
            risk = gflow.PenalisedRisk(data, weight_decay=2 * decay)
            options |= {"num_steps": steps, "record": (steps // 16, steps // 4, steps)}
            w = [gflow.descend(risk, net, rule, key=key, **options).params.w[-3:] for key in keys]
            gaps.append(np.sum((np.sqrt(mu) * np.array(w) - target) ** 2, axis=-1))
            theory.append([_theory(mu, target, decay, time) for time in options["record"]])
        found, expected = np.mean(gaps, axis=1)[:, -1], np.array(theory)
        power = -float(np.polyfit(np.log(TIMES), np.log(found[:, 1]), 1)[0])
        claims.append(equal(f"r = {r}: power of 1/T, to 10 %", SOURCE, rate, power, 0.1))
        ratios = np.mean(gaps / expected[:, None], axis=(0, 2))
        within = 3 * np.std(ratios, axis=0, ddof=1) / len(keys) ** 0.5
        for i, words in enumerate(("the last iterate", "the mean")):
            words = f"r = {r}: distance of {words} over theory's, to 3 standard errors"
            claims.append(equal(words, SOURCE, 1.0, np.mean(ratios[:, i]), within[i]))
        axes.loglog(TIMES, found, "o", TIMES, expected[:, -1], "-", color=colour)
    axes.legend(axes.lines[::4], ["r = ½, and theory", "r = 1, and theory"])
    axes.set(xlabel="T", ylabel="squared distance", title="last iterate (above) and mean")
    return Exhibit(tuple(claims), figure)
