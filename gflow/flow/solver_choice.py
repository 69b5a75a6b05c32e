r"""Which solver follows a flow if the user names none.

Gradient flow starts as a field that explicit methods follow best, and becomes stiff. The step h of
explicit methods is then bounded by the largest curvature ρ, $h\rho \lesssim 3.5$, while the
solution changes over times of order t. At each pause the work left is estimated in steps of Tsit5:

- Tsit5: (t1 − t)/h steps;
- BDF5: some hundred steps for each decade of time, each at the price of κ(P) steps of Tsit5 for P
  parameters;
- ROCK4: steps of a fraction of t, with a number of stages that grows like √(hρ) up to a maximum;

and some steps for each kink. Another solver takes over if h is bounded by ρ, Tsit5 would take many
more steps, and the other solver promises half the work or less. BDF5 keeps the flow to the end.
ROCK4 hands it over to BDF5 if BDF5 promises half the work that ROCK4 was measured to do, which
happens where kinks become rare.
"""

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import numpy as np

from gflow.solvers.bdf5 import BDF5
from gflow.solvers.rock4 import ROCK4

# Stability of Tsit5 on the real axis, where hρ ≤ 3.5, a little less to be safe; and the fraction of
# it from which steps count as bounded.
_TSIT5_BOUND, _BOUNDED = 3.3, 0.6
# For fewer steps of Tsit5, with few parameters, another solver is not worth its compilation.
_WORTH_A_CHANGE = 10_000
# BDF5, measured at rtol 1e-8 on flows to t = 1e8: steps in a decade, and for each kink.
_STEPS_OF_A_DECADE, _STEPS_OF_A_KINK, _STEPS_OF_A_START = 120.0, 4.0, 50.0
# ROCK4, measured likewise: the fraction of t in a step. Its stability interval is 0.35 s² for
# s ≤ 152 stages.
_FRACTION_OF_TIME, _ROCK4_GROWTH, _ROCK4_MAX_STAGES = 7e-4, 0.35, 152
_STAGES_OF_TSIT5 = 6
# At looser tolerances its long steps leave errors in the stiff modes, which end slides too early.
_ROCK4_ON_KINKS = 3e-7
# The Jacobian and its factors are some dense matrices.
_MAX_PARAMETERS = 4000

# Those that may take over, by name.
SUCCESSORS = {"BDF5": BDF5, "ROCK4": ROCK4}


class RunProgress(NamedTuple):
    """Progress of a flow, as input to the choice.

    Times count from the start: `t` of the state, `before` of the last pause. Kinks and field
    evaluations are those since then. `radius` computes the spectral radius of the Jacobian, and
    `located` says whether kinks are located.
    """

    t: float
    t1: float
    before: float
    num_kinks: int
    step_size: float
    radius: Callable[[], float]
    rtol: float
    num_params: int
    located: bool
    num_evaluations: int = 0


def better_solver(now: RunProgress, after: str | None = None) -> diffrax.AbstractSolver | None:
    """The solver to go on with instead of Tsit5, or instead of the one that took over `after` it;
    None to stay."""
    if after is None:
        return _instead_of_tsit5(now)
    return _instead_of_rock4(now) if after == "ROCK4" else None


def _instead_of_rock4(now: RunProgress) -> diffrax.AbstractSolver | None:
    if now.num_params > _MAX_PARAMETERS or not now.t > now.before > 0:
        return None
    ahead = np.log10(now.t1 / now.t) / np.log10(now.t / now.before)
    stay = now.num_evaluations / _STAGES_OF_TSIT5 * ahead
    if stay < _WORTH_A_CHANGE / (1 + now.num_params / 100):
        return None
    return (
        BDF5() if _with_bdf5(now, _STEPS_OF_A_KINK * now.num_kinks * ahead) < 0.5 * stay else None
    )


def _instead_of_tsit5(now: RunProgress) -> diffrax.AbstractSolver | None:
    stay = (now.t1 - now.t) / now.step_size
    if stay < _WORTH_A_CHANGE / (1 + now.num_params / 100):
        return None
    radius = now.radius()
    if now.step_size * radius < _BOUNDED * _TSIT5_BOUND:
        return None
    decades = np.log10(now.t1 / now.t) if now.t > 0 else 10.0
    since = max(np.log10(now.t / now.before), 0.1) if now.before > 0 else 1.0
    kinks = _STEPS_OF_A_KINK * now.num_kinks / since * decades
    implicit = _with_bdf5(now, kinks)
    explicit = _with_rock4(now, radius) + kinks
    if now.located and now.rtol > _ROCK4_ON_KINKS:
        explicit = np.inf
    if min(implicit, explicit) > 0.5 * stay:
        return None
    return BDF5() if implicit < explicit else ROCK4()


def _with_bdf5(now: RunProgress, steps_of_kinks: float) -> float:
    if now.num_params > _MAX_PARAMETERS:
        return np.inf
    decades = np.log10(now.t1 / now.t) if now.t > 0 else 10.0
    steps = _STEPS_OF_A_DECADE * (1e-8 / now.rtol) ** (1 / 6) * decades
    steps += _STEPS_OF_A_START + steps_of_kinks
    return cost_of_implicit_step(now.num_params) * steps


def cost_of_implicit_step(num_params: int) -> float:
    """κ(P), a step of BDF5 in steps of Tsit5: measured for P from 61 to 385, and P² for the
    factorisation."""
    return 3 + num_params / 30 + (num_params / 300) ** 2


def _with_rock4(now: RunProgress, radius: float) -> float:
    times = np.geomspace(max(now.t, now.step_size), now.t1, 200)
    fraction = _FRACTION_OF_TIME * (now.rtol / 1e-8) ** (1 / 3)
    sizes = np.minimum(fraction * times, _ROCK4_GROWTH * _ROCK4_MAX_STAGES**2 / radius)
    stages = np.maximum(np.sqrt(sizes * radius / _ROCK4_GROWTH), 5)
    return float(np.trapezoid(stages / sizes, times)) / _STAGES_OF_TSIT5
