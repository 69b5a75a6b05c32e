r"""Clipped descent follows the orbit of gradient flow, in another time.

Regularised clipping makes steps $-\eta \min\{1, \max\{\delta, \gamma/\|\nabla L\|\}\} \nabla L$.
For η → 0 their limit is

$$\frac{d\theta}{ds} = -\min\{1, \max\{\delta, \gamma/\|\nabla L\|\}\} \nabla L .$$
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import gflow
from gflow.gallery.claims import Exhibit, at_least, at_most, equal, panels

SOURCE = "arXiv 2404.08624, and the flow"
GAMMA, DELTA, T1, WIDTH = 0.2, 0.05, 8.0, 8
STEP_SIZES = 0.1 / np.array([2, 3, 4, 6, 8, 12, 16, 24])
X, TS = np.linspace(-1, 1, 12), np.linspace(0, T1, 81)
SLIDE = "along a slide: factor of the distance for a quarter of the step size"
WHY = "on a slide descent clips the longer gradients of both sides: the same orbit, more slowly"


def _clipped(step_size: float) -> optax.GradientTransformation:
    def updates(gradient, _):
        factor = GAMMA / jnp.maximum(optax.global_norm(gradient), 1e-300)
        return jax.tree.map(lambda g: jnp.clip(factor, DELTA, 1.0) * g, gradient)

    return optax.chain(optax.stateless(updates), optax.scale(-1.0 * step_size))


def _points(trajectory: gflow.Trajectory) -> np.ndarray:
    return np.asarray(jax.vmap(lambda net: ravel_pytree(net)[0])(trajectory.params))


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
    plain = gflow.solve_flow(risk, net, t1=times[-1], ts=times, rtol=1e-9)
    same = float(np.max(np.abs(_points(clipped) - _points(plain))))
    few = gflow.descend(risk, net, _clipped, step_size=0.05, num_steps=160, record=range(161))
    lengths = np.linalg.norm(np.diff(_points(few), axis=0), axis=1)
    factors = lengths / (0.05 * np.asarray(few.grad_norm)[:-1])
    *_, sliding = _flow_and_descents(1, np.array([1e-3, 2.5e-4]))
    words = f"same orbit as gradient flow, through {int(clipped.stats['num_kinks'])} kinks"
    order = gflow.observed_order(STEP_SIZES, apart).value
    claims = (
        at_most(f"{words}: largest distance", SOURCE, 1e-7, same),
        equal("order of clipped descent towards it, across kinks", SOURCE, 1.0, order, 0.1),
        at_least("smallest factor of a step over η", SOURCE, DELTA, float(factors.min())),
        at_most("largest", SOURCE, 1 + 1e-9, float(factors.max())),
        equal(SLIDE, SOURCE, 0.25, sliding[1] / sliding[0], 0.2).because(WHY),
    )
    figure, axes = panels(2)
    axes[0].semilogy(TS, clipped.risk, "k", times, plain.risk, "C0--")
    axes[0].set(xlabel="s of the clipped flow, t of the plain one", ylabel="risk")
    axes[0].legend(["clipped", "plain"])
    line = apart[-1] / STEP_SIZES[-1] * STEP_SIZES
    axes[1].loglog(STEP_SIZES, apart, "o-", STEP_SIZES, line, "k--")
    axes[1].minorticks_off()
    axes[1].set(xlabel="η", ylabel="distance from the clipped flow")
    return Exhibit(claims, figure)
