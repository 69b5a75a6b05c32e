"""Which pattern risk a risk and a network have."""

from typing import Any

from gflow.arguments import PyTree
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk


def pattern_risk_of(risk: Any, trained: PyTree, frozen: PyTree) -> AbstractPatternRisk | None:
    """The risk pattern by pattern, or None where no kinks are known: there it counts as smooth."""
    return ShallowPatternRisk.of(risk, trained, frozen)
