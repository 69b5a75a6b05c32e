"""The affine target and its critical points (O7)."""

import numpy as np

import gflow
from gflow import piecewise

# f(x) = α x + β on [T0, T1], uniform density.
T0, T1, ALPHA, BETA = -1.0, 2.0, 2.0, 0.5
MIDDLE = ALPHA * (T0 + T1) / 2 + BETA


def affine_risk() -> gflow.PopulationRisk:
    length = T1 - T0
    target = piecewise.PiecewisePolynomial([T0, T1], [[BETA, ALPHA]])
    density = piecewise.PiecewisePolynomial([T0, T1], [[1 / length]])
    return gflow.PopulationRisk(target, density)


def critical_value(kinks: int) -> float:
    return ALPHA**2 * (T1 - T0) ** 2 / (12 * (kinks + 1) ** 4)


def zig_zag(kinks: int, width: int, seed: int) -> gflow.ShallowNet:
    """The saddle with that many kinks; the other units are dead."""
    rng = np.random.default_rng(seed)
    w, b, v = [], [], []
    for i in range(1, kinks + 1):
        at = T0 + i * (T1 - T0) / (kinks + 1)
        slope = (-1) ** (i + 1) * rng.uniform(0.5, 1.5)
        w.append(slope)
        b.append(-slope * at)
        v.append(2 * ALPHA / (kinks + 1) / slope)
    for _ in range(width - kinks):
        w.append(1.0)
        b.append(-T1 - rng.uniform(0.5, 1.0))
        v.append(rng.normal())
    return gflow.ShallowNet.from_arrays(np.array(w)[:, None], b, v, MIDDLE)


def constant(*units) -> gflow.ShallowNet:
    """Units (w, b, v) that do not act, and a c near that of the best constant."""
    w, b, v = zip(*units)
    return gflow.ShallowNet.from_arrays(np.array(w)[:, None], b, v, MIDDLE + 0.01)
