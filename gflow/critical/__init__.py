"""Critical points: from the end of a trajectory to the point itself, and its kind."""

from gflow.critical.modes import agreement, disagreement
from gflow.critical.point import (
    ActiveKink,
    CriticalKind,
    CriticalPoint,
    GapModes,
    NotFoundError,
    Zeros,
)
from gflow.critical.refine import refine
from gflow.critical.units import UnitGroups

__all__ = [
    "ActiveKink",
    "CriticalKind",
    "CriticalPoint",
    "GapModes",
    "NotFoundError",
    "UnitGroups",
    "Zeros",
    "agreement",
    "disagreement",
    "refine",
]
