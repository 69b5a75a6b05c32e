"""Continuous-time gradient flow."""

from gflow.flow.solve import solve_flow as solve_flow
from gflow.flow.stop import Stop as Stop
