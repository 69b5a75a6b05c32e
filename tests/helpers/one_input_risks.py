"""True risks for one input against 50 digits, and networks that are hard for them."""

import jax.numpy as jnp
import mpmath as mp
import numpy as np

import gflow
from benchmarks import exact_risks
from gflow import piecewise
from gflow.piecewise import PiecewisePolynomial
from tests.helpers.derivatives import risk_and_gradient

TENT_RISK = gflow.PopulationRisk(piecewise.tent(), piecewise.uniform())


def from_arrays(w, b, v, c, **options) -> gflow.ShallowNet:
    return gflow.ShallowNet.from_arrays(jnp.reshape(jnp.asarray(w), (-1, 1)), b, v, c, **options)


def assert_exact(risk, net, rtol=1e-12, floor=0.0):
    """Asserts errors of at most `rtol` of the risk, and of each gradient component's scale."""
    value, gradient = exact_risks.population(net, risk)
    got, got_gradient = risk_and_gradient(risk, net)
    assert abs(mp.mpf(float(got)) - value) <= rtol * value + floor
    reach = max(abs(x) for x in risk.density.interval)
    w, b, v, scale = (*(abs(np.ravel(a)) for a in (net.w, net.b, net.v)), net.output_scale)
    scales = {"w": scale * v * reach, "b": scale * v, "v": scale * (w * reach + b), "c": np.ones(1)}
    for name, expected in gradient.items():
        error = [
            float(abs(mp.mpf(float(g)) - e))
            for g, e in zip(np.ravel(getattr(got_gradient, name)), expected)
        ]
        allowed = 2 * rtol * (float(mp.sqrt(value)) + floor**0.5) * scales[name]
        assert np.all(error <= allowed), (name, np.max(error / np.where(allowed > 0, allowed, 1)))


def random_problem(rng) -> gflow.PopulationRisk:
    """A cubic target in four pieces, a quadratic density in three."""
    a, length = rng.uniform(-3, 2), rng.uniform(0.5, 3)
    inner = lambda k: a + length * np.sort(rng.uniform(0.1, 0.9, k))
    breakpoints = [np.array([a, *inner(k), a + length]) for k in (3, 2)]
    target = PiecewisePolynomial(breakpoints[0], rng.normal(size=(4, 4)))
    root = PiecewisePolynomial(breakpoints[1], rng.normal(size=(3, 2)))
    square = root * root
    return gflow.PopulationRisk(target, square * (1 / square.integral()))


def hard_net(rng, risk, width: int, kind: int, **options) -> gflow.ShallowNet:
    w, b, v = rng.normal(size=(3, width))
    c = rng.normal()
    a, last = risk.density.interval
    if kind == 1:  # kinks on breakpoints of target and density, and on the ends
        b = -w * rng.choice(np.asarray(risk.measure.breakpoints), width)
    elif kind == 2:  # kinks nearly equal, some of them equal
        b = -w * (rng.uniform(a, last) + rng.choice([0, 0, 1e-15, 1e-12, 1e-9], width))
    elif kind == 3:  # flat units: kinks far outside, or inside and badly conditioned
        w = w * rng.choice([1, 1e-8], width)
        b = np.where(rng.random(width) < 0.5, b, -w * rng.uniform(a, last, width))
    elif kind == 4:  # w = 0, w = b = 0, units twice, units without output
        w, b = (np.where(rng.random(width) < 0.3, 0, x) for x in (w, b))
        w[width // 2 :], b[width // 2 :] = w[: (width + 1) // 2], b[: (width + 1) // 2]
        v = np.where(rng.random(width) < 0.2, 0, v)
    elif kind == 5:  # steep spikes
        w = w * 1e6
        b = -w * rng.uniform(a, last, width)
    return from_arrays(w, b, v, c, **options)
