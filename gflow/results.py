"""How a run ended, in words."""

from functools import lru_cache

import equinox as eqx
import jax
import numpy as np


class RESULTS(eqx.Enumeration):
    """How a run ended. Each message says what happened and, after a failure, what to try."""

    successful = "reached its end"
    repelled = (
        "reached its end, along one of several solutions: the start is within rounding of a kink "
        "that the flow could leave to either side. From z = 0 it takes the inactive side, since "
        "ReLU'(0) = 0. A bias changed by a few roundings selects another"
    )
    branched = (
        "reached its end, along one of several solutions: on the way the output weight of a "
        "sliding unit passed 0, and the flow could leave the kink to either side. It took the "
        "inactive side; descent may take the other. The log of kinks names unit and time"
    )
    reached_grad_norm = "stopped early: the gradient norm fell to the requested value"
    reached_risk = "stopped early: the risk fell to the requested value"
    reached_progress = (
        "stopped early: the risk has nearly stopped falling. At its present speed it would fall by "
        "at most the requested fraction in the next decade of time"
    )
    reached_param_norm = (
        "stopped early: the parameter norm grew to the requested value, while the risk still fell. "
        "A value far above that of the start indicates weights that diverge to infinity"
    )
    reached_seconds = (
        "stopped early: the requested seconds were over. With a `checkpoint`, the same call goes on"
    )
    max_steps_reached = (
        "the step budget `max_steps` ran out before t1. Raise it, loosen `rtol` and `atol`, or "
        "shorten t1. Both kinks of ReLU and stiffness make the steps small"
    )
    too_many_slides = (
        "more pairs of a unit and a row began to slide at one time than there is room for under "
        "`jax.jit` or `jax.vmap`. Outside of them the room grows"
    )
    step_size_underflow = (
        "the step size fell below rounding: the field jumps, or is infinite or NaN just ahead. "
        "Look at the last saved network, loosen `rtol` and `atol`, or use float64"
    )
    changed_time_ended = (
        "the changed time ended: at this speed the flow reaches a critical point at a finite time, "
        "and is as close to one as tolerance and rounding can tell. `stop=Stop(grad_norm=...)` "
        "ends it before; gradient flow itself, without `model`, approaches the point for ever"
    )
    nonfinite_start = (
        "the risk or its gradient is infinite or NaN at the start. Look at the data, and for "
        "functions without a derivative at the start, such as a norm at 0"
    )
    nonfinite = (
        "the risk or its gradient is infinite or NaN. Look at the last saved network: the loss "
        "overflows, or the weights diverge; `stop=Stop(param_norm=...)` ends such a run in time"
    )
    diverged = (
        "the descent diverged: the risk or its gradient became infinite or NaN. Use a smaller step "
        "size; plain gradient descent needs less than 2/sharpness"
    )
    interrupted = "interrupted from the keyboard"


SUCCESSES = (
    "successful",
    "repelled",
    "branched",
    "reached_grad_norm",
    "reached_risk",
    "reached_progress",
    "reached_param_norm",
    "reached_seconds",
)
FAILURES = (
    "max_steps_reached",
    "too_many_slides",
    "step_size_underflow",
    "changed_time_ended",
    "nonfinite_start",
    "nonfinite",
    "diverged",
    "interrupted",
)
RESULT_NAMES = SUCCESSES + FAILURES


def result_name(result: RESULTS) -> str:
    """The name of a member that is not traced."""
    return _names()[_number(result)]


@lru_cache(maxsize=1)
def _names() -> dict[int, str]:
    return {_number(getattr(RESULTS, name)): name for name in RESULT_NAMES}


def _number(result: RESULTS) -> int:
    """The number that stands for a member. To compare members is an operation on the device."""
    return int(np.asarray(jax.tree.leaves(result)[0]))
