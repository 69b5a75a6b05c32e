"""The true risk on the line at 50 digits, and networks that are hard for it."""

from bisect import bisect_left
from itertools import accumulate, pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

import gflow
from gflow import piecewise
from gflow.piecewise import PiecewisePolynomial

mp.mp.dps = 50
TENT_RISK = gflow.PopulationRisk(piecewise.tent(), piecewise.uniform())
risk_and_gradient = eqx.filter_jit(lambda risk, net: jax.value_and_grad(lambda n: risk(n))(net))
hessian_product = eqx.filter_jit(
    lambda risk, net, d: jax.jvp(jax.grad(lambda n: risk(n)), (net,), (d,))[1]
)


def from_arrays(w, b, v, c, **options) -> gflow.ShallowNet:
    return gflow.ShallowNet.from_arrays(jnp.reshape(jnp.asarray(w), (-1, 1)), b, v, c, **options)


def times(f, g):
    product = [mp.mpf(0)] * (len(f) + len(g) - 1)
    for i, a in enumerate(f):
        for j, b in enumerate(g):
            product[i + j] += a * b
    return product


def integral(f, left, right):
    return sum(a * (right ** (m + 1) - left ** (m + 1)) / (m + 1) for m, a in enumerate(f))


def exact(arrays, target, density, slope=0.0, scale=1.0):
    """Risk and G(θ) of a scalar net at 50 digits: the parameters as they are, cells between all
    kinks and breakpoints, polynomials integrated through their antiderivatives."""
    w, b, v, c = ([mp.mpf(x) for x in np.ravel(a)] for a in arrays)
    slope, scale = mp.mpf(slope), mp.mpf(scale)
    pieces = [
        ([mp.mpf(float(x)) for x in g.breakpoints], np.asarray(g.coefficients).tolist())
        for g in (target, density)
    ]
    first, last = (pieces[1][0][i] for i in (0, -1))
    kinks = [-y / x for x, y in zip(w, b) if x != 0]
    ends = sorted({x for x in [*kinks, *pieces[0][0], *pieces[1][0]] if first <= x <= last})
    cells, risk = [], mp.mpf(0)
    steps = sorted(((-y / x, i) for i, (x, y) in enumerate(zip(w, b)) if x), reverse=True)
    active = [x < 0 or (x == 0 and y > 0) for x, y in zip(w, b)]
    slopes = lambda on: mp.mpf(1) if on else slope
    rise = sum(scale * v[i] * slopes(on) * w[i] for i, on in enumerate(active))
    at_0 = c[0] + sum(scale * v[i] * slopes(on) * b[i] for i, on in enumerate(active))
    for left, right in pairwise(ends):
        while steps and steps[-1][0] <= left:
            _, i = steps.pop()
            active[i] = not active[i]
            change = (slopes(active[i]) - slopes(not active[i])) * scale * v[i]
            rise, at_0 = rise + change * w[i], at_0 + change * b[i]
        f, p = (
            [mp.mpf(a) for a in rows[max(0, min(len(rows), sum(x <= left for x in s)) - 1)]]
            for s, rows in pieces
        )
        r = [-a for a in f] + [mp.mpf(0)] * (2 - len(f))
        r[0], r[1] = r[0] + at_0, r[1] + rise
        rp = times(r, p)
        risk += integral(times(r, rp), left, right)
        cells.append((left, integral(rp, left, right), integral([0, *rp], left, right)))
    starts = [cell[0] for cell in cells]
    left0, left1 = ([mp.mpf(0), *accumulate(cell[k] for cell in cells)] for k in (1, 2))
    total0, total1 = left0[-1], left1[-1]
    gradient = {"w": [], "b": [], "v": [], "c": [2 * total0]}
    for x, y, u in zip(w, b, v):
        k = bisect_left(starts, -y / x) if x else 0
        rightward = x > 0 or (x == 0 and y > 0)
        on0, on1 = (s[-1] - s[k] if rightward else s[k] for s in (left0, left1))
        m0, m1 = (on0 + slope * (total0 - on0), on1 + slope * (total1 - on1))
        gradient["w"].append(2 * scale * u * m1)
        gradient["b"].append(2 * scale * u * m0)
        gradient["v"].append(2 * scale * (x * m1 + y * m0))
    return risk, gradient


def arrays_of(net):
    return [np.asarray(a) for a in (net.w, net.b, net.v, net.c)]


def assert_exact(risk, net, rtol=1e-12, floor=0.0):
    """To `rtol` of the risk, and of each component's scale: what √L and the parameters allow."""
    arrays = arrays_of(net)
    slope, scale = net.activation.negative_slope, net.output_scale
    value, gradient = exact(arrays, risk.target, risk.density, slope, scale)
    got, got_gradient = risk_and_gradient(risk, net)
    assert abs(mp.mpf(float(got)) - value) <= rtol * value + floor
    reach = max(abs(x) for x in risk.density.interval)
    w, b, v, _ = (abs(np.ravel(a)) for a in arrays)
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
