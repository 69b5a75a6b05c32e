"""Gradient flow of neural networks: continuous flow, discrete descent, and how they compare."""

import importlib
from typing import TYPE_CHECKING

from gflow import piecewise as piecewise
from gflow.activations import Activation as Activation
from gflow.arguments import ArgumentError as ArgumentError
from gflow.certificates import (
    Certificate as Certificate,
    Envelope as Envelope,
    PLConstants as PLConstants,
    SlopeBounds as SlopeBounds,
    SumOfSquares as SumOfSquares,
    chatterjee as chatterjee,
    pl_constants as pl_constants,
    smallest_eigenvalue as smallest_eigenvalue,
    tangent_kernel as tangent_kernel,
)
from gflow.clarke import clarke_gradient as clarke_gradient
from gflow.compare import (
    Gap as Gap,
    Order as Order,
    compare as compare,
    observed_order as observed_order,
)
from gflow.critical import (
    CriticalPoint as CriticalPoint,
    Kind as Kind,
    NotFoundError as NotFoundError,
    refine as refine,
)
from gflow.descent import descend as descend
from gflow.flow import (
    BDF5 as BDF5,
    RKC2 as RKC2,
    ROCK4 as ROCK4,
    Rodas5P as Rodas5P,
    Stop as Stop,
    solve_flow as solve_flow,
)
from gflow.gradients import generalized_gradient as generalized_gradient
from gflow.networks import ShallowNet as ShallowNet
from gflow.rates import (
    Lojasiewicz as Lojasiewicz,
    Rate as Rate,
    fit_rate as fit_rate,
    lojasiewicz as lojasiewicz,
)
from gflow.results import RESULTS as RESULTS
from gflow.risks import (
    BoxRisk as BoxRisk,
    EmpiricalRisk as EmpiricalRisk,
    GaussianRisk as GaussianRisk,
    PopulationRisk as PopulationRisk,
    Risk as Risk,
)
from gflow.sharpness import sharpness as sharpness
from gflow.smoothings import (
    EventuallyExact as EventuallyExact,
    lowered_biases as lowered_biases,
    smoothed as smoothed,
    smoothed_gradient as smoothed_gradient,
)
from gflow.spectrum import Spectrum as Spectrum, hessian_spectrum as hessian_spectrum
from gflow.trajectory import (
    Diagnostics as Diagnostics,
    Trajectory as Trajectory,
    TrajectoryError as TrajectoryError,
)

if TYPE_CHECKING:
    from gflow import (
        experiment as experiment,
        plots as plots,
        rate_plots as rate_plots,
        store as store,
    )

_LAZY = ("experiment", "plots", "rate_plots", "store")


def __getattr__(name: str):
    # matplotlib, xarray and scikit-learn are imported with the first use of these modules.
    if name in _LAZY:
        return importlib.import_module(f"gflow.{name}")
    raise AttributeError(f"module 'gflow' has no attribute {name!r}")
