"""Gauss rules, by which closed forms are tested."""

import numpy as np
import scipy.special

phi = lambda x: np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
Phi = scipy.special.ndtr


def gauss(ends, points=24):
    """Nodes and weights of Gauss-Legendre rules between neighbours of `ends`, in any order."""
    x, w = np.polynomial.legendre.leggauss(points)
    ends = np.unique(ends)
    middle, half = (ends[1:] + ends[:-1]) / 2, np.diff(ends) / 2
    return (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()
