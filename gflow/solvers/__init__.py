"""Diffrax solvers for stiff problems: two implicit ones, and two stabilised explicit ones."""

from gflow.solvers.bdf5 import BDF5
from gflow.solvers.rkc2 import RKC2
from gflow.solvers.rock4 import ROCK4
from gflow.solvers.rodas5p import Rodas5P

__all__ = ["BDF5", "RKC2", "ROCK4", "Rodas5P"]
