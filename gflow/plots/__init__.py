"""Figures. Each function draws into `ax` (new axes if None) and returns it. `explore` makes a page
to watch, and `movie` a movie."""

from gflow.plots.curves import curves
from gflow.plots.explorer import Explorer, explore
from gflow.plots.landscape import landscape
from gflow.plots.movie import movie
from gflow.plots.panels import panels
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
    "Explorer",
    "breakpoints",
    "curves",
    "distance",
    "explore",
    "gap",
    "grad_norm",
    "kinks",
    "landscape",
    "learned_function",
    "local_slopes",
    "movie",
    "observed",
    "order",
    "panels",
    "rate_figure",
    "risk",
    "spectrum",
    "unit_directions",
]


def __dir__() -> list[str]:
    return __all__
