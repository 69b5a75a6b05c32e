"""How a run ended, in words."""

import equinox as eqx


class RESULTS(eqx.Enumeration):
    """How a run ended. The message says what happened and, after trouble, what to try."""

    successful = "reached its end"
    repelled = (
        "reached its end, along one of several solutions: at the start, or where the output weight "
        "of a sliding unit passed 0, it was on a kink that the flow leaves to either side, and "
        "left to the inactive side, as ReLU'(0) = 0 has it. A bias raised by a rounding or so at "
        "the start gives another"
    )
    reached_grad_norm = "stopped early: the gradient norm fell to the value asked for"
    reached_risk = "stopped early: the risk fell to the value asked for"
    reached_progress = (
        "stopped early: the flow has settled. At its present speed the risk would fall by at most "
        "the share asked for in the next decade of time"
    )
    reached_param_norm = (
        "stopped early: the parameter norm grew to the value asked for, while the risk still fell. "
        "Far beyond the start, the weights are on their way to infinity"
    )
    max_steps_reached = (
        "the step budget `max_steps` ran out before t1. Raise it, loosen `rtol` and `atol`, or "
        "shorten t1. Kinks of ReLU and stiffness both make the steps small"
    )
    max_kinks_reached = (
        "the budget of kinks `max_kinks` ran out before t1. Raise it; kinks that pile up at one "
        "time point at a degenerate place, which other initial values avoid"
    )
    step_size_underflow = (
        "the step size shrank to nothing: the field jumps, or becomes infinite or NaN just ahead. "
        "Look at the last saved network, loosen `rtol` and `atol`, or use float64"
    )
    nonfinite = (
        "the risk or its gradient is infinite or NaN. Look at the last saved network: a loss that "
        "overflows, or weights that diverge; `stop=Stop(param_norm=...)` ends such a run in time"
    )
    diverged = (
        "the descent diverged: the risk or its gradient became infinite or NaN. Use a smaller step "
        "size; plain gradient descent needs less than 2/sharpness"
    )
    interrupted = "interrupted from the keyboard"


GOOD = (
    "successful",
    "repelled",
    "reached_grad_norm",
    "reached_risk",
    "reached_progress",
    "reached_param_norm",
)
TROUBLE = (
    "max_steps_reached",
    "max_kinks_reached",
    "step_size_underflow",
    "nonfinite",
    "diverged",
    "interrupted",
)
RESULT_NAMES = GOOD + TROUBLE
