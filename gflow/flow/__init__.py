"""Continuous-time gradient flow."""

from gflow.flow.solve import solve_flow
from gflow.flow.stopping import Stop
from gflow.flow.time_changed import TimeChanged

__all__ = ["Stop", "TimeChanged", "solve_flow"]
