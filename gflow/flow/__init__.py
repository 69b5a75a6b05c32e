"""Continuous-time gradient flow."""

from gflow.flow.solve import solve_flow
from gflow.flow.stopping import Stop

__all__ = ["Stop", "solve_flow"]
