"""The public names of gflow, which `import gflow` offers."""

import importlib.metadata
from typing import TYPE_CHECKING

from gflow import piecewise
from gflow.activations import Activation
from gflow.arguments import ArgumentError
from gflow.certificates import (
    Certificate,
    Envelope,
    PLConstants,
    SlopeBounds,
    SumOfSquares,
    chatterjee,
    pl_constants,
    tangent_kernel,
    tangent_kernel_min_eigenvalue,
)
from gflow.comparison import Comparison, compare
from gflow.convergence import ConvergenceOrder, Parting, observed_order
from gflow.critical import CriticalKind, CriticalPoint, NotFoundError, refine
from gflow.descent import descend
from gflow.diagnostics import Diagnostics, Switch, balance
from gflow.flow import Stop, TimeChanged, solve_flow
from gflow.hessian import Spectrum, hessian_spectrum, sharpness
from gflow.kink_log import KinkLog
from gflow.limits import Asymptotics, Behaviour, asymptotics
from gflow.networks import ShallowNet
from gflow.nonsmooth import (
    EventuallyExact,
    KinkKind,
    clarke_gradient,
    generalized_gradient,
    lowered_biases,
    smoothed,
    smoothed_gradient,
)
from gflow.program_cache import cache_compilations
from gflow.rates import Lojasiewicz, Rate, RateStatus, fit_rate, lojasiewicz
from gflow.results import RESULTS
from gflow.risks import (
    BoxRisk,
    EmpiricalRisk,
    GaussianRisk,
    PenalisedRisk,
    PopulationRisk,
    Risk,
)
from gflow.solvers import BDF5, RKC2, ROCK4, Rodas5P
from gflow.storage import load_trajectory, save_trajectory
from gflow.trajectory import Trajectory, TrajectoryError

if TYPE_CHECKING:
    from gflow import plots

try:
    __version__ = importlib.metadata.version("gflow-jax")
except importlib.metadata.PackageNotFoundError:  # the sources, on the path without an installation
    __version__ = "unknown"

__all__ = [
    "BDF5",
    "RESULTS",
    "RKC2",
    "ROCK4",
    "Activation",
    "ArgumentError",
    "Asymptotics",
    "Behaviour",
    "BoxRisk",
    "Certificate",
    "Comparison",
    "ConvergenceOrder",
    "CriticalKind",
    "CriticalPoint",
    "Diagnostics",
    "EmpiricalRisk",
    "Envelope",
    "EventuallyExact",
    "GaussianRisk",
    "KinkKind",
    "KinkLog",
    "Lojasiewicz",
    "NotFoundError",
    "PLConstants",
    "Parting",
    "PenalisedRisk",
    "PopulationRisk",
    "Rate",
    "RateStatus",
    "Risk",
    "Rodas5P",
    "ShallowNet",
    "SlopeBounds",
    "Spectrum",
    "Stop",
    "SumOfSquares",
    "Switch",
    "TimeChanged",
    "Trajectory",
    "TrajectoryError",
    "__version__",
    "asymptotics",
    "balance",
    "cache_compilations",
    "chatterjee",
    "clarke_gradient",
    "compare",
    "descend",
    "fit_rate",
    "generalized_gradient",
    "hessian_spectrum",
    "load_trajectory",
    "lojasiewicz",
    "lowered_biases",
    "observed_order",
    "piecewise",
    "pl_constants",
    "plots",
    "refine",
    "save_trajectory",
    "sharpness",
    "smoothed",
    "smoothed_gradient",
    "solve_flow",
    "tangent_kernel",
    "tangent_kernel_min_eigenvalue",
]
