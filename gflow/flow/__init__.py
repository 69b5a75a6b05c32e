"""Continuous-time gradient flow."""

from gflow.flow.rosenbrock import Rodas5P as Rodas5P
from gflow.flow.solve import solve_flow as solve_flow
from gflow.flow.stop import Stop as Stop
