"""Figures. Each function draws into `ax` (new axes if None) and returns it."""

from gflow.plots.raster import kinks
from gflow.plots.rates import gap, local_slopes, rate_figure
from gflow.plots.spectra import spectrum
from gflow.plots.trajectories import (
    breakpoints,
    distance,
    grad_norm,
    learned_function,
    observed,
    order,
    risk,
    unit_directions,
)

__all__ = [
    "breakpoints",
    "distance",
    "gap",
    "grad_norm",
    "kinks",
    "learned_function",
    "local_slopes",
    "observed",
    "order",
    "rate_figure",
    "risk",
    "spectrum",
    "unit_directions",
]


def __dir__() -> list[str]:
    return __all__
