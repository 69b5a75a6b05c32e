"""Risks and generalized gradients of ReLU networks with scalar output, at 50 digits.

The parameters and the data count as the floats that they are.
"""

import functools
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, combinations_with_replacement, pairwise, permutations
from operator import mul
from typing import Any

import jax
import mpmath as mp
import numpy as np

import gflow
from gflow.activations import PiecewiseLinear
from gflow.piecewise import PiecewisePolynomial

mp.mp.dps = 50

# The risk, and the gradient by the name of the parameter, flat.
Exact = tuple[Any, Mapping[str, Sequence[Any]]]
# A part of a simplex: its volume, and its corners (x, 1).
Part = tuple[Any, list[tuple[Any, ...]]]
# Rows whose entries are multiples of this have sums of products that are whole numbers.
GRID = 2.0**-50
# Less than this is zero with a rounding.
TINY = mp.mpf(10) ** -40


def errors(value: jax.Array, gradient: gflow.ShallowNet, reference: Exact) -> dict[str, float]:
    """Relative errors of the risk, and of the gradient in the Euclidean norm."""
    risk, exact_gradient = reference
    off, size = mp.mpf(0), mp.mpf(0)
    for name, wanted in exact_gradient.items():
        got = np.ravel(getattr(gradient, name)).tolist()
        off += sum((mp.mpf(g) - e) ** 2 for g, e in zip(got, wanted, strict=True))
        size += sum(e**2 for e in wanted)
    return {
        "risk_error": float(abs(mp.mpf(float(value)) - risk) / risk),
        "gradient_error": math.sqrt(float(off / size)),
    }


def population(net: gflow.ShallowNet, risk: gflow.PopulationRisk) -> Exact:
    target, activation = risk.target, net.activation
    assert isinstance(target, PiecewisePolynomial) and isinstance(activation, PiecewiseLinear)
    slope = activation.negative_slope
    return one_input(arrays_of(net), target, risk.density, slope, net.output_scale)


def one_input(
    arrays: Sequence[Any],
    target: PiecewisePolynomial,
    density: PiecewisePolynomial,
    slope: Any = 0.0,
    scale: Any = 1.0,
) -> Exact:
    """The true risk for one input: polynomials integrated over the cells between all kinks and
    breakpoints. `arrays` are w, b, v, c, in floats or in more digits; `slope` is that of the
    activation left of 0, and `scale` multiplies the units' sum."""
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
        rp = _product(r, p)
        risk += _integral(_product(r, rp), left, right)
        cells.append((left, _integral(rp, left, right), _integral([0, *rp], left, right)))
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


def data(net: gflow.ShallowNet, x: np.ndarray, y: np.ndarray) -> Exact:
    """The mean over rows on the grid, x and y of shape (n,): whole sums over rows between kinks."""
    w, b, v, c = _parameters(net)
    s = mp.mpf(net.output_scale)
    order = np.argsort(x)
    k, m = ((a[order] / GRID).astype(np.int64) for a in (x, y))
    n, unit = len(k), mp.mpf(GRID)
    rightward = [x > 0 or (x == 0 and y > 0) for x, y in zip(w, b)]
    # The first row right of each kink; on kinks units are inactive, whichever side that is.
    right = lambda row, i: (w[i] * int(k[row]) * unit + b[i] > 0) == rightward[i]
    firsts = [
        bisect_left(range(n), True, key=lambda row, i=i: right(row, i)) for i in range(len(w))
    ]
    ends = sorted({0, n, *firsts})
    cells, risk = [], mp.mpf(0)
    for first, last in pairwise(ends):
        kk, mm = k[first:last].tolist(), m[first:last].tolist()
        m0, m1, y1 = mp.mpf(len(kk)), sum(kk) * unit, sum(mm) * unit
        m2, xy, y2 = (sum(map(mul, f, g)) * unit**2 for f, g in ((kk, kk), (kk, mm), (mm, mm)))
        active = [i for i, side in enumerate(rightward) if (first >= firsts[i]) == side]
        rise, at_0 = (s * sum(v[i] * a[i] for i in active) for a in (w, b))
        at_0 += c[0]
        r0, r1 = rise * m1 + at_0 * m0 - y1, rise * m2 + at_0 * m1 - xy
        cells.append((r0 / n, r1 / n))
        risk += (rise * (r1 - xy) + at_0 * (r0 - y1) + y2) / n
    left0, left1 = ([mp.mpf(0), *accumulate(cell[j] for cell in cells)] for j in (0, 1))
    gradient = {"w": [], "b": [], "v": [], "c": [2 * left0[-1]]}
    for i, side in enumerate(rightward):
        at = ends.index(firsts[i])
        r0, r1 = (sums[-1] - sums[at] if side else sums[at] for sums in (left0, left1))
        gradient["w"].append(2 * s * v[i] * r1)
        gradient["b"].append(2 * s * v[i] * r0)
        gradient["v"].append(2 * s * (w[i] * r1 + b[i] * r0))
    return risk, gradient


def box(net: gflow.ShallowNet, risk: gflow.BoxRisk) -> Exact:
    """Moments over the parts of the box where one unit or two are active, cut out of simplices."""
    w, b, v, c = _parameters(net)
    width, d, s = net.width, net.in_size, mp.mpf(net.output_scale)
    p = [(*w[d * i : d * (i + 1)], b[i]) for i in range(width)]
    terms = [(mp.mpf(float(a)), es) for es, a in zip(risk.exponents, risk.coefficients)]
    # The monomials' factors, as numbers of coordinates.
    terms = [(a, [axis for axis, e in enumerate(es) for _ in range(e)]) for a, es in terms]
    whole = _simplices([mp.mpf(float(a)) for a in risk.low], [mp.mpf(float(a)) for a in risk.high])
    f_mean = sum(a * _mean(whole, factors) for a, factors in terms)
    squares = sum(a * e * _mean(whole, f + g) for a, f in terms for e, g in terms)
    parts = [_positive(whole, row) for row in p]
    # Over the side of each unit: ∫ (c − f) (x, 1), and below ∫ (N − c) (x, 1).
    sides = [
        [
            c[0] * _mean(part, [axis]) - sum(a * _mean(part, [*f, axis]) for a, f in terms)
            for axis in range(d + 1)
        ]
        for part in parts
    ]
    units = [[mp.mpf(0)] * (d + 1) for _ in p]
    for i in range(width):
        for j in range(i, width):
            both = parts[i] if i == j else _positive(parts[i], p[j])
            for a, e in combinations_with_replacement(range(d + 1), 2):
                moment = s * _mean(both, [a, e])
                for k, other in {(i, j), (j, i)}:
                    for one, two in {(a, e), (e, a)}:
                        units[k][one] += moment * v[other] * p[other][two]
    value = c[0] ** 2 - 2 * c[0] * f_mean + squares
    gradient = {"w": [], "b": [], "v": [], "c": [2 * (c[0] - f_mean)]}
    for i in range(width):
        g = [mine + others for mine, others in zip(sides[i], units[i])]
        value += s * v[i] * (_dot(p[i], sides[i]) + _dot(p[i], g))
        gradient["w"] += [2 * s * v[i] * a for a in g[:-1]]
        gradient["b"].append(2 * s * v[i] * g[-1])
        gradient["v"].append(2 * s * _dot(p[i], g))
        gradient["c"][0] += (
            2 * s * v[i] * sum(x * _mean(parts[i], [axis]) for axis, x in enumerate(p[i]))
        )
    return value, gradient


def gaussian(net: gflow.ShallowNet, teacher: gflow.ShallowNet) -> Exact:
    """Without biases: the kernel of Cho and Saul (2009) and its derivative."""
    units = []
    for layer, sign in ((net, 1), (teacher, -1)):
        rows = [[mp.mpf(x) for x in row] for row in np.asarray(layer.w).tolist()]
        scale = sign * mp.mpf(layer.output_scale)
        units += [(row, scale * mp.mpf(x)) for row, x in zip(rows, np.asarray(layer.v).tolist())]
    norms = [mp.sqrt(_dot(row, row)) for row, _ in units]
    risk, gradient = mp.mpf(0), {"w": [], "v": []}
    for i, (mine, a) in enumerate(units):
        value, along, across = mp.mpf(0), mp.mpf(0), [mp.mpf(0)] * len(mine)
        for j, (other, e) in enumerate(units):
            cosine = _dot(mine, other) / (norms[i] * norms[j]) if i != j else mp.mpf(1)
            angle = mp.acos(max(min(cosine, mp.mpf(1)), mp.mpf(-1)))
            rest = (mp.pi - angle) / (2 * mp.pi)
            sine = mp.sin(angle) / (2 * mp.pi)
            value += e * norms[i] * norms[j] * (sine + rest * cosine)
            along += e * norms[j] * sine / norms[i]
            across = [x + e * rest * y for x, y in zip(across, other)]
        risk += a * value
        if i < net.width:
            gradient["w"] += [2 * a * (x + along * y) for x, y in zip(across, mine)]
            gradient["v"].append(2 * mp.mpf(net.output_scale) * value)
    return risk, gradient


def arrays_of(net: gflow.ShallowNet) -> list[np.ndarray]:
    return [np.asarray(a) for a in (net.w, net.b, net.v, net.c)]


def _parameters(net: gflow.ShallowNet) -> list[list[Any]]:
    return [[mp.mpf(x) for x in np.ravel(a).tolist()] for a in arrays_of(net)]


def _product(f: Sequence[Any], g: Sequence[Any]) -> list[Any]:
    product = [mp.mpf(0)] * (len(f) + len(g) - 1)
    for i, a in enumerate(f):
        for j, b in enumerate(g):
            product[i + j] += a * b
    return product


def _integral(f: Sequence[Any], left: Any, right: Any) -> Any:
    return sum(a * (right ** (m + 1) - left ** (m + 1)) / (m + 1) for m, a in enumerate(f))


def _dot(f: Iterable[Any], g: Iterable[Any]) -> Any:
    return sum(map(mul, f, g))


def _simplices(low: Sequence[Any], high: Sequence[Any]) -> list[Part]:
    """The box in simplices, one for each order of the coordinates; their volumes add up to one."""
    d, parts = len(low), []
    for order in permutations(range(d)):
        raised = [set(order[:k]) for k in range(d + 1)]
        corners = [(*(high[a] if a in up else low[a] for a in range(d)), 1) for up in raised]
        parts.append((mp.mpf(1) / math.factorial(d), corners))
    return parts


def _positive(parts: Iterable[Part], p: Sequence[Any]) -> list[Part]:
    """What of these simplices is in z = ⟨p, (x, 1)⟩ > 0: edges are cut until none crosses z = 0."""
    todo, found = list(parts), []
    while todo:
        volume, corners = todo.pop()
        z = [_dot(p, corner) for corner in corners]
        lowest, highest = min(z), max(z)
        if highest <= TINY:
            continue
        if lowest >= -TINY:
            found.append((volume, corners))
            continue
        k, m = z.index(lowest), z.index(highest)
        share = highest / (highest - lowest)
        cut = tuple(a + share * (e - a) for a, e in zip(corners[m], corners[k]))
        todo.append((volume * share, [*corners[:k], cut, *corners[k + 1 :]]))
        todo.append((volume * (1 - share), [*corners[:m], cut, *corners[m + 1 :]]))
    return found


def _mean(parts: Iterable[Part], factors: Sequence[int]) -> Any:
    """∫ of a product of entries of (x, 1): moments of Dirichlet's law, cycle by cycle."""
    q = len(factors)
    patterns = _patterns(q)
    cycles = {cycle for pattern in patterns for cycle in pattern}
    total = mp.mpf(0)
    for volume, corners in parts:
        d = len(corners) - 1
        sums = {
            cycle: sum(math.prod(corner[factors[k]] for k in cycle) for corner in corners)
            for cycle in cycles
        }
        products = sum(math.prod(sums[cycle] for cycle in pattern) for pattern in patterns)
        total += volume * products * math.factorial(d) / math.factorial(d + q)
    return total


@functools.cache
def _patterns(q: int) -> list[list[frozenset[int]]]:
    """The cycles of each permutation of q things."""
    patterns = []
    for order in permutations(range(q)):
        cycles, left = [], set(range(q))
        while left:
            cycle = {k := min(left)}
            while (k := order[k]) not in cycle:
                cycle.add(k)
            cycles.append(frozenset(cycle))
            left -= cycle
        patterns.append(cycles)
    return patterns
