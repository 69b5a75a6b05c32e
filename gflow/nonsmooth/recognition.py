"""Which pattern risk a risk and a network have, and in which shapes."""

import warnings
from typing import Any

from gflow.arguments import PyTree
from gflow.nonsmooth.deep.risk import DeepPatternRisk
from gflow.nonsmooth.pattern_risk import AbstractPatternRisk
from gflow.nonsmooth.shallow.padding import padded, without_padding
from gflow.nonsmooth.shallow.risk import ShallowPatternRisk
from gflow.nonsmooth.shallow.table_kinks import near_rows
from gflow.parameters import TimeScales
from gflow.risks import without_penalty

__all__ = ["padded", "pattern_risk_of", "without_padding"]


def pattern_risk_of(
    risk: Any, trained: PyTree, frozen: PyTree, time_scales: TimeScales
) -> AbstractPatternRisk | None:
    """The risk pattern by pattern, or None where no kinks are known: there it counts as smooth.

    That of one hidden layer is written out; all others are found in their own computation.
    """
    shallow = ShallowPatternRisk.of(risk, trained, frozen, time_scales)
    found = shallow or DeepPatternRisk.of(risk, trained, frozen, time_scales)
    if found is not None and (words := near_rows(without_penalty(risk))) is not None:
        warnings.warn(words, stacklevel=3)
    return found
