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
from tests.exact_line import arrays_of, exact

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
    return exact(arrays_of(net), risk.target, risk.density, scale=net.output_scale)


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


def _parameters(net: gflow.ShallowNet) -> list[list[Any]]:
    return [[mp.mpf(x) for x in np.ravel(a).tolist()] for a in arrays_of(net)]


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
