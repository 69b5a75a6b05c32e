"""Where a flow goes, and how fast: to a critical point, or to infinity."""

from gflow.limits.asymptotics import asymptotics
from gflow.limits.result import Asymptotics, Behaviour

__all__ = ["Asymptotics", "Behaviour", "asymptotics"]
