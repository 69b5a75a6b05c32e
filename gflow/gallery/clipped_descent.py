r"""Clipped descent follows the orbit of gradient flow, in another time.

Regularised clipping makes steps $-\eta \min\{1, \max\{\delta, \gamma/\|\nabla L\|\}\} \nabla L$.
For η → 0 their limit is

$$\frac{d\theta}{ds} = -\sigma \nabla L, \quad
  \frac{dt}{ds} = \sigma = \min\{1, \max\{\delta, \gamma/\|\nabla L\|\}\} .$$
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.integrate import cumulative_trapezoid

import gflow
from gflow.gallery.claims import Exhibit, at_most, equal, panels

SOURCE = "Tucat, Mukherjee, Sen, Sun, Rivasplata, arXiv 2404.08624"
GAMMA, DELTA, ORDER, T1, WIDTH = 0.2, 0.1, 1.0, 8.0, 8
STEP_SIZES = 0.1 / np.array([2, 3, 4, 6, 8, 12, 16, 24])
X, TS = np.linspace(-1, 1, 12), np.linspace(0, T1, 81)
SLIDE = "along a slide: factor of the distance for a quarter of the step size"
WHY = "on a slide descent clips the longer gradients of both sides: the same orbit, more slowly"
_points = lambda found: np.asarray(jax.vmap(lambda net: ravel_pytree(net)[0])(found.params))


def _clipped(step_size: float) -> optax.GradientTransformation:
    def updates(gradient, _):
        factor = GAMMA / jnp.maximum(optax.global_norm(gradient), 1e-300)
        return jax.tree.map(lambda g: jnp.clip(factor, DELTA, 1.0) * g, gradient)

    return optax.chain(optax.stateless(updates), optax.scale(-1.0 * step_size))


def _flow_and_descents(key: int, sizes: np.ndarray):
    """The risk, the start, the clipped flow, and the largest distances of descents from it."""
    risk = gflow.EmpiricalRisk(X[:, None], np.sin(3 * X))
    model = gflow.TimeChanged.clipped(GAMMA, floor=DELTA)
    net = gflow.ShallowNet(1, WIDTH, key=jax.random.key(key))
    flow = gflow.solve_flow(risk, net, t1=T1, ts=TS, model=model, rtol=1e-9)
    apart = []
    for size in sizes:
        steps = np.rint(TS / size).astype(int)
        options = {"step_size": size, "num_steps": int(steps[-1]), "record": steps}
        descent = gflow.descend(risk, net, _clipped, **options)
        apart.append(np.max(np.linalg.norm(_points(descent) - _points(flow), axis=1)))
    return risk, net, flow, apart


def exhibit(*, long: bool = False) -> Exhibit:
    """A network that crosses kinks, and one that slides; finer steps if it is long."""
    risk, net, clipped, apart = _flow_and_descents(4, STEP_SIZES / (10 if long else 1))
    times = np.asarray(clipped.observed["flow_time"])
    speeds = np.diff(times) / np.diff(TS)
    fine = np.union1d(times, np.linspace(0, times[-1], 8001))
    plain, at = gflow.solve_flow(risk, net, t1=fine[-1], ts=fine), np.searchsorted(fine, times)
    slowness = 1 / np.clip(GAMMA / np.asarray(plain.grad_norm), DELTA, 1.0)
    off = np.max(np.abs(cumulative_trapezoid(slowness, fine, initial=0.0)[at] - TS))
    same = float(np.max(np.abs(_points(clipped) - _points(plain)[at])))
    *_, (coarse, finer) = _flow_and_descents(1, np.array([1e-3, 2.5e-4]))
    words = f"same orbit as gradient flow, through {int(clipped.stats['num_kinks'])} kinks"
    order, stays = gflow.observed_order(STEP_SIZES, apart).value, finer / coarse
    claims = (
        at_most(f"{words}: largest distance", SOURCE, 1e-7, same),
        equal("order of clipped descent towards it, across kinks", SOURCE, ORDER, order, 0.1),
        at_most("∫dt/σ along gradient flow, and s: largest difference", SOURCE, 1e-3, float(off)),
        equal("smallest dt/ds, δ", SOURCE, DELTA, float(speeds.min()), 1e-6),
        equal("largest dt/ds", SOURCE, 1.0, float(speeds.max()), 1e-6),
        equal(SLIDE, SOURCE, 0.25**ORDER, stays, 0.2).because(WHY, seen=abs(stays - 1) < 0.1),
    )
    figure, axes = panels(2)
    axes[0].semilogy(TS, clipped.risk, "-", fine, plain.risk, "--")
    axes[0].set(xlabel="s of the clipped flow, t of the plain one", ylabel="risk")
    axes[0].legend(["clipped", "plain"])
    axes[1].loglog(STEP_SIZES, apart, "o", STEP_SIZES, apart[0] / STEP_SIZES[0] * STEP_SIZES, "--")
    axes[1].legend(["descent", "order 1"])
    axes[1].set(xlabel="η", ylabel="distance from the clipped flow")
    return Exhibit(claims, figure)
