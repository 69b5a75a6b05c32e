"""Critical points: from the end of a trajectory to the point itself, and of what kind it is."""

from gflow.critical.point import (
    CriticalKind as CriticalKind,
    CriticalPoint as CriticalPoint,
    NotFoundError as NotFoundError,
    Sliding as Sliding,
    Zeros as Zeros,
)
from gflow.critical.refine import refine as refine
from gflow.critical.units import Units as Units
