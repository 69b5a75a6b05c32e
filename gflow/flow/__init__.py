"""Continuous-time gradient flow."""

from gflow.flow.chebyshev import RKC2 as RKC2
from gflow.flow.multistep import BDF5 as BDF5
from gflow.flow.rock import ROCK4 as ROCK4
from gflow.flow.rosenbrock import Rodas5P as Rodas5P
from gflow.flow.solve import solve_flow as solve_flow
from gflow.flow.stop import Stop as Stop
