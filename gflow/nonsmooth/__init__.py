"""Risks of ReLU networks where they are not differentiable: gradients, patterns and kinks."""

from gflow.nonsmooth.clarke import clarke_gradient
from gflow.nonsmooth.gradients import generalized_gradient
from gflow.nonsmooth.kink_kinds import KinkKind
from gflow.nonsmooth.smoothings import (
    EventuallyExact,
    lowered_biases,
    smoothed,
    smoothed_gradient,
)

__all__ = [
    "EventuallyExact",
    "KinkKind",
    "clarke_gradient",
    "generalized_gradient",
    "lowered_biases",
    "smoothed",
    "smoothed_gradient",
]
